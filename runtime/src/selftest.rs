//! Golden vectors: what a few entries compute on fixed inputs, recorded at compile time and checked at load, so that a
//! wrong kernel or driver is caught before it answers anybody.
//!
//! A step is probed up to its second layer, a head on made-up hidden states: every kind of kernel runs, and only a small
//! part of the weights is read. The inputs follow from the entry alone.

use crate::cpu::CpuExecutor;
use crate::exec::{ExecError, Executor, RowStats, StepCall};
use serde::{Deserialize, Serialize};

/// Recorded results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenVectors {
    /// One per step entry.
    steps: Vec<StepVector>,
    /// Head statistics of the made-up hidden states.
    head: Vec<(i32, f32, f32, f32)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepVector {
    /// Rows of the entry.
    rows: usize,
    /// Last row of the last value that the probe computes.
    last: Vec<f32>,
}

/// A load-time self-test that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// A result is not the recorded one.
    #[error(
        "self-test: {entry} gives {found} where {expected} was recorded, with {isa} kernels; \
         set DLX_ISA to another instruction set, and report this machine's CPU"
    )]
    Wrong {
        /// The entry.
        entry: String,
        /// The worst number.
        found: f32,
        /// What was recorded for it.
        expected: f32,
        /// Instruction set in use.
        isa: String,
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
/// Largest error relative to the largest recorded number. Kernels agree bit for bit on every CPU, but the sines and
/// cosines come from the platform's mathematics library.
const TOLERANCE: f32 = 1e-3;

/// Records the golden vectors of a program.
///
/// # Errors
/// An entry that fails.
pub fn record(executor: &mut CpuExecutor) -> Result<GoldenVectors, SelfTestError> {
    let mut steps = Vec::new();
    for rows in executor.step_buckets().to_vec() {
        steps.push(StepVector { rows, last: probe_step(executor, rows)? });
    }
    let head = probe_head(executor)?.into_iter().map(|s| (s.best, s.prob, s.margin, s.entropy)).collect();
    Ok(GoldenVectors { steps, head })
}

/// Runs the probes again and compares.
///
/// # Errors
/// A result that differs, or vectors of another program.
pub fn check(executor: &mut CpuExecutor, golden: &GoldenVectors) -> Result<(), SelfTestError> {
    if !golden.steps.iter().map(|s| s.rows).eq(executor.step_buckets().iter().copied()) {
        return Err(SelfTestError::Mismatch);
    }
    for step in &golden.steps {
        let found = probe_step(executor, step.rows)?;
        compare(executor, &format!("step_{}", step.rows), &found, &step.last)?;
    }
    let found = probe_head(executor)?;
    if found.len() != golden.head.len() {
        return Err(SelfTestError::Mismatch);
    }
    for (s, &(_, prob, margin, entropy)) in found.iter().zip(&golden.head) {
        compare(executor, "head", &[s.prob, s.margin, s.entropy], &[prob, margin, entropy])?;
    }
    Ok(())
}

fn probe_step(executor: &mut CpuExecutor, rows: usize) -> Result<Vec<f32>, ExecError> {
    let live = rows.min(PROBE_ROWS).min(executor.max_seq());
    let vocab = executor.vocab();
    let ids: Vec<i32> = (0..live).map(|i| i32::try_from((i * 7919 + 17) % vocab).unwrap_or(0)).collect();
    let pos: Vec<i32> = (0..).take(live).collect();
    let call = StepCall { ids: &ids, pos: &pos, at: 0, from: 0, visible: live };
    let mut last = Vec::new();
    let nodes = executor.first_layer_nodes(rows);
    executor.step_observed(call, nodes, &mut |seen| {
        let value = seen.value;
        if !value.is_empty() {
            last.clear();
            last.extend_from_slice(&value[value.len() / live * (live - 1)..]);
        }
    })?;
    Ok(last)
}

fn probe_head(executor: &mut CpuExecutor) -> Result<Vec<RowStats>, ExecError> {
    let rows = HEAD_ROWS.min(executor.step_buckets().last().copied().unwrap_or(1));
    // Numbers between -1 and 1 without a pattern that a tile could hide.
    executor.set_hidden(rows, |i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)?;
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    executor.head(&(0..rows).collect::<Vec<_>>(), &mut stats)?;
    Ok(stats)
}

fn compare(executor: &CpuExecutor, entry: &str, found: &[f32], expected: &[f32]) -> Result<(), SelfTestError> {
    if found.len() != expected.len() {
        return Err(SelfTestError::Mismatch);
    }
    let largest = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let wrong = found.iter().zip(expected).find(|(f, e)| {
        (*f - *e).abs().partial_cmp(&(TOLERANCE * largest)).is_none_or(|o| o.is_gt()) && !(f.is_nan() && e.is_nan())
    });
    match wrong {
        None => Ok(()),
        Some((&found, &expected)) => {
            Err(SelfTestError::Wrong { entry: entry.into(), found, expected, isa: executor.isa().to_string() })
        }
    }
}
