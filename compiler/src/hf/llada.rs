//! LLaDA (`LLaDAModelLM`): its own config keys and tensor names, full attention, no logit shift.
//!
//! Reference: ML-GSAI/LLaDA `modeling_llada.py`. A missing key takes the Python class's default, which is that of GPT-2; a
//! config that relies on such a default for something that is not supported is refused.

use dlx_ir::{Error, Mask};
use dlx_runtime::decode::DecodePolicy;

use super::decoder::{Decoder, Names};
use super::facts::Facts;
use super::{Family, Source, keys, rope, tokens};
use crate::checkpoint::Config;

pub(super) const FAMILY: Family = Family {
    name: "llada",
    model_types: &["llada"],
    architectures: &["LLaDAModelLM"],
    doc: "LLaDA 8B Base/Instruct, LLaDA 1.5: masked diffusion, full attention, blocks counted from the prompt's end",
    has_samplers: false,
    mask: |_| Ok(Mask::Full),
    decoder,
    policy,
    positions: ("max_sequence_length", 1024),
};

const NAMES: Names = Names {
    embed: "model.transformer.wte",
    attn_norm: "model.transformer.blocks.{}.attn_norm",
    q: "model.transformer.blocks.{}.q_proj",
    k: "model.transformer.blocks.{}.k_proj",
    v: "model.transformer.blocks.{}.v_proj",
    o: "model.transformer.blocks.{}.attn_out",
    mlp_norm: "model.transformer.blocks.{}.ff_norm",
    gate: "model.transformer.blocks.{}.ff_proj",
    up: "model.transformer.blocks.{}.up_proj",
    // The same leaf name is the down projection in a block and the LM head at the top.
    down: "model.transformer.blocks.{}.ff_out",
    final_norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
};

/// Keys of `config.json` that this family reads.
const KEYS: &[&str] = &[
    "activation_type",
    "alibi",
    "alibi_bias_max",
    "attention_layer_norm",
    "attention_layer_norm_with_affine",
    "bias_for_layer_norm",
    "block_group_size",
    "block_type",
    "d_model",
    "embedding_size",
    "flash_attention",
    "include_bias",
    "include_qkv_bias",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "input_emb_norm",
    "layer_norm_type",
    "layer_norm_with_affine",
    "max_sequence_length",
    "mlp_hidden_size",
    "mlp_ratio",
    "multi_query_attention",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "precision",
    "rms_norm_eps",
    "rope",
    "rope_full_precision",
    "rope_theta",
    "scale_logits",
    "vocab_size",
    "weight_tying",
];

fn policy(source: &Source<'_>, vocab: usize, facts: &mut Facts) -> Result<DecodePolicy, Error> {
    let mask_id = tokens::mask_id(source, vocab, None, facts)?;
    let own = DecodePolicy::llada(mask_id);
    let block = source.block.unwrap_or(own.block);
    let stop_ids = tokens::stop_ids(source, vocab, mask_id, facts)?;
    Ok(DecodePolicy { block, steps: block, stop_ids, ..own })
}

fn decoder(config: &Config, mask: Mask, facts: &mut Facts) -> Result<Decoder, Error> {
    keys::check(config, KEYS, facts)?;
    must_be(config, "block_type", "sequential", "llama")?;
    must_be(config, "layer_norm_type", "default", "rms")?;
    must_be(config, "activation_type", "swiglu", "silu")?;
    for (key, default, wanted) in [
        ("alibi", false, false),
        ("attention_layer_norm", false, false),
        ("bias_for_layer_norm", false, false),
        ("include_bias", false, false),
        ("layer_norm_with_affine", true, true),
        ("rope", false, true),
    ] {
        if config.opt_bool(key)?.unwrap_or(default) != wanted {
            return Err(config.error(key, format!("must be {wanted}; the other form is not supported")));
        }
    }
    let hidden = config.usize("d_model")?;
    let heads = config.usize("n_heads")?;
    let multi_query = config.opt_bool("multi_query_attention")?.unwrap_or(false);
    let kv_heads = config.opt_usize("n_kv_heads")?.unwrap_or(if multi_query { 1 } else { heads });
    if hidden % heads != 0 || heads % kv_heads != 0 {
        return Err(config.error("n_heads", format!("{heads} heads and {kv_heads} key heads do not divide {hidden}")));
    }
    let mlp = match config.opt_usize("mlp_hidden_size")? {
        Some(size) => size,
        None => config.opt_usize("mlp_ratio")?.unwrap_or(4).saturating_mul(hidden),
    };
    let vocab = config.opt_usize("vocab_size")?.unwrap_or(50257);
    let scale = |key: &str, by: f32| Ok::<_, Error>(if config.opt_bool(key)? == Some(true) { by } else { 1.0 });
    let root = (hidden as f32).sqrt();
    Ok(Decoder {
        layers: config.usize("n_layers")?,
        hidden,
        heads,
        kv_heads,
        head_dim: hidden / heads,
        intermediate: mlp,
        vocab: config.opt_usize("embedding_size")?.unwrap_or(vocab),
        eps: config.opt_f64("rms_norm_eps")?.unwrap_or(1e-5) as f32,
        theta: rope::base(config, facts)?,
        qkv_bias: config.opt_bool("include_qkv_bias")?.unwrap_or(false),
        qk_norm: false,
        tied: config.opt_bool("weight_tying")?.unwrap_or(true),
        tied_key: "weight_tying",
        embed_scale: scale("input_emb_norm", root)?,
        logit_scale: scale("scale_logits", 1.0 / root)?,
        mask,
        names: &NAMES,
    })
}

fn must_be(config: &Config, key: &str, default: &str, wanted: &str) -> Result<(), Error> {
    let found = config.opt_str(key)?.unwrap_or(default);
    if found == wanted {
        return Ok(());
    }
    Err(config.error(key, format!("`{found}` is not supported; only `{wanted}` is")))
}
