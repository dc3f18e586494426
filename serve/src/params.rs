//! The parameters of a request body, taken out one by one.
//!
//! Invariant: a null is as good as nothing, a value of the wrong type or range is refused by name, and what nobody has taken
//! in the end is unknown and refused by name too.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::http::StatusCode;
use dlx_runtime::decode::Overrides;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Most stop strings, and most stop tokens, of a request.
const MAX_STOPS: usize = 64;

/// See the module.
pub(crate) struct Params {
    given: Map<String, Value>,
    /// Names that were asked for, which the tests compare with what is documented.
    #[cfg(test)]
    asked: std::collections::BTreeSet<String>,
}

impl Params {
    /// The parameters of a body.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self::inside(map)),
            Ok(_) => Err(ApiError::request(StatusCode::BAD_REQUEST, "the body is no JSON object", "invalid_json")),
            Err(e) => {
                let (line, column) = (e.line(), e.column());
                // The message of the parser may quote what was sent; where it is, is enough.
                let what = if e.is_eof() { "ends too early" } else { "is not valid, or nested too deeply," };
                let message = format!("the JSON of the body {what} at line {line} column {column}");
                Err(ApiError::request(StatusCode::BAD_REQUEST, message, "invalid_json"))
            }
        }
    }

    /// Parameters inside another one.
    pub(crate) fn inside(map: Map<String, Value>) -> Self {
        Self {
            given: map,
            #[cfg(test)]
            asked: std::collections::BTreeSet::new(),
        }
    }

    /// Names that were asked for.
    #[cfg(test)]
    pub(crate) fn asked(self) -> std::collections::BTreeSet<String> {
        self.asked
    }

    /// A value that is not null.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        self.asked.insert(name.to_owned());
        self.given.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A value that may yet be taken.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.given.get(name)
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let value = self.take(name);
        value.map(|v| v.as_bool().ok_or_else(|| wrong(name, "true or false"))).transpose()
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a string")),
        }
    }

    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let what = || wrong(name, &format!("a whole number from {} to {}", range.start(), range.end()));
        let value = self.take(name);
        value.map(|v| v.as_i64().filter(|n| range.contains(n)).ok_or_else(what)).transpose()
    }

    /// A number of things.
    pub(crate) fn count(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<usize>, ApiError> {
        Ok(self.integer(name, range)?.and_then(|n| usize::try_from(n).ok()))
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let what = || wrong(name, &format!("a number from {} to {}", range.start(), range.end()));
        let value = self.take(name);
        value.map(|v| v.as_f64().filter(|x| range.contains(x)).ok_or_else(what)).transpose()
    }

    /// A number for which single precision is close enough.
    #[allow(clippy::cast_possible_truncation, reason = "the bounds of the range say the same in single precision")]
    pub(crate) fn small(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let (least, most) = (*range.start(), *range.end());
        let number = self.number(name, f64::from(least)..=f64::from(most))?;
        Ok(number.map(|number| (number as f32).clamp(least, most)))
    }

    /// A parameter that may be there, but only with a value that changes nothing.
    pub(crate) fn neutral(&mut self, name: &str, neutral: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !neutral(&value) => Err(ApiError::unsupported(name, " with this value")),
            _ => Ok(()),
        }
    }

    /// Refuses what is left.
    pub(crate) fn finish(self, inside: &str) -> Result<(), ApiError> {
        match self.given.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                // A name is as long as the client likes.
                let name: String = inside.chars().chain(name.chars()).take(64).collect();
                let message = format!("unknown parameter `{name}`: leave it out");
                Err(ApiError { code: Some("unknown_parameter"), ..ApiError::invalid(name, message) })
            }
        }
    }
}

/// A value of another type or range.
pub(crate) fn wrong(name: &str, what: &str) -> ApiError {
    ApiError::invalid(name, format!("`{name}` must be {what}"))
}

/// When a stream tells what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Never,
    AtEnd,
    /// Also in every chunk so far.
    Running,
}

/// What chat and text completions both take.
pub(crate) struct Sampling {
    pub(crate) overrides: Overrides,
    pub(crate) seed: Option<u64>,
    pub(crate) n: usize,
    /// Lower numbers go first.
    pub(crate) priority: i32,
    pub(crate) stream: Option<Usage>,
    /// Whether the stream shows the block between passes.
    pub(crate) canvas: bool,
}

impl Sampling {
    /// Takes the parameters; the model's own `stop_ids` are what others are added to.
    pub(crate) fn take(params: &mut Params, stop_ids: &[i32]) -> Result<Self, ApiError> {
        for text in ["user", "safety_identifier", "prompt_cache_key"] {
            params.string(text)?;
        }
        let top_p = params.number("top_p", 0.0..=1.0)?;
        let top_k = params.integer("top_k", -1..=i64::from(i32::MAX))?;
        let ignore_eos = params.boolean("ignore_eos")?.unwrap_or(false);
        let more = stop_tokens(params)?;
        let own = if ignore_eos { &[] } else { stop_ids };
        let overrides = Overrides {
            temperature: params.small("temperature", 0.0..=2.0)?,
            min_p: params.small("min_p", 0.0..=1.0)?,
            repetition_penalty: params.small("repetition_penalty", 0.01..=100.0)?,
            frequency_penalty: params.small("frequency_penalty", -2.0..=2.0)?,
            presence_penalty: params.small("presence_penalty", -2.0..=2.0)?,
            logit_bias: logit_bias(params)?,
            min_tokens: params.count("min_tokens", 0..=i64::from(i32::MAX))?,
            #[allow(clippy::cast_possible_truncation, reason = "above 0, at most 1, and no smaller than can be said")]
            top_p: top_p.filter(|p| *p > 0.0).map(|p| (p as f32).max(f32::MIN_POSITIVE)),
            // With nothing left of the distribution but its head, the most likely token is taken.
            top_k: if top_p == Some(0.0) { Some(1) } else { top_k.map(|k| usize::try_from(k).unwrap_or(0)) },
            stop_strings: stop_strings(params)?,
            stop_ids: (ignore_eos || !more.is_empty()).then(|| [own, &more].concat()),
            ..Overrides::default()
        };
        let priority = params.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
        let stream = params.boolean("stream")?.unwrap_or(false);
        let (usage, canvas) = stream_options(params, stream)?;
        Ok(Self {
            overrides,
            seed: params.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
            n: params.count("n", 1..=128)?.unwrap_or(1),
            priority: priority.and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
            stream: stream.then_some(usage),
            canvas,
        })
    }
}

fn stop_strings(params: &mut Params) -> Result<Option<Vec<String>>, ApiError> {
    let what = "a string or a list of up to 64 strings, none of them empty";
    let stops = match params.take("stop") {
        None => return Ok(None),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) if stops.len() <= MAX_STOPS => {
            let texts = stops.into_iter().map(|s| s.as_str().map(str::to_owned).ok_or_else(|| wrong("stop", what)));
            texts.collect::<Result<_, _>>()?
        }
        Some(_) => return Err(wrong("stop", what)),
    };
    if stops.iter().any(String::is_empty) {
        return Err(wrong("stop", what));
    }
    Ok((!stops.is_empty()).then_some(stops))
}

fn logit_bias(params: &mut Params) -> Result<Option<BTreeMap<i32, f32>>, ApiError> {
    let what = || wrong("logit_bias", "an object of token ids with numbers from -100 to 100");
    let Some(bias) = params.take("logit_bias") else { return Ok(None) };
    let Value::Object(bias) = bias else { return Err(what()) };
    let one = |(token, bias): (String, Value)| {
        let token = token.parse().ok().filter(|token| *token >= 0);
        #[allow(clippy::cast_possible_truncation, reason = "-100 to 100 is close enough in single precision")]
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)).map(|bias| bias as f32);
        token.zip(bias).ok_or_else(what)
    };
    Ok(Some(bias.into_iter().map(one).collect::<Result<_, _>>()?))
}

fn stop_tokens(params: &mut Params) -> Result<Vec<i32>, ApiError> {
    let what = || wrong("stop_token_ids", "a list of up to 64 token ids");
    match params.take("stop_token_ids") {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() <= MAX_STOPS => {
            ids.iter().map(|id| id.as_i64().and_then(|id| i32::try_from(id).ok()).ok_or_else(what)).collect()
        }
        Some(_) => Err(what()),
    }
}

/// When usage is told, and whether the canvas is shown.
fn stream_options(params: &mut Params, stream: bool) -> Result<(Usage, bool), ApiError> {
    match params.take("stream_options") {
        None => Ok((Usage::Never, false)),
        Some(_) if !stream => Err(ApiError::invalid("stream_options", "`stream_options` needs `stream`: true")),
        Some(Value::Object(map)) => {
            let mut options = Params::inside(map);
            let at_end = options.boolean("include_usage")?.unwrap_or(false);
            let running = options.boolean("continuous_usage_stats")?.unwrap_or(false);
            options.neutral("include_obfuscation", |v| v == &Value::Bool(false))?;
            let canvas = options.boolean("include_canvas")?.unwrap_or(false);
            options.finish("stream_options.")?;
            let usage = match (at_end, running) {
                (true, true) => Usage::Running,
                (true, false) => Usage::AtEnd,
                (false, _) => Usage::Never,
            };
            Ok((usage, canvas))
        }
        Some(_) => Err(wrong("stream_options", "an object")),
    }
}
