//! Linear attention: a state of keys times values, unrolled over the steps.

use dlx_ir::{DType, Op, Unary};

use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::Row;
use super::rnn::MAX_STEPS;

const LINEAR: &[Row] = &[("", "LinearAttention", linear_attention)];

pub(super) const ROWS: &[&[Row]] = &[LINEAR];

/// `[B, T, H · D]` as `[B, H, T, D]` of f32.
fn heads(i: &mut Importer<'_>, x: &Val, heads: usize) -> Result<Val, String> {
    let [b, t, wide] = i.b.shape(x)?[..] else { return Err("needs operands [B, T, features]".into()) };
    if wide % heads != 0 {
        return Err(format!("{wide} features for {heads} heads"));
    }
    let x = i.b.cast(x, DType::F32)?;
    let x = i.b.reshape(&x, &[b, t, heads, wide / heads])?;
    i.b.transpose(&x, &[0, 2, 1, 3])
}

/// One step of `[B, H, T, D]`, as a row `[B, H, 1, D]` or as a column `[B, H, D, 1]`.
fn at(i: &mut Importer<'_>, x: &Val, t: usize, column: bool) -> Result<Val, String> {
    let x = i.b.slice(x, 2, t, t + 1)?;
    if column { i.b.swap_last(&x) } else { Ok(x) }
}

/// `S ← exp(g) S`, `v ← β (v − Sᵀk)`, `S ← S + k vᵀ`, `o = scale · Sᵀq`; rules leave out the first or the second.
fn linear_attention(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let (query_heads, groups) = (c.size("q_num_heads")?, c.size("kv_num_heads")?);
    if query_heads % groups != 0 {
        return Err(format!("{query_heads} heads of queries for {groups} of keys"));
    }
    let (gated, delta) = match c.text_or("update_rule", "gated_delta")?.as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(format!("update_rule `{other}` is not supported")),
    };
    if gated != c.opt(4).is_some() || delta != c.opt(5).is_some() {
        return Err("its update rule and its inputs decay and beta do not belong together".into());
    }
    let dtype = i.b.dtype(c.arg(0)?)?;
    let (q, k, v) = (heads(i, c.arg(0)?, query_heads)?, heads(i, c.arg(1)?, groups)?, heads(i, c.arg(2)?, groups)?);
    let (&[b, _, steps, d], &[_, _, _, dv]) = (&i.b.shape(&q)?[..], &i.b.shape(&v)?[..]) else {
        return Err("needs operands [B, T, features]".into());
    };
    if steps > MAX_STEPS {
        return Err(format!(
            "{steps} steps, and linear attention is unrolled to at most {MAX_STEPS}; give shorter inputs"
        ));
    }
    let decay = match c.opt(4) {
        Some(g) => {
            let g = heads(i, g, groups)?;
            Some(i.b.unary(Unary::Exp, &g)?)
        }
        None => None,
    };
    let beta = match c.opt(5) {
        Some(beta) => {
            let own = if i.b.shape(beta)?.last() == Some(&1) { 1 } else { groups };
            Some(heads(i, beta, own)?)
        }
        None => None,
    };
    let (mut state, kept) = match c.opt(3) {
        Some(past) => (i.b.cast(past, DType::F32)?, i.b.dtype(past)?),
        None => {
            let zero = i.b.number(DType::F32, 0.0)?;
            (i.b.expand(&zero, &[b, groups, d, dv])?, dtype)
        }
    };
    let scale = match c.float_or("scale", 0.0)? {
        0.0 => 1.0 / (d as f64).sqrt(),
        scale => scale.into(),
    };
    let q = i.b.mul_number(&q, scale)?;
    // Heads that share keys and values: [B, G, H / G, T, D].
    let q = i.b.reshape(&q, &[b, groups, query_heads / groups, steps, d])?;
    let mut rows = Vec::with_capacity(steps);
    for t in 0..steps {
        let (key, mut value) = (at(i, &k, t, true)?, at(i, &v, t, false)?);
        if let Some(decay) = &decay {
            let g = at(i, decay, t, true)?;
            state = i.b.mul(&state, &g)?;
        }
        if let Some(beta) = &beta {
            let turned = i.b.swap_last(&key)?;
            let known = i.b.op1(Op::Matmul {}, &[&turned, &state])?;
            let new = i.b.sub(&value, &known)?;
            let beta = at(i, beta, t, false)?;
            value = i.b.mul(&beta, &new)?;
        }
        let write = i.b.mul(&key, &value)?;
        state = i.b.add(&state, &write)?;
        let query = i.b.slice(&q, 3, t, t + 1)?;
        let query = i.b.reshape(&query, &[b, groups, query_heads / groups, d])?;
        let out = i.b.op1(Op::Matmul {}, &[&query, &state])?;
        rows.push(i.b.reshape(&out, &[b, 1, query_heads * dv])?);
    }
    let y = i.b.concat(&rows.iter().collect::<Vec<_>>(), 1)?;
    Ok(vec![i.b.cast(&y, dtype)?, i.b.cast(&state, kept)?])
}
