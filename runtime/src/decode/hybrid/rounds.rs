//! The rounds of a hybrid decode: drafting, verifying, and what stands in the text afterwards.
//!
//! Invariant: a round that was verified gives at least one token, unless the verifier has to look more closely first. The
//! verifier's slot holds the rows of tokens up to the first one that it has not seen in its place.

use std::ops::ControlFlow;

use super::accept::bonus;
use super::controller::Standing;
use super::drafter::{Drafted, Drafter, Method};
use super::verifier::Verifier;
use super::{Controller, Counts, Length, Plan, Side, Speculated, Verdict};
use crate::decode::adjust::Adjust;
use crate::decode::driver::Cost;
use crate::decode::error::{DecodeError, FinishReason, PolicyError};
use crate::decode::noise::{Noise, NoiseRow, Stream};
use crate::decode::pass::{ForwardKind, Pass, Rows};
use crate::decode::policy::DecodePolicy;
use crate::decode::sample::{Logprob, Sampler};
use crate::decode::sequence::{Decoded, Observer};
use crate::decode::trace::{Forward, Moment, Passes, Times};

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
pub(super) type Runner<'r> = dyn FnMut(Side, &Pass, &mut dyn FnMut(Rows<'_>, Cost) -> Result<(), Halt>) -> Result<Result<(), Halt>, DecodeError>
    + 'r;

/// Why a decode does not go on.
pub(super) enum Halt {
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
pub(super) struct Hybrid {
    drafter: Drafter,
    verifier: Verifier,
    methods: &'static [Method],
    length: Length,
    verdict: Verdict,
    /// The tokens that are decided, prompt included.
    ids: Vec<i32>,
    adjust: Option<Adjust>,
    /// Length of the sequence at the end, and why it ends there.
    end: usize,
    finish: FinishReason,
    /// Positions of the prompt whose rows the verifier had.
    held: usize,
    stage: Stage,
    /// Number of the round, for random numbers.
    round: usize,
    /// What the tokens of its draft were chosen with, also of those that need no verifying.
    entropies: Vec<f32>,
    sampler: Sampler,
    counts: Counts,
    passes: Passes,
    times: Times,
    outcome: Option<FinishReason>,
}

impl Hybrid {
    pub(super) fn new(
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
            if plan.methods.len() > 1 {
                let why = "the way of drafting and the length are chosen together: leave the length out";
                return Err(PolicyError::Conflict { field: "draft_length", value: "fixed", why }.into());
            }
            let (longest, most) = (verifier.step(), drafter.step());
            if k > longest || k > most {
                return Err(DecodeError::DraftTooLong { draft: k, longest: longest.min(most) });
            }
        }
        if verifier.policy.logprobs.is_some() && plan.verdict != Verdict::Verifier {
            let why = "what is taken by another rule than the verifier's was drawn from no law: leave out the rule";
            return Err(PolicyError::Conflict { field: "logprobs", value: "asked for", why }.into());
        }
        let adjust = Adjust::new(&verifier.policy.policy, prompt);
        let wanted = length.saturating_add(max_new);
        let finish = if wanted > rows { FinishReason::ContextFull } else { FinishReason::MaxTokens };
        Ok(Self {
            drafter,
            verifier,
            methods: plan.methods,
            length: plan.length,
            verdict: plan.verdict,
            ids: prompt.to_vec(),
            adjust,
            end: wanted.min(rows),
            finish,
            held: 0,
            stage: Stage::Prefill,
            round: 0,
            entropies: Vec::new(),
            sampler: Sampler::default(),
            counts: Counts::default(),
            passes: Passes::default(),
            times: Times::default(),
            outcome: None,
        })
    }

    /// Takes over the rows of first positions that the slots of both sides hold.
    pub(super) fn keep(&mut self, drafter: usize, verifier: usize) {
        self.drafter.keep(drafter, self.ids.len());
        self.verifier.keep(verifier, self.ids.len());
        self.held = self.verifier.stored;
    }

    /// Runs it to its end.
    pub(super) fn run(
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
        controller.ended(self.counts.tokens);
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
            let (method, k) = self.choose(controller);
            self.drafter.begin(self.ids.len(), method, k);
            self.stage = if k > 0 { Stage::Draft } else { Stage::Verify };
        }
        if self.stage == Stage::Draft {
            return Ok((Side::Draft, self.drafter.pass(&self.ids)));
        }
        let tokens = self.drafter.draft().tokens();
        Ok((Side::Verify, self.verifier.pass(&self.ids, &tokens)))
    }

    /// How the next draft is made, and its length. The last token needs none: the verifier gives one more than it is asked
    /// about.
    fn choose(&mut self, controller: &mut Controller) -> (Method, usize) {
        let n = self.ids.len();
        let wanted = (self.end - n - 1).min(self.verifier.longest(n));
        let wanted = if let Length::Fixed(k) = self.length { k.min(wanted) } else { wanted };
        let room = self.drafter.longest(n, wanted);
        self.counts.no_room += usize::from(room == 0 && wanted > 0);
        match self.length {
            Length::Fixed(_) => (self.methods[0], room),
            Length::Auto => {
                let (rows, behind) = (|k| self.drafter.rows(n, k), self.drafter.behind(n));
                controller.choose(self.methods, &Standing { limit: room, rows: &rows, behind, remaining: self.end - n })
            }
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
        if self.stage == Stage::Draft {
            self.passes.denoise += 1;
            self.counts.draft_passes += 1;
            self.drafted(pass, rows, controller, observer)
        } else if pass.kind() == ForwardKind::Prefill {
            self.passes.prefill += 1;
            self.verifier.stored = pass.window.cells.end;
            Ok(())
        } else {
            self.passes.commit += 1;
            self.counts.verify_passes += 1;
            self.judged(rows, controller, observer)
        }
    }

    fn drafted(
        &mut self,
        pass: &Pass,
        rows: Rows<'_>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        let Self { drafter, sampler, round, adjust, .. } = self;
        drafter.took(pass, rows, adjust.as_ref(), sampler, *round)?;
        let draft = drafter.draft();
        if !draft.is_complete() {
            return Ok(());
        }
        if self.length == Length::Auto {
            draft.truncate(controller.cut(draft.method, &draft.entropies()));
        }
        self.entropies = draft.entropies();
        // Nothing behind a stop counts.
        let stops = &self.verifier.policy.policy.stop_ids;
        if let Some(stop) = draft.tokens().iter().position(|token| stops.contains(token)) {
            draft.truncate(stop + 1);
        }
        let tokens = draft.tokens();
        let sure = matches!(self.verdict, Verdict::Sure(least) if draft.sure(least) == tokens.len());
        tell(observer, Moment::Drafted { ids: &self.ids, tokens: &tokens })?;
        if sure && !tokens.is_empty() {
            self.counts.unverified += 1;
            let kept = vec![true; tokens.len()];
            return self.settle(tokens, kept, Vec::new(), controller, observer);
        }
        self.stage = Stage::Verify;
        Ok(())
    }

    /// Decides the tokens of a round.
    fn judged(
        &mut self,
        mut rows: Rows<'_>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        let drafted: Vec<Drafted> = self.drafter.draft().iter().cloned().collect();
        let sure = if let Verdict::Sure(least) = self.verdict { self.drafter.draft().sure(least) } else { 0 };
        let (mut tokens, mut kept, mut logprobs) = (Vec::new(), Vec::new(), Vec::new());
        // One row for every proposal, and one more.
        for row in 0..=drafted.len() {
            let one = drafted.get(row);
            if let Some(adjust) = &self.adjust {
                self.verifier.adjust(&mut rows, row, adjust, self.ids.len() + row);
            }
            let rows = &rows;
            let surely = |least: f32| one.filter(|one| one.confidence >= least).map(|one| (one.proposal.token, true));
            let decided = match self.verdict {
                _ if row < sure => surely(f32::NEG_INFINITY),
                Verdict::Overwrite(least) => match surely(least) {
                    Some(kept) => Some(kept),
                    None => self.replace(rows, row)?,
                },
                Verdict::TopUp(least) if kept.contains(&false) => surely(least),
                _ => self.decide(rows, row, one)?,
            };
            let Some((token, keeps)) = decided else { break };
            logprobs.extend(self.verifier.logprob(rows, row, &mut self.sampler, token));
            self.count(token, Adjust::add);
            tokens.push(token);
            kept.extend(one.map(|_| keeps));
            if !keeps && !matches!(self.verdict, Verdict::Overwrite(_) | Verdict::TopUp(_)) {
                break;
            }
        }
        // They count again when it is known how many stay.
        tokens.iter().for_each(|token| self.count(*token, Adjust::remove));
        self.settle(tokens, kept, logprobs, controller, observer)
    }

    /// Adds a token to those that penalties count, or removes it.
    fn count(&mut self, token: i32, change: fn(&mut Adjust, &DecodePolicy, i32)) {
        if let Some(adjust) = &mut self.adjust {
            change(adjust, &self.verifier.policy.policy, token);
        }
    }

    /// Ends a round that gave these tokens; `kept` says of the drafted ones that were looked at which are among them, and
    /// `logprobs` how likely the tokens were, if that is to be told.
    fn settle(
        &mut self,
        mut tokens: Vec<i32>,
        mut kept: Vec<bool>,
        mut logprobs: Vec<Logprob>,
        controller: &mut Controller,
        observer: &mut Observer<'_>,
    ) -> Result<(), Halt> {
        let n = self.ids.len();
        let stop = tokens.iter().position(|token| self.verifier.policy.policy.stop_ids.contains(token));
        if let Some(stop) = stop {
            // Nothing behind the first stop counts.
            tokens.truncate(stop + 1);
            kept.truncate(stop + 1);
            logprobs.truncate(stop + 1);
        }
        let draft = self.drafter.draft();
        let drafted = draft.tokens();
        let accepted = kept.iter().take_while(|kept| **kept).count();
        self.counts.round(drafted.len(), &kept, tokens.len());
        // Behind a drafted stop that was right, the rest of a draft is worth no more than one that was wrong.
        let accepts_stop = stop.is_some() && kept.last() == Some(&true);
        kept.extend(accepts_stop.then_some(false));
        controller.learn(draft.method, &self.entropies, &kept, draft.passes);
        self.entropies.clear();
        let verified = self.stage == Stage::Verify;
        (self.round, self.stage) = (self.round + 1, Stage::Choose);
        let (ids, logprobs) = (&self.ids, &logprobs[..]);
        tell(observer, Moment::Judged { ids, drafted: &drafted, accepted, tokens: &tokens, logprobs })?;
        self.ids.extend(&tokens);
        tokens.iter().for_each(|token| self.count(*token, Adjust::add));
        if verified {
            self.verifier.stored = (n + accepted).min(self.ids.len() - 1);
        }
        if self.ids.len() > n {
            tell(observer, Moment::Settled { ids: &self.ids, end: self.ids.len() })?;
        }
        if stop.is_some() { Err(Halt::Finish(FinishReason::StopId)) } else { Ok(()) }
    }

    /// What the verifier itself puts behind row `row`, in the place of whatever was drafted.
    fn replace(&mut self, rows: &Rows<'_>, row: usize) -> Result<Option<(i32, bool)>, Halt> {
        let at = NoiseRow { pass: self.round, position: self.ids.len() + row };
        let own = self.verifier.choose(rows, row, &mut self.sampler, at)?;
        Ok(own.map(|own| (own, false)))
    }

    /// The token behind row `row`, and whether it is the proposed one. `None` when the pass does not say, and the next will.
    fn decide(&mut self, rows: &Rows<'_>, row: usize, drafted: Option<&Drafted>) -> Result<Option<(i32, bool)>, Halt> {
        let position = self.ids.len() + row;
        let at = NoiseRow { pass: self.round, position };
        let proposal = drafted.map(|drafted| &drafted.proposal);
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
    pub(super) fn finish(self) -> Result<Speculated, DecodeError> {
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
