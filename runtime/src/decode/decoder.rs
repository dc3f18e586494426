//! The loop that interprets a decode policy.
//!
//! Invariant: the sequence is one vector of ids in which a position is undecided exactly when it holds the mask id, so a
//! change may reveal, replace or mask a position again. Every forward pass is announced before it runs and can be
//! refused by the observer, which is how cancellation, deadlines, traces and streaming attach. The loop does not know
//! text, and it ends: a rule that has not finished a block within its schedule and one more pass per position is overruled.
//!
//! What runs is planned in `plan`; how a pass becomes calls of the executor is the business of `pass`.

use std::ops::{ControlFlow, Range};

use super::noise::Noise;
use super::pass::{Last, Window};
use super::plan::{Block, Plan};
use super::policy::{CacheMode, DecodePolicy, Lead, StopAt};
use super::resolve::Resolved;
use super::reveal::{Candidate, Change, Pass};
use super::schedule::{self, Due};
use super::trace::{ForwardKind, Moment, Passes, Times};
use super::{DecodeError, FinishReason};
use crate::exec::Executor;

/// What [`decode`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The whole sequence, prompt included, up to the end of the last planned block. After an early end undecided
    /// positions hold the mask id, and tokens that were decided after a stop token are still there.
    pub ids: Vec<i32>,
    /// Positions before this one are decided.
    pub settled: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of passes.
    pub passes: Passes,
    /// Time in the executor.
    pub times: Times,
}

/// Tells the caller what happens; breaking ends the decode with the given reason.
pub(super) type Observer<'o> = dyn FnMut(Moment<'_>) -> ControlFlow<FinishReason> + 'o;

/// Decodes `max_new` tokens after `prompt`, and the masks inside it (infilling). With full attention that is exact;
/// otherwise whole blocks are decoded, and the number of new tokens is rounded up to the end of a block. What the caches
/// cannot hold is left out. With an absolute grid, the first decoded block may begin with the end of the prompt.
///
/// # Errors
/// An unusable prompt or policy before anything runs; whatever the executor reports later.
pub fn decode(
    executor: &mut dyn Executor,
    policy: &DecodePolicy,
    prompt: &[i32],
    max_new: usize,
    noise: &Noise,
    observer: &mut Observer<'_>,
) -> Result<Decoded, DecodeError> {
    let resolved = policy.resolve(executor)?;
    let plan = Plan::new(policy, executor, prompt, max_new)?;
    let mut ids = prompt.to_vec();
    ids.resize(plan.end, policy.mask_id);
    let settled = prompt.iter().position(|&id| id == policy.mask_id).unwrap_or(prompt.len());
    let mut run = Run {
        executor,
        policy,
        resolved,
        plan: &plan,
        noise,
        observer,
        ids,
        prompt,
        settled,
        hidden: 0,
        passes: Passes::default(),
        times: Times::default(),
        logits: Vec::new(),
        before: Vec::new(),
        last: Last::default(),
    };
    let finish = match run.all() {
        Ok(()) => plan.finish,
        Err(halt) => halt.reason()?,
    };
    Ok(Decoded { settled: run.settled, ids: run.ids, finish, passes: run.passes, times: run.times })
}

/// Why a part of the loop did not run to its end.
pub(super) enum Halt {
    Finish(FinishReason),
    Error(DecodeError),
}

impl Halt {
    fn reason(self) -> Result<FinishReason, DecodeError> {
        match self {
            Halt::Finish(reason) => Ok(reason),
            Halt::Error(error) => Err(error),
        }
    }
}

impl<E: Into<DecodeError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Error(error.into())
    }
}

/// A decode in progress.
pub(super) struct Run<'a, 'o> {
    pub(super) executor: &'a mut dyn Executor,
    pub(super) policy: &'a DecodePolicy,
    pub(super) resolved: Resolved,
    pub(super) plan: &'a Plan,
    pub(super) noise: &'a Noise,
    pub(super) observer: &'a mut Observer<'o>,
    pub(super) ids: Vec<i32>,
    pub(super) prompt: &'a [i32],
    /// Positions before this one will not change any more.
    settled: usize,
    /// Positions in front of the current block that have no cache row.
    pub(super) hidden: usize,
    pub(super) passes: Passes,
    pub(super) times: Times,
    /// Logits of the rows that the last pass looked at, `[rows, vocab]`.
    pub(super) logits: Vec<f32>,
    /// Logits of the row before the current block, where the policy asks for it.
    pub(super) before: Vec<f32>,
    /// The last step.
    pub(super) last: Last,
}

/// How far a block's schedule has come.
struct Steps {
    due: Vec<Due>,
    taken: usize,
    /// Positions that the steps so far left of their quotas.
    left: usize,
    /// Steps after which the rule is overruled.
    limit: usize,
}

impl Run<'_, '_> {
    fn all(&mut self) -> Result<(), Halt> {
        let plan = self.plan;
        for cut in plan.prefill.windows(2) {
            let lead = (cut[1] == plan.prefill[plan.prefill.len() - 1]).then_some(cut[1]);
            self.store(ForwardKind::Prefill, cut[0]..cut[1], lead)?;
        }
        for (index, block) in plan.blocks.iter().enumerate() {
            self.block(block)?;
            let last = index + 1 == plan.blocks.len();
            if self.policy.cache == CacheMode::CommitBlock || (self.policy.cache == CacheMode::CommitBetween && !last) {
                self.store(ForwardKind::Commit, block.cells.clone(), (!last).then_some(block.cells.end))?;
                self.tell(|_| Moment::Committed { start: block.cells.start, end: block.cells.end })?;
            }
            if self.policy.cache == CacheMode::CommitBlock {
                self.stop_within(&block.cells)?;
            }
        }
        Ok(())
    }

    /// Decides every position of a block.
    fn block(&mut self, block: &Block) -> Result<(), Halt> {
        let masked = self.masked(&block.cells).len();
        if masked > 0 {
            let plan = schedule::Plan {
                masked,
                block: block.cells.len(),
                steps: self.policy.steps,
                params: &self.resolved.schedule_params,
            };
            let due = (self.resolved.schedule.due)(&plan);
            let limit = due.len() + block.cells.len();
            let mut steps = Steps { due, taken: 0, left: 0, limit };
            if matches!(self.policy.cache, CacheMode::Prefix | CacheMode::Dual) {
                self.open(block, &mut steps)?;
            }
            let length = self.policy.sub_block.map_or(block.cells.len(), |sub| sub.length);
            let mut filled = false;
            for start in block.cells.clone().step_by(length) {
                let part = start..block.cells.end.min(start + length);
                self.part(block, &part, &mut steps, &mut filled)?;
                self.settle(part.end)?;
                if self.policy.stop_at == StopAt::SubBlock {
                    self.stop_within(&part)?;
                }
            }
        }
        self.settle(block.cells.end)?;
        if self.policy.cache == CacheMode::CommitBlock { Ok(()) } else { self.stop_within(&block.cells) }
    }

    /// The pass over the whole sequence that fills the caches for a block.
    fn open(&mut self, block: &Block, steps: &mut Steps) -> Result<(), Halt> {
        let window = Window::full(self.plan.end);
        if self.policy.lead == Lead::None {
            return self.denoise(&window, block, &block.cells, steps);
        }
        steps.taken += 1;
        let first = block.cells.start;
        let rows = [first.saturating_sub(self.policy.logit_shift)];
        let undecided = self.ids[first] == self.policy.mask_id;
        self.run(&window, if undecided { &rows } else { &[] })?;
        if undecided { self.lead(first, &rows) } else { Ok(()) }
    }

    /// Decides every position of a sub-block. `filled` says whether the caches hold the block's rows.
    fn part(&mut self, block: &Block, part: &Range<usize>, steps: &mut Steps, filled: &mut bool) -> Result<(), Halt> {
        while !self.masked(part).is_empty() {
            if self.policy.stop_at == StopAt::Settled {
                self.stop_settled(block)?;
            }
            let window = self.window(block, part, *filled);
            *filled = true;
            self.denoise(&window, block, part, steps)?;
            if self.policy.stop_at == StopAt::Revealed && self.stop_in(&block.cells).is_some() {
                let undecided = self.masked(&block.cells).first().copied().unwrap_or(block.cells.end);
                self.settle(undecided)?;
                return Err(Halt::Finish(FinishReason::StopId));
            }
        }
        Ok(())
    }

    /// The rows that the next pass over a sub-block feeds.
    fn window(&self, block: &Block, part: &Range<usize>, filled: bool) -> Window {
        let fed = block.fed_from..block.cells.end;
        let (kind, cells, past_len, visible) = match self.policy.cache {
            CacheMode::None => return Window::full(self.plan.end),
            CacheMode::Prefix => (ForwardKind::Suffix, fed.start..self.plan.end, fed.start, self.plan.end),
            CacheMode::Dual => (ForwardKind::DualBlock, fed, self.plan.end, self.plan.end),
            CacheMode::CommitBlock | CacheMode::CommitBetween => match self.policy.sub_block {
                Some(sub) if sub.cached && filled && self.ids[part.start] != self.policy.mask_id => {
                    (ForwardKind::SubBlock, part.clone(), fed.start, fed.end)
                }
                Some(sub) if sub.cached => (ForwardKind::BlockRefresh, fed.clone(), fed.start, fed.end),
                _ => (ForwardKind::Block, fed.clone(), fed.start, fed.end),
            },
        };
        Window { kind, cells, past_len, visible }
    }

    /// One denoising step: a pass over `window` that may change the undecided positions of `part`.
    fn denoise(&mut self, window: &Window, block: &Block, part: &Range<usize>, steps: &mut Steps) -> Result<(), Halt> {
        let masked = self.masked(part);
        let candidates = self.candidates(window, &masked)?;
        let due = steps.due.get(steps.taken).copied().unwrap_or(Due::Part(1.0));
        let carried = if self.resolved.rule.carries { steps.left } else { 0 };
        let (quota, part) = (due.count(masked.len()) + carried, due.part(masked.len()));
        let mut changes = Vec::new();
        if steps.taken < steps.limit {
            let pass = Pass { candidates: &candidates, quota, part, params: &self.resolved.params };
            (self.resolved.rule.reveal)(&pass, &mut changes);
        } else {
            changes.extend(candidates.iter().map(|c| Change { position: c.position, token: c.token }));
        }
        steps.taken += 1;
        steps.left = quota.saturating_sub(changes.len());
        for Change { position, token } in changes {
            self.change(position, token);
        }
        self.tell(|ids| Moment::Revealed { ids, start: block.cells.start, end: block.cells.end })
    }

    /// What the model proposes for undecided positions of a pass.
    fn candidates(&mut self, window: &Window, masked: &[usize]) -> Result<Vec<Candidate>, Halt> {
        let random = self.resolved.rule.random || self.resolved.confidence.random;
        let at = self.passes.head;
        let chosen = self.pass(window, masked)?;
        let of = self.resolved.confidence.of;
        let rows = masked.iter().zip(chosen).map(|(&position, drawn)| {
            let noise = if random { self.position_noise(at, position) } else { Some(1.0) };
            let noise = noise.ok_or(DecodeError::BadRow { position })?;
            let confidence = of(&drawn.stats, noise);
            if confidence.is_nan() || drawn.entropy.is_nan() {
                return Err(DecodeError::BadRow { position }.into());
            }
            Ok(Candidate { position, token: drawn.stats.best, confidence, entropy: drawn.entropy, noise })
        });
        rows.collect()
    }

    pub(super) fn change(&mut self, position: usize, token: i32) {
        if self.prompt.get(position).is_none_or(|&id| id == self.policy.mask_id) {
            self.ids[position] = token;
        }
    }

    fn masked(&self, cells: &Range<usize>) -> Vec<usize> {
        cells.clone().filter(|&position| self.ids[position] == self.policy.mask_id).collect()
    }

    fn settle(&mut self, end: usize) -> Result<(), Halt> {
        if end <= self.settled {
            return Ok(());
        }
        self.settled = end;
        self.tell(|ids| Moment::Settled { ids, end })
    }

    pub(super) fn tell<'s>(&'s mut self, moment: impl FnOnce(&'s [i32]) -> Moment<'s>) -> Result<(), Halt> {
        match (self.observer)(moment(&self.ids)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(reason) => Err(Halt::Finish(reason)),
        }
    }

    /// The first stop token among the decoded positions of `cells`.
    fn stop_in(&self, cells: &Range<usize>) -> Option<usize> {
        cells.clone().find(|&position| {
            let decoded = self.prompt.get(position).is_none_or(|&id| id == self.policy.mask_id);
            decoded && self.policy.stop_ids.contains(&self.ids[position])
        })
    }

    fn stop_within(&self, cells: &Range<usize>) -> Result<(), Halt> {
        self.stop_in(cells).map_or(Ok(()), |_| Err(Halt::Finish(FinishReason::StopId)))
    }

    /// Ends when nothing before the block's first stop token is undecided.
    fn stop_settled(&mut self, block: &Block) -> Result<(), Halt> {
        match self.stop_in(&block.cells) {
            Some(stop) if self.masked(&(block.cells.start..stop)).is_empty() => {
                self.settle(stop + 1)?;
                Err(Halt::Finish(FinishReason::StopId))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
