//! Windows that slide over spatial dimensions: what convolutions, pools and their inverses have in common.
//!
//! A window along one dimension is a table of places, so strides, dilations, pads (also negative ones) and windows that reach
//! beyond the end are all one gather with constant indices.

use dlx_ir::{Op, Reduce};

use super::super::build::as_i64;
use super::super::call::Call;
use super::super::import::Importer;
use super::super::value::Val;

/// Largest size of a kernel, stride, dilation or pad; products of two fit an i64.
const LARGEST: i64 = 1 << 24;

/// Most entries of a table of places.
const MAX_PLACES: usize = 1 << 24;

/// Most elements of an intermediate tensor that an op is decomposed into.
const MAX_ELEMENTS: usize = 1 << 30;

/// A window along one dimension.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) size: i64,
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) dilation: i64,
    pub(super) before: i64,
    pub(super) after: i64,
    /// Number of windows.
    pub(super) out: i64,
}

/// A dimension taken apart: element `[o, k]` of the pair that replaces it is the one at `places[o · kernel + k]`, or none.
pub(super) struct Pick {
    pub(super) out: usize,
    pub(super) kernel: usize,
    pub(super) places: Vec<Option<usize>>,
}

/// The number of elements, if a tensor of this shape can be an intermediate one.
pub(super) fn bounded(dims: &[usize]) -> Result<usize, String> {
    let n = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= MAX_ELEMENTS);
    n.ok_or_else(|| format!("needs a tensor {dims:?}, which is larger than {MAX_ELEMENTS} elements"))
}

/// One number for each of `n` dimensions, none smaller than `least`.
pub(super) fn whole(c: &Call<'_>, name: &str, n: usize, default: i64, least: i64) -> Result<Vec<i64>, String> {
    let list = c.ints(name)?.filter(|l| !l.is_empty()).unwrap_or_else(|| vec![default; n]);
    if list.len() != n {
        return Err(format!("attribute `{name}` has {} numbers, not {n}", list.len()));
    }
    match list.iter().find(|v| !(least..=LARGEST).contains(*v)) {
        Some(v) => Err(format!("attribute `{name}` has {v}, which is not in {least}..={LARGEST}")),
        None => Ok(list),
    }
}

/// The kernel that attribute `kernel_shape` gives, which may be left out where a weight has it.
pub(super) fn kernel(c: &Call<'_>, n: usize, weight: Option<&[usize]>) -> Result<Vec<i64>, String> {
    if c.ints("kernel_shape")?.is_some() {
        let list = whole(c, "kernel_shape", n, 1, 1)?;
        return match weight {
            Some(have) if as_i64(have) != list => {
                Err(format!("kernel_shape {list:?} is not that of the weight: {have:?}"))
            }
            _ => Ok(list),
        };
    }
    let have = as_i64(weight.ok_or("attribute `kernel_shape` is missing")?);
    match have.iter().find(|v| !(1..=LARGEST).contains(*v)) {
        Some(v) => Err(format!("a kernel of {v}")),
        None => Ok(have),
    }
}

/// Pads of a given total; one more behind (`SAME_UPPER`) or in front if it is odd.
pub(super) fn halves(total: i64, upper: bool) -> (i64, i64) {
    let small = total / 2;
    if upper { (small, total - small) } else { (total - small, small) }
}

/// The windows of a node over dimensions of these sizes.
pub(super) fn windows(c: &Call<'_>, sizes: &[usize], kernel: &[i64]) -> Result<Vec<Window>, String> {
    let n = sizes.len();
    let (strides, dilations) = (whole(c, "strides", n, 1, 1)?, whole(c, "dilations", n, 1, 1)?);
    let pads = whole(c, "pads", 2 * n, 0, -LARGEST)?;
    let auto = c.text_or("auto_pad", "NOTSET")?;
    let ceil = c.flag("ceil_mode")?;
    let mut out = Vec::with_capacity(n);
    for d in 0..n {
        let size = as_i64(sizes)[d].min(1 << 40);
        let (kernel, stride, dilation) = (kernel[d], strides[d], dilations[d]);
        let reach = (kernel - 1) * dilation + 1;
        let (before, after) = match auto.as_str() {
            "NOTSET" | "" => (pads[d], pads[d + n]),
            "VALID" => (0, 0),
            "SAME_UPPER" | "SAME_LOWER" => {
                let count = size.saturating_sub(1) / stride + 1;
                halves(((count - 1) * stride + reach - size).max(0), auto == "SAME_UPPER")
            }
            other => return Err(format!("auto_pad `{other}` is not supported")),
        };
        let room = size + before + after - reach;
        if room < 0 {
            return Err(format!("a window of {reach} does not fit in {size} elements padded by {before} and {after}"));
        }
        let mut count = if ceil { (room + stride - 1) / stride } else { room / stride } + 1;
        if ceil && (count - 1) * stride >= size + before {
            count -= 1;
        }
        if count < 1 {
            return Err(format!("no window starts in {size} elements padded by {before} and {after}"));
        }
        out.push(Window { size, kernel, stride, dilation, before, after, out: count });
    }
    Ok(out)
}

impl Window {
    /// Where element `k` of window `o` lies; negative in the padding in front.
    fn at(&self, o: i64, k: i64) -> i64 {
        o * self.stride + k * self.dilation - self.before
    }

    /// The table of places.
    pub(super) fn pick(&self) -> Result<Pick, String> {
        table(self.out, self.kernel, |o, k| Some(self.at(o, k)).filter(|at| (0..self.size).contains(at)))
    }

    /// The table of the inverse: for each element of `out`, the window that element `k` of the kernel puts there.
    pub(super) fn inverse(&self, out: i64) -> Result<Pick, String> {
        table(out, self.kernel, |o, k| {
            let at = o + self.before - k * self.dilation;
            (at >= 0 && at % self.stride == 0 && at / self.stride < self.out).then(|| at / self.stride)
        })
    }

    /// How many elements each window has inside the tensor, or inside the tensor and its padding.
    pub(super) fn counts(&self, padding: bool) -> Vec<i64> {
        let inside = if padding { -self.before..self.size + self.after } else { 0..self.size };
        (0..self.out).map(|o| (0..self.kernel).filter(|k| inside.contains(&self.at(o, *k))).count() as i64).collect()
    }
}

/// A table of places by a function.
pub(super) fn table(out: i64, kernel: i64, place: impl Fn(i64, i64) -> Option<i64>) -> Result<Pick, String> {
    let size = |n: i64| usize::try_from(n).map_err(|_| format!("a size of {n}"));
    let (o, k) = (size(out)?, size(kernel)?);
    if o.checked_mul(k).is_none_or(|n| n > MAX_PLACES) {
        return Err(format!("{out} windows of {kernel} elements are more than {MAX_PLACES} places"));
    }
    let places = (0..out).flat_map(|o| (0..kernel).map(move |k| (o, k)));
    let places = places.map(|(o, k)| place(o, k).and_then(|at| usize::try_from(at).ok())).collect();
    Ok(Pick { out: o, kernel: k, places })
}

/// A value in every place. Beside run-time values it is repeated when the model runs, so that no constant grows large.
pub(super) fn filled(i: &mut Importer<'_>, value: &Val, dims: &[usize], run: bool) -> Result<Val, String> {
    if !run || bounded(dims)? == 0 {
        return i.b.expand(value, dims);
    }
    let value = i.b.operand(value)?;
    Ok(Val::Run(i.b.emit(Op::Expand { dims: as_i64(dims) }, vec![value])?[0]))
}

/// Takes one dimension apart, `[.., out · kernel, ..]`; `fill` stands where there is no element.
pub(super) fn picked(i: &mut Importer<'_>, x: &Val, at: usize, pick: &Pick, fill: &Val) -> Result<Val, String> {
    let mut shape = i.b.shape(x)?;
    let size = *shape.get(at).ok_or("has no such dimension")?;
    let mut x = x.clone();
    shape[at] = pick.places.len();
    bounded(&shape)?;
    if pick.places.contains(&None) {
        shape[at] = 1;
        let edge = filled(i, fill, &shape, matches!(x, Val::Run(_)))?;
        x = i.b.concat(&[&x, &edge], at)?;
    } else if pick.places.len() == size && pick.places.iter().enumerate().all(|(n, p)| *p == Some(n)) {
        return Ok(x);
    }
    let places = i.b.ints(pick.places.iter().map(|p| p.unwrap_or(size) as i64));
    i.b.gather(&x, &places, at)
}

/// Takes the last dimensions from `first` on apart: `[.., o₁, k₁, o₂, k₂, …]`.
pub(super) fn unfold(i: &mut Importer<'_>, x: &Val, first: usize, picks: &[Pick], fill: &Val) -> Result<Val, String> {
    let mut dims = i.b.shape(x)?;
    dims.truncate(first);
    dims.extend(picks.iter().flat_map(|p| [p.out, p.kernel]));
    bounded(&dims)?;
    let mut x = x.clone();
    for (n, pick) in picks.iter().enumerate() {
        x = picked(i, &x, first + n, pick, fill)?;
    }
    i.b.reshape(&x, &dims)
}

/// Reduces each window along each dimension from `first` on in turn.
pub(super) fn slide(
    i: &mut Importer<'_>,
    x: &Val,
    (first, picks): (usize, &[Pick]),
    fill: &Val,
    kind: Reduce,
) -> Result<Val, String> {
    let mut x = x.clone();
    for (n, pick) in picks.iter().enumerate() {
        let at = first + n;
        x = picked(i, &x, at, pick, fill)?;
        if pick.kernel == 1 {
            continue;
        }
        let mut dims = i.b.shape(&x)?;
        dims[at] = pick.out;
        dims.insert(at + 1, pick.kernel);
        x = i.b.reshape(&x, &dims)?;
        x = i.b.reduce(kind, &x, &[at + 1], false)?;
    }
    Ok(x)
}
