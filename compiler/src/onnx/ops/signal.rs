//! Fourier transforms as products with constant matrices, and the windows that go with them.

use dlx_ir::{DType, Data, Op, Tensor};

use super::super::call::{Call, axis};
use super::super::import::Importer;
use super::super::value::{Val, cast};
use super::window::{bounded, picked, table};
use super::{Row, one};

const SIGNAL: &[Row] = &[
    ("", "BlackmanWindow", |i, c, _| one(window(i, c, [0.42, 0.5, 0.08]))),
    ("", "DFT", |i, c, _| one(dft(i, c))),
    ("", "HammingWindow", |i, c, _| one(window(i, c, [25.0 / 46.0, 21.0 / 46.0, 0.0]))),
    ("", "HannWindow", |i, c, _| one(window(i, c, [0.5, 0.5, 0.0]))),
    ("", "MelWeightMatrix", |i, c, _| one(mel(i, c))),
    ("", "STFT", |i, c, _| one(stft(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[SIGNAL];

/// Most elements of a constant that is made here.
const MAX_TABLE: usize = 1 << 22;

/// A known whole number in a range.
fn count(i: &Importer<'_>, v: &Val, what: &str) -> Result<usize, String> {
    let list = i.b.known_ints(v, what)?;
    let n = list.first().and_then(|n| usize::try_from(*n).ok()).filter(|n| (1..=MAX_TABLE).contains(n));
    n.ok_or_else(|| format!("`{what}` is {list:?}"))
}

/// `a − b cos(2πn / N) + c cos(4πn / N)`.
fn window(i: &mut Importer<'_>, c: &Call<'_>, [a, b, d]: [f64; 3]) -> Result<Val, String> {
    let size = match i.declared(c, c.opt(0), 0).as_deref() {
        Some([size]) => *size,
        _ => count(i, c.arg(0)?, "size")?,
    };
    let whole = if c.int_or("periodic", 1)? != 0 { size } else { size - 1 };
    let step = std::f64::consts::TAU / whole.max(1) as f64;
    let f = |n: usize| a - b * libm::cos(step * n as f64) + d * libm::cos(2.0 * step * n as f64);
    let t = Tensor { dtype: DType::F64, shape: vec![size], data: Data::F64((0..size).map(f).collect()) };
    Ok(cast(&t, c.elem("output_datatype")?.unwrap_or(DType::F32))?.into())
}

/// A transform of `n` points.
struct Transform {
    /// Points of the operand; beyond them, they count as zeros.
    points: usize,
    n: usize,
    inverse: bool,
    /// Half of the result, or half of the operand of the inverse, which the other half mirrors.
    half: bool,
}

impl Transform {
    /// Real and imaginary parts of the matrix `[K, outputs]`, K the points that count.
    fn matrices(&self) -> Result<(usize, usize, [Vec<f64>; 2]), String> {
        let n = self.n;
        let inputs = self.points.min(if self.inverse && self.half { n / 2 + 1 } else { n });
        let outputs = if self.half && !self.inverse { n / 2 + 1 } else { n };
        if inputs.checked_mul(outputs).is_none_or(|m| m > MAX_TABLE) || inputs == 0 {
            return Err(format!("a transform of {n} points takes too large a matrix"));
        }
        let mut parts = [Vec::with_capacity(inputs * outputs), Vec::with_capacity(inputs * outputs)];
        for k in 0..inputs {
            // The mirrored half counts by its conjugate, so all but the ends count twice.
            let twice = self.inverse && self.half && k != 0 && 2 * k != n;
            let by = if self.inverse { 1.0 / n as f64 } else { 1.0 } * if twice { 2.0 } else { 1.0 };
            for o in 0..outputs {
                let angle = std::f64::consts::TAU * ((k * o) % n) as f64 / n as f64;
                parts[0].push(by * libm::cos(angle));
                parts[1].push(by * libm::sin(if self.inverse { angle } else { -angle }));
            }
        }
        Ok((inputs, outputs, parts))
    }

    /// The transform of x `[…, points, 1 or 2]`: `[…, outputs, 2]`, or 1 for the half inverse.
    fn apply(&self, i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
        let mut shape = i.b.shape(x)?;
        let (dtype, rank) = (i.b.dtype(x)?, shape.len());
        let (inputs, outputs, [cos, sin]) = self.matrices()?;
        let x = i.b.slice(x, rank - 2, 0, inputs)?;
        let complex = shape[rank - 1] == 2;
        let real = self.inverse && self.half;
        // A row of the matrix for each part of each point, a column for each part of each output.
        let (rows, columns) = (if complex { 2 } else { 1 }, if real { 1 } else { 2 });
        let mut data = Vec::with_capacity(inputs * rows * outputs * columns);
        for k in 0..inputs {
            for part in 0..rows {
                for o in 0..outputs {
                    let (cos, sin) = (cos[k * outputs + o], sin[k * outputs + o]);
                    let pair = if part == 0 { [cos, sin] } else { [-sin, cos] };
                    data.extend_from_slice(&pair[..columns]);
                }
            }
        }
        let m = Tensor { dtype: DType::F64, shape: vec![inputs * rows, outputs * columns], data: Data::F64(data) };
        let m: Val = cast(&m, dtype)?.into();
        shape.truncate(rank - 2);
        let flat: Vec<usize> = shape.iter().copied().chain([inputs * rows]).collect();
        let x = i.b.reshape(&x, &flat)?;
        let y = if dtype == DType::F64 || flat.len() < 2 {
            let x = if flat.len() < 2 { i.b.reshape(&x, &[1, flat[0]])? } else { x };
            i.b.op1(Op::Matmul {}, &[&x, &m])?
        } else {
            super::product::matmul(i, &x, &m)?
        };
        shape.extend([outputs, columns]);
        i.b.reshape(&y, &shape)
    }
}

/// The axis is an attribute before version 20, an operand since.
fn dft(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let rank = shape.len();
    if rank < 2 || !matches!(shape[rank - 1], 1 | 2) {
        return Err(format!("needs real or complex numbers in the last dimension of {shape:?}"));
    }
    let given = if c.opset() < 20 {
        c.int_or("axis", 1)?
    } else {
        let list = c.opt(2).map(|v| i.b.known_ints(v, "axis")).transpose()?;
        list.and_then(|l| l.first().copied()).unwrap_or(-2)
    };
    let at = axis(given, rank)?;
    if at + 1 == rank {
        return Err("the last dimension holds the parts of numbers and cannot be transformed".into());
    }
    let (inverse, half) = (c.flag("inverse")?, c.flag("onesided")?);
    let n = match c.opt(1) {
        Some(v) => count(i, v, "dft_length")?,
        None if inverse && half => 2 * shape[at].saturating_sub(1),
        None => shape[at],
    };
    let transform = Transform { points: shape[at], n: n.max(1), inverse, half };
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(at, rank - 2);
    let x = i.b.transpose(x, &perm)?;
    let y = transform.apply(i, &x)?;
    i.b.transpose(&y, &perm)
}

/// Transforms of windows of a signal `[B, T, 1 or 2]`: `[B, frames, points, 2]`.
fn stft(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = match i.b.shape(x)?[..] {
        [b, t] => [b, t, 1],
        [b, t, parts @ (1 | 2)] => [b, t, parts],
        ref other => return Err(format!("needs a signal [B, T, 1 or 2], not {other:?}")),
    };
    let step = count(i, c.arg(1)?, "frame_step")?;
    let n = match (c.opt(3), c.opt(2)) {
        (Some(v), _) => count(i, v, "frame_length")?,
        (None, Some(w)) => i.b.elements(w)?,
        (None, None) => shape[1],
    };
    if n > shape[1] || n == 0 {
        return Err(format!("frames of {n} of {} samples", shape[1]));
    }
    let frames = (shape[1] - n) / step + 1;
    bounded(&[shape[0], frames, n, shape[2]])?;
    let pick = table(frames as i64, n as i64, |f, k| Some(f * step as i64 + k))?;
    let x = i.b.reshape(x, &shape)?;
    let zero = i.b.like(&x, 0.0)?;
    let x = picked(i, &x, 1, &pick, &zero)?;
    let mut x = i.b.reshape(&x, &[shape[0], frames, n, shape[2]])?;
    if let Some(w) = c.opt(2) {
        if i.b.elements(w)? != n {
            return Err(format!("a window of {} for frames of {n}", i.b.elements(w)?));
        }
        let w = i.b.reshape(w, &[n, 1])?;
        x = i.b.mul(&x, &w)?;
    }
    Transform { points: n, n, inverse: false, half: c.int_or("onesided", 1)? != 0 }.apply(i, &x)
}

/// Triangles on the mel scale: a matrix `[bins of the spectrum, mel bins]`.
fn mel(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let bins = count(i, c.arg(0)?, "num_mel_bins")?;
    let length = count(i, c.arg(1)?, "dft_length")?;
    let rate = count(i, c.arg(2)?, "sample_rate")?;
    let low = i.b.known_number(c.arg(3)?, "lower_edge_hertz")?;
    let high = i.b.known_number(c.arg(4)?, "upper_edge_hertz")?;
    let rows = length / 2 + 1;
    if rows.checked_mul(bins).is_none_or(|n| n > MAX_TABLE)
        || !(0.0..=1e9).contains(&low)
        || !(low..=1e9).contains(&high)
    {
        return Err(format!("{rows} × {bins} bins from {low} to {high} Hz"));
    }
    let ten = libm::log(10.0);
    let scale = |hertz: f64| 2595.0 * libm::log1p(hertz / 700.0) / ten;
    let (low, high) = (scale(low), scale(high));
    let step = (high - low) / (bins + 2) as f64;
    let edge = |n: usize| {
        let hertz = 700.0 * libm::expm1((n as f64 * step + low) / 2595.0 * ten);
        ((length + 1) as f64 * hertz / rate as f64).floor() as usize
    };
    let mut data = vec![0.0; rows * bins];
    for bin in 0..bins {
        let (left, center, right) = (edge(bin), edge(bin + 1), edge(bin + 2));
        let mut put = |row: usize, v: f64| {
            let place = data.get_mut(row.saturating_mul(bins).saturating_add(bin)).filter(|_| row < rows);
            place.map(|p| *p = v).ok_or_else(|| format!("a mel bin reaches beyond the {rows} bins of the spectrum"))
        };
        if center == left {
            put(center, 1.0)?;
        } else {
            for row in left..=center.min(rows) {
                put(row, (row - left) as f64 / (center - left) as f64)?;
            }
        }
        for row in center..right.min(rows + 1) {
            put(row, (right - row) as f64 / (right - center) as f64)?;
        }
    }
    let t = Tensor { dtype: DType::F64, shape: vec![rows, bins], data: Data::F64(data) };
    Ok(cast(&t, c.elem("output_datatype")?.unwrap_or(DType::F32))?.into())
}
