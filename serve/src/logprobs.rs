//! Probabilities of tokens in the two shapes of OpenAI's API.
//!
//! Invariant: every token of an answer is told, in order. A token that is no whole character has bytes and a name made of
//! them. What a probability means for a model that reveals tokens out of order is in `docs/serve.md`.

use dlx_runtime::session::Told;
use dlx_runtime::text::{TextError, Tokenizer};
use serde_json::{Map, Value, json};

/// As chats have them.
///
/// # Errors
/// A token that cannot be decoded.
pub(crate) fn of_chat(told: &[Told], tokenizer: &Tokenizer) -> Result<Value, TextError> {
    let entry = |token: i32, logprob: f32| {
        let bytes = tokenizer.bytes_of(token)?;
        Ok::<_, TextError>(json!({"token": name(&bytes, ""), "logprob": logprob, "bytes": bytes}))
    };
    let content = told.iter().filter_map(|told| Some((told, told.logprob?))).map(|(told, logprob)| {
        let mut token = entry(told.token, logprob)?;
        let top = told.top.iter().map(|(token, logprob)| entry(*token, *logprob));
        token["top_logprobs"] = top.collect::<Result<_, _>>()?;
        Ok::<_, TextError>(token)
    });
    Ok(json!({"content": content.collect::<Result<Value, _>>()?, "refusal": null}))
}

/// As text completions have them: beside the most likely tokens always the one that was taken.
///
/// # Errors
/// A token that cannot be decoded.
pub(crate) fn of_text(told: &[Told], tokenizer: &Tokenizer) -> Result<Value, TextError> {
    let name = |token: i32| Ok::<_, TextError>(name(&tokenizer.bytes_of(token)?, "bytes:"));
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for told in told {
        let mut top = Map::new();
        for (token, logprob) in told.top.iter().copied().chain(told.logprob.map(|logprob| (told.token, logprob))) {
            // Of tokens with one name the likeliest counts.
            top.entry(name(token)?).or_insert_with(|| logprob.into());
        }
        tokens.push(name(told.token)?);
        logprobs.push(told.logprob);
        tops.push(top);
        offsets.push(told.offset);
    }
    Ok(json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}))
}

/// The text of a token, or its bytes behind `prefix` where they are none.
fn name(bytes: &[u8], prefix: &str) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(prefix.to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}

/// The natural logarithm of the probability of an answer, per token; an answer without tokens has the least.
pub(crate) fn mean(told: &[Told]) -> f64 {
    let sum: f64 = told.iter().filter_map(|told| told.logprob).map(f64::from).sum();
    if told.is_empty() { f64::NEG_INFINITY } else { sum / told.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_is_named_by_its_bytes() {
        assert_eq!(name("é".as_bytes(), "bytes:"), "é");
        assert_eq!(name(&[0xE2, 0x82], "bytes:"), "bytes:\\xe2\\x82");
    }

    #[test]
    fn the_likelier_answer_is_the_better_one() {
        let told = |logprobs: &[f32]| -> Vec<Told> {
            let one = |&logprob| Told { token: 1, offset: 0, logprob: Some(logprob), top: Vec::new() };
            logprobs.iter().map(one).collect()
        };
        assert_eq!(mean(&told(&[-1.0, -2.0])), -1.5);
        assert!(mean(&told(&[-1.0, -1.0, -1.0])) > mean(&told(&[-1.5])), "the length does not count");
        assert!(mean(&told(&[-50.0])) > mean(&[]));
    }
}
