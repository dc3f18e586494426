//! A reference executor for SDAR checkpoints: plain loops in f64 that follow the model's definition line by line.
//!
//! Invariant: it favors being obviously right over being fast and shares no code with the executors that it checks. It
//! reads the tiny golden checkpoints and nothing larger.

use std::collections::BTreeMap;
use std::path::Path;

use dlx_runtime::exec::{ExecError, Executor, RowStats, StepCall};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// An SDAR model with its caches.
pub struct Naive {
    config: Config,
    weights: BTreeMap<String, Vec<f64>>,
    block: usize,
    buckets: Vec<usize>,
    max_seq: usize,
    mask_id: i32,
    /// Keys and values per layer, `[max_seq, n_kv, head_dim]`.
    caches: Vec<(Vec<f64>, Vec<f64>)>,
    /// Last hidden states, `[rows, hidden]`, after the final norm.
    hidden: Vec<f64>,
}

struct Config {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    eps: f64,
    theta: f64,
}

impl Naive {
    /// Loads `config.json` and `model.safetensors` from `dir`, for a block-causal mask of `block`.
    ///
    /// # Errors
    /// A file that is missing or not as expected.
    pub fn load(dir: &Path, block: usize, max_seq: usize, buckets: &[usize]) -> Result<Self, String> {
        let read = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("{}/{name}: {e}", dir.display()));
        let json: Value = serde_json::from_slice(&read("config.json")?).map_err(|e| e.to_string())?;
        if json["model_type"] != "sdar" {
            return Err(format!("no reference for model type {}", json["model_type"]));
        }
        let number = |key: &str| json[key].as_f64().ok_or_else(|| format!("config.json has no number `{key}`"));
        let size = |key: &str| number(key).map(|value| value as usize);
        let config = Config {
            hidden: size("hidden_size")?,
            layers: size("num_hidden_layers")?,
            heads: size("num_attention_heads")?,
            kv_heads: size("num_key_value_heads")?,
            head_dim: size("head_dim")?,
            vocab: size("vocab_size")?,
            eps: number("rms_norm_eps")?,
            theta: number("rope_theta")?,
        };
        let bytes = read("model.safetensors")?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
        let mut weights = BTreeMap::new();
        for (name, view) in file.iter() {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => {
                    data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
                }
                Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
                other => return Err(format!("{name}: no reference for {other:?}")),
            };
            weights.insert(name.to_owned(), values);
        }
        let cache = vec![0.0; max_seq * config.kv_heads * config.head_dim];
        Ok(Self {
            caches: vec![(cache.clone(), cache); config.layers],
            mask_id: number("mask_token_id")? as i32,
            buckets: buckets.to_vec(),
            hidden: Vec::new(),
            config,
            weights,
            block,
            max_seq,
        })
    }

    fn weight(&self, name: &str) -> &[f64] {
        self.weights.get(name).unwrap_or_else(|| panic!("the checkpoint has no tensor `{name}`"))
    }

    /// `x · Wᵀ` for rows of `x`.
    fn linear(&self, x: &[f64], name: &str, width: usize) -> Vec<f64> {
        let weight = self.weight(name);
        x.chunks(width)
            .flat_map(|row| weight.chunks(width).map(move |w| row.iter().zip(w).map(|(a, b)| a * b).sum()))
            .collect()
    }

    fn rms_norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let weight = self.weight(name);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks(weight.len()) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean + self.config.eps).sqrt();
            out.extend(row.iter().zip(weight).map(|(v, w)| v * scale * w));
        }
        out
    }

    /// Rotates every head of every row by its position, half-split.
    fn rope(&self, x: &mut [f64], pos: &[i32], heads: usize) {
        let (dim, half) = (self.config.head_dim, self.config.head_dim / 2);
        for (row, &pos) in x.chunks_mut(heads * dim).zip(pos) {
            for head in row.chunks_mut(dim) {
                for k in 0..half {
                    let angle = f64::from(pos) * self.config.theta.powf(-2.0 * k as f64 / dim as f64);
                    let (a, b) = (head[k], head[k + half]);
                    head[k] = a * angle.cos() - b * angle.sin();
                    head[k + half] = b * angle.cos() + a * angle.sin();
                }
            }
        }
    }

    fn attention(&self, q: &[f64], layer: usize, call: &StepCall<'_>) -> Vec<f64> {
        let c = &self.config;
        let (keys, values) = &self.caches[layer];
        let mut out = vec![0.0; q.len()];
        for (index, (query, out)) in q.chunks(c.head_dim).zip(out.chunks_mut(c.head_dim)).enumerate() {
            let (row, head) = (call.at + index / c.heads, index % c.heads / (c.heads / c.kv_heads));
            let seen: Vec<usize> =
                (call.from..call.visible).filter(|key| key / self.block <= row / self.block).collect();
            let at = |key: usize| (key * c.kv_heads + head) * c.head_dim..(key * c.kv_heads + head + 1) * c.head_dim;
            let scores: Vec<f64> = seen
                .iter()
                .map(|&key| {
                    let dot: f64 = query.iter().zip(&keys[at(key)]).map(|(a, b)| a * b).sum();
                    dot / (c.head_dim as f64).sqrt()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            for (&key, score) in seen.iter().zip(&scores) {
                let weight = (score - max).exp() / sum;
                out.iter_mut().zip(&values[at(key)]).for_each(|(out, value)| *out += weight * value);
            }
        }
        out
    }

    fn row_logits(&self, row: usize) -> Result<Vec<f64>, ExecError> {
        let width = self.config.hidden;
        let hidden = self
            .hidden
            .get(row * width..(row + 1) * width)
            .ok_or_else(|| ExecError::Shape(format!("row {row} was not in the last step")))?;
        Ok(self.linear(hidden, "lm_head.weight", width))
    }
}

impl Executor for Naive {
    fn max_seq(&self) -> usize {
        self.max_seq
    }

    fn vocab(&self) -> usize {
        self.config.vocab
    }

    fn step_buckets(&self) -> &[usize] {
        &self.buckets
    }

    fn step(&mut self, call: StepCall<'_>) -> Result<(), ExecError> {
        let rows = call.ids.len();
        let fits = self.buckets.iter().any(|&bucket| rows <= bucket);
        if rows == 0 || !fits || call.at + rows > call.visible || call.visible > self.max_seq || call.pos.len() != rows
        {
            return Err(ExecError::Shape(format!("{rows} rows at {} of {}", call.at, call.visible)));
        }
        let (hidden, q_width) = (self.config.hidden, self.config.heads * self.config.head_dim);
        let kv_width = self.config.kv_heads * self.config.head_dim;
        let embedding = self.weight("model.embed_tokens.weight");
        let mut x: Vec<f64> =
            call.ids.iter().flat_map(|&id| &embedding[id as usize * hidden..][..hidden]).copied().collect();
        for layer in 0..self.config.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let n = self.rms_norm(&x, &name("input_layernorm"));
            let q = self.linear(&n, &name("self_attn.q_proj"), hidden);
            let k = self.linear(&n, &name("self_attn.k_proj"), hidden);
            let v = self.linear(&n, &name("self_attn.v_proj"), hidden);
            let mut q = self.rms_norm(&q, &name("self_attn.q_norm"));
            let mut k = self.rms_norm(&k, &name("self_attn.k_norm"));
            self.rope(&mut q, call.pos, self.config.heads);
            self.rope(&mut k, call.pos, self.config.kv_heads);
            let written = call.at * kv_width..(call.at + rows) * kv_width;
            self.caches[layer].0[written.clone()].copy_from_slice(&k);
            self.caches[layer].1[written].copy_from_slice(&v);
            let attended = self.attention(&q, layer, &call);
            let o = self.linear(&attended, &name("self_attn.o_proj"), q_width);
            x.iter_mut().zip(o).for_each(|(x, o)| *x += o);

            let n = self.rms_norm(&x, &name("post_attention_layernorm"));
            let gate = self.linear(&n, &name("mlp.gate_proj"), hidden);
            let up = self.linear(&n, &name("mlp.up_proj"), hidden);
            let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let down = self.linear(&inner, &name("mlp.down_proj"), inner.len() / rows);
            x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
        }
        self.hidden = self.rms_norm(&x, "model.norm.weight");
        Ok(())
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        for (&row, out) in rows.iter().zip(out) {
            let logits = self.row_logits(row)?;
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
            let probs: Vec<f64> = logits.iter().map(|logit| (logit - max).exp() / sum).collect();
            let mut order: Vec<usize> = (0..probs.len()).filter(|&id| id as i32 != self.mask_id).collect();
            order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
            *out = RowStats {
                best: order[0] as i32,
                prob: probs[order[0]] as f32,
                margin: (probs[order[0]] - probs[order[1]]) as f32,
                entropy: -probs.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum::<f64>() as f32,
            };
        }
        Ok(())
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        for (&row, out) in rows.iter().zip(out.chunks_mut(self.config.vocab)) {
            out.iter_mut().zip(self.row_logits(row)?).for_each(|(out, logit)| *out = logit as f32);
        }
        Ok(())
    }
}
