//! Element-wise ops, RMS norm and rotary embedding.

use super::super::elementwise::Norm;
use super::lanes::{rms_factor, silu as silu_of};

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
