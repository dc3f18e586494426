//! Fast_dLLM v2 (`Fast_dLLM_QwenForCausalLM`): Qwen2.5-shaped, block-causal, logits shifted by one inside the window.
//!
//! Reference: Efficient-Large-Model/Fast_dLLM_v2 `modeling.py`. The mask id is not in the published configs; it is
//! that of the tokenizer's mask token.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Imported, Source, tokens};

pub(super) const FAMILY: Family = Family {
    name: "fast-dllm-v2",
    model_types: &["Fast_dLLM_Qwen"],
    architectures: &["Fast_dLLM_QwenForCausalLM"],
    doc: "Fast_dLLM v2 1.5B/7B: block diffusion, block-causal attention, sub-blocks, logits shifted by one",
    has_samplers: false,
    import,
};

/// The mask token of the published tokenizers.
const MASK_TOKEN: &str = "|<MASK>|";

fn import(source: &Source<'_>) -> Result<Imported, Error> {
    let config = &source.checkpoint.config;
    let mut facts = Facts::default();
    let block = match source.block {
        Some(block) => block,
        None => config.opt_usize("bd_size")?.unwrap_or(32),
    };
    let decoder = Decoder::from_qwen_config(config, true, false, Mask::BlockCausal(super::small(block)), &mut facts)?;
    let module = decoder.build("fast-dllm-v2", source.checkpoint, &mut facts)?;
    let mask_id = tokens::mask_id(source, decoder.vocab, Some(MASK_TOKEN), &mut facts)?;
    let policy = DecodePolicy {
        stop_ids: tokens::stop_ids(source, decoder.vocab, mask_id, &mut facts)?,
        ..DecodePolicy::fast_dllm_v2(mask_id, block)
    };
    let max_positions = config.opt_usize("max_position_embeddings")?.unwrap_or(4096);
    Ok(Imported { family: FAMILY.name, module, policy, vocab: decoder.vocab, max_positions, facts })
}
