//! The online softmax of attention, one block of keys at a time.
//!
//! Invariant: a block in which a row may attend no key leaves that row's state unchanged to the bit, so a row's result
//! does not depend on which rows share its tile.

use super::super::KEY_BLOCK;
use super::cache::SCALE_BYTES;
use super::lanes::{LANES, exp, greater, max as max_of, peak as peak_of, round, sum as sum_of};
use dlx_ir::quant::int8_scale;

/// `scores` is `[rows][KEY_BLOCK]` and becomes the weights; row `r` may attend keys `from..ends[r]` of the block.
/// `max[r]`, `sum[r][16]` and `acc[r][..]` are the running maximum, sum of weights and weighted values of row `r`.
#[inline(always)]
pub(super) fn softmax_block(
    scores: &mut [f32],
    from: usize,
    ends: &[usize],
    max: &mut [f32],
    sum: &mut [f32],
    acc: &mut [f32],
) {
    let rows = ends.len();
    let width = acc.len() / rows;
    let scores = &mut scores.as_chunks_mut::<KEY_BLOCK>().0[..rows];
    let (max, sum) = (&mut max[..rows], &mut sum.as_chunks_mut::<LANES>().0[..rows]);
    // Rows of a tile are at most as many as lanes, so what a row has one of is computed for all of them at once.
    let mut shrink = [0f32; LANES];
    for (r, scores) in scores.iter_mut().enumerate() {
        fill_outside(scores, from, ends[r], f32::NEG_INFINITY);
        let mut peak = [f32::NEG_INFINITY; LANES];
        for chunk in scores.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                peak[i] = greater(peak[i], chunk[i]);
            }
        }
        let new = greater(max[r], max_of(peak));
        shrink[r] = max[r] - new;
        max[r] = new;
    }
    for s in &mut shrink {
        *s = exp(*s);
    }
    for (r, scores) in scores.iter_mut().enumerate() {
        let (new, shrink) = (max[r], shrink[r]);
        if new == f32::NEG_INFINITY {
            scores.fill(0.0);
            continue;
        }
        let mut total = sum[r];
        for i in 0..LANES {
            total[i] *= shrink;
        }
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            for i in 0..LANES {
                chunk[i] = exp(chunk[i] - new);
                total[i] += chunk[i];
            }
        }
        sum[r] = total;
        if shrink != 1.0 {
            for a in &mut acc[r * width..][..width] {
                *a *= shrink;
            }
        }
    }
}

/// Puts `nothing` where a row may attend no key of a block.
#[inline(always)]
fn fill_outside(x: &mut [f32; KEY_BLOCK], from: usize, end: usize, nothing: f32) {
    x[..from.min(KEY_BLOCK)].fill(nothing);
    x[end.min(KEY_BLOCK)..].fill(nothing);
}

/// Quantizes the weights of a block, as [`softmax_block`] left them in `scores`, times the scales of the values from the
/// block's first row on: `out` is `[KEY_BLOCK / 4][rows]` quads of codes up to 127, `[rows]` corrections, `[rows]` scales.
///
/// Of a key that a row may not attend nothing is read, and a row has a scale of its own, so its codes do not depend on others.
#[inline(always)]
pub(super) fn quantize_weights(scores: &[f32], from: usize, ends: &[usize], value_scales: &[u8], out: &mut [u32]) {
    let rows = ends.len();
    let mut scales = [0f32; KEY_BLOCK];
    for (to, scale) in scales.iter_mut().zip(value_scales.as_chunks::<SCALE_BYTES>().0) {
        *to = f32::from_le_bytes(*scale);
    }
    let (quads, rest) = out.split_at_mut(KEY_BLOCK / 4 * rows);
    let (corrections, row_scales) = rest.split_at_mut(rows);
    for (r, scores) in scores.as_chunks::<KEY_BLOCK>().0.iter().enumerate().take(rows) {
        let mut weights = [0f32; KEY_BLOCK];
        for key in 0..KEY_BLOCK {
            weights[key] = scores[key] * scales[key];
        }
        fill_outside(&mut weights, from, ends[r], 0.0);
        let (scale, inverse) = int8_scale(peak_of(&weights));
        let mut codes = [0u8; KEY_BLOCK];
        let mut sum = 0;
        for (code, weight) in codes.iter_mut().zip(&weights) {
            let rounded = round(weight * inverse) as u8;
            *code = rounded;
            sum += i32::from(rounded as i8);
        }
        for (to, quad) in quads[r..].iter_mut().step_by(rows).zip(codes.as_chunks::<4>().0) {
            *to = u32::from_le_bytes(*quad);
        }
        corrections[r] = (-128 * sum) as u32;
        row_scales[r] = scale.to_bits();
    }
}

#[inline(always)]
pub(super) fn softmax_finish(sum: &[f32], acc: &mut [f32]) {
    let sums = sum.as_chunks::<LANES>().0;
    let width = acc.len() / sums.len();
    for (sum, acc) in sums.iter().zip(acc.chunks_exact_mut(width)) {
        let total = sum_of(*sum);
        let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
        for a in acc {
            *a *= inverse;
        }
    }
}
