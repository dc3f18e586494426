//! Regions of interest: parts of images brought to one size.

use dlx_ir::{Binary, Compare, DType, Reduce, Unary};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::value::Val;
use super::sample::{Padding, Tap, clamp, corners, linear, rows};
use super::shape::sizes;
use super::window::bounded;
use super::{Row, one};

const ROI: &[Row] = &[("", "MaxRoiPool", |i, c, _| one(max_pool(i, c))), ("", "RoiAlign", |i, c, _| one(align(i, c)))];

pub(super) const ROWS: &[&[Row]] = &[ROI];

/// Most samples along a bin.
const MAX_SAMPLES: usize = 1 << 10;

/// Most points along one side of all bins of a region.
const MAX_POINTS: usize = 1 << 13;

/// Most regions that are sampled each in its own density.
const MAX_REGIONS: usize = 1 << 10;

/// One column of regions `[R, n]`.
fn field(i: &mut Importer<'_>, rois: &Val, n: usize) -> Result<Val, String> {
    let count = i.b.shape(rois)?[0];
    let part = i.b.slice(rois, 1, n, n + 1)?;
    i.b.reshape(&part, &[count, 1])
}

struct Align<'c> {
    x: &'c Val,
    bins: [usize; 2],
    scale: f64,
    half: bool,
    max: bool,
}

fn align(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, rois, batch) = (c.arg(0)?, c.arg(1)?, c.arg(2)?);
    let (&[_, _, _, _], &[count, 4]) = (&i.b.shape(x)?[..], &i.b.shape(rois)?[..]) else {
        return Err("needs images [N, C, H, W] and regions [R, 4]".into());
    };
    // Before version 16, coordinates were not shifted by half an element.
    let half = match c.text("coordinate_transformation_mode")? {
        Some(mode) => mode == "half_pixel",
        None => c.opset() >= 16,
    };
    let max = match c.text_or("mode", "avg")?.as_str() {
        "avg" => false,
        "max" => true,
        other => return Err(format!("mode `{other}` is not supported")),
    };
    let bins = sizes(&[c.int_or("output_height", 1)?, c.int_or("output_width", 1)?])?;
    let scale = c.float_or("spatial_scale", 1.0)?.into();
    let a = Align { x, bins: [bins[0], bins[1]], scale, half, max };
    let samples = c.int_or("sampling_ratio", 0)?;
    if samples > 0 {
        let samples = usize::try_from(samples).unwrap_or(usize::MAX);
        return aligned(i, &a, rois, batch, [samples, samples]);
    }
    // The number of samples follows from the size of each region.
    let why = "its sampling_ratio is 0, so the regions decide how often they are sampled";
    let known = i.b.known(rois)?.ok_or_else(|| format!("{why}: give them when compiling, as a constant"))?;
    let known = super::super::value::cast(&known, DType::F64)?;
    let dlx_ir::Data::F64(known) = known.data else { return Err("regions are no numbers".into()) };
    if count > MAX_REGIONS {
        return Err(format!("{why}, and there are more than {MAX_REGIONS} of them"));
    }
    let mut out = Vec::with_capacity(count);
    for (n, roi) in known.chunks_exact(4).enumerate() {
        let density = |low: f64, high: f64, bins: usize| {
            let extent = (high - low) * a.scale;
            let extent = if half { extent } else { extent.max(1.0) };
            (extent / bins.max(1) as f64).ceil().clamp(1.0, MAX_SAMPLES as f64 + 1.0) as usize
        };
        let samples = [density(roi[1], roi[3], a.bins[0]), density(roi[0], roi[2], a.bins[1])];
        let (roi, which) = (i.b.slice(rois, 0, n, n + 1)?, i.b.slice(batch, 0, n, n + 1)?);
        out.push(aligned(i, &a, &roi, &which, samples)?);
    }
    i.b.concat(&out.iter().collect::<Vec<_>>(), 0)
}

/// Regions sampled at the same number of points in each bin.
fn aligned(i: &mut Importer<'_>, a: &Align<'_>, rois: &Val, batch: &Val, samples: [usize; 2]) -> Result<Val, String> {
    let (shape, count) = (i.b.shape(a.x)?, i.b.shape(rois)?[0]);
    if samples.iter().any(|n| *n > MAX_SAMPLES) {
        return Err(format!("more than {MAX_SAMPLES} samples in a bin"));
    }
    let [tall, wide] = [a.bins[0].saturating_mul(samples[0]), a.bins[1].saturating_mul(samples[1])];
    if tall.max(wide) > MAX_POINTS {
        return Err(format!("{tall} × {wide} samples in a region are more than {MAX_POINTS} on a side"));
    }
    bounded(&[count, tall, wide, shape[1]])?;
    let rois = i.b.cast(rois, DType::F32)?;
    let mut taps: Vec<Vec<Tap>> = Vec::with_capacity(2);
    for (axis, dims) in [[count, tall, 1], [count, 1, wide]].into_iter().enumerate() {
        let (low, high) = (field(i, &rois, 1 - axis)?, field(i, &rois, 3 - axis)?);
        let shift = if a.half { -0.5 } else { 0.0 };
        let start = i.b.mul_number(&low, a.scale)?;
        let start = i.b.add_number(&start, shift)?;
        let end = i.b.mul_number(&high, a.scale)?;
        let end = i.b.add_number(&end, shift)?;
        let mut extent = i.b.sub(&end, &start)?;
        if !a.half {
            let least = i.b.like(&extent, 1.0)?;
            extent = i.b.binary(Binary::Max, &extent, &least)?;
        }
        let total = a.bins[axis] * samples[axis];
        let parts = i.b.ints((0..total as i64).map(|n| 2 * n + 1));
        let parts = i.b.cast(&parts, DType::F32)?;
        let parts = i.b.mul_number(&parts, 0.5 / total as f64)?;
        let at = i.b.mul(&extent, &parts)?;
        let at = i.b.add(&at, &start)?;
        // Further than one element outside, nothing is sampled; else the border.
        let size = shape[2 + axis];
        let (least, most) = (i.b.like(&at, -1.0)?, i.b.like(&at, size as f64)?);
        let (above, below) = (i.b.compare(Compare::Ge, &at, &least)?, i.b.compare(Compare::Le, &at, &most)?);
        let within = i.b.binary(Binary::And, &above, &below)?;
        let within = i.b.cast(&within, DType::F32)?;
        let at = clamp(i, &at, 0.0, size as f64 - 1.0)?;
        let mut own = linear(i, &at, size, Padding::Border)?;
        for tap in &mut own {
            let weight = tap.weight.take().map_or(Ok(within.clone()), |w| i.b.mul(&w, &within))?;
            tap.weight = Some(i.b.reshape(&weight, &dims)?);
            tap.index = i.b.reshape(&tap.index, &dims)?;
        }
        taps.push(own);
    }
    let batch = i.b.cast(batch, DType::I64)?;
    let batch = i.b.reshape(&batch, &[count, 1, 1])?;
    let rows = rows(i, a.x)?;
    let corners = corners(i, &rows, &batch, &shape[2..], &taps)?;
    let (first, rest) = corners.split_first().ok_or("has no corner")?;
    let y = rest
        .iter()
        .try_fold(first.clone(), |sum, y| if a.max { i.b.binary(Binary::Max, &sum, y) } else { i.b.add(&sum, y) })?;
    let y = i.b.reshape(&y, &[count, a.bins[0], samples[0], a.bins[1], samples[1], shape[1]])?;
    let y = i.b.reduce(if a.max { Reduce::Max } else { Reduce::Mean }, &y, &[2, 4], false)?;
    i.b.transpose(&y, &[0, 3, 1, 2])
}

/// The largest element of each bin; bins are whole elements and may overlap. An empty one is zero.
fn max_pool(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, rois) = (c.arg(0)?, c.arg(1)?);
    let (&[n, channels, h, w], &[count, 5]) = (&i.b.shape(x)?[..], &i.b.shape(rois)?[..]) else {
        return Err("needs images [N, C, H, W] and regions [R, 5]".into());
    };
    let bins = sizes(&c.ints("pooled_shape")?.ok_or("attribute `pooled_shape` is missing")?)?;
    let [tall, wide] = bins[..] else { return Err("pooled_shape is not two sizes".into()) };
    if tall.max(wide) > MAX_POINTS {
        return Err(format!("{tall} × {wide} bins are more than {MAX_POINTS} on a side"));
    }
    bounded(&[count, channels, wide.max(tall), h, w])?;
    let scale = f64::from(c.float_or("spatial_scale", 1.0)?);
    let rois = i.b.cast(rois, DType::F32)?;
    let batch = field(i, &rois, 0)?;
    let batch = clamp(i, &batch, 0.0, n as f64 - 1.0)?;
    let batch = i.b.cast(&batch, DType::I64)?;
    let batch = i.b.reshape(&batch, &[count])?;
    let x = i.b.gather(x, &batch, 0)?;
    let least = i.b.like(&x, f64::NEG_INFINITY)?;
    let mut y = x;
    for (at, size, bins) in [(0, w, wide), (1, h, tall)] {
        let edge = |i: &mut Importer<'_>, n: usize| {
            let v = field(i, &rois, n)?;
            let v = i.b.mul_number(&v, scale)?;
            let v = i.b.add_number(&v, 0.5)?;
            i.b.unary(Unary::Floor, &v)
        };
        let (start, end) = (edge(i, 1 + at)?, edge(i, 3 + at)?);
        let extent = i.b.sub(&end, &start)?;
        let extent = i.b.add_number(&extent, 1.0)?;
        let number = i.b.like(&extent, 1.0)?;
        let extent = i.b.binary(Binary::Max, &extent, &number)?;
        let bin = i.b.mul_number(&extent, 1.0 / bins.max(1) as f64)?;
        let bound = |i: &mut Importer<'_>, plus: i64, kind: Unary| {
            let k = i.b.ints((0..bins as i64).map(|k| k + plus));
            let k = i.b.cast(&k, DType::F32)?;
            let v = i.b.mul(&bin, &k)?;
            let v = i.b.unary(kind, &v)?;
            let v = i.b.add(&v, &start)?;
            i.b.reshape(&v, &[count, bins, 1])
        };
        let (first, last) = (bound(i, 0, Unary::Floor)?, bound(i, 1, Unary::Ceil)?);
        let places = i.b.ints(0..size as i64);
        let places = i.b.cast(&places, DType::F32)?;
        let (from, to) = (i.b.compare(Compare::Ge, &places, &first)?, i.b.compare(Compare::Lt, &places, &last)?);
        let within = i.b.binary(Binary::And, &from, &to)?;
        // Columns: [R, C, 1, H, W] to [R, C, bins, H]; then rows: [R, C, bins, 1, H] to [R, C, bins, bins].
        let (dims, mask) = if at == 0 {
            ([count, channels, 1, h, w], [count, 1, bins, 1, size])
        } else {
            ([count, channels, wide, 1, h], [count, 1, 1, bins, size])
        };
        let (all, mask) = (i.b.reshape(&y, &dims)?, i.b.reshape(&within, &mask)?);
        let chosen = i.b.select(&mask, &all, &least)?;
        y = i.b.reduce(Reduce::Max, &chosen, &[4], false)?;
    }
    let zero = i.b.like(&y, 0.0)?;
    let empty = i.b.compare(Compare::Eq, &y, &least)?;
    let y = i.b.select(&empty, &zero, &y)?;
    i.b.transpose(&y, &[0, 1, 3, 2])
}
