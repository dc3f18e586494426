//! The body of `/v1/completions`.
//!
//! Invariant: a prompt holds no mask, neither as a token nor as its text, so nothing in it is filled in.

use dlx_runtime::session::{Prompt, TextSide};
use serde_json::Value;

use crate::error::ApiError;
use crate::params::{Params, Sampling, wrong};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 128;

/// What only text completions have.
pub(crate) struct Text {
    pub(crate) prompts: Vec<Prompt>,
    /// Whether the answers begin with their prompts.
    pub(crate) echo: bool,
    /// How many likely tokens are told beside each token, if their probabilities are told.
    pub(crate) logprobs: Option<usize>,
    /// Choices that are made of each prompt.
    pub(crate) best_of: usize,
}

/// Takes the prompts and everything that only text completions have.
pub(crate) fn take(params: &mut Params, sampling: &Sampling) -> Result<Text, ApiError> {
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
    if params.take("suffix").is_some() {
        return Err(ApiError::unsupported("suffix", " yet"));
    }
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
    Ok(Text { prompts, echo, logprobs, best_of })
}

fn ids(list: &[Value]) -> Option<Vec<i32>> {
    list.iter().map(|id| id.as_i64().and_then(|id| i32::try_from(id).ok())).collect()
}

/// Refuses a prompt with a mask in it, and gives its text.
pub(crate) fn text_of(prompt: &Prompt, side: &TextSide) -> Result<String, ApiError> {
    let failed = |e: &dyn std::fmt::Display| ApiError::invalid("prompt", e.to_string());
    let (text, ids) = match prompt {
        Prompt::Text(text) => (text.clone(), side.tokenizer().encode(text).map_err(|e| failed(&e))?),
        Prompt::Ids(ids) => (side.tokenizer().decode(ids, true).map_err(|e| failed(&e))?, ids.clone()),
        Prompt::Chat { .. } => return Ok(String::new()),
    };
    let mask = side.policy().mask_id;
    if ids.contains(&mask) {
        return Err(ApiError::invalid("prompt", "the prompt holds the mask token: filling in is not supported yet"));
    }
    Ok(text)
}
