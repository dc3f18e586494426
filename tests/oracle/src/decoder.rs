//! One decoder for every family: from `config.json` and the names in the safetensors straight to logits, in burn.
//!
//! Invariant: nothing of the importer, the IR or the runtime is used; what differs between the families is a row of
//! [`FAMILIES`]. Every tensor of a checkpoint is read, or loading fails, so that none is overlooked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use burn::tensor::{DType, FloatDType, Int, IntDType, Tensor as Burn, TensorData, activation};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::ops::rotation;
use crate::value::device;

/// What differs between families.
pub struct Family {
    /// `model_type` of their checkpoints.
    pub model_types: &'static [&'static str],
    /// Keys of the config and names of the tensors.
    names: &'static Names,
    /// Which keys a query may attend.
    pub attends: Attends,
    /// Whether q, k and v have a bias.
    bias: Bias,
    /// Whether each head of q and k is normalized.
    head_norms: HeadNorms,
}

/// Which keys a query may attend.
#[derive(Clone, Copy, Debug)]
pub enum Attends {
    /// All.
    All,
    /// Its own and those before it.
    Causal,
    /// Its block's and those before it; the block length is a number of the config, or what stands here.
    Blocks(&'static str, usize),
}

impl fmt::Display for Attends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attends::All => f.pad("all"),
            Attends::Causal => f.pad("those before"),
            Attends::Blocks(key, _) => f.pad(&format!("blocks of {key}")),
        }
    }
}

/// Whether q, k and v have a bias.
enum Bias {
    Yes,
    No,
    /// A switch of the config says.
    Key(&'static str),
}

/// Whether each head of q and k is normalized.
#[derive(PartialEq)]
enum HeadNorms {
    Yes,
    No,
}

/// Keys of the config and names of the tensors.
struct Names {
    hidden: &'static str,
    heads: &'static str,
    layers: &'static str,
    tied: &'static str,
    embedding: &'static str,
    layer: &'static str,
    attention_norm: &'static str,
    q: &'static str,
    k: &'static str,
    v: &'static str,
    o: &'static str,
    mlp_norm: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
    last_norm: &'static str,
    head: &'static str,
}

const QWEN: Names = Names {
    hidden: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    tied: "tie_word_embeddings",
    embedding: "model.embed_tokens",
    layer: "model.layers",
    attention_norm: "input_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    last_norm: "model.norm",
    head: "lm_head",
};

const LLADA: Names = Names {
    hidden: "d_model",
    heads: "n_heads",
    layers: "n_layers",
    tied: "weight_tying",
    embedding: "model.transformer.wte",
    layer: "model.transformer.blocks",
    attention_norm: "attn_norm",
    q: "q_proj",
    k: "k_proj",
    v: "v_proj",
    o: "attn_out",
    mlp_norm: "ff_norm",
    gate: "ff_proj",
    up: "up_proj",
    down: "ff_out",
    last_norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
};

/// Every family.
pub const FAMILIES: &[Family] = &[
    family(&["a2d-qwen2", "Dream"], Attends::All, Bias::Yes, HeadNorms::No),
    family(&["a2d-qwen3"], Attends::All, Bias::No, HeadNorms::Yes),
    family(&["Fast_dLLM_Qwen"], Attends::Blocks("bd_size", 32), Bias::Yes, HeadNorms::No),
    family(&["qwen2"], Attends::Causal, Bias::Yes, HeadNorms::No),
    family(&["qwen3"], Attends::Causal, Bias::No, HeadNorms::Yes),
    family(&["sdar"], Attends::Blocks("block_size", 4), Bias::No, HeadNorms::Yes),
    Family {
        model_types: &["llada"],
        names: &LLADA,
        attends: Attends::All,
        bias: Bias::Key("include_qkv_bias"),
        head_norms: HeadNorms::No,
    },
];

const fn family(model_types: &'static [&'static str], attends: Attends, bias: Bias, head_norms: HeadNorms) -> Family {
    Family { model_types, names: &QWEN, attends, bias, head_norms }
}

/// A matrix `[out, in]`, and what is added.
struct Linear {
    weight: Burn<2>,
    bias: Option<Burn<1>>,
}

struct Layer {
    attention_norm: Burn<1>,
    q: Linear,
    k: Linear,
    v: Linear,
    head_norms: Option<(Burn<1>, Burn<1>)>,
    o: Linear,
    mlp_norm: Burn<1>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A checkpoint in burn.
pub struct Decoder {
    /// Its family.
    pub family: &'static Family,
    /// Rows of the logits.
    pub vocab: usize,
    /// Length of a block, where the mask has blocks.
    pub block: Option<usize>,
    head_dim: usize,
    eps: f64,
    theta: f32,
    embedding: Burn<2>,
    layers: Vec<Layer>,
    last_norm: Burn<1>,
    head: Burn<2>,
}

impl Decoder {
    /// Logits `[tokens, vocabulary]` of a whole sequence.
    pub fn logits(&self, ids: &[i32]) -> Burn<2> {
        let t = ids.len();
        let whole = |x: Vec<i64>| Burn::<1, Int>::from_data(TensorData::new(x, [t]), (&device(), IntDType::I64.into()));
        let pos = whole((0..t as i64).collect());
        let hidden = self.hidden(pos.clone());
        let angles = rotation(pos, self.theta, self.head_dim);
        let (cos, sin) = (angles.clone().cos(), angles.sin());

        let mut x = self.embedding.clone().select(0, whole(ids.iter().map(|id| i64::from(*id)).collect()));
        for layer in &self.layers {
            let n = rms_norm(x.clone(), &layer.attention_norm, self.eps);
            let (mut q, mut k, v) =
                (self.heads(layer.q.of(&n)), self.heads(layer.k.of(&n)), self.heads(layer.v.of(&n)));
            if let Some((q_norm, k_norm)) = &layer.head_norms {
                (q, k) = (rms_norm(q, q_norm, self.eps), rms_norm(k, k_norm, self.eps));
            }
            let (q, k) = (turned(q, &cos, &sin), turned(k, &cos, &sin));
            let groups = q.dims()[0] / k.dims()[0];
            let (k, v) = (repeated(k, groups), repeated(v, groups));
            let scores = q.matmul(k.swap_dims(1, 2)).div_scalar((self.head_dim as f64).sqrt());
            let scores = scores.clone().mask_fill(hidden.clone().expand(scores.dims()), f64::NEG_INFINITY);
            let attended = activation::softmax(scores, 2).matmul(v);
            let width = attended.dims()[0] * self.head_dim;
            x = x + layer.o.of(&attended.swap_dims(0, 1).reshape([t, width]));

            let n = rms_norm(x.clone(), &layer.mlp_norm, self.eps);
            x = x + layer.down.of(&(activation::silu(layer.gate.of(&n)) * layer.up.of(&n)));
        }
        rms_norm(x, &self.last_norm, self.eps).matmul(self.head.clone().transpose())
    }

    /// `[1, queries, keys]`: what may not be attended.
    fn hidden(&self, pos: Burn<1, Int>) -> Burn<3, burn::tensor::Bool> {
        let t = pos.dims()[0];
        let unit = pos.div_scalar(self.block.unwrap_or(1) as i64);
        let (i, j) = (unit.clone().reshape([1, t, 1]).expand([1, t, t]), unit.reshape([1, 1, t]).expand([1, t, t]));
        match self.family.attends {
            Attends::All => j.lower_scalar(0),
            Attends::Causal | Attends::Blocks(..) => j.greater(i),
        }
    }

    /// `[tokens, heads · head_dim]` as `[heads, tokens, head_dim]`.
    fn heads(&self, x: Burn<2>) -> Burn<3> {
        let [t, width] = x.dims();
        x.reshape([t, width / self.head_dim, self.head_dim]).swap_dims(0, 1)
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// A file that is missing or not as expected, and a tensor that nothing here reads.
    pub fn load(dir: &Path) -> Result<Self, String> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let config: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let model_type = config["model_type"].as_str().unwrap_or_default();
        let family = FAMILIES.iter().find(|f| f.model_types.contains(&model_type));
        let family = family.ok_or_else(|| format!("{}: no oracle for model type `{model_type}`", path.display()))?;
        let names = family.names;
        let number = |key: &str| config[key].as_f64().ok_or_else(|| format!("{}: no number `{key}`", path.display()));
        let size = |key: &str| number(key).map(|n| n as usize);
        let head_dim = size("head_dim").or_else(|_| Ok::<_, String>(size(names.hidden)? / size(names.heads)?))?;
        let bias = match family.bias {
            Bias::Yes => true,
            Bias::No => false,
            Bias::Key(key) => config[key] == Value::Bool(true),
        };
        let block = match family.attends {
            Attends::Blocks(key, own) => Some(size(key).unwrap_or(own)),
            Attends::All | Attends::Causal => None,
        };

        let mut tensors = read(dir)?;
        let mut layers = Vec::new();
        for index in 0..size(names.layers)? {
            let full = |part: &str| format!("{}.{index}.{part}", names.layer);
            let vector = |tensors: &mut _, part: &str| take::<1>(tensors, &full(part));
            let mut linear = |part: &str, bias: bool| -> Result<Linear, String> {
                let weight = take::<2>(&mut tensors, &format!("{}.weight", full(part)))?;
                let bias = bias.then(|| take::<1>(&mut tensors, &format!("{}.bias", full(part)))).transpose()?;
                Ok(Linear { weight, bias })
            };
            let (q, k, v) = (linear(names.q, bias)?, linear(names.k, bias)?, linear(names.v, bias)?);
            let (o, gate) = (linear(names.o, false)?, linear(names.gate, false)?);
            let (up, down) = (linear(names.up, false)?, linear(names.down, false)?);
            let head_norms = match family.head_norms {
                HeadNorms::Yes => Some((
                    vector(&mut tensors, "self_attn.q_norm.weight")?,
                    vector(&mut tensors, "self_attn.k_norm.weight")?,
                )),
                HeadNorms::No => None,
            };
            let attention_norm = vector(&mut tensors, &format!("{}.weight", names.attention_norm))?;
            let mlp_norm = vector(&mut tensors, &format!("{}.weight", names.mlp_norm))?;
            layers.push(Layer { attention_norm, q, k, v, head_norms, o, mlp_norm, gate, up, down });
        }
        let embedding = take::<2>(&mut tensors, &format!("{}.weight", names.embedding))?;
        let tied = config[names.tied] == Value::Bool(true);
        let own = take::<2>(&mut tensors, &format!("{}.weight", names.head));
        // A stored head is not read where the config ties it to the embedding.
        let head = if tied { embedding.clone() } else { own? };
        let last_norm = take::<1>(&mut tensors, &format!("{}.weight", names.last_norm))?;
        if let Some(name) = tensors.keys().next() {
            return Err(format!("{}: nothing reads the tensor `{name}`", dir.display()));
        }
        let (eps, theta) = (number("rms_norm_eps")?, number("rope_theta")? as f32);
        let vocab = head.dims()[0];
        Ok(Decoder { family, vocab, block, head_dim, eps, theta, embedding, layers, last_norm, head })
    }
}

impl Linear {
    fn of(&self, x: &Burn<2>) -> Burn<2> {
        let y = x.clone().matmul(self.weight.clone().transpose());
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}

fn rms_norm<const D: usize>(x: Burn<D>, w: &Burn<1>, eps: f64) -> Burn<D> {
    let size = x.clone().square().mean_dim(D - 1).add_scalar(eps).sqrt();
    x / size * w.clone().unsqueeze()
}

/// `x · cos + (−x₂, x₁) · sin` of the halves of each head.
fn turned(x: Burn<3>, cos: &Burn<2>, sin: &Burn<2>) -> Burn<3> {
    let half = x.dims()[2] / 2;
    let (a, b) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let (cos, sin): (Burn<3>, Burn<3>) = (cos.clone().unsqueeze(), sin.clone().unsqueeze());
    Burn::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 2)
}

/// Each head as often as query heads share it, consecutively.
fn repeated(x: Burn<3>, times: usize) -> Burn<3> {
    let [g, t, hd] = x.dims();
    let each: Burn<4> = x.reshape([g, 1, t, hd]).expand([g, times, t, hd]);
    each.reshape([g * times, t, hd])
}

type Tensors = BTreeMap<String, (TensorData, DType)>;

/// Every tensor of the checkpoint's files, by name.
fn read(dir: &Path) -> Result<Tensors, String> {
    let at = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut tensors = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(|e| at(dir, &e))? {
        let path = entry.map_err(|e| at(dir, &e))?.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|e| at(&path, &e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| at(&path, &e))?;
        for (name, view) in file.iter() {
            let ty = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(format!("{}: {name} holds {other:?}", path.display())),
            };
            let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), ty);
            tensors.insert(name.to_owned(), (data, ty));
        }
    }
    Ok(tensors)
}

fn take<const D: usize>(tensors: &mut Tensors, name: &str) -> Result<Burn<D>, String> {
    let (data, ty) = tensors.remove(name).ok_or_else(|| format!("the checkpoint has no tensor `{name}`"))?;
    Ok(Burn::<D>::from_data(data, (&device(), ty)).cast(FloatDType::F64))
}
