//! Elements between grid points: indices and weights along each dimension, computed when the model runs.

use dlx_ir::{Binary, Compare, DType, Unary};

use super::super::import::Importer;
use super::super::value::Val;
use super::window::bounded;

/// One neighbor along one dimension of every point: where it is, and how much of it counts (nothing said: all of it).
#[derive(Clone)]
pub(super) struct Tap {
    /// Whole numbers, in range.
    pub(super) index: Val,
    pub(super) weight: Option<Val>,
}

/// What a neighbor outside of the tensor is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Padding {
    Zeros,
    Border,
    /// Mirrored at the outer edges of the elements, or (`true`) at the centers of the outermost.
    Reflection(bool),
}

impl Padding {
    /// The outer limits of coordinates along a dimension.
    fn limits(self, size: usize, corners: bool) -> (f64, f64) {
        let last = size as f64 - 1.0;
        if corners { (0.0, last) } else { (-0.5, last + 0.5) }
    }
}

/// `x` between two numbers.
pub(super) fn clamp(i: &mut Importer<'_>, x: &Val, low: f64, high: f64) -> Result<Val, String> {
    let (low, high) = (i.b.like(x, low)?, i.b.like(x, high)?);
    let x = i.b.binary(Binary::Max, x, &low)?;
    i.b.binary(Binary::Min, &x, &high)
}

/// `low + d − |d − (x − low) mod 2d|`: x reflected into the limits, which are d apart.
fn reflect(i: &mut Importer<'_>, x: &Val, (low, high): (f64, f64)) -> Result<Val, String> {
    let d = high - low;
    if d <= 0.0 {
        return i.b.mul_number(x, 0.0);
    }
    let y = i.b.add_number(x, -low)?;
    let period = i.b.like(x, 2.0 * d)?;
    let y = i.b.binary(Binary::Mod, &y, &period)?;
    let y = i.b.add_number(&y, -d)?;
    let y = i.b.unary(Unary::Abs, &y)?;
    let y = i.b.mul_number(&y, -1.0)?;
    i.b.add_number(&y, low + d)
}

/// Coordinates with those beyond the limits brought back as the padding says.
pub(super) fn inside(
    i: &mut Importer<'_>,
    x: &Val,
    size: usize,
    padding: Padding,
    corners: bool,
) -> Result<Val, String> {
    let (low, high) = padding.limits(size, corners);
    let back = match padding {
        Padding::Zeros => return Ok(x.clone()),
        Padding::Border => clamp(i, x, 0.0, size as f64 - 1.0)?,
        Padding::Reflection(_) => reflect(i, x, (low, high))?,
    };
    let (low, high) = (i.b.like(x, low)?, i.b.like(x, high)?);
    let below = i.b.compare(Compare::Lt, x, &low)?;
    let above = i.b.compare(Compare::Gt, x, &high)?;
    let out = i.b.binary(Binary::Or, &below, &above)?;
    i.b.select(&out, &back, x)
}

/// A neighbor at whole coordinates `at`, which may be outside.
fn tap(i: &mut Importer<'_>, at: &Val, weight: Option<Val>, size: usize, padding: Padding) -> Result<Tap, String> {
    let last = size as f64 - 1.0;
    let (at, weight) = match padding {
        Padding::Reflection(corners) => (reflect(i, at, padding.limits(size, corners))?, weight),
        Padding::Border => (at.clone(), weight),
        Padding::Zeros => {
            let (low, high) = (i.b.like(at, 0.0)?, i.b.like(at, last)?);
            let (low, high) = (i.b.compare(Compare::Ge, at, &low)?, i.b.compare(Compare::Le, at, &high)?);
            let within = i.b.binary(Binary::And, &low, &high)?;
            let dtype = i.b.dtype(at)?;
            let within = i.b.cast(&within, dtype)?;
            let weight = weight.map_or(Ok(within.clone()), |w| i.b.mul(&w, &within))?;
            (at.clone(), Some(weight))
        }
    };
    let at = clamp(i, &at, 0.0, last)?;
    Ok(Tap { index: i.b.cast(&at, DType::I64)?, weight })
}

/// The element that is nearest, halves to even.
pub(super) fn nearest(i: &mut Importer<'_>, x: &Val, size: usize, padding: Padding) -> Result<Vec<Tap>, String> {
    let x = i.b.unary(Unary::Round, x)?;
    Ok(vec![tap(i, &x, None, size, padding)?])
}

/// The two neighbors of linear interpolation.
pub(super) fn linear(i: &mut Importer<'_>, x: &Val, size: usize, padding: Padding) -> Result<Vec<Tap>, String> {
    let low = i.b.unary(Unary::Floor, x)?;
    let right = i.b.sub(x, &low)?;
    let left = i.b.mul_number(&right, -1.0)?;
    let left = i.b.add_number(&left, 1.0)?;
    let high = i.b.add_number(&low, 1.0)?;
    Ok(vec![tap(i, &low, Some(left), size, padding)?, tap(i, &high, Some(right), size, padding)?])
}

/// The four neighbors of cubic convolution, whose coefficient is −0.75.
pub(super) fn cubic(i: &mut Importer<'_>, x: &Val, size: usize, padding: Padding) -> Result<Vec<Tap>, String> {
    const A: f64 = -0.75;
    let low = i.b.unary(Unary::Floor, x)?;
    let t = i.b.sub(x, &low)?;
    let mut out = Vec::with_capacity(4);
    for n in -1..=2 {
        let at = i.b.add_number(&low, n.into())?;
        let d = i.b.add_number(&t, -f64::from(n))?;
        let d = i.b.unary(Unary::Abs, &d)?;
        // ((p d + q) d + r) d + s, near and far.
        let [p, q, r, s] =
            if n == 0 || n == 1 { [A + 2.0, -(A + 3.0), 0.0, 1.0] } else { [A, -5.0 * A, 8.0 * A, -4.0 * A] };
        let w = i.b.mul_number(&d, p)?;
        let w = i.b.add_number(&w, q)?;
        let w = i.b.mul(&w, &d)?;
        let w = i.b.add_number(&w, r)?;
        let w = i.b.mul(&w, &d)?;
        let w = i.b.add_number(&w, s)?;
        out.push(tap(i, &at, Some(w), size, padding)?);
    }
    Ok(out)
}

/// x `[B, C, …]` as rows `[B · elements, C]`, one for each place.
pub(super) fn rows(i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
    let shape = i.b.shape(x)?;
    if shape.len() < 3 {
        return Err(format!("needs [N, C, …], not {shape:?}"));
    }
    let places: usize = shape[2..].iter().product();
    let x = i.b.reshape(x, &[shape[0], shape[1], places])?;
    let x = i.b.transpose(&x, &[0, 2, 1])?;
    i.b.reshape(&x, &[shape[0] * places, shape[1]])
}

/// Every combination of one neighbor along each dimension of sizes, `[points, C]` each and weighted. `batch` is the number of
/// the tensor in `rows` that a point samples; taps and batch repeat to the shape of the points.
pub(super) fn corners(
    i: &mut Importer<'_>,
    rows: &Val,
    batch: &Val,
    sizes: &[usize],
    taps: &[Vec<Tap>],
) -> Result<Vec<Val>, String> {
    let mut partial = vec![Tap { index: batch.clone(), weight: None }];
    for (size, taps) in sizes.iter().zip(taps) {
        let mut next = Vec::with_capacity(partial.len() * taps.len());
        for so_far in &partial {
            let scaled = i.b.mul_number(&so_far.index, *size as f64)?;
            for tap in taps {
                let index = i.b.add(&scaled, &tap.index)?;
                let weight = match (&so_far.weight, &tap.weight) {
                    (Some(a), Some(b)) => Some(i.b.mul(a, b)?),
                    (a, b) => a.clone().or_else(|| b.clone()),
                };
                next.push(Tap { index, weight });
            }
        }
        partial = next;
    }
    let (dtype, width) = (i.b.dtype(rows)?, *i.b.shape(rows)?.last().ok_or("has no rows")?);
    let mut out = Vec::with_capacity(partial.len());
    for Tap { index, weight } in partial {
        let mut shape = i.b.shape(&index)?;
        shape.push(width);
        bounded(&shape)?;
        let mut y = i.b.gather(rows, &index, 0)?;
        if let Some(weight) = weight {
            let mut shape = i.b.shape(&weight)?;
            shape.push(1);
            let weight = i.b.cast(&weight, dtype)?;
            let weight = i.b.reshape(&weight, &shape)?;
            y = i.b.mul(&y, &weight)?;
        }
        out.push(y);
    }
    Ok(out)
}

/// The sum of all corners.
pub(super) fn interpolated(
    i: &mut Importer<'_>,
    rows: &Val,
    batch: &Val,
    sizes: &[usize],
    taps: &[Vec<Tap>],
) -> Result<Val, String> {
    let corners = corners(i, rows, batch, sizes, taps)?;
    let (first, rest) = corners.split_first().ok_or("has no dimension to sample")?;
    rest.iter().try_fold(first.clone(), |sum, y| i.b.add(&sum, y))
}

/// Numbers `0..n` as the batch of points of a rank.
pub(super) fn batches(i: &mut Importer<'_>, n: usize, rank: usize) -> Result<Val, String> {
    let list = i.b.ints(0..n as i64);
    let mut dims = vec![1; rank.max(1)];
    dims[0] = n;
    i.b.reshape(&list, &dims)
}
