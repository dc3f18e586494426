//! Keys of `config.json` that nobody reads: harmless ones, and those that would change the mathematics.
//!
//! Invariant: a key that is known to change what a model computes, or that is named like one, is an error unless its value
//! says that nothing changes. Other unknown keys are a note. So a checkpoint never compiles past a switch that was not looked at.

use dlx_ir::Error;
use serde_json::Value;

use super::facts::Facts;
use crate::checkpoint::Config;

/// Keys that concern training, generation, storage and bookkeeping, or that every family reads, alphabetical.
const KNOWN: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "adaptive_mask_rate",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "debug",
    "diff_loss_weight",
    "do_sample",
    "dtype",
    "embedding_dropout",
    "eos_token_id",
    "ep_size",
    "fuse_cross_entropy",
    "generation_config",
    "initializer_range",
    "mask_token_id",
    "max_length",
    "micro_forward",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "partial_rotary_factor",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "residual_dropout",
    "return_dict",
    "rope_parameters",
    "rope_pct",
    "rope_scaling",
    "rotary_pct",
    "sep_token_id",
    "skip_checkpoint",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_deepep",
];

/// Parts of names by which a switch of the mathematics is known, such as `final_logit_softcapping`.
const TELLING: &[&str] = &[
    "_config",
    "act_fn",
    "activation",
    "adapter",
    "alibi",
    "attn_",
    "bias",
    "cap",
    "clip",
    "conv",
    "cross_attention",
    "decoder_layers",
    "encoder",
    "expert",
    "feed_forward",
    "ffn",
    "gate",
    "gelu",
    "group",
    "head",
    "hidden_act",
    "interleave",
    "kernel",
    "kv_",
    "latent",
    "layernorm",
    "logit",
    "lora",
    "mamba",
    "moe",
    "mrope",
    "multiplier",
    "norm",
    "parallel",
    "position",
    "pre_attn",
    "qk_",
    "query",
    "residual",
    "rope",
    "rotary",
    "router",
    "scal",
    "sink",
    "skip",
    "softcap",
    "softmax",
    "ssm",
    "time_embed",
    "timestep",
    "vision",
    "window",
];

/// Refuses keys besides `read` that change the mathematics, and notes the others that are unknown.
///
/// # Errors
/// Names the first such key.
pub(super) fn check(config: &Config, read: &[&str], facts: &mut Facts) -> Result<(), Error> {
    let mut unknown = Vec::new();
    for key in config.keys().filter(|key| KNOWN.binary_search(key).is_err() && !read.contains(key)) {
        let Some(value) = config.get(key).filter(|value| !is_neutral(key, value)) else { continue };
        if TELLING.iter().any(|part| key.to_ascii_lowercase().contains(part)) {
            let mut text = value.to_string();
            if text.chars().count() > 60 {
                text = text.chars().take(60).chain(['…']).collect();
            }
            let what = format!("{text} is not read here, and by its name it changes what the model computes");
            return Err(config.error(key, what).help(
                "this model cannot be compiled yet; if the model's own code does not use the key, set it to null",
            ));
        }
        unknown.push(key);
    }
    if !unknown.is_empty() {
        let keys = unknown.join(", ");
        facts.note(format!("config.json has keys that are unknown here and were not read: {keys}"));
    }
    Ok(())
}

/// Whether a value says that a switch is off: null, false, nothing, or a factor of one.
fn is_neutral(key: &str, value: &Value) -> bool {
    let factor = ["multiplier", "scal", "factor"].iter().any(|part| key.contains(part));
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(if factor { 1.0 } else { 0.0 }),
        Value::String(s) => s.is_empty() || s == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(KNOWN.is_sorted() && TELLING.is_sorted());
    }
}
