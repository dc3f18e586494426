//! From what a pass said of its rows to tokens: guidance, what the policy changes of logits, choosing, revealing.

use super::super::error::{DecodeError, FinishReason};
use super::super::guide::{Choosing, Guide};
use super::super::noise::{Noise, NoiseRow};
use super::super::pass::{Pass, Rows};
use super::super::policy::{ConfidenceStage, DecodePolicy, FirstRow, Lead};
use super::super::resolve::Resolved;
use super::super::reveal::{self, Candidate, Change};
use super::super::sample::{Choice, Drawn, Logprob, Needs, Sampler};
use super::super::schedule::Due;
use super::super::trace::{Decision, Moment, Why};
use super::{Halt, Observer, Sequence, Stage};
use crate::exec::RowStats;
use std::borrow::Cow;
use std::ops::Range;
use std::time::Instant;

/// How a pass chooses tokens from its rows of logits, which may be done row by row, in any order.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'s> {
    policy: &'s DecodePolicy,
    noise: &'s Noise,
    choice: Choice,
    needs: Needs,
    /// Passes before it that chose tokens.
    pass: usize,
    positions: &'s [usize],
}

impl Chooser<'_> {
    /// Chooses a token from row `index` of those that the pass looks at; `None` as [`Sampler::choose`].
    pub fn choose(&self, sampler: &mut Sampler, index: usize, row: &[f32]) -> Option<Drawn> {
        let at = NoiseRow { pass: self.pass, position: *self.positions.get(index)? };
        sampler.choose(row, self.policy, self.choice, self.needs, self.noise, at)
    }
}

impl Sequence {
    /// How the wanted pass chooses from its logits, if it chooses from each row alone and needs none of them afterwards.
    pub fn chooser(&self) -> Option<Chooser<'_>> {
        let Resolved { policy, needs_logits, logprobs, .. } = &self.policy;
        let again =
            self.adjust.is_some() || self.guide.is_some() || logprobs.is_some() || policy.first_row == FirstRow::Before;
        let alone = *needs_logits && self.slots.len() == 1 && !again;
        let pass = self.wanted().filter(|pass| alone && !pass.positions.is_empty())?;
        let leads = match self.stage {
            Stage::Prefill { .. } | Stage::Commit => true,
            Stage::Open => policy.lead != Lead::None,
            Stage::Block | Stage::Part { .. } | Stage::Decided => false,
        };
        let (choice, needs) = if leads { self.leading() } else { (Choice::AsPolicy, self.policy.needs) };
        let Self { noise, passes, .. } = self;
        Some(Chooser { policy, noise, choice, needs, pass: passes.head, positions: &pass.positions })
    }

    /// How the token of a position that a pass leads to is chosen, and what is read of it.
    fn leading(&self) -> (Choice, Needs) {
        let most_likely = self.policy.policy.lead == Lead::MostLikely;
        (if most_likely { Choice::MostLikely } else { Choice::AsPolicy }, Needs::NOTHING)
    }

    /// With guidance, the logits that both sequences together give, in the place of the second's.
    pub(super) fn guided<'r>(&self, pass: &Pass, rows: Rows<'r>) -> Result<Rows<'r>, Halt> {
        match rows {
            Rows::Logits(logits) if pass.fed.len() > 1 => {
                let scale = self.policy.policy.cfg_scale;
                let (conditional, unconditional) = logits.split_at_mut(logits.len() / 2);
                for (u, c) in unconditional.iter_mut().zip(conditional) {
                    *u += (scale + 1.0) * (*c - *u);
                    if !u.is_finite() {
                        return Err(DecodeError::Guidance { scale }.into());
                    }
                }
                Ok(Rows::Logits(unconditional))
            }
            rows => Ok(rows),
        }
    }

    /// Gives the position that a pass leads to the token that its last row decides.
    pub(super) fn lead(&mut self, pass: &Pass, mut rows: Rows<'_>, observer: &mut Observer<'_>) -> Result<(), Halt> {
        let Some(&position) = pass.positions.first() else { return Ok(()) };
        self.adjust(&[position], &mut None, &mut rows);
        let (choice, needs) = self.leading();
        let chosen = self.choose(&[position], &rows, choice, needs, None)?;
        let changes = [Change { position, token: chosen[0].stats.best }];
        let logprobs = self.logprobs(&[position], &changes, None, &rows, choice)?;
        let decision = Decision {
            why: Why::Lead,
            turn: self.passes.head,
            positions: &[position],
            drawn: &chosen,
            candidates: &[],
            quota: 1,
            part: 1.0,
            changes: &changes,
            logprobs: &logprobs,
        };
        self.passes.head += 1;
        self.make(decision, position..position + 1, observer).map(drop)
    }

    /// Makes the changes of a decision, or those of the course in their place, and tells it. Returns how many were made.
    fn make(
        &mut self,
        decision: Decision<'_>,
        cells: Range<usize>,
        observer: &mut Observer<'_>,
    ) -> Result<usize, Halt> {
        let course = self.course.as_mut().map(|course| course.pop_front().ok_or(Halt::Finish(FinishReason::Cancelled)));
        let mut course = course.transpose()?;
        course.iter_mut().for_each(|changes| changes.retain(|change| cells.contains(&change.position)));
        let changes = course.as_deref().unwrap_or(decision.changes);
        changes.iter().for_each(|change| self.change(*change));
        let Range { start, end } = cells;
        self.tell(observer, |ids| Moment::Revealed { ids, start, end, decision })?;
        Ok(changes.len())
    }

    fn change(&mut self, change: Change) {
        let Self { policy: Resolved { policy, .. }, prompt, ids, adjust, .. } = self;
        if prompt.get(change.position).is_some_and(|&id| id != policy.mask_id) {
            return;
        }
        let before = std::mem::replace(&mut ids[change.position], change.token);
        if let Some(adjust) = adjust {
            adjust.remove(policy, before);
            adjust.add(policy, change.token);
        }
    }

    /// From now on the changes of `course` are made, one entry for every pass that chooses tokens, in place of what passes
    /// decide; what they would have decided is told. Changes outside a pass's block are left out, and where the course ends, so
    /// does the decode.
    pub fn follow(&mut self, course: impl IntoIterator<Item = Vec<Change>>) {
        self.course = Some(course.into_iter().collect());
    }

    /// One denoising step: the pass may change the positions that it looked at.
    pub(super) fn denoise(&mut self, pass: &Pass, mut rows: Rows<'_>, observer: &mut Observer<'_>) -> Result<(), Halt> {
        let masked = &pass.positions[..];
        let turn = self.passes.head;
        // Taken for the call, so that the sampler may be changed meanwhile.
        let before = std::mem::take(&mut self.before);
        let mut first = Self::borrows_first(&before, &pass.window, masked).then_some(Cow::Borrowed(&before[..]));
        self.adjust(masked, &mut first, &mut rows);
        let first = first.as_deref();
        let (drawn, candidates) = self.candidates(masked, &rows, first)?;
        let steps = &mut self.steps;
        let due = steps.due.get(steps.taken).copied().unwrap_or(Due::Part(1.0));
        let carried = if self.policy.rule.carries { steps.left } else { 0 };
        let (quota, part) = (due.count(masked.len()) + carried, due.part(masked.len()));
        let mut changes = Vec::new();
        let why = if steps.taken < steps.limit { Why::Rule } else { Why::Overruled };
        if why == Why::Rule {
            let pass = reveal::Pass { candidates: &candidates, quota, part, params: &self.policy.params };
            (self.policy.rule.reveal)(&pass, &mut changes);
        } else {
            changes.extend(candidates.iter().map(|c| Change { position: c.position, token: c.token }));
        }
        steps.taken += 1;
        let logprobs = self.logprobs(masked, &changes, first, &rows, Choice::AsPolicy)?;
        self.before = before;
        let (positions, drawn, candidates, changes) = (masked, &drawn[..], &candidates[..], &changes[..]);
        let decision = Decision { why, turn, positions, drawn, candidates, quota, part, changes, logprobs: &logprobs };
        let made = self.make(decision, self.current().cells.clone(), observer)?;
        self.steps.left = quota.saturating_sub(made);
        Ok(())
    }

    /// Changes the logits of `positions` as the policy says; `first` stands for the row of the first one.
    fn adjust(&self, positions: &[usize], first: &mut Option<Cow<'_, [f32]>>, rows: &mut Rows<'_>) {
        let (Some(adjust), Rows::Logits(logits)) = (&self.adjust, rows) else { return };
        let first = first.iter_mut().map(|first| &mut first.to_mut()[..]);
        for (&position, row) in positions.iter().zip(first.chain(logits.chunks_exact_mut(self.vocab))) {
            adjust.apply(&self.policy.policy, position, row);
        }
    }

    /// How likely the tokens of `changes` were, if that is to be told; rows are as for [`Sequence::choose`].
    fn logprobs(
        &mut self,
        positions: &[usize],
        changes: &[Change],
        first: Option<&[f32]>,
        rows: &Rows<'_>,
        choice: Choice,
    ) -> Result<Vec<Logprob>, Halt> {
        let (Some(beside), Rows::Logits(logits)) = (self.policy.logprobs, rows) else { return Ok(Vec::new()) };
        let Self { policy: Resolved { policy, .. }, sampler, guide, vocab, .. } = self;
        let plain = choice == Choice::MostLikely || policy.is_greedy();
        // Within a constraint, tokens come from other laws than those of their rows.
        let laws = guide.as_ref().map_or(&[][..], Guide::laws).chunks_exact(*vocab);
        let rows = || laws.clone().chain(first.into_iter().chain(logits.chunks_exact(*vocab)).skip(laws.len()));
        let told = changes.iter().map(|&Change { position, token }| {
            let row = positions.iter().position(|at| *at == position).and_then(|index| rows().nth(index));
            let law = row.and_then(|row| if plain { sampler.plain_law(row, policy) } else { sampler.law(row, policy) });
            Ok(law.ok_or(DecodeError::BadRow { position })?.logprob(token, beside))
        });
        told.collect()
    }

    /// What the model proposes for `positions`; rows are as for [`Sequence::choose`].
    fn candidates(
        &mut self,
        positions: &[usize],
        rows: &Rows<'_>,
        first: Option<&[f32]>,
    ) -> Result<(Vec<Drawn>, Vec<Candidate>), Halt> {
        let random = self.policy.rule.random || self.policy.confidence.random;
        let at = self.passes.head;
        let needs = self.policy.needs;
        let chosen = self.choose(positions, rows, Choice::AsPolicy, needs, first)?;
        self.passes.head += 1;
        let of = self.policy.confidence.of;
        let rows = positions.iter().zip(&chosen).map(|(&position, drawn)| {
            let noise = if random { self.noise.of_position(NoiseRow { pass: at, position }) } else { Some(1.0) };
            let noise = noise.ok_or(DecodeError::BadRow { position })?;
            let confidence = of(&drawn.stats, noise);
            if confidence.is_nan() || (needs.row_entropy && drawn.entropy.is_nan()) {
                return Err(DecodeError::BadRow { position }.into());
            }
            Ok(Candidate { position, token: drawn.stats.best, confidence, entropy: drawn.entropy, noise })
        });
        let candidates = rows.collect::<Result<_, Halt>>()?;
        Ok((chosen, candidates))
    }

    /// Chooses a token for every one of `positions` from their rows; `first` stands for the row of the first one.
    fn choose(
        &mut self,
        positions: &[usize],
        rows: &Rows<'_>,
        choice: Choice,
        needs: Needs,
        first: Option<&[f32]>,
    ) -> Result<Vec<Drawn>, Halt> {
        let begin = Instant::now();
        let vocab = self.vocab;
        let bad = |index: usize| DecodeError::BadRow { position: positions[index] };
        let chosen: Vec<Drawn> = match rows {
            Rows::Logits(logits) => {
                let Resolved { policy, logprobs, .. } = &self.policy;
                let Self { noise, passes, sampler, guide, ids, .. } = self;
                let pass = passes.head;
                let mut rows = first.into_iter().chain(logits.chunks_exact(vocab)).take(positions.len());
                let mut chosen = Vec::with_capacity(positions.len());
                if let Some(guide) = guide {
                    let guided = &positions[..guide.within(positions)];
                    let how = Choosing { policy, choice, needs, noise, pass, tells: logprobs.is_some() };
                    chosen = guide.choose(sampler, ids, guided, rows.by_ref().take(guided.len()), &how)?;
                }
                let chooser = Chooser { policy, noise, choice, needs, pass, positions };
                for (i, row) in (chosen.len()..).zip(rows) {
                    chosen.push(chooser.choose(sampler, i, row).ok_or(bad(i))?);
                }
                chosen
            }
            Rows::Chosen(chosen) => {
                let chosen = chosen.iter().take(positions.len()).enumerate();
                chosen.map(|(i, drawn)| drawn.ok_or(bad(i))).collect::<Result<_, _>>()?
            }
            Rows::Stats(stats) => {
                let policy = &self.policy.policy;
                let certain = policy.top_k == 1 && policy.confidence_stage == ConfidenceStage::AfterFilters;
                let drawn = stats.iter().map(|&stats| {
                    let entropy = stats.entropy;
                    let sure = RowStats { prob: 1.0, margin: 1.0, entropy: 0.0, ..stats };
                    Drawn { stats: if certain { sure } else { stats }, entropy }
                });
                drawn.collect()
            }
        };
        self.times.head += begin.elapsed();
        for (drawn, &position) in chosen.iter().zip(positions) {
            let token = drawn.stats.best;
            if usize::try_from(token).map_or(true, |token| token >= vocab) || token == self.policy.policy.mask_id {
                return Err(DecodeError::BadRow { position }.into());
            }
        }
        Ok(chosen)
    }
}
