//! What other compiles and other calls are predicted to take.
//!
//! Everything here is predicted, whatever was measured: only predictions can be compared with what does not exist. What a
//! change does to the answers is not known here.

use dlx_ir::{DType, Error, QuantFormat, SpanRows};
use dlx_runtime::decode::DecodePolicy;

use super::entry::seconds;
use super::limits::Limits;
use super::predict::{Program, changed};
use super::tokens::{Answers, Asked, Sizes, block};

/// A step and the head on all of its rows, under a change.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// What is changed, as a user would ask for it; the first is the program as it is.
    pub what: String,
    /// Seconds of a step and the head.
    pub seconds: f64,
    /// Rows of the step.
    pub rows: usize,
}

/// Weight formats and cache types to compare with, as `dlxc compile` spells them.
const WEIGHTS: [(&str, DType); 3] = [
    ("--quant int8", DType::Quant(QuantFormat::symmetric(8, None))),
    ("--quant int4", DType::Quant(QuantFormat::symmetric(4, Some(32)))),
    ("--quant int4:128", DType::Quant(QuantFormat::symmetric(4, Some(128)))),
];
const CACHES: [(&str, DType); 2] = [("--kv int8", DType::CACHE_Q8), ("--kv f16", DType::F16)];

/// What a step of `rows` rows behind `depth` others takes as it is, in other formats, and in other numbers of rows: those of
/// the compiled steps that fit `max_seq`. A format that the program has anyway is left out.
///
/// # Errors
/// When the limits do not say it.
pub fn changes(
    program: &Program<'_>,
    limits: &Limits,
    sizes: Sizes<'_>,
    rows: usize,
    depth: usize,
) -> Result<Vec<Change>, Error> {
    let now = both(program, limits, rows, depth)?;
    let mut found = vec![Change { what: "as it is".into(), seconds: now, rows }];
    let weights = WEIGHTS.iter().map(|(what, format)| (what, Some(*format), None));
    let caches = CACHES.iter().map(|(what, cache)| (what, None, Some(*cache)));
    for (what, weights, cache) in weights.chain(caches) {
        let module = changed(program.module, weights, cache)?;
        if module != *program.module {
            let seconds = both(&Program::new(&module)?, limits, rows, depth)?;
            found.push(Change { what: (*what).to_owned(), seconds, rows });
        }
    }
    let fits = |other: &&usize| **other != rows && depth.saturating_add(**other) <= sizes.max_seq;
    for &other in sizes.buckets.iter().filter(fits) {
        let seconds = both(program, limits, other, depth)?;
        found.push(Change { what: format!("steps of {other} rows"), seconds, rows: other });
    }
    Ok(found)
}

/// Predicted seconds of a step and of the head on all of its rows.
fn both(program: &Program<'_>, limits: &Limits, rows: usize, depth: usize) -> Result<f64, Error> {
    let span = SpanRows { rows: 0..rows, slot: 0, at: depth, from: 0, visible: depth.saturating_add(rows) };
    seconds(program, limits, &[Asked::Step(vec![span]), Asked::Head(rows)])
}

/// Predicted time of a token of a block.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenCost {
    /// Tokens of the block, and before it.
    pub block: usize,
    /// See [`Block::behind`](super::Block::behind).
    pub behind: usize,
    /// How sure the model is assumed to be.
    pub answers: Answers,
    /// Forward passes for the block.
    pub forwards: usize,
    /// Predicted seconds of a token, prefill left out.
    pub seconds: f64,
}

/// What a token costs behind about `depth` others under a policy, and in blocks of half the length.
///
/// # Errors
/// When the policy cannot run with these sizes, or the limits do not say it.
pub fn tokens(
    program: &Program<'_>,
    limits: &Limits,
    policy: &DecodePolicy,
    sizes: Sizes<'_>,
    depth: usize,
) -> Result<Vec<TokenCost>, Error> {
    let mut policies = vec![policy.clone()];
    if policy.block > 1 {
        let block = policy.block / 2;
        let steps = if policy.steps == policy.block { block } else { policy.steps };
        let sub_block = policy.sub_block.filter(|sub| sub.length <= block);
        policies.push(DecodePolicy { block, steps, sub_block, ..policy.clone() });
    }
    let mut found = Vec::new();
    for policy in &policies {
        for answers in [Answers::Certain, Answers::Uncertain] {
            let made = block(policy, sizes, depth, answers)?;
            let seconds = seconds(program, limits, &made.calls)? / made.tokens as f64;
            let (block, behind, forwards) = (made.tokens, made.behind, made.forwards());
            found.push(TokenCost { block, behind, answers, forwards, seconds });
        }
    }
    Ok(found)
}
