//! The body of `/v1/completions`.
//!
//! Invariant: a prompt holds no mask, neither as a token nor as its text, so nothing in it is filled in.

use dlx_runtime::decode::DecodePolicy;
use dlx_runtime::session::{Infill, Prompt, Segment, TextSide};
use serde_json::Value;

use crate::choices::Asked;
use crate::error::ApiError;
use crate::params::{Params, Sampling, wrong};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 128;

/// Takes the prompts and everything that only text completions have. `policy` and `max_seq` are the request's and the model's.
pub(crate) fn take(
    params: &mut Params,
    sampling: &Sampling,
    side: &TextSide,
    policy: &DecodePolicy,
    max_seq: usize,
) -> Result<Asked, ApiError> {
    let max_new = params.count("max_tokens", 1..=i64::from(i32::MAX))?.unwrap_or(16);
    let echo = params.boolean("echo")?.unwrap_or(false);
    let logprobs = params.count("logprobs", 0..=5)?;
    if echo && logprobs.is_some() {
        return Err(ApiError::unsupported("echo", " with `logprobs`, which the model does not tell of a prompt"));
    }
    let best_of = params.count("best_of", 1..=128)?.unwrap_or(sampling.n);
    if best_of < sampling.n {
        return Err(ApiError::invalid("best_of", "`best_of` must be at least `n`"));
    }
    if best_of > sampling.n && sampling.stream.is_some() {
        return Err(ApiError::unsupported(
            "best_of",
            " above `n` with `stream`, before whose end nobody knows the best",
        ));
    }
    let suffix = params.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let what = "a string, a list of strings, a list of token ids, or a list of such lists";
    let prompts = match params.take("prompt") {
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(list)) if !list.is_empty() => match ids(&list) {
            Some(ids) => vec![Prompt::Ids(ids)],
            None if list.len() > MAX_PROMPTS => return Err(wrong("prompt", "at most 128 prompts")),
            None => {
                let one = |value: Value| match value {
                    Value::String(text) => Some(Prompt::Text(text)),
                    Value::Array(list) => ids(&list).map(Prompt::Ids),
                    _ => None,
                };
                list.into_iter().map(|v| one(v).ok_or_else(|| wrong("prompt", what))).collect::<Result<_, _>>()?
            }
        },
        _ => return Err(wrong("prompt", what)),
    };
    let texts = prompts.iter().map(|prompt| text_of(prompt, side)).collect::<Result<Vec<_>, _>>()?;
    let echo = if echo { texts } else { Vec::new() };
    let Some(suffix) = suffix else {
        return Ok(Asked { prompts, max_new, echo, logprobs, best_of: Some(best_of), ..Asked::default() });
    };
    if logprobs.is_some() {
        return Err(ApiError::unsupported("logprobs", " with `suffix`"));
    }
    if best_of > sampling.n {
        return Err(ApiError::unsupported("best_of", " above `n` with `suffix`"));
    }
    let infill = |prompt: Prompt| {
        let before = match prompt {
            Prompt::Ids(ids) => Segment::Ids(ids),
            Prompt::Text(text) => Segment::Text(text),
            Prompt::Chat { .. } => Segment::Ids(Vec::new()),
        };
        let segments = [before, Segment::Gap(max_new), Segment::Text(suffix.clone())];
        Infill::new(side, policy, &segments, max_seq).map_err(|e| ApiError::session(&e, "suffix"))
    };
    let infills = prompts.into_iter().map(infill).collect::<Result<_, _>>()?;
    Ok(Asked { infills, max_new, echo, ..Asked::default() })
}

fn ids(list: &[Value]) -> Option<Vec<i32>> {
    list.iter().map(|id| id.as_i64().and_then(|id| i32::try_from(id).ok())).collect()
}

/// Refuses a prompt with a mask in it, and gives its text.
fn text_of(prompt: &Prompt, side: &TextSide) -> Result<String, ApiError> {
    let failed = |e: &dyn std::fmt::Display| ApiError::invalid("prompt", e.to_string());
    let (text, ids) = match prompt {
        Prompt::Text(text) => (text.clone(), side.tokenizer().encode(text).map_err(|e| failed(&e))?),
        Prompt::Ids(ids) => (side.tokenizer().decode(ids, true).map_err(|e| failed(&e))?, ids.clone()),
        Prompt::Chat { .. } => return Ok(String::new()),
    };
    let mask = side.policy().mask_id;
    if ids.contains(&mask) {
        return Err(ApiError::invalid(
            "prompt",
            "the prompt holds the mask token: use /v1/infill or `suffix` to fill in",
        ));
    }
    Ok(text)
}
