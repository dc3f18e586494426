//! Reads a checkpoint of any golden family into one shape.
//!
//! Optional parts (biases, q/k norms, a head of its own) are there when their tensors are, except that a head is not read
//! when the config ties it to the embedding.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Sizes and constants.
pub(super) struct Config {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
    pub(super) eps: f64,
    pub(super) theta: f64,
    pub(super) mask_id: Option<usize>,
}

/// A matrix `[out, width]` with an optional bias.
pub(super) struct Linear {
    pub(super) weight: Vec<f64>,
    pub(super) bias: Option<Vec<f64>>,
    pub(super) width: usize,
}

/// Weights of a layer, named by what they do.
pub(super) struct Layer {
    pub(super) attn_norm: Vec<f64>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) q_norm: Option<Vec<f64>>,
    pub(super) k_norm: Option<Vec<f64>>,
    pub(super) mlp_norm: Vec<f64>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// All weights.
pub(super) struct Weights {
    pub(super) embedding: Vec<f64>,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f64>,
    pub(super) head: Linear,
}

/// Names of tensors and config keys, in the order in which [`load`] reads them.
struct Names {
    heads: &'static str,
    kv_heads: &'static str,
    layers: &'static str,
    hidden: &'static str,
    tied: &'static str,
    embedding: &'static str,
    layer: &'static str,
    parts: [&'static str; 9],
    final_norm: &'static str,
    head: &'static str,
}

const QWEN: Names = Names {
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    layers: "num_hidden_layers",
    hidden: "hidden_size",
    tied: "tie_word_embeddings",
    embedding: "model.embed_tokens",
    layer: "model.layers",
    parts: [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    final_norm: "model.norm",
    head: "lm_head",
};

const LLADA: Names = Names {
    heads: "n_heads",
    kv_heads: "n_kv_heads",
    layers: "n_layers",
    hidden: "d_model",
    tied: "weight_tying",
    embedding: "model.transformer.wte",
    layer: "model.transformer.blocks",
    parts: ["attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"],
    final_norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
};

pub(super) fn load(dir: &Path) -> Result<(Config, Weights), String> {
    let json = read_json(dir, "config.json")?;
    let names = match json["model_type"].as_str() {
        Some("llada") => &LLADA,
        Some("sdar" | "Dream" | "Fast_dLLM_Qwen" | "qwen2" | "qwen3" | "a2d-qwen2" | "a2d-qwen3") => &QWEN,
        other => return Err(format!("no reference for model type {other:?}")),
    };
    let number = |key: &str| json[key].as_f64().ok_or_else(|| format!("config.json has no number `{key}`"));
    let size = |key: &str| number(key).map(|value| value as usize);
    let (hidden, heads) = (size(names.hidden)?, size(names.heads)?);
    let config = Config {
        heads,
        kv_heads: size(names.kv_heads)?,
        head_dim: size("head_dim").unwrap_or(hidden / heads),
        vocab: size("vocab_size")?,
        eps: number("rms_norm_eps")?,
        theta: number("rope_theta")?,
        mask_id: mask_id(dir, &json)?,
    };

    let mut tensors = read_tensors(dir)?;
    let mut layers = Vec::new();
    for index in 0..size(names.layers)? {
        let full = |part: &str| format!("{}.{index}.{part}", names.layer);
        let mut vector = |part: &str| take(&mut tensors, &format!("{}.weight", full(part)));
        let (attn_norm, mlp_norm) = (vector(names.parts[0])?, vector(names.parts[5])?);
        let (q_norm, k_norm) = (vector("self_attn.q_norm").ok(), vector("self_attn.k_norm").ok());
        let mut linear = |part: &str, width| take_linear(&mut tensors, &full(part), width);
        let down_width = |gate: &Linear| gate.weight.len() / hidden;
        let (q, k, v) =
            (linear(names.parts[1], hidden)?, linear(names.parts[2], hidden)?, linear(names.parts[3], hidden)?);
        let o = linear(names.parts[4], heads * config.head_dim)?;
        let (gate, up) = (linear(names.parts[6], hidden)?, linear(names.parts[7], hidden)?);
        let down = linear(names.parts[8], down_width(&gate))?;
        layers.push(Layer { attn_norm, q, k, v, o, q_norm, k_norm, mlp_norm, gate, up, down });
    }
    let embedding = take(&mut tensors, &format!("{}.weight", names.embedding))?;
    let head = if json[names.tied] == Value::Bool(true) {
        Linear { weight: embedding.clone(), bias: None, width: hidden }
    } else {
        take_linear(&mut tensors, names.head, hidden)?
    };
    let final_norm = take(&mut tensors, &format!("{}.weight", names.final_norm))?;
    Ok((config, Weights { embedding, layers, final_norm, head }))
}

fn take(tensors: &mut BTreeMap<String, Vec<f64>>, name: &str) -> Result<Vec<f64>, String> {
    tensors.remove(name).ok_or_else(|| format!("the checkpoint has no tensor `{name}`"))
}

fn take_linear(tensors: &mut BTreeMap<String, Vec<f64>>, name: &str, width: usize) -> Result<Linear, String> {
    let bias = tensors.remove(&format!("{name}.bias"));
    Ok(Linear { weight: take(tensors, &format!("{name}.weight"))?, bias, width })
}

/// The config's `mask_token_id`, or the id of the tokenizer's `mask_token`; Fast_dLLM v2 has neither but adds a token of
/// that text, and autoregressive models have none.
fn mask_id(dir: &Path, config: &Value) -> Result<Option<usize>, String> {
    if let Some(id) = config["mask_token_id"].as_u64() {
        return Ok(Some(id as usize));
    }
    let names = read_json(dir, "tokenizer_config.json")?;
    let token = names["mask_token"].as_str().unwrap_or("|<MASK>|");
    let tokenizer = read_json(dir, "tokenizer.json")?;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    Ok(added.filter(|added| added["content"] == token).find_map(|added| Some(added["id"].as_u64()? as usize)))
}

/// Every tensor of the checkpoint, from one file or from shards.
fn read_tensors(dir: &Path) -> Result<BTreeMap<String, Vec<f64>>, String> {
    let mut tensors = BTreeMap::new();
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .map_err(|error| format!("{}: {error}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    for path in files {
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        for (name, view) in file.iter() {
            let (data, pairs) = (view.data(), view.data().chunks_exact(2));
            let values = match view.dtype() {
                Dtype::F32 => {
                    data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
                }
                Dtype::BF16 => pairs.map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
                Dtype::F16 => pairs.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
                other => return Err(format!("{name}: no reference for {other:?}")),
            };
            tensors.insert(name.to_owned(), values);
        }
    }
    Ok(tensors)
}

fn read_json(dir: &Path, name: &str) -> Result<Value, String> {
    let bytes = std::fs::read(dir.join(name)).map_err(|error| format!("{}/{name}: {error}", dir.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{}/{name}: {error}", dir.display()))
}
