//! Ready-made policies of known decoding methods, with defaults for a product rather than those of a paper's tables.
//!
//! A front end starts from one of these and adds what the checkpoint says: stop ids, another block length.

use std::collections::BTreeMap;

use super::policy::{
    Attention, BlockGrid, CacheMode, ConfidenceStage, DecodePolicy, FilterOrder, FirstRow, Lead, PromptTail, Reveal,
    Schedule, StopAt, SubBlock,
};

/// Blocks of models whose attention does not fix a length.
const FREE_BLOCK: usize = 32;
/// Confidence above which a position is revealed, as the model cards and Fast-dLLM recommend.
const THRESHOLD: f32 = 0.9;

impl DecodePolicy {
    /// The plain greedy method of a block diffusion model with an exact block cache: one token per step, absolute grid,
    /// probability as confidence (SDAR).
    pub fn greedy(mask_id: i32, block: usize) -> Self {
        Self {
            attention: Attention::BlockCausal,
            grid: BlockGrid::Absolute,
            block,
            sub_block: None,
            mask_id,
            hidden_id: None,
            logit_shift: 0,
            first_row: FirstRow::Own,
            lead: Lead::None,
            cache: CacheMode::CommitBlock,
            prompt_tail: PromptTail::InBlock,
            steps: block,
            schedule: Schedule::new("even-block"),
            reveal: Reveal::new("static"),
            confidence: "probability".to_owned(),
            confidence_stage: ConfidenceStage::BeforeFilters,
            cfg_scale: 0.0,
            suppress_ids: Vec::new(),
            unsure_ids: Vec::new(),
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            filter_order: FilterOrder::TopKTopP,
            min_p: 0.0,
            logit_bias: BTreeMap::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            min_tokens: 0,
            seed: 0,
            stop_at: StopAt::Block,
            stop_ids: Vec::new(),
            stop_strings: Vec::new(),
        }
    }

    /// LLaDA: full attention, blocks of 32 from the end of the prompt, every pass over the whole sequence; reveals above
    /// 0.9, at least one position per pass. `cache` may be set to [`CacheMode::Prefix`] or [`CacheMode::Dual`].
    pub fn llada(mask_id: i32) -> Self {
        Self {
            attention: Attention::Full,
            grid: BlockGrid::PromptEnd,
            cache: CacheMode::None,
            schedule: Schedule::new("even"),
            reveal: Reveal::new("threshold").with("threshold", THRESHOLD),
            confidence_stage: ConfidenceStage::BeforeTemperature,
            ..Self::greedy(mask_id, FREE_BLOCK)
        }
    }

    /// Dream, DiffuCoder, Dream-Coder: as [`DecodePolicy::llada`], but a row decides the position after it, and
    /// confidences are read after filtering. With a cache, the first token of a block comes from the row before it.
    pub fn dream(mask_id: i32) -> Self {
        Self {
            logit_shift: 1,
            lead: Lead::Chosen,
            confidence_stage: ConfidenceStage::AfterFilters,
            filter_order: FilterOrder::TopPTopK,
            ..Self::llada(mask_id)
        }
    }

    /// Fast_dLLM v2: block-causal attention, sub-blocks of 8 with a cache, reveals above 0.9, and a first token per block
    /// that the committed rows before it decide. Stops as soon as a stop token is certain to stay.
    pub fn fast_dllm_v2(mask_id: i32, block: usize) -> Self {
        Self {
            sub_block: Some(SubBlock { length: block.min(8), cached: true }),
            logit_shift: 1,
            lead: Lead::MostLikely,
            cache: CacheMode::CommitBetween,
            schedule: Schedule::new("even"),
            reveal: Reveal::new("threshold").with("threshold", THRESHOLD),
            confidence_stage: ConfidenceStage::AfterFilters,
            stop_at: StopAt::Settled,
            ..Self::greedy(mask_id, block)
        }
    }

    /// An autoregressive model (Qwen2, Qwen3): causal attention, and every block is one token that the row before it
    /// decides.
    pub fn autoregressive() -> Self {
        Self {
            attention: Attention::Causal,
            logit_shift: 1,
            lead: Lead::Chosen,
            cache: CacheMode::CommitBetween,
            ..Self::greedy(-1, 1)
        }
    }

    /// BD3LM sampler of dllm for models with full attention (Tiny-A2D): blocks from the end of the prompt, each frozen
    /// when it is finished; `hidden_id` is the padding token, which later blocks do not see. One token per step.
    pub fn bd3lm(mask_id: i32, hidden_id: Option<i32>, block: usize) -> Self {
        Self {
            attention: Attention::Full,
            grid: BlockGrid::PromptEnd,
            hidden_id,
            cache: CacheMode::CommitBetween,
            schedule: Schedule::new("linear"),
            confidence_stage: ConfidenceStage::BeforeTemperature,
            ..Self::greedy(mask_id, block)
        }
    }

    /// MDLM sampler of dllm (Tiny-A2D): as [`DecodePolicy::llada`] with its own schedule, one token per step.
    pub fn mdlm(mask_id: i32) -> Self {
        Self { schedule: Schedule::new("linear"), reveal: Reveal::new("static"), ..Self::llada(mask_id) }
    }
}
