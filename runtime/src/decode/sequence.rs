//! A sequence being decoded: a state machine that asks for forward passes instead of running them.
//!
//! [`Sequence::want`] says which pass comes next, [`Sequence::took`] is given what it said; between the two, anybody may run
//! it, beside others or later. [`Sequence::advance`] is the order of a decode, [`Sequence::apply`] what a pass changes.
//!
//! Invariant: the sequence is one vector of ids in which a position is undecided exactly when it holds the mask id, so a
//! change may reveal, replace or mask a position again. Every forward pass is announced before it runs and can be
//! refused by the observer, which is how cancellation, deadlines, traces and streaming attach. A sequence does not know
//! text, and it ends: a rule that has not finished a block within its schedule and one more pass per position is overruled.

mod choose;
mod passes;

pub use choose::Chooser;

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use super::adjust::Adjust;
use super::error::{DecodeError, FinishReason};
use super::guide::Guide;
use super::noise::Noise;
use super::pass::{ForwardKind, Pass, Rows, Window};
use super::plan::{Block, Plan};
use super::policy::{CacheMode, FirstRow, Lead, StopAt};
use super::resolve::Resolved;
use super::reveal::Change;
use super::sample::Sampler;
use super::schedule::{self, Due};
use super::trace::{Forward, Moment, Passes, Times};
use crate::exec::Executor;

/// What a decode made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The whole sequence, prompt included, up to the end of the last planned block. After an early end undecided
    /// positions hold the mask id, and tokens that were decided after a stop token are still there.
    pub ids: Vec<i32>,
    /// Positions before this one are decided.
    pub settled: usize,
    /// Positions before this one have their permanent rows in the caches.
    pub stored: usize,
    /// Those of them that were there already and have been used.
    pub held: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of passes.
    pub passes: Passes,
    /// Time in the executor.
    pub times: Times,
}

/// Tells the caller what happens; breaking ends the decode with the given reason.
pub type Observer<'o> = dyn FnMut(Moment<'_>) -> ControlFlow<FinishReason> + 'o;

/// See the module.
#[derive(Debug)]
pub struct Sequence {
    policy: Resolved,
    plan: Plan,
    vocab: usize,
    noise: Noise,
    prompt: Vec<i32>,
    /// Slots of the caches: its own and, with guidance, that of the sequence whose prompt is masked.
    slots: Vec<usize>,
    ids: Vec<i32>,
    adjust: Option<Adjust>,
    /// Positions before this one will not change any more.
    settled: usize,
    stored: usize,
    /// Positions in front of the current block that have no cache row.
    hidden: usize,
    stage: Stage,
    /// The block that is being decoded, or comes next.
    block: usize,
    steps: Steps,
    /// Logits of the row before the current block, where the policy asks for it.
    before: Vec<f32>,
    sampler: Sampler,
    /// Keeps the answer within a constraint.
    guide: Option<Guide>,
    passes: Passes,
    times: Times,
    /// Changes that are made in place of what passes decide, one entry each.
    course: Option<VecDeque<Vec<Change>>>,
    /// The pass that has been asked for.
    wanted: Option<Pass>,
    outcome: Option<Result<FinishReason, DecodeError>>,
}

/// Where a decode is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Filling the caches with what lies behind that cut of the prefill.
    Prefill { cut: usize },
    /// Before a block.
    Block,
    /// Filling the caches with the whole sequence, for a block.
    Open,
    /// Deciding the sub-block that begins at `start`. `filled` says whether the caches hold the block's rows.
    Part { start: usize, filled: bool },
    /// Every position of the block is decided.
    Decided,
    /// Writing the block's permanent cache rows.
    Commit,
}

/// How far a block's schedule has come.
#[derive(Debug, Default)]
struct Steps {
    due: Vec<Due>,
    taken: usize,
    /// Positions that the steps so far left of their quotas.
    left: usize,
    /// Steps after which the rule is overruled.
    limit: usize,
}

/// Why a decode does not go on.
enum Halt {
    Finish(FinishReason),
    Error(DecodeError),
}

impl<E: Into<DecodeError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Error(error.into())
    }
}

impl Sequence {
    /// A decode of `max_new` tokens after `prompt`; see [`decode`](super::decode). It lies in `slots` of the executor's
    /// caches, [`Resolved::slots`] of them, which nobody else uses meanwhile.
    ///
    /// # Errors
    /// An unusable prompt.
    pub fn new(
        policy: Resolved,
        executor: &dyn Executor,
        prompt: &[i32],
        max_new: usize,
        held: usize,
        slots: Vec<usize>,
        noise: Noise,
    ) -> Result<Self, DecodeError> {
        assert_eq!(slots.len(), policy.slots(), "slots of a sequence");
        let plan = Plan::new(&policy, executor, prompt, max_new, held)?;
        let mask = policy.policy.mask_id;
        let guide = match &policy.constraint {
            Some(_) if prompt.contains(&mask) => return Err(DecodeError::ConstrainedInfill),
            Some(constraint) => {
                let end = prompt.len().saturating_add(max_new).min(plan.end);
                let (shortest, room) = (constraint.automaton().shortest(0), end - prompt.len());
                if shortest > room {
                    return Err(DecodeError::NoRoom { shortest, room, asked: max_new });
                }
                Some(Guide::new(Arc::clone(constraint), &policy.policy, executor.vocab(), prompt.len()..end))
            }
            None => None,
        };
        let mut ids = prompt.to_vec();
        ids.resize(plan.end, mask);
        Ok(Self {
            vocab: executor.vocab(),
            noise,
            adjust: Adjust::new(&policy.policy, prompt),
            prompt: prompt.to_vec(),
            slots,
            ids,
            settled: prompt.iter().position(|&id| id == mask).unwrap_or(prompt.len()),
            stored: plan.prefill[0],
            hidden: 0,
            stage: Stage::Prefill { cut: 0 },
            block: 0,
            steps: Steps::default(),
            before: Vec::new(),
            sampler: Sampler::default(),
            guide,
            passes: Passes::default(),
            times: Times::default(),
            course: None,
            wanted: None,
            outcome: None,
            policy,
            plan,
        })
    }

    /// The pass that comes next, announced to `observer` when first asked for; `None` at the end.
    pub fn want(&mut self, observer: &mut Observer<'_>) -> Option<&Pass> {
        if self.wanted.is_none() && self.outcome.is_none() {
            match self.advance(observer) {
                Ok(pass) => self.wanted = Some(pass),
                Err(halt) => self.end(halt),
            }
        }
        self.wanted()
    }

    /// The pass that [`Sequence::want`] asked for and nobody has answered.
    pub fn wanted(&self) -> Option<&Pass> {
        self.wanted.as_ref().filter(|_| self.outcome.is_none())
    }

    /// Its first tokens, whose rows the caches hold for good.
    pub fn stored(&self) -> &[i32] {
        &self.ids[..self.stored]
    }

    /// Its first tokens, whose rows the caches hold once the prompt has been read.
    pub fn prefilled(&self) -> &[i32] {
        &self.ids[..self.plan.prefill.last().copied().unwrap_or(0)]
    }

    /// Takes what the wanted pass said of its rows.
    pub fn took(&mut self, rows: Rows<'_>, observer: &mut Observer<'_>) {
        let Some(pass) = self.wanted.take() else { return };
        if let Err(halt) = self.apply(&pass, rows, observer) {
            self.end(halt);
        }
    }

    /// Ends the decode with an error.
    pub fn fail(&mut self, error: DecodeError) {
        self.end(Halt::Error(error));
    }

    /// Adds to its times what the wanted pass cost.
    pub fn spent(&mut self, step: Duration, head: Duration) {
        let Some(pass) = &self.wanted else { return };
        *match pass.kind() {
            ForwardKind::Prefill => &mut self.times.prefill,
            ForwardKind::Commit => &mut self.times.commit,
            _ => &mut self.times.step,
        } += step;
        self.times.head += head;
    }

    /// What it made. A decode that has not ended counts as cancelled.
    ///
    /// # Errors
    /// What it failed with.
    pub fn finish(self) -> Result<Decoded, DecodeError> {
        let finish = self.outcome.unwrap_or(Ok(FinishReason::Cancelled))?;
        let Self { ids, settled, stored, plan, passes, times, .. } = self;
        Ok(Decoded { ids, settled, stored, held: plan.prefill[0], finish, passes, times })
    }

    fn end(&mut self, halt: Halt) {
        self.outcome.get_or_insert(match halt {
            Halt::Finish(reason) => Ok(reason),
            Halt::Error(error) => Err(error),
        });
    }

    /// Goes on to the next pass.
    fn advance(&mut self, observer: &mut Observer<'_>) -> Result<Pass, Halt> {
        loop {
            let pass = match self.stage {
                Stage::Prefill { cut } => self.prefill(cut),
                Stage::Block => self.begin_block()?,
                Stage::Open => Some(self.open()),
                Stage::Part { start, filled } => self.part(start, filled, observer)?,
                Stage::Decided => self.decided(observer)?,
                Stage::Commit => self.commit(observer)?,
            };
            let Some(pass) = pass else { continue };
            let Window { kind, ref cells, past_len, .. } = pass.window;
            let (q_start, q_len) = (cells.start, cells.len());
            self.tell(observer, |ids| Moment::Forward(Forward { kind, q_start, q_len, past_len, ids, pass: &pass }))?;
            return Ok(pass);
        }
    }

    /// Takes in what a pass said.
    fn apply(&mut self, pass: &Pass, rows: Rows<'_>, observer: &mut Observer<'_>) -> Result<(), Halt> {
        let rows = self.guided(pass, rows)?;
        *match pass.kind() {
            ForwardKind::Prefill => &mut self.passes.prefill,
            ForwardKind::Commit => &mut self.passes.commit,
            _ => &mut self.passes.denoise,
        } += 1;
        match self.stage {
            Stage::Prefill { cut } => {
                self.store(pass, rows, observer)?;
                self.stage = Stage::Prefill { cut: cut + 1 };
            }
            Stage::Open if self.policy.policy.lead != Lead::None => {
                self.steps.taken += 1;
                self.lead(pass, rows, observer)?;
                self.stage = self.first_part(false);
            }
            Stage::Open => {
                self.denoise(pass, rows, observer)?;
                self.stage = self.first_part(false);
            }
            Stage::Part { start, .. } => {
                self.stage = Stage::Part { start, filled: true };
                self.denoise(pass, rows, observer)?;
                let cells = self.current().cells.clone();
                if self.policy.policy.stop_at == StopAt::Revealed && self.stop_in(&cells).is_some() {
                    let undecided = self.masked(&cells).first().copied().unwrap_or(cells.end);
                    self.settle(undecided, observer)?;
                    return Err(Halt::Finish(FinishReason::StopId));
                }
            }
            Stage::Commit => {
                self.store(pass, rows, observer)?;
                self.committed(observer)?;
            }
            Stage::Block | Stage::Decided => unreachable!("these stages want no pass"),
        }
        Ok(())
    }

    fn prefill(&mut self, cut: usize) -> Option<Pass> {
        let after = Stage::Prefill { cut: cut + 1 };
        match self.plan.prefill[cut..] {
            // The last part leads.
            [start, end] => self.fill(ForwardKind::Prefill, start..end, Some(end), after),
            [start, end, ..] => self.fill(ForwardKind::Prefill, start..end, None, after),
            _ => {
                self.stage = Stage::Block;
                None
            }
        }
    }

    /// A pass that fills the caches with `cells`; its last row decides position `led`, if the policy has a lead and the
    /// position is undecided. When every cell is hidden there is nothing to run, and the next stage is `after`.
    fn fill(&mut self, kind: ForwardKind, cells: Range<usize>, led: Option<usize>, after: Stage) -> Option<Pass> {
        let policy = &self.policy.policy;
        let fed = self.fed(&cells).len();
        if fed == 0 {
            self.hidden += cells.len();
            self.stored = cells.end;
            self.stage = after;
            return None;
        }
        let led = led.filter(|&led| policy.lead != Lead::None && self.ids.get(led) == Some(&policy.mask_id));
        let looks = led.is_some() || policy.first_row == FirstRow::Before;
        let rows = if looks { vec![fed - 1] } else { Vec::new() };
        Some(self.pass(Window::stores(kind, cells), rows, led.into_iter().collect()))
    }

    /// After a pass that filled the caches.
    fn store(&mut self, pass: &Pass, mut rows: Rows<'_>, observer: &mut Observer<'_>) -> Result<(), Halt> {
        if let (FirstRow::Before, Rows::Logits(logits)) = (self.policy.policy.first_row, &mut rows) {
            self.before.clear();
            self.before.extend_from_slice(logits);
        }
        let cells = &pass.window.cells;
        // Counted before the lead is decided, which may decide a hidden token.
        let fed = pass.fed[0].ids.len();
        self.stored = cells.end;
        self.lead(pass, rows, observer)?;
        self.hidden += cells.len() - fed;
        Ok(())
    }

    /// Plans the schedule of the next block.
    fn begin_block(&mut self) -> Result<Option<Pass>, Halt> {
        let Some(block) = self.plan.blocks.get(self.block) else { return Err(Halt::Finish(self.plan.finish)) };
        let cells = block.cells.clone();
        let masked = self.masked(&cells).len();
        self.stage = Stage::Decided;
        if masked > 0 {
            let Resolved { policy, schedule, schedule_params: params, .. } = &self.policy;
            let plan = schedule::Plan { masked, block: cells.len(), steps: policy.steps, params };
            let mut due = (schedule.due)(&plan);
            // A rule that draws reveals nothing in a step that is due nothing; behind the last one it reveals the rest.
            while self.policy.rule.random && due.last() == Some(&Due::Count(0)) {
                due.pop();
            }
            let limit = due.len() + cells.len();
            self.steps = Steps { due, taken: 0, left: 0, limit };
            let opens = matches!(policy.cache, CacheMode::Prefix | CacheMode::Dual);
            self.stage = if opens { Stage::Open } else { self.first_part(false) };
        }
        Ok(None)
    }

    /// The pass over the whole sequence that fills the caches for a block.
    fn open(&self) -> Pass {
        let cells = self.current().cells.clone();
        if self.policy.policy.lead == Lead::None {
            return self.looks_at(Window::full(self.plan.end), self.masked(&cells));
        }
        let first = cells.start;
        let undecided = (self.ids[first] == self.policy.policy.mask_id).then_some(first);
        let rows = undecided.iter().map(|first| first.saturating_sub(self.policy.policy.logit_shift)).collect();
        self.pass(Window::full(self.plan.end), rows, undecided.into_iter().collect())
    }

    /// A pass over a sub-block that has undecided positions.
    fn part(&mut self, start: usize, filled: bool, observer: &mut Observer<'_>) -> Result<Option<Pass>, Halt> {
        let block = self.current().clone();
        let part = self.part_at(start);
        let masked = self.masked(&part);
        if !masked.is_empty() {
            if self.policy.policy.stop_at == StopAt::Settled {
                self.stop_settled(&block, observer)?;
            }
            return Ok(Some(self.looks_at(self.window(&block, &part, filled), masked)));
        }
        self.settle(part.end, observer)?;
        if self.policy.policy.stop_at == StopAt::SubBlock {
            self.stop_within(&part)?;
        }
        let more = part.end < block.cells.end;
        self.stage = if more { Stage::Part { start: part.end, filled } } else { Stage::Decided };
        Ok(None)
    }

    fn decided(&mut self, observer: &mut Observer<'_>) -> Result<Option<Pass>, Halt> {
        let cells = self.current().cells.clone();
        self.settle(cells.end, observer)?;
        if self.policy.policy.cache != CacheMode::CommitBlock {
            self.stop_within(&cells)?;
        }
        self.stage = Stage::Commit;
        Ok(None)
    }

    fn commit(&mut self, observer: &mut Observer<'_>) -> Result<Option<Pass>, Halt> {
        let last = self.block + 1 == self.plan.blocks.len();
        let cells = self.current().cells.clone();
        let commits = match self.policy.policy.cache {
            CacheMode::CommitBlock => true,
            CacheMode::CommitBetween => !last,
            CacheMode::None | CacheMode::Prefix | CacheMode::Dual => false,
        };
        if !commits {
            (self.block, self.stage) = (self.block + 1, Stage::Block);
            return Ok(None);
        }
        let led = (!last).then_some(cells.end);
        let pass = self.fill(ForwardKind::Commit, cells, led, Stage::Commit);
        if pass.is_none() {
            self.committed(observer)?;
        }
        Ok(pass)
    }

    /// The block is in the caches for good.
    fn committed(&mut self, observer: &mut Observer<'_>) -> Result<(), Halt> {
        let Range { start, end } = self.current().cells;
        self.tell(observer, |_| Moment::Committed { start, end })?;
        if self.policy.policy.cache == CacheMode::CommitBlock {
            self.stop_within(&(start..end))?;
        }
        (self.block, self.stage) = (self.block + 1, Stage::Block);
        Ok(())
    }

    fn current(&self) -> &Block {
        &self.plan.blocks[self.block]
    }

    fn first_part(&self, filled: bool) -> Stage {
        Stage::Part { start: self.current().cells.start, filled }
    }

    /// The sub-block that begins at `start`, or the block.
    fn part_at(&self, start: usize) -> Range<usize> {
        let cells = &self.current().cells;
        let length = self.policy.policy.sub_block.map_or(cells.len(), |sub| sub.length);
        start..cells.end.min(start + length)
    }

    fn masked(&self, cells: &Range<usize>) -> Vec<usize> {
        cells.clone().filter(|&position| self.ids[position] == self.policy.policy.mask_id).collect()
    }

    fn settle(&mut self, end: usize, observer: &mut Observer<'_>) -> Result<(), Halt> {
        if end <= self.settled {
            return Ok(());
        }
        self.settled = end;
        self.tell(observer, |ids| Moment::Settled { ids, end })
    }

    fn tell<'s>(
        &'s self,
        observer: &mut Observer<'_>,
        moment: impl FnOnce(&'s [i32]) -> Moment<'s>,
    ) -> Result<(), Halt> {
        match observer(moment(&self.ids)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(reason) => Err(Halt::Finish(reason)),
        }
    }

    /// The first stop token among the decoded positions of `cells`.
    fn stop_in(&self, cells: &Range<usize>) -> Option<usize> {
        let policy = &self.policy.policy;
        cells.clone().find(|&position| {
            let decoded = self.prompt.get(position).is_none_or(|&id| id == policy.mask_id);
            decoded && policy.stop_ids.contains(&self.ids[position])
        })
    }

    fn stop_within(&self, cells: &Range<usize>) -> Result<(), Halt> {
        self.stop_in(cells).map_or(Ok(()), |_| Err(Halt::Finish(FinishReason::StopId)))
    }

    /// Ends when nothing before the block's first stop token is undecided.
    fn stop_settled(&mut self, block: &Block, observer: &mut Observer<'_>) -> Result<(), Halt> {
        match self.stop_in(&block.cells) {
            Some(stop) if self.masked(&(block.cells.start..stop)).is_empty() => {
                self.settle(stop + 1, observer)?;
                Err(Halt::Finish(FinishReason::StopId))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
