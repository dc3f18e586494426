//! A decoding method as data: the [`DecodePolicy`] that an artifact's manifest carries and a call may override.
//!
//! Invariant: a policy that passed [`DecodePolicy::resolve`] names only rows of the static tables and holds numbers in
//! range, so the loop that interprets it never has to ask again. What the model fixes (mask id, block length, grid,
//! shift, cache mode) cannot be overridden per call; how tokens are chosen can. This file knows no model family.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::confidence::{self, Confidence};
use super::reveal::{self, RevealRule};
use crate::exec::Executor;

/// Where blocks begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockGrid {
    /// Multiples of the block length counted from position 0; the end of a prompt that is no multiple of it sits in the
    /// first decoded block as known tokens (SDAR).
    Absolute,
}

/// Which forward passes a block costs and what they leave in the KV caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// Every denoising pass feeds the block alone; a last pass over the finished block writes its permanent cache rows.
    CommitBlock,
}

/// Order of the two filters that cut the tail of a distribution before drawing from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterOrder {
    /// Top-k, then top-p over what is left (SDAR).
    TopKTopP,
    /// Top-p, then top-k (Dream).
    TopPTopK,
}

/// Which distribution the confidence of a drawn token is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfidenceStage {
    /// The softmax over the whole vocabulary (SDAR's evaluation sampler).
    BeforeFilters,
    /// The filtered and renormalized distribution (SDAR's `generate.py`, Dream).
    AfterFilters,
}

/// A reveal rule by name, with its parameters; absent parameters take the row's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reveal {
    /// Name of a row of [`reveal::REVEAL_RULES`].
    pub rule: String,
    /// Parameters by the names that the row lists.
    #[serde(flatten)]
    pub params: BTreeMap<String, f32>,
}

impl Reveal {
    /// The rule called `rule`, with its default parameters.
    pub fn new(rule: &str) -> Self {
        Self { rule: rule.to_owned(), params: BTreeMap::new() }
    }

    /// The same rule with one parameter set.
    #[must_use]
    pub fn with(mut self, param: &str, value: f32) -> Self {
        self.params.insert(param.to_owned(), value);
        self
    }
}

/// A family-neutral description of a decoding method.
///
/// Serialized as JSON with one key per field; unknown keys and unknown variants are errors, so a runtime never half
/// understands a policy that a newer compiler wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodePolicy {
    /// Where blocks begin.
    pub grid: BlockGrid,
    /// Block length in tokens.
    pub block: usize,
    /// Token that stands for "not decided yet"; it is never revealed.
    pub mask_id: i32,
    /// How many rows before a position its logits stand: 0, or 1 for models that predict the next token. The first row
    /// of a forward pass stands for itself.
    pub logit_shift: usize,
    /// Forward passes and cache writes per block.
    pub cache: CacheMode,
    /// Denoising steps per block, at least 1: the reveal rule's quota of step i is entry i of
    /// [`reveal::even_schedule`]`(block, steps)`.
    pub steps: usize,
    /// Which positions a step reveals.
    pub reveal: Reveal,
    /// Name of a row of [`confidence::CONFIDENCES`]: how sure the model is of a position.
    pub confidence: String,
    /// Distribution that the confidence is read from when drawing.
    pub confidence_stage: ConfidenceStage,
    /// 0 decodes greedily; otherwise logits are divided by it before filtering and drawing.
    pub temperature: f32,
    /// Keep the k most likely tokens (ties with the last one included); 0 keeps all, 1 decodes greedily.
    pub top_k: usize,
    /// Keep the most likely tokens until their probabilities exceed this; 1 keeps all.
    pub top_p: f32,
    /// Order of the two filters.
    pub filter_order: FilterOrder,
    /// Seed of the counter-based generator.
    pub seed: u64,
    /// Tokens that end the text. Decoding stops after the block that holds one.
    pub stop_ids: Vec<i32>,
    /// Texts that end the text; they are matched across token boundaries.
    pub stop_strings: Vec<String>,
}

impl DecodePolicy {
    /// The plain greedy method of a block diffusion model with an exact block cache: one token per step, absolute grid,
    /// probability as confidence.
    pub fn greedy(mask_id: i32, block: usize) -> Self {
        Self {
            grid: BlockGrid::Absolute,
            block,
            mask_id,
            logit_shift: 0,
            cache: CacheMode::CommitBlock,
            steps: block,
            reveal: Reveal::new("static"),
            confidence: "probability".to_owned(),
            confidence_stage: ConfidenceStage::BeforeFilters,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            filter_order: FilterOrder::TopKTopP,
            seed: 0,
            stop_ids: Vec::new(),
            stop_strings: Vec::new(),
        }
    }

    /// This policy with the given fields replaced.
    #[must_use]
    pub fn with(&self, overrides: &Overrides) -> Self {
        let o = overrides.clone();
        Self {
            steps: o.steps.unwrap_or(self.steps),
            reveal: o.reveal.unwrap_or_else(|| self.reveal.clone()),
            confidence: o.confidence.unwrap_or_else(|| self.confidence.clone()),
            temperature: o.temperature.unwrap_or(self.temperature),
            top_k: o.top_k.unwrap_or(self.top_k),
            top_p: o.top_p.unwrap_or(self.top_p),
            seed: o.seed.unwrap_or(self.seed),
            stop_ids: o.stop_ids.unwrap_or_else(|| self.stop_ids.clone()),
            stop_strings: o.stop_strings.unwrap_or_else(|| self.stop_strings.clone()),
            ..self.clone()
        }
    }

    /// Whether the token of a position is the most likely one rather than drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Looks up the table rows that the policy names and checks every number, also against what `executor` can run.
    ///
    /// # Errors
    /// The first thing that cannot be run, with what to change.
    pub fn resolve(&self, executor: &dyn Executor) -> Result<Resolved, PolicyError> {
        let largest = executor.step_buckets().last().copied().unwrap_or(0).min(executor.max_seq());
        if self.block == 0 || self.block > largest {
            return Err(PolicyError::Block { block: self.block, largest });
        }
        let vocab = executor.vocab();
        if usize::try_from(self.mask_id).map_or(true, |id| id >= vocab) {
            return Err(PolicyError::MaskId { mask_id: self.mask_id, vocab });
        }
        if self.logit_shift > 1 {
            return Err(out_of_range("logit_shift", "0 or 1"));
        }
        if self.steps == 0 {
            return Err(out_of_range("steps", "at least 1"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(out_of_range("temperature", "0 (greedy) or a positive number"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(out_of_range("top_p", "above 0 and at most 1"));
        }
        let confidence = confidence::find(&self.confidence)
            .ok_or_else(|| unknown("confidence measure", &self.confidence, confidence::names()))?;
        let rule = reveal::find(&self.reveal.rule)
            .ok_or_else(|| unknown("reveal rule", &self.reveal.rule, reveal::names()))?;
        if let Some(name) = self.reveal.params.keys().find(|name| !rule.params.iter().any(|p| p.name == *name)) {
            let known = rule.params.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
            return Err(unknown("parameter of this reveal rule", name, known));
        }
        let params = rule.params.iter().map(|p| self.reveal.params.get(p.name).copied().unwrap_or(p.default)).collect();
        Ok(Resolved { rule, params, confidence })
    }
}

/// The table rows that a policy names.
#[derive(Debug)]
pub struct Resolved {
    /// The reveal rule.
    pub rule: &'static RevealRule,
    /// Its parameters, in the order in which the row lists them.
    pub params: Vec<f32>,
    /// The confidence measure.
    pub confidence: &'static Confidence,
}

/// What one call changes of the artifact's policy; absent fields keep the artifact's value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// See [`DecodePolicy::steps`].
    pub steps: Option<usize>,
    /// See [`DecodePolicy::reveal`].
    pub reveal: Option<Reveal>,
    /// See [`DecodePolicy::confidence`].
    pub confidence: Option<String>,
    /// See [`DecodePolicy::temperature`].
    pub temperature: Option<f32>,
    /// See [`DecodePolicy::top_k`].
    pub top_k: Option<usize>,
    /// See [`DecodePolicy::top_p`].
    pub top_p: Option<f32>,
    /// See [`DecodePolicy::seed`].
    pub seed: Option<u64>,
    /// See [`DecodePolicy::stop_ids`]; an empty list decodes to the length limit.
    pub stop_ids: Option<Vec<i32>>,
    /// See [`DecodePolicy::stop_strings`].
    pub stop_strings: Option<Vec<String>>,
}

/// A policy that cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The block length does not fit the compiled steps.
    #[error("a block of {block} tokens does not fit the model: use 1 to {largest}, or compile with a larger step")]
    Block {
        /// Block length of the policy.
        block: usize,
        /// Largest block that the executor can run.
        largest: usize,
    },
    /// The mask id is no token of the model.
    #[error("mask id {mask_id} is outside the vocabulary of {vocab}: set the mask id of this checkpoint")]
    MaskId {
        /// Mask id of the policy.
        mask_id: i32,
        /// Vocabulary size of the model.
        vocab: usize,
    },
    /// A number is out of range.
    #[error("`{field}` is out of range: it must be {range}")]
    Range {
        /// Field of the policy.
        field: &'static str,
        /// What it must be.
        range: &'static str,
    },
    /// A table has no row of that name.
    #[error("there is no {what} `{name}`: use one of {known}")]
    Unknown {
        /// What was looked up.
        what: &'static str,
        /// The name in the policy.
        name: String,
        /// The names that exist.
        known: String,
    },
}

fn out_of_range(field: &'static str, range: &'static str) -> PolicyError {
    PolicyError::Range { field, range }
}

fn unknown(what: &'static str, name: &str, known: String) -> PolicyError {
    PolicyError::Unknown { what, name: name.to_owned(), known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::mock::Mock;

    #[test]
    fn json_round_trips_and_reads_as_a_person_would_write_it() {
        let mut policy = DecodePolicy::greedy(506, 4);
        policy.reveal = Reveal::new("threshold").with("threshold", 0.9);
        let json = serde_json::to_value(&policy).unwrap();
        assert_eq!(json["reveal"].to_string(), r#"{"rule":"threshold","threshold":0.8999999761581421}"#);
        assert_eq!(json["grid"], "absolute");
        assert_eq!(json["cache"], "commit-block");
        let text = serde_json::to_string(&policy).unwrap();
        assert!(text.contains(r#""threshold":0.9}"#), "{text}");
        assert_eq!(serde_json::from_str::<DecodePolicy>(&text).unwrap(), policy);
    }

    #[test]
    fn unknown_keys_and_variants_are_errors() {
        let text = serde_json::to_string(&DecodePolicy::greedy(1, 4)).unwrap();
        assert!(serde_json::from_str::<DecodePolicy>(&text.replace("absolute", "hexagonal")).is_err());
        assert!(serde_json::from_str::<DecodePolicy>(&text.replace("top_k", "top_q")).is_err());
        assert!(serde_json::from_str::<Overrides>(r#"{"mask_id": 3}"#).is_err());
    }

    #[test]
    fn overrides_replace_only_what_they_name() {
        let policy = DecodePolicy::greedy(1, 4);
        assert_eq!(policy.with(&Overrides::default()), policy);
        let changed = policy.with(&Overrides { top_k: Some(5), seed: Some(9), ..Overrides::default() });
        assert_eq!(changed, DecodePolicy { top_k: 5, seed: 9, ..policy });
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_advice() {
        let mock = Mock::new(64, 16, &[4, 8]);
        let ok = DecodePolicy::greedy(1, 4);
        assert!(ok.resolve(&mock).is_ok());
        let refused = |change: &dyn Fn(&mut DecodePolicy)| {
            let mut policy = ok.clone();
            change(&mut policy);
            policy.resolve(&mock).unwrap_err().to_string()
        };
        assert!(refused(&|p| p.block = 0).contains("use 1 to 8"));
        assert!(refused(&|p| p.block = 16).contains("use 1 to 8"));
        assert!(refused(&|p| p.mask_id = 16).contains("vocabulary of 16"));
        assert!(refused(&|p| p.mask_id = -1).contains("vocabulary of 16"));
        assert!(refused(&|p| p.steps = 0).contains("`steps`"));
        assert!(refused(&|p| p.logit_shift = 2).contains("`logit_shift`"));
        assert!(refused(&|p| p.temperature = f32::NAN).contains("`temperature`"));
        assert!(refused(&|p| p.top_p = 0.0).contains("`top_p`"));
        assert!(refused(&|p| p.reveal = Reveal::new("guess")).contains("sequential"));
        assert!(refused(&|p| p.confidence = "hunch".into()).contains("margin"));
        assert!(refused(&|p| p.reveal = Reveal::new("threshold").with("tau", 1.0)).contains("use one of threshold"));
    }
}
