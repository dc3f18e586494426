//! The body of `/v1/chat/completions`.
//!
//! Invariant: what a message holds is text: the text of a mask or another special token in it stays text.

use dlx_runtime::session::Prompt;
use dlx_runtime::text::Message;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::params::{Params, wrong};
use crate::tools;

/// Most tokens of the answer, if the client says so.
pub(crate) fn max_tokens(params: &mut Params) -> Result<Option<usize>, ApiError> {
    let old = params.count("max_tokens", 1..=i64::from(i32::MAX))?;
    Ok(params.count("max_completion_tokens", 1..=i64::from(i32::MAX))?.or(old))
}

/// Takes the conversation and everything that only chats have. `variables` are those of the template, of which `knows_tools` says
/// whether it shows calls.
pub(crate) fn prompt(
    params: &mut Params,
    variables: Map<String, Value>,
    knows_tools: bool,
) -> Result<Prompt, ApiError> {
    params.neutral("functions", |v| v.as_array().is_some_and(Vec::is_empty))?;
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
    let messages = messages.into_iter().enumerate().map(|(i, m)| message(&format!("messages[{i}]"), m, knows_tools));
    Ok(Prompt::Chat { messages: messages.collect::<Result<_, _>>()?, variables })
}

fn message(place: &str, value: Value, knows_tools: bool) -> Result<Message, ApiError> {
    let Value::Object(map) = value else { return Err(wrong(place, "an object")) };
    let mut fields = Params::inside(map);
    let at = |name: &str| format!("{place}.{name}");
    let named = |e: ApiError, name: &str| ApiError { param: Some(at(name)), ..e };
    let role = fields.string("role").map_err(|e| named(e, "role"))?;
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
        if let Some(text) = fields.string(name).map_err(|e| named(e, name))? {
            message.extra.insert(name.into(), text.into());
        }
    }
    let some = |value: &Value| value.as_array().is_none_or(|list| !list.is_empty());
    if let Some(calls) = fields.take("tool_calls").filter(some) {
        if role != "assistant" {
            return Err(wrong(&at("tool_calls"), "part of an assistant's message"));
        }
        if !knows_tools {
            return Err(ApiError::unsupported(at("tool_calls"), ": the model's chat template knows no tools"));
        }
        message.extra.insert("tool_calls".into(), tools::earlier(&at("tool_calls"), calls)?);
    }
    if fields.take("annotations").is_some_and(|value| some(&value)) {
        return Err(ApiError::unsupported(at("annotations"), ""));
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
