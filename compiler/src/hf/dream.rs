//! Dream (`DreamModel`; DiffuCoder and Dream-Coder use the same class): Qwen2-shaped, full attention, logits shifted by one.
//!
//! Reference: NVlabs/Fast-dLLM `dream/model`, and the model repositories' `modeling_dream.py`.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Imported, Source, tokens};

pub(super) const FAMILY: Family = Family {
    name: "dream",
    model_types: &["Dream"],
    architectures: &["DreamModel"],
    doc: "Dream v0 7B, Dream-Coder, DiffuCoder: masked diffusion, full attention, logits shifted by one position",
    has_samplers: false,
    import,
};

fn import(source: &Source<'_>) -> Result<Imported, Error> {
    let config = &source.checkpoint.config;
    let mut facts = Facts::default();
    let decoder = Decoder::from_qwen_config(config, true, false, Mask::Full, &mut facts)?;
    let module = decoder.build("dream", source.checkpoint, &mut facts)?;
    let mask_id = tokens::mask_id(source, decoder.vocab, None, &mut facts)?;
    let own = DecodePolicy::dream(mask_id);
    let block = source.block.unwrap_or(own.block);
    let policy = DecodePolicy {
        block,
        steps: block,
        stop_ids: tokens::stop_ids(source, decoder.vocab, mask_id, &mut facts)?,
        ..own
    };
    let max_positions = config.opt_usize("max_position_embeddings")?.unwrap_or(4096);
    Ok(Imported { family: FAMILY.name, module, policy, vocab: decoder.vocab, max_positions, facts })
}
