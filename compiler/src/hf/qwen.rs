//! Qwen2 / Qwen2.5 and Qwen3, dense: causal language models, the verifiers of hybrid decoding.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Source, tokens};

pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    architectures: &["Qwen2ForCausalLM"],
    doc: "Qwen2, Qwen2.5: causal, one token per forward pass",
    has_samplers: false,
    mask: |_| Ok(Mask::Causal),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, true, false, mask, facts),
    policy,
    positions: super::QWEN_POSITIONS,
};

pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    architectures: &["Qwen3ForCausalLM"],
    doc: "Qwen3, dense: causal, one token per forward pass",
    has_samplers: false,
    mask: |_| Ok(Mask::Causal),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, false, true, mask, facts),
    policy,
    positions: super::QWEN_POSITIONS,
};

fn policy(source: &Source<'_>, vocab: usize, facts: &mut Facts) -> Result<DecodePolicy, Error> {
    Ok(DecodePolicy { stop_ids: tokens::stop_ids(source, vocab, -1, facts)?, ..DecodePolicy::autoregressive() })
}
