//! Ops whose result is as large as its operand's values say: they need known ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlx_ir::{DType, Data, Tensor};

use super::super::call::{Call, axis};
use super::super::import::{Importer, Scope};
use super::super::value::{Val, cast};
use super::{Row, one};

const CHOOSE: &[Row] = &[
    ("", "Compress", |i, c, _| one(compress(i, c))),
    ("", "NonMaxSuppression", |i, c, _| one(suppress(i, c))),
    ("", "NonZero", |i, c, _| one(non_zero(i, c))),
    ("", "Unique", unique),
];

pub(super) const ROWS: &[&[Row]] = &[CHOOSE];

/// Most pairs of boxes that are compared.
const MAX_PAIRS: usize = 1 << 28;

/// An operand that decides the shape of the result.
fn known(i: &Importer<'_>, v: &Val, what: &str) -> Result<Arc<Tensor>, String> {
    let help = "it decides a shape: give its value when compiling, as a constant";
    i.b.known(v)?.ok_or_else(|| format!("`{what}` is known only when the model runs; {help}"))
}

/// Numbers in an order that is that of the elements; equal numbers are equal.
fn keys(t: &Tensor) -> Vec<i64> {
    let float = |x: f64| {
        let bits = (x + 0.0).to_bits() as i64;
        if bits < 0 { i64::MIN - bits } else { bits }
    };
    match &t.data {
        Data::F64(x) => x.iter().map(|x| float(*x)).collect(),
        Data::F32(x) => x.iter().map(|x| float(f64::from(*x))).collect(),
        Data::I32(x) => x.iter().map(|x| i64::from(*x)).collect(),
        Data::I64(x) if t.dtype == DType::U64 => x.iter().map(|x| x ^ i64::MIN).collect(),
        Data::I64(x) => x.clone(),
        Data::Bool(x) => x.iter().map(|x| i64::from(*x)).collect(),
    }
}

fn floats(t: &Tensor) -> Result<Vec<f64>, String> {
    match cast(t, DType::F64)?.data {
        Data::F64(x) => Ok(x),
        _ => Err("holds no numbers".into()),
    }
}

fn compress(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    let condition = known(i, c.arg(1)?, "condition")?;
    let condition = keys(&condition);
    let at = match c.int("axis")? {
        Some(at) => axis(at, i.b.rank(&x)?)?,
        None => {
            let n = i.b.elements(&x)?;
            x = i.b.reshape(&x, &[n])?;
            0
        }
    };
    let size = i.b.shape(&x)?[at];
    let kept: Vec<i64> =
        condition.iter().take(size).enumerate().filter(|(_, k)| **k != 0).map(|(n, _)| n as i64).collect();
    if condition.len() > size {
        return Err(format!("{} conditions for {size} elements", condition.len()));
    }
    let kept = i.b.ints(kept);
    i.b.gather(&x, &kept, at)
}

/// The coordinates of all elements that are not zero, `[rank, count]`.
fn non_zero(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = known(i, c.arg(0)?, "input")?;
    let flags = keys(&x);
    let zero = keys(&super::super::value::scalar(x.dtype, 0.0)?)[0];
    let shape = if x.shape.is_empty() { vec![1] } else { x.shape.clone() };
    let places: Vec<usize> = (0..flags.len()).filter(|n| flags[*n] != zero).collect();
    let mut out = Vec::with_capacity(shape.len() * places.len());
    let mut step: usize = shape.iter().product();
    for size in &shape {
        step /= (*size).max(1);
        out.extend(places.iter().map(|p| (p / step.max(1) % (*size).max(1)) as i64));
    }
    Ok(Tensor { dtype: DType::I64, shape: vec![shape.len(), places.len()], data: Data::I64(out) }.into())
}

/// The different slices along an axis (or elements), where each is first, which one each is, and how often each occurs.
fn unique(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let given = c.arg(0)?;
    let (x, at) = match c.int("axis")? {
        Some(at) => (given.clone(), axis(at, i.b.rank(given)?)?),
        None => {
            let n = i.b.elements(given)?;
            (i.b.reshape(given, &[n])?, 0)
        }
    };
    let t = known(i, &x, "X")?;
    let all = keys(&t);
    let (size, inner): (usize, usize) = (t.shape[at], t.shape[at + 1..].iter().product());
    let outer: usize = t.shape[..at].iter().product();
    let slice = |n: usize| -> Vec<i64> {
        (0..outer).flat_map(|o| (0..inner).map(move |k| (o, k))).map(|(o, k)| all[(o * size + n) * inner + k]).collect()
    };
    // Slices in their order, each with where it first is and how often.
    let mut found: BTreeMap<Vec<i64>, (usize, i64)> = BTreeMap::new();
    for n in 0..size {
        found.entry(slice(n)).or_insert((n, 0)).1 += 1;
    }
    let mut list: Vec<(Vec<i64>, (usize, i64))> = found.into_iter().collect();
    if c.int_or("sorted", 1)? == 0 {
        list.sort_by_key(|(_, (first, _))| *first);
    }
    let rank: BTreeMap<&Vec<i64>, i64> = list.iter().enumerate().map(|(n, (slice, _))| (slice, n as i64)).collect();
    let which: Vec<i64> = (0..size).map(|n| rank[&slice(n)]).collect();
    let first = i.b.ints(list.iter().map(|(_, (first, _))| *first as i64));
    let y = i.b.gather(&x, &first, at)?;
    let counts = i.b.ints(list.iter().map(|(_, (_, count))| *count));
    Ok(vec![y, first, i.b.ints(which), counts])
}

/// Corners (lower, then upper) of a box.
fn corners(row: &[f64], center: bool) -> [f64; 4] {
    if center {
        let [x, y, w, h] = [row[0], row[1], row[2] / 2.0, row[3] / 2.0];
        return [y - h, x - w, y + h, x + w];
    }
    [row[0].min(row[2]), row[1].min(row[3]), row[0].max(row[2]), row[1].max(row[3])]
}

/// How much of two boxes together is in both.
fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let side = |n: usize| (a[n + 2].min(b[n + 2]) - a[n].max(b[n])).max(0.0);
    let area = |r: &[f64; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let both = side(0) * side(1);
    let all = area(a) + area(b) - both;
    if all > 0.0 { both / all } else { 0.0 }
}

/// Of boxes that overlap, those of the highest scores: rows (batch, class, box).
fn suppress(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (boxes, scores) = (known(i, c.arg(0)?, "boxes")?, known(i, c.arg(1)?, "scores")?);
    let (&[batches, count, 4], &[b, classes, n]) = (&boxes.shape[..], &scores.shape[..]) else {
        return Err("needs boxes [B, N, 4] and scores [B, C, N]".into());
    };
    if b != batches || n != count {
        return Err(format!("boxes {:?} and scores {:?}", boxes.shape, scores.shape));
    }
    let number = |at: usize, what: &str| c.opt(at).map(|v| i.b.known_number(v, what)).transpose();
    let most = number(2, "max_output_boxes_per_class")?.unwrap_or(0.0).clamp(0.0, 1e9) as usize;
    let limit = number(3, "iou_threshold")?.unwrap_or(0.0);
    let least = number(4, "score_threshold")?;
    let pairs = [batches, classes, count, most.min(count)].iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    if pairs.is_none_or(|n| n > MAX_PAIRS) {
        return Err(format!("{batches} × {classes} × {count} boxes are too many to compare"));
    }
    let center = c.flag("center_point_box")?;
    let (boxes, scores) = (floats(&boxes)?, floats(&scores)?);
    let boxes: Vec<[f64; 4]> = boxes.chunks_exact(4).map(|row| corners(row, center)).collect();
    let mut out = Vec::new();
    for batch in 0..batches {
        let boxes = &boxes[batch * count..][..count];
        for class in 0..classes {
            let scores = &scores[(batch * classes + class) * count..][..count];
            let mut order: Vec<usize> = (0..count).filter(|n| least.is_none_or(|l| scores[*n] > l)).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let mut kept: Vec<usize> = Vec::new();
            for n in order {
                if kept.len() == most {
                    break;
                }
                if kept.iter().all(|k| overlap(&boxes[*k], &boxes[n]) <= limit) {
                    kept.push(n);
                    out.extend([batch as i64, class as i64, n as i64]);
                }
            }
        }
    }
    Ok(Tensor { dtype: DType::I64, shape: vec![out.len() / 3, 3], data: Data::I64(out) }.into())
}
