//! Tiny-A2D (dllm): Qwen3 and Qwen2.5-Coder checkpoints turned into diffusion models; the causal mask is gone, nothing else.
//!
//! Nothing in the config tells an mdlm checkpoint from a bd3lm one, nor gives the block length: `--sampler` does.
//! Reference: ZHZisZZ/dllm, and the authors' model cards.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Imported, Source, tokens};

pub(super) const QWEN2: Family = Family {
    name: "a2d-qwen2",
    model_types: &["a2d-qwen2"],
    architectures: &["A2DQwen2LMHeadModel"],
    doc: "Qwen2.5-Coder-0.5B-diffusion: samplers bd3lm (default), mdlm",
    has_samplers: true,
    import: |source| import(source, QWEN2.name, true, false),
};

pub(super) const QWEN3: Family = Family {
    name: "a2d-qwen3",
    model_types: &["a2d-qwen3"],
    architectures: &["A2DQwen3LMHeadModel"],
    doc: "Qwen3-0.6B-diffusion: samplers bd3lm (default), mdlm",
    has_samplers: true,
    import: |source| import(source, QWEN3.name, false, true),
};

/// Block length of training, model cards and evaluation.
const BLOCK: usize = 32;

fn import(source: &Source<'_>, name: &'static str, qkv_bias: bool, qk_norm: bool) -> Result<Imported, Error> {
    let config = &source.checkpoint.config;
    let mut facts = Facts::default();
    let decoder = Decoder::from_qwen_config(config, qkv_bias, qk_norm, Mask::Full, &mut facts)?;
    let module = decoder.build(name, source.checkpoint, &mut facts)?;
    let mask_id = tokens::mask_id(source, decoder.vocab, None, &mut facts)?;
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
    let policy = DecodePolicy { stop_ids: tokens::stop_ids(source, decoder.vocab, mask_id, &mut facts)?, ..own };
    let max_positions = config.opt_usize("max_position_embeddings")?.unwrap_or(4096);
    Ok(Imported { family: name, module, policy, vocab: decoder.vocab, max_positions, facts })
}
