//! Golden vectors: what a few entries compute on fixed inputs, recorded at compile time and checked at load, so that a
//! wrong kernel or driver is caught before it answers anybody.
//!
//! Every step is probed up to its second layer, and a head on made-up hidden states: every kind of kernel runs. Then a few
//! rows go through a whole step, its head and its logits, so that every layer counts. The inputs follow from the entry
//! alone. The CPU records the numbers; every target is checked against the same ones.
//!
//! They are a defense against accidents: a wrong kernel or driver, a program or a plan that does not belong to the weights.
//! Whoever can write all sections of an artifact can write a model of his own with vectors that fit it; only a signature
//! from outside the file would tell.

use crate::cpu::CpuExecutor;
use crate::exec::{ExecError, Executor, RowStats, Span};
use serde::{Deserialize, Serialize};

/// What a self-test asks of an executor besides running it.
pub trait Probes: Executor {
    /// Largest error relative to the largest recorded number that is still right.
    fn tolerance(&self) -> f32;

    /// What to call the kernels in use in a message, and what can be done when they are wrong.
    fn blame(&self) -> String;

    /// Runs a call in the step bucket of `rows` rows as far as [`dlx_ir::first_layer`] and gives the last live row of its value.
    ///
    /// # Errors
    /// As [`Executor::step`].
    fn first_layer(&mut self, rows: usize, span: Span<'_>) -> Result<Vec<f32>, ExecError>;

    /// Step buckets that are run to their end: each, or one for all that are known to be the same program.
    fn whole_steps(&self) -> Vec<usize>;

    /// [`Probes::tolerance`] behind all layers.
    fn depth_tolerance(&self) -> f32;

    /// As [`Executor::step`], in the bucket of `rows` rows.
    ///
    /// # Errors
    /// As [`Executor::step`].
    fn whole_step(&mut self, rows: usize, span: Span<'_>) -> Result<(), ExecError>;

    /// Fills the hidden states of the last step, as if a step of that many rows had run.
    ///
    /// # Errors
    /// More rows than the largest step has.
    fn set_hidden(&mut self, rows: usize, value: &dyn Fn(usize) -> f32) -> Result<(), ExecError>;
}

/// How much of an artifact's golden vectors runs at load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelfTest {
    /// Nothing: what runs is somebody else's to judge.
    Skip,
    /// Every step up to its second layer, which is every kind of kernel but the head's: for a file that was tested whole on this
    /// machine before.
    Kernels,
    /// Those, a head, and a few rows through all layers, which reads every weight.
    #[default]
    Whole,
}

/// Recorded results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenVectors {
    /// One per step entry.
    steps: Vec<StepVector>,
    /// Head statistics of the made-up hidden states.
    head: Vec<Recorded>,
    /// Head statistics of the last rows of a whole step.
    whole: Vec<Recorded>,
}

/// Best token, probability, margin and entropy.
type Recorded = (i32, Number, Number, Number);

/// A number of any kind: JSON has none that are not finite, so those are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Number {
    Finite(f32),
    Other(Nonfinite),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Nonfinite {
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
    pub(crate) fn get(self) -> f32 {
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
pub const PROBE_ROWS: usize = 21;
/// Rows of the heads and of the logits that a probe looks at.
pub const HEAD_ROWS: usize = 3;
/// Rows that go through a whole step: few, since every weight is read for them.
const WHOLE_ROWS: usize = 4;
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
    let number = |s: RowStats| (s.best, s.prob.into(), s.margin.into(), s.entropy.into());
    let head = probe_head(executor)?.into_iter().map(number).collect();
    let bucket = executor.step_buckets().first().copied().unwrap_or(1);
    let whole = probe_whole(executor, bucket)?.into_iter().map(number).collect();
    Ok(GoldenVectors { steps, head, whole })
}

/// Runs the probes again, as many as the test asks for, and compares.
///
/// # Errors
/// A result that differs, or vectors of another program.
pub fn check(executor: &mut dyn Probes, golden: &GoldenVectors, test: SelfTest) -> Result<(), SelfTestError> {
    if test == SelfTest::Skip {
        return Ok(());
    }
    if !golden.steps.iter().map(|s| s.rows).eq(executor.step_buckets().iter().copied()) {
        return Err(SelfTestError::Mismatch);
    }
    for step in &golden.steps {
        let found = probe_step(executor, step.rows)?;
        let last: Vec<f32> = step.last.iter().map(|v| v.get()).collect();
        compare(executor, &format!("step_{}", step.rows), &found, &last, executor.tolerance())?;
    }
    if test == SelfTest::Kernels {
        return Ok(());
    }
    let found = probe_head(executor)?;
    compare_stats(executor, "head", &found, &golden.head, executor.tolerance())?;
    for bucket in executor.whole_steps() {
        let found = probe_whole(executor, bucket)?;
        compare_stats(
            executor,
            &format!("step_{bucket}, to its end,"),
            &found,
            &golden.whole,
            executor.depth_tolerance(),
        )?;
    }
    check_logits(executor, golden.whole.len())
}

/// Compares the logits of the last rows of the last step with what the head says of them.
fn check_logits(executor: &mut dyn Probes, count: usize) -> Result<(), SelfTestError> {
    let (rows, vocab) = (last_rows(executor), executor.vocab());
    if rows.len() != count {
        return Err(SelfTestError::Mismatch);
    }
    let mut logits = vec![0.0; rows.len() * vocab];
    executor.logits(&rows, &mut logits)?;
    let stats = head_of(executor, &rows)?;
    // What is not finite has no statistics to compare.
    let rows = logits.chunks_exact(vocab).zip(stats).filter(|(row, _)| row.iter().all(|l| l.is_finite()));
    for (row, stats) in rows {
        let best = usize::try_from(stats.best).ok().and_then(|b| row.get(b)).copied().unwrap_or(f32::NAN);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|l| libm::exp(f64::from(l - max))).sum();
        let dot: f64 =
            row.iter().map(|l| f64::from(l - max)).map(|l| if l.is_finite() { l * libm::exp(l) } else { 0.0 }).sum();
        let prob = (libm::exp(f64::from(best - max)) / sum) as f32;
        compare(executor, "logits", &[prob], &[stats.prob], executor.tolerance())?;
        compare(executor, "logits", &[(libm::log(sum) - dot / sum) as f32], &[stats.entropy], executor.tolerance())?;
    }
    Ok(())
}

fn compare_stats(
    executor: &dyn Probes,
    entry: &str,
    found: &[RowStats],
    golden: &[Recorded],
    tolerance: f32,
) -> Result<(), SelfTestError> {
    if found.len() != golden.len() {
        return Err(SelfTestError::Mismatch);
    }
    for (s, &(best, prob, margin, entropy)) in found.iter().zip(golden) {
        let [prob, margin, entropy] = [prob, margin, entropy].map(Number::get);
        compare(executor, entry, &[s.entropy], &[entropy], tolerance)?;
        // Probabilities of a large vocabulary are small; what counts is their ratio.
        compare(executor, entry, &[s.prob, s.margin], &[prob, margin], tolerance)?;
        if margin > TIE * tolerance * prob && s.best != best {
            let (found, expected, blame) = (s.best as f32, best as f32, executor.blame());
            return Err(SelfTestError::Wrong { entry: entry.into(), found, expected, blame });
        }
    }
    Ok(())
}

/// Runs a whole step in a bucket, on as many rows as every bucket holds, and the head on the last of them.
fn probe_whole(executor: &mut dyn Probes, bucket: usize) -> Result<Vec<RowStats>, ExecError> {
    let (ids, pos) = inputs(executor, whole_rows(executor));
    executor.whole_step(bucket, Span::new(&ids, &pos, 0))?;
    let rows = last_rows(executor);
    head_of(executor, &rows)
}

/// Rows that a whole step is probed with.
fn whole_rows(executor: &dyn Probes) -> usize {
    executor.step_buckets().first().copied().unwrap_or(1).min(WHOLE_ROWS).min(executor.max_seq())
}

/// The last rows of a probe of a whole step.
fn last_rows(executor: &dyn Probes) -> Vec<usize> {
    let rows = whole_rows(executor);
    (rows.saturating_sub(HEAD_ROWS)..rows).collect()
}

fn head_of(executor: &mut dyn Probes, rows: &[usize]) -> Result<Vec<RowStats>, ExecError> {
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows.len()];
    executor.head(rows, &mut stats)?;
    Ok(stats)
}

/// Ids and positions of the rows that a probe feeds.
fn inputs(executor: &dyn Probes, rows: usize) -> (Vec<i32>, Vec<i32>) {
    let vocab = executor.vocab();
    let ids = (0..rows).map(|i| i32::try_from((i * 7919 + 17) % vocab).unwrap_or(0)).collect();
    (ids, (0..).take(rows).collect())
}

fn probe_step(executor: &mut dyn Probes, rows: usize) -> Result<Vec<f32>, ExecError> {
    let live = rows.min(PROBE_ROWS).min(executor.max_seq());
    let (ids, pos) = inputs(executor, live);
    executor.first_layer(rows, Span::new(&ids, &pos, 0))
}

fn probe_head(executor: &mut dyn Probes) -> Result<Vec<RowStats>, ExecError> {
    let rows = HEAD_ROWS.min(executor.step_buckets().last().copied().unwrap_or(1));
    // Numbers between -1 and 1 without a pattern that a tile could hide.
    executor.set_hidden(rows, &|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)?;
    head_of(executor, &(0..rows).collect::<Vec<_>>())
}

fn compare(
    executor: &dyn Probes,
    entry: &str,
    found: &[f32],
    expected: &[f32],
    tolerance: f32,
) -> Result<(), SelfTestError> {
    if found.len() != expected.len() {
        return Err(SelfTestError::Mismatch);
    }
    let largest = expected.iter().filter(|v| v.is_finite()).fold(1e-6f32, |m, v| m.max(v.abs()));
    let allowed = tolerance * largest;
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
        let golden = GoldenVectors {
            steps: vec![StepVector { rows: 4, last }],
            head: vec![(7, a, b, c)],
            whole: vec![(7, c, b, a)],
        };
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
