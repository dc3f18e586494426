//! Products, normalizations and attention of the tensor level.

use burn::tensor::{Bool, Tensor as Burn};
use dlx_ir::{Mask, Norm};

use crate::value::{Bools, Operand, RANK, Value, count, padded};

pub(super) fn matmul(args: &[Operand]) -> Result<Value, String> {
    Ok(match (&args[0].value, &args[1].value) {
        (Value::Float(a), Value::Float(b)) => Value::Float(a.clone().matmul(b.clone())),
        (Value::Int(a), Value::Int(b)) => Value::Int(a.clone().matmul(b.clone())),
        _ => return Err("a product of two kinds".into()),
    })
}

pub(super) fn softmax(x: &Operand) -> Result<Value, String> {
    Ok(Value::Float(weights(x.float()?)))
}

/// Softmax along the last dimension; a row of minus infinities becomes zeros.
fn weights<const D: usize>(scores: Burn<D>) -> Burn<D> {
    let dims = scores.dims();
    let peak = scores.clone().max_dim(D - 1);
    let nothing = peak.clone().equal_scalar(f64::NEG_INFINITY);
    let peak = peak.mask_fill(nothing.clone(), 0.0);
    let exps = (scores - peak.expand(dims)).exp();
    let sum = exps.clone().sum_dim(D - 1).mask_fill(nothing, 1.0);
    exps / sum.expand(dims)
}

pub(super) fn normalize(x: &Operand, kind: Norm, eps: f32) -> Result<Value, String> {
    let x = x.float()?;
    let x = if kind == Norm::Layer { x.clone() - x.mean_dim(RANK - 1) } else { x };
    let size = x.clone().square().mean_dim(RANK - 1).add_scalar(f64::from(eps)).sqrt();
    Ok(Value::Float(x / size))
}

/// `[B, H, T, D]`, whose first R features turn by tables `[B or 1, T, R/2]`.
pub(super) fn rotary(args: &[Operand], interleaved: bool) -> Result<Value, String> {
    let x: Burn<4> = args[0].float()?.reshape(four(&args[0]));
    let [b, h, t, d] = x.dims();
    let [batch, _, half] = args[1].shape[..] else { return Err("tables of three dimensions".into()) };
    let table = |i: usize| -> Result<Burn<4>, String> {
        Ok(args[i].float()?.reshape([batch, 1, t, half]).expand([b, h, t, half]))
    };
    let (cos, sin) = (table(1)?, table(2)?);
    let turned = x.clone().narrow(3, 0, 2 * half);
    let (first, second) = if interleaved {
        // `[…, half, 2]`
        let pairs = turned.reshape([b * h, t, half, 2]);
        let part = |i| pairs.clone().narrow(3, i, 1).reshape([b, h, t, half]);
        (part(0), part(1))
    } else {
        (turned.clone().narrow(3, 0, half), turned.narrow(3, half, half))
    };
    let (new_first, new_second) =
        (first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin);
    let joined: Burn<4> = if interleaved {
        let part = |x: Burn<4>| x.reshape([b * h, t, half, 1]);
        Burn::cat(vec![part(new_first), part(new_second)], 3).reshape([b, h, t, 2 * half])
    } else {
        Burn::cat(vec![new_first, new_second], 3)
    };
    let rest = d - 2 * half;
    let all = if rest == 0 { joined } else { Burn::cat(vec![joined, x.narrow(3, 2 * half, rest)], 3) };
    Ok(Value::Float(all.reshape(padded(&args[0].shape))))
}

fn four(x: &Operand) -> [usize; 4] {
    let mut dims = [1; 4];
    dims.copy_from_slice(&x.shape);
    dims
}

/// Which of `s` keys from row 0 each of `t` queries from row `at` may attend.
pub fn sees(rule: Mask, at: usize, t: usize, s: usize) -> Bools {
    let (i, j) = (count(t, RANK - 2).add_scalar(at as i64), count(s, RANK - 1));
    let sizes = padded(&[t, s]);
    let (i, j) = (i.expand(sizes), j.expand(sizes));
    match rule {
        Mask::Full => j.clone().equal(j),
        Mask::Causal => j.lower_equal(i),
        Mask::BlockCausal(block) => j.div_scalar(i64::from(block)).lower_equal(i.div_scalar(i64::from(block))),
        Mask::Local(window) => (i - j).abs().lower_equal_scalar(i64::from(window) / 2),
    }
}

/// Attention of `[B, H, T, D]` with `[B, G, S, D]` and `[B, G, S, E]`: scores become weights by `adjust` and softmax.
pub fn attend(q: Burn<4>, k: Burn<4>, v: Burn<4>, adjust: impl Fn(Burn<4>) -> Burn<4>) -> Burn<4> {
    let [b, h, ..] = q.dims();
    let [_, g, s, _] = k.dims();
    // Query head j reads key head j div (H / G).
    let repeated = |x: Burn<4>| {
        let width = x.dims()[3];
        let each = x.reshape([b * g, 1, s, width]).expand([b * g, h / g, s, width]);
        each.reshape([b, h, s, width])
    };
    let scores = q.matmul(repeated(k).swap_dims(2, 3));
    weights(adjust(scores)).matmul(repeated(v))
}

pub(super) fn sdpa(args: &[Operand], scale: f32, cap: Option<f32>, mask: Option<Mask>) -> Result<Value, String> {
    let part = |i: usize| -> Result<Burn<4>, String> { Ok(args[i].float()?.reshape(four(&args[i]))) };
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let ([b, h, t, _], s) = (q.dims(), k.dims()[2]);
    let sizes = [b, h, t, s];
    let allowed: Option<Burn<4, Bool>> = mask.map(|rule| sees(rule, 0, t, s).reshape([1, 1, t, s]).expand(sizes));
    let given = args.get(3).map(|m| m.value.clone());
    let adjust = |scores: Burn<4>| {
        let scores = scores.mul_scalar(f64::from(scale));
        let scores = match cap.map(f64::from) {
            Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
            None => scores,
        };
        let scores = match &given {
            Some(Value::Bool(m)) => {
                let [_, _, d @ ..] = m.dims();
                scores.mask_fill(m.clone().reshape(d).expand(sizes).bool_not(), f64::NEG_INFINITY)
            }
            Some(Value::Float(m)) => {
                let [_, _, d @ ..] = m.dims();
                scores + m.clone().reshape(d).expand(sizes)
            }
            Some(Value::Int(_)) | None => scores,
        };
        match &allowed {
            Some(allowed) => scores.mask_fill(allowed.clone().bool_not(), f64::NEG_INFINITY),
            None => scores,
        }
    };
    let out = attend(q, k, v, adjust);
    let width = out.dims()[3];
    Ok(Value::Float(out.reshape(padded(&[b, h, t, width]))))
}
