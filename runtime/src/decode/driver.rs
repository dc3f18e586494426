//! Runs sequences on an executor: [`decode`] one, a [`Driver`] any number side by side.
//!
//! Invariant: what a sequence decodes does not depend on which others run beside it. Passes of several sequences share a
//! step as far as they fit; a sequence that fails ends alone, while an error of the executor ends the round.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::DecodeError;
use super::noise::Noise;
use super::pass::{Pass, Reads, Rows};
use super::resolve::Resolved;
use super::sample::{Drawn, Sampler};
use super::sequence::{Chooser, Decoded, Observer, Sequence};
use crate::exec::{ExecError, Executor, RowStats, Span, first_nonfinite};
use dlx_ir::MAX_SPANS;

/// Decodes `max_new` tokens after `prompt`, and the masks inside it (infilling), in the first slots of the caches. With full
/// attention that is exact; otherwise whole blocks are decoded, and the number of new tokens is rounded up to the end of a
/// block. What the caches cannot hold is left out. With an absolute grid, the first decoded block may begin with the end of
/// the prompt. The rows of the first `held` positions of `prompt` are in the caches already.
///
/// # Errors
/// An unusable prompt before anything runs; whatever the executor reports later.
pub fn decode(
    executor: &mut dyn Executor,
    policy: Resolved,
    prompt: &[i32],
    max_new: usize,
    held: usize,
    noise: Noise,
    observer: &mut Observer<'_>,
) -> Result<Decoded, DecodeError> {
    executor.reserve(policy.slots())?;
    let slots = (0..policy.slots()).collect();
    let mut sequence = Sequence::new(policy, executor, prompt, max_new, held, slots, noise)?;
    let mut driver = Driver::new(executor);
    while driver.round(&mut [Active { sequence: &mut sequence, observer: &mut *observer }])? {}
    sequence.finish()
}

/// A sequence that takes part in a round, and who is told what happens to it.
pub struct Active<'a, 'o> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Its observer.
    pub observer: &'a mut Observer<'o>,
}

/// See the module.
pub struct Driver<'e> {
    executor: &'e mut dyn Executor,
    stats: Vec<RowStats>,
    logits: Vec<f32>,
    chosen: Vec<Option<Drawn>>,
    /// One for each row that the executor shows at the same time.
    readers: Vec<Mutex<Reader>>,
    /// Where logits are shown by executors that have no place for them.
    room: Vec<f32>,
    shared: usize,
}

/// Chooses tokens from rows of logits while others do so too.
#[derive(Default)]
struct Reader {
    sampler: Sampler,
    /// By the number of the row; an error where a logit is no number.
    chosen: Vec<(usize, Result<Option<Drawn>, NotFinite>)>,
}

struct NotFinite;

/// One span of a pass.
struct Item<'p> {
    /// Which of the active sequences.
    index: usize,
    /// Which of the spans of the pass.
    nth: usize,
    pass: &'p Pass,
    span: Span<'p>,
    chooser: Option<Chooser<'p>>,
}

/// A row that a pass looks at: its number in the step, its item, and its number in the span.
type LookedAt<'i, 'p> = (usize, &'i Item<'p>, usize);

/// What a step cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) step: Duration,
    pub(super) head: Duration,
}

impl<'p> Item<'p> {
    /// The spans of a pass.
    fn of(index: usize, pass: &'p Pass, chooser: Option<Chooser<'p>>) -> impl Iterator<Item = Self> {
        pass.spans().enumerate().map(move |(nth, span)| Item { index, nth, pass, span, chooser })
    }
}

impl<'e> Driver<'e> {
    /// A driver of an executor in which the sequences' slots have been reserved.
    pub fn new(executor: &'e mut dyn Executor) -> Self {
        let (stats, logits, chosen, readers, room) = Default::default();
        Driver { executor, stats, logits, chosen, readers, room, shared: 0 }
    }

    /// Runs one pass of every sequence that wants one. Returns false when none does.
    ///
    /// # Errors
    /// What the executor reports; the sequences are as they were, and a further round runs the same passes again.
    pub fn round(&mut self, active: &mut [Active<'_, '_>]) -> Result<bool, ExecError> {
        for Active { sequence, observer } in active.iter_mut() {
            sequence.want(observer);
        }
        let passes =
            active.iter().enumerate().filter_map(|(i, a)| Some((i, a.sequence.wanted()?, a.sequence.chooser())));
        let items: Vec<Item<'_>> = passes.flat_map(|(index, pass, chooser)| Item::of(index, pass, chooser)).collect();
        if items.is_empty() {
            return Ok(false);
        }
        let mut outcomes: Vec<(Cost, Option<DecodeError>)> = active.iter().map(|_| Default::default()).collect();
        self.run(&items, &mut outcomes)?;
        let (mut stats, mut logits, mut chosen) = (&self.stats[..], &mut self.logits[..], &self.chosen[..]);
        let vocab = self.executor.vocab();
        for (Active { sequence, observer }, (cost, failed)) in active.iter_mut().zip(outcomes) {
            let Some(pass) = sequence.wanted() else { continue };
            let count = pass.spans().len() * pass.rows().len();
            let rows = match pass.reads() {
                Reads::Stats => Rows::Stats(stats.split_off(..count).expect("one for each row was read")),
                Reads::Logits if sequence.chooser().is_some() => {
                    Rows::Chosen(chosen.split_off(..count).expect("one for each row was chosen"))
                }
                Reads::Logits => Rows::Logits(logits.split_off_mut(..count * vocab).expect("as above")),
            };
            sequence.spent(cost.step, cost.head);
            match failed {
                Some(error) => sequence.fail(error),
                None => sequence.took(rows, observer),
            }
        }
        Ok(true)
    }

    /// Runs a pass that is no sequence's, and gives what it said of its rows to `take`, with the time that steps and head took.
    ///
    /// # Errors
    /// What the executor reports; [`DecodeError::NotFinite`].
    pub(super) fn alone<T>(&mut self, pass: &Pass, take: impl FnOnce(Rows<'_>, Cost) -> T) -> Result<T, DecodeError> {
        let items: Vec<Item<'_>> = Item::of(0, pass, None).collect();
        let mut outcomes = [Default::default()];
        self.run(&items, &mut outcomes)?;
        let [(cost, failed)] = outcomes;
        let rows = match pass.reads() {
            Reads::Stats => Rows::Stats(&self.stats),
            Reads::Logits => Rows::Logits(&mut self.logits),
        };
        failed.map_or_else(|| Ok(take(rows, cost)), Err)
    }

    /// Runs the spans of passes, as many to a step as fit, and keeps what they want to see.
    fn run(&mut self, items: &[Item<'_>], outcomes: &mut [(Cost, Option<DecodeError>)]) -> Result<(), ExecError> {
        self.stats.clear();
        self.logits.clear();
        self.chosen.clear();
        self.shared = 0;
        let mut rest = items;
        while !rest.is_empty() {
            let (step, later) = rest.split_at(self.fitting(rest));
            let cost = self.step(step, outcomes)?;
            self.shared += usize::from(step.iter().any(|item| item.index != step[0].index));
            // A pass over two spans that did not fit one step has waited for both.
            for spans in step.chunk_by(|a, b| a.index == b.index) {
                let waited = &mut outcomes[spans[0].index].0;
                waited.step += cost.step;
                waited.head += cost.head;
            }
            rest = later;
        }
        Ok(())
    }

    /// Steps of the last round that served several sequences.
    pub fn shared_steps(&self) -> usize {
        self.shared
    }

    /// How many of these spans one step can take; at least one, which the executor may still refuse.
    fn fitting(&self, items: &[Item<'_>]) -> usize {
        let largest = self.executor.step_buckets().last().copied().unwrap_or(0);
        let mut rows = 0;
        let fits = items.iter().take(MAX_SPANS).take_while(|item| {
            rows += item.span.ids.len();
            rows <= largest
        });
        fits.count().max(1)
    }

    /// Runs one step and appends what its passes want to see to the results.
    fn step(&mut self, items: &[Item<'_>], outcomes: &mut [(Cost, Option<DecodeError>)]) -> Result<Cost, ExecError> {
        let begin = Instant::now();
        let spans: Vec<Span<'_>> = items.iter().map(|item| item.span).collect();
        self.executor.step(&spans)?;
        let step = begin.elapsed();
        let begin = Instant::now();
        let (mut stats, mut logits, mut choices, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for item in items {
            let rows = item.pass.rows().iter().map(|row| (first + row, item, *row));
            match (item.pass.reads(), item.chooser) {
                (Reads::Stats, _) => stats.extend(rows),
                (Reads::Logits, None) => logits.extend(rows),
                (Reads::Logits, Some(chooser)) => {
                    choices.extend(rows.enumerate().map(|(i, row)| (row, chooser, i)));
                }
            }
            first += item.span.ids.len();
        }
        let numbers = |rows: &[LookedAt<'_, '_>]| rows.iter().map(|(row, ..)| *row).collect::<Vec<_>>();
        let mut broken: Vec<(&Item<'_>, usize)> = Vec::new();
        if !stats.is_empty() {
            let old = self.stats.len();
            self.stats.resize(old + stats.len(), RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 });
            self.executor.head(&numbers(&stats), &mut self.stats[old..])?;
            let finite = |s: &RowStats| [s.prob, s.margin, s.entropy].iter().all(|x| x.is_finite());
            broken.extend(stats.iter().zip(&self.stats[old..]).filter(|(_, s)| !finite(s)).map(|(r, _)| (r.1, r.2)));
        }
        if !logits.is_empty() {
            let (old, vocab) = (self.logits.len(), self.executor.vocab());
            self.logits.resize(old + logits.len() * vocab, 0.0);
            self.executor.logits(&numbers(&logits), &mut self.logits[old..])?;
            let rows = logits.iter().zip(self.logits[old..].chunks_exact(vocab));
            broken.extend(rows.filter(|(_, l)| l.iter().any(|x| !x.is_finite())).map(|(r, _)| (r.1, r.2)));
        }
        if !choices.is_empty() {
            self.choose(&choices, &mut broken)?;
        }
        for (item, row) in broken {
            if outcomes[item.index].1.is_none() {
                let place = first_nonfinite(self.executor, &[item.span]).unwrap_or_else(|| "the logits".to_owned());
                let position = item.pass.position(item.nth, row);
                outcomes[item.index].1 = Some(DecodeError::NotFinite { position, place });
            }
        }
        Ok(Cost { step, head: begin.elapsed() })
    }

    /// Chooses a token from each of these rows, on as many threads as the executor shows rows on, and appends them to the
    /// results; rows with a logit that is no number are `broken`.
    fn choose<'i, 'p>(
        &mut self,
        choices: &[(LookedAt<'i, 'p>, Chooser<'p>, usize)],
        broken: &mut Vec<(&'i Item<'p>, usize)>,
    ) -> Result<(), ExecError> {
        let Self { executor, chosen, readers, room, .. } = self;
        readers.resize_with(executor.readers().max(readers.len()), Mutex::default);
        // An executor that failed in between has left some.
        readers.iter_mut().for_each(|r| r.get_mut().unwrap_or_else(PoisonError::into_inner).chosen.clear());
        let rows: Vec<usize> = choices.iter().map(|((row, ..), ..)| *row).collect();
        let read = |reader: usize, i: usize, row: &[f32]| {
            // A reader that panicked has left a choice out, and its memory holds nothing that the next one relies on.
            let mut reader = readers[reader].lock().unwrap_or_else(PoisonError::into_inner);
            let Reader { sampler, chosen } = &mut *reader;
            let finite = row.chunks(64).all(|part| part.iter().fold(true, |all, x| all & x.is_finite()));
            let (_, chooser, index) = &choices[i];
            let drawn = if finite { Ok(chooser.choose(sampler, *index, row)) } else { Err(NotFinite) };
            chosen.push((i, drawn));
        };
        executor.read_logits(&rows, room, &read)?;
        let old = chosen.len();
        chosen.resize(old + choices.len(), None);
        for reader in readers {
            for (i, drawn) in reader.get_mut().unwrap_or_else(PoisonError::into_inner).chosen.drain(..) {
                match drawn {
                    Ok(drawn) => chosen[old + i] = drawn,
                    Err(NotFinite) => broken.push((choices[i].0.1, choices[i].0.2)),
                }
            }
        }
        broken.sort_unstable_by_key(|(item, row)| (item.index, *row));
        Ok(())
    }
}
