//! Quantized tensors: what stores weights stays a weight, what rounds activations is computed as written.
//!
//! Where activations are not to be rounded, they pass for their own codes: an op on codes that is given floats takes them as
//! they are, so what moves codes about moves the floats.

use std::sync::Arc;

use dlx_ir::{Binary, Compare, DType, Op, Reduce, Unary};

use super::super::call::{Call, axis};
use super::super::import::{Importer, Scope};
use super::super::stored::Stored;
use super::super::value::Val;
use super::{MS, Row, one};

const QUANT: &[Row] = &[
    ("", "DequantizeLinear", |i, c, _| one(dequantize(i, c))),
    ("", "DynamicQuantizeLinear", dynamic_quantize),
    ("", "QuantizeLinear", |i, c, _| one(quantize(i, c))),
    (MS, "DequantizeLinear", |i, c, _| one(dequantize(i, c))),
    (MS, "GatherBlockQuantized", |i, c, _| one(gather_block(i, c))),
    (MS, "MatMulNBits", |i, c, _| one(matmul_nbits(i, c))),
    (MS, "QuantizeLinear", |i, c, _| one(quantize(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[QUANT];

/// A scale or zero point laid against x: one number, one per place along an axis, or one per block of places along it.
fn spread(i: &mut Importer<'_>, c: &Call<'_>, x: &Val, s: &Val) -> Result<Val, String> {
    let (shape, have) = (i.b.shape(x)?, i.b.shape(s)?);
    if i.b.elements(s)? == 1 {
        return i.b.reshape(s, &[]);
    }
    let at = axis(c.int_or("axis", 1)?, shape.len())?;
    if have.len() == 1 {
        let mut dims = vec![1; shape.len()];
        dims[at] = have[0];
        return i.b.reshape(s, &dims);
    }
    let block = match c.int_or("block_size", 0)? {
        0 => shape[at].div_ceil(have[at].max(1)),
        n => usize::try_from(n).map_err(|_| format!("a block of {n}"))?,
    };
    let places = i.b.ints((0..shape[at]).map(|n| (n / block.max(1)) as i64));
    i.b.gather(s, &places, at)
}

fn dequantize(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, scale) = (c.arg(0)?, c.arg(1)?);
    if is_real(i, x)? {
        let dtype = i.b.dtype(scale)?;
        return i.b.cast(x, dtype);
    }
    if let Val::Stored(s) = x {
        let rank = s.dims().len();
        let at = if rank == 0 { 0 } else { axis(c.int_or("axis", 1)?, rank).unwrap_or(0) };
        if let Some(view) = s.dequantized(i.model, at, c.int_or("block_size", 0)?, scale, c.opt(2)) {
            return plain(i, view);
        }
    }
    // Rows of a table of codes under one scale are rows of what the codes stand for.
    if let Some((table, indices)) = i.b.gathered(x)
        && i.b.elements(scale)? == 1
        && let Some(table) = table.dequantized(i.model, 0, 0, scale, c.opt(2))
    {
        return i.b.gather(&Val::Stored(Arc::new(table)), &indices, 0);
    }
    let dtype = match c.elem("output_dtype")? {
        Some(dtype) => dtype,
        None => i.b.dtype(scale)?,
    };
    // i32 biases are not exact in f32; the difference is taken before the conversion.
    let mut y = x.clone();
    let wide = i.b.dtype(x)?.is_int();
    if wide {
        y = i.b.cast(&y, DType::I64)?;
    } else {
        y = i.b.cast(&y, DType::F32)?;
    }
    if let Some(zero) = c.opt(2) {
        let zero = spread(i, c, x, zero)?;
        let zero = i.b.cast(&zero, if wide { DType::I64 } else { DType::F32 })?;
        y = i.b.sub(&y, &zero)?;
    }
    let scale = spread(i, c, x, scale)?;
    let scale = i.b.cast(&scale, DType::F32)?;
    let y = i.b.cast(&y, DType::F32)?;
    let y = i.b.mul(&y, &scale)?;
    i.b.cast(&y, dtype)
}

/// The least and the largest code of an integer type.
pub(super) fn codes(dtype: DType) -> Option<(f64, f64)> {
    Some(match dtype {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::U16 => (0.0, 65535.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U4 => (0.0, 15.0),
        DType::I4 => (-8.0, 7.0),
        DType::U2 => (0.0, 3.0),
        DType::I2 => (-2.0, 1.0),
        _ => return None,
    })
}

/// What codes stand for. A single number is a factor, an exponent or an epsilon, which others look at.
pub(super) fn plain(i: &Importer<'_>, stored: Stored) -> Result<Val, String> {
    let single = stored.dims().iter().product::<usize>() == 1;
    if single { stored.read(i.model).map(Val::from) } else { Ok(Val::Stored(Arc::new(stored))) }
}

/// Whether a value that should be codes is what was not quantized.
pub(super) fn is_real(i: &Importer<'_>, x: &Val) -> Result<bool, String> {
    Ok(!i.exact && matches!(i.b.dtype(x)?, DType::F32 | DType::F16 | DType::BF16))
}

/// What is not rounded, if it need not be: activations, and what is computed beside them, such as angles.
pub(super) fn unrounded(i: &mut Importer<'_>, x: &Val) -> Option<Val> {
    if i.exact || !matches!(x, Val::Run(_) | Val::Known(_)) {
        return None;
    }
    i.b.note("activations stay as they are: their quantization in the graph is left out");
    Some(x.clone())
}

fn quantize(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, scale) = (c.arg(0)?, c.arg(1)?);
    if let Some(x) = unrounded(i, x) {
        return Ok(x);
    }
    let dtype = match (c.opt(2), c.elem("output_dtype")?) {
        (Some(zero), _) => i.b.dtype(zero)?,
        (None, Some(dtype)) => dtype,
        (None, None) => DType::U8,
    };
    let s = spread(i, c, x, scale)?;
    let precision = match c.elem("precision")? {
        Some(dtype) => dtype,
        None => i.b.dtype(&s)?,
    };
    let (y, s) = (i.b.cast(x, precision)?, i.b.cast(&s, precision)?);
    let y = i.b.div(&y, &s)?;
    let Some((low, high)) = codes(dtype) else {
        return i.b.op1(Op::Cast { to: dtype, wrap: c.int_or("saturate", 1)? == 0 }, &[&y]);
    };
    let y = i.b.cast(&y, DType::F32)?;
    let mut y = i.b.unary(Unary::Round, &y)?;
    if let Some(zero) = c.opt(2) {
        let zero = spread(i, c, x, zero)?;
        let zero = i.b.cast(&zero, DType::F32)?;
        y = i.b.add(&y, &zero)?;
    }
    let (low, high) = (i.b.like(&y, low)?, i.b.like(&y, high)?);
    let y = i.b.binary(Binary::Max, &y, &low)?;
    let y = i.b.binary(Binary::Min, &y, &high)?;
    i.b.cast(&y, dtype)
}

/// Codes of u8 whose range is that of x and zero.
fn dynamic_quantize(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    if !i.exact && matches!(x, Val::Run(_)) {
        i.b.note("activations stay as they are: their dynamic quantization in the graph is left out");
        return Ok(vec![x.clone(), i.b.number(DType::F32, 1.0)?, i.b.number(DType::U8, 0.0)?]);
    }
    let axes: Vec<usize> = (0..i.b.rank(x)?).collect();
    let zero = i.b.like(x, 0.0)?;
    let most = i.b.reduce(Reduce::Max, x, &axes, false)?;
    let most = i.b.binary(Binary::Max, &most, &zero)?;
    let least = i.b.reduce(Reduce::Min, x, &axes, false)?;
    let least = i.b.binary(Binary::Min, &least, &zero)?;
    let range = i.b.sub(&most, &least)?;
    let codes = i.b.like(x, 255.0)?;
    let scale = i.b.div(&range, &codes)?;
    // Zeros alone have no range, and any scale does.
    let (some, any) = (i.b.compare(Compare::Gt, &scale, &zero)?, i.b.like(x, 1.0)?);
    let scale = i.b.select(&some, &scale, &any)?;
    let start = i.b.div(&least, &scale)?;
    let start = i.b.unary(Unary::Neg, &start)?;
    let clamp = |i: &mut Importer<'_>, v: &Val| {
        let v = i.b.binary(Binary::Max, v, &zero)?;
        i.b.binary(Binary::Min, &v, &codes)
    };
    let start = clamp(i, &start)?;
    let start = i.b.unary(Unary::Round, &start)?;
    let y = i.b.div(x, &scale)?;
    let y = i.b.unary(Unary::Round, &y)?;
    let y = i.b.add(&y, &start)?;
    let y = clamp(i, &y)?;
    Ok(vec![i.b.cast(&y, DType::U8)?, scale, i.b.cast(&start, DType::U8)?])
}

/// A product with a weight of packed codes.
fn matmul_nbits(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let stored = |n: usize| match c.opt(n) {
        Some(Val::Stored(s)) => Ok(Some(s.clone())),
        Some(Val::Known(t)) => Ok(Some(Arc::new(Stored::known("packed", t)))),
        Some(_) => Err(format!("input {n} is no initializer")),
        None => Ok(None),
    };
    let codes = stored(1)?.ok_or("input 1 is missing")?;
    let scales = stored(2)?.ok_or("input 2 is missing")?;
    let (k, n, bits, block) = (c.size("K")?, c.size("N")?, c.int_or("bits", 4)?, c.size("block_size")?);
    let w = Stored::nbits([&codes, &scales], [stored(3)?.as_deref(), stored(4)?.as_deref()], [n, k], bits, block)?;
    let dtype = i.b.dtype(c.arg(0)?)?;
    if !dtype.is_float() {
        return Err(format!("input 0 is {dtype}, and floats are needed"));
    }
    let y = i.b.linear(c.arg(0)?, &Arc::new(w))?;
    match c.opt(5) {
        Some(bias) => {
            let sum = i.b.add(&y, bias)?;
            i.b.kept(&y, sum)
        }
        None => Ok(y),
    }
}

/// Rows of a table of packed codes.
fn gather_block(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (Some(Val::Stored(codes)), Some(Val::Stored(scales))) = (c.opt(0), c.opt(2)) else {
        return Err("its table is no initializer".into());
    };
    let zeros = match c.opt(3) {
        Some(Val::Stored(s)) => Some(s.clone()),
        Some(Val::Known(t)) => Some(Arc::new(Stored::known("zeros", t))),
        _ => None,
    };
    let rank = codes.dims().len();
    if axis(c.int_or("gather_axis", 0)?, rank)? != 0
        || axis(c.int_or("quantize_axis", 1)?, rank)? + 1 != rank
        || rank != 2
    {
        return Err("is supported for rows of two-dimensional tables, quantized along the rows".into());
    }
    let (bits, block) = (c.int_or("bits", 4)?, c.size("block_size")?);
    let table = Stored::block_table([codes, scales], zeros.as_deref(), bits, block)?;
    let dtype = i.b.dtype(c.arg(2)?)?;
    let rows = i.b.gather(&Val::Stored(Arc::new(table)), c.arg(1)?, 0)?;
    i.b.cast(&rows, dtype)
}
