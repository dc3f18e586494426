//! The KV cache: writing rows, and the scales of int8 rows.
//!
//! One head's keys are `[row / 16][head_dim][16]` elements, its values `[row][head_dim rounded up to 16]`. Int8 codes are
//! followed by one f32 scale per row; codes and scale are those of [`int8_scale`].

use super::super::FloatKind;
use super::lanes::{LANES, peak, round, to_f16};
use dlx_ir::quant::int8_scale;

/// Bytes of an int8 row's scale.
pub(in super::super) const SCALE_BYTES: usize = size_of::<f32>();

/// Rows of keys or values of one head, `stride` floats apart, and the cache row of the first.
#[derive(Clone, Copy)]
pub(in super::super) struct NewRows<'a> {
    pub(in super::super) x: &'a [f32],
    pub(in super::super) stride: usize,
    pub(in super::super) head_dim: usize,
    pub(in super::super) at: usize,
}

/// `keys` is this head's part of the key state.
#[inline(always)]
pub(super) fn write_keys(new: NewRows<'_>, kind: FloatKind, keys: &mut [u8]) {
    let place = |row: usize| row / LANES * LANES * new.head_dim + row % LANES;
    write(new, kind, keys, new.head_dim, place, LANES, new.head_dim);
}

/// `values` is this head's part of the value state.
#[inline(always)]
pub(super) fn write_values(new: NewRows<'_>, kind: FloatKind, values: &mut [u8]) {
    let padded = new.head_dim.next_multiple_of(LANES);
    write(new, kind, values, padded, |row| row * padded, 1, padded);
}

/// Writes each row to the elements `place(row)`, `place(row) + step`, …, zeros up to `padded` of them. A state has
/// `width` elements per row.
#[inline(always)]
fn write(
    new: NewRows<'_>,
    kind: FloatKind,
    state: &mut [u8],
    width: usize,
    place: impl Fn(usize) -> usize,
    step: usize,
    padded: usize,
) {
    for (i, x) in new.x.chunks(new.stride).enumerate() {
        let row = new.at + i;
        let (x, at) = (&x[..new.head_dim], place(row));
        match kind {
            FloatKind::F32 => put(state, at, step, padded, x, f32::to_le_bytes),
            FloatKind::F16 => put(state, at, step, padded, x, |x| to_f16(x).to_le_bytes()),
            FloatKind::I8 => {
                let (scale, inverse) = int8_scale(peak(x));
                let (codes, scales) = state.split_at_mut(state.len() / (width + SCALE_BYTES) * width);
                put(codes, at, step, padded, x, |x| [round(x * inverse) as u8]);
                scales.as_chunks_mut::<SCALE_BYTES>().0[row] = scale.to_le_bytes();
            }
            FloatKind::BF16 => unreachable!("caches are not bf16"),
        }
    }
}

#[inline(always)]
fn put<const N: usize>(
    state: &mut [u8],
    at: usize,
    step: usize,
    padded: usize,
    x: &[f32],
    bytes: impl Fn(f32) -> [u8; N],
) {
    let to = &mut state.as_chunks_mut::<N>().0[at..];
    if step == 1 {
        // Consecutive elements are said to be so, or they would not be written as vectors.
        let to = &mut to[..padded];
        for (to, x) in to.iter_mut().zip(x) {
            *to = bytes(*x);
        }
        to[x.len()..].fill([0; N]);
    } else {
        for (to, x) in to.iter_mut().step_by(step).zip(x) {
            *to = bytes(*x);
        }
    }
}

/// Multiplies each row of `x` (rows are `stride` apart) by the scales of the keys or values that its elements are for.
#[inline(always)]
pub(super) fn apply_scales(x: &mut [f32], stride: usize, scales: &[u8]) {
    for row in x.chunks_exact_mut(stride) {
        for (x, scale) in row.iter_mut().zip(scales.as_chunks::<SCALE_BYTES>().0) {
            *x *= f32::from_le_bytes(*scale);
        }
    }
}
