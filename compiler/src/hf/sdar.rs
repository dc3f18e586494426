//! SDAR (`SDARForCausalLM`): Qwen3-shaped, block-causal, no logit shift; a commit pass after every block.
//!
//! Reference: JetAstra/SDAR, `modeling_sdar.py` and the evaluation sampler `huggingface_bd3.py`.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::{DecodePolicy, Reveal};

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Imported, Source, tokens};

pub(super) const FAMILY: Family = Family {
    name: "sdar",
    model_types: &["sdar"],
    architectures: &["SDARForCausalLM"],
    doc: "SDAR 1.7B…8B-Chat: block diffusion, block-causal attention, exact KV cache; reveals above a threshold",
    has_samplers: false,
    import,
};

/// Confidence above which a position is revealed, as the model cards recommend.
const THRESHOLD: f32 = 0.9;

fn import(source: &Source<'_>) -> Result<Imported, Error> {
    let config = &source.checkpoint.config;
    let mut facts = Facts::default();
    let block = match source.block {
        Some(block) => block,
        None => config.opt_usize("block_size")?.unwrap_or(4),
    };
    let decoder = Decoder::from_qwen_config(config, false, true, Mask::BlockCausal(super::small(block)), &mut facts)?;
    let module = decoder.build("sdar", source.checkpoint, &mut facts)?;
    let mask_id = tokens::mask_id(source, decoder.vocab, None, &mut facts)?;
    let policy = DecodePolicy {
        reveal: Reveal::new("threshold").with("threshold", THRESHOLD),
        stop_ids: tokens::stop_ids(source, decoder.vocab, mask_id, &mut facts)?,
        ..DecodePolicy::greedy(mask_id, block)
    };
    let max_positions = config.opt_usize("max_position_embeddings")?.unwrap_or(4096);
    Ok(Imported { family: FAMILY.name, module, policy, vocab: decoder.vocab, max_positions, facts })
}
