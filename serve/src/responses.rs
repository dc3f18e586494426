//! `/v1/responses`, as far as it needs no memory of earlier answers: text in, text out.
//!
//! Invariant: nothing is stored, and the answer says so; what would need a store, or a tool of OpenAI's own, is refused by
//! name. Messages are those of `/v1/chat/completions` by other names.

use dlx_runtime::session::Prompt;
use dlx_runtime::text::Message;
use serde_json::{Map, Value, json};

use crate::choices::Asked;
use crate::error::ApiError;
use crate::format::{self, Format};
use crate::params::{Params, wrong};

mod written;

pub(crate) use written::{stream, whole};

/// What can be asked to be part of the answer; all of it belongs to tools and reasoning, of which there is nothing.
const INCLUDABLE: [&str; 7] = [
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
];

/// Takes the conversation and everything that only responses have; `most` tokens are answered unless the client says so.
pub(crate) fn take(params: &mut Params, most: usize) -> Result<Asked, ApiError> {
    let mut repeats = Map::new();
    for name in ["temperature", "top_p", "user", "safety_identifier", "prompt_cache_key"] {
        repeats.insert(name.into(), params.peek(name).cloned().unwrap_or(Value::Null));
    }
    params.neutral("store", |v| v == &Value::Bool(false))?;
    params.neutral("background", |v| v == &Value::Bool(false))?;
    for stored in ["previous_response_id", "conversation", "prompt"] {
        if params.take(stored).is_some() {
            return Err(ApiError::unsupported(stored, ", since nothing is stored"));
        }
    }
    params.neutral("n", |v| v == 1)?;
    params.neutral("reasoning", |v| v.as_object().is_some_and(|r| r.values().all(|v| v.is_null() || v == "none")))?;
    params.neutral("truncation", |v| v == "disabled")?;
    params.neutral("service_tier", |v| v == "auto" || v == "default")?;
    params.neutral("prompt_cache_retention", |v| v == "in_memory" || v == "in-memory")?;
    params.neutral("top_logprobs", |v| v == 0)?;
    params.neutral("stream_options", |v| {
        v.as_object().is_some_and(|o| o.iter().all(|(name, v)| name == "include_obfuscation" && v == false))
    })?;
    params.neutral("include", |v| {
        let known = |v: &Value| v.as_str().is_some_and(|v| INCLUDABLE.contains(&v));
        v.as_array().is_some_and(|list| list.iter().all(known))
    })?;
    params.neutral("tools", |v| v.as_array().is_some_and(Vec::is_empty))?;
    params.neutral("tool_choice", |v| v == "auto" || v == "none")?;
    let tool_calls = params.count("max_tool_calls", 1..=i64::from(i32::MAX))?;
    let metadata = params.take("metadata").unwrap_or_else(|| json!({}));
    if !metadata.is_object() {
        return Err(wrong("metadata", "an object"));
    }
    let (told, format) = text(params)?;
    let max_new = params.count("max_output_tokens", 1..=i64::from(i32::MAX))?;
    let instructions = params.string("instructions")?;
    let mut messages: Vec<Message> = instructions.iter().map(|text| Message::new("system", text)).collect();
    match params.take("input") {
        Some(Value::String(text)) => messages.push(Message::new("user", &text)),
        Some(Value::Array(items)) if !items.is_empty() => {
            for (i, item) in items.into_iter().enumerate() {
                messages.push(message(&format!("input[{i}]"), item)?);
            }
        }
        _ => return Err(wrong("input", "a string or a list of at least one message")),
    }
    for (name, value) in [
        ("instructions", json!(instructions)),
        ("max_output_tokens", json!(max_new)),
        ("max_tool_calls", json!(tool_calls)),
        ("metadata", metadata),
        ("parallel_tool_calls", params.boolean("parallel_tool_calls")?.unwrap_or(true).into()),
        ("text", json!({"format": told})),
    ] {
        repeats.insert(name.into(), value);
    }
    let prompts = vec![Prompt::Chat { messages, variables: Map::new() }];
    Ok(Asked { prompts, max_new: max_new.unwrap_or(most), format, repeats, ..Asked::default() })
}

/// Takes the form of the text, and gives it as it is repeated and as answers are held to it.
fn text(params: &mut Params) -> Result<(Value, Option<Format>), ApiError> {
    let plain = json!({"type": "text"});
    let text = match params.take("text") {
        None => return Ok((plain, None)),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(wrong("text", "an object")),
    };
    let mut text = Params::inside(text);
    text.neutral("verbosity", |v| v == "medium").map_err(|e| e.inside("text"))?;
    let format = text.take("format");
    text.finish("text.")?;
    let Some(format) = format else { return Ok((plain, None)) };
    // Chats hold what names and describes a schema in an object of its own.
    let asked = match &format {
        Value::Object(map) if map.get("type").is_some_and(|kind| kind == "json_schema") => {
            let mut map = map.clone();
            map.shift_remove("type");
            json!({"type": "json_schema", "json_schema": map})
        }
        other => other.clone(),
    };
    let held = format::of("text.format", asked)?;
    Ok((format, held))
}

/// A message of the input.
fn message(place: &str, item: Value) -> Result<Message, ApiError> {
    let Value::Object(map) = item else { return Err(wrong(place, "an object")) };
    let mut fields = Params::inside(map);
    let at = |name: &str| format!("{place}.{name}");
    let kind = fields.string("type").map_err(|e| e.inside(place))?;
    match kind.as_deref() {
        None | Some("message") => {}
        Some("item_reference") => {
            let message = format!(
                "`{place}` refers to an earlier answer, and nothing is stored: send the message itself (the AI SDK does \
                 with `store: false`)"
            );
            return Err(ApiError { code: Some("unsupported_parameter"), ..ApiError::invalid(place, message) });
        }
        Some(_) => return Err(ApiError::unsupported(place, ": only messages are")),
    }
    let role = fields.string("role").map_err(|e| e.inside(place))?;
    let role = match role.as_deref() {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        _ => return Err(wrong(&at("role"), "system, developer, user or assistant")),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.into_iter().enumerate().map(|(i, part)| part_text(&at(&format!("content[{i}]")), part));
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        _ => return Err(wrong(&at("content"), "a string or a list of text parts")),
    };
    // What an earlier answer said of itself.
    for name in ["id", "status", "phase"] {
        fields.string(name).map_err(|e| e.inside(place))?;
    }
    fields.finish(&format!("{place}."))?;
    Ok(Message::new(role, &content))
}

fn part_text(place: &str, part: Value) -> Result<String, ApiError> {
    let known = |kind: &Value| kind == "input_text" || kind == "output_text";
    let is_text = part.get("type").is_some_and(known);
    match part {
        Value::Object(mut map) if is_text => match map.shift_remove("text") {
            Some(Value::String(text)) => Ok(text),
            _ => Err(wrong(&format!("{place}.text"), "a string")),
        },
        _ => Err(wrong(
            place,
            "a part of type `input_text` or `output_text`: images, sounds and files are not supported",
        )),
    }
}
