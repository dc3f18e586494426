//! SDAR (`SDARForCausalLM`): Qwen3-shaped, block-causal, no logit shift; a commit pass after every block.
//!
//! Reference: JetAstra/SDAR, `modeling_sdar.py` and the evaluation sampler `huggingface_bd3.py`.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::{DecodePolicy, Reveal};

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Source, tokens};

pub(super) const FAMILY: Family = Family {
    name: "sdar",
    model_types: &["sdar"],
    architectures: &["SDARForCausalLM"],
    doc: "SDAR 1.7B…8B-Chat: block diffusion, block-causal attention, exact KV cache; reveals above a threshold",
    has_samplers: false,
    mask: |source| Ok(Mask::BlockCausal(super::small(block(source)?))),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, false, true, mask, facts),
    policy,
    positions: super::QWEN_POSITIONS,
};

/// Confidence above which a position is revealed, as the model cards recommend.
const THRESHOLD: f32 = 0.9;

fn policy(source: &Source<'_>, vocab: usize, facts: &mut Facts) -> Result<DecodePolicy, Error> {
    let mask_id = tokens::mask_id(source, vocab, None, facts)?;
    Ok(DecodePolicy {
        reveal: Reveal::new("threshold").with("threshold", THRESHOLD),
        stop_ids: tokens::stop_ids(source, vocab, mask_id, facts)?,
        ..DecodePolicy::greedy(mask_id, block(source)?)
    })
}

fn block(source: &Source<'_>) -> Result<usize, Error> {
    source.block_or("block_size", 4)
}
