//! Reductions, softmax and norms.

use dlx_ir::{Binary, Compare, DType, Norm, Op, Reduce, Unary};

use super::super::call::{Call, axes, axis};
use super::super::import::Importer;
use super::super::value::Val;
use super::{Row, one};

const REDUCE: &[Row] = &[
    ("", "ArgMax", |i, c, _| one(arg_max(i, c, false))),
    ("", "ArgMin", |i, c, _| one(arg_max(i, c, true))),
    ("", "ReduceL1", |i, c, _| one(reduce(i, c, Reduce::Sum, Some(Unary::Abs), None))),
    ("", "ReduceL2", |i, c, _| one(squares(i, c, Some(Unary::Sqrt)))),
    ("", "ReduceLogSum", |i, c, _| one(reduce(i, c, Reduce::Sum, None, Some(Unary::Log)))),
    ("", "ReduceLogSumExp", |i, c, _| one(log_sum_exp(i, c))),
    ("", "ReduceMax", |i, c, _| one(reduce(i, c, Reduce::Max, None, None))),
    ("", "ReduceMean", |i, c, _| one(reduce(i, c, Reduce::Mean, None, None))),
    ("", "ReduceMin", |i, c, _| one(reduce(i, c, Reduce::Min, None, None))),
    ("", "ReduceProd", |i, c, _| one(reduce(i, c, Reduce::Prod, None, None))),
    ("", "ReduceSum", |i, c, _| one(reduce(i, c, Reduce::Sum, None, None))),
    ("", "ReduceSumSquare", |i, c, _| one(squares(i, c, None))),
    ("", "CumProd", |i, c, _| one(cumulate(i, c, true))),
    ("", "CumSum", |i, c, _| one(cumulate(i, c, false))),
    ("", "LayerNormalization", layer_norm),
    ("", "LogSoftmax", |i, c, _| one(softmax(i, c, true))),
    ("", "RMSNormalization", |i, c, _| one(rms_norm(i, c))),
    ("", "SimplifiedLayerNormalization", |i, c, _| one(rms_norm(i, c))),
    ("", "Softmax", |i, c, _| one(softmax(i, c, false))),
    (super::MS, "SkipLayerNormalization", |i, c, _| skip_norm(i, c, Norm::Layer)),
    (super::MS, "SkipSimplifiedLayerNormalization", |i, c, _| skip_norm(i, c, Norm::Rms)),
];

pub(super) const ROWS: &[&[Row]] = &[REDUCE];

/// The dimensions to reduce: an attribute or, since version 13 (sums) or 18, an operand; `None` where nothing is reduced.
fn reduced(i: &mut Importer<'_>, c: &Call<'_>, rank: usize) -> Result<Option<Vec<usize>>, String> {
    let list = match c.opt(1) {
        Some(list @ Val::Run(_)) => {
            let (have, keep) = (i.b.shape(c.arg(0)?)?, c.int_or("keepdims", 1)? != 0);
            let list = i.decided(c, list, "axes", |shape| follow(&have, shape, keep))?;
            return Ok((!list.is_empty()).then(|| list.iter().map(|a| *a as usize).collect()));
        }
        Some(list) => Some(i.b.known_ints(list, "axes")?),
        None => c.ints("axes")?,
    };
    let list = list.filter(|l| !l.is_empty());
    match list {
        Some(list) => axes(&list, rank).map(Some),
        None if c.flag("noop_with_empty_axes")? => Ok(None),
        None => Ok(Some((0..rank).collect())),
    }
}

/// The dimensions that are reduced where these sizes become others, if that is certain.
fn follow(have: &[usize], shape: &[usize], keep: bool) -> Option<Vec<i64>> {
    let rank = have.len();
    if keep {
        let fits = shape.len() == rank && have.iter().zip(shape).all(|(h, s)| s == h || *s == 1);
        return fits.then(|| (0..rank as i64).filter(|n| shape[*n as usize] == 1).collect());
    }
    if rank > 8 {
        return None;
    }
    let sets = (0u32..1 << rank).map(|set| (0..rank).partition::<Vec<_>, _>(|n| set >> n & 1 == 1));
    let mut sets = sets.filter(|(_, left)| left.iter().map(|n| have[*n]).eq(shape.iter().copied()));
    let (first, _) = sets.next()?;
    sets.next().is_none().then(|| first.into_iter().map(|n| n as i64).collect())
}

fn reduce(
    i: &mut Importer<'_>,
    c: &Call<'_>,
    kind: Reduce,
    before: Option<Unary>,
    after: Option<Unary>,
) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    let rank = i.b.rank(&x)?;
    let Some(axes) = reduced(i, c, rank)? else {
        // Nothing is reduced, but the functions around the reduction still apply.
        if let Some(f) = before {
            x = i.b.unary(f, &x)?;
        }
        return after.map_or(Ok(x.clone()), |f| i.b.unary(f, &x));
    };
    if let Some(f) = before {
        x = i.b.unary(f, &x)?;
    }
    let out = i.b.reduce(kind, &x, &axes, c.int_or("keepdims", 1)? != 0)?;
    after.map_or(Ok(out.clone()), |f| i.b.unary(f, &out))
}

fn squares(i: &mut Importer<'_>, c: &Call<'_>, after: Option<Unary>) -> Result<Val, String> {
    let x = i.b.mul(c.arg(0)?, c.arg(0)?)?;
    let args = std::iter::once(Some(x)).chain(c.args.iter().skip(1).cloned()).collect();
    reduce(i, &Call { node: c.node, args }, Reduce::Sum, None, after)
}

fn log_sum_exp(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let rank = i.b.rank(x)?;
    let Some(axes) = reduced(i, c, rank)? else { return Ok(x.clone()) };
    let largest = i.b.reduce(Reduce::Max, x, &axes, true)?;
    let y = i.b.sub(x, &largest)?;
    let y = i.b.unary(Unary::Exp, &y)?;
    let y = i.b.reduce(Reduce::Sum, &y, &axes, true)?;
    let y = i.b.unary(Unary::Log, &y)?;
    let y = i.b.add(&y, &largest)?;
    if c.int_or("keepdims", 1)? != 0 {
        return Ok(y);
    }
    let left = i.b.shape(x)?.iter().enumerate().filter(|(n, _)| !axes.contains(n)).map(|(_, d)| *d).collect::<Vec<_>>();
    i.b.reshape(&y, &left)
}

fn arg_max(i: &mut Importer<'_>, c: &Call<'_>, min: bool) -> Result<Val, String> {
    let x = c.arg(0)?;
    let mut shape = i.b.shape(x)?;
    let axis = axis(c.int_or("axis", 0)?, shape.len())?;
    let last = c.flag("select_last_index")?;
    let out = i.b.op1(Op::ArgMax { axis: axis as i64, min, last }, &[x])?;
    if c.int_or("keepdims", 1)? != 0 {
        return Ok(out);
    }
    shape.remove(axis);
    i.b.reshape(&out, &shape)
}

fn cumulate(i: &mut Importer<'_>, c: &Call<'_>, prod: bool) -> Result<Val, String> {
    let x = c.arg(0)?;
    let (rank, exclusive, reverse) = (i.b.rank(x)?, c.flag("exclusive")?, c.flag("reverse")?);
    let run = |i: &mut Importer<'_>, axis| i.b.op1(Op::Cumulate { axis, prod, exclusive, reverse }, &[x]);
    if let given @ Val::Run(_) = c.arg(1)? {
        // Along each dimension, and then the one that is asked for.
        let given = i.b.cast(given, DType::I64)?;
        let given = i.b.reshape(&given, &[])?;
        let count = i.b.like(&given, rank as f64)?;
        let given = i.b.binary(Binary::Mod, &given, &count)?;
        let mut y = run(i, 0)?;
        for axis in 1..rank {
            let (other, number) = (run(i, axis as i64)?, i.b.like(&given, axis as f64)?);
            let this = i.b.compare(Compare::Eq, &given, &number)?;
            y = i.b.select(&this, &other, &y)?;
        }
        return Ok(y);
    }
    let along = i.b.known_ints(c.arg(1)?, "axis")?;
    let axis = axis(*along.first().ok_or("`axis` is empty")?, rank)? as i64;
    run(i, axis)
}

/// Calls `f` with one dimension moved last, and moves it back.
pub(super) fn along_last(
    i: &mut Importer<'_>,
    x: &Val,
    axis: usize,
    f: &mut dyn FnMut(&mut Importer<'_>, &Val) -> Result<Val, String>,
) -> Result<Val, String> {
    let rank = i.b.rank(x)?;
    if axis + 1 == rank {
        return f(i, x);
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    let turned = i.b.transpose(x, &perm)?;
    let out = f(i, &turned)?;
    i.b.transpose(&out, &perm)
}

fn softmax(i: &mut Importer<'_>, c: &Call<'_>, log: bool) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let mut f = |i: &mut Importer<'_>, x: &Val| {
        if !log {
            return i.b.op1(Op::Softmax {}, &[x]);
        }
        let rank = i.b.rank(x)?;
        let largest = i.b.reduce(Reduce::Max, x, &[rank - 1], true)?;
        let x = i.b.sub(x, &largest)?;
        let e = i.b.unary(Unary::Exp, &x)?;
        let sum = i.b.reduce(Reduce::Sum, &e, &[rank - 1], true)?;
        let log = i.b.unary(Unary::Log, &sum)?;
        i.b.sub(&x, &log)
    };
    if c.opset() >= 13 {
        let axis = axis(c.int_or("axis", -1)?, shape.len())?;
        return along_last(i, x, axis, &mut f);
    }
    // Older versions flatten what stands behind the axis.
    let axis = axis(c.int_or("axis", 1)?, shape.len())?;
    let flat = [shape[..axis].iter().product(), shape[axis..].iter().product()];
    let y = i.b.reshape(x, &flat)?;
    let y = f(i, &y)?;
    i.b.reshape(&y, &shape)
}

/// `normalize` over the dimensions from `axis` on.
pub(super) fn normalize(i: &mut Importer<'_>, x: &Val, axis: usize, kind: Norm, eps: f32) -> Result<Val, String> {
    let shape = i.b.shape(x)?;
    let op = Op::Normalize { kind, eps };
    if axis + 1 == shape.len() {
        return i.b.op1(op, &[x]);
    }
    let flat: Vec<usize> = shape[..axis].iter().copied().chain([shape[axis..].iter().product()]).collect();
    let y = i.b.reshape(x, &flat)?;
    let y = i.b.op1(op, &[&y])?;
    i.b.reshape(&y, &shape)
}

/// A norm whose statistics are computed in f32 where `stash_type` says so, which is also what all exporters mean.
fn rms_norm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let axis = axis(c.int_or("axis", -1)?, i.b.rank(x)?)?;
    let eps = c.float_or("epsilon", 1e-5)?;
    weighted(i, x, axis, Norm::Rms, eps, c.opt(1), None)
}

/// A norm, its weight and its bias. The weight's type may be wider or narrower than that of x.
pub(super) fn weighted(
    i: &mut Importer<'_>,
    x: &Val,
    axis: usize,
    kind: Norm,
    eps: f32,
    weight: Option<&Val>,
    bias: Option<&Val>,
) -> Result<Val, String> {
    let mut y = normalize(i, x, axis, kind, eps)?;
    if let Some(w) = weight {
        let dtype = i.b.dtype(w)?;
        y = i.b.cast(&y, dtype)?;
        y = i.b.mul(&y, w)?;
    }
    if let Some(b) = bias {
        y = i.b.add(&y, b)?;
    }
    i.b.kept(x, y)
}

/// Mean over the dimensions from `axis` on, and one over the deviation, of numbers as f32.
fn statistics(i: &mut Importer<'_>, x: &Val, axis: usize, eps: f32) -> Result<[Val; 2], String> {
    let axes: Vec<usize> = (axis..i.b.rank(x)?).collect();
    let x = i.b.cast(x, DType::F32)?;
    let mean = i.b.reduce(Reduce::Mean, &x, &axes, true)?;
    let centred = i.b.sub(&x, &mean)?;
    let square = i.b.mul(&centred, &centred)?;
    let variance = i.b.reduce(Reduce::Mean, &square, &axes, true)?;
    let variance = i.b.add_number(&variance, eps.into())?;
    let deviation = i.b.unary(Unary::Sqrt, &variance)?;
    Ok([mean, i.b.unary(Unary::Reciprocal, &deviation)?])
}

fn layer_norm(i: &mut Importer<'_>, c: &Call<'_>, _: &super::Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    let rank = i.b.rank(x)?;
    let axis = axis(c.int_or("axis", -1)?, rank)?;
    let eps = c.float_or("epsilon", 1e-5)?;
    let mut out = vec![weighted(i, x, axis, Norm::Layer, eps, c.opt(1), c.opt(2))?];
    if c.wants(1) || c.wants(2) {
        out.extend(statistics(i, x, axis, eps)?);
    }
    Ok(out)
}

/// Adds a residual (and a bias), then normalizes; the sum is output 3.
fn skip_norm(i: &mut Importer<'_>, c: &Call<'_>, kind: Norm) -> Result<Vec<Val>, String> {
    let mut x = i.b.add(c.arg(0)?, c.arg(1)?)?;
    let (beta, bias) = if kind == Norm::Rms { (None, c.opt(3)) } else { (c.opt(3), c.opt(4)) };
    if let Some(bias) = bias {
        x = i.b.add(&x, bias)?;
    }
    let eps = c.float_or("epsilon", 1e-12)?;
    let last = i.b.rank(&x)?.checked_sub(1).ok_or("needs a dimension")?;
    let y = weighted(i, &x, last, kind, eps, c.opt(2), beta)?;
    let [mean, deviation] = match kind {
        Norm::Layer if c.wants(1) || c.wants(2) => statistics(i, &x, last, eps)?,
        _ if c.wants(1) || c.wants(2) => return Err("the inverse deviation as an output is not supported".into()),
        _ => [x.clone(), x.clone()],
    };
    Ok(vec![y, mean, deviation, x])
}
