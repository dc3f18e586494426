//! The body of `/v1/chat/completions`.
//!
//! Invariant: what a message holds is text: the text of a mask or another special token in it stays text.

use dlx_runtime::session::Prompt;
use dlx_runtime::text::Message;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::params::{Params, wrong};

/// Most tokens of the answer, if the client says so.
pub(crate) fn max_tokens(params: &mut Params) -> Result<Option<usize>, ApiError> {
    let old = params.count("max_tokens", 1..=i64::from(i32::MAX))?;
    Ok(params.count("max_completion_tokens", 1..=i64::from(i32::MAX))?.or(old))
}

/// Takes the conversation and everything that only chats have.
pub(crate) fn prompt(params: &mut Params) -> Result<Prompt, ApiError> {
    let list = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    params.neutral("tools", list)?;
    params.neutral("functions", list)?;
    params.neutral("tool_choice", |v| v == "none" || v == "auto")?;
    params.boolean("parallel_tool_calls")?;
    params.take("response_format").map_or(Ok(()), |asked| format("response_format", asked))?;
    params.neutral("modalities", |v| v.as_array().is_some_and(|m| m.len() == 1 && m[0] == "text"))?;
    params.neutral("store", |v| v == &Value::Bool(false))?;
    params.neutral("service_tier", |v| v == "auto" || v == "default")?;
    params.neutral("metadata", Value::is_object)?;
    let logprobs = params.boolean("logprobs")?.unwrap_or(false);
    if params.integer("top_logprobs", 0..=20)?.is_some() && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    if logprobs {
        return Err(ApiError::unsupported("logprobs", " yet"));
    }
    for later in ["audio", "web_search_options", "reasoning_effort", "prediction", "verbosity", "function_call"] {
        if params.take(later).is_some() {
            return Err(ApiError::unsupported(later, ""));
        }
    }
    let Some(messages) = params.take("messages") else {
        return Err(wrong("messages", "a list of messages"));
    };
    let Value::Array(messages) = messages else { return Err(wrong("messages", "a list of messages")) };
    if messages.is_empty() {
        return Err(wrong("messages", "a list of at least one message"));
    }
    let messages = messages.into_iter().enumerate().map(|(i, m)| message(&format!("messages[{i}]"), m));
    Ok(Prompt::Chat { messages: messages.collect::<Result<_, _>>()?, variables: Map::new() })
}

/// Takes the form that an answer is asked to have, from the parameter `place`.
pub(crate) fn format(place: &str, asked: Value) -> Result<(), ApiError> {
    match asked {
        Value::Object(map) if map.len() == 1 && map.get("type").is_some_and(|kind| kind == "text") => Ok(()),
        _ => Err(ApiError::unsupported(place, " with this value")),
    }
}

fn message(place: &str, value: Value) -> Result<Message, ApiError> {
    let Value::Object(map) = value else { return Err(wrong(place, "an object")) };
    let mut fields = Params::inside(map);
    let at = |name: &str| format!("{place}.{name}");
    let role = fields.string("role").map_err(|e| e.inside(place))?;
    let role = match role.as_deref() {
        // The newer name of the same role; chat templates know the older one.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => return Err(wrong(&at("role"), "system, developer, user, assistant or tool")),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.into_iter().enumerate().map(|(i, part)| text_part(&at(&format!("content[{i}]")), part));
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        None if role == "assistant" => String::new(),
        _ => return Err(wrong(&at("content"), "a string or a list of text parts")),
    };
    let mut message = Message::new(role, &content);
    for name in ["name", "tool_call_id"] {
        if let Some(text) = fields.string(name).map_err(|e| e.inside(place))? {
            message.extra.insert(name.into(), text.into());
        }
    }
    for name in ["tool_calls", "annotations"] {
        match fields.take(name) {
            Some(value) if value.as_array().is_none_or(|list| !list.is_empty()) => {
                return Err(ApiError::unsupported(at(name), " yet"));
            }
            _ => {}
        }
    }
    fields.finish(&format!("{place}."))?;
    Ok(message)
}

fn text_part(place: &str, part: Value) -> Result<String, ApiError> {
    let is_text = part.get("type").is_some_and(|t| t == "text");
    match part {
        Value::Object(mut map) if is_text => match map.shift_remove("text") {
            Some(Value::String(text)) => Ok(text),
            _ => Err(wrong(&format!("{place}.text"), "a string")),
        },
        _ => Err(wrong(place, "a part of type `text`: images, sounds and files are not supported")),
    }
}
