//! The verifying side: one causal pass over the last token and a draft, which says what the model itself would put there.
//!
//! Invariant: the slot holds the rows of all tokens but the last, which leads the next pass, and those that were taken without
//! a look, which come before it. Rows behind them are those of rejected tokens; they are never seen before they are written again. A model whose mask is not causal verifies by spans of
//! one row, each of which sees what comes before it: its causal mode.

use super::accept::bonus;
use crate::decode::adjust::Adjust;
use crate::decode::error::{DecodeError, PolicyError};
use crate::decode::noise::{Noise, NoiseRow};
use crate::decode::pass::{Fed, ForwardKind, Pass, Reads, Rows, Window};
use crate::decode::policy::{Attention, DecodePolicy};
use crate::decode::resolve::Resolved;
use crate::decode::sample::{Choice, Law, Logprob, Needs, Sampler};
use crate::exec::Executor;

/// See the module.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) policy: Resolved,
    slot: usize,
    /// Rows of so many first positions are in the slot for good.
    pub(super) stored: usize,
    /// Tokens that are never chosen though the model may want to, because they mean something else to the drafter.
    pub(super) banned: Vec<i32>,
    largest: usize,
    /// Rows that a pass may look at.
    logits_rows: usize,
    pub(super) max_seq: usize,
    pub(super) vocab: usize,
    /// The next pass reads logits, because statistics named a banned token.
    looks_closer: bool,
}

impl Verifier {
    /// A verifier that never chooses `banned`.
    ///
    /// # Errors
    /// A model that has no causal mode.
    pub(super) fn new(
        policy: Resolved,
        banned: Vec<i32>,
        executor: &dyn Executor,
        slot: usize,
    ) -> Result<Self, DecodeError> {
        let conflict = |field, value, why| Err(PolicyError::Conflict { field, value, why }.into());
        let DecodePolicy { attention, logit_shift, cfg_scale, .. } = policy.policy;
        if logit_shift == 0 || attention == Attention::Full {
            return conflict(
                "speculate",
                "on",
                "verifying takes a model whose rows predict the next token and see only what comes before: an \
                 autoregressive one, or Fast_dLLM v2 as its own verifier; draft with this one (`--draft`) for such a model",
            );
        }
        if cfg_scale > 0.0 {
            return conflict("cfg_scale", "above 0", "a verifier has no guidance; leave it out");
        }
        let (max_seq, vocab) = (executor.max_seq(), executor.vocab());
        let logits_rows = if policy.needs_logits { executor.logits_rows() } else { usize::MAX };
        let largest = executor.step_buckets().last().copied().unwrap_or(0);
        // Beside what the request suppresses: where logits are read, the sampler sees them all.
        let mut policy = policy;
        if policy.needs_logits {
            policy.policy.suppress_ids.extend(&banned);
        }
        Ok(Self { policy, slot, stored: 0, banned, largest, logits_rows, max_seq, vocab, looks_closer: false })
    }

    fn is_causal(&self) -> bool {
        self.policy.policy.attention == Attention::Causal
    }

    /// Takes over the rows of `held` positions of a prompt that the slot has already.
    pub(super) fn keep(&mut self, held: usize, prompt: usize) {
        self.stored = held.min(prompt - 1);
    }

    /// The longest draft that one pass can verify: it looks at the last token too.
    pub(super) fn step(&self) -> usize {
        self.largest.min(self.logits_rows).saturating_sub(1)
    }

    /// The longest draft behind `n` tokens that one pass can verify.
    pub(super) fn longest(&self, n: usize) -> usize {
        self.max_seq.saturating_sub(n).min(self.step())
    }

    /// A pass over what is missing of the caches, if anything is but the last token.
    pub(super) fn prefill(&self, ids: &[i32]) -> Option<Pass> {
        let end = ids.len() - 1;
        let cells = self.stored..end.min(self.stored + self.largest);
        let fed = ids[cells.clone()].to_vec();
        (!cells.is_empty()).then(|| self.feed(Window::stores(ForwardKind::Prefill, cells), fed, 0))
    }

    /// The pass over the last token and a draft, and what was taken without a look before them; or one that only catches up
    /// with that, where one is not enough.
    pub(super) fn pass(&self, ids: &[i32], draft: &[i32]) -> Pass {
        let from = self.stored;
        let fed: Vec<i32> = ids[from..].iter().chain(draft).copied().collect();
        let alone = !self.is_causal() || fed.len() > self.largest;
        if let Some(pass) = self.prefill(ids).filter(|_| alone) {
            return pass;
        }
        self.feed(Window::stores(ForwardKind::Verify, from..from + fed.len()), fed, draft.len() + 1)
    }

    /// A pass that looks at its last `looks` rows.
    fn feed(&self, window: Window, ids: Vec<i32>, looks: usize) -> Pass {
        let at = window.cells.start;
        let length = if self.is_causal() { ids.len() } else { 1 };
        let spans = ids.chunks(length).enumerate().map(|(nth, ids)| {
            let at = at + nth * length;
            let pos = (0..).skip(at).take(ids.len()).collect();
            Fed { slot: self.slot, ids: ids.to_vec(), pos, at, visible: at + ids.len() }
        });
        let fed = spans.collect();
        let rows = if looks == 0 { Vec::new() } else { (length - looks.min(length)..length).collect() };
        let logits = self.policy.needs_logits || self.looks_closer;
        let reads = if logits { Reads::Logits } else { Reads::Stats };
        // A row says what comes behind it.
        let positions = (window.cells.end - looks..window.cells.end).map(|position| position + 1).collect();
        Pass { window, fed, rows, reads, positions }
    }

    /// The most likely token of a row, with everything that the request asks for; `None` when the pass did not look closely
    /// enough to say, which the next one will.
    pub(super) fn best(
        &mut self,
        rows: &Rows<'_>,
        row: usize,
        sampler: &mut Sampler,
        position: usize,
    ) -> Result<Option<i32>, DecodeError> {
        let bad = || DecodeError::BadRow { position };
        let token = match rows {
            Rows::Stats(stats) => stats.get(row).ok_or_else(bad)?.best,
            Rows::Logits(_) => {
                let policy = self.closely();
                let (noise, at) = (Noise::Seeded(policy.seed), NoiseRow { pass: 0, position });
                let logits = self.row(rows, row).ok_or_else(bad)?;
                let chosen = sampler.choose(logits, &policy, Choice::AsPolicy, Needs::NOTHING, &noise, at);
                chosen.ok_or_else(bad)?.stats.best
            }
            Rows::Chosen(_) => unreachable!("passes that are no sequence's have no chooser"),
        };
        self.looks_closer = self.banned.contains(&token);
        if usize::try_from(token).map_or(true, |token| token >= self.vocab) {
            return Err(bad());
        }
        Ok((!self.looks_closer).then_some(token))
    }

    /// The token that the model alone puts behind a row.
    pub(super) fn choose(
        &mut self,
        rows: &Rows<'_>,
        row: usize,
        sampler: &mut Sampler,
        at: NoiseRow,
    ) -> Result<Option<i32>, DecodeError> {
        let position = at.position;
        if self.policy.policy.is_greedy() {
            return self.best(rows, row, sampler, position);
        }
        let token = self.law(rows, row, sampler).and_then(|law| bonus(&law, self.policy.policy.seed, at));
        token.map(Some).ok_or(DecodeError::BadRow { position })
    }

    /// The law of a row, with everything that the request asks for.
    pub(super) fn law(&self, rows: &Rows<'_>, row: usize, sampler: &mut Sampler) -> Option<Law> {
        sampler.law(self.row(rows, row)?, &self.policy.policy)
    }

    /// How likely a token is behind a row, if that is to be told.
    pub(super) fn logprob(&self, rows: &Rows<'_>, row: usize, sampler: &mut Sampler, token: i32) -> Option<Logprob> {
        let (beside, logits, policy) = (self.policy.logprobs?, self.row(rows, row)?, &self.policy.policy);
        let law = if policy.is_greedy() { sampler.plain_law(logits, policy) } else { sampler.law(logits, policy) };
        Some(law?.logprob(token, beside))
    }

    /// Changes a row of logits as the request asks for behind what `adjust` holds.
    pub(super) fn adjust(&self, rows: &mut Rows<'_>, row: usize, adjust: &Adjust, position: usize) {
        if let Rows::Logits(logits) = rows
            && let Some(logits) = logits.chunks_exact_mut(self.vocab).nth(row)
        {
            adjust.apply(&self.policy.policy, position, logits);
        }
    }

    fn row<'r>(&self, rows: &'r Rows<'_>, row: usize) -> Option<&'r [f32]> {
        let Rows::Logits(logits) = rows else { return None };
        logits.chunks_exact(self.vocab).nth(row)
    }

    /// The policy that a row of logits is read with.
    fn closely(&self) -> DecodePolicy {
        let mut policy = self.policy.policy.clone();
        policy.suppress_ids.extend(&self.banned);
        policy
    }
}
