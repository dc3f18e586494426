//! Images brought to another size, one dimension after another: each is a gather, or a product with a constant matrix.

use dlx_ir::{DType, Data, Op, Tensor, Unary};

use super::super::call::{Call, axis};
use super::super::import::Importer;
use super::super::value::Val;
use super::product::matmul;
use super::shape::sizes;
use super::window::bounded;
use super::{Row, one};

const RESIZE: &[Row] = &[
    ("", "CenterCropPad", |i, c, _| one(center_crop_pad(i, c))),
    ("", "Resize", |i, c, _| one(resize(i, c))),
    ("", "Upsample", |i, c, _| one(resize(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[RESIZE];

/// Most elements of the matrix of one dimension.
const MAX_MATRIX: usize = 1 << 24;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Nearest,
    Linear,
    Cubic(f64),
}

/// How places in the result become places in the operand.
struct Rule {
    mode: Mode,
    coordinates: String,
    nearest: String,
    antialias: bool,
    exclude: bool,
}

/// One dimension to resize.
struct Along {
    at: usize,
    from: usize,
    to: usize,
    scale: f64,
    /// Start and end of the part that is taken, of the whole as 1.
    crop: Option<(f64, f64)>,
}

/// Numbers that must be known now.
fn known(i: &Importer<'_>, v: &Val, what: &str) -> Result<Vec<f64>, String> {
    if i.b.elements(v)? == 0 {
        return Ok(Vec::new());
    }
    let t = i.b.known(v)?;
    let t = t.ok_or_else(|| {
        format!("`{what}` is known only when the model runs; it decides a shape: give it when compiling")
    })?;
    match super::super::value::cast(&t, DType::F64)?.data {
        Data::F64(x) => Ok(x),
        _ => Err(format!("`{what}` holds no numbers")),
    }
}

fn rule(c: &Call<'_>) -> Result<Rule, String> {
    let old = c.opset() < 11;
    let mode = match c.text_or("mode", "nearest")?.as_str() {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic(c.float_or("cubic_coeff_a", -0.75)?.into()),
        other => return Err(format!("mode `{other}` is not supported")),
    };
    // Before version 11, places were divided by the scale and rounded to the start of the image where it grows.
    Ok(Rule {
        mode,
        coordinates: c.text_or("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })?,
        nearest: c.text_or("nearest_mode", if old { "simple" } else { "round_prefer_floor" })?,
        antialias: c.flag("antialias")? && mode != Mode::Nearest,
        exclude: c.flag("exclude_outside")?,
    })
}

/// The dimensions, their new sizes and scales.
fn along(i: &mut Importer<'_>, c: &Call<'_>, shape: &[usize], crops: bool) -> Result<Vec<Along>, String> {
    let version = c.opset();
    let upsample = c.node.op == "Upsample";
    let axes = match c.ints("axes")? {
        Some(list) => list.iter().map(|a| axis(*a, shape.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..shape.len()).collect(),
    };
    let n = axes.len();
    let operand = |i: &Importer<'_>, at: usize, what: &str| {
        let list = c.opt(at).map(|v| known(i, v, what)).transpose()?;
        Ok::<_, String>(list.filter(|l| !l.is_empty()))
    };
    let scales = match (upsample, version) {
        (true, ..9) => c.floats("scales")?.map(|l| l.into_iter().map(f64::from).collect()),
        (true, _) | (false, ..11) => operand(i, 1, "scales")?,
        _ => operand(i, 2, "scales")?,
    };
    let stretch = c.text_or("keep_aspect_ratio_policy", "stretch")? == "stretch";
    let declared = i.declared(c, c.opt(3).filter(|_| stretch && !upsample), 0).filter(|d| d.len() == shape.len());
    let wanted = match declared {
        Some(declared) => Some(axes.iter().map(|a| declared[*a] as f64).collect()),
        None if upsample || version < 11 => None,
        None => operand(i, 3, "sizes")?,
    };
    let roi = if crops { Some(operand(i, 1, "roi")?.ok_or("needs a roi")?) } else { None };
    for list in [&scales, &wanted].into_iter().flatten() {
        if list.len() != n || list.iter().any(|v| !v.is_finite() || *v < 0.0 || *v > 1e9) {
            return Err(format!("{list:?} is not one size or scale for each of {n} dimensions"));
        }
    }
    if roi.as_ref().is_some_and(|l| l.len() != 2 * n || l.iter().any(|v| !v.is_finite())) {
        return Err(format!("roi is not two numbers for each of {n} dimensions"));
    }
    let ratios = wanted.as_ref().map(|w| w.iter().zip(&axes).map(|(w, a)| w / shape[*a].max(1) as f64));
    let common = match c.text_or("keep_aspect_ratio_policy", "stretch")?.as_str() {
        "stretch" => None,
        "not_larger" => ratios.map(|r| r.fold(f64::INFINITY, f64::min)),
        "not_smaller" => ratios.map(|r| r.fold(0.0, f64::max)),
        other => return Err(format!("keep_aspect_ratio_policy `{other}` is not supported")),
    };
    let mut out = Vec::with_capacity(n);
    for (k, at) in axes.into_iter().enumerate() {
        let from = shape[at];
        let (to, scale) = match (&wanted, &scales) {
            (Some(wanted), _) => {
                let scale = common.unwrap_or(wanted[k] / from.max(1) as f64);
                (common.map_or(wanted[k], |s| (s * from as f64 + 0.5).floor()), scale)
            }
            (None, Some(scales)) => ((scales[k] * from as f64).floor(), scales[k]),
            (None, None) => return Err("has neither scales nor sizes".into()),
        };
        let crop = roi.as_ref().map(|l| (l[k], l[n + k]));
        if scale <= 0.0 || !(1.0..=1e9).contains(&to) || from == 0 {
            return Err(format!("{from} elements resized to {to}"));
        }
        out.push(Along { at, from, to: to as usize, scale, crop });
    }
    Ok(out)
}

/// The place in the operand of each place in the result.
fn places(rule: &Rule, a: &Along) -> Result<Vec<f64>, String> {
    let (from, to) = (a.from as f64, a.to as f64);
    // May be fractional, where a scale is given.
    let wide = a.scale * from;
    let f = |x: f64| match rule.coordinates.as_str() {
        "align_corners" if wide == 1.0 => 0.0,
        "align_corners" => x * (from - 1.0) / (wide - 1.0),
        "asymmetric" => x / a.scale,
        "tf_crop_and_resize" => {
            let (start, end) = a.crop.unwrap_or((0.0, 1.0));
            let part = (end - start) * (from - 1.0);
            start * (from - 1.0) + if wide == 1.0 { part / 2.0 } else { x * part / (wide - 1.0) }
        }
        "pytorch_half_pixel" if a.to == 1 => 0.0,
        "half_pixel_symmetric" => from / 2.0 * (1.0 - to / wide) + (x + 0.5) / a.scale - 0.5,
        _ => (x + 0.5) / a.scale - 0.5,
    };
    let known = [
        "align_corners",
        "asymmetric",
        "tf_crop_and_resize",
        "pytorch_half_pixel",
        "half_pixel_symmetric",
        "half_pixel",
    ];
    if !known.contains(&rule.coordinates.as_str()) {
        return Err(format!("coordinate_transformation_mode `{}` is not supported", rule.coordinates));
    }
    // Scales are numbers of f32: what is a whole place in that precision is one.
    Ok((0..a.to).map(|x| f64::from(f(x as f64) as f32)).collect())
}

/// The weights of neighbors of a place: the first one's index, which may be outside, and a number for each.
fn weights(rule: &Rule, place: f64, scale: f64) -> (i64, Vec<f64>) {
    let narrow = if rule.antialias { scale.min(1.0) } else { 1.0 };
    let reach = if rule.mode == Mode::Linear { 1.0 } else { 2.0 } / narrow;
    let (first, last) = ((place - reach).ceil() as i64, (place + reach).floor() as i64);
    let weight = |n: i64| {
        let d = ((n as f64 - place) * narrow).abs();
        match rule.mode {
            Mode::Cubic(a) if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            Mode::Cubic(a) if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            Mode::Cubic(_) => 0.0,
            _ => (1.0 - d).max(0.0),
        }
    };
    let mut list: Vec<f64> = (first..=last).map(weight).collect();
    if rule.antialias {
        let sum: f64 = list.iter().sum();
        list.iter_mut().for_each(|w| *w /= sum);
    }
    (first, list)
}

/// The matrix `[from, to]` of one dimension; `None` if it changes nothing.
fn matrix(rule: &Rule, a: &Along, places: &[f64]) -> Result<Option<Tensor>, String> {
    if a.from.checked_mul(a.to).is_none_or(|n| n > MAX_MATRIX) || a.from as f64 / a.scale.min(1.0) > 1e9 {
        return Err(format!("{} elements resized to {} take too large a matrix", a.from, a.to));
    }
    let mut data = vec![0f64; a.from * a.to];
    let last = a.from as i64 - 1;
    for (column, place) in places.iter().enumerate() {
        // Far outside, all neighbors are the border.
        let (first, mut list) = weights(rule, place.clamp(-1e9, 1e9), a.scale);
        if rule.exclude {
            let kept = |n: usize| (0..=last).contains(&(first + n as i64));
            list.iter_mut().enumerate().filter(|(n, _)| !kept(*n)).for_each(|(_, w)| *w = 0.0);
            let sum: f64 = list.iter().sum();
            if sum != 0.0 {
                list.iter_mut().for_each(|w| *w /= sum);
            }
        }
        for (n, w) in list.iter().enumerate() {
            let row = (first + n as i64).clamp(0, last) as usize;
            data[row * a.to + column] += w;
        }
    }
    let unit = |n: usize| if n / a.to == n % a.to { 1.0 } else { 0.0 };
    if a.from == a.to && data.iter().enumerate().all(|(n, w)| *w == unit(n)) {
        return Ok(None);
    }
    Ok(Some(Tensor { dtype: DType::F64, shape: vec![a.from, a.to], data: Data::F64(data) }))
}

fn round(rule: &Rule, place: f64, scale: f64) -> Result<f64, String> {
    Ok(match rule.nearest.as_str() {
        "simple" if scale < 1.0 => place.ceil(),
        "simple" => place.floor(),
        "floor" => place.floor(),
        "ceil" => place.ceil(),
        "round_prefer_floor" => (place - 0.5).ceil(),
        "round_prefer_ceil" => (place + 0.5).floor(),
        other => return Err(format!("nearest_mode `{other}` is not supported")),
    })
}

fn resize(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let rule = rule(c)?;
    let mut x = c.arg(0)?.clone();
    let (shape, dtype) = (i.b.shape(&x)?, i.b.dtype(&x)?);
    let crops = rule.coordinates == "tf_crop_and_resize";
    let list = along(i, c, &shape, crops)?;
    let mut dims = shape.clone();
    list.iter().for_each(|a| dims[a.at] = a.to);
    bounded(&dims)?;
    let outside = i.b.like(&x, c.float_or("extrapolation_value", 0.0)?.into())?;
    if rule.mode != Mode::Nearest && !dtype.is_float() {
        x = i.b.cast(&x, DType::F32)?;
    }
    let beyond = i.b.cast(&outside, i.b.dtype(&x)?)?;
    for a in &list {
        let places = places(&rule, a)?;
        let last = a.from as f64 - 1.0;
        if rule.mode == Mode::Nearest {
            let chosen = places.iter().map(|p| Ok(round(&rule, *p, a.scale)?.clamp(0.0, last) as i64));
            let chosen = chosen.collect::<Result<Vec<_>, String>>()?;
            if a.from != a.to || chosen.iter().enumerate().any(|(n, p)| n as i64 != *p) {
                let chosen = i.b.ints(chosen);
                x = i.b.gather(&x, &chosen, a.at)?;
            }
        } else if let Some(m) = matrix(&rule, a, &places)? {
            x = super::reduce::along_last(i, &x, a.at, &mut |i, x| times(i, x, &m))?;
        }
        let cut: Vec<bool> = places.iter().map(|p| crops && (*p < 0.0 || *p > last)).collect();
        if cut.contains(&true) {
            let mut dims = vec![1; shape.len()];
            dims[a.at] = a.to;
            let cut = Tensor { dtype: DType::Bool, shape: dims, data: Data::Bool(cut) }.into();
            x = i.b.select(&cut, &beyond, &x)?;
        }
    }
    if dtype.is_int() && i.b.dtype(&x)? != dtype {
        x = bytes(i, &x, dtype)?;
    }
    i.b.cast(&x, dtype)
}

/// Cubic interpolation goes beyond the range of the elements; bytes stay in theirs.
fn bytes(i: &mut Importer<'_>, x: &Val, dtype: DType) -> Result<Val, String> {
    let x = i.b.unary(Unary::Round, x)?;
    match super::quant::codes(dtype) {
        Some((low, high)) => super::sample::clamp(i, &x, low, high),
        None => Ok(x),
    }
}

fn times(i: &mut Importer<'_>, x: &Val, m: &Tensor) -> Result<Val, String> {
    let dtype = i.b.dtype(x)?;
    let m: Val = super::super::value::cast(m, dtype)?.into();
    if dtype == DType::F64 { i.b.op1(Op::Matmul {}, &[x, &m]) } else { matmul(i, x, &m) }
}

/// Cuts or pads dimensions alike on both sides; an odd element is cut or added behind.
fn center_crop_pad(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    let rank = i.b.rank(&x)?;
    let axes = match c.ints("axes")? {
        Some(list) => list.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    let follow = |shape: &[usize]| axes.iter().map(|a| shape.get(*a).map(|n| *n as i64)).collect();
    let wanted = sizes(&i.decided(c, c.arg(1)?, "shape", follow)?)?;
    if axes.len() != wanted.len() {
        return Err(format!("{} sizes for {} dimensions", wanted.len(), axes.len()));
    }
    let zero = i.b.like(&x, 0.0)?;
    for (at, want) in axes.into_iter().zip(wanted) {
        let have = i.b.shape(&x)?[at];
        if want <= have {
            let start = (have - want) / 2;
            x = i.b.slice(&x, at, start, start + want)?;
        } else {
            bounded(&[want])?;
            let (more, front) = ((want - have) as i64, ((want - have) / 2) as i64);
            x = super::shape::pad_one(i, &x, at, front, more - front, "constant", &zero)?;
        }
    }
    Ok(x)
}
