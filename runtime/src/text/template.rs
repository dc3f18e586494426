//! Chat templates: Jinja as Hugging Face tokenizers render it.
//!
//! Following transformers' `apply_chat_template`, `trim_blocks` and `lstrip_blocks` are set, values print as Python prints them
//! and have its methods, and `raise_exception`, `strftime_now` (in UTC), `tojson`, `break`, `continue` and `generation` exist.
//!
//! Invariant: a template comes from a checkpoint and may be hostile. It sees only the messages, the special tokens and the
//! variables of the call; it has no files and no other templates; a rendering executes a bounded number of instructions, and
//! everything that it makes or walks is paid for from one budget ([`budget`]).

mod budget;
mod filters;
mod format;
mod meter;
mod methods;
mod python;
mod rewrite;
mod source;

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::TextError;

/// Instructions that one rendering may execute. Real templates need a few hundred per message.
const FUEL: u64 = 5_000_000;

/// Longest source of a template.
const MAX_SOURCE: usize = 4 << 20;

const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// What is said: a text, a list of parts, or null; some messages have none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// Other keys that the template reads, for example `tool_calls`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A null that is written is a null, and not the absence of a value.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl Message {
    /// A plain turn.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: Some(content.into()), extra: Map::new() }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    source: String,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the variables by which it may name tokens, for example
    /// `("bos_token", "<|startoftext|>")`.
    ///
    /// # Errors
    /// [`TextError::Template`] when it is no valid Jinja.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        if source.len() > MAX_SOURCE {
            return Err(TextError::Template(format!("it has {} bytes, more than {MAX_SOURCE}", source.len())));
        }
        let bad = |error: Error| TextError::Template(message(&error));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(bad)?;
        let metered = rewrite::metered(source, NAME, syntax).map_err(bad)?;
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(methods::call);
        filters::add(&mut environment);
        environment.set_formatter(|out, state, value| {
            if !matches!(state.auto_escape(), AutoEscape::None) {
                budget::paid(state, value.clone())?;
                return minijinja::escape_formatter(out, state, value);
            }
            out.write_str(&python::text(state, value)?).map_err(Error::from)
        });
        environment.add_template_owned(NAME, metered).map_err(bad)?;
        Ok(Self { environment, special_tokens, source: source.to_owned() })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt text of a conversation, ending where the assistant speaks next. `variables` are further variables of
    /// the template, for example `enable_thinking` or `tools`; `add_generation_prompt` set to false leaves the
    /// assistant's opening out.
    ///
    /// # Errors
    /// [`TextError::Render`] when the template refuses the messages, fails, or makes or runs too much.
    pub fn render(&self, messages: &[Message], variables: &Map<String, Value>) -> Result<String, TextError> {
        let mut context = Map::new();
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.insert("add_generation_prompt".to_owned(), true.into());
        context.extend(self.special_tokens.iter().map(|(name, token)| (name.clone(), token.as_str().into())));
        context.extend(variables.clone());
        let messages = serde_json::to_value(messages).map_err(|error| TextError::Render(error.to_string()))?;
        context.insert("messages".to_owned(), messages);
        let failed = |error: Error| TextError::Render(message(&error));
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(minijinja::value::Serde(&context)).map_err(failed)
    }

    /// Whether the template reads a variable of this name that it does not set itself.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }
}

/// The innermost message with the line of the template.
fn message(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

#[cfg(test)]
mod tests;
