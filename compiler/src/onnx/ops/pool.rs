//! Pools: windows reduced to one element, one dimension after another.

use dlx_ir::{Binary, DType, Data, Op, Reduce, Scatter, Tensor, Unary};

use super::super::build::as_i64;
use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::conv::picks;
use super::shape::sizes;
use super::window::{Window, bounded, filled, kernel, slide, unfold, whole, windows};
use super::{Row, one};

const POOL: &[Row] = &[
    ("", "AveragePool", |i, c, _| one(average_pool(i, c))),
    ("", "GlobalAveragePool", |i, c, _| one(global(i, c.arg(0)?, Reduce::Mean))),
    ("", "GlobalLpPool", |i, c, _| one(global_lp(i, c))),
    ("", "GlobalMaxPool", |i, c, _| one(global(i, c.arg(0)?, Reduce::Max))),
    ("", "LpPool", |i, c, _| one(lp_pool(i, c))),
    ("", "MaxPool", max_pool),
    ("", "MaxUnpool", |i, c, _| one(max_unpool(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[POOL];

/// The windows of a pool of x `[N, C, …]`.
fn pooled(i: &Importer<'_>, c: &Call<'_>, x: &Val) -> Result<Vec<Window>, String> {
    let shape = i.b.shape(x)?;
    if shape.len() < 3 {
        return Err(format!("needs [N, C, …], not {shape:?}"));
    }
    windows(c, &shape[2..], &kernel(c, shape.len() - 2, None)?)
}

/// Reduces everything behind the channels.
pub(super) fn global(i: &mut Importer<'_>, x: &Val, kind: Reduce) -> Result<Val, String> {
    let axes: Vec<usize> = (2..i.b.rank(x)?).collect();
    i.b.reduce(kind, x, &axes, true)
}

/// The exponent of a norm: a whole number, and a float in the first version.
fn exponent(c: &Call<'_>) -> Result<f64, String> {
    let p = match c.int("p") {
        Ok(p) => p.unwrap_or(2) as f64,
        Err(_) => c.float_or("p", 2.0)?.into(),
    };
    if p > 0.0 { Ok(p) } else { Err(format!("a norm of order {p}")) }
}

fn powered(i: &mut Importer<'_>, x: &Val, p: f64) -> Result<Val, String> {
    if p == 2.0 {
        return i.b.mul(x, x);
    }
    let x = i.b.unary(Unary::Abs, x)?;
    let p = i.b.like(&x, p)?;
    i.b.binary(Binary::Pow, &x, &p)
}

fn rooted(i: &mut Importer<'_>, x: &Val, p: f64) -> Result<Val, String> {
    if p == 2.0 {
        return i.b.unary(Unary::Sqrt, x);
    }
    let p = i.b.like(x, 1.0 / p)?;
    i.b.binary(Binary::Pow, x, &p)
}

fn global_lp(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let p = exponent(c)?;
    let x = powered(i, c.arg(0)?, p)?;
    let x = global(i, &x, Reduce::Sum)?;
    rooted(i, &x, p)
}

fn lp_pool(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, p) = (c.arg(0)?, exponent(c)?);
    let windows = pooled(i, c, x)?;
    let x = powered(i, x, p)?;
    let zero = i.b.like(&x, 0.0)?;
    let x = slide(i, &x, (2, &picks(&windows)?), &zero, Reduce::Sum)?;
    rooted(i, &x, p)
}

fn average_pool(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let windows = pooled(i, c, c.arg(0)?)?;
    average(i, c.arg(0)?, &windows, c.flag("count_include_pad")?)
}

/// The mean of each window: its sum over the number of its elements, which is a product over the dimensions.
pub(super) fn average(i: &mut Importer<'_>, x: &Val, windows: &[Window], padding: bool) -> Result<Val, String> {
    let zero = i.b.like(x, 0.0)?;
    let mut y = slide(i, x, (2, &picks(windows)?), &zero, Reduce::Sum)?;
    let rank = i.b.rank(&y)?;
    for (n, window) in windows.iter().enumerate() {
        let counts = i.b.ints(window.counts(padding).into_iter().map(|n| n.max(1)));
        let mut dims = vec![1; rank];
        dims[2 + n] = i.b.elements(&counts)?;
        let counts = i.b.reshape(&counts, &dims)?;
        let counts = i.b.cast(&counts, i.b.dtype(&y)?)?;
        y = i.b.div(&y, &counts)?;
    }
    Ok(y)
}

fn max_pool(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let mut x = c.arg(0)?.clone();
    let windows = pooled(i, c, &x)?;
    let dtype = i.b.dtype(&x)?;
    // What stands in the padding is below every element.
    let least = if dtype.is_float() {
        i.b.like(&x, f64::NEG_INFINITY)?
    } else {
        x = i.b.cast(&x, DType::I32)?;
        i.b.like(&x, i32::MIN.into())?
    };
    let picks = picks(&windows)?;
    if !c.wants(1) {
        let y = slide(i, &x, (2, &picks), &least, Reduce::Max)?;
        return one(i.b.cast(&y, dtype));
    }
    let shape = i.b.shape(&x)?;
    let (d, image) = (windows.len(), &shape[2..]);
    let (outs, kernels): (Vec<usize>, Vec<usize>) = picks.iter().map(|p| (p.out, p.kernel)).unzip();
    let (rows, columns) = (bounded(&outs)?, bounded(&kernels)?);
    let y = unfold(i, &x, 2, &picks, &least)?;
    let places = (0..d).map(|k| 2 + 2 * k);
    let perm: Vec<usize> = [0, 1].into_iter().chain(places.clone()).chain(places.map(|p| p + 1)).collect();
    let y = i.b.transpose(&y, &perm)?;
    let y = i.b.reshape(&y, &[shape[0], shape[1], rows, columns])?;
    let most = i.b.reduce(Reduce::Max, &y, &[3], false)?;
    let which = i.b.op1(Op::ArgMax { axis: 3, min: false, last: false }, &[&y])?;
    let which = i.b.reshape(&which, &[shape[0], shape[1], rows])?;
    // The place of each element of each window in the image, which the chosen ones are looked up in.
    let mut steps = vec![1usize; d];
    let forward: Vec<usize> = if c.flag("storage_order")? { (0..d).collect() } else { (0..d).rev().collect() };
    for pair in forward.windows(2) {
        steps[pair[1]] = steps[pair[0]].saturating_mul(image[pair[0]]);
    }
    let mut table: Val = Tensor { dtype: DType::I64, shape: vec![], data: Data::I64(vec![0]) }.into();
    for (n, pick) in picks.iter().enumerate() {
        let step = as_i64(&steps)[n];
        let list = i.b.ints(pick.places.iter().map(|p| p.map_or(0, |p| p as i64 * step)));
        let mut dims = vec![1; 2 * d];
        (dims[n], dims[d + n]) = (pick.out, pick.kernel);
        let list = i.b.reshape(&list, &dims)?;
        table = i.b.add(&table, &list)?;
    }
    let table = i.b.reshape(&table, &[rows * columns])?;
    let starts = i.b.ints((0..rows).map(|r| (r * columns) as i64));
    let which = i.b.add(&which, &starts)?;
    let which = i.b.gather(&table, &which, 0)?;
    let (planes, size) = (shape[0] * shape[1], as_i64(&[bounded(image)?])[0]);
    let bases = i.b.ints((0..planes as i64).map(|p| p * size));
    let bases = i.b.reshape(&bases, &[shape[0], shape[1], 1])?;
    let which = i.b.add(&which, &bases)?;
    let dims: Vec<usize> = shape[..2].iter().copied().chain(outs).collect();
    let most = i.b.cast(&most, dtype)?;
    Ok(vec![i.b.reshape(&most, &dims)?, i.b.reshape(&which, &dims)?])
}

/// Puts elements back where a max pool took them from, zeros elsewhere.
fn max_unpool(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, places) = (c.arg(0)?, c.arg(1)?);
    let shape = i.b.shape(x)?;
    if shape.len() < 3 {
        return Err(format!("needs [N, C, …], not {shape:?}"));
    }
    let n = shape.len() - 2;
    let (kernel, strides) = (kernel(c, n, None)?, whole(c, "strides", n, 1, 1)?);
    let pads = whole(c, "pads", 2 * n, 0, -(1 << 24))?;
    let mut dims = as_i64(&shape);
    for d in 0..n {
        dims[2 + d] = (dims[2 + d].min(1 << 24) - 1) * strides[d] - pads[d] - pads[d + n] + kernel[d];
    }
    let dims = sizes(&dims)?;
    let (total, count) = (bounded(&dims)?, i.b.elements(x)?);
    let zero = i.b.like(x, 0.0)?;
    let image = filled(i, &zero, &[total], matches!(x, Val::Run(_)))?;
    let (x, places) = (i.b.reshape(x, &[count])?, i.b.reshape(places, &[count])?);
    let y = i.b.op1(Op::Scatter { axis: 0, kind: Scatter::Set }, &[&image, &places, &x])?;
    let mut y = i.b.reshape(&y, &dims)?;
    // A larger output than the windows come to has zeros behind them.
    if let Some(asked) = c.opt(2) {
        let asked = i.b.known_ints(asked, "output_shape")?;
        if asked.len() != dims.len() {
            return Err(format!("output_shape {asked:?} for {dims:?}"));
        }
        for (at, size) in asked.iter().enumerate() {
            let more = size.saturating_sub(as_i64(&dims)[at]);
            if !(0..=1 << 24).contains(&more) {
                return Err(format!("output_shape {asked:?} is smaller than {dims:?}"));
            }
            y = super::shape::pad_one(i, &y, at, 0, more, "constant", &zero)?;
        }
    }
    Ok(y)
}
