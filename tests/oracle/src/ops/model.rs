//! The blocks of transformers, on `[rows, features]`.

use burn::tensor::{FloatDType, Int, IntDType, Tensor as Burn};
use dlx_ir::{Mask, Post};

use super::attention::{attend, sees};
use super::elementwise::silu;
use crate::value::{Operand, RANK, Value, count, padded};

/// Rows of features, whatever dimensions the rows have.
fn rows(x: &Operand) -> Result<Burn<2>, String> {
    let width = *x.shape.last().ok_or("a row needs a dimension")?;
    Ok(x.float()?.reshape([x.shape.iter().product::<usize>() / width, width]))
}

fn whole(x: Burn<2>) -> Value {
    let dims = x.dims();
    Value::Float(x.reshape(padded(&dims)))
}

/// `w · x / sqrt(mean(x²) + eps)` over each chunk of len(w) features.
fn normed(x: Burn<2>, w: &Operand, eps: f32) -> Result<Burn<2>, String> {
    let ([t, width], len) = (x.dims(), w.shape[0]);
    let chunks: Burn<2> = x.reshape([t * width / len, len]);
    let size = chunks.clone().square().mean_dim(1).add_scalar(f64::from(eps)).sqrt();
    Ok((chunks / size * w.float()?.reshape([1, len])).reshape([t, width]))
}

pub(super) fn rms_norm(args: &[Operand], eps: f32) -> Result<Value, String> {
    let out = normed(rows(&args[0])?, &args[1], eps)?;
    Ok(Value::Float(out.reshape(padded(&args[0].shape))))
}

/// `[rows, heads · hd]` as `[1, heads, rows, hd]`.
fn heads(x: Burn<2>, hd: usize) -> Burn<4> {
    let [t, width] = x.dims();
    x.reshape([1, t, width / hd, hd]).swap_dims(1, 2)
}

pub(super) fn attention(args: &[Operand], head_dim: u32, mask: Option<Mask>) -> Result<Value, String> {
    let hd = head_dim as usize;
    let (q, k, v) = (rows(&args[0])?, rows(&args[1])?, rows(&args[2])?);
    let ([t, width], [s, _]) = (q.dims(), k.dims());
    let allowed = match mask {
        Some(rule) => sees(rule, 0, t, s),
        None => args[3].bool()?,
    };
    let hidden = allowed.bool_not().reshape([1, 1, t, s]);
    let scaled = |scores: Burn<4>| {
        let hidden = hidden.clone().expand(scores.dims());
        scores.div_scalar((hd as f64).sqrt()).mask_fill(hidden, f64::NEG_INFINITY)
    };
    let out = attend(heads(q, hd), heads(k, hd), heads(v, hd), scaled);
    Ok(whole(out.swap_dims(1, 2).reshape([t, width])))
}

pub(super) fn embed(args: &[Operand]) -> Result<Value, String> {
    let ids = args[0].int()?.cast(IntDType::I64).reshape([args[0].shape[0]]);
    Ok(whole(rows(&args[1])?.select(0, ids)))
}

/// The results of a `linear`: products, then what follows them.
pub(super) fn linear(
    args: &[Operand],
    n: usize,
    bias: bool,
    norm: Option<f32>,
    post: Post,
) -> Result<Vec<Value>, String> {
    let biases = if bias { n } else { 0 };
    let x = match norm {
        Some(eps) => normed(rows(&args[0])?, &args[1 + n + biases], eps)?,
        None => rows(&args[0])?,
    };
    let front = &args[0].shape[..args[0].rank() - 1];
    let mut outs: Vec<Burn<2>> = Vec::new();
    for i in 0..n {
        let y = x.clone().matmul(rows(&args[1 + i])?.transpose());
        let width = y.dims()[1];
        let b = if bias { Some(args[1 + n + i].float()?.reshape([1, width])) } else { None };
        outs.push(b.map_or(y.clone(), |b: Burn<2>| y + b));
    }
    let outs = match post {
        Post::None => outs,
        Post::Add => vec![outs.remove(0) + rows(args.last().ok_or("no residual")?)?],
        Post::SwiGlu => {
            let gate = outs.remove(0);
            let dims = gate.dims();
            let gated = silu(gate.reshape(padded(&dims))).reshape(dims);
            vec![gated * outs.remove(0)]
        }
    };
    let shaped = |y: Burn<2>| {
        let width = y.dims()[1];
        Value::Float(y.reshape(padded(&[front, &[width]].concat())))
    };
    Ok(outs.into_iter().map(shaped).collect())
}

/// The likeliest token that is not banned, and of its row: its probability, the margin to the second, the entropy.
pub(super) fn head_stats(args: &[Operand], norm: Option<f32>, ban: Option<u32>) -> Result<Vec<Value>, String> {
    let x = rows(&args[0])?;
    let x = norm.map_or(Ok(x.clone()), |eps| normed(x, &args[2], eps))?;
    let logits = x.matmul(rows(&args[1])?.transpose());
    let [t, vocab] = logits.dims();
    let peak = logits.clone().max_dim(1).expand([t, vocab]);
    let exps = (logits.clone() - peak).exp();
    let p = exps.clone() / exps.sum_dim(1).expand([t, vocab]);
    let logs = p.clone().log().mask_fill(p.clone().equal_scalar(0.0), 0.0);
    let entropy = (p.clone() * logs).sum_dim(1).neg();
    let tokens: Burn<2, Int> = count(vocab, RANK - 1).reshape([1, vocab]).expand([t, vocab]);
    // Ties of logits go to the lowest id.
    let best = |open: Burn<2>| -> Burn<2, Int> {
        let here = open.clone().equal(open.max_dim(1).expand([t, vocab]));
        tokens.clone().mask_fill(here.bool_not(), vocab as i64).min_dim(1)
    };
    let open = match ban {
        Some(id) => logits.mask_fill(tokens.clone().equal_scalar(i64::from(id)), f64::NEG_INFINITY),
        None => logits,
    };
    let first = best(open.clone());
    let taken = tokens.clone().equal(first.clone().expand([t, vocab]));
    let second = best(open.mask_fill(taken, f64::NEG_INFINITY));
    let of = |token: Burn<2, Int>| p.clone().gather(1, token);
    let (prob, next) = (of(first.clone()), of(second));
    let stats = Burn::cat(vec![prob.clone(), prob - next, entropy], 1);
    Ok(vec![Value::Int(first.reshape(padded(&[t]))), whole(stats)])
}

/// Angles of positions, in f32 as the families' own code has them.
pub fn rotation(pos: Burn<1, Int>, theta: f32, hd: usize) -> Burn<2> {
    let [t] = pos.dims();
    let exponents =
        count(hd / 2, RANK - 1).reshape([1, hd / 2]).cast(FloatDType::F32).mul_scalar(2).div_scalar(hd as u32);
    let frequencies: Burn<2> = exponents.full_like(theta).powf(exponents).recip();
    (pos.cast(FloatDType::F32).reshape([t, 1]) * frequencies).cast(FloatDType::F64)
}

pub(super) fn rope_table(pos: &Operand, theta: f32, head_dim: u32) -> Result<Value, String> {
    let angles = rotation(pos.int()?.reshape([pos.shape[0]]), theta, head_dim as usize);
    Ok(whole(Burn::cat(vec![angles.clone().cos(), angles.sin()], 1)))
}

/// Each head turned by a table of cosines, then sines.
pub(super) fn rope(args: &[Operand], head_dim: u32, norm: Option<f32>) -> Result<Value, String> {
    let hd = head_dim as usize;
    let x = rows(&args[0])?;
    let x = norm.map_or(Ok(x.clone()), |eps| normed(x, &args[2], eps))?;
    let [t, width] = x.dims();
    let table: Burn<4> = rows(&args[1])?.reshape([1, 1, t, hd]);
    let x = heads(x, hd);
    let sizes = {
        let [b, h, t, _] = x.dims();
        [b, h, t, hd / 2]
    };
    let half = |x: &Burn<4>, i: usize| x.clone().narrow(3, i * (hd / 2), hd / 2);
    let (cos, sin) = (half(&table, 0).expand(sizes), half(&table, 1).expand(sizes));
    let (a, b) = (half(&x, 0), half(&x, 1));
    let turned = Burn::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3);
    Ok(whole(turned.swap_dims(1, 2).reshape([t, width])))
}
