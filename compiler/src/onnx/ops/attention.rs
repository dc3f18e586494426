//! Attention and rotary embeddings, as one op each: `sdpa` on `[B, H, T, D]` and `rotary`.

use dlx_ir::{Binary, Compare, DType, Data, Mask, Op, Tensor};

use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::{MS, Row, one};

const ATTENTION: &[Row] = &[
    ("", "Attention", attention),
    ("", "RotaryEmbedding", |i, c, _| one(rotary_embedding(i, c))),
    (MS, "Attention", packed_attention),
    (MS, "GroupQueryAttention", group_query),
    (MS, "MultiHeadAttention", multi_head),
    (MS, "RotaryEmbedding", |i, c, _| one(ms_rotary(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[ATTENTION];

/// `[B, T, H·D]` as `[B, H, T, D]`.
fn split_heads(i: &mut Importer<'_>, x: &Val, heads: usize) -> Result<Val, String> {
    let [batch, rows, width] = i.b.shape(x)?[..] else { return Err("needs three dimensions".into()) };
    if heads == 0 || width % heads != 0 {
        return Err(format!("{width} features are not {heads} heads"));
    }
    let x = i.b.reshape(x, &[batch, rows, heads, width / heads])?;
    i.b.transpose(&x, &[0, 2, 1, 3])
}

/// `[B, H, T, D]` as `[B, T, H·D]`.
fn join_heads(i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
    let [batch, heads, rows, width] = i.b.shape(x)?[..] else { return Err("needs four dimensions".into()) };
    let x = i.b.transpose(x, &[0, 2, 1, 3])?;
    i.b.reshape(&x, &[batch, rows, heads * width])
}

/// What a row may attend by its place, as a constant `bool[T, S]`: `sees(row, key)`.
fn pattern(rows: usize, keys: usize, sees: &dyn Fn(i64, i64) -> bool) -> Result<Val, String> {
    if rows.checked_mul(keys).is_none_or(|n| n > 1 << 24) {
        return Err(format!("a mask of {rows} × {keys} is too large a constant"));
    }
    let data = (0..rows * keys).map(|n| sees((n / keys) as i64, (n % keys) as i64)).collect();
    Ok(Tensor { dtype: DType::Bool, shape: vec![rows, keys], data: Data::Bool(data) }.into())
}

/// Scores of one attention: everything but the three tensors.
struct Scores {
    scale: Option<f32>,
    cap: f32,
    /// Bool or added, laid against `[B, H, T, S]`.
    mask: Option<Val>,
    /// A rule by place, as a constant.
    pattern: Option<Val>,
    rule: Option<Mask>,
}

/// Attention of `[B, H, T, D]`.
fn sdpa(i: &mut Importer<'_>, q: &Val, k: &Val, v: &Val, s: &Scores) -> Result<Val, String> {
    let width = *i.b.shape(q)?.last().ok_or("needs dimensions")?;
    let scale = s.scale.unwrap_or(1.0 / (width as f32).sqrt());
    let cap = (s.cap != 0.0).then_some(s.cap);
    let mask = match (&s.mask, &s.pattern) {
        (Some(mask), Some(pattern)) => Some(both(i, mask, pattern)?),
        (Some(one), None) | (None, Some(one)) => Some(one.clone()),
        (None, None) => None,
    };
    let op = Op::Sdpa { scale, cap, mask: s.rule };
    match &mask {
        Some(mask) => i.b.op1(op, &[q, k, v, mask]),
        None => i.b.op1(op, &[q, k, v]),
    }
}

/// A mask, and a bool one on top of it.
fn both(i: &mut Importer<'_>, mask: &Val, pattern: &Val) -> Result<Val, String> {
    if i.b.dtype(mask)? == DType::Bool {
        return i.b.binary(Binary::And, mask, pattern);
    }
    let never = i.b.like(mask, f64::NEG_INFINITY)?;
    i.b.select(pattern, mask, &never)
}

/// Rows of `[B, H, T, D]`.
fn rows_of(i: &Importer<'_>, x: &Val) -> Result<usize, String> {
    let [_, _, rows, _] = i.b.shape(x)?[..] else { return Err("needs four dimensions".into()) };
    Ok(rows)
}

/// A cache and what is added to it.
fn appended(i: &mut Importer<'_>, past: Option<&Val>, x: &Val) -> Result<Val, String> {
    past.map_or(Ok(x.clone()), |past| i.b.concat(&[past, x], 2))
}

fn attention(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let flat = i.b.rank(c.arg(0)?)? == 3;
    let mut heads = Vec::new();
    for (n, name) in [(0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")] {
        heads.push(if flat { split_heads(i, c.arg(n)?, c.size(name)?)? } else { c.arg(n)?.clone() });
    }
    let k = appended(i, c.opt(4), &heads[1])?;
    let v = appended(i, c.opt(5), &heads[2])?;
    let q = &heads[0];
    let (rows, keys) = (rows_of(i, q)?, rows_of(i, &k)?);
    let past = keys - rows_of(i, &heads[1])?;
    let mut mask = c.opt(3).cloned();
    if let Some(m) = &mask {
        // A mask may be shorter than the keys: the rest is not attended.
        let shape = i.b.shape(m)?;
        let (last, short) = (shape.len().saturating_sub(1), keys.saturating_sub(*shape.last().unwrap_or(&keys)));
        if short > 0 && shape.last() != Some(&1) {
            let never = if i.b.dtype(m)? == DType::Bool { i.b.like(m, 0.0)? } else { i.b.like(m, f64::NEG_INFINITY)? };
            mask = Some(super::shape::pad_one(i, m, last, 0, short as i64, "constant", &never)?);
        }
    }
    let causal = c.flag("is_causal")?;
    let (left, right) = (c.int_or("left_window_size", -1)?, c.int_or("right_window_size", -1)?);
    let mut scores =
        Scores { scale: c.float("scale")?, cap: c.float_or("softcap", 0.0)?, mask, pattern: None, rule: None };
    let valid = c.opt(6).filter(|_| c.opset() >= 24).cloned();
    if let Some(lengths) = &valid {
        // Keys at and beyond each sequence's length are padding.
        let lengths = i.b.cast(lengths, DType::I64)?;
        let batch = i.b.elements(&lengths)?;
        let lengths = i.b.reshape(&lengths, &[batch, 1, 1, 1])?;
        let place = i.b.ints(0..keys as i64);
        let there = i.b.compare(Compare::Lt, &place, &lengths)?;
        let mut allowed = there;
        if causal || left >= 0 || right >= 0 {
            let first = i.b.add_number(&lengths, -(rows as f64))?;
            let row = i.b.ints(0..rows as i64);
            let row = i.b.reshape(&row, &[rows, 1])?;
            let row = i.b.add(&row, &first)?;
            let ahead = i.b.sub(&place, &row)?;
            let most = if causal { Some(0) } else { (right >= 0).then_some(right) };
            if let Some(most) = most {
                let most = i.b.like(&ahead, most as f64)?;
                let near = i.b.compare(Compare::Le, &ahead, &most)?;
                allowed = i.b.binary(Binary::And, &allowed, &near)?;
            }
            if left >= 0 {
                let least = i.b.like(&ahead, -(left as f64))?;
                let near = i.b.compare(Compare::Ge, &ahead, &least)?;
                allowed = i.b.binary(Binary::And, &allowed, &near)?;
            }
        }
        scores.pattern = Some(allowed);
    } else if causal && past == 0 && rows == keys && left < 0 && scores.mask.is_none() {
        scores.rule = Some(Mask::Causal);
    } else if causal || left >= 0 || right >= 0 {
        let past = past as i64;
        scores.pattern = Some(pattern(rows, keys, &|row, key| {
            let ahead = key - (row + past);
            (left < 0 || -ahead <= left) && if causal { ahead <= 0 } else { right < 0 || ahead <= right }
        })?);
    }
    let y = sdpa(i, q, &k, &v, &scores)?;
    let y = if flat { join_heads(i, &y)? } else { y };
    let mut out = vec![y, k.clone(), v];
    if c.wants(3) {
        out.push(scores_at(i, c, q, &k, &scores)?);
    }
    Ok(out)
}

/// The scores themselves, at the stage that `qk_matmul_output_mode` names: raw, capped, masked, or as probabilities.
fn scores_at(i: &mut Importer<'_>, c: &Call<'_>, q: &Val, k: &Val, s: &Scores) -> Result<Val, String> {
    let (q_shape, k_shape) = (i.b.shape(q)?, i.b.shape(k)?);
    let (&[batch, heads, rows, width], &[_, groups, keys, _]) = (&q_shape[..], &k_shape[..]) else {
        return Err("needs four dimensions".into());
    };
    let dtype = i.b.dtype(q)?;
    let (q, k) = (i.b.cast(q, DType::F32)?, i.b.cast(k, DType::F32)?);
    let repeated = i.b.reshape(&k, &[batch, groups, 1, keys, width])?;
    let repeated = i.b.expand(&repeated, &[batch, groups, heads / groups.max(1), keys, width])?;
    let repeated = i.b.reshape(&repeated, &[batch, heads, keys, width])?;
    let turned = i.b.swap_last(&repeated)?;
    let y = i.b.op1(Op::Matmul {}, &[&q, &turned])?;
    let mut y = i.b.mul_number(&y, s.scale.map_or_else(|| 1.0 / (width as f64).sqrt(), f64::from))?;
    let mode = c.int_or("qk_matmul_output_mode", 0)?;
    if mode >= 1 && s.cap != 0.0 {
        let inner = i.b.mul_number(&y, 1.0 / f64::from(s.cap))?;
        let inner = i.b.unary(dlx_ir::Unary::Tanh, &inner)?;
        y = i.b.mul_number(&inner, s.cap.into())?;
    }
    if mode >= 2 {
        let rule = s.rule.map(|rule| pattern(rows, keys, &|r, k| rule.sees(r as usize, k as usize))).transpose()?;
        for mask in [&s.mask, &s.pattern, &rule].into_iter().flatten() {
            y = if i.b.dtype(mask)? == DType::Bool {
                let never = i.b.like(&y, f64::NEG_INFINITY)?;
                i.b.select(mask, &y, &never)?
            } else {
                let mask = i.b.cast(mask, DType::F32)?;
                i.b.add(&y, &mask)?
            };
        }
    }
    if mode >= 3 {
        let all = i.b.op1(Op::Softmax {}, &[&y])?;
        let never = i.b.unary(dlx_ir::Unary::IsNan, &all)?;
        let zero = i.b.like(&all, 0.0)?;
        y = i.b.select(&never, &zero, &all)?;
    }
    i.b.cast(&y, dtype)
}

/// Rotates `[B, H, T, D]` by tables `[1 or B, T, R/2]`.
fn rotate(i: &mut Importer<'_>, x: &Val, cos: &Val, sin: &Val, interleaved: bool) -> Result<Val, String> {
    i.b.op1(Op::Rotary { interleaved }, &[x, cos, sin])
}

/// Rows of a table `[P, R/2]` at positions `[B, T]` or `[T]`, as `[B or 1, T, R/2]`.
fn rows_at(i: &mut Importer<'_>, table: &Val, positions: &Val) -> Result<Val, String> {
    let picked = i.b.gather(table, positions, 0)?;
    let shape = i.b.shape(&picked)?;
    if shape.len() == 2 { i.b.reshape(&picked, &[1, shape[0], shape[1]]) } else { Ok(picked) }
}

fn rotary_embedding(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let flat = i.b.rank(x)? == 3;
    let heads = if flat { split_heads(i, x, c.size("num_heads")?)? } else { x.clone() };
    let (mut cos, mut sin) = (c.arg(1)?.clone(), c.arg(2)?.clone());
    if let Some(positions) = c.opt(3) {
        (cos, sin) = (rows_at(i, &cos, positions)?, rows_at(i, &sin, positions)?);
    }
    let y = rotate(i, &heads, &cos, &sin, c.flag("interleaved")?)?;
    if flat { join_heads(i, &y) } else { Ok(y) }
}

fn ms_rotary(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let (flat, shape) = (i.b.rank(x)? == 3, i.b.shape(x)?);
    let (mut cos, mut sin) = (c.arg(2)?.clone(), c.arg(3)?.clone());
    let half = *i.b.shape(&cos)?.last().ok_or("has no table")?;
    let rotated = match c.int_or("rotary_embedding_dim", 0)? {
        0 => 2 * half,
        n => usize::try_from(n).map_err(|_| format!("rotates {n} features"))?,
    };
    let heads = if flat {
        let heads = usize::try_from(c.int_or("num_heads", 0)?).unwrap_or(0);
        let heads = if heads == 0 { shape[2] / rotated.max(1) } else { heads };
        split_heads(i, x, heads)?
    } else {
        x.clone()
    };
    let rows = rows_of(i, &heads)?;
    let mut positions = c.arg(1)?.clone();
    if i.b.elements(&positions)? == 1 && rows != 1 {
        // One number: where the first row stands.
        let first = i.b.reshape(&positions, &[1, 1])?;
        let steps = i.b.ints(0..rows as i64);
        positions = i.b.add(&steps, &first)?;
    }
    (cos, sin) = (rows_at(i, &cos, &positions)?, rows_at(i, &sin, &positions)?);
    let y = rotate(i, &heads, &cos, &sin, c.flag("interleaved")?)?;
    let scale = c.float_or("scale", 1.0)?;
    let y = if scale == 1.0 { y } else { i.b.mul_number(&y, scale.into())? };
    if flat { join_heads(i, &y) } else { Ok(y) }
}

/// Attention with rotary embedding and a cache. All sequences of a batch are taken to be of one length, as ONNX Runtime
/// demands of prompts: the rows given are the last ones.
fn group_query(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let (heads, groups) = (c.size("num_heads")?, c.size("kv_num_heads")?);
    let (query, rows) = (c.arg(0)?, i.b.shape(c.arg(0)?)?);
    let [_, rows, width] = rows[..] else { return Err("needs three dimensions".into()) };
    let parts = match (c.opt(1), c.opt(2)) {
        (Some(k), Some(v)) => [query.clone(), k.clone(), v.clone()],
        _ => {
            let d = width / (heads + 2 * groups).max(1);
            let at = [0, heads * d, (heads + groups) * d, (heads + 2 * groups) * d];
            [i.b.slice(query, 2, at[0], at[1])?, i.b.slice(query, 2, at[1], at[2])?, i.b.slice(query, 2, at[2], at[3])?]
        }
    };
    let mut q = split_heads(i, &parts[0], heads)?;
    let mut k = split_heads(i, &parts[1], groups)?;
    let v = split_heads(i, &parts[2], groups)?;
    for (x, n) in [(&mut q, 14), (&mut k, 15)] {
        if let Some(w) = c.opt(n) {
            let eps = c.float_or("qk_norm_epsilon", 1e-6)?;
            *x = super::reduce::weighted(i, x, 3, dlx_ir::Norm::Rms, eps, Some(w), None)?;
        }
    }
    let past = c.opt(3).map_or(Ok(0), |p| rows_of(i, p))?;
    let total = i.b.known(c.arg(5)?)?;
    if let Some(lengths) = total {
        let lengths = i.b.known_ints(&Val::Known(lengths), "seqlens_k")?;
        if let Some(other) = lengths.iter().find(|n| **n != (past + rows) as i64 - 1) {
            return Err(format!("a sequence of {} rows, where {past} are cached and {rows} given", other + 1));
        }
    } else {
        i.b.note("every sequence is taken to fill its rows: seqlens_k is not looked at");
    }
    if c.flag("do_rotary")? {
        let interleaved = c.flag("rotary_interleaved")?;
        let (cos, sin) = (c.arg(7)?, c.arg(8)?);
        let positions = match c.opt(9) {
            Some(positions) => positions.clone(),
            None => i.b.ints((past..past + rows).map(|n| n as i64)),
        };
        let (cos, sin) = (rows_at(i, cos, &positions)?, rows_at(i, sin, &positions)?);
        q = rotate(i, &q, &cos, &sin, interleaved)?;
        k = rotate(i, &k, &cos, &sin, interleaved)?;
    }
    if c.opt(11).is_some() || c.flag("smooth_softmax")? {
        return Err("attention sinks are not supported".into());
    }
    let k = appended(i, c.opt(3), &k)?;
    let v = appended(i, c.opt(4), &v)?;
    let window = c.int_or("local_window_size", -1)?;
    let keys = past + rows;
    let scale = c.float("scale")?.filter(|s| *s != 0.0);
    let mut s = Scores { scale, cap: c.float_or("softcap", 0.0)?, mask: c.opt(10).cloned(), pattern: None, rule: None };
    if past == 0 && window < 0 && s.mask.is_none() {
        s.rule = Some(Mask::Causal);
    } else {
        let past = past as i64;
        s.pattern = Some(pattern(rows, keys, &|row, key| {
            let behind = row + past - key;
            behind >= 0 && (window < 0 || behind < window)
        })?);
    }
    let y = sdpa(i, &q, &k, &v, &s)?;
    Ok(vec![join_heads(i, &y)?, k, v])
}

/// A mask of padding that repeats over heads and rows: from `[B, S]`, nonzero = may attend, or from lengths `[B]` of `keys`.
fn padding(i: &mut Importer<'_>, mask: &Val, keys: usize) -> Result<Val, String> {
    if let [batch] = i.b.shape(mask)?[..] {
        let place = i.b.ints(0..keys as i64);
        let lengths = i.b.cast(mask, DType::I64)?;
        let lengths = i.b.reshape(&lengths, &[batch, 1, 1, 1])?;
        return i.b.compare(Compare::Lt, &place, &lengths);
    }
    let zero = i.b.like(mask, 0.0)?;
    let empty = i.b.compare(Compare::Eq, mask, &zero)?;
    let there = i.b.unary(dlx_ir::Unary::Not, &empty)?;
    let shape = i.b.shape(mask)?;
    let dims = match shape[..] {
        [batch, keys] => vec![batch, 1, 1, keys],
        [batch, rows, keys] => vec![batch, 1, rows, keys],
        _ => return Err(format!("a mask of shape {shape:?} is not supported")),
    };
    i.b.reshape(&there, &dims)
}

fn packed_attention(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let heads = c.size("num_heads")?;
    if c.opt(4).is_some() {
        return Err("with a past is not supported".into());
    }
    let x = super::product::matmul(i, c.arg(0)?, c.arg(1)?)?;
    let x = match c.opt(2) {
        Some(bias) => i.b.add(&x, bias)?,
        None => x,
    };
    let width = *i.b.shape(&x)?.last().ok_or("needs dimensions")?;
    let sizes = c.ints("qkv_hidden_sizes")?.map_or_else(|| Ok(vec![width / 3; 3]), |s| super::shape::sizes(&s))?;
    let [a, b, d] = sizes[..] else { return Err("needs three sizes of q, k and v".into()) };
    if sizes.iter().any(|n| *n > width) {
        return Err(format!("q, k and v of sizes {sizes:?} are not {width} features"));
    }
    let q = i.b.slice(&x, 2, 0, a)?;
    let k = i.b.slice(&x, 2, a, a + b)?;
    let v = i.b.slice(&x, 2, a + b, a + b + d)?;
    let (q, k, v) = (split_heads(i, &q, heads)?, split_heads(i, &k, heads)?, split_heads(i, &v, heads)?);
    let mut out = finish(i, c, [q, k, v], c.opt(3), c.opt(5))?;
    if c.wants(1) {
        // Keys and values are one cache here: [2, B, H, T, D].
        let shape = i.b.shape(&out[1])?;
        let dims: Vec<usize> = std::iter::once(1).chain(shape).collect();
        let (k, v) = (i.b.reshape(&out[1], &dims)?, i.b.reshape(&out[2], &dims)?);
        out[1] = i.b.concat(&[&k, &v], 0)?;
    }
    out.truncate(2);
    Ok(out)
}

fn multi_head(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let heads = c.size("num_heads")?;
    if c.opt(6).is_some() || c.opt(7).is_some() {
        return Err("with a past is not supported".into());
    }
    let mut parts = Vec::new();
    let mut first = 0;
    for n in 0..3 {
        let mut x = c.arg(n)?.clone();
        if i.b.rank(&x)? != 3 {
            return Err("packed or transposed operands are not supported".into());
        }
        let width = i.b.shape(&x)?[2];
        if let Some(bias) = c.opt(3) {
            let bias = i.b.slice(bias, 0, first, first + width)?;
            x = i.b.add(&x, &bias)?;
        }
        first += width;
        parts.push(split_heads(i, &x, heads)?);
    }
    let [q, k, v] = <[Val; 3]>::try_from(parts).map_err(|_| "needs q, k and v")?;
    finish(i, c, [q, k, v], c.opt(4), c.opt(5))
}

/// The common end of ONNX Runtime's two older attentions: a padding mask, an added bias, and perhaps a causal rule.
fn finish(
    i: &mut Importer<'_>,
    c: &Call<'_>,
    [q, k, v]: [Val; 3],
    pad: Option<&Val>,
    bias: Option<&Val>,
) -> Result<Vec<Val>, String> {
    let (rows, keys) = (rows_of(i, &q)?, rows_of(i, &k)?);
    let mut pad = pad.map(|p| padding(i, p, keys)).transpose()?;
    let mut rule = None;
    if c.flag("unidirectional")? {
        if pad.is_none() && rows == keys {
            rule = Some(Mask::Causal);
        } else {
            let causal = pattern(rows, keys, &|row, key| key <= row)?;
            pad = Some(match pad {
                Some(pad) => i.b.binary(Binary::And, &pad, &causal)?,
                None => causal,
            });
        }
    }
    let scale = c.float("scale")?.filter(|s| *s != 0.0);
    let s = Scores { scale, cap: 0.0, mask: bias.cloned(), pattern: pad, rule };
    let y = sdpa(i, &q, &k, &v, &s)?;
    Ok(vec![join_heads(i, &y)?, k, v])
}
