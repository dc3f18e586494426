//! What the ops of [`Level::Model`](crate::Level::Model) compute.

use super::data::{Data, Tensor, matrix};
use super::not_computed;
use super::tensor::{arg, probabilities, product, silu};
use crate::attr::{Mask, Post};
use crate::op::Op;
use crate::types::DType;

/// Evaluates an op of this level.
pub(super) fn compute(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    match op {
        Op::Attention { head_dim, mask } => attention(args, *head_dim as usize, *mask),
        Op::Embed {} => embed(args),
        Op::HeadStats { norm, ban } => head_stats(*norm, *ban, args),
        Op::Linear { n, bias, norm, post } => linear(*n as usize, *bias, *norm, *post, args),
        Op::Mask { rule } => mask(args, *rule),
        Op::RmsNorm { eps } => rms_norm(args, *eps),
        Op::Rope { head_dim, norm } => rope(args, *head_dim as usize, *norm),
        Op::RopeTable { theta, head_dim } => rope_table(args, *theta, *head_dim),
        other => not_computed(other),
    }
}

pub(super) fn attention(args: &[&Tensor], head_dim: usize, mask: Option<Mask>) -> Result<Vec<Tensor>, String> {
    let (q, k) = (arg(args, 0)?, arg(args, 1)?);
    let (hd, rows) = (head_dim, k.shape[0]);
    let (k, v) = (k.floats()?, arg(args, 2)?.floats()?);
    let allowed: Vec<bool> = match mask {
        Some(rule) => (0..q.shape[0]).flat_map(|i| (0..rows).map(move |j| rule.sees(i, j))).collect(),
        None => match &arg(args, 3)?.data {
            Data::Bool(m) if m.len() == q.shape[0] * rows => m.clone(),
            _ => return Err("the mask must be bool[T, S]".into()),
        },
    };
    Ok(vec![attend(q, k, v, arg(args, 1)?.cols(), hd, &|i, j| allowed[i * rows + j])?])
}

pub(super) fn embed(args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let (ids, table) = (arg(args, 0)?.ints()?, arg(args, 1)?);
    let (rows, cols) = matrix(table)?;
    let table = table.floats()?;
    let mut data = Vec::with_capacity(ids.len() * cols);
    for &id in ids {
        let row = usize::try_from(id).ok().filter(|r| *r < rows).ok_or(format!("there is no token {id}"))?;
        data.extend_from_slice(&table[row * cols..][..cols]);
    }
    Ok(vec![Tensor::f32(&[ids.len(), cols], data)])
}

pub(super) fn mask(args: &[&Tensor], rule: Mask) -> Result<Vec<Tensor>, String> {
    let t = arg(args, 0)?.shape.first().copied().unwrap_or(1);
    let data = (0..t).flat_map(|i| (0..t).map(move |j| rule.sees(i, j))).collect();
    Ok(vec![Tensor { dtype: DType::Bool, shape: vec![t, t], data: Data::Bool(data) }])
}

pub(super) fn rms_norm(args: &[&Tensor], eps: f32) -> Result<Vec<Tensor>, String> {
    let x = arg(args, 0)?;
    Ok(vec![Tensor::f32(&x.shape, normed(x.floats()?, arg(args, 1)?.floats()?, eps))])
}

pub(super) fn rope(args: &[&Tensor], head_dim: usize, norm: Option<f32>) -> Result<Vec<Tensor>, String> {
    let (x, table, hd) = (arg(args, 0)?, arg(args, 1)?.floats()?, head_dim);
    let data = match norm {
        Some(eps) => normed(x.floats()?, arg(args, 2)?.floats()?, eps),
        None => x.floats()?.to_vec(),
    };
    let mut out = Vec::with_capacity(data.len());
    for (row, cs) in data.chunks(x.cols()).zip(table.chunks(hd)) {
        let (cos, sin) = cs.split_at(hd / 2);
        for head in row.chunks(hd) {
            let (a, b) = head.split_at(hd / 2);
            out.extend((0..hd / 2).map(|i| a[i] * cos[i] - b[i] * sin[i]));
            out.extend((0..hd / 2).map(|i| b[i] * cos[i] + a[i] * sin[i]));
        }
    }
    Ok(vec![Tensor::f32(&x.shape, out)])
}

pub(super) fn rope_table(args: &[&Tensor], theta: f32, head_dim: u32) -> Result<Vec<Tensor>, String> {
    let (pos, half) = (arg(args, 0)?.ints()?, (head_dim / 2) as usize);
    let mut data = Vec::with_capacity(pos.len() * half * 2);
    for &p in pos {
        let angle = |k: usize| {
            let inv_freq = 1.0 / libm::powf(theta, (2 * k) as f32 / head_dim as f32);
            f64::from(p as f32 * inv_freq)
        };
        data.extend((0..half).map(|k| libm::cos(angle(k)) as f32));
        data.extend((0..half).map(|k| libm::sin(angle(k)) as f32));
    }
    Ok(vec![Tensor::f32(&[pos.len(), half * 2], data)])
}

pub(super) fn linear(
    n: usize,
    bias: bool,
    norm: Option<f32>,
    post: Post,
    args: &[&Tensor],
) -> Result<Vec<Tensor>, String> {
    let (x, rest) = args.split_first().ok_or("x is missing")?;
    let (weights, rest) = rest.split_at_checked(n).ok_or("a weight is missing")?;
    let (biases, rest) = rest.split_at_checked(if bias { n } else { 0 }).ok_or("a bias is missing")?;
    let k = x.cols();
    let normed = match norm {
        Some(eps) => normed(x.floats()?, rest.first().ok_or("the norm weight is missing")?.floats()?, eps),
        None => x.floats()?.to_vec(),
    };
    let mut outs = Vec::with_capacity(n);
    for (i, w) in weights.iter().enumerate() {
        let (out, k2) = matrix(w)?;
        if k != k2 {
            return Err(format!("x has {k} features, the weight {k2}"));
        }
        let w = w.floats()?;
        let mut y: Vec<f32> =
            product(&normed, [k, out], |i, o| f64::from(w[o * k + i])).into_iter().map(|v| v as f32).collect();
        if let Some(b) = biases.get(i) {
            let b = b.floats()?;
            y.chunks_mut(out).for_each(|row| row.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        }
        let rows = x.shape.split_last().map_or(&[][..], |(_, rows)| rows);
        outs.push(Tensor::f32(&[rows, &[out]].concat(), y));
    }
    match post {
        Post::None => Ok(outs),
        Post::Add => zip(rest.last().ok_or("the residual is missing")?, &outs[0], |a, b| a + b),
        Post::SwiGlu => zip(&outs[0], &outs[1], |gate, up| silu(f64::from(gate)) as f32 * up),
    }
}

/// A function of each two elements.
fn zip(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Result<Vec<Tensor>, String> {
    let data = a.floats()?.iter().zip(b.floats()?).map(|(a, b)| f(*a, *b)).collect();
    Ok(vec![Tensor::f32(&a.shape, data)])
}

pub(super) fn head_stats(norm: Option<f32>, ban: Option<u32>, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let logits = linear(1, false, norm, Post::None, args)?.remove(0);
    let (rows, vocab) = matrix(&logits)?;
    let (mut best, mut stats) = (Vec::new(), Vec::new());
    for row in logits.floats()?.chunks(vocab) {
        let p = probabilities(&reals(row));
        let mut order: Vec<usize> = (0..vocab).filter(|&i| Some(i) != ban.map(|b| b as usize)).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        let first = *order.first().ok_or("the vocabulary is empty")?;
        let second = order.get(1).map_or(0.0, |&i| p[i]);
        let entropy: f64 = p.iter().filter(|&&p| p > 0.0).map(|&p| -p * libm::log(p)).sum();
        best.push(i32::try_from(first).map_err(|_| "the vocabulary is too large")?);
        stats.extend([p[first] as f32, (p[first] - second) as f32, entropy as f32]);
    }
    Ok(vec![Tensor::i32(&[rows], best), Tensor::f32(&[rows, 3], stats)])
}

/// Attention of q `[M, heads · hd]` over keys and values `[S, width]`; `sees(i, j)` says whether row i may attend row j.
pub(super) fn attend(
    q: &Tensor,
    k: &[f32],
    v: &[f32],
    width: usize,
    hd: usize,
    sees: &dyn Fn(usize, usize) -> bool,
) -> Result<Tensor, String> {
    let (m, features) = matrix(q)?;
    let (heads, kv_heads) = (features / hd, width / hd);
    let data = q.floats()?;
    let mut out = vec![0.0f32; data.len()];
    for i in 0..m {
        let keys: Vec<usize> = (0..k.len() / width).filter(|&j| sees(i, j)).collect();
        for h in 0..heads {
            let offset = h / (heads / kv_heads) * hd;
            let head = &data[i * features + h * hd..][..hd];
            let score = |&j: &usize| -> f32 {
                let key = &k[j * width + offset..][..hd];
                let dot: f64 = head.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                (dot / (hd as f64).sqrt()) as f32
            };
            let p = probabilities(&reals(&keys.iter().map(score).collect::<Vec<_>>()));
            for (d, o) in out[i * features + h * hd..][..hd].iter_mut().enumerate() {
                *o = keys.iter().zip(&p).map(|(&j, p)| p * f64::from(v[j * width + offset + d])).sum::<f64>() as f32;
            }
        }
    }
    Ok(Tensor::f32(&q.shape, out))
}

fn reals(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// RMSNorm of each chunk of `w.len()` features.
fn normed(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for chunk in x.chunks(w.len()) {
        let mean = chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / w.len() as f64;
        let r = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(chunk.iter().zip(w).map(|(&v, &w)| (f64::from(v) * r) as f32 * w));
    }
    out
}
