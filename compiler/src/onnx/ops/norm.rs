//! Norms over other dimensions than the last, gates, and what only matters in training.

use dlx_ir::{Compare, DType, Norm, Op, Reduce, Unary};

use super::super::call::{Call, axes, axis};
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::conv::channels;
use super::reduce::normalize;
use super::window::{slide, table};
use super::{Row, one};

const NORM: &[Row] = &[
    ("", "BatchNormalization", batch_norm),
    ("", "Dropout", dropout),
    ("", "GroupNormalization", |i, c, _| one(group_norm(i, c))),
    ("", "Hardmax", |i, c, _| one(hardmax(i, c))),
    ("", "InstanceNormalization", |i, c, _| one(instance_norm(i, c))),
    ("", "LRN", |i, c, _| one(local_norm(i, c))),
    ("", "LpNormalization", |i, c, _| one(lp_norm(i, c))),
    ("", "MeanVarianceNormalization", |i, c, _| one(mean_variance(i, c))),
    ("", "SwiGLU", |i, c, _| one(swiglu(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[NORM];

/// In training, statistics are those of the batch, and running ones are further outputs.
fn batch_norm(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    let (dtype, rank) = (i.b.dtype(x)?, i.b.rank(x)?);
    if c.opset() < 9 && c.int_or("spatial", 1)? == 0 {
        return Err("statistics for each element, not each channel, are not supported".into());
    }
    let training = if c.opset() < 14 { c.wants(1) } else { c.flag("training_mode")? };
    if training && c.opset() < 14 {
        return Err("outputs of training are supported since version 14; export the model for inference".into());
    }
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let column = |i: &mut Importer<'_>, n: usize| {
        let v = i.b.cast(c.arg(n)?, wide)?;
        channels(i, &v, rank)
    };
    let (scale, bias) = (column(i, 1)?, column(i, 2)?);
    let (mut mean, mut variance) = (column(i, 3)?, column(i, 4)?);
    let x = i.b.cast(x, wide)?;
    let mut out = Vec::new();
    if training {
        let others: Vec<usize> = (0..rank).filter(|n| *n != 1).collect();
        let own = i.b.reduce(Reduce::Mean, &x, &others, true)?;
        let centred = i.b.sub(&x, &own)?;
        let square = i.b.mul(&centred, &centred)?;
        let spread = i.b.reduce(Reduce::Mean, &square, &others, true)?;
        let momentum = f64::from(c.float_or("momentum", 0.9)?);
        for (n, (running, own)) in [(&mut mean, own), (&mut variance, spread)].into_iter().enumerate() {
            let old = i.b.mul_number(running, momentum)?;
            let new = i.b.mul_number(&own, 1.0 - momentum)?;
            let new = i.b.add(&old, &new)?;
            let shape = i.b.shape(c.arg(3 + n)?)?;
            let new = i.b.reshape(&new, &shape)?;
            out.push(i.b.cast(&new, i.b.dtype(c.arg(3 + n)?)?)?);
            *running = own;
        }
    }
    let variance = i.b.add_number(&variance, c.float_or("epsilon", 1e-5)?.into())?;
    let deviation = i.b.unary(Unary::Sqrt, &variance)?;
    let factor = i.b.div(&scale, &deviation)?;
    let y = i.b.sub(&x, &mean)?;
    let y = i.b.mul(&y, &factor)?;
    let y = i.b.add(&y, &bias)?;
    let y = i.b.kept(&x, y)?;
    out.insert(0, i.b.cast(&y, dtype)?);
    Ok(out)
}

/// Normalizes each row of `[N, G, …]`.
fn grouped(i: &mut Importer<'_>, x: &Val, groups: usize, eps: f32) -> Result<Val, String> {
    let shape = i.b.shape(x)?;
    if shape.len() < 2 || groups == 0 || !shape[1].is_multiple_of(groups) {
        return Err(format!("{groups} groups of the channels of {shape:?}"));
    }
    let size = (shape[1] / groups) * shape[2..].iter().product::<usize>();
    let y = i.b.reshape(x, &[shape[0], groups, size])?;
    let y = normalize(i, &y, 2, Norm::Layer, eps)?;
    i.b.reshape(&y, &shape)
}

fn scaled(i: &mut Importer<'_>, y: &Val, scale: &Val, bias: &Val) -> Result<Val, String> {
    let rank = i.b.rank(y)?;
    let (scale, bias) = (channels(i, scale, rank)?, channels(i, bias, rank)?);
    let z = i.b.mul(y, &scale)?;
    let z = i.b.add(&z, &bias)?;
    i.b.kept(y, z)
}

fn instance_norm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let groups = *i.b.shape(x)?.get(1).ok_or("needs channels")?;
    let y = grouped(i, x, groups, c.float_or("epsilon", 1e-5)?)?;
    scaled(i, &y, c.arg(1)?, c.arg(2)?)
}

/// Scales are per group before version 21, per channel since.
fn group_norm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, groups) = (c.arg(0)?, c.size("num_groups")?);
    let shape = i.b.shape(x)?;
    let y = grouped(i, x, groups, c.float_or("epsilon", 1e-5)?)?;
    if c.opset() >= 21 {
        return scaled(i, &y, c.arg(1)?, c.arg(2)?);
    }
    let parts = [shape[0], groups, i.b.elements(x)? / (shape[0] * groups).max(1)];
    let y = i.b.reshape(&y, &parts)?;
    let y = scaled(i, &y, c.arg(1)?, c.arg(2)?)?;
    i.b.reshape(&y, &shape)
}

/// Over the sum of squares of neighboring channels.
fn local_norm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, size) = (c.arg(0)?, c.size("size")?);
    let channels = *i.b.shape(x)?.get(1).ok_or("needs channels")?;
    // Further neighbors than there are channels are none.
    let (channels, wide) = (channels as i64, size.min(2 * channels + 1) as i64);
    let near = table(channels, wide, |o, k| Some(o + k - (wide - 1) / 2).filter(|at| (0..channels).contains(at)))?;
    let square = i.b.mul(x, x)?;
    let zero = i.b.like(x, 0.0)?;
    let sum = slide(i, &square, (1, &[near]), &zero, Reduce::Sum)?;
    let sum = i.b.mul_number(&sum, f64::from(c.float_or("alpha", 1e-4)?) / size as f64)?;
    let sum = i.b.add_number(&sum, c.float_or("bias", 1.0)?.into())?;
    let beta = i.b.like(x, c.float_or("beta", 0.75)?.into())?;
    let sum = i.b.binary(dlx_ir::Binary::Pow, &sum, &beta)?;
    i.b.div(x, &sum)
}

/// Zeros stay zeros.
fn lp_norm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let at = axis(c.int_or("axis", -1)?, i.b.rank(x)?)?;
    let norm = match c.int_or("p", 2)? {
        1 => {
            let x = i.b.unary(Unary::Abs, x)?;
            i.b.reduce(Reduce::Sum, &x, &[at], true)?
        }
        2 => {
            let x = i.b.mul(x, x)?;
            let x = i.b.reduce(Reduce::Sum, &x, &[at], true)?;
            i.b.unary(Unary::Sqrt, &x)?
        }
        other => return Err(format!("a norm of order {other}")),
    };
    let (zero, number) = (i.b.like(x, 0.0)?, i.b.like(x, 1.0)?);
    let none = i.b.compare(Compare::Eq, &norm, &zero)?;
    let norm = i.b.select(&none, &number, &norm)?;
    i.b.div(x, &norm)
}

fn mean_variance(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let axes = axes(&c.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]), i.b.rank(x)?)?;
    let mean = i.b.reduce(Reduce::Mean, x, &axes, true)?;
    let centred = i.b.sub(x, &mean)?;
    let square = i.b.mul(&centred, &centred)?;
    let variance = i.b.reduce(Reduce::Mean, &square, &axes, true)?;
    let deviation = i.b.unary(Unary::Sqrt, &variance)?;
    let deviation = i.b.add_number(&deviation, 1e-9)?;
    i.b.div(&centred, &deviation)
}

/// One where the (first) largest element is.
fn hardmax(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let (shape, dtype) = (i.b.shape(x)?, i.b.dtype(x)?);
    let old = c.opset() < 13;
    let at = axis(c.int_or("axis", if old { 1 } else { -1 })?, shape.len())?;
    // Older versions flatten what stands behind the axis.
    let (x, at) = if old {
        (i.b.reshape(x, &[shape[..at].iter().product(), shape[at..].iter().product()])?, 1)
    } else {
        (x.clone(), at)
    };
    let flat = i.b.shape(&x)?;
    let which = i.b.op1(Op::ArgMax { axis: at as i64, min: false, last: false }, &[&x])?;
    let mut dims = vec![1; flat.len()];
    dims[at] = flat[at];
    let places = i.b.ints(0..flat[at] as i64);
    let places = i.b.reshape(&places, &dims)?;
    let hot = i.b.compare(Compare::Eq, &which, &places)?;
    let hot = i.b.cast(&hot, dtype)?;
    i.b.reshape(&hot, &shape)
}

/// Nothing is dropped in inference; in training only where the ratio is zero.
fn dropout(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    if let Some(training) = c.opt(2)
        && i.b.known_number(training, "training_mode")? != 0.0
    {
        let ratio = c.opt(1).map_or(Ok(0.5), |r| i.b.known_number(r, "ratio"))?;
        if ratio != 0.0 {
            return Err("drops elements at random, which is not reproducible; export the model for inference".into());
        }
    }
    let mut out = vec![x.clone()];
    if c.wants(1) {
        let dtype = if c.opset() < 10 { i.b.dtype(x)? } else { DType::Bool };
        let all = i.b.number(dtype, 1.0)?;
        let shape = i.b.shape(x)?;
        out.push(i.b.expand(&all, &shape)?);
    }
    Ok(out)
}

fn swiglu(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (a, b) = (c.arg(0)?, c.arg(1)?);
    if i.b.shape(a)? != i.b.shape(b)? {
        return Err(format!("operands {:?} and {:?} differ", i.b.shape(a)?, i.b.shape(b)?));
    }
    let gate = super::elementwise::swish(i, a, c.float_or("alpha", 1.0)?)?;
    i.b.mul(&gate, b)
}
