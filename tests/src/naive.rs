//! A reference executor for golden checkpoints: plain loops in f64 that follow the models' definition line by line.
//!
//! Invariant: it favors being obviously right over being fast and shares no code with the executors that it checks; what
//! differs between families is read from `config.json` and the names of the tensors. It reads the tiny golden checkpoints
//! and nothing larger.

mod checkpoint;

use std::path::Path;

use dlx_ir::Mask;
use dlx_runtime::exec::{CacheRow, ExecError, Executor, RowStats, Span};

use checkpoint::{Config, Layer, Linear, Weights};

/// A model with its caches.
pub struct Naive {
    config: Config,
    weights: Weights,
    mask: Mask,
    buckets: Vec<usize>,
    max_seq: usize,
    /// Of each slot: keys and values per layer, `[max_seq, n_kv, head_dim]`.
    caches: Vec<Vec<(Vec<f64>, Vec<f64>)>>,
    /// Last hidden states, `[rows, hidden]`, after the final norm.
    hidden: Vec<f64>,
}

impl Naive {
    /// Loads the checkpoint in `dir`, for an attention mask.
    ///
    /// # Errors
    /// A file that is missing or not as expected.
    pub fn load(dir: &Path, mask: Mask, max_seq: usize, buckets: &[usize]) -> Result<Self, String> {
        let (config, weights) = checkpoint::load(dir)?;
        let cache = vec![0.0; max_seq * config.kv_heads * config.head_dim];
        let caches = vec![vec![(cache.clone(), cache); weights.layers.len()]];
        Ok(Self { caches, buckets: buckets.to_vec(), hidden: Vec::new(), config, weights, mask, max_seq })
    }

    fn rms_norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
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
                    let (sin, cos) = rotation(pos, k, dim, self.config.theta);
                    let (a, b) = (head[k], head[k + half]);
                    head[k] = a * cos - b * sin;
                    head[k + half] = b * cos + a * sin;
                }
            }
        }
    }

    fn attention(&self, q: &[f64], layer: usize, call: &Span<'_>) -> Vec<f64> {
        let c = &self.config;
        let (keys, values) = &self.caches[call.slot][layer];
        let mut out = vec![0.0; q.len()];
        for (index, (query, out)) in q.chunks(c.head_dim).zip(out.chunks_mut(c.head_dim)).enumerate() {
            let (row, head) = (call.at + index / c.heads, index % c.heads / (c.heads / c.kv_heads));
            let may_attend = |key: &usize| match self.mask {
                Mask::Full => true,
                Mask::Causal => *key <= row,
                Mask::BlockCausal(block) => key / block as usize <= row / block as usize,
                Mask::Local(window) => key.abs_diff(row) <= window as usize / 2,
            };
            let seen: Vec<usize> = (call.from..call.visible).filter(may_attend).collect();
            let at = |key: usize| (key * c.kv_heads + head) * c.head_dim..(key * c.kv_heads + head + 1) * c.head_dim;
            let scores: Vec<f64> = seen
                .iter()
                .map(|&key| {
                    let dot: f64 = query.iter().zip(&keys[at(key)]).map(|(a, b)| a * b).sum();
                    dot / (c.head_dim as f64).sqrt()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            for (&key, exp) in seen.iter().zip(&exps) {
                out.iter_mut().zip(&values[at(key)]).for_each(|(out, value)| *out += exp / sum * value);
            }
        }
        out
    }

    fn layer(&mut self, x: &mut [f64], index: usize, call: &Span<'_>) {
        let rows = call.ids.len();
        let Layer { attn_norm, q, k, v, o, q_norm, k_norm, mlp_norm, gate, up, down } = &self.weights.layers[index];
        let n = self.rms_norm(x, attn_norm);
        let (mut queries, mut keys, values) = (linear(&n, q), linear(&n, k), linear(&n, v));
        if let (Some(q_norm), Some(k_norm)) = (q_norm, k_norm) {
            queries = self.rms_norm(&queries, q_norm);
            keys = self.rms_norm(&keys, k_norm);
        }
        self.rope(&mut queries, call.pos, self.config.heads);
        self.rope(&mut keys, call.pos, self.config.kv_heads);
        let kv_width = self.config.kv_heads * self.config.head_dim;
        let written = call.at * kv_width..(call.at + rows) * kv_width;
        self.caches[call.slot][index].0[written.clone()].copy_from_slice(&keys);
        self.caches[call.slot][index].1[written].copy_from_slice(&values);
        let attended = self.attention(&queries, index, call);
        x.iter_mut().zip(linear(&attended, o)).for_each(|(x, o)| *x += o);

        let n = self.rms_norm(x, mlp_norm);
        let inner: Vec<f64> =
            linear(&n, gate).iter().zip(linear(&n, up)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        x.iter_mut().zip(linear(&inner, down)).for_each(|(x, d)| *x += d);
    }

    fn row_logits(&self, row: usize) -> Result<Vec<f64>, ExecError> {
        let width = self.weights.head.width;
        let hidden = self
            .hidden
            .get(row * width..(row + 1) * width)
            .ok_or_else(|| ExecError::Shape(format!("row {row} was not in the last step")))?;
        Ok(linear(hidden, &self.weights.head))
    }
}

/// Sine and cosine of the `k`th angle of a rotary position.
pub fn rotation(pos: i32, k: usize, head_dim: usize, theta: f64) -> (f64, f64) {
    (f64::from(pos) * theta.powf(-2.0 * k as f64 / head_dim as f64)).sin_cos()
}

/// `x · Wᵀ + b` for rows of `x`.
fn linear(x: &[f64], linear: &Linear) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len() / linear.width * (linear.weight.len() / linear.width));
    for row in x.chunks(linear.width) {
        let first = out.len();
        out.extend(linear.weight.chunks(linear.width).map(|w| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>()));
        if let Some(bias) = &linear.bias {
            out[first..].iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }
    out
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

    fn slots(&self) -> usize {
        self.caches.len()
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        let empty = self.caches[0].clone();
        self.caches.resize(slots.max(self.caches.len()), empty);
        Ok(())
    }

    fn copy_unit(&self) -> Option<usize> {
        self.mask.prefix_unit()
    }

    fn copy_rows(&mut self, from: CacheRow, to: CacheRow, rows: usize) -> Result<(), ExecError> {
        let width = self.config.kv_heads * self.config.head_dim;
        let part = |at: CacheRow| at.row * width..(at.row + rows) * width;
        for layer in 0..self.weights.layers.len() {
            let (keys, values) = self.caches[from.slot][layer].clone();
            self.caches[to.slot][layer].0[part(to)].copy_from_slice(&keys[part(from)]);
            self.caches[to.slot][layer].1[part(to)].copy_from_slice(&values[part(from)]);
        }
        Ok(())
    }

    /// One sequence after the other.
    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        let rows: usize = spans.iter().map(|s| s.ids.len()).sum();
        let fits = self.buckets.iter().any(|&bucket| rows <= bucket);
        let wrong = |s: &Span<'_>| {
            let rows = s.ids.len();
            rows == 0 || s.at + rows > s.visible || s.visible > self.max_seq || s.pos.len() != rows
        };
        if !fits || spans.is_empty() || spans.iter().any(wrong) {
            return Err(ExecError::Shape(format!("{spans:?} do not fit")));
        }
        let hidden = self.weights.head.width;
        self.hidden.clear();
        for span in spans {
            let embedding = &self.weights.embedding;
            let mut x: Vec<f64> =
                span.ids.iter().flat_map(|&id| &embedding[id as usize * hidden..][..hidden]).copied().collect();
            for index in 0..self.weights.layers.len() {
                self.layer(&mut x, index, span);
            }
            let normed = self.rms_norm(&x, &self.weights.final_norm);
            self.hidden.extend(normed);
        }
        Ok(())
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        for (&row, out) in rows.iter().zip(out) {
            let logits = self.row_logits(row)?;
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
            let probs: Vec<f64> = logits.iter().map(|logit| (logit - max).exp() / sum).collect();
            let mut order: Vec<usize> = (0..probs.len()).filter(|&id| Some(id) != self.config.mask_id).collect();
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
