//! The boundary between decoding and execution: what a decoding loop may ask of a loaded model.
//!
//! Everything a diffusion decoder does is a schedule of [`Executor::step`] and [`Executor::head`] calls; see
//! `ARCHITECTURE.md` ("Entries"). Executors hold the KV caches and the hidden states of the last step.

/// One forward pass over new rows.
///
/// Rows are written to the KV caches at `at..at + ids.len()`, then each attends cache rows `from..visible` under the
/// artifact's static mask. Nothing is copied or appended: a later step may overwrite the same rows (denoising), and what
/// lies at or above the next call's `visible` is never read.
#[derive(Clone, Copy, Debug)]
pub struct StepCall<'a> {
    /// Token ids of the new rows, at least one and at most the largest step bucket.
    pub ids: &'a [i32],
    /// Rotary position of each row; the same length as `ids`.
    pub pos: &'a [i32],
    /// Cache row of the first new row.
    pub at: usize,
    /// First cache row that may be attended; 0 unless the sequence is left-padded.
    pub from: usize,
    /// Number of cache rows that exist; `at + ids.len() <= visible <= max_seq`.
    pub visible: usize,
}

/// What the fused LM head reports for one row, computed without materialising its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Most likely token, never a banned one (the mask id); ties go to the lowest id.
    pub best: i32,
    /// Probability of `best` under the softmax over the whole vocabulary.
    pub prob: f32,
    /// `prob` minus the probability of the second most likely token.
    pub margin: f32,
    /// Entropy of the distribution in nats.
    pub entropy: f32,
}

/// Errors of a running model. Callers branch on these; every message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The call does not fit the compiled entries (rows, cache size, row numbers).
    #[error("{0}")]
    Shape(String),
    /// The artifact has no such entry.
    #[error("the artifact has no `{0}` entry")]
    NoEntry(&'static str),
    /// The device refused something.
    #[error("device error: {0}")]
    Device(String),
    /// The device is gone: unplugged, reset or crashed. The model must be loaded again.
    #[error("the device was lost: {0}; load the model again, or use another device")]
    DeviceLost(String),
    /// The file behind the weights was changed while it was in use.
    #[error("the artifact: {0}")]
    File(String),
    /// The device has no memory left.
    #[error("the device is out of memory: {0}; free some, or compile with a smaller --max-seq")]
    OutOfMemory(String),
}

/// The step bucket that a call runs in: the smallest that holds its rows.
///
/// # Errors
/// [`ExecError::Shape`] when the call does not fit the buckets (ascending), the caches or the vocabulary.
pub(crate) fn bucket_of(
    call: &StepCall<'_>,
    buckets: &[usize],
    max_seq: usize,
    vocab: usize,
) -> Result<usize, ExecError> {
    let shape = |what: String| Err(ExecError::Shape(what));
    let rows = call.ids.len();
    let bucket = buckets.iter().copied().find(|b| *b >= rows);
    let Some(bucket) = bucket.filter(|_| rows > 0) else {
        let largest = buckets.last().copied().unwrap_or(0);
        return shape(format!("a step takes 1 to {largest} rows, not {rows}; compile with a larger --buckets"));
    };
    if call.pos.len() != rows {
        return shape(format!("{rows} ids, but {} positions", call.pos.len()));
    }
    let end = call.at.checked_add(rows);
    if end.is_none_or(|e| e > call.visible) || call.visible > max_seq || call.from > call.visible {
        let (at, visible) = (call.at, call.visible);
        return shape(format!("rows {at}+{rows} with {visible} visible do not fit caches of {max_seq} rows"));
    }
    if let Some(id) = call.ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
        return shape(format!("token {id} is outside the vocabulary of {vocab}"));
    }
    Ok(bucket)
}

/// Refuses rows that were not in the last step, which had `live`.
///
/// # Errors
/// [`ExecError::Shape`].
pub(crate) fn rows_of(rows: &[usize], live: usize) -> Result<(), ExecError> {
    match rows.iter().find(|r| **r >= live) {
        Some(row) => Err(ExecError::Shape(format!("row {row} was not in the last step, which had {live} rows"))),
        None => Ok(()),
    }
}

/// A loaded model that can run its compiled entries. Implemented by the CPU and wgpu executors.
pub trait Executor {
    /// Largest number of cache rows.
    fn max_seq(&self) -> usize;

    /// Vocabulary size: the width of a row of logits.
    fn vocab(&self) -> usize;

    /// Compiled step sizes in rows, ascending. A call with fewer rows runs in the next larger bucket.
    fn step_buckets(&self) -> &[usize];

    /// Runs one forward pass; the last hidden state of each row stays on the device for [`Executor::head`].
    ///
    /// # Errors
    /// [`ExecError::Shape`] when the call does not fit.
    fn step(&mut self, call: StepCall<'_>) -> Result<(), ExecError>;

    /// Head statistics of chosen rows of the last step (`0..ids.len()`), one per entry of `out`.
    ///
    /// # Errors
    /// [`ExecError::Shape`] when a row was not in the last step.
    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError>;

    /// Full logits of chosen rows of the last step, `[rows, vocab]` row-major. For samplers; greedy decoding needs only
    /// [`Executor::head`].
    ///
    /// # Errors
    /// [`ExecError::Shape`] when a row was not in the last step or `out` has the wrong length.
    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError>;

    /// Runs the last step again and names the first value in it that is not finite. `None` where there is none or the
    /// executor cannot tell.
    fn first_nonfinite(&mut self, _call: StepCall<'_>) -> Option<String> {
        None
    }
}
