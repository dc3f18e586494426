//! Fast_dLLM v2 (`Fast_dLLM_QwenForCausalLM`): Qwen2.5-shaped, block-causal, logits shifted by one inside the window.
//!
//! Reference: Efficient-Large-Model/Fast_dLLM_v2 `modeling.py`. The mask id is not in the published configs; it is
//! that of the tokenizer's mask token.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Source, tokens};

pub(super) const FAMILY: Family = Family {
    name: "fast-dllm-v2",
    model_types: &["Fast_dLLM_Qwen"],
    architectures: &["Fast_dLLM_QwenForCausalLM"],
    doc: "Fast_dLLM v2 1.5B/7B: block diffusion, block-causal attention, sub-blocks, logits shifted by one",
    has_samplers: false,
    mask: |source| Ok(Mask::BlockCausal(super::small(block(source)?))),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, true, false, mask, facts),
    policy,
    positions: super::QWEN_POSITIONS,
};

/// The mask token of the published tokenizers.
const MASK_TOKEN: &str = "|<MASK>|";

fn policy(source: &Source<'_>, vocab: usize, facts: &mut Facts) -> Result<DecodePolicy, Error> {
    let mask_id = tokens::mask_id(source, vocab, Some(MASK_TOKEN), facts)?;
    let stop_ids = tokens::stop_ids(source, vocab, mask_id, facts)?;
    Ok(DecodePolicy { stop_ids, ..DecodePolicy::fast_dllm_v2(mask_id, block(source)?) })
}

fn block(source: &Source<'_>) -> Result<usize, Error> {
    source.block_or("bd_size", 32)
}
