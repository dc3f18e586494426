//! The mask token and the end tokens, which both configs, the tokenizer and the chat template each have a say in.
//!
//! Invariant: every id that is returned is a row of the embedding. The mask must be one token for all sources, since a wrong
//! one answers nonsense; end tokens are those of all sources together, since one too few never ends.

use dlx_ir::Error;
use dlx_runtime::text::{ChatTemplate, Message};

use super::Source;
use super::facts::Facts;
use crate::checkpoint::{Config, TextFiles};

/// The mask token's id, on which all sources that name one must agree; `family` is the token's text in published tokenizers
/// that do not say which one it is.
///
/// # Errors
/// No source, sources that differ, or an id outside the vocabulary.
pub(super) fn mask_id(
    source: &Source<'_>,
    vocab: usize,
    family: Option<&str>,
    facts: &mut Facts,
) -> Result<i32, Error> {
    if let Some(id) = source.mask_id {
        if !usize::try_from(id).is_ok_and(|id| id < vocab) {
            return Err(Error::new("--mask-id", format!("{id} is outside the vocabulary of {vocab}")));
        }
        facts.add("mask token", id, "--mask-id");
        return Ok(id);
    }
    let mut stated: Vec<(String, i32)> = Vec::new();
    for config in [source.config, source.generation_config].into_iter().flatten() {
        if let Some(id) = config.opt_token("mask_token_id")? {
            stated.push((config.path("mask_token_id"), in_vocabulary(config, "mask_token_id", id, vocab)?));
        }
    }
    // A tokenizer that has more tokens than the embedding has rows is refused as a whole.
    let row = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocab);
    match (source.text.special_token_id("mask_token").filter(row), family) {
        (Some(id), _) => stated.push(("the tokenizer's mask_token".into(), id)),
        (None, Some(token)) if !source.text.special_tokens.contains_key("mask_token") => {
            stated.extend(source.text.token_id(token).map(|id| (format!("the tokenizer's {token}"), id)));
        }
        _ => {}
    }
    let Some((first, id)) = stated.first().cloned() else {
        return Err(match source.config {
            Some(config) => config
                .error("mask_token_id", "is missing, and the tokenizer names no mask_token")
                .help("add mask_token_id to config.json, or give --mask-id N; the model card states it"),
            None => Error::new("--mask-id", "is missing, and neither a config nor the tokenizer names a mask token")
                .help("give the id of the mask token with --mask-id N; the model card states it"),
        });
    };
    if let Some((other, different)) = stated.iter().find(|(_, other)| *other != id) {
        let name = |id| source.text.token(id).map_or_else(|| "no token".into(), |t| format!("{t:?}"));
        let message = format!("is {id} ({}) in {first}, and {different} ({}) by {other}", name(id), name(*different));
        let trusted = stated.last().map_or(id, |(_, id)| *id);
        return Err(source
            .error("mask_token_id", message)
            .help(format!("set mask_token_id to {trusted} in config.json and generation_config.json if that is the token that the model was trained with")));
    }
    if !source.text.added_tokens().iter().any(|(_, added)| *added == id)
        && let Some(token) = source.text.token(id)
    {
        facts.note(format!("the mask id {id} ({first}) is {token:?}, an ordinary token of the tokenizer"));
    }
    facts.add("mask token", id, first);
    Ok(id)
}

/// The ids that end a text: those of both configs, the tokenizer's `eos_token`, and what the chat template writes behind an
/// assistant's turn.
///
/// # Errors
/// An id outside the vocabulary.
pub(super) fn stop_ids(source: &Source<'_>, vocab: usize, mask: i32, facts: &mut Facts) -> Result<Vec<i32>, Error> {
    let mut ids: Vec<i32> = Vec::new();
    let mut sources: Vec<String> = Vec::new();
    for config in [source.generation_config, source.config].into_iter().flatten() {
        for id in config.tokens("eos_token_id")? {
            let id = in_vocabulary(config, "eos_token_id", id, vocab)?;
            if !ids.contains(&id) {
                ids.push(id);
            }
            sources.push(config.path("eos_token_id"));
        }
    }
    let of_text = [
        ("the tokenizer's eos_token", source.text.special_token_id("eos_token")),
        ("the chat template's end of a turn", turn_end(source.text)),
    ];
    for (from, id) in of_text {
        let Some(id) = id.filter(|id| *id != mask && usize::try_from(*id).is_ok_and(|id| id < vocab)) else { continue };
        if !ids.contains(&id) {
            let token = source.text.token(id).unwrap_or_default();
            facts.note(format!(
                "{token} ({id}), {from}, ends the text too: eos_token_id of the configs does not list it"
            ));
            ids.push(id);
        }
        sources.push(from.into());
    }
    if ids.contains(&mask) {
        let message = format!("{mask} is the mask token, which cannot end a text");
        return Err(source.error("eos_token_id", message).help("use the checkpoint's own config"));
    }
    if ids.is_empty() {
        facts.note("no source names an end token: answers go on until the length that was asked for");
    }
    sources.dedup();
    let values: Vec<_> = ids.iter().map(i32::to_string).collect();
    facts.add("end tokens", values.join(", "), sources.join(", "));
    Ok(ids)
}

/// The added token that the chat template puts behind what an assistant says.
fn turn_end(text: &TextFiles) -> Option<i32> {
    const SAID: &str = "zqx";
    let template = ChatTemplate::new(text.chat_template.as_ref()?, text.special_tokens.clone()).ok()?;
    let messages = [Message::new("user", "a"), Message::new("assistant", SAID)];
    let variables = serde_json::Map::from_iter([("add_generation_prompt".to_owned(), false.into())]);
    let rendered = template.render(&messages, &variables).ok()?;
    let (_, after) = rendered.rsplit_once(SAID)?;
    let after = after.trim_start();
    let added = text.added_tokens();
    let longest = added.iter().filter(|(token, _)| !token.is_empty() && after.starts_with(token.as_str()));
    longest.max_by_key(|(token, _)| token.len()).map(|(_, id)| *id)
}

fn in_vocabulary(config: &Config, key: &str, id: i32, vocab: usize) -> Result<i32, Error> {
    if usize::try_from(id).is_ok_and(|id| id < vocab) {
        return Ok(id);
    }
    Err(config.error(key, format!("{id} is outside the vocabulary of {vocab}")).help("use the checkpoint's own config"))
}
