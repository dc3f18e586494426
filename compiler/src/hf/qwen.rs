//! Qwen2 / Qwen2.5 and Qwen3, dense: causal language models, the verifiers of hybrid decoding.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Imported, Source, tokens};

pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    architectures: &["Qwen2ForCausalLM"],
    doc: "Qwen2, Qwen2.5: causal, one token per forward pass",
    has_samplers: false,
    import: |source| import(source, QWEN2.name, true, false),
};

pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    architectures: &["Qwen3ForCausalLM"],
    doc: "Qwen3, dense: causal, one token per forward pass",
    has_samplers: false,
    import: |source| import(source, QWEN3.name, false, true),
};

fn import(source: &Source<'_>, name: &'static str, qkv_bias: bool, qk_norm: bool) -> Result<Imported, Error> {
    let config = &source.checkpoint.config;
    let mut facts = Facts::default();
    let decoder = Decoder::from_qwen_config(config, qkv_bias, qk_norm, Mask::Causal, &mut facts)?;
    let module = decoder.build(name, source.checkpoint, &mut facts)?;
    let policy = DecodePolicy {
        stop_ids: tokens::stop_ids(source, decoder.vocab, -1, &mut facts)?,
        ..DecodePolicy::autoregressive()
    };
    let max_positions = config.opt_usize("max_position_embeddings")?.unwrap_or(4096);
    Ok(Imported { family: name, module, policy, vocab: decoder.vocab, max_positions, facts })
}
