//! Activations in the layouts that the two kernels read, with the RMS norm fused in front.

use super::super::DotArgs;
use super::super::elementwise::Norm;
use super::lanes::{peak, rms_factor, round};
use crate::cpu::pack::BLOCK;
use dlx_ir::quant::int8_scale;

/// What the integer kernel needs beside the int8 values; weights that agree on it share one quantized activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct IntAct {
    /// Weight groups per block of 128.
    pub(in super::super) groups: usize,
    /// Zero point of the codes (the correction is `-zero · Σ activations`), or `None` for formats with a minimum
    /// (which get `Σ activations` as a float).
    pub(in super::super) zero: Option<i32>,
}

/// `x` is `[rows, k]`; `out` is the tile: `ceil(k / 128)` blocks.
#[inline(always)]
pub(super) fn quantize_tile(x: &[f32], rows: usize, norm: Option<Norm<'_>>, spec: IntAct, out: &mut [u32]) {
    let k = x.len() / rows;
    let block_words = rows * DotArgs::act_words(spec.groups);
    for (r, x) in x.chunks_exact(k).enumerate() {
        let factor = norm.map_or(1.0, |n| rms_factor(x, n.eps));
        for (b, out) in out.chunks_exact_mut(block_words).enumerate() {
            let first = b * BLOCK;
            let len = (k - first).min(BLOCK);
            let mut y = [0f32; BLOCK];
            y[..len].copy_from_slice(&x[first..first + len]);
            if let Some(n) = norm {
                for (y, w) in y[..len].iter_mut().zip(&n.weight[first..first + len]) {
                    *y = w * (*y * factor);
                }
            }
            let (scale, inverse) = int8_scale(peak(&y));
            let mut q = [0u8; BLOCK];
            for (q, y) in q.iter_mut().zip(&y) {
                *q = round(y * inverse) as u8;
            }
            let (quads, rest) = out.split_at_mut(BLOCK / 4 * rows);
            for (to, quad) in quads[r..].iter_mut().step_by(rows).zip(q.as_chunks::<4>().0) {
                *to = u32::from_le_bytes(*quad);
            }
            let (corrections, scales) = rest.split_at_mut(spec.groups * rows);
            let mut sums = [0i32; BLOCK / 32];
            for (sum, group) in sums.iter_mut().zip(q.as_chunks::<32>().0) {
                for q in group {
                    *sum += i32::from(*q as i8);
                }
            }
            for (to, group) in
                corrections[r..].iter_mut().step_by(rows).zip(sums.chunks_exact(sums.len() / spec.groups))
            {
                let sum: i32 = group.iter().sum();
                *to = match spec.zero {
                    Some(zero) => (-zero * sum) as u32,
                    None => (sum as f32).to_bits(),
                };
            }
            scales[r] = scale.to_bits();
        }
    }
}

/// `x` is `[rows, k]`; `out` is `[k][rows]`.
#[inline(always)]
pub(super) fn interleave_tile(x: &[f32], rows: usize, norm: Option<Norm<'_>>, out: &mut [u32]) {
    let k = x.len() / rows;
    for (r, x) in x.chunks_exact(k).enumerate() {
        let out = out[r..].iter_mut().step_by(rows);
        if let Some(n) = norm {
            let factor = rms_factor(x, n.eps);
            for ((to, x), w) in out.zip(x).zip(n.weight) {
                *to = (w * (x * factor)).to_bits();
            }
        } else {
            for (to, x) in out.zip(x) {
                *to = x.to_bits();
            }
        }
    }
}
