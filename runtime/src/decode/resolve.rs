//! Checks a policy against a model and looks up what it names.
//!
//! Invariant: a policy that passed [`DecodePolicy::resolve`] names only rows of the static tables, holds numbers in range
//! and asks for a combination that the loop can run, so the loop never has to ask again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::confidence::{self, Confidence};
use super::error::PolicyError;
use super::policy::{Attention, CacheMode, ConfidenceStage, DecodePolicy, FirstRow, Lead, PromptTail, StopAt};
use super::reveal::{self, Param, RevealRule};
use super::sample::Needs;
use super::schedule::{self, ScheduleCurve};
use crate::constrain::Constraint;
use crate::exec::Executor;

/// Most denoising steps per block. A schedule is made per block and holds one number per step.
const MAX_STEPS: usize = 1 << 16;
/// Longest block of a model whose attention does not fix one: far beyond any cache, so that positions never overflow.
const MAX_BLOCK: usize = 1 << 20;
/// Most tokens whose probabilities are told beside that of each token of an answer.
const MAX_LOGPROBS: usize = 128;
/// Most edges of a constraint times positions of a block: what is gone through in every pass, 8 bytes each.
const MAX_WAYS: usize = 1 << 24;
/// Most bytes of all stop strings.
const MAX_STOP_TEXT: usize = 1 << 16;

/// A policy that a model can run: the table rows that it names, and what follows from it as a whole.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The policy.
    pub policy: DecodePolicy,
    /// The reveal rule.
    pub rule: &'static RevealRule,
    /// Its parameters, in the order in which the row lists them.
    pub params: Vec<f32>,
    /// The transfer schedule.
    pub schedule: &'static ScheduleCurve,
    /// Its parameters, in the order in which the row lists them.
    pub schedule_params: Vec<f32>,
    /// The confidence measure.
    pub confidence: &'static Confidence,
    /// Whether the head's statistics do not say enough to choose a token, or to tell what is asked for.
    pub needs_logits: bool,
    /// Whether decisions tell how likely their tokens were, and with how many of the most likely ones beside.
    pub logprobs: Option<usize>,
    /// What the rule and the confidence measure read of a chosen token.
    pub needs: Needs,
    /// Most rows of a pass over the prompt, where whole blocks of the mask are no more; without a bound, what a step holds.
    pub prefill_rows: usize,
    /// What the answer must be.
    pub constraint: Option<Arc<Constraint>>,
}

impl DecodePolicy {
    /// Looks up the table rows that the policy names and checks every number, also against what `executor` can run.
    ///
    /// # Errors
    /// The first thing that cannot be run, with what to change.
    pub fn resolve(self, executor: &dyn Executor) -> Result<Resolved, PolicyError> {
        let largest = executor.step_buckets().last().copied().unwrap_or(0).min(executor.max_seq());
        let largest = if self.commits() { largest } else { MAX_BLOCK };
        if self.block == 0 || self.block > largest {
            return Err(PolicyError::Block { block: self.block, largest });
        }
        let vocab = executor.vocab();
        let no_mask = self.attention == Attention::Causal && self.mask_id == -1;
        if !no_mask && usize::try_from(self.mask_id).map_or(true, |id| id >= vocab) {
            return Err(PolicyError::MaskId { mask_id: self.mask_id, vocab });
        }
        self.check_numbers()?;
        self.check_lists(vocab)?;
        self.check_combination()?;
        let confidence = confidence::find(&self.confidence)
            .ok_or_else(|| unknown("confidence measure", &self.confidence, confidence::names()))?;
        let rule = reveal::find(&self.reveal.rule)
            .ok_or_else(|| unknown("reveal rule", &self.reveal.rule, reveal::names()))?;
        let schedule = schedule::find(&self.schedule.curve)
            .ok_or_else(|| unknown("schedule", &self.schedule.curve, schedule::names()))?;
        let filtered = self.top_k != 1 && (self.top_k != 0 || self.top_p < 1.0 || self.min_p > 0.0);
        let resolved = Resolved {
            rule,
            params: params("parameter of this reveal rule", rule.params, &self.reveal.params)?,
            schedule,
            schedule_params: params("parameter of this schedule", schedule.params, &self.schedule.params)?,
            confidence,
            needs_logits: !self.is_greedy()
                // With `top_k` 1 the filtered distribution is known to be one certain token.
                || (filtered && self.confidence_stage == ConfidenceStage::AfterFilters)
                || !self.suppress_ids.is_empty()
                || !self.unsure_ids.is_empty()
                || self.adjusts()
                || self.cfg_scale > 0.0
                || self.first_row == FirstRow::Before,
            logprobs: None,
            needs: Needs { row_entropy: rule.entropy, ..confidence.reads },
            prefill_rows: usize::MAX,
            constraint: None,
            policy: self,
        };
        resolved.check_rows(executor)?;
        Ok(resolved)
    }

    fn check_numbers(&self) -> Result<(), PolicyError> {
        if self.logit_shift > 1 {
            return Err(out_of_range("logit_shift", "0 or 1"));
        }
        if !(1..=MAX_STEPS).contains(&self.steps) {
            return Err(out_of_range("steps", "1 to 65536"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(out_of_range("temperature", "0 (greedy) or a positive number"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(out_of_range("top_p", "above 0 and at most 1"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(out_of_range("min_p", "0 to 1"));
        }
        if !(0.01..=100.0).contains(&self.repetition_penalty) {
            return Err(out_of_range("repetition_penalty", "0.01 to 100; 1 changes nothing"));
        }
        for (field, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if !(-2.0..=2.0).contains(&penalty) {
                return Err(out_of_range(field, "-2 to 2; 0 changes nothing"));
            }
        }
        if !(self.cfg_scale >= 0.0 && self.cfg_scale.is_finite()) {
            return Err(out_of_range("cfg_scale", "0 (no guidance) or a positive number"));
        }
        if self.sub_block.is_some_and(|sub| sub.length == 0 || sub.length > self.block) {
            return Err(out_of_range("sub_block", "1 to the block length"));
        }
        Ok(())
    }

    /// Lists are searched for every position, and texts for every token.
    fn check_lists(&self, vocab: usize) -> Result<(), PolicyError> {
        let lists =
            [("stop_ids", &self.stop_ids), ("suppress_ids", &self.suppress_ids), ("unsure_ids", &self.unsure_ids)];
        if let Some((field, _)) = lists.into_iter().find(|(_, ids)| ids.len() > vocab) {
            return Err(out_of_range(field, "no longer than the vocabulary: name each token once"));
        }
        let biased = |(&id, bias): (&i32, &f32)| {
            usize::try_from(id).is_ok_and(|id| id < vocab) && (-100.0..=100.0).contains(bias)
        };
        if !self.logit_bias.iter().all(biased) {
            return Err(out_of_range("logit_bias", "-100 to 100, of tokens of the model"));
        }
        if self.stop_strings.iter().map(|s| s.len().saturating_add(1)).sum::<usize>() > MAX_STOP_TEXT {
            return Err(out_of_range("stop_strings", "65536 bytes at most"));
        }
        Ok(())
    }

    fn check_combination(&self) -> Result<(), PolicyError> {
        let conflict = |field, value, why| Err(PolicyError::Conflict { field, value, why });
        if self.cfg_scale > 0.0 && self.mask_id < 0 {
            return conflict("cfg_scale", "above 0", "it masks the prompt, and this model has no mask token");
        }
        if !self.commits() && self.attention != Attention::Full {
            let value = match self.cache {
                CacheMode::Prefix => "prefix",
                CacheMode::Dual => "dual",
                _ => "none",
            };
            return conflict("cache", value, "it needs full attention; this model keeps the rows of finished blocks");
        }
        if self.lead != Lead::None && self.logit_shift == 0 {
            return conflict("lead", "set", "it needs `logit_shift` 1");
        }
        if self.first_row == FirstRow::Before && !self.commits() {
            return conflict("first_row", "before", "it needs a cache that commits blocks");
        }
        if self.hidden_id.is_some() && !(self.commits() && self.attention == Attention::Full) {
            return conflict("hidden_id", "set", "it needs full attention and a cache that commits blocks");
        }
        if self.hidden_id.is_some() && self.prompt_tail == PromptTail::Prefilled {
            return conflict(
                "prompt_tail",
                "prefilled",
                "it needs every token to have a cache row, but `hidden_id` is set",
            );
        }
        if self.attention == Attention::Causal && (self.block != 1 || self.lead == Lead::None) {
            return conflict("attention", "causal", "it needs blocks of 1 and `lead`");
        }
        Ok(())
    }
}

impl Resolved {
    /// With decisions that tell how likely their tokens were, and `logprobs` of the most likely ones beside.
    ///
    /// # Errors
    /// Too many of them, or rows of logits that memory was not counted for.
    pub fn telling(mut self, logprobs: Option<usize>, executor: &dyn Executor) -> Result<Self, PolicyError> {
        if logprobs.is_some_and(|beside| beside > MAX_LOGPROBS) {
            return Err(out_of_range("logprobs", "at most 128 tokens beside"));
        }
        self.logprobs = logprobs;
        self.needs_logits |= logprobs.is_some();
        self.check_rows(executor)?;
        Ok(self)
    }

    /// The same policy, for answers that fit a constraint.
    ///
    /// # Errors
    /// What contradicts it: an answer that cannot end, tokens with a text that are not chosen or end it, positions before the
    /// end that stay undecided, or tokens that the model does not have.
    pub fn constrained(self, constraint: Arc<Constraint>, executor: &dyn Executor) -> Result<Self, PolicyError> {
        let conflict = |field, value, why| Err(PolicyError::Conflict { field, value, why });
        let DecodePolicy { stop_ids, suppress_ids, stop_at, min_tokens, .. } = &self.policy;
        let writes = |ids: &[i32]| ids.iter().any(|id| constraint.vocabulary().writes(*id));
        let known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < executor.vocab());
        if !stop_ids.iter().any(|id| known(id) && !suppress_ids.contains(id)) {
            return conflict("stop_ids", "empty", "a constrained answer has to end");
        }
        if writes(stop_ids) {
            return conflict("stop_ids", "tokens with a text", "in a constrained answer they are part of it");
        }
        if writes(suppress_ids) {
            return conflict("suppress_ids", "tokens with a text", "a constrained answer may need them");
        }
        if *min_tokens > 0 {
            return conflict("min_tokens", "above 0", "a constrained answer ends where the constraint says");
        }
        if *stop_at == StopAt::Revealed {
            return conflict("stop_at", "revealed", "a constrained answer is complete where it ends");
        }
        let cells = self.policy.sub_block.map_or(self.policy.block, |sub| sub.length);
        if cells.saturating_mul(constraint.automaton().ways()) > MAX_WAYS {
            return conflict(
                "constraint",
                "that large with blocks that long",
                "filling one would take too much memory",
            );
        }
        if constraint.vocabulary().limit() > executor.vocab() {
            return conflict("constraint", "one of more tokens", "the model does not have them");
        }
        let resolved = Self { needs_logits: true, constraint: Some(constraint), ..self };
        resolved.check_rows(executor)?;
        Ok(resolved)
    }

    fn check_rows(&self, executor: &dyn Executor) -> Result<(), PolicyError> {
        let (rows, counted) = (self.policy.block.saturating_mul(self.slots()), executor.logits_rows());
        if self.needs_logits && rows > counted { Err(PolicyError::LogitsRows { rows, counted }) } else { Ok(()) }
    }

    /// Slots of the caches that a sequence needs: guidance runs a second sequence, in which the prompt is masked.
    pub fn slots(&self) -> usize {
        if self.policy.cfg_scale == 0.0 { 1 } else { 2 }
    }

    /// How many of a sequence's first positions need not be computed again when a slot holds rows of `held` positions with
    /// the same tokens, of which `stored` would be filled before the first block: those whose rows do not depend on what
    /// follows them. The row that decides a lead is always computed.
    pub(super) fn reusable(&self, held: usize, stored: usize) -> usize {
        let policy = &self.policy;
        let needed = usize::from(policy.lead != Lead::None || policy.first_row == FirstRow::Before);
        let held = held.min(stored.saturating_sub(needed));
        match policy.attention {
            // The second sequence of guidance begins with masks.
            _ if self.slots() > 1 => 0,
            Attention::Full => 0,
            Attention::BlockCausal => held / policy.block * policy.block,
            Attention::Causal => held,
        }
    }
}

fn params(what: &'static str, known: &[Param], given: &BTreeMap<String, f32>) -> Result<Vec<f32>, PolicyError> {
    if let Some(name) = given.keys().find(|name| !known.iter().any(|param| param.name == *name)) {
        return Err(unknown(what, name, known.iter().map(|param| param.name).collect::<Vec<_>>().join(", ")));
    }
    if let Some(param) = known.iter().find(|param| given.get(param.name).is_some_and(|v| !v.is_finite())) {
        return Err(out_of_range(param.name, "a finite number"));
    }
    Ok(known.iter().map(|param| given.get(param.name).copied().unwrap_or(param.default)).collect())
}

fn out_of_range(field: &'static str, range: &'static str) -> PolicyError {
    PolicyError::Range { field, range }
}

fn unknown(what: &'static str, name: &str, known: String) -> PolicyError {
    let known = if known.is_empty() { "none at all".to_owned() } else { known };
    PolicyError::Unknown { what, name: name.to_owned(), known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::mock::Mock;
    use crate::decode::policy::{Reveal, Schedule, SubBlock};

    fn refused(mock: &Mock, ok: &DecodePolicy, change: &dyn Fn(&mut DecodePolicy)) -> String {
        let mut policy = ok.clone();
        change(&mut policy);
        policy.resolve(mock).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_advice() {
        let mock = Mock::new(64, 16, &[4, 8]);
        let ok = DecodePolicy::greedy(1, 4);
        assert!(ok.clone().resolve(&mock).is_ok());
        let refused = |change: &dyn Fn(&mut DecodePolicy)| refused(&mock, &ok, change);
        assert!(refused(&|p| p.block = 0).contains("use 1 to 8"));
        assert!(refused(&|p| p.block = 16).contains("use 1 to 8"));
        assert!(refused(&|p| p.mask_id = 16).contains("vocabulary of 16"));
        assert!(refused(&|p| p.mask_id = -1).contains("vocabulary of 16"));
        assert!(refused(&|p| p.steps = 0).contains("`steps`"));
        assert!(refused(&|p| p.reveal = Reveal::new("threshold").with("threshold", f32::INFINITY)).contains("finite"));
        assert!(refused(&|p| p.logit_shift = 2).contains("`logit_shift`"));
        assert!(refused(&|p| p.temperature = f32::NAN).contains("`temperature`"));
        assert!(refused(&|p| p.top_p = 0.0).contains("`top_p`"));
        assert!(refused(&|p| p.min_p = 1.1).contains("`min_p`"));
        assert!(refused(&|p| p.min_p = f32::NAN).contains("`min_p`"));
        assert!(refused(&|p| p.repetition_penalty = 0.0).contains("`repetition_penalty`"));
        assert!(refused(&|p| p.frequency_penalty = -2.1).contains("`frequency_penalty`"));
        assert!(refused(&|p| p.presence_penalty = f32::NAN).contains("`presence_penalty`"));
        for bias in [(16, 0.0), (-1, 0.0), (3, 101.0), (3, f32::NAN)] {
            assert!(refused(&|p| p.logit_bias = [bias].into()).contains("`logit_bias`"));
        }
        let telling = ok.clone().resolve(&mock).unwrap().telling(Some(129), &mock);
        assert!(telling.unwrap_err().to_string().contains("`logprobs`"));
        assert!(refused(&|p| p.cfg_scale = -1.0).contains("`cfg_scale`"));
        assert!(refused(&|p| p.sub_block = Some(SubBlock { length: 5, cached: true })).contains("`sub_block`"));
        assert!(refused(&|p| p.reveal = Reveal::new("guess")).contains("sequential"));
        assert!(refused(&|p| p.confidence = "hunch".into()).contains("margin"));
        assert!(refused(&|p| p.reveal = Reveal::new("threshold").with("tau", 1.0)).contains("use one of threshold"));
        assert!(refused(&|p| p.schedule = Schedule::new("uneven")).contains("timesteps"));
        assert!(refused(&|p| p.schedule = Schedule::new("timesteps").with("tau", 1.0)).contains("use one of eps"));
    }

    #[test]
    fn numbers_and_lists_that_nothing_justifies_are_refused() {
        let mock = Mock::new(64, 16, &[4, 8]);
        let refused = |ok: &DecodePolicy, change: &dyn Fn(&mut DecodePolicy)| refused(&mock, ok, change);
        for ok in [DecodePolicy::greedy(1, 4), DecodePolicy::llada(1), DecodePolicy::mdlm(1)] {
            for curve in ["even", "even-block", "linear", "timesteps"] {
                let steps = |p: &mut DecodePolicy| (p.schedule, p.steps) = (Schedule::new(curve), 1 << 60);
                assert!(refused(&ok, &steps).contains("1 to 65536"));
            }
            assert!(refused(&ok, &|p| p.stop_ids = vec![1; 17]).contains("`stop_ids`"));
            assert!(refused(&ok, &|p| p.suppress_ids = vec![2; 1000]).contains("`suppress_ids`"));
            assert!(refused(&ok, &|p| p.unsure_ids = vec![2; 1000]).contains("`unsure_ids`"));
            assert!(refused(&ok, &|p| p.stop_strings = vec![String::new(); 1 << 17]).contains("`stop_strings`"));
            assert!(refused(&ok, &|p| p.stop_strings = vec!["x".repeat(1 << 17)]).contains("`stop_strings`"));
            assert!(refused(&ok, &|p| p.block = usize::MAX).contains("a block of"));
            let eps = |p: &mut DecodePolicy| p.schedule = Schedule::new("timesteps").with("eps", f32::NAN);
            assert!(refused(&ok, &eps).contains("`eps`"));
        }
        let long = DecodePolicy { steps: 1 << 16, ..DecodePolicy::greedy(1, 4) };
        assert!(long.resolve(&mock).is_ok());
    }

    #[test]
    fn contradictions_are_refused() {
        let mock = Mock::new(64, 16, &[4, 8]);
        let refused = |change: &dyn Fn(&mut DecodePolicy)| refused(&mock, &DecodePolicy::greedy(1, 4), change);
        assert!(refused(&|p| p.cache = CacheMode::Dual).contains("`cache` cannot be dual"));
        assert!(refused(&|p| p.lead = Lead::MostLikely).contains("`lead`"));
        assert!(refused(&|p| p.hidden_id = Some(3)).contains("`hidden_id`"));
        assert!(refused(&|p| p.attention = Attention::Causal).contains("blocks of 1"));
        let mut full = DecodePolicy::llada(1);
        full.first_row = FirstRow::Before;
        assert!(full.resolve(&mock).is_err());
    }

    #[test]
    fn ready_made_policies_can_be_run() {
        let mock = Mock::new(128, 16, &[64]);
        let policies = [
            DecodePolicy::greedy(1, 4),
            DecodePolicy::llada(1),
            DecodePolicy::dream(1),
            DecodePolicy::fast_dllm_v2(1, 32),
            DecodePolicy::autoregressive(),
            DecodePolicy::bd3lm(1, Some(2), 32),
            DecodePolicy::mdlm(1),
        ];
        for policy in policies {
            policy.clone().resolve(&mock).unwrap();
            let text = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<DecodePolicy>(&text).unwrap(), policy);
        }
    }
}
