//! The KV cache: writing rows, and the scales of int8 rows.
//!
//! One head's keys are `[row / 16][head_dim][16]` floats, its values `[row][head_dim rounded up to 16]`. Int8 caches hold
//! codes with a zero point of 128 in the order in which the integer kernel takes them: of keys four features lie together,
//! `[row / 16][head_dim / 4][16][4]` with head_dim rounded up to 32, of values four rows,
//! `[row / 32][head_dim / 16][32 / 4][16][4]`. Behind them is one f32 scale per row; codes and scale are those of
//! [`int8_scale`]. Features and rows that nobody writes are multiplied by zero.

use super::super::{FloatKind, ROUND, ROUND_BYTES};
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

impl<'a> NewRows<'a> {
    /// The rows and their numbers in the cache.
    #[inline(always)]
    fn rows(self) -> impl Iterator<Item = (usize, &'a [f32])> {
        self.x.chunks(self.stride).enumerate().map(move |(i, x)| (self.at + i, &x[..self.head_dim]))
    }
}

/// `keys` is this head's part of the key state.
#[inline(always)]
pub(super) fn write_keys(new: NewRows<'_>, kind: FloatKind, keys: &mut [u8]) {
    let place = |row: usize| row / LANES * LANES * new.head_dim + row % LANES;
    write(new, kind, keys, place, LANES, new.head_dim);
}

/// `values` is this head's part of the value state.
#[inline(always)]
pub(super) fn write_values(new: NewRows<'_>, kind: FloatKind, values: &mut [u8]) {
    let padded = new.head_dim.next_multiple_of(LANES);
    write(new, kind, values, |row| row * padded, 1, padded);
}

/// As [`write_keys`], in int8.
#[inline(always)]
pub(super) fn write_key_codes(new: NewRows<'_>, keys: &mut [u8]) {
    let width = new.head_dim.next_multiple_of(ROUND);
    let place = |row: usize, d: usize| row / LANES * LANES * width + d / 4 * 64 + row % LANES * 4 + d % 4;
    write_codes(new, keys, width, place);
}

/// As [`write_values`], in int8.
#[inline(always)]
pub(super) fn write_value_codes(new: NewRows<'_>, values: &mut [u8]) {
    let width = new.head_dim.next_multiple_of(LANES);
    let place = |row: usize, d: usize| {
        (row / ROUND * (width / LANES) + d / LANES) * ROUND_BYTES + row % ROUND / 4 * 64 + d % LANES * 4 + row % 4
    };
    write_codes(new, values, width, place);
}

/// Writes the codes of each row to `place(row, feature)`, and its scale behind the codes of a state of `width` bytes per row.
#[inline(always)]
fn write_codes(new: NewRows<'_>, state: &mut [u8], width: usize, place: impl Fn(usize, usize) -> usize) {
    let (codes, scales) = state.split_at_mut(state.len() / (width + SCALE_BYTES) * width);
    for (row, x) in new.rows() {
        let (scale, inverse) = int8_scale(peak(x));
        for (d, x) in x.iter().enumerate() {
            codes[place(row, d)] = round(x * inverse) as u8 ^ 128;
        }
        scales.as_chunks_mut::<SCALE_BYTES>().0[row] = scale.to_le_bytes();
    }
}

/// Writes each row to the elements `place(row)`, `place(row) + step`, …, zeros up to `padded` of them.
#[inline(always)]
fn write(
    new: NewRows<'_>,
    kind: FloatKind,
    state: &mut [u8],
    place: impl Fn(usize) -> usize,
    step: usize,
    padded: usize,
) {
    for (row, x) in new.rows() {
        match kind {
            FloatKind::F32 => put(state, place(row), step, padded, x, f32::to_le_bytes),
            FloatKind::F16 => put(state, place(row), step, padded, x, |x| to_f16(x).to_le_bytes()),
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

/// Multiplies each row of `x` (rows are `stride` apart) by the scales of the keys that its elements are for.
#[inline(always)]
pub(super) fn apply_scales(x: &mut [f32], stride: usize, scales: &[u8]) {
    for row in x.chunks_exact_mut(stride) {
        for (x, scale) in row.iter_mut().zip(scales.as_chunks::<SCALE_BYTES>().0) {
            *x *= f32::from_le_bytes(*scale);
        }
    }
}
