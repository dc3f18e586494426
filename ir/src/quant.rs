//! Group quantization: which codes and scales stand for a row of weights.
//!
//! Codes are stored unsigned: `w = scale · (code − zero) + min`, with `zero` 8 or 128 for symmetric formats (`min` is 0
//! there). Codes of `l16` are places in the table of its codebooks, `w = scale · TABLE[code]` ([`codebook`]). Scales and minima
//! are f16. Scales are chosen to minimise the squared error: a few candidate ranges around the largest magnitude, each with
//! the least-squares scale for its codes (as llama.cpp's `make_qx_quants` does).
//!
//! The bodies are `#[inline(always)]` so that a caller may compile them for a wider instruction set; results do not
//! depend on it.

pub mod codebook;

use crate::types::{Grid, QuantFormat};
use half::f16;

/// The zero point of a format's stored codes; of `l16`, that of the table's numbers as kernels have them, moved to bytes
/// without a sign.
pub fn zero_point(format: QuantFormat) -> u8 {
    match (format.grid, format.bits) {
        (Grid::Affine, _) => 0,
        (Grid::Symmetric, 4) => 8,
        (Grid::Symmetric | Grid::Table, _) => 128,
    }
}

/// How many codes a format has, as they are stored one to a byte: of `l16` a code is a place in the table of all codebooks.
pub fn code_count(format: QuantFormat) -> usize {
    if format.grid == Grid::Table { codebook::TABLE.len() } else { 1 << format.bits }
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
        let wide = |x: &[f16]| x.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
        let mut out = vec![0.0; self.codes.len()];
        dequantize_row(format, &self.codes, &wide(&self.scales), &wide(&self.mins), &mut out);
        out
    }
}

/// The weights that the codes of a row stand for. There is a scale per group, and a minimum per group of formats that have
/// them; other minima are not read.
pub fn dequantize_row(format: QuantFormat, codes: &[u8], scales: &[f32], mins: &[f32], out: &mut [f32]) {
    let (len, zero) = (format.group_len(codes.len()), f32::from(zero_point(format)));
    for (g, (out, codes)) in out.chunks_mut(len).zip(codes.chunks(len)).enumerate() {
        let min = if format.has_min() { mins[g] } else { 0.0 };
        let number = |c| if format.grid == Grid::Table { f32::from(codebook::number(c)) } else { f32::from(c) - zero };
        out.iter_mut().zip(codes).for_each(|(v, &c)| *v = scales[g].mul_add(number(c), min));
    }
}

/// Quantizes one row into `out`, whose buffers have the right lengths. False when a scale or minimum does not fit f16.
#[inline(always)]
pub fn quantize_row(format: QuantFormat, row: &[f32], out: &mut QuantizedRow) -> bool {
    if format.grid == Grid::Table {
        return codebook::quantize_row(row, out, codebook::levels);
    }
    let len = format.group_len(row.len());
    if !format.has_min() && len <= MAX_SHORT {
        return short_symmetric(format, len, row, out);
    }
    let mut fits = true;
    for (g, group) in row.chunks(len).enumerate() {
        let codes = &mut out.codes[g * len..g * len + group.len()];
        let (scale, min) =
            if format.has_min() { affine(format, group, codes) } else { symmetric(format, group, codes) };
        fits &= scale.is_finite() && min.is_finite();
        (out.scales[g], out.mins[g]) = (scale, min);
    }
    fits
}

/// Peaks below this count as zero: the reciprocal of the scale would overflow.
const TINY: f32 = 1e-30;

/// Scale of signed 8-bit codes for numbers up to `peak` in magnitude, and its inverse: how activations and int8 caches
/// are quantized while the model runs. A code is the nearest integer (ties to even) of the number times the inverse.
#[inline(always)]
pub fn int8_scale(peak: f32) -> (f32, f32) {
    if peak < TINY { (0.0, 0.0) } else { (peak / 127.0, 127.0 / peak) }
}

/// What groups of `len` numbers are after a way through int8 with [`int8_scale`].
pub fn int8_rounded(x: &[f32], len: usize) -> Vec<f32> {
    let round = |group: &[f32]| {
        let (scale, inverse) = int8_scale(group.iter().fold(0.0, |m, v| v.abs().max(m)));
        group.iter().map(|v| (v * inverse).round_ties_even() * scale).collect::<Vec<_>>()
    };
    x.chunks(len.max(1)).flat_map(round).collect()
}

/// Candidate ranges tried around the full one, in steps of 1/80 (4 bits) of it.
const CANDIDATES: i32 = 5;

/// Lanes of partial sums; fixed, so that every instruction set adds in the same order.
const LANES: usize = 16;

/// Longest group that is worked on together with its neighbours.
const MAX_SHORT: usize = 128;

/// [`symmetric`] for sixteen short groups at a time, one per lane, so that no sum runs across lanes.
#[inline(always)]
fn short_symmetric(format: QuantFormat, len: usize, row: &[f32], out: &mut QuantizedRow) -> bool {
    let (low, high) = code_range(format);
    let zero = f32::from(zero_point(format));
    let mut fits = true;
    let mut columns = [[0.0f32; LANES]; MAX_SHORT];
    for (part, x) in row.chunks(len * LANES).enumerate() {
        let groups = x.len().div_ceil(len);
        if x.len() < len * LANES {
            columns = [[0.0; LANES]; MAX_SHORT];
        }
        for (lane, group) in x.chunks(len).enumerate() {
            group.iter().zip(&mut columns).for_each(|(&v, column)| column[lane] = v);
        }
        let columns = &columns[..len];
        let (mut max, mut min) = ([f32::MIN; LANES], [f32::MAX; LANES]);
        for column in columns {
            for i in 0..LANES {
                max[i] = if column[i] > max[i] { column[i] } else { max[i] };
                min[i] = if column[i] < min[i] { column[i] } else { min[i] };
            }
        }
        let mut peak = [0.0f32; LANES];
        for i in 0..LANES {
            peak[i] = if max[i] >= -min[i] { max[i] } else { min[i] };
        }
        let (mut best, mut scale) = ([0.0f32; LANES], [0.0f32; LANES]);
        for candidate in -CANDIDATES..=CANDIDATES {
            let range = candidate_range(format, candidate);
            let mut inverse = [0.0f32; LANES];
            for i in 0..LANES {
                inverse[i] = if peak[i] == 0.0 { 0.0 } else { range / peak[i] };
            }
            let (mut xq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
            for column in columns {
                for i in 0..LANES {
                    let q = (column[i] * inverse[i]).round_ties_even().clamp(low, high);
                    xq[i] = column[i].mul_add(q, xq[i]);
                    qq[i] = q.mul_add(q, qq[i]);
                }
            }
            for i in 0..LANES {
                // The least-squares scale is xq/qq and removes xq²/qq of the squared error.
                let gain = if qq[i] > 0.0 { xq[i] * xq[i] / qq[i] } else { 0.0 };
                let better = gain > best[i];
                scale[i] = if better { xq[i] / qq[i] } else { scale[i] };
                best[i] = if better { gain } else { best[i] };
            }
        }
        for (lane, group) in x.chunks(len).enumerate() {
            let exact = if peak[lane].is_finite() { scale[lane] } else { f32::INFINITY };
            let scale = f16::from_f32(exact);
            fits &= scale.is_finite();
            let g = part * LANES + lane;
            out.scales[g] = scale;
            let inverse = inverse_of(scale);
            for (c, &v) in out.codes[g * len..].iter_mut().zip(group) {
                *c = ((v * inverse).round_ties_even().clamp(low, high) + zero) as u8;
            }
        }
        debug_assert!(part * LANES + groups <= out.scales.len(), "one scale per group");
    }
    fits
}

#[inline(always)]
fn code_range(format: QuantFormat) -> (f32, f32) {
    if format.bits == 4 { (-8.0, 7.0) } else { (-127.0, 127.0) }
}

/// Code that the largest magnitude is mapped to, before clamping.
#[inline(always)]
fn candidate_range(format: QuantFormat, candidate: i32) -> f32 {
    let low = code_range(format).0;
    if format.bits == 4 { low + 0.1 * candidate as f32 } else { low + 0.4 * (candidate - CANDIDATES) as f32 }
}

#[inline(always)]
fn inverse_of(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

#[inline(always)]
fn symmetric(format: QuantFormat, x: &[f32], codes: &mut [u8]) -> (f16, f16) {
    let (low, high) = code_range(format);
    let (max, min) = extremes(x);
    // The largest magnitude takes the longer side of the code range.
    let peak = if max >= -min { max } else { min };
    if peak == 0.0 || !peak.is_finite() {
        codes.fill(zero_point(format));
        return (if peak == 0.0 { f16::ZERO } else { f16::INFINITY }, f16::ZERO);
    }
    let (mut best, mut best_scale) = (-1.0f32, 0.0f32);
    for candidate in -CANDIDATES..=CANDIDATES {
        let range = candidate_range(format, candidate);
        let inverse = range / peak;
        let (xq, qq) = products(x, |v| (v * inverse).round_ties_even().clamp(low, high));
        // The least-squares scale is xq/qq and removes xq²/qq of the squared error.
        if qq > 0.0 && xq * xq > best * qq {
            (best, best_scale) = (xq * xq / qq, xq / qq);
        }
    }
    let scale = f16::from_f32(best_scale);
    let inverse = inverse_of(scale);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(n: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|i| (0..4).map(|_| uniform()).sum::<f32>() * if i % 97 == 0 { 3.0 } else { 1.0 }).collect()
    }

    fn squared_error(format: QuantFormat, x: &[f32], q: &QuantizedRow) -> f64 {
        q.dequantize(format).iter().zip(x).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    /// Scales from the largest magnitude alone.
    fn plain_error(format: QuantFormat, x: &[f32]) -> f64 {
        let top = if format.bits == 4 { 7.0 } else { 127.0 };
        let groups = x.chunks(format.group_len(x.len()));
        let error = |group: &[f32]| {
            let scale = group.iter().fold(0.0f32, |m, v| m.max(v.abs())) / top;
            let off = |v: f32| f64::from((v / scale).round_ties_even() * scale - v).powi(2);
            group.iter().map(|&v| if scale == 0.0 { 0.0 } else { off(v) }).sum::<f64>()
        };
        groups.map(error).sum()
    }

    #[test]
    fn scales_beat_the_largest_magnitude() {
        for format in ["q4g32", "q4g64", "q4g128", "q4g32m", "q4g128m", "q8", "q8g32", "q8g64m", "l16"] {
            let format: QuantFormat = format.parse().unwrap();
            for k in [1, 31, 32, 100, 500, 2048] {
                let x = weights(k);
                let mut q = QuantizedRow::zeroed(format, k);
                assert!(quantize_row(format, &x, &mut q), "{format} {k}");
                let (ours, plain) = (squared_error(format, &x, &q), plain_error(format, &x));
                let norm: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
                // Rounding the scale to f16 may cost a little where the plain scale was exact by luck.
                assert!(ours <= plain * 1.001 + norm * 1e-6, "{format} {k}: {ours} against {plain}");
            }
        }
    }

    #[test]
    fn zeros_extremes_and_what_does_not_fit() {
        for format in ["q4g32", "q4g32m", "q8", "q8m", "l16"] {
            let format: QuantFormat = format.parse().unwrap();
            let quantize = |x: &[f32]| {
                let mut q = QuantizedRow::zeroed(format, x.len());
                quantize_row(format, x, &mut q).then(|| q.dequantize(format))
            };
            assert_eq!(quantize(&[0.0; 40]), Some(vec![0.0; 40]), "{format}");
            assert_eq!(quantize(&[1e30; 40]), None, "{format}");
            assert_eq!(quantize(&[f32::INFINITY; 3]), None, "{format}");
            let tiny = quantize(&[1e-20; 33]).unwrap();
            assert!(tiny.iter().all(|v| v.abs() < 1e-6), "{format}");
        }
    }

    #[test]
    fn short_groups_are_independent_of_their_neighbours() {
        let format: QuantFormat = "q4g32".parse().unwrap();
        let x = weights(32 * 40 + 5);
        let mut all = QuantizedRow::zeroed(format, x.len());
        assert!(quantize_row(format, &x, &mut all));
        for (g, group) in x.chunks(32).enumerate() {
            let mut one = QuantizedRow::zeroed(format, group.len());
            assert!(quantize_row(format, group, &mut one));
            assert_eq!(all.codes[g * 32..][..group.len()], one.codes[..]);
            assert_eq!(all.scales[g], one.scales[0]);
        }
    }
}
