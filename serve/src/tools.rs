//! `tools` and `tool_choice`: calls whose arguments are what the tool's schema says, by constraint.
//!
//! A call stands in the answer's text the way the model's template writes it, or alone where the template knows no tools.
//! Invariant: the text of an answer with tools is one of [`Tools::grammar`], so calls are read without guessing: what stands
//! around arguments is known to the byte.

use dlx_runtime::constrain::Grammar;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::error::ApiError;
use crate::format::Format;
use crate::params::{Params, wrong};

mod split;

pub(crate) use split::{Part, Split};

/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// Where a call begins in the text of models that were taught Hermes' format (Qwen2.5, Qwen3, and what was made of them).
const OPEN: &str = "<tool_call>";
/// Where it ends.
const CLOSE: &str = "</tool_call>";

/// A function that the model may call.
#[derive(Clone, Debug)]
struct Tool {
    name: String,
    parameters: Value,
    /// What stands before its arguments in the text of an answer, and behind them.
    before: String,
    behind: &'static str,
}

/// The tools of a request whose answer may call them.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    tools: Vec<Tool>,
    /// Whether the answer is a call.
    forced: bool,
    /// Whether there may be several.
    several: bool,
    /// As the client wrote them, for the template.
    written: Option<Value>,
}

/// Takes the tools, if the answer may call any. `template`: the source of the chat template.
pub(crate) fn take(params: &mut Params, template: &str) -> Result<Option<Tools>, ApiError> {
    let several = params.boolean("parallel_tool_calls")?.unwrap_or(true);
    let choice = params.take("tool_choice");
    let written = match params.take("tools") {
        None => Vec::new(),
        Some(Value::Array(tools)) if tools.len() <= MAX_TOOLS => tools,
        Some(_) => return Err(wrong("tools", "a list of up to 128 tools")),
    };
    let mut tools = Vec::new();
    for (i, tool) in written.iter().enumerate() {
        let tool = function(&format!("tools[{i}]"), tool.clone())?;
        if tools.iter().any(|other: &Tool| other.name == tool.name) {
            return Err(wrong("tools", "a list of tools of different names"));
        }
        tools.push(tool);
    }
    let hermes = knows_tools(template) && template.contains(OPEN) && template.contains(CLOSE);
    let forced = match &choice {
        Some(Value::String(choice)) if choice == "none" => return Ok(None),
        None if tools.is_empty() => return Ok(None),
        Some(Value::String(choice)) if choice == "auto" && tools.is_empty() => return Ok(None),
        None => false,
        Some(Value::String(choice)) if choice == "auto" => false,
        Some(Value::String(choice)) if choice == "required" => true,
        Some(Value::Object(named)) => {
            let mut fields = Params::inside(named.clone());
            let (kind, function) = (fields.take("type"), fields.take("function"));
            fields.finish("tool_choice.")?;
            let name = function.as_ref().and_then(|f| f.get("name")).and_then(Value::as_str);
            let (Some("function"), Some(name)) = (kind.as_ref().and_then(Value::as_str), name) else {
                return Err(wrong("tool_choice", "none, auto, required, or an object that names a function"));
            };
            tools.retain(|tool| tool.name == name);
            true
        }
        Some(_) => return Err(wrong("tool_choice", "none, auto, required, or an object that names a function")),
    };
    if tools.is_empty() {
        return Err(ApiError::invalid(
            "tool_choice",
            "`tool_choice` asks for a call of a function that is not in `tools`",
        ));
    }
    if !forced && !hermes {
        let (param, how) = if choice.is_some() { ("tool_choice", "") } else { ("tools", " without `tool_choice`") };
        let message = format!(
            "`{param}` is not supported{how}: the model's chat template knows no tools, so calls have to be asked for; set \
             `tool_choice` to `required` or a function, or to `none`"
        );
        return Err(ApiError { code: Some("unsupported_parameter"), ..ApiError::invalid(param, message) });
    }
    let alone = tools.len() == 1;
    for tool in &mut tools {
        let begin = format!("{{\"name\": {}, \"arguments\": ", Value::from(tool.name.as_str()));
        (tool.before, tool.behind) = match (hermes, alone) {
            (true, _) => (format!("{OPEN}\n{begin}"), "}\n</tool_call>"),
            (false, true) => (String::new(), ""),
            (false, false) => (begin, "}"),
        };
    }
    let written = knows_tools(template).then_some(Value::Array(written));
    Ok(Some(Tools { tools, forced, several, written }))
}

/// Whether a template shows tools and calls to the model.
pub(crate) fn knows_tools(template: &str) -> bool {
    template.contains("tools") && template.contains("tool_calls")
}

/// Reads a tool.
fn function(place: &str, value: Value) -> Result<Tool, ApiError> {
    let named = |e: ApiError, name: &str| ApiError { param: Some(format!("{place}.{name}")), ..e };
    let Value::Object(map) = value else { return Err(wrong(place, "an object")) };
    let mut fields = Params::inside(map);
    let kind = fields.string("type").map_err(|e| named(e, "type"))?;
    if kind.as_deref() != Some("function") {
        return Err(wrong(&format!("{place}.type"), "`function`"));
    }
    let Some(Value::Object(function)) = fields.take("function") else {
        return Err(wrong(&format!("{place}.function"), "an object"));
    };
    fields.finish(&format!("{place}."))?;
    let place = format!("{place}.function");
    let mut fields = Params::inside(function);
    let named = |e: ApiError, name: &str| ApiError { param: Some(format!("{place}.{name}")), ..e };
    let sane = |name: &String| {
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    let name = fields.string("name").map_err(|e| named(e, "name"))?.filter(sane);
    let name = name.ok_or_else(|| wrong(&format!("{place}.name"), "1 to 64 letters, digits, _ and -"))?;
    fields.string("description").map_err(|e| named(e, "description"))?;
    fields.boolean("strict").map_err(|e| named(e, "strict"))?;
    let parameters = match fields.take("parameters") {
        None => json!({"type": "object", "additionalProperties": false}),
        Some(parameters @ Value::Object(_)) => parameters,
        Some(_) => return Err(wrong(&format!("{place}.parameters"), "a JSON Schema")),
    };
    fields.finish(&format!("{place}."))?;
    Ok(Tool { name, parameters, before: String::new(), behind: "" })
}

impl Tools {
    /// Variables of the template.
    pub(crate) fn variables(&self) -> Map<String, Value> {
        self.written.iter().map(|tools| ("tools".to_owned(), tools.clone())).collect()
    }

    /// What an answer must be.
    pub(crate) fn format(&self) -> Format {
        Format { grammar: self.grammar(), param: "tools".to_owned() }
    }

    fn grammar(&self) -> Grammar {
        let text = |text: &str| Grammar::Text(text.to_owned());
        let call = |tool: &Tool| {
            Grammar::Sequence(vec![text(&tool.before), Grammar::Schema(tool.parameters.clone()), text(tool.behind)])
        };
        let call = Grammar::AnyOf(self.tools.iter().map(call).collect());
        if self.forced {
            return call;
        }
        let mut calls = vec![call.clone()];
        if self.several {
            let another = Grammar::Sequence(vec![text("\n"), call]);
            calls.push(Grammar::AnyOf(vec![text(""), Grammar::Repeated(Box::new(another))]));
        }
        let calls = Grammar::AnyOf(vec![text(""), Grammar::Sequence(calls)]);
        Grammar::Sequence(vec![Grammar::Without(OPEN.to_owned()), calls])
    }

    /// The first tool whose schema cannot be had alone, and why.
    pub(crate) fn culprit(&self, refuses: impl Fn(&Format) -> Option<ApiError>) -> Option<ApiError> {
        let formats = self.tools.iter().map(|tool| Format {
            grammar: Grammar::Schema(tool.parameters.clone()),
            param: format!("tools.{}.parameters", tool.name),
        });
        formats.into_iter().find_map(|format| refuses(&format))
    }

    /// What a text of the grammar says: its content, and the calls with their arguments, as the API has them.
    pub(crate) fn message(&self, text: &str) -> (Value, Vec<Value>) {
        let mut split = Split::new(self);
        let mut parts = split.push(text);
        parts.extend(split.finish());
        let (mut content, mut calls): (String, Vec<Value>) = (String::new(), Vec::new());
        let mut arguments: Vec<String> = Vec::new();
        for part in parts {
            match part {
                Part::Content(text) => content += &text,
                Part::Call { name } => {
                    calls.push(call(&name));
                    arguments.push(String::new());
                }
                Part::Arguments(text) => arguments.last_mut().into_iter().for_each(|all| *all += &text),
            }
        }
        for (call, arguments) in calls.iter_mut().zip(arguments) {
            call["function"]["arguments"] = arguments.into();
        }
        (if content.is_empty() { Value::Null } else { content.into() }, calls)
    }
}

/// A call without arguments so far.
pub(crate) fn call(name: &str) -> Value {
    let id = format!("call_{}", Uuid::new_v4().simple());
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}})
}

/// Why an answer with calls ended.
pub(crate) fn finish_reason(reason: &'static str) -> &'static str {
    if reason == "stop" { "tool_calls" } else { reason }
}

/// The calls of an earlier answer, as a template reads them: arguments are values there.
pub(crate) fn earlier(place: &str, calls: Value) -> Result<Value, ApiError> {
    let Value::Array(calls) = calls else { return Err(wrong(place, "a list of calls")) };
    let calls = calls.into_iter().enumerate().map(|(i, call)| {
        let place = format!("{place}[{i}]");
        let what = || wrong(&place, "a function call with a name and arguments");
        let Value::Object(map) = call else { return Err(what()) };
        let mut fields = Params::inside(map);
        let (id, kind, function) = (fields.take("id"), fields.take("type"), fields.take("function"));
        fields.finish(&format!("{place}."))?;
        let function = function.ok_or_else(what)?;
        let name = function.get("name").and_then(Value::as_str).ok_or_else(what)?;
        let arguments = function.get("arguments").and_then(Value::as_str).ok_or_else(what)?;
        let id_is_text = id.as_ref().is_none_or(Value::is_string);
        if !id_is_text || kind.is_some_and(|kind| kind != "function") {
            return Err(what());
        }
        let arguments = match serde_json::from_str::<Value>(arguments) {
            Ok(value @ Value::Object(_)) => value,
            _ => return Err(wrong(&place, "a call whose arguments are a JSON object")),
        };
        let mut call = json!({"type": "function", "function": {"name": name, "arguments": arguments}});
        if let Some(id) = id {
            call["id"] = id;
        }
        Ok(call)
    });
    calls.collect::<Result<Vec<_>, _>>().map(Value::Array)
}
