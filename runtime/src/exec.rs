//! The boundary between decoding and execution: what a decoding loop may ask of a loaded model.
//!
//! Everything a diffusion decoder does is a schedule of [`Executor::step`] and [`Executor::head`] calls; see
//! `ARCHITECTURE.md` ("Entries"). Executors hold the KV caches, in slots of one sequence each, and the hidden states of the
//! last step.

use crate::memory::OverLimit;
use dlx_ir::MAX_SPANS;

/// New rows of one sequence in a forward pass. A step takes several spans, of sequences in different slots or of different
/// rows of one.
///
/// In each layer the rows of all spans are written to the cache rows `at..at + ids.len()` of their slots, then each attends
/// its rows `from..visible` under the artifact's static mask, whose blocks count from the slot's first row. So spans of one
/// row each, every one with what comes before it `visible`, are causal attention, whatever the mask. Nothing is copied or appended: a later step may
/// overwrite the same rows (denoising), and what lies at or above the next span's `visible` is never read.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Slot of the caches that the sequence has, below [`Executor::slots`].
    pub slot: usize,
    /// Token ids of the new rows, at least one.
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

impl<'a> Span<'a> {
    /// New rows behind `at` others of the sequence in slot 0, none of them padding.
    pub fn new(ids: &'a [i32], pos: &'a [i32], at: usize) -> Self {
        Span { slot: 0, ids, pos, at, from: 0, visible: at.saturating_add(ids.len()) }
    }

    /// Whether both write a row.
    fn writes_with(&self, other: &Span<'_>) -> bool {
        let before = |a: &Span<'_>, b: &Span<'_>| a.at.saturating_add(a.ids.len()) <= b.at;
        self.slot == other.slot && !before(self, other) && !before(other, self)
    }
}

/// A row of a slot of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// The slot, below [`Executor::slots`].
    pub slot: usize,
    /// The row, below [`Executor::max_seq`].
    pub row: usize,
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
    /// It would take more memory than it was loaded with.
    #[error(transparent)]
    Limit(OverLimit),
}

/// What an executor's compiled steps and caches can hold.
pub(crate) struct Limits<'a> {
    /// Step sizes, ascending.
    pub buckets: &'a [usize],
    /// Cache rows of a slot.
    pub max_seq: usize,
    /// Sequences that the caches hold.
    pub slots: usize,
    /// Tokens.
    pub vocab: usize,
}

impl Limits<'_> {
    /// The step bucket that spans run in: the smallest that holds their rows.
    ///
    /// # Errors
    /// [`ExecError::Shape`] when they do not fit the buckets, the caches or the vocabulary, or share a slot.
    pub(crate) fn bucket_of(&self, spans: &[Span<'_>]) -> Result<usize, ExecError> {
        let shape = |what: String| Err(ExecError::Shape(what));
        let rows = spans.iter().map(|s| s.ids.len()).sum();
        let bucket = self.buckets.iter().copied().find(|b| *b >= rows);
        let Some(bucket) = bucket.filter(|_| rows > 0) else {
            let largest = self.buckets.last().copied().unwrap_or(0);
            return shape(format!("a step takes 1 to {largest} rows, not {rows}; compile with a larger --buckets"));
        };
        if spans.len() > MAX_SPANS {
            return shape(format!("a step takes {MAX_SPANS} spans at most, not {}", spans.len()));
        }
        for (i, span) in spans.iter().enumerate() {
            if span.slot >= self.slots || spans[..i].iter().any(|other| other.writes_with(span)) {
                let slots = self.slots;
                return shape(format!(
                    "rows of slot {} are taken in this step, or it lies beyond the {slots} slots of the caches",
                    span.slot
                ));
            }
            self.check(span)?;
        }
        Ok(bucket)
    }

    fn check(&self, span: &Span<'_>) -> Result<(), ExecError> {
        let shape = |what: String| Err(ExecError::Shape(what));
        let &Span { ids, pos, at, from, visible, .. } = span;
        if ids.is_empty() || pos.len() != ids.len() {
            return shape(format!("{} ids, but {} positions", ids.len(), pos.len()));
        }
        let end = at.checked_add(ids.len());
        if end.is_none_or(|end| end > visible) || visible > self.max_seq || from > visible {
            let (rows, max_seq) = (ids.len(), self.max_seq);
            return shape(format!("rows {at}+{rows} with {visible} visible do not fit caches of {max_seq} rows"));
        }
        match ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= self.vocab)) {
            Some(id) => shape(format!("token {id} is outside the vocabulary of {}", self.vocab)),
            None => Ok(()),
        }
    }

    /// Refuses a copy of rows that would not be what another sequence computes itself; `block` is the mask's
    /// [`Mask::prefix_unit`](dlx_ir::Mask::prefix_unit), `unit` what [`Executor::copy_unit`] says.
    ///
    /// # Errors
    /// [`ExecError::Shape`].
    pub(crate) fn check_copy(
        &self,
        block: Option<usize>,
        unit: Option<usize>,
        [from, to]: [CacheRow; 2],
        rows: usize,
    ) -> Result<(), ExecError> {
        let shape = |what: String| Err(ExecError::Shape(what));
        let (Some(block), Some(unit)) = (block, unit) else {
            return shape("with full attention every row depends on all others: none can be copied".into());
        };
        for CacheRow { slot, row } in [from, to] {
            if slot >= self.slots || row.checked_add(rows).is_none_or(|end| end > self.max_seq) {
                let Limits { slots, max_seq, .. } = self;
                return shape(format!(
                    "{rows} rows of slot {slot} from row {row} do not fit {slots} slots of {max_seq} rows"
                ));
            }
            if !row.is_multiple_of(unit) {
                return shape(format!("rows are copied from and to multiples of {unit}, not row {row}"));
            }
        }
        if !rows.is_multiple_of(block) {
            return shape(format!(
                "{rows} rows are no whole blocks of {block}: the last ones have seen what follows them"
            ));
        }
        Ok(())
    }
}

/// The least number that is a multiple of both; `None` for 0 or beyond all numbers.
pub(crate) fn common_multiple(a: usize, b: usize) -> Option<usize> {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a.checked_div(x)?.checked_mul(b).filter(|n| *n > 0)
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
    /// Cache rows of a slot: the longest sequence.
    fn max_seq(&self) -> usize;

    /// Vocabulary size: the width of a row of logits.
    fn vocab(&self) -> usize;

    /// Compiled step sizes in rows, ascending. A call with fewer rows runs in the next larger bucket.
    fn step_buckets(&self) -> &[usize];

    /// Sequences that the caches hold at a time: 1 at first.
    fn slots(&self) -> usize;

    /// Rows of logits that memory was counted for, where it is limited.
    fn logits_rows(&self) -> usize {
        usize::MAX
    }

    /// Makes room for at least `slots` sequences. What the caches held is gone if there was less room before.
    ///
    /// # Errors
    /// [`ExecError::OutOfMemory`], [`ExecError::Limit`], or [`ExecError::Shape`] when the device cannot hold so many.
    fn reserve(&mut self, slots: usize) -> Result<(), ExecError>;

    /// The multiples at which copies of cache rows may begin: whole blocks of the mask that are stored apart from others.
    /// `None` where no row can be copied, since each depends on what follows it.
    fn copy_unit(&self) -> Option<usize> {
        None
    }

    /// Makes `rows` cache rows at `to` those at `from`, so that a sequence that begins like another need not compute them. What
    /// lay behind them at `to` is gone up to the next multiple of [`Executor::copy_unit`]. Rows mean the same only at the same
    /// number and behind the same rows; at another they are merely kept.
    ///
    /// # Errors
    /// [`ExecError::Shape`] for rows or slots that do not exist, copies that do not begin at a multiple of
    /// [`Executor::copy_unit`], and where rows depend on what follows them: with full attention, and inside a block.
    fn copy_rows(&mut self, _from: CacheRow, _to: CacheRow, _rows: usize) -> Result<(), ExecError> {
        Err(ExecError::Shape("this executor copies no rows".into()))
    }

    /// Runs one forward pass over the rows of all spans; the last hidden state of each row stays on the device for
    /// [`Executor::head`]. Rows are numbered from 0, span after span. What a span computes depends on
    /// others only as far as it sees rows that they write.
    ///
    /// # Errors
    /// [`ExecError::Shape`] when the spans do not fit.
    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError>;

    /// Head statistics of chosen rows of the last step, one per entry of `out`.
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

    /// Most rows that [`Executor::read_logits`] shows at the same time.
    fn readers(&self) -> usize {
        1
    }

    /// Shows the logits of chosen rows of the last step to `read` one by one, in no particular order and up to
    /// [`Executor::readers`] at the same time. `room` is for executors whose logits lie where they cannot be shown.
    ///
    /// # Errors
    /// As [`Executor::logits`].
    fn read_logits(&mut self, rows: &[usize], room: &mut Vec<f32>, read: ReadRow<'_>) -> Result<(), ExecError> {
        let vocab = self.vocab();
        room.resize(rows.len().saturating_mul(vocab), 0.0);
        self.logits(rows, room)?;
        room.chunks_exact(vocab).enumerate().for_each(|(i, row)| read(0, i, row));
        Ok(())
    }

    /// Runs a step as [`Executor::step`] does, and shows every f32 value that a node computes, by the node's order and the
    /// value's name in the program, then what the step leaves for the head, as [`HIDDEN`]. Returns false, without a step,
    /// where an executor cannot look inside.
    ///
    /// # Errors
    /// As [`Executor::step`].
    fn observe(&mut self, _spans: &[Span<'_>], _see: See<'_>) -> Result<bool, ExecError> {
        Ok(false)
    }
}

/// What observers call the hidden rows that a step leaves; no value of a program has this name.
pub const HIDDEN: &str = "@hidden";

/// Reads a row of logits: a number below [`Executor::readers`] that no other call has at the same time, which of the rows asked
/// for it is, and the logits.
pub type ReadRow<'r> = &'r (dyn Fn(usize, usize, &[f32]) + Sync);

/// Sees a value of a step: its name, and its live rows one after the other.
pub type See<'s> = &'s mut dyn FnMut(&str, &[f32]);

/// Runs a step again and names the first value in it that is not finite. `None` where there is none or the executor cannot
/// tell.
pub(crate) fn first_nonfinite(executor: &mut dyn Executor, spans: &[Span<'_>]) -> Option<String> {
    let mut first = None;
    let mut see = |name: &str, rows: &[f32]| {
        if first.is_none() && rows.iter().any(|x| !x.is_finite()) {
            first = Some(format!("`{name}`"));
        }
    };
    executor.observe(spans, &mut see).ok()?;
    first
}
