//! Convolutions: windows laid out as rows, times the weight as a matrix.

use dlx_ir::{DType, Op, Reduce};

use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::product::matmul;
use super::shape::sizes;
use super::window::{Pick, Window, bounded, halves, kernel, table, unfold, whole, windows};
use super::{Row, one};

const CONV: &[Row] = &[
    ("", "CausalConvWithState", causal),
    ("", "Col2Im", |i, c, _| one(col2im(i, c))),
    ("", "Conv", |i, c, _| one(conv(i, c))),
    ("", "ConvTranspose", |i, c, _| one(transposed(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[CONV];

/// Number of groups that both sides' channels divide into.
pub(super) fn groups(c: &Call<'_>, channels: &[usize]) -> Result<usize, String> {
    let group = c.int_or("group", 1)?;
    let fits = |g: &usize| *g > 0 && channels.iter().all(|n| n % g == 0);
    usize::try_from(group).ok().filter(fits).ok_or_else(|| format!("{group} groups of {channels:?} channels"))
}

/// The windows of a convolution of x `[N, C, …]` with w `[M, C / groups, …]`, and the groups.
pub(super) fn layout(i: &Importer<'_>, c: &Call<'_>, x: &Val, w: &Val) -> Result<(Vec<Window>, usize), String> {
    let (x, w) = (i.b.shape(x)?, i.b.shape(w)?);
    if x.len() < 3 || x.len() != w.len() {
        return Err(format!("a weight {w:?} for {x:?}"));
    }
    let group = groups(c, &[x[1], w[0]])?;
    if w[1].checked_mul(group) != Some(x[1]) {
        return Err(format!("a weight {w:?} for {} channels in {group} groups", x[1]));
    }
    let windows = windows(c, &x[2..], &kernel(c, x.len() - 2, Some(&w[2..]))?)?;
    Ok((windows, group))
}

/// The convolution of x `[N, C, …]` with w `[M, C / groups, kernel]`, whose dimensions picks take apart.
pub(super) fn convolve(i: &mut Importer<'_>, x: &Val, w: &Val, group: usize, picks: &[Pick]) -> Result<Val, String> {
    let (xs, ws) = (i.b.shape(x)?, i.b.shape(w)?);
    let (n, part, d) = (xs[0], xs[1] / group, picks.len());
    let zero = i.b.like(x, 0.0)?;
    let x = unfold(i, x, 2, picks, &zero)?;
    let (outs, kernels): (Vec<usize>, Vec<usize>) = picks.iter().map(|p| (p.out, p.kernel)).unzip();
    let dims: Vec<usize> = [n, group, part].into_iter().chain(picks.iter().flat_map(|p| [p.out, p.kernel])).collect();
    let x = i.b.reshape(&x, &dims)?;
    // [n, group, o₁, o₂, …, part, k₁, k₂, …]
    let places = (0..d).map(|k| 3 + 2 * k);
    let perm: Vec<usize> = [0, 1].into_iter().chain(places.clone()).chain([2]).chain(places.map(|p| p + 1)).collect();
    let x = i.b.transpose(&x, &perm)?;
    let (rows, columns) = (bounded(&outs)?, part * bounded(&kernels)?);
    let y = products(i, &x, w, [n, group, rows, columns])?;
    let dims: Vec<usize> = [n, ws[0]].into_iter().chain(outs).collect();
    i.b.reshape(&y, &dims)
}

/// Rows `[N, G, R, K]` of windows times a weight of M · K elements: `[N, M, R]`.
pub(super) fn products(
    i: &mut Importer<'_>,
    x: &Val,
    w: &Val,
    [n, group, rows, columns]: [usize; 4],
) -> Result<Val, String> {
    let m = i.b.shape(w)?[0];
    if group == 1 {
        let x = i.b.reshape(x, &[n, rows, columns])?;
        let w = i.b.reshape(w, &[m, columns])?;
        let w = i.b.swap_last(&w)?;
        let y = matmul(i, &x, &w)?;
        return i.b.swap_last(&y);
    }
    let x = i.b.reshape(x, &[n, group, rows, columns])?;
    let w = i.b.reshape(w, &[group, m / group, columns])?;
    let x = i.b.swap_last(&x)?;
    let y = i.b.op1(Op::Matmul {}, &[&w, &x])?;
    i.b.reshape(&y, &[n, m, rows])
}

/// Adds one number per channel of `[N, C, …]`.
pub(super) fn biased(i: &mut Importer<'_>, y: &Val, bias: Option<&Val>) -> Result<Val, String> {
    let Some(bias) = bias else { return Ok(y.clone()) };
    let bias = channels(i, bias, i.b.rank(y)?)?;
    let sum = i.b.add(y, &bias)?;
    i.b.kept(y, sum)
}

/// One number per channel, laid against `[N, C, …]` of a rank; a single one as a scalar.
pub(super) fn channels(i: &mut Importer<'_>, v: &Val, rank: usize) -> Result<Val, String> {
    match i.b.elements(v)? {
        1 => i.b.reshape(v, &[]),
        n => {
            let dims: Vec<usize> = std::iter::once(n).chain(std::iter::repeat_n(1, rank.saturating_sub(2))).collect();
            i.b.reshape(v, &dims)
        }
    }
}

pub(super) fn picks(windows: &[Window]) -> Result<Vec<Pick>, String> {
    windows.iter().map(Window::pick).collect()
}

fn conv(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, w) = (c.arg(0)?, c.arg(1)?);
    let (windows, group) = layout(i, c, x, w)?;
    let y = convolve(i, x, w, group, &picks(&windows)?)?;
    biased(i, &y, c.opt(2))
}

/// Each output element sums the windows that reach it: a convolution whose table of places is the inverse one.
fn transposed(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, w) = (c.arg(0)?, c.arg(1)?);
    let (xs, ws) = (i.b.shape(x)?, i.b.shape(w)?);
    if xs.len() < 3 || xs.len() != ws.len() || xs[1] != ws[0] {
        return Err(format!("a weight {ws:?} for {xs:?}"));
    }
    let group = groups(c, &[xs[1]])?;
    let n = xs.len() - 2;
    let (strides, dilations) = (whole(c, "strides", n, 1, 1)?, whole(c, "dilations", n, 1, 1)?);
    let (kernel, pads) = (kernel(c, n, Some(&ws[2..]))?, whole(c, "pads", 2 * n, 0, -(1 << 24))?);
    let more = whole(c, "output_padding", n, 0, 0)?;
    let auto = c.text_or("auto_pad", "NOTSET")?;
    let asked = c.ints("output_shape")?.filter(|l| !l.is_empty());
    if asked.as_ref().is_some_and(|l| l.len() < n || l.iter().any(|v| !(1..=1 << 24).contains(v))) {
        return Err("output_shape is not one size for each dimension".into());
    }
    let mut picks = Vec::with_capacity(n);
    for d in 0..n {
        let size = super::super::build::as_i64(&xs)[d + 2].min(1 << 24);
        let full = (size - 1) * strides[d] + more[d] + (kernel[d] - 1) * dilations[d] + 1;
        let out = match (&asked, auto.as_str()) {
            (Some(list), _) => Some(list[list.len() - n + d]),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(size * strides[d]),
            (None, "NOTSET" | "" | "VALID") => None,
            (None, other) => return Err(format!("auto_pad `{other}` is not supported")),
        };
        let (before, out) = match out {
            Some(out) => (halves((full - out).max(0), auto == "SAME_UPPER").0, out),
            None if auto == "VALID" => (0, full),
            None => (pads[d], full - pads[d] - pads[d + n]),
        };
        if out < 1 {
            return Err(format!("the output would have {out} elements along a dimension"));
        }
        let (kernel, stride, dilation) = (kernel[d], strides[d], dilations[d]);
        picks.push(Window { size: out, kernel, stride, dilation, before, after: 0, out: size }.inverse(out)?);
    }
    // [C, M / G, …] as [M, C / G, …].
    let (part, m) = (xs[1] / group, ws[1]);
    let dims: Vec<usize> = [group, part, m].into_iter().chain(ws[2..].iter().copied()).collect();
    let w = i.b.reshape(w, &dims)?;
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..dims.len()).collect();
    let w = i.b.transpose(&w, &perm)?;
    let dims: Vec<usize> = [group * m, part].into_iter().chain(ws[2..].iter().copied()).collect();
    let w = i.b.reshape(&w, &dims)?;
    let y = convolve(i, x, &w, group, &picks)?;
    biased(i, &y, c.opt(2))
}

/// Sums columns `[N, C · kernel, windows]` into the image that windows were taken from.
fn col2im(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let image = sizes(&i.b.known_ints(c.arg(1)?, "image_shape")?)?;
    let block = i.b.known_ints(c.arg(2)?, "block_shape")?;
    let [n, rows, columns] = i.b.shape(x)?[..] else { return Err("needs three dimensions".into()) };
    if block.len() != image.len() || block.iter().any(|k| !(1..=1 << 24).contains(k)) {
        return Err(format!("a block {block:?} of an image {image:?}"));
    }
    let windows = windows(c, &image, &block)?;
    let (blocks, counts): (Vec<usize>, Vec<usize>) =
        windows.iter().map(|w| (w.kernel as usize, w.out as usize)).unzip();
    let size = bounded(&blocks)?;
    if rows % size != 0 || bounded(&counts)? != columns {
        return Err(format!("columns {rows} × {columns} are not {counts:?} blocks {block:?}"));
    }
    let d = image.len();
    let dims: Vec<usize> = [n, rows / size].into_iter().chain(blocks.clone()).chain(counts.clone()).collect();
    let x = i.b.reshape(x, &dims)?;
    let perm: Vec<usize> = [0, 1].into_iter().chain((0..d).flat_map(|k| [2 + k, 2 + d + k])).collect();
    let x = i.b.transpose(&x, &perm)?;
    let dims: Vec<usize> = [n, rows / size].into_iter().chain((0..d).map(|k| blocks[k] * counts[k])).collect();
    let x = i.b.reshape(&x, &dims)?;
    let mut picks = Vec::with_capacity(d);
    for w in &windows {
        let back = w.inverse(w.size)?;
        // The place holds window and element of the kernel at once.
        let at = |o: i64, k: i64| back.places[(o * w.kernel + k) as usize].map(|window| k * w.out + window as i64);
        picks.push(table(w.size, w.kernel, at)?);
    }
    let zero = i.b.like(&x, 0.0)?;
    super::window::slide(i, &x, (2, &picks), &zero, Reduce::Sum)
}

/// A convolution per channel over what went before; the last inputs are the state for what comes next.
fn causal(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let (x, w) = (c.arg(0)?, c.arg(1)?);
    let (&[n, ch, _], &[m, 1, k]) = (&i.b.shape(x)?[..], &i.b.shape(w)?[..]) else {
        return Err("needs an input [B, C, T] and a weight [C, 1, K]".into());
    };
    if m != ch || k == 0 {
        return Err(format!("a weight for {m} channels, where the input has {ch}"));
    }
    let mut padded = x.clone();
    if k > 1 {
        let past = match c.opt(3) {
            Some(past) => past.clone(),
            None => {
                let zero = i.b.like(x, 0.0)?;
                i.b.expand(&zero, &[n, ch, k - 1])?
            }
        };
        padded = i.b.concat(&[&past, x], 2)?;
    }
    let total = i.b.shape(&padded)?[2];
    let count = (total + 1).checked_sub(k).filter(|n| *n > 0).ok_or("the kernel is longer than the state")?;
    let pick = table(count as i64, k as i64, |o, k| Some(o + k))?;
    let y = convolve(i, &padded, w, ch, &[pick])?;
    let mut y = biased(i, &y, c.opt(2))?;
    match c.text_or("activation", "none")?.as_str() {
        "none" => {}
        "silu" | "swish" => {
            let dtype = i.b.dtype(&y)?;
            y = i.b.cast(&y, DType::F32)?;
            y = super::elementwise::swish(i, &y, 1.0)?;
            y = i.b.cast(&y, dtype)?;
        }
        other => return Err(format!("activation `{other}` is not supported")),
    }
    let mut out = vec![y];
    if c.wants(1) {
        if k == 1 {
            return Err("the state of a kernel of one element is empty".into());
        }
        out.push(i.b.slice(&padded, 2, total - (k - 1), total)?);
    }
    Ok(out)
}
