//! A decoding method as data: the [`DecodePolicy`] that an artifact's manifest carries and a call may override.
//!
//! Invariant: every field is plain data with one JSON key, and unknown keys are errors. What the model fixes (mask id,
//! attention, grid, shift) cannot be overridden per call; how tokens are chosen can. Whether a policy can be run is the
//! business of [`DecodePolicy::resolve`]; ready-made policies of known methods are constructors beside it. This file
//! knows no model family.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::PolicyError;

/// Where blocks begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockGrid {
    /// Multiples of the block length counted from position 0; the end of a prompt that is no multiple of it shares a
    /// block with the first new tokens (SDAR, Fast_dLLM v2, infilling).
    Absolute,
    /// Multiples of the block length counted from the end of the prompt, in both directions (LLaDA, Dream, BD3LM).
    PromptEnd,
}

/// What the attention mask of the compiled steps lets a row see of the visible cache rows. It is fixed in the artifact;
/// the policy repeats it because it decides which schedules of passes are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// Everything. The last block of a call may be short.
    Full,
    /// The rows of its own block of [`DecodePolicy::block`] cache rows and of all blocks before.
    BlockCausal,
    /// Itself and the rows before.
    Causal,
}

/// Which forward passes a block costs and what they leave in the KV caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// Every pass feeds the whole sequence, later blocks as masks.
    None,
    /// The first pass of a block feeds the whole sequence; the others feed the block and all that follows it, against
    /// the cached rows before the block (Fast-dLLM prefix cache).
    Prefix,
    /// The first pass of a block feeds the whole sequence; the others feed the block alone, against the cached rows
    /// before and after it (Fast-dLLM dual cache).
    Dual,
    /// Every pass feeds the block alone, against the rows before it; a last pass over each finished block writes its
    /// permanent cache rows (SDAR).
    CommitBlock,
    /// Like [`CacheMode::CommitBlock`], but only when another block follows (Fast_dLLM v2, BD3LM, autoregressive).
    CommitBetween,
}

/// A finer grid inside a block: its sub-blocks are finished one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubBlock {
    /// Length in tokens; sub-blocks are counted from the beginning of the block.
    pub length: usize,
    /// Whether a pass feeds the sub-block alone, against the block's rows of earlier passes, instead of the whole block
    /// (Fast_dLLM v2 `use_block_cache`). The whole block is still fed by its first pass, and as long as the first
    /// position of the sub-block is undecided.
    pub cached: bool,
}

/// Who decides the first token of a block when the model predicts the next token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lead {
    /// Nobody in particular.
    #[default]
    None,
    /// The row before the block, in the pass that fills the caches for the block, if there is one: its most likely
    /// token.
    MostLikely,
    /// The same row, but the token is chosen as the policy says: drawn when it draws.
    Chosen,
}

/// What stands in for the row before a forward pass when logits are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstRow {
    /// The first row of the pass stands for itself (Dream, Fast_dLLM v2).
    #[default]
    Own,
    /// The last row of the pass that filled the caches for the block, if there is one (BD3LM `right_shift_logits`).
    Before,
}

/// Where the end of a prompt that shares a block with new tokens is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptTail {
    /// In every pass over the block, where it sees the new tokens.
    #[default]
    InBlock,
    /// In the prefill, so that it never sees them until the block is committed (BD3LM as in its model card).
    Prefilled,
}

/// When a stop token ends decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopAt {
    /// When the block that holds it is finished.
    #[default]
    Block,
    /// When the sub-block that holds it is finished.
    SubBlock,
    /// As soon as nothing before it is undecided (Fast_dLLM v2).
    Settled,
    /// At once; undecided positions may remain before it (BD3LM as in its model card).
    Revealed,
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

/// Which distribution the confidence of a chosen token is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfidenceStage {
    /// The softmax of the logits as they are (LLaDA, BD3LM, MDLM).
    BeforeTemperature,
    /// The softmax over the whole vocabulary after the temperature (SDAR's evaluation sampler).
    BeforeFilters,
    /// The filtered and renormalized distribution (SDAR's `generate.py`, Dream, Fast_dLLM v2).
    AfterFilters,
}

/// A reveal rule by name, with its parameters; absent parameters take the row's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reveal {
    /// Name of a row of [`REVEAL_RULES`](super::reveal::REVEAL_RULES).
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

/// A transfer schedule by name, with its parameters; absent parameters take the row's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Name of a row of [`SCHEDULES`](super::schedule::SCHEDULES).
    pub curve: String,
    /// Parameters by the names that the row lists.
    #[serde(flatten)]
    pub params: BTreeMap<String, f32>,
}

impl Schedule {
    /// The curve called `curve`, with its default parameters.
    pub fn new(curve: &str) -> Self {
        Self { curve: curve.to_owned(), params: BTreeMap::new() }
    }

    /// The same curve with one parameter set.
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
    /// What a row may attend in the compiled steps.
    pub attention: Attention,
    /// Where blocks begin.
    pub grid: BlockGrid,
    /// Block length in tokens.
    pub block: usize,
    /// Finer grid inside a block; absent: a block is decoded as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_block: Option<SubBlock>,
    /// Token that stands for "not decided yet"; it is never revealed. -1 for autoregressive models, which have none.
    pub mask_id: i32,
    /// Token that, once decided, is neither fed nor attended by later blocks, and takes up no rotary position (BD3LM
    /// hides the padding token, generated or not); absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_id: Option<i32>,
    /// How many rows before a position its logits stand: 0, or 1 for models that predict the next token.
    pub logit_shift: usize,
    /// With a shift: what decides the first position of a forward pass.
    #[serde(default)]
    pub first_row: FirstRow,
    /// With a shift: who decides the first token of a block.
    #[serde(default)]
    pub lead: Lead,
    /// Forward passes and cache writes per block.
    pub cache: CacheMode,
    /// Where the end of a prompt that shares a block with new tokens is computed.
    #[serde(default)]
    pub prompt_tail: PromptTail,
    /// Denoising steps per block, at least 1.
    pub steps: usize,
    /// How many positions each step should reveal.
    pub schedule: Schedule,
    /// Which positions a step reveals.
    pub reveal: Reveal,
    /// Name of a row of [`CONFIDENCES`](super::confidence::CONFIDENCES): how sure the model is of a position.
    pub confidence: String,
    /// Distribution that the confidence is read from when drawing.
    pub confidence_stage: ConfidenceStage,
    /// Classifier-free guidance w: logits are u + (w + 1)(c - u), where u are those of a second pass in which the prompt
    /// is masked; 0 makes no second pass.
    #[serde(default)]
    pub cfg_scale: f32,
    /// Tokens that are never chosen; they leave the distribution before anything else happens (LLaDA `logits_eos_inf`,
    /// MDLM `suppress_tokens`).
    #[serde(default)]
    pub suppress_ids: Vec<i32>,
    /// Tokens that leave the distribution after the choice, so that choosing one has confidence 0 (LLaDA
    /// `confidence_eos_eot_inf`, MDLM `begin_suppress_tokens`).
    #[serde(default)]
    pub unsure_ids: Vec<i32>,
    /// 0 decodes greedily; otherwise logits are divided by it before filtering and drawing.
    pub temperature: f32,
    /// Keep the k most likely tokens (ties with the last one included); 0 keeps all, 1 decodes greedily.
    pub top_k: usize,
    /// Keep the most likely tokens until their probabilities exceed this; 1 keeps all.
    pub top_p: f32,
    /// Order of the two filters.
    pub filter_order: FilterOrder,
    /// Of what they leave, keep the tokens whose probability is at least this part of the largest one; 0 keeps all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_p: f32,
    /// What is added to the logits of tokens, -100 to 100.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logit_bias: BTreeMap<i32, f32>,
    /// Divides the positive logits of tokens that prompt or answer have and multiplies their negative ones; 1 changes
    /// nothing.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repetition_penalty: f32,
    /// Taken from the logit of a token for each time that the answer has it, -2 to 2.
    #[serde(default, skip_serializing_if = "is_default")]
    pub frequency_penalty: f32,
    /// Taken once from the logits of tokens that the answer has, -2 to 2.
    #[serde(default, skip_serializing_if = "is_default")]
    pub presence_penalty: f32,
    /// The answer has no stop token, and no stop string ends, before so many tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub min_tokens: usize,
    /// Seed of the counter-based generator.
    pub seed: u64,
    /// When a stop token ends decoding.
    #[serde(default)]
    pub stop_at: StopAt,
    /// Tokens that end the text.
    pub stop_ids: Vec<i32>,
    /// Texts that end the text; they are matched across token boundaries.
    pub stop_strings: Vec<String>,
}

impl DecodePolicy {
    /// This policy with the given fields replaced.
    ///
    /// # Errors
    /// A block length where the model's attention mask fixes it.
    pub fn with(&self, overrides: &Overrides) -> Result<Self, PolicyError> {
        let o = overrides.clone();
        if o.block.is_some_and(|block| block != self.block) && self.attention != Attention::Full {
            return Err(PolicyError::FixedBlock { block: self.block });
        }
        Ok(Self {
            block: o.block.unwrap_or(self.block),
            cache: o.cache.unwrap_or(self.cache),
            steps: match (o.steps, o.block) {
                (Some(steps), _) => steps,
                // One token per step stays one token per step.
                (None, Some(block)) if self.steps == self.block => block,
                (None, _) => self.steps,
            },
            schedule: o.schedule.unwrap_or_else(|| self.schedule.clone()),
            reveal: o.reveal.unwrap_or_else(|| self.reveal.clone()),
            confidence: o.confidence.unwrap_or_else(|| self.confidence.clone()),
            cfg_scale: o.cfg_scale.unwrap_or(self.cfg_scale),
            suppress_ids: o.suppress_ids.unwrap_or_else(|| self.suppress_ids.clone()),
            temperature: o.temperature.unwrap_or(self.temperature),
            top_k: o.top_k.unwrap_or(self.top_k),
            top_p: o.top_p.unwrap_or(self.top_p),
            min_p: o.min_p.unwrap_or(self.min_p),
            logit_bias: o.logit_bias.unwrap_or_else(|| self.logit_bias.clone()),
            repetition_penalty: o.repetition_penalty.unwrap_or(self.repetition_penalty),
            frequency_penalty: o.frequency_penalty.unwrap_or(self.frequency_penalty),
            presence_penalty: o.presence_penalty.unwrap_or(self.presence_penalty),
            min_tokens: o.min_tokens.unwrap_or(self.min_tokens),
            seed: o.seed.unwrap_or(self.seed),
            stop_ids: o.stop_ids.unwrap_or_else(|| self.stop_ids.clone()),
            stop_strings: o.stop_strings.unwrap_or_else(|| self.stop_strings.clone()),
            ..self.clone()
        })
    }

    /// Whether the token of a position is the most likely one rather than drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether logits are changed by what they are of and by what the sequence holds, see [`adjust`](super::adjust).
    pub fn adjusts(&self) -> bool {
        !self.logit_bias.is_empty()
            || self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || self.min_tokens > 0
    }

    /// Whether blocks are finished by a pass that writes their permanent cache rows.
    pub fn commits(&self) -> bool {
        matches!(self.cache, CacheMode::CommitBlock | CacheMode::CommitBetween)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> f32 {
    1.0
}

fn is_one(value: &f32) -> bool {
    *value == 1.0
}

/// What one call changes of the artifact's policy; absent fields keep the artifact's value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// See [`DecodePolicy::block`]; only models with full attention can change it.
    pub block: Option<usize>,
    /// See [`DecodePolicy::cache`].
    pub cache: Option<CacheMode>,
    /// See [`DecodePolicy::steps`].
    pub steps: Option<usize>,
    /// See [`DecodePolicy::schedule`].
    pub schedule: Option<Schedule>,
    /// See [`DecodePolicy::reveal`].
    pub reveal: Option<Reveal>,
    /// See [`DecodePolicy::confidence`].
    pub confidence: Option<String>,
    /// See [`DecodePolicy::cfg_scale`].
    pub cfg_scale: Option<f32>,
    /// See [`DecodePolicy::suppress_ids`].
    pub suppress_ids: Option<Vec<i32>>,
    /// See [`DecodePolicy::temperature`].
    pub temperature: Option<f32>,
    /// See [`DecodePolicy::top_k`].
    pub top_k: Option<usize>,
    /// See [`DecodePolicy::top_p`].
    pub top_p: Option<f32>,
    /// See [`DecodePolicy::min_p`].
    pub min_p: Option<f32>,
    /// See [`DecodePolicy::logit_bias`].
    pub logit_bias: Option<BTreeMap<i32, f32>>,
    /// See [`DecodePolicy::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`DecodePolicy::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`DecodePolicy::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// See [`DecodePolicy::min_tokens`].
    pub min_tokens: Option<usize>,
    /// See [`DecodePolicy::seed`].
    pub seed: Option<u64>,
    /// See [`DecodePolicy::stop_ids`]; an empty list decodes to the length limit.
    pub stop_ids: Option<Vec<i32>>,
    /// See [`DecodePolicy::stop_strings`].
    pub stop_strings: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_reads_as_a_person_would_write_it() {
        let mut policy = DecodePolicy::greedy(506, 4);
        policy.reveal = Reveal::new("threshold").with("threshold", 0.9);
        let json = serde_json::to_value(&policy).unwrap();
        assert_eq!(json["reveal"].to_string(), r#"{"rule":"threshold","threshold":0.8999999761581421}"#);
        assert_eq!(json["grid"], "absolute");
        assert_eq!(json["cache"], "commit-block");
        policy.logit_bias = BTreeMap::from([(5, -100.0), (7, 0.1)]);
        assert_eq!(serde_json::to_value(&policy).unwrap()["logit_bias"]["5"], -100.0);
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
        assert_eq!(policy.with(&Overrides::default()), Ok(policy.clone()));
        let changed = policy.with(&Overrides { top_k: Some(5), seed: Some(9), ..Overrides::default() });
        assert_eq!(changed, Ok(DecodePolicy { top_k: 5, seed: 9, ..policy }));
    }

    #[test]
    fn only_full_attention_lets_a_call_choose_the_block() {
        let block = Overrides { block: Some(16), ..Overrides::default() };
        assert_eq!(DecodePolicy::greedy(1, 4).with(&block), Err(PolicyError::FixedBlock { block: 4 }));
        assert_eq!(DecodePolicy::greedy(1, 16).with(&block), Ok(DecodePolicy::greedy(1, 16)));
        assert_eq!(DecodePolicy::llada(1).with(&block).map(|policy| (policy.block, policy.steps)), Ok((16, 16)));
    }

    #[test]
    fn what_a_method_does_not_use_may_be_absent() {
        let text = serde_json::to_string(&DecodePolicy::greedy(1, 4)).unwrap();
        for absent in ["sub_block", "hidden_id", "min_p", "penalty", "logit_bias", "min_tokens"] {
            assert!(!text.contains(absent), "{absent}");
        }
        let without = text.replace(r#""cfg_scale":0.0,"#, "").replace(r#""lead":"none","#, "");
        assert_ne!(without, text);
        assert_eq!(serde_json::from_str::<DecodePolicy>(&without).unwrap(), DecodePolicy::greedy(1, 4));
    }
}
