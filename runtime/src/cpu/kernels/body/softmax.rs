//! The online softmax of attention, one block of keys at a time.
//!
//! Invariant: a block in which a row may attend no key leaves that row's state unchanged to the bit, so a row's result
//! does not depend on which rows share its tile.

use super::super::KEY_BLOCK;
use super::lanes::{LANES, exp, greater, max as max_of, sum as sum_of};

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
    let width = acc.len() / ends.len();
    for (r, scores) in scores.as_chunks_mut::<KEY_BLOCK>().0.iter_mut().enumerate().take(ends.len()) {
        let end = ends[r];
        let mut peak = [f32::NEG_INFINITY; LANES];
        for (c, chunk) in scores.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for i in 0..LANES {
                let key = c * LANES + i;
                chunk[i] = if key < from || key >= end { f32::NEG_INFINITY } else { chunk[i] };
                peak[i] = greater(peak[i], chunk[i]);
            }
        }
        let new = greater(max[r], max_of(peak));
        if new == f32::NEG_INFINITY {
            scores.fill(0.0);
            continue;
        }
        let shrink = exp(max[r] - new);
        max[r] = new;
        let sum = &mut sum[r * LANES..][..LANES];
        for s in sum.iter_mut() {
            *s *= shrink;
        }
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            for i in 0..LANES {
                chunk[i] = exp(chunk[i] - new);
                sum[i] += chunk[i];
            }
        }
        if shrink != 1.0 {
            for a in &mut acc[r * width..][..width] {
                *a *= shrink;
            }
        }
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
