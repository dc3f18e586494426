//! Element-wise ops, RMS norm, rotary embedding and the KV cache writer.

use super::super::elementwise::Norm;
use super::lanes::{LANES, rms_factor, silu as silu_of, to_f16};

#[inline(always)]
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
pub(super) fn mul(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

#[inline(always)]
pub(super) fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
pub(super) fn silu(x: &mut [f32]) {
    for x in x {
        *x = silu_of(*x);
    }
}

#[inline(always)]
pub(super) fn silu_mul(x: &mut [f32], up: &[f32]) {
    for (x, up) in x.iter_mut().zip(up) {
        *x = silu_of(*x) * up;
    }
}

#[inline(always)]
pub(super) fn rms_norm(x: &mut [f32], norm: Norm<'_>) {
    for chunk in x.chunks_exact_mut(norm.weight.len()) {
        let factor = rms_factor(chunk, norm.eps);
        for (x, w) in chunk.iter_mut().zip(norm.weight) {
            *x = w * (*x * factor);
        }
    }
}

#[inline(always)]
pub(super) fn rope(x: &mut [f32], table: &[f32]) {
    let (cos, sin) = table.split_at(table.len() / 2);
    for head in x.chunks_exact_mut(table.len()) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let (x, y) = (*a, *b);
            *a = x.mul_add(*c, -(y * s));
            *b = y.mul_add(*c, x * s);
        }
    }
}

/// `k` and `v` start at this head's first row and have `stride` floats between rows; `keys` and `values` are the head's
/// own states.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "operands of a kernel")]
pub(super) fn kv_write(
    k: &[f32],
    v: &[f32],
    stride: usize,
    head_dim: usize,
    at: usize,
    half: bool,
    keys: &mut [u8],
    values: &mut [u8],
) {
    let padded = head_dim.next_multiple_of(LANES);
    for (i, (k, v)) in k.chunks(stride).zip(v.chunks(stride)).enumerate() {
        let row = at + i;
        let (k, v) = (&k[..head_dim], &v[..head_dim]);
        let key = row / LANES * LANES * head_dim + row % LANES;
        if half {
            let keys = &mut keys.as_chunks_mut::<2>().0[key..];
            for (to, x) in keys.iter_mut().step_by(LANES).zip(k) {
                *to = to_f16(*x).to_le_bytes();
            }
            let values = &mut values.as_chunks_mut::<2>().0[row * padded..][..padded];
            for (to, x) in values.iter_mut().zip(v) {
                *to = to_f16(*x).to_le_bytes();
            }
            values[head_dim..].fill([0; 2]);
        } else {
            let keys = &mut keys.as_chunks_mut::<4>().0[key..];
            for (to, x) in keys.iter_mut().step_by(LANES).zip(k) {
                *to = x.to_le_bytes();
            }
            let values = &mut values.as_chunks_mut::<4>().0[row * padded..][..padded];
            for (to, x) in values.iter_mut().zip(v) {
                *to = x.to_le_bytes();
            }
            values[head_dim..].fill([0; 4]);
        }
    }
}
