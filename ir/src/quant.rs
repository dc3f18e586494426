//! Group quantization: which codes and scales stand for a row of weights.
//!
//! Codes are stored unsigned: `w = scale · (code − zero) + min`, with `zero` 8 or 128 for symmetric formats (`min` is 0
//! there). Scales and minima are f16. Scales are chosen to minimise the squared error: a few candidate ranges around
//! the largest magnitude, each with the least-squares scale for its codes (as llama.cpp's `make_qx_quants` does).
//!
//! The bodies are `#[inline(always)]` so that a caller may compile them for a wider instruction set; results do not
//! depend on it.

use crate::types::QuantFormat;
use half::f16;

/// The zero point of a format's stored codes.
pub fn zero_point(format: QuantFormat) -> u8 {
    match (format.min, format.bits) {
        (true, _) => 0,
        (false, 4) => 8,
        (false, _) => 128,
    }
}

/// Codes and scales of one row of `k` weights.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct QuantizedRow {
    /// One unsigned code per weight.
    pub codes: Vec<u8>,
    /// One scale per group.
    pub scales: Vec<f16>,
    /// One minimum per group; zeros for symmetric formats.
    pub mins: Vec<f16>,
}

impl QuantizedRow {
    /// A row of zeros to be filled by [`quantize_row`].
    pub fn zeroed(format: QuantFormat, k: usize) -> Self {
        let groups = format.groups(k);
        QuantizedRow { codes: vec![0; k], scales: vec![f16::ZERO; groups], mins: vec![f16::ZERO; groups] }
    }

    /// The weights that the codes stand for.
    pub fn dequantize(&self, format: QuantFormat) -> Vec<f32> {
        let (len, zero) = (format.group_len(self.codes.len()), f32::from(zero_point(format)));
        let weight = |(i, &c): (usize, &u8)| {
            let g = i / len;
            self.scales[g].to_f32().mul_add(f32::from(c) - zero, self.mins[g].to_f32())
        };
        self.codes.iter().enumerate().map(weight).collect()
    }
}

/// Quantizes one row into `out`, whose buffers have the right lengths. False when a scale or minimum does not fit f16.
#[inline(always)]
pub fn quantize_row(format: QuantFormat, row: &[f32], out: &mut QuantizedRow) -> bool {
    let len = format.group_len(row.len());
    let mut fits = true;
    for (g, group) in row.chunks(len).enumerate() {
        let codes = &mut out.codes[g * len..g * len + group.len()];
        let (scale, min) = if format.min { affine(format, group, codes) } else { symmetric(format, group, codes) };
        fits &= scale.is_finite() && min.is_finite();
        (out.scales[g], out.mins[g]) = (scale, min);
    }
    fits
}

/// Candidate ranges tried around the full one, in steps of 1/80 (4 bits) of it.
const CANDIDATES: i32 = 5;

/// Lanes of partial sums; fixed, so that every instruction set adds in the same order.
const LANES: usize = 16;

#[inline(always)]
fn symmetric(format: QuantFormat, x: &[f32], codes: &mut [u8]) -> (f16, f16) {
    let (low, high) = if format.bits == 4 { (-8.0f32, 7.0f32) } else { (-127.0, 127.0) };
    let (max, min) = extremes(x);
    // The largest magnitude takes the longer side of the code range.
    let peak = if max >= -min { max } else { min };
    if peak == 0.0 || !peak.is_finite() {
        codes.fill(zero_point(format));
        return (if peak == 0.0 { f16::ZERO } else { f16::INFINITY }, f16::ZERO);
    }
    let (mut best, mut best_scale) = (-1.0f32, 0.0f32);
    for i in -CANDIDATES..=CANDIDATES {
        let range = if format.bits == 4 { low + 0.1 * i as f32 } else { low + 0.4 * (i - CANDIDATES) as f32 };
        let inverse = range / peak;
        let (xq, qq) = products(x, |v| (v * inverse).round_ties_even().clamp(low, high));
        // The least-squares scale is xq/qq and removes xq²/qq of the squared error.
        if qq > 0.0 && xq * xq > best * qq {
            (best, best_scale) = (xq * xq / qq, xq / qq);
        }
    }
    let scale = f16::from_f32(best_scale);
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let zero = f32::from(zero_point(format));
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = ((v * inverse).round_ties_even().clamp(low, high) + zero) as u8;
    }
    (scale, f16::ZERO)
}

#[inline(always)]
fn affine(format: QuantFormat, x: &[f32], codes: &mut [u8]) -> (f16, f16) {
    let top = if format.bits == 4 { 15.0f32 } else { 255.0 };
    let (max, min) = extremes(x);
    if !(max - min).is_finite() {
        codes.fill(0);
        return (f16::INFINITY, f16::ZERO);
    }
    let n = x.len() as f32;
    let sum: f32 = x.iter().sum();
    let (mut best, mut chosen) = (f32::INFINITY, ((max - min) / top, min));
    for i in 0..=CANDIDATES {
        // Shrink the range a little: clipping the extremes may cost less than a coarser grid.
        let scale = (max - min) * (1.0 - 0.03 * i as f32) / top;
        let base = min + (max - min) * 0.015 * i as f32;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let code = |v: f32| ((v - base) * inverse).round_ties_even().clamp(0.0, top);
        let (xq, qq) = products(x, code);
        let mut q = 0.0f32;
        for &v in x {
            q += code(v);
        }
        // Least squares for both scale and minimum given the codes.
        let det = n * qq - q * q;
        let (s, m) = if det > 0.0 { ((n * xq - sum * q) / det, (sum * qq - q * xq) / det) } else { (scale, base) };
        let (s, m) = (f16::from_f32(s).to_f32(), f16::from_f32(m).to_f32());
        let inverse = if s > 0.0 { 1.0 / s } else { 0.0 };
        let mut error = 0.0f32;
        for &v in x {
            let e = s.mul_add(((v - m) * inverse).round_ties_even().clamp(0.0, top), m) - v;
            error += e * e;
        }
        if error < best {
            (best, chosen) = (error, (s, m));
        }
    }
    let (scale, min) = (f16::from_f32(chosen.0), f16::from_f32(chosen.1));
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    for (c, &v) in codes.iter_mut().zip(x) {
        *c = ((v - min.to_f32()) * inverse).round_ties_even().clamp(0.0, top) as u8;
    }
    (scale, min)
}

#[inline(always)]
fn extremes(x: &[f32]) -> (f32, f32) {
    let (mut max, mut min) = ([f32::MIN; LANES], [f32::MAX; LANES]);
    for chunk in x.chunks(LANES) {
        for (i, &v) in chunk.iter().enumerate() {
            max[i] = if v > max[i] { v } else { max[i] };
            min[i] = if v < min[i] { v } else { min[i] };
        }
    }
    (max.iter().copied().fold(f32::MIN, f32::max), min.iter().copied().fold(f32::MAX, f32::min))
}

/// `(Σ x·q, Σ q·q)` for `q = code(x)`, in fixed lanes.
#[inline(always)]
fn products(x: &[f32], code: impl Fn(f32) -> f32) -> (f32, f32) {
    let (mut xq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let q = code(chunk[i]);
            xq[i] = chunk[i].mul_add(q, xq[i]);
            qq[i] = q.mul_add(q, qq[i]);
        }
    }
    for (i, &v) in rest.iter().enumerate() {
        let q = code(v);
        xq[i] = v.mul_add(q, xq[i]);
        qq[i] = q.mul_add(q, qq[i]);
    }
    (tree(xq), tree(qq))
}

#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}
