//! Dream (`DreamModel`; DiffuCoder and Dream-Coder use the same class): Qwen2-shaped, full attention, logits shifted by one.
//!
//! Reference: NVlabs/Fast-dLLM `dream/model`, and the model repositories' `modeling_dream.py`.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::Decoder;
use super::facts::Facts;
use super::{Family, Source, tokens};

pub(super) const FAMILY: Family = Family {
    name: "dream",
    model_types: &["Dream"],
    architectures: &["DreamModel"],
    doc: "Dream v0 7B, Dream-Coder, DiffuCoder: masked diffusion, full attention, logits shifted by one position",
    has_samplers: false,
    mask: |_| Ok(Mask::Full),
    decoder: |config, mask, facts| Decoder::from_qwen_config(config, true, false, mask, facts),
    policy,
    positions: super::QWEN_POSITIONS,
};

fn policy(source: &Source<'_>, vocab: usize, facts: &mut Facts) -> Result<DecodePolicy, Error> {
    let mask_id = tokens::mask_id(source, vocab, None, facts)?;
    let own = DecodePolicy::dream(mask_id);
    let block = source.block.unwrap_or(own.block);
    let stop_ids = tokens::stop_ids(source, vocab, mask_id, facts)?;
    Ok(DecodePolicy { block, steps: block, stop_ids, ..own })
}
