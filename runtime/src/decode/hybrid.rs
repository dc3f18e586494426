//! Hybrid decoding: a diffusion model drafts several tokens in one pass, a model with causal rows verifies them in one pass.
//!
//! What comes out has the law of the verifier decoding alone, whatever the drafter says: at temperature 0 its very tokens,
//! otherwise its distribution. The rules are in [`accept`], why they are exact and where they would not be in
//! `docs/hybrid.md`. Like a [`Sequence`](super::Sequence), a [`Hybrid`] is a state machine that asks for passes – of either
//! model – and is given what they said; [`speculate`] runs one.
//!
//! Invariant: a round gives at least one token, and nothing that a request asks for is left out of the verifier's law. The
//! caches of both sides hold rows of tokens that stay, and behind them what the next pass overwrites.

pub mod accept;
mod controller;
mod costs;
mod counts;
mod drafter;
mod verifier;

use std::ops::ControlFlow;

pub use controller::Controller;
pub use costs::{CostTable, Side};
pub use counts::{Counts, Tried};
pub use drafter::Method;

use self::accept::{Proposal, bonus};
use self::drafter::Drafter;
use self::verifier::Verifier;
use super::driver::{Cost, Driver};
use super::error::{DecodeError, FinishReason};
use super::noise::{Noise, NoiseRow, Stream};
use super::pass::{ForwardKind, Pass, Rows};
use super::policy::{DecodePolicy, Reveal};
use super::resolve::Resolved;
use super::sample::Sampler;
use super::sequence::{Decoded, Observer};
use super::trace::{Forward, Moment, Passes, Times};
use crate::exec::Executor;

/// How many tokens are drafted at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Always so many, as far as there is room.
    Fixed(usize),
    /// What makes most tokens per second, also none.
    Auto,
}

/// Who says whether a drafted token is accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The verifier, by the rule that keeps its law.
    Verifier,
    /// A coin with this probability, to measure speed at a given acceptance. What comes out is nobody's text.
    Coin(f64),
}

/// What a call does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How drafts are made.
    pub method: Method,
    /// How long they are.
    pub length: Length,
    /// Which positions a pass of several reveals; a threshold of 0.9 if not given.
    pub reveal: Option<Reveal>,
    /// Who accepts.
    pub verdict: Verdict,
}

/// The models of a call.
pub enum Models<'e> {
    /// A drafter with its policy, and the rows of so many first tokens of the prompt that its first slot holds.
    Two {
        /// Runs the drafter.
        draft: &'e mut dyn Executor,
        /// Its own policy.
        policy: &'e DecodePolicy,
        /// Positions whose rows it has.
        held: usize,
        /// Runs the verifier.
        verify: &'e mut dyn Executor,
    },
    /// One that drafts with its own mask and verifies with causal rows, in a slot each.
    One(&'e mut dyn Executor),
}

/// What was decoded, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Speculated {
    /// As of any decode. `stored` counts rows of the verifier.
    pub decoded: Decoded,
    /// Positions before this one have their permanent rows in the drafter's caches.
    pub drafter_stored: usize,
    /// What speculation made and cost.
    pub counts: Counts,
    /// Tokens that the verifier knows and never chose, because they mean something else to the drafter, or nothing.
    pub banned: Vec<i32>,
}

/// Decodes up to `max_new` tokens after `prompt` as the verifier would, whose policy `policy` is.
///
/// # Errors
/// Models that cannot work together on this request; whatever an executor reports later.
#[allow(clippy::too_many_arguments, reason = "they are those of `decode`, and the two that speculation adds")]
pub fn speculate(
    models: Models<'_>,
    policy: Resolved,
    plan: &Plan,
    controller: &mut Controller,
    prompt: &[i32],
    max_new: usize,
    held: usize,
    observer: &mut Observer<'_>,
) -> Result<Speculated, DecodeError> {
    match models {
        Models::Two { draft, policy: own, held: drafted, verify } => {
            let banned = banned(own, &*draft, &*verify);
            let verifier = Verifier::new(policy, banned, &*verify, 0)?;
            let drafter = Drafter::new(own, &verifier, &*draft, plan.method, plan.reveal.clone(), 0)?;
            let mut hybrid = Hybrid::new(drafter, verifier, plan, prompt, max_new)?;
            hybrid.keep(drafted, held);
            let (mut draft, mut verify) = (Driver::new(draft), Driver::new(verify));
            hybrid.run(
                &mut |side, pass, take| match side {
                    Side::Draft => draft.alone(pass, take),
                    Side::Verify => verify.alone(pass, take),
                },
                controller,
                observer,
            )?;
            hybrid.finish()
        }
        Models::One(executor) => {
            executor.reserve(2)?;
            let own = policy.policy.clone();
            let verifier = Verifier::new(policy, Vec::new(), &*executor, 1)?;
            let drafter = Drafter::new(&own, &verifier, &*executor, plan.method, plan.reveal.clone(), 0)?;
            let mut hybrid = Hybrid::new(drafter, verifier, plan, prompt, max_new)?;
            hybrid.keep(held, 0);
            let mut driver = Driver::new(executor);
            hybrid.run(&mut |_, pass, take| driver.alone(pass, take), controller, observer)?;
            hybrid.finish()
        }
    }
}

/// Tokens that the verifier must not choose: the drafter would read its mask as a place to fill in, and knows nothing of ids
/// beyond its own.
fn banned(drafter: &DecodePolicy, draft: &dyn Executor, verify: &dyn Executor) -> Vec<i32> {
    let vocab = |executor: &dyn Executor| i32::try_from(executor.vocab()).unwrap_or(i32::MAX);
    let mask = Some(drafter.mask_id).filter(|id| (0..vocab(verify)).contains(id));
    let mut banned: Vec<i32> = mask.into_iter().chain(vocab(draft)..vocab(verify)).collect();
    banned.dedup();
    banned
}

/// Where a decode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Filling the verifier's caches.
    Prefill,
    /// Before a round.
    Choose,
    /// Drafting.
    Draft,
    /// Verifying.
    Verify,
}

/// What runs a pass of one of the models.
type Runner<'r> = dyn FnMut(Side, &Pass, &mut dyn FnMut(Rows<'_>, Cost) -> Result<(), Halt>) -> Result<Result<(), Halt>, DecodeError>
    + 'r;

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

/// See the module.
#[derive(Debug)]
struct Hybrid {
    drafter: Drafter,
    verifier: Verifier,
    length: Length,
    verdict: Verdict,
    /// The tokens that are decided, prompt included.
    ids: Vec<i32>,
    /// Length of the sequence at the end, and why it ends there.
    end: usize,
    finish: FinishReason,
    /// Positions of the prompt whose rows the verifier had.
    held: usize,
    stage: Stage,
    /// Number of the round, for random numbers.
    round: usize,
    sampler: Sampler,
    counts: Counts,
    passes: Passes,
    times: Times,
    outcome: Option<FinishReason>,
}

impl Hybrid {
    fn new(
        drafter: Drafter,
        verifier: Verifier,
        plan: &Plan,
        prompt: &[i32],
        max_new: usize,
    ) -> Result<Self, DecodeError> {
        let (rows, length) = (verifier.max_seq, prompt.len());
        if prompt.is_empty() {
            return Err(DecodeError::EmptyPrompt);
        }
        if max_new == 0 {
            return Err(DecodeError::ZeroMaxNew);
        }
        if length >= rows {
            return Err(DecodeError::PromptTooLong { prompt: length, max_seq: rows, longest: rows.saturating_sub(1) });
        }
        let bad = |&(_, &id): &(usize, &i32)| usize::try_from(id).map_or(true, |id| id >= verifier.vocab);
        if let Some((position, &id)) = prompt.iter().enumerate().find(bad) {
            return Err(DecodeError::TokenId { position, id });
        }
        if let Some((position, id)) = drafter.refuses(prompt) {
            return Err(DecodeError::NotForDrafter { position, id });
        }
        if let Length::Fixed(k) = plan.length {
            let (longest, most) = (verifier.step(), drafter.step());
            if k > longest || k > most {
                return Err(DecodeError::DraftTooLong { draft: k, longest: longest.min(most) });
            }
        }
        let wanted = length.saturating_add(max_new);
        let finish = if wanted > rows { FinishReason::ContextFull } else { FinishReason::MaxTokens };
        Ok(Self {
            drafter,
            verifier,
            length: plan.length,
            verdict: plan.verdict,
            ids: prompt.to_vec(),
            end: wanted.min(rows),
            finish,
            held: 0,
            stage: Stage::Prefill,
            round: 0,
            sampler: Sampler::default(),
            counts: Counts::default(),
            passes: Passes::default(),
            times: Times::default(),
            outcome: None,
        })
    }

    /// Takes over the rows of first positions that the slots of both sides hold.
    fn keep(&mut self, drafter: usize, verifier: usize) {
        self.drafter.keep(drafter, self.ids.len());
        self.verifier.keep(verifier, self.ids.len());
        self.held = self.verifier.stored;
    }

    /// Runs it to its end.
    fn run(
        &mut self,
        runner: &mut Runner<'_>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), DecodeError> {
        while self.outcome.is_none() {
            match self.pass(runner, controller, observer) {
                Ok(()) => {}
                Err(Halt::Finish(reason)) => self.outcome = Some(reason),
                Err(Halt::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// One pass of either side.
    fn pass(
        &mut self,
        runner: &mut Runner<'_>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        let (side, pass) = self.want(controller)?;
        let (kind, cells) = (pass.kind(), &pass.window.cells);
        let (q_start, q_len, past_len) = (cells.start, cells.len(), pass.window.past_len);
        let forward = Forward { kind, q_start, q_len, past_len, ids: &self.ids, pass: &pass };
        tell(observer, Moment::Forward(forward))?;
        runner(side, &pass, &mut |rows, cost| {
            self.spent(side, &pass, cost, controller);
            self.took(&pass, rows, controller, observer)
        })?
    }

    /// The pass that comes next.
    fn want(&mut self, controller: &mut Controller) -> Result<(Side, Pass), Halt> {
        if self.stage == Stage::Prefill {
            match self.verifier.prefill(&self.ids) {
                Some(pass) => return Ok((Side::Verify, pass)),
                None => self.stage = Stage::Choose,
            }
        }
        if self.stage == Stage::Choose {
            if self.ids.len() >= self.end {
                return Err(Halt::Finish(self.finish));
            }
            let n = self.ids.len();
            let k = self.choose(controller);
            self.drafter.begin(n, k);
            self.stage = if k > 0 { Stage::Draft } else { Stage::Verify };
        }
        if self.stage == Stage::Draft {
            return Ok((Side::Draft, self.drafter.pass(&self.ids)));
        }
        let tokens = self.drafter.draft().tokens();
        Ok((Side::Verify, self.verifier.pass(&self.ids, &tokens)))
    }

    /// Length of the next draft. The last token needs none: the verifier gives one more than it is asked about.
    fn choose(&mut self, controller: &mut Controller) -> usize {
        let n = self.ids.len();
        let wanted = (self.end - n - 1).min(self.verifier.longest(n));
        let wanted = if let Length::Fixed(k) = self.length { k.min(wanted) } else { wanted };
        let room = self.drafter.longest(n, wanted);
        self.counts.no_room += usize::from(room == 0 && wanted > 0);
        match self.length {
            Length::Fixed(_) => room,
            Length::Auto => controller.choose(room, &|k| self.drafter.rows(n, k)),
        }
    }

    fn spent(&mut self, side: Side, pass: &Pass, cost: Cost, controller: &mut Controller) {
        let Cost { step, head } = cost;
        let prefills = pass.kind() == ForwardKind::Prefill;
        let time = match (side, prefills) {
            (Side::Verify, true) => &mut self.times.prefill,
            (Side::Verify, false) => &mut self.times.commit,
            (Side::Draft, _) => &mut self.times.step,
        };
        *time += step;
        self.times.head += head;
        match side {
            Side::Draft => self.counts.draft += step + head,
            Side::Verify if prefills => {}
            Side::Verify => self.counts.verify += step + head,
        }
        if !prefills {
            controller.spent(side, pass.window.cells.len(), step + head);
        }
    }

    /// Takes in what a pass said.
    fn took(
        &mut self,
        pass: &Pass,
        rows: Rows<'_>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        match self.stage {
            Stage::Prefill => {
                self.passes.prefill += 1;
                self.verifier.stored = pass.window.cells.end;
                Ok(())
            }
            Stage::Draft => {
                self.passes.denoise += 1;
                self.counts.draft_passes += 1;
                self.drafted(pass, &rows, controller, observer)
            }
            Stage::Choose | Stage::Verify => {
                self.passes.commit += 1;
                self.counts.verify_passes += 1;
                self.judged(&rows, controller, observer)
            }
        }
    }

    fn drafted(
        &mut self,
        pass: &Pass,
        rows: &Rows<'_>,
        controller: &Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        let Self { drafter, sampler, round, .. } = self;
        drafter.took(pass, rows, sampler, *round)?;
        if !self.drafter.draft().is_complete() {
            return Ok(());
        }
        if self.length == Length::Auto {
            let entropies = self.drafter.draft().entropies();
            self.drafter.draft().truncate(controller.cut(&entropies));
        }
        let tokens = self.drafter.draft().tokens();
        self.stage = Stage::Verify;
        tell(observer, Moment::Drafted { ids: &self.ids, tokens: &tokens })
    }

    /// Decides the tokens of a round.
    fn judged(
        &mut self,
        rows: &Rows<'_>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        let n = self.ids.len();
        let proposals: Vec<Proposal> = self.drafter.draft().proposals().cloned().collect();
        let (mut tokens, mut accepted) = (Vec::new(), 0);
        // One row for every proposal, and one more.
        for row in 0..=proposals.len() {
            let proposal = proposals.get(row);
            let Some((token, kept)) = self.decide(rows, row, proposal)? else { break };
            tokens.push(token);
            accepted += usize::from(kept);
            if !kept {
                break;
            }
        }
        let mut tried = (accepted + 1).min(proposals.len()).min(tokens.len());
        let stop = tokens.iter().position(|token| self.verifier.policy.policy.stop_ids.contains(token));
        if let Some(stop) = stop {
            // Nothing behind the first stop counts.
            tokens.truncate(stop + 1);
            (accepted, tried) = (accepted.min(stop + 1), tried.min(stop + 1));
        }
        self.counts.round(proposals.len(), tried, accepted, tokens.len());
        let entropies = self.drafter.draft().entropies();
        controller.learn(&entropies[..tried], accepted);
        (self.round, self.stage) = (self.round + 1, Stage::Choose);
        let drafted: Vec<i32> = proposals.iter().map(|proposal| proposal.token).collect();
        tell(observer, Moment::Judged { ids: &self.ids, drafted: &drafted, accepted, tokens: &tokens })?;
        self.ids.extend(&tokens);
        self.verifier.stored = self.ids.len() - 1;
        if self.ids.len() > n {
            tell(observer, Moment::Settled { ids: &self.ids, end: self.ids.len() })?;
        }
        if stop.is_some() { Err(Halt::Finish(FinishReason::StopId)) } else { Ok(()) }
    }

    /// The token behind row `row`, and whether it is the proposed one. `None` when the pass does not say, and the next will.
    fn decide(
        &mut self,
        rows: &Rows<'_>,
        row: usize,
        proposal: Option<&Proposal>,
    ) -> Result<Option<(i32, bool)>, Halt> {
        let position = self.ids.len() + row;
        let at = NoiseRow { pass: self.round, position };
        let Self { verifier, sampler, .. } = self;
        let policy = &verifier.policy.policy;
        let (seed, greedy) = (policy.seed, policy.is_greedy());
        let bad = || DecodeError::BadRow { position };
        if let (Verdict::Coin(chance), Some(proposal)) = (self.verdict, proposal) {
            // Everything is computed as ever; only the verdict is another.
            let own = verifier.choose(rows, row, sampler, at)?.unwrap_or(proposal.token);
            let variate = Noise::Stream(seed, Stream::Accept).of_position(at).ok_or_else(bad)?;
            let kept = f64::from(variate) > -libm::log(chance);
            return Ok(Some((if kept { proposal.token } else { own }, kept)));
        }
        if greedy {
            let best = verifier.best(rows, row, sampler, position)?;
            return Ok(best.map(|best| (best, proposal.is_some_and(|proposal| proposal.token == best))));
        }
        let law = verifier.law(rows, row, sampler).ok_or_else(bad)?;
        let decided = match proposal {
            Some(proposal) => proposal.judge(&law, seed, at),
            None => bonus(&law, seed, at).map(|token| (token, false)),
        };
        Ok(Some(decided.ok_or_else(bad)?))
    }

    /// What it made.
    fn finish(self) -> Result<Speculated, DecodeError> {
        let settled = self.ids.len();
        let decoded = Decoded {
            settled,
            stored: self.verifier.stored.min(settled),
            held: self.held,
            finish: self.outcome.unwrap_or(FinishReason::Cancelled),
            passes: self.passes,
            times: self.times,
            ids: self.ids,
        };
        let drafter_stored = self.drafter.stored.min(settled);
        Ok(Speculated { decoded, drafter_stored, counts: self.counts, banned: self.verifier.banned })
    }
}

fn tell(observer: &mut Observer<'_>, moment: Moment<'_>) -> Result<(), Halt> {
    match observer(moment) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(reason) => Err(Halt::Finish(reason)),
    }
}

#[cfg(test)]
mod tests;
