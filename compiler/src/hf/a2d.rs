//! Tiny-A2D (dllm): Qwen3 and Qwen2.5-Coder checkpoints turned into diffusion models; the causal mask is gone, nothing else.
//!
//! Nothing in the config tells an mdlm checkpoint from a bd3lm one, nor gives the block length: `--sampler` does.
//! Reference: ZHZisZZ/dllm, and the authors' model cards.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Source, tokens};

pub(super) const QWEN2: Family = Family {
    name: "a2d-qwen2",
    model_types: &["a2d-qwen2"],
    architectures: &["A2DQwen2LMHeadModel"],
    doc: "Qwen2.5-Coder-0.5B-diffusion: samplers bd3lm (default), mdlm",
    has_samplers: true,
    mask: |_| Ok(Mask::Full),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, true, false, mask, facts),
    policy: |source, vocab, facts| policy(source, QWEN2.name, vocab, facts),
    positions: super::QWEN_POSITIONS,
};

pub(super) const QWEN3: Family = Family {
    name: "a2d-qwen3",
    model_types: &["a2d-qwen3"],
    architectures: &["A2DQwen3LMHeadModel"],
    doc: "Qwen3-0.6B-diffusion: samplers bd3lm (default), mdlm",
    has_samplers: true,
    mask: |_| Ok(Mask::Full),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, false, true, mask, facts),
    policy: |source, vocab, facts| policy(source, QWEN3.name, vocab, facts),
    positions: super::QWEN_POSITIONS,
};

/// Block length of training, model cards and evaluation.
const BLOCK: usize = 32;

fn policy(source: &Source<'_>, name: &'static str, vocab: usize, facts: &mut Facts) -> Result<DecodePolicy, Error> {
    let mask_id = tokens::mask_id(source, vocab, None, facts)?;
    let block = source.block.unwrap_or(BLOCK);
    let own = match source.sampler {
        None | Some("bd3lm") => DecodePolicy::bd3lm(mask_id, source.text.special_token_id("pad_token"), block),
        Some("mdlm") => DecodePolicy { block, steps: block, ..DecodePolicy::mdlm(mask_id) },
        Some(other) => {
            return Err(
                Error::new("--sampler", format!("`{other}` is not a sampler of {name}")).help("use bd3lm or mdlm")
            );
        }
    };
    if source.sampler.is_none() {
        facts.note("the sampler is bd3lm, as nothing in the checkpoint says; --sampler mdlm compiles the other one");
    }
    Ok(DecodePolicy { stop_ids: tokens::stop_ids(source, vocab, mask_id, facts)?, ..own })
}
