//! Attention whose scores and probabilities pass through subgraphs.

use dlx_ir::{DType, Op};

use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::Row;
use super::control::body;

const FLEX: &[Row] = &[("ai.onnx.preview", "FlexAttention", attention)];

pub(super) const ROWS: &[&[Row]] = &[FLEX];

/// One value through the subgraph of that name, if there is one.
fn modified(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>, name: &str, x: Val) -> Result<Val, String> {
    let Some(graph) = c.node.graph(name).map_err(|e| e.message)? else { return Ok(x) };
    body(i, graph, scope, vec![x])?.into_iter().next().ok_or_else(|| format!("`{name}` has no output"))
}

fn attention(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    let (q, k, v) = (c.arg(0)?, c.arg(1)?, c.arg(2)?);
    let (&[b, heads, rows, d], &[_, groups, keys, _], &[_, _, _, dv]) =
        (&i.b.shape(q)?[..], &i.b.shape(k)?[..], &i.b.shape(v)?[..])
    else {
        return Err("needs operands [B, H, T, D]".into());
    };
    if groups == 0 || heads % groups != 0 {
        return Err(format!("{heads} heads of queries for {groups} of keys"));
    }
    let dtype = i.b.dtype(q)?;
    let narrow = matches!(dtype, DType::F16 | DType::BF16);
    let precision = c.elem("softmax_precision")?.unwrap_or(if narrow { DType::F32 } else { dtype });
    let scale = c.float("scale")?.map_or(1.0 / (d as f64).sqrt(), f64::from).sqrt();
    let (q, k) = (i.b.mul_number(q, scale)?, i.b.mul_number(k, scale)?);
    // Heads that share keys are further rows of one product.
    let q = i.b.reshape(&q, &[b, groups, heads / groups * rows, d])?;
    let k = i.b.swap_last(&k)?;
    let scores = i.b.op1(Op::Matmul {}, &[&q, &k])?;
    let scores = i.b.reshape(&scores, &[b, heads, rows, keys])?;
    let scores = i.b.cast(&scores, precision)?;
    let scores = modified(i, c, scope, "score_mod", scores)?;
    let scores = i.b.cast(&scores, precision)?;
    let weights = i.b.op1(Op::Softmax {}, &[&scores])?;
    let weights = modified(i, c, scope, "prob_mod", weights)?;
    let weights = i.b.cast(&weights, dtype)?;
    let weights = i.b.reshape(&weights, &[b, groups, heads / groups * rows, keys])?;
    let y = i.b.op1(Op::Matmul {}, &[&weights, v])?;
    Ok(vec![i.b.reshape(&y, &[b, heads, rows, dv])?])
}
