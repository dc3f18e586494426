//! Ops on quantized activations: integers less their zero points, the result scaled and rounded as written.

use std::sync::Arc;

use dlx_ir::{Binary, DType, Op, Reduce, Unary};

use super::super::call::{Call, axis};
use super::super::import::Importer;
use super::super::value::Val;
use super::conv::{channels, convolve, layout, picks};
use super::product::matmul;
use super::quant::{codes, is_real, plain, unrounded};
use super::window::{kernel, windows};
use super::{MS, Row, one};

const QLINEAR: &[Row] = &[
    ("", "ConvInteger", |i, c, _| one(conv_integer(i, c))),
    ("", "QLinearConv", |i, c, _| one(conv(i, c))),
    ("", "QLinearMatMul", |i, c, _| one(product(i, c))),
    (MS, "QGemm", |i, c, _| one(gemm(i, c))),
    (MS, "QLinearAdd", |i, c, _| one(two(i, c, |i, a, b| i.b.add(a, b)))),
    (MS, "QLinearAveragePool", |i, c, _| one(average_pool(i, c))),
    (MS, "QLinearConcat", |i, c, _| one(concat(i, c))),
    (MS, "QLinearGlobalAveragePool", |i, c, _| one(global_pool(i, c))),
    (MS, "QLinearLeakyRelu", |i, c, _| one(leaky(i, c))),
    (MS, "QLinearMul", |i, c, _| one(two(i, c, |i, a, b| i.b.mul(a, b)))),
    (MS, "QLinearSigmoid", |i, c, _| one(map(i, c, &|i, x| i.b.unary(Unary::Sigmoid, x)))),
    (MS, "QLinearSoftmax", |i, c, _| one(softmax(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[QLINEAR];

/// A weight of more elements is multiplied as floats, which hold 8-bit codes and what is left of a source weight.
const MAX_INTEGERS: usize = 1 << 18;

/// Codes less their zero point, as numbers of a type. `row` says that zero points are one per row of the first dimension.
fn centred(i: &mut Importer<'_>, v: &Val, zero: Option<&Val>, to: DType, row: bool) -> Result<Val, String> {
    let rank = i.b.rank(v)?;
    let v = i.b.cast(v, to)?;
    let Some(zero) = zero else { return Ok(v) };
    let zero = i.b.cast(zero, to)?;
    let zero = if row { channels(i, &zero, rank + 1)? } else { scalar_or(i, &zero)? };
    i.b.sub(&v, &zero)
}

/// A single number as a scalar, several as they are.
fn scalar_or(i: &mut Importer<'_>, v: &Val) -> Result<Val, String> {
    if i.b.elements(v)? == 1 { i.b.reshape(v, &[]) } else { Ok(v.clone()) }
}

/// The type to multiply codes in.
fn accumulator(i: &Importer<'_>, w: &Val) -> Result<DType, String> {
    let large = !matches!(w, Val::Run(_)) && i.b.elements(w)? > MAX_INTEGERS;
    Ok(if large { DType::F32 } else { DType::I32 })
}

fn number(i: &mut Importer<'_>, v: &Val) -> Result<Val, String> {
    let v = i.b.cast(v, DType::F32)?;
    scalar_or(i, &v)
}

/// The numbers that codes stand for; weights and rows of tables stay stored. `row` says that there may be a scale for each
/// row of a matrix, else for each column.
fn real(i: &mut Importer<'_>, c: &Call<'_>, at: usize, row: bool) -> Result<Val, String> {
    let (x, scale, zero) = (c.arg(at)?, c.arg(at + 1)?, c.opt(at + 2));
    if is_real(i, x)? {
        return Ok(x.clone());
    }
    if let Val::Stored(s) = x
        && let Some(w) = s.dequantized(i.model, usize::from(!row), 0, scale, zero)
    {
        return plain(i, w);
    }
    if let Some((table, indices)) = i.b.gathered(x)
        && let Some(table) = table.dequantized(i.model, 0, 0, scale, zero)
        && i.b.elements(scale)? == 1
    {
        return i.b.gather(&Val::Stored(Arc::new(table)), &indices, 0);
    }
    let x = centred(i, x, zero, DType::F32, row)?;
    let scale = number(i, scale)?;
    let scale = if row && i.b.rank(&scale)? == 1 { channels(i, &scale, i.b.rank(&x)? + 1)? } else { scale };
    i.b.mul(&x, &scale)
}

/// The numbers that codes stand for.
fn dequantized(i: &mut Importer<'_>, c: &Call<'_>, at: usize) -> Result<Val, String> {
    if !i.exact {
        return real(i, c, at, false);
    }
    let x = centred(i, c.arg(at)?, c.opt(at + 2), DType::F32, false)?;
    let scale = number(i, c.arg(at + 1)?)?;
    i.b.mul(&x, &scale)
}

/// The codes of numbers that are already divided by their scale.
fn rounded(i: &mut Importer<'_>, y: &Val, zero: Option<&Val>, default: DType) -> Result<Val, String> {
    let dtype = zero.map_or(Ok(default), |z| i.b.dtype(z))?;
    let (low, high) = codes(dtype).ok_or_else(|| format!("codes of type {dtype} are not supported"))?;
    let mut y = i.b.unary(Unary::Round, y)?;
    if let Some(zero) = zero {
        let zero = number(i, zero)?;
        y = i.b.add(&y, &zero)?;
    }
    let (low, high) = (i.b.like(&y, low)?, i.b.like(&y, high)?);
    let y = i.b.binary(Binary::Max, &y, &low)?;
    let y = i.b.binary(Binary::Min, &y, &high)?;
    i.b.cast(&y, dtype)
}

fn quantized(i: &mut Importer<'_>, y: &Val, c: &Call<'_>, at: usize, default: DType) -> Result<Val, String> {
    if let Some(y) = unrounded(i, y) {
        return Ok(y);
    }
    let scale = number(i, c.arg(at)?)?;
    let y = i.b.div(y, &scale)?;
    rounded(i, &y, c.opt(at + 1), default)
}

fn conv_integer(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (windows, group) = layout(i, c, c.arg(0)?, c.arg(1)?)?;
    let to = accumulator(i, c.arg(1)?)?;
    let x = centred(i, c.arg(0)?, c.opt(2), to, false)?;
    let w = centred(i, c.arg(1)?, c.opt(3), to, true)?;
    let y = convolve(i, &x, &w, group, &picks(&windows)?)?;
    i.b.cast(&y, DType::I32)
}

fn conv(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, w) = (c.arg(0)?, c.arg(3)?);
    if is_real(i, x)? {
        return Err("convolves codes of activations, which are left out".into());
    }
    let (windows, group) = layout(i, c, x, w)?;
    let (dtype, to) = (i.b.dtype(x)?, accumulator(i, w)?);
    let x = centred(i, x, c.opt(2), to, false)?;
    let w = centred(i, w, c.opt(5), to, true)?;
    let mut y = convolve(i, &x, &w, group, &picks(&windows)?)?;
    if let Some(bias) = c.opt(8) {
        let bias = i.b.cast(bias, to)?;
        y = super::conv::biased(i, &y, Some(&bias))?;
    }
    let factor = factor(i, c, [1, 4, 6])?;
    let factor = channels(i, &factor, i.b.rank(&y)?)?;
    let y = i.b.cast(&y, DType::F32)?;
    let y = i.b.mul(&y, &factor)?;
    rounded(i, &y, c.opt(7), dtype)
}

/// The scales of both operands over that of the result.
fn factor(i: &mut Importer<'_>, c: &Call<'_>, [a, b, y]: [usize; 3]) -> Result<Val, String> {
    let (a, b, y) = (number(i, c.arg(a)?)?, number(i, c.arg(b)?)?, number(i, c.arg(y)?)?);
    let both = i.b.mul(&a, &b)?;
    i.b.div(&both, &y)
}

/// One number per row of a matrix as a column, which several numbers for the left operand are.
fn column(i: &mut Importer<'_>, v: &Val) -> Result<Val, String> {
    match i.b.shape(v)?[..] {
        [n] if n > 1 => i.b.reshape(v, &[n, 1]),
        _ => Ok(v.clone()),
    }
}

fn product(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    if !i.exact {
        let (a, b) = (real(i, c, 0, true)?, real(i, c, 3, false)?);
        let y = matmul(i, &a, &b)?;
        return quantized(i, &y, c, 6, DType::U8);
    }
    let (a, b) = (c.arg(0)?, c.arg(3)?);
    let (dtype, to) = (i.b.dtype(a)?, accumulator(i, b)?);
    let zero = c.opt(2).map(|z| column(i, z)).transpose()?;
    let a = centred(i, a, zero.as_ref(), to, false)?;
    let b = centred(i, b, c.opt(5), to, false)?;
    let y = matmul(i, &a, &b)?;
    let left = number(i, c.arg(1)?)?;
    let (left, right, own) = (column(i, &left)?, number(i, c.arg(4)?)?, number(i, c.arg(6)?)?);
    let factor = i.b.mul(&left, &right)?;
    let factor = i.b.div(&factor, &own)?;
    let y = i.b.cast(&y, DType::F32)?;
    let y = i.b.mul(&y, &factor)?;
    rounded(i, &y, c.opt(7), dtype)
}

fn gemm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    if !i.exact {
        return real_gemm(i, c);
    }
    let (a, b) = (c.arg(0)?, c.arg(3)?);
    let (dtype, to) = (i.b.dtype(a)?, accumulator(i, b)?);
    let mut a = centred(i, a, c.opt(2), to, false)?;
    // One scale or zero point per column of what is multiplied, which B holds in rows where it is transposed.
    let turned = c.flag("transB")?;
    let mut b = centred(i, b, c.opt(5), to, turned)?;
    if c.flag("transA")? {
        a = i.b.swap_last(&a)?;
    }
    if turned {
        b = i.b.swap_last(&b)?;
    }
    let mut y = matmul(i, &a, &b)?;
    if let Some(bias) = c.opt(6) {
        let bias = i.b.cast(bias, to)?;
        y = i.b.add(&y, &bias)?;
    }
    let (left, right) = (number(i, c.arg(1)?)?, number(i, c.arg(4)?)?);
    let factor = i.b.mul(&left, &right)?;
    let factor = i.b.mul_number(&factor, c.float_or("alpha", 1.0)?.into())?;
    let y = i.b.cast(&y, DType::F32)?;
    let y = i.b.mul(&y, &factor)?;
    if c.opt(7).is_some() { quantized(i, &y, c, 7, dtype) } else { Ok(y) }
}

/// The same of the numbers that the codes stand for. Codes of biases have the scale of the product.
fn real_gemm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let turned = c.flag("transB")?;
    let (mut a, mut b) = (real(i, c, 0, false)?, real(i, c, 3, turned)?);
    if c.flag("transA")? {
        a = i.b.swap_last(&a)?;
    }
    if turned {
        b = i.b.swap_last(&b)?;
    }
    let mut y = matmul(i, &a, &b)?;
    let alpha = c.float_or("alpha", 1.0)?;
    if let Some(bias) = c.opt(6) {
        let (left, right) = (number(i, c.arg(1)?)?, number(i, c.arg(4)?)?);
        let both = i.b.mul(&left, &right)?;
        let bias = i.b.cast(bias, DType::F32)?;
        let bias = i.b.mul(&bias, &both)?;
        y = i.b.add(&y, &bias)?;
    }
    if alpha != 1.0 {
        y = i.b.mul_number(&y, alpha.into())?;
    }
    if c.opt(7).is_some() { quantized(i, &y, c, 7, DType::U8) } else { Ok(y) }
}

type Two = fn(&mut Importer<'_>, &Val, &Val) -> Result<Val, String>;

fn two(i: &mut Importer<'_>, c: &Call<'_>, f: Two) -> Result<Val, String> {
    let dtype = i.b.dtype(c.arg(0)?)?;
    let (a, b) = (dequantized(i, c, 0)?, dequantized(i, c, 3)?);
    let y = f(i, &a, &b)?;
    quantized(i, &y, c, 6, dtype)
}

type One<'f> = &'f dyn Fn(&mut Importer<'_>, &Val) -> Result<Val, String>;

fn map(i: &mut Importer<'_>, c: &Call<'_>, f: One<'_>) -> Result<Val, String> {
    let dtype = i.b.dtype(c.arg(0)?)?;
    let x = dequantized(i, c, 0)?;
    let y = f(i, &x)?;
    quantized(i, &y, c, 3, dtype)
}

fn leaky(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let alpha = c.float_or("alpha", 0.01)?;
    map(i, c, &|i, x| {
        let (zero, scaled) = (i.b.like(x, 0.0)?, i.b.mul_number(x, alpha.into())?);
        let below = i.b.compare(dlx_ir::Compare::Lt, x, &zero)?;
        i.b.select(&below, &scaled, x)
    })
}

fn softmax(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let shape = i.b.shape(c.arg(0)?)?;
    let at = axis(c.int_or("axis", -1)?, shape.len())?;
    let old = c.needed("opset")? < 13;
    map(i, c, &|i, x| {
        if old {
            let flat = [shape[..at].iter().product(), shape[at..].iter().product()];
            let y = i.b.reshape(x, &flat)?;
            let y = i.b.op1(Op::Softmax {}, &[&y])?;
            return i.b.reshape(&y, &shape);
        }
        super::reduce::along_last(i, x, at, &mut |i, x| i.b.op1(Op::Softmax {}, &[x]))
    })
}

/// Calls `f` on `[N, C, …]` where the channels may stand last.
fn channels_first(i: &mut Importer<'_>, c: &Call<'_>, x: &Val, f: One<'_>) -> Result<Val, String> {
    if !c.flag("channels_last")? {
        return f(i, x);
    }
    let rank = i.b.rank(x)?;
    if rank < 2 {
        return Err("needs channels".into());
    }
    let forth: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let back: Vec<usize> = std::iter::once(0).chain(2..rank).chain([1]).collect();
    let y = i.b.transpose(x, &forth)?;
    let y = f(i, &y)?;
    i.b.transpose(&y, &back)
}

fn average_pool(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let padding = c.flag("count_include_pad")?;
    map(i, c, &|i, x| {
        channels_first(i, c, x, &|i, x| {
            let shape = i.b.shape(x)?;
            if shape.len() < 3 {
                return Err(format!("needs [N, C, …], not {shape:?}"));
            }
            let windows = windows(c, &shape[2..], &kernel(c, shape.len() - 2, None)?)?;
            super::pool::average(i, x, &windows, padding)
        })
    })
}

fn global_pool(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    map(i, c, &|i, x| channels_first(i, c, x, &|i, x| super::pool::global(i, x, Reduce::Mean)))
}

/// Operands are triples behind the scale and the zero point of the result.
fn concat(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let dtype = i.b.dtype(c.arg(2)?)?;
    let at = axis(c.needed("axis")?, i.b.rank(c.arg(2)?)?)?;
    let parts = (2..c.args.len()).step_by(3).map(|n| dequantized(i, c, n)).collect::<Result<Vec<_>, _>>()?;
    let y = i.b.concat(&parts.iter().collect::<Vec<_>>(), at)?;
    quantized(i, &y, c, 0, dtype)
}
