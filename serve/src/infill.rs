//! `/v1/infill`: a text with gaps, and what they become.
//!
//! Invariant: text that stays is given back as it came, to the byte.

use dlx_runtime::decode::DecodePolicy;
use dlx_runtime::session::{Infill, Segment, TextSide};
use serde_json::{Map, Value, json};

use crate::choices::{Asked, Head, Made};
use crate::error::ApiError;
use crate::params::{Params, wrong};

/// Most segments of one request.
const MAX_SEGMENTS: usize = 1024;

/// Takes the text with its gaps, which are decoded with `policy`.
pub(crate) fn take(
    params: &mut Params,
    side: &TextSide,
    policy: &DecodePolicy,
    max_seq: usize,
) -> Result<Asked, ApiError> {
    for name in ["logprobs", "top_logprobs", "best_of", "tools", "tool_choice"] {
        if params.take(name).is_some() {
            return Err(ApiError::unsupported(name, " where gaps are filled in"));
        }
    }
    let what = || wrong("segments", "a list of 1 to 1024 strings and gaps, such as {\"mask\": 8}");
    let segments = match params.take("segments") {
        Some(Value::Array(list)) if (1..=MAX_SEGMENTS).contains(&list.len()) => list,
        _ => return Err(what()),
    };
    let segments = segments.into_iter().enumerate().map(|(i, segment)| match segment {
        Value::String(text) => Ok(Segment::Text(text)),
        Value::Object(map) => gap(&format!("segments[{i}]"), map),
        _ => Err(wrong(&format!("segments[{i}]"), "a string or a gap, such as {\"mask\": 8}")),
    });
    let segments = segments.collect::<Result<Vec<_>, _>>()?;
    let infill = Infill::new(side, policy, &segments, max_seq).map_err(|e| ApiError::session(&e, "segments"))?;
    Ok(Asked { infills: vec![infill], segments, ..Asked::default() })
}

fn gap(place: &str, map: Map<String, Value>) -> Result<Segment, ApiError> {
    let mut fields = Params::inside(map);
    let tokens = fields.count("mask", 1..=i64::from(i32::MAX)).map_err(|e| e.inside(place))?;
    fields.finish(&format!("{place}."))?;
    tokens.map(Segment::Gap).ok_or_else(|| wrong(place, "a string or a gap, such as {\"mask\": 8}"))
}

/// A choice that has been made.
pub(crate) fn choice(head: &Head, index: usize, made: &Made) -> Value {
    let mut gaps = made.gaps.iter();
    let (mut text, mut segments) = (String::new(), Vec::new());
    for segment in &head.segments {
        let told = match segment {
            Segment::Text(text) => json!({"text": text, "masked": false}),
            _ => gaps.next().map_or(Value::Null, |gap| {
                let reason = if gap.stopped { "stop" } else { "length" };
                json!({"text": gap.text, "masked": true, "tokens": gap.tokens, "finish_reason": reason})
            }),
        };
        text += told["text"].as_str().unwrap_or_default();
        segments.push(told);
    }
    json!({"index": index, "text": text, "segments": segments})
}

/// Where the gaps lie, in the positions of the canvas.
pub(crate) fn gaps(head: &Head) -> Value {
    let numbers = head.segments.iter().enumerate().filter(|(_, segment)| matches!(segment, Segment::Gap(_)));
    let Some(infill) = &head.infill else { return Value::Null };
    let gap = |((segment, _), gap): ((usize, &Segment), &std::ops::Range<usize>)| json!({"segment": segment, "position": gap.start - infill.begin(), "length": gap.len()});
    numbers.zip(infill.gaps()).map(gap).collect()
}

/// The number of the segment that is a gap's.
pub(crate) fn segment_of(head: &Head, gap: usize) -> Option<usize> {
    let gaps = head.segments.iter().enumerate().filter(|(_, segment)| matches!(segment, Segment::Gap(_)));
    gaps.map(|(segment, _)| segment).nth(gap)
}
