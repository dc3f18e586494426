//! Golden vectors: what a few entries compute on fixed inputs, recorded at compile time and checked at load, so that a
//! wrong kernel or driver is caught before it answers anybody.
//!
//! A step is probed up to its second layer, a head on made-up hidden states: every kind of kernel runs, and only a small
//! part of the weights is read. The inputs follow from the entry alone. The CPU records them; every target is checked
//! against the same numbers.

use crate::cpu::CpuExecutor;
use crate::exec::{ExecError, Executor, RowStats, StepCall};
use dlx_ir::{DType, Graph, Op, ValueId};
use serde::{Deserialize, Serialize};

/// What a self-test asks of an executor besides running it.
pub trait Probes: Executor {
    /// Largest error relative to the largest recorded number that is still right.
    fn tolerance(&self) -> f32;

    /// What to call the kernels in use in a message, and what can be done when they are wrong.
    fn blame(&self) -> String;

    /// Runs a call in the step bucket of `rows` rows as far as [`first_layer`] and gives the last live row of its value.
    ///
    /// # Errors
    /// As [`Executor::step`].
    fn first_layer(&mut self, rows: usize, call: StepCall<'_>) -> Result<Vec<f32>, ExecError>;

    /// Fills the hidden states of the last step, as if a step of that many rows had run.
    ///
    /// # Errors
    /// More rows than the largest step has.
    fn set_hidden(&mut self, rows: usize, value: &dyn Fn(usize) -> f32) -> Result<(), ExecError>;
}

/// Where the probe of a step entry ends: how many of its nodes run, and the f32 value that the last of these with one
/// computes. That is where the second layer writes its keys, or the end of the graph.
pub fn first_layer(graph: &Graph) -> Option<(usize, ValueId)> {
    let writes = graph.nodes.iter().enumerate().filter(|(_, n)| matches!(n.op, Op::KvWrite {}));
    let nodes = writes.map(|(i, _)| i).nth(1).unwrap_or(graph.nodes.len());
    let outputs = graph.nodes[..nodes].iter().rev().filter_map(|n| n.outputs.first().copied());
    let value = outputs.into_iter().find(|v| graph.values[*v].ty.dtype == DType::F32)?;
    Some((nodes, value))
}

/// Recorded results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenVectors {
    /// One per step entry.
    steps: Vec<StepVector>,
    /// Head statistics of the made-up hidden states.
    head: Vec<(i32, Number, Number, Number)>,
}

/// A number of any kind: JSON has none that are not finite, so those are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f32),
    Other(Nonfinite),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Nonfinite {
    #[serde(rename = "nan")]
    Nan,
    #[serde(rename = "inf")]
    Infinity,
    #[serde(rename = "-inf")]
    MinusInfinity,
}

impl From<f32> for Number {
    fn from(v: f32) -> Self {
        match v {
            v if v.is_finite() => Number::Finite(v),
            v if v.is_nan() => Number::Other(Nonfinite::Nan),
            v if v > 0.0 => Number::Other(Nonfinite::Infinity),
            _ => Number::Other(Nonfinite::MinusInfinity),
        }
    }
}

impl Number {
    fn get(self) -> f32 {
        match self {
            Number::Finite(v) => v,
            Number::Other(Nonfinite::Nan) => f32::NAN,
            Number::Other(Nonfinite::Infinity) => f32::INFINITY,
            Number::Other(Nonfinite::MinusInfinity) => f32::NEG_INFINITY,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepVector {
    /// Rows of the entry.
    rows: usize,
    /// Last row of the last value that the probe computes.
    last: Vec<Number>,
}

/// A load-time self-test that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// A result is not the recorded one.
    #[error("self-test: {entry} gives {found} where {expected} was recorded, with {blame}")]
    Wrong {
        /// The entry.
        entry: String,
        /// The worst number.
        found: f32,
        /// What was recorded for it.
        expected: f32,
        /// Kernels in use, and what to do.
        blame: String,
    },
    /// The recorded vectors do not belong to this program.
    #[error("self-test: the golden vectors do not fit the program; compile it again")]
    Mismatch,
    /// An entry failed.
    #[error("self-test: {0}")]
    Exec(#[from] ExecError),
}

/// Rows that a probe feeds: enough to use a full register tile and a partial one.
const PROBE_ROWS: usize = 21;
const HEAD_ROWS: usize = 3;
/// Logits closer than this, times the tolerance, may change places.
const TIE: f32 = 4.0;

/// Records the golden vectors of a program.
///
/// # Errors
/// An entry that fails.
pub fn record(executor: &mut CpuExecutor) -> Result<GoldenVectors, SelfTestError> {
    let mut steps = Vec::new();
    for rows in executor.step_buckets().to_vec() {
        let last = probe_step(executor, rows)?.into_iter().map(Number::from).collect();
        steps.push(StepVector { rows, last });
    }
    let head =
        probe_head(executor)?.into_iter().map(|s| (s.best, s.prob.into(), s.margin.into(), s.entropy.into())).collect();
    Ok(GoldenVectors { steps, head })
}

/// Runs the probes again and compares.
///
/// # Errors
/// A result that differs, or vectors of another program.
pub fn check(executor: &mut dyn Probes, golden: &GoldenVectors) -> Result<(), SelfTestError> {
    if !golden.steps.iter().map(|s| s.rows).eq(executor.step_buckets().iter().copied()) {
        return Err(SelfTestError::Mismatch);
    }
    for step in &golden.steps {
        let found = probe_step(executor, step.rows)?;
        let last: Vec<f32> = step.last.iter().map(|v| v.get()).collect();
        compare(executor, &format!("step_{}", step.rows), &found, &last)?;
    }
    let found = probe_head(executor)?;
    if found.len() != golden.head.len() {
        return Err(SelfTestError::Mismatch);
    }
    for (s, &(best, prob, margin, entropy)) in found.iter().zip(&golden.head) {
        let [prob, margin, entropy] = [prob, margin, entropy].map(Number::get);
        compare(executor, "head", &[s.entropy], &[entropy])?;
        // Probabilities of a large vocabulary are small; what counts is their ratio.
        compare(executor, "head", &[s.prob, s.margin], &[prob, margin])?;
        if margin > TIE * executor.tolerance() * prob && s.best != best {
            let (found, expected, blame) = (s.best as f32, best as f32, executor.blame());
            return Err(SelfTestError::Wrong { entry: "head".into(), found, expected, blame });
        }
    }
    Ok(())
}

fn probe_step(executor: &mut dyn Probes, rows: usize) -> Result<Vec<f32>, ExecError> {
    let live = rows.min(PROBE_ROWS).min(executor.max_seq());
    let vocab = executor.vocab();
    let ids: Vec<i32> = (0..live).map(|i| i32::try_from((i * 7919 + 17) % vocab).unwrap_or(0)).collect();
    let pos: Vec<i32> = (0..).take(live).collect();
    executor.first_layer(rows, StepCall { ids: &ids, pos: &pos, at: 0, from: 0, visible: live })
}

fn probe_head(executor: &mut dyn Probes) -> Result<Vec<RowStats>, ExecError> {
    let rows = HEAD_ROWS.min(executor.step_buckets().last().copied().unwrap_or(1));
    // Numbers between -1 and 1 without a pattern that a tile could hide.
    executor.set_hidden(rows, &|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)?;
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    executor.head(&(0..rows).collect::<Vec<_>>(), &mut stats)?;
    Ok(stats)
}

fn compare(executor: &dyn Probes, entry: &str, found: &[f32], expected: &[f32]) -> Result<(), SelfTestError> {
    if found.len() != expected.len() {
        return Err(SelfTestError::Mismatch);
    }
    let largest = expected.iter().filter(|v| v.is_finite()).fold(1e-6f32, |m, v| m.max(v.abs()));
    let allowed = executor.tolerance() * largest;
    let same = |f: f32, e: f32| f == e || f.is_nan() && e.is_nan() || (f - e).abs() <= allowed;
    let wrong = found.iter().zip(expected).find(|(f, e)| !same(**f, **e));
    match wrong {
        None => Ok(()),
        Some((&found, &expected)) => {
            Err(SelfTestError::Wrong { entry: entry.into(), found, expected, blame: executor.blame() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_kind_are_written_and_read() {
        let numbers = [1.5, -0.0, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let [a, b, c] = [f32::NAN, 0.5, f32::INFINITY].map(Number::from);
        let last = numbers.map(Number::from).to_vec();
        let golden = GoldenVectors { steps: vec![StepVector { rows: 4, last }], head: vec![(7, a, b, c)] };
        let text = serde_json::to_string(&golden).unwrap();
        assert!(text.contains(r#"[1.5,-0.0,3.4028235e+38,"nan","inf","-inf"]"#), "{text}");
        let read: GoldenVectors = serde_json::from_str(&text).unwrap();
        assert_eq!(read, golden);
        for (read, number) in read.steps[0].last.iter().zip(numbers) {
            assert!(read.get().to_bits() == number.to_bits() || read.get().is_nan() && number.is_nan());
        }
        assert!(serde_json::from_str::<GoldenVectors>(&text.replace("nan", "none")).is_err());
    }
}
