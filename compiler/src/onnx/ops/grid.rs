//! Sampling at coordinates that the model computes.

use dlx_ir::{DType, Data, Op, Tensor};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::value::Val;
use super::conv::{biased, groups, products};
use super::sample::{Padding, Tap, batches, cubic, inside, interpolated, linear, nearest, rows};
use super::shape::sizes;
use super::window::{bounded, kernel, windows};
use super::{Row, one};

const GRID: &[Row] = &[
    ("", "AffineGrid", |i, c, _| one(affine_grid(i, c))),
    ("", "DeformConv", |i, c, _| one(deform_conv(i, c))),
    ("", "GridSample", |i, c, _| one(grid_sample(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[GRID];

/// Most elements of a grid, which is a constant.
const MAX_GRID: usize = 1 << 22;

/// The coordinates of each output place, transformed; −1 and 1 are the corners (their centers where aligned).
fn affine_grid(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let theta = c.arg(0)?;
    let size = sizes(&i.b.known_ints(c.arg(1)?, "size")?)?;
    let corners = c.flag("align_corners")?;
    let [n, d, e] = i.b.shape(theta)?[..] else { return Err("needs transforms [N, D, D + 1]".into()) };
    if e != d + 1 || size.len() != d + 2 || size[0] != n || d == 0 {
        return Err(format!("{d} × {e} transforms for a grid {size:?}"));
    }
    let places = bounded(&size[2..])?;
    if places.saturating_mul(e) > MAX_GRID || places == 0 {
        return Err(format!("a grid {size:?} is empty or too large a constant"));
    }
    // Columns (x, y, …, 1), the last dimension first.
    let mut grid = vec![1.0; places * e];
    for (place, row) in grid.chunks_exact_mut(e).enumerate() {
        let mut left = place;
        for (axis, count) in size[2..].iter().enumerate().rev() {
            let (k, count) = ((left % count) as f64, *count as f64);
            row[d - 1 - axis] = match (corners, count > 1.0) {
                (true, true) => -1.0 + 2.0 * k / (count - 1.0),
                (true, false) => 0.0,
                (false, _) => (2.0 * k + 1.0) / count - 1.0,
            };
            left /= count as usize;
        }
    }
    let grid: Val = Tensor { dtype: DType::F64, shape: vec![places, e], data: Data::F64(grid) }.into();
    let dtype = i.b.dtype(theta)?;
    let grid = i.b.cast(&grid, dtype)?;
    let turned = i.b.swap_last(theta)?;
    let y = i.b.op1(Op::Matmul {}, &[&grid, &turned])?;
    let dims: Vec<usize> = std::iter::once(n).chain(size[2..].iter().copied()).chain([d]).collect();
    i.b.reshape(&y, &dims)
}

fn grid_sample(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, grid) = (c.arg(0)?, c.arg(1)?);
    let (shape, points) = (i.b.shape(x)?, i.b.shape(grid)?);
    let d = shape.len().saturating_sub(2);
    if d == 0 || d > 3 || points.len() != d + 2 || points[0] != shape[0] || points[d + 1] != d {
        return Err(format!("a grid {points:?} for {shape:?}"));
    }
    let corners = c.flag("align_corners")?;
    let padding = match c.text_or("padding_mode", "zeros")?.as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection(corners),
        other => return Err(format!("padding_mode `{other}` is not supported")),
    };
    let mode = c.text_or("mode", "linear")?;
    let grid = i.b.cast(grid, DType::F32)?;
    let mut taps: Vec<Vec<Tap>> = Vec::with_capacity(d);
    for (axis, size) in shape[2..].iter().enumerate() {
        let part = i.b.slice(&grid, d + 1, d - 1 - axis, d - axis)?;
        let at = i.b.reshape(&part, &points[..=d])?;
        let at = i.b.add_number(&at, 1.0)?;
        let wide = *size as f64;
        let at = i.b.mul_number(&at, if corners { (wide - 1.0) / 2.0 } else { wide / 2.0 })?;
        let mut at = if corners { at } else { i.b.add_number(&at, -0.5)? };
        if mode == "nearest" {
            at = i.b.unary(dlx_ir::Unary::Round, &at)?;
        }
        let at = inside(i, &at, *size, padding, corners)?;
        taps.push(match mode.as_str() {
            // What a reflection brings back is cut.
            "nearest" if matches!(padding, Padding::Reflection(_)) => {
                let at = i.b.unary(dlx_ir::Unary::Floor, &at)?;
                nearest(i, &at, *size, padding)?
            }
            "nearest" => nearest(i, &at, *size, padding)?,
            "linear" | "bilinear" => linear(i, &at, *size, padding)?,
            "cubic" | "bicubic" => cubic(i, &at, *size, padding)?,
            other => return Err(format!("mode `{other}` is not supported")),
        });
    }
    let (rows, batch) = (rows(i, x)?, batches(i, shape[0], d + 1)?);
    let y = interpolated(i, &rows, &batch, &shape[2..], &taps)?;
    let perm: Vec<usize> = [0, d + 1].into_iter().chain(1..=d).collect();
    i.b.transpose(&y, &perm)
}

/// A convolution whose windows take elements between grid points, at offsets from where they would be.
fn deform_conv(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, w, offset) = (c.arg(0)?, c.arg(1)?, c.arg(2)?);
    let (shape, ws) = (i.b.shape(x)?, i.b.shape(w)?);
    let d = shape.len().saturating_sub(2);
    if d == 0 || d > 3 || ws.len() != d + 2 {
        return Err(format!("a weight {ws:?} for {shape:?}"));
    }
    let (n, channels) = (shape[0], shape[1]);
    let group = groups(c, &[channels, ws[0]])?;
    let parts = c.int_or("offset_group", 1)?;
    let parts = usize::try_from(parts).ok().filter(|g| *g > 0 && channels % g == 0);
    let parts = parts.ok_or_else(|| format!("offset_group does not divide {channels} channels"))?;
    if ws[1].checked_mul(group) != Some(channels) {
        return Err(format!("a weight {ws:?} for {channels} channels in {group} groups"));
    }
    let windows = windows(c, &shape[2..], &kernel(c, d, Some(&ws[2..]))?)?;
    let outs: Vec<usize> = windows.iter().map(|w| w.out as usize).collect();
    let (k, p) = (bounded(&ws[2..])?, bounded(&outs)?);
    let offset = i.b.reshape(offset, &[n * parts, k, d, p])?;
    let mut taps = Vec::with_capacity(d);
    for (axis, window) in windows.iter().enumerate() {
        let part = i.b.slice(&offset, 2, axis, axis + 1)?;
        let part = i.b.reshape(&part, &[n * parts, k, p])?;
        let part = i.b.cast(&part, DType::F32)?;
        // Where the element would be without an offset: one number per element of the kernel and one per window.
        let inner = |dims: &[usize]| dims[axis + 1..].iter().product::<usize>();
        let (step, far) = (inner(&ws[2..]), inner(&outs));
        let kernels = (0..k).map(|n| ((n / step) % ws[2 + axis]) as i64 * window.dilation - window.before);
        let starts = (0..p).map(|n| ((n / far) % outs[axis]) as i64 * window.stride);
        let (kernels, starts) = (i.b.ints(kernels), i.b.ints(starts));
        let kernels = i.b.reshape(&kernels, &[k, 1])?;
        let base = i.b.add(&kernels, &starts)?;
        let base = i.b.cast(&base, DType::F32)?;
        let at = i.b.add(&part, &base)?;
        taps.push(linear(i, &at, shape[2 + axis], Padding::Zeros)?);
    }
    let dims: Vec<usize> = [n * parts, channels / parts].into_iter().chain(shape[2..].iter().copied()).collect();
    let x = i.b.reshape(x, &dims)?;
    let (rows, batch) = (rows(i, &x)?, batches(i, n * parts, 3)?);
    let mut y = interpolated(i, &rows, &batch, &shape[2..], &taps)?;
    if let Some(mask) = c.opt(4) {
        let mask = i.b.reshape(mask, &[n * parts, k, p, 1])?;
        y = i.b.mul(&y, &mask)?;
    }
    // [n, parts, k, p, channels / parts] as rows of windows for each group.
    let y = i.b.reshape(&y, &[n, parts, k, p, channels / parts])?;
    let y = i.b.transpose(&y, &[0, 1, 4, 3, 2])?;
    let y = i.b.reshape(&y, &[n, group, channels / group, p, k])?;
    let y = i.b.transpose(&y, &[0, 1, 3, 2, 4])?;
    let y = products(i, &y, w, [n, group, p, channels / group * k])?;
    let dims: Vec<usize> = [n, ws[0]].into_iter().chain(outs).collect();
    let y = i.b.reshape(&y, &dims)?;
    biased(i, &y, c.opt(3))
}
