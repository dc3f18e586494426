//! The drafting side: which rows a diffusion model feeds to propose the tokens behind a sequence, and what it proposes.
//!
//! A draft is a canvas of masks behind the sequence. A block-causal model redraws its open block with it and keeps the rows
//! of whole blocks, which cost no pass of their own; a model with full attention feeds everything, or with a prefix or dual
//! cache the rows behind what it has seen – an approximation, which costs acceptance and never exactness.
//!
//! Invariant: rows that are kept were made of tokens that stay. What is said of a proposal's origin is true: drawn from a law
//! only in one pass, or in several that reveal from left to right whatever they say.

use super::accept::{Origin, Proposal};
use super::verifier::Verifier;
use crate::decode::adjust::Adjust;
use crate::decode::error::{DecodeError, PolicyError};
use crate::decode::noise::{Noise, NoiseRow, Stream};
use crate::decode::pass::{Fed, ForwardKind, Pass, Reads, Rows, Window};
use crate::decode::policy::{Attention, CacheMode, DecodePolicy, Reveal};
use crate::decode::resolve::Resolved;
use crate::decode::reveal::{self, Candidate};
use crate::decode::sample::{Choice, Needs, Sampler};
use crate::exec::Executor;

/// Confidence above which a pass of several reveals a position, unless the request says otherwise.
const THRESHOLD: f32 = 0.9;
/// Passes of a draft of several, unless the request says otherwise.
const PASSES: usize = 4;

/// How a draft is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// In one pass, all tokens independent of each other (DEER, 2512.15176; linear self-speculation).
    OnePass,
    /// In several passes, each of which sees what those before revealed (SpecDiff, 2408.05636).
    Several,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Drafter {
    policy: Resolved,
    slot: usize,
    /// Rows of so many first positions are in the slot for good.
    pub(super) stored: usize,
    largest: usize,
    /// Rows that a pass may look at.
    logits_rows: usize,
    max_seq: usize,
    vocab: usize,
    /// Tokens that both sides know.
    shared: usize,
    draft: Draft,
}

/// A drafted token.
#[derive(Clone, Debug)]
pub(super) struct Drafted {
    pub(super) proposal: Proposal,
    /// How sure the drafter was of it.
    pub(super) confidence: f32,
    /// Of the law that it was chosen from, in nats.
    entropy: f32,
}

/// A draft on its way.
#[derive(Debug)]
pub(super) struct Draft {
    /// How it is made.
    pub(super) method: Method,
    /// Position of its first token.
    start: usize,
    /// What was proposed; `None` where nothing is yet.
    proposals: Vec<Option<Drafted>>,
    /// Passes so far.
    pub(super) passes: usize,
}

impl Draft {
    /// Whether every token is proposed.
    pub(super) fn is_complete(&self) -> bool {
        self.proposals.iter().all(Option::is_some)
    }

    /// What was drafted, in order, up to the first position that has nothing.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Drafted> {
        self.proposals.iter().map_while(Option::as_ref)
    }

    /// The tokens in order.
    pub(super) fn tokens(&self) -> Vec<i32> {
        self.iter().map(|drafted| drafted.proposal.token).collect()
    }

    /// The entropies that they were chosen with.
    pub(super) fn entropies(&self) -> Vec<f32> {
        self.iter().map(|drafted| drafted.entropy).collect()
    }

    /// How many first tokens the drafter was at least so sure of.
    pub(super) fn sure(&self, least: f32) -> usize {
        self.iter().take_while(|drafted| drafted.confidence >= least).count()
    }

    /// Cuts it short.
    pub(super) fn truncate(&mut self, length: usize) {
        self.proposals.truncate(length);
    }
}

impl Drafter {
    /// A drafter with this policy for a verifier: drawing is the request's, how masks are treated the model's own.
    ///
    /// # Errors
    /// A model that cannot draft.
    pub(super) fn new(
        own: &DecodePolicy,
        verifier: &Verifier,
        executor: &dyn Executor,
        methods: &[Method],
        reveal: Option<Reveal>,
        slot: usize,
    ) -> Result<Self, DecodeError> {
        let conflict = |field, value, why| Err(PolicyError::Conflict { field, value, why }.into());
        if own.attention == Attention::Causal || own.mask_id < 0 {
            return conflict("attention", "causal", "a drafter fills in masks: draft with a diffusion model");
        }
        let asked = &verifier.policy.policy;
        let shared = verifier.vocab.min(executor.vocab());
        let has = |id: i32| usize::try_from(id).is_ok_and(|id| id < executor.vocab());
        let beyond = (shared..executor.vocab()).filter_map(|id| i32::try_from(id).ok());
        let policy = DecodePolicy {
            temperature: asked.temperature,
            top_k: asked.top_k,
            top_p: asked.top_p,
            filter_order: asked.filter_order,
            min_p: asked.min_p,
            // Of tokens that it has.
            logit_bias: asked.logit_bias.iter().map(|(id, bias)| (*id, *bias)).filter(|(id, _)| has(*id)).collect(),
            repetition_penalty: asked.repetition_penalty,
            frequency_penalty: asked.frequency_penalty,
            presence_penalty: asked.presence_penalty,
            min_tokens: asked.min_tokens,
            stop_ids: asked.stop_ids.clone(),
            seed: asked.seed,
            // Tokens that only the drafter has, and those that the verifier never takes.
            suppress_ids: asked.suppress_ids.iter().copied().filter(|&id| id != own.mask_id).chain(beyond).collect(),
            cfg_scale: 0.0,
            unsure_ids: Vec::new(),
            reveal: reveal.unwrap_or_else(|| Reveal::new("threshold").with("threshold", THRESHOLD)),
            steps: if asked.steps > 1 { asked.steps } else { PASSES },
            stop_strings: Vec::new(),
            ..own.clone()
        };
        let policy = policy.resolve(executor)?;
        if methods.contains(&Method::Several) && policy.rule.random {
            return conflict(
                "reveal",
                "random",
                "a draft of several passes reveals by confidence or from left to right",
            );
        }
        let largest = executor.step_buckets().last().copied().unwrap_or(0);
        let (max_seq, vocab) = (executor.max_seq(), executor.vocab());
        let reads = methods.iter().any(|method| draws(&policy, *method)) || policy.policy.adjusts();
        let logits_rows = if reads { executor.logits_rows() } else { usize::MAX };
        let draft = Draft { method: Method::OnePass, start: 0, proposals: Vec::new(), passes: 0 };
        Ok(Self { policy, slot, stored: 0, largest, logits_rows, max_seq, vocab, shared, draft })
    }

    /// The first token of a prompt that it would not read as the token it is: its mask, or one beyond its vocabulary.
    pub(super) fn refuses(&self, prompt: &[i32]) -> Option<(usize, i32)> {
        let mask = self.policy.policy.mask_id;
        let strange = |id: i32| id == mask || usize::try_from(id).map_or(true, |id| id >= self.shared);
        prompt.iter().copied().enumerate().find(|(_, id)| strange(*id))
    }

    /// The longest draft that its steps can hold.
    pub(super) fn step(&self) -> usize {
        self.largest.min(self.logits_rows)
    }

    /// Takes over the rows of `held` positions of a prompt of `prompt` tokens that the slot has already.
    pub(super) fn keep(&mut self, held: usize, prompt: usize) {
        self.stored = self.policy.reusable(held, prompt);
    }

    fn block(&self) -> Option<usize> {
        (self.policy.policy.attention == Attention::BlockCausal).then_some(self.policy.policy.block)
    }

    /// Position of the first row of a pass behind `n` tokens of which `stored` have their rows.
    fn first_fed(&self, n: usize, stored: usize) -> usize {
        let first = n - self.policy.policy.logit_shift.min(n);
        match (self.block(), self.policy.policy.cache) {
            (Some(block), _) => stored.min(first / block * block),
            (None, CacheMode::None) => 0,
            (None, _) => stored.min(first),
        }
    }

    /// Position behind the canvas of `k` tokens behind `n`: a block-causal model has only seen whole sub-blocks.
    fn canvas_end(&self, n: usize, k: usize) -> usize {
        let unit = self.block().map_or(1, |block| self.policy.policy.sub_block.map_or(block, |sub| sub.length));
        (n + k).next_multiple_of(unit)
    }

    /// Rows of a pass that drafts `k` tokens behind `n`, once everything before has been fed.
    pub(super) fn rows(&self, n: usize, k: usize) -> usize {
        self.canvas_end(n, k) - self.first_fed(n, n)
    }

    /// Rows that the next pass behind `n` tokens feeds besides those, or passes before it.
    pub(super) fn behind(&self, n: usize) -> usize {
        self.first_fed(n, n) - self.first_fed(n, self.stored)
    }

    /// The longest draft behind `n` tokens, up to `k`, that its caches and steps can hold.
    pub(super) fn longest(&self, n: usize, k: usize) -> usize {
        let fits = |k: &usize| self.canvas_end(n, *k) <= self.max_seq && self.rows(n, *k) <= self.largest;
        (1..=k.min(self.step())).rev().find(fits).unwrap_or(0)
    }

    /// Begins a draft of `k` tokens behind `n`.
    pub(super) fn begin(&mut self, n: usize, method: Method, k: usize) {
        self.draft = Draft { method, start: n, proposals: vec![None; k], passes: 0 };
    }

    /// The draft.
    pub(super) fn draft(&mut self) -> &mut Draft {
        &mut self.draft
    }

    fn is_drawn(&self) -> bool {
        draws(&self.policy, self.draft.method)
    }

    /// The pass that comes next behind `ids`: one that only catches up where too much is new for one step, or a denoising
    /// pass.
    pub(super) fn pass(&self, ids: &[i32]) -> Pass {
        let n = ids.len();
        let end = self.canvas_end(n, self.draft.proposals.len());
        let from = self.first_fed(n, self.stored);
        if end - from > self.largest {
            let unit = self.block().unwrap_or(1);
            let to = (from + self.largest / unit * unit).min(n / unit * unit);
            return self.feed(Window::stores(ForwardKind::Prefill, from..to), ids[from..to].to_vec(), Vec::new());
        }
        let mask = self.policy.policy.mask_id;
        let at = |position: usize| self.draft.proposals.get(position - n).and_then(Option::as_ref);
        let canvas = (n..end).map(|position| at(position).map_or(mask, |drafted| drafted.proposal.token));
        let fed = ids[from..].iter().copied().chain(canvas).collect();
        let masked = (n..n + self.draft.proposals.len()).filter(|&position| at(position).is_none()).collect();
        let window = Window { kind: ForwardKind::Draft, cells: from..end, past_len: from, visible: end };
        self.feed(window, fed, masked)
    }

    fn feed(&self, window: Window, ids: Vec<i32>, positions: Vec<usize>) -> Pass {
        let at = window.cells.start;
        let rows = positions.iter().map(|position| position - at - self.policy.policy.logit_shift).collect();
        let reads = if self.is_drawn() || self.policy.policy.adjusts() { Reads::Logits } else { Reads::Stats };
        let pos = (0..).skip(at).take(ids.len()).collect();
        let fed = vec![Fed { slot: self.slot, ids, pos, at, visible: window.visible }];
        Pass { window, fed, rows, reads, positions }
    }

    /// Takes in what a pass said. `adjust` holds the tokens before the draft, `round` is what its random numbers are for.
    pub(super) fn took(
        &mut self,
        pass: &Pass,
        mut rows: Rows<'_>,
        adjust: Option<&Adjust>,
        sampler: &mut Sampler,
        round: usize,
    ) -> Result<(), DecodeError> {
        let n = self.draft.start;
        if pass.kind() == ForwardKind::Prefill {
            self.stored = pass.window.cells.end;
            return Ok(());
        }
        self.stored = self.block().map_or(n, |block| n / block * block);
        self.draft.passes += 1;
        if let (Some(adjust), Rows::Logits(logits)) = (adjust, &mut rows) {
            let (mut adjust, policy) = (adjust.clone(), &self.policy.policy);
            let proposed = self.draft.proposals.iter().flatten();
            proposed.for_each(|drafted| adjust.add(policy, drafted.proposal.token));
            for (&position, logits) in pass.positions.iter().zip(logits.chunks_exact_mut(self.vocab)) {
                adjust.apply(policy, position, logits);
            }
        }
        let rows = &rows;
        let found = pass.positions.iter().enumerate().map(|(row, &position)| {
            let bad = || DecodeError::BadRow { position };
            self.propose(rows, row, sampler, NoiseRow { pass: round, position }).ok_or_else(bad)
        });
        let found: Vec<Drafted> = found.collect::<Result<_, _>>()?;
        let taken = self.taken(pass, &found);
        for ((position, taken), drafted) in pass.positions.iter().zip(taken).zip(found) {
            if taken {
                self.draft.proposals[position - n] = Some(drafted);
            }
        }
        if self.draft.is_complete() && !self.is_drawn() {
            // What only the drafter has is no draft, nor is what stands behind it; tokens that are drawn are none of these.
            let usable = |token: i32| usize::try_from(token).is_ok_and(|token| token < self.shared);
            let length = self.draft.iter().take_while(|drafted| usable(drafted.proposal.token)).count();
            self.draft.truncate(length);
        }
        Ok(())
    }

    /// Which of the positions that a pass looked at get their tokens.
    fn taken(&self, pass: &Pass, found: &[Drafted]) -> Vec<bool> {
        let passes = self.policy.policy.steps;
        if self.draft.method == Method::OnePass || self.draft.passes >= passes {
            return vec![true; found.len()];
        }
        let candidates = pass.positions.iter().zip(found).map(|(&position, drafted)| {
            let Drafted { proposal, confidence, entropy } = drafted;
            Candidate { position, token: proposal.token, confidence: *confidence, entropy: *entropy, noise: 1.0 }
        });
        let candidates: Vec<_> = candidates.collect();
        let quota = if self.policy.rule.ordered { self.draft.proposals.len().div_ceil(passes) } else { 1 };
        let part = quota as f32;
        let mut changes = Vec::new();
        let seen = reveal::Pass { candidates: &candidates, quota, part, params: &self.policy.params };
        (self.policy.rule.reveal)(&seen, &mut changes);
        pass.positions.iter().map(|position| changes.iter().any(|change| change.position == *position)).collect()
    }

    /// The token that a row proposes.
    fn propose(&self, rows: &Rows<'_>, row: usize, sampler: &mut Sampler, at: NoiseRow) -> Option<Drafted> {
        let policy = &self.policy.policy;
        match rows {
            Rows::Stats(stats) => {
                let stats = stats.get(row)?;
                let proposal = Proposal { token: stats.best, origin: Origin::Given };
                let confidence = (self.policy.confidence.of)(stats, 1.0);
                Some(Drafted { proposal, confidence, entropy: stats.entropy })
            }
            Rows::Logits(logits) if !self.is_drawn() => {
                let logits = logits.chunks_exact(self.vocab).nth(row)?;
                let needs = Needs { row_entropy: true, ..self.policy.confidence.reads };
                let noise = Noise::Stream(policy.seed, Stream::Draft);
                let chosen = sampler.choose(logits, policy, Choice::MostLikely, needs, &noise, at)?;
                let proposal = Proposal { token: chosen.stats.best, origin: Origin::Given };
                let confidence = (self.policy.confidence.of)(&chosen.stats, 1.0);
                Some(Drafted { proposal, confidence, entropy: chosen.entropy })
            }
            Rows::Logits(logits) => {
                let logits = logits.chunks_exact(self.vocab).nth(row)?;
                let law = sampler.law(logits, policy)?;
                let noise = Noise::Stream(policy.seed, Stream::Draft);
                let drawn = sampler.choose(logits, policy, Choice::AsPolicy, Needs::NOTHING, &noise, at)?;
                let token = drawn.stats.best;
                let (confidence, entropy) = (law.prob(token) as f32, law.entropy() as f32);
                Some(Drafted { proposal: Proposal { token, origin: Origin::Drawn(law) }, confidence, entropy })
            }
            Rows::Chosen(_) => unreachable!("passes that are no sequence's have no chooser"),
        }
    }
}

/// Whether the law of a token is known that it was drawn from.
fn draws(policy: &Resolved, method: Method) -> bool {
    !policy.policy.is_greedy() && (method == Method::OnePass || policy.rule.ordered)
}
