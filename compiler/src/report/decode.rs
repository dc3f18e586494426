//! A recording of a decode, for the page to step through: passes, what they said of each position, and what was revealed.
//!
//! Invariant: positions and tokens are those of the recording; a token without a text is shown by its number.

use std::collections::BTreeMap;

use dlx_runtime::trace::{Row, Step, Trace};
use serde::Serialize;

/// Most passes of a recording on one page.
pub(super) const MAX_PASSES: usize = 20_000;

/// A position that was looked at: position, token, confidence in the policy's measure, probability.
#[derive(Serialize)]
struct Seen(usize, i32, Option<f32>, Option<f32>);

/// A pass.
#[derive(Serialize)]
struct Pass {
    kind: String,
    start: usize,
    rows: usize,
    /// Why positions got their tokens; empty when nothing was decided.
    why: String,
    quota: usize,
    block: Option<[usize; 2]>,
    seen: Vec<Seen>,
    revealed: Vec<(usize, i32)>,
    canvas: Vec<i32>,
}

/// What the page steps through.
#[derive(Serialize)]
pub(super) struct Film {
    prompt: Vec<i32>,
    mask: i32,
    ids: Vec<i32>,
    passes: Vec<Pass>,
    tokens: BTreeMap<i32, String>,
    measure: String,
}

/// A line of the table of passes, for those who read it.
#[derive(Serialize)]
pub(super) struct Told {
    number: usize,
    kind: String,
    positions: String,
    why: String,
    revealed: String,
}

/// Facts, texts and passes.
#[derive(Serialize)]
pub(super) struct Decode {
    facts: Vec<(&'static str, String)>,
    prompt: String,
    text: String,
    passes: Vec<Told>,
}

/// What is shown, and what is stepped through.
pub(super) fn decode(trace: &Trace) -> (Decode, Film) {
    let tokens = &trace.end.tokens;
    let text = |ids: &[i32]| ids.iter().map(|id| token(tokens, *id)).collect::<String>();
    let head = &trace.head;
    let decided = trace.steps.iter().filter(|s| s.decision.is_some()).count();
    let per = if trace.steps.is_empty() { 0.0 } else { trace.end.ids.len() as f64 / trace.steps.len() as f64 };
    let facts = vec![
        ("artifact", head.about.artifact.clone()),
        ("compiler", head.about.compiler.clone()),
        ("ran on", format!("{} ({})", head.about.device, head.about.kernels.join(", "))),
        ("prompt", format!("{} tokens, {} of them from the caches", head.prompt.len(), trace.end.held)),
        ("passes", format!("{}, of which {decided} chose tokens", trace.steps.len())),
        ("answer", format!("{} tokens, {per:.2} per pass, ended by {}", trace.end.ids.len(), word(&trace.end.finish))),
        ("reveal rule", format!("{} {}", head.policy.reveal.rule, params(&head.policy.reveal.params))),
        ("schedule", format!("{} {}", head.policy.schedule.curve, params(&head.policy.schedule.params))),
        ("confidence", head.policy.confidence.clone()),
        ("temperature, seed", format!("{}, {}", head.policy.temperature, head.policy.seed)),
    ];
    let passes = trace.steps.iter().enumerate().map(|(i, step)| told(i + 1, step, tokens));
    let shown = Decode { facts, prompt: text(&head.prompt), text: text(&trace.end.ids), passes: passes.collect() };
    let film = Film {
        prompt: head.prompt.clone(),
        mask: head.policy.mask_id,
        ids: trace.end.ids.clone(),
        passes: trace.steps.iter().map(pass).collect(),
        tokens: tokens.clone(),
        measure: head.policy.confidence.clone(),
    };
    (shown, film)
}

/// Text of a token, or its number where the tokenizer has none.
fn token(tokens: &BTreeMap<i32, String>, id: i32) -> String {
    tokens.get(&id).filter(|text| !text.is_empty()).cloned().unwrap_or_else(|| format!("⟨{id}⟩"))
}

fn params(params: &BTreeMap<String, f32>) -> String {
    params.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}

/// How serde calls a unit variant.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn pass(step: &Step) -> Pass {
    let decision = step.decision.as_ref();
    let seen = |row: &Row| Seen(row.position, row.token, row.confidence, row.prob);
    Pass {
        kind: word(&step.pass.kind),
        start: step.pass.start,
        rows: step.pass.rows,
        why: decision.map(|d| word(&d.why)).unwrap_or_default(),
        quota: decision.map_or(0, |d| d.quota),
        block: decision.map(|d| d.block),
        seen: decision.iter().flat_map(|d| d.rows.iter().map(seen)).collect(),
        revealed: decision.map(|d| d.revealed.clone()).unwrap_or_default(),
        canvas: decision.map(|d| d.canvas.clone()).unwrap_or_default(),
    }
}

fn told(number: usize, step: &Step, tokens: &BTreeMap<i32, String>) -> Told {
    let end = step.pass.start.saturating_add(step.pass.rows);
    let decision = step.decision.as_ref();
    let revealed = decision.iter().flat_map(|d| &d.revealed).map(|(position, id)| {
        let row = decision.iter().flat_map(|d| &d.rows).find(|row| row.position == *position);
        let sure = row.and_then(|row| row.prob.or(row.confidence)).map_or_else(String::new, |c| format!(" ({c:.2})"));
        format!("{position}: {}{sure}", token(tokens, *id))
    });
    Told {
        number,
        kind: word(&step.pass.kind),
        positions: format!("{}–{}", step.pass.start, end.saturating_sub(1)),
        why: decision.map(|d| word(&d.why)).unwrap_or_default(),
        revealed: revealed.collect::<Vec<_>>().join(", "),
    }
}
