//! What an answer must be: `response_format`, and `structured_outputs` as vLLM has it.
//!
//! Invariant: what cannot be had exactly is refused with the parameter's name; nothing here is a mere hint to the model.

use dlx_runtime::constrain::Grammar;
use dlx_runtime::session::{SessionError, TextSide};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::params::{Params, wrong};

/// Most texts to choose from.
const MAX_CHOICES: usize = 1024;

/// What an answer must be, and the parameter that says so.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    pub(crate) grammar: Grammar,
    pub(crate) param: String,
}

/// Takes what says what the answer must be.
pub(crate) fn take(params: &mut Params) -> Result<Option<Format>, ApiError> {
    let format = params.take("response_format").map(|value| of("response_format", value)).transpose()?.flatten();
    let Some(value) = params.take("structured_outputs") else { return Ok(format) };
    let place = "structured_outputs";
    if format.is_some() {
        return Err(ApiError::unsupported(place, " beside `response_format`"));
    }
    let mut fields = object(place, value)?;
    let what = "exactly one of `regex`, `json` and `choice`";
    let (regex, schema, choice) = (fields.take("regex"), fields.take("json"), fields.take("choice"));
    fields.finish("structured_outputs.")?;
    let grammar = match (regex, schema, choice) {
        (Some(Value::String(regex)), None, None) => Grammar::Regex(regex),
        (None, Some(schema @ (Value::Object(_) | Value::Bool(_))), None) => Grammar::Schema(schema),
        (None, None, Some(Value::Array(texts))) if texts.len() <= MAX_CHOICES => {
            let text = |text: Value| text.as_str().map(|text| Grammar::Text(text.to_owned()));
            let texts: Option<Vec<_>> = texts.into_iter().map(text).collect();
            Grammar::AnyOf(texts.ok_or_else(|| wrong(place, "a list of texts in `choice`"))?)
        }
        _ => return Err(wrong(place, what)),
    };
    Ok(Some(Format { grammar, param: place.to_owned() }))
}

/// The format of a text in the shape of `response_format`; `None` for any text.
pub(crate) fn of(place: &str, value: Value) -> Result<Option<Format>, ApiError> {
    let mut fields = object(place, value)?;
    let schema = fields.take("json_schema");
    let kind = fields.take("type");
    fields.finish(&format!("{place}."))?;
    let grammar = match (kind.as_ref().and_then(Value::as_str), schema) {
        (Some("text"), None) => return Ok(None),
        (Some("json_object"), None) => Grammar::Schema(json!({"type": "object"})),
        (Some("json_schema"), Some(schema)) => {
            let mut fields = object(place, schema)?;
            let named = |e: ApiError| ApiError { param: Some(place.to_owned()), ..e };
            let name = fields.string("name").map_err(named)?;
            fields.string("description").map_err(named)?;
            // An answer is held to the schema in either case.
            fields.boolean("strict").map_err(named)?;
            let schema = fields.take("schema");
            fields.finish(&format!("{place}.json_schema."))?;
            match (name, schema) {
                (Some(_), Some(schema @ Value::Object(_))) => Grammar::Schema(schema),
                _ => return Err(wrong(place, "given a `name` and a `schema` in `json_schema`")),
            }
        }
        _ => return Err(wrong(place, "of type `text`, `json_object`, or `json_schema` with a `json_schema`")),
    };
    Ok(Some(Format { grammar, param: place.to_owned() }))
}

fn object(place: &str, value: Value) -> Result<Params, ApiError> {
    match value {
        Value::Object(map) => Ok(Params::inside(map)),
        _ => Err(wrong(place, "an object")),
    }
}

impl Format {
    /// Refuses what cannot be had of a model, by the parameter that asks for it.
    pub(crate) fn refused(&self, error: &SessionError) -> ApiError {
        ApiError::constraint(&self.param, error)
    }

    /// The same in a model's tokens.
    pub(crate) fn constraint(
        &self,
        text: &TextSide,
    ) -> Result<std::sync::Arc<dlx_runtime::constrain::Constraint>, ApiError> {
        text.constraint(&self.grammar).map_err(|e| self.refused(&e))
    }
}
