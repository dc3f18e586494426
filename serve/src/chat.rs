//! The body of `/v1/chat/completions`.
//!
//! Invariant: what a message holds is text: the text of a mask or another special token in it stays text.

use dlx_runtime::session::{Prompt, Request, TextSide};
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

/// Takes the conversation and everything that only chats have. `own` are variables of the template that follow from the tools;
/// `knows_tools` says whether it shows calls.
pub(crate) fn prompt(
    params: &mut Params,
    side: &TextSide,
    own: Map<String, Value>,
    knows_tools: bool,
) -> Result<Prompt, ApiError> {
    params.neutral("functions", |v| v.as_array().is_some_and(Vec::is_empty))?;
    params.neutral("modalities", |v| v.as_array().is_some_and(|m| m.len() == 1 && m[0] == "text"))?;
    params.neutral("store", |v| v == &Value::Bool(false))?;
    params.neutral("service_tier", |v| v == "auto" || v == "default")?;
    params.neutral("metadata", Value::is_object)?;
    for later in ["audio", "web_search_options", "prediction", "verbosity", "function_call"] {
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
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let mut variables = variables(params, side)?;
    variables.extend(own);
    let goes_on = params.boolean("continue_final_message")?.unwrap_or(false);
    params.neutral("add_generation_prompt", |v| v == &Value::Bool(!goes_on))?;
    if goes_on { continued(messages, variables, side) } else { Ok(Prompt::Chat { messages, variables }) }
}

/// The last message, an assistant's, as the beginning of the answer.
fn continued(mut messages: Vec<Message>, variables: Map<String, Value>, side: &TextSide) -> Result<Prompt, ApiError> {
    let last = messages.pop().filter(|last| last.role == "assistant" && !messages.is_empty());
    let place = format!("messages[{}]", messages.len());
    let last = last.ok_or_else(|| wrong(&place, "an assistant's, behind others, to be continued"))?;
    let conversation = Request::new(Prompt::Chat { messages, variables }, 1);
    let mut ids = side.encode(&conversation).map_err(|e| ApiError::session(&e, "messages"))?;
    let begun = last.content.as_ref().and_then(Value::as_str).unwrap_or_default();
    ids.extend(side.encode_plain(begun).map_err(|e| ApiError::session(&e, &place))?);
    Ok(Prompt::Ids(ids))
}

/// Variables of the chat template, among them what it knows of thinking.
fn variables(params: &mut Params, side: &TextSide) -> Result<Map<String, Value>, ApiError> {
    let mut variables = match params.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(_) => return Err(wrong("chat_template_kwargs", "an object")),
    };
    // What the request says elsewhere, or what the answer's place follows from.
    let taken = ["messages", "tools", "add_generation_prompt"];
    if let Some(name) = variables.keys().find(|name| taken.contains(&name.as_str()) || !side.template_reads(name)) {
        let place: String = "chat_template_kwargs.".chars().chain(name.chars()).take(64).collect();
        let message = format!("`{place}` is nothing that the model's chat template reads of a request: leave it out");
        return Err(ApiError::invalid(place, message));
    }
    let Some(effort) = params.string("reasoning_effort")? else { return Ok(variables) };
    if !["none", "minimal", "low", "medium", "high", "xhigh"].contains(&effort.as_str()) {
        return Err(wrong("reasoning_effort", "none, minimal, low, medium, high or xhigh"));
    }
    let (name, value) = match effort.as_str() {
        effort if side.template_reads("reasoning_effort") => ("reasoning_effort", effort.into()),
        "none" if side.template_reads("enable_thinking") => ("enable_thinking", false.into()),
        _ if side.template_reads("enable_thinking") => {
            return Err(ApiError::unsupported("reasoning_effort", " other than `none` by the model's chat template"));
        }
        _ => return Err(ApiError::unsupported("reasoning_effort", " by the model's chat template")),
    };
    if variables.insert(name.into(), value).is_some() {
        let message = format!("`reasoning_effort` and `chat_template_kwargs.{name}` say the same: leave one out");
        return Err(ApiError::invalid("reasoning_effort", message));
    }
    Ok(variables)
}

/// How many likely tokens are told beside each token of the answer, if their probabilities are told.
pub(crate) fn logprobs(params: &mut Params) -> Result<Option<usize>, ApiError> {
    let logprobs = params.boolean("logprobs")?.unwrap_or(false);
    let beside = params.count("top_logprobs", 0..=20)?;
    if beside.is_some() && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    Ok(logprobs.then_some(beside.unwrap_or(0)))
}

fn message(place: &str, value: Value, knows_tools: bool) -> Result<Message, ApiError> {
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
