//! Stored values to f32, and the scan for NaN and infinity.
//!
//! Invariant: conversion is exact; f16 and bf16 are subsets of f32.

use dlx_ir::DType;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Converts little-endian values; `bytes` holds exactly `out.len()` of them.
pub(super) fn to_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (b, o) in bytes.as_chunks().0.iter().zip(out) {
                *o = f32::from_le_bytes(*b);
            }
        }
        DType::BF16 => {
            for (b, o) in bytes.as_chunks().0.iter().zip(out) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        DType::F16 => {
            let mut aligned = [f16::ZERO; 256];
            for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
                for (b, a) in bytes.as_chunks().0.iter().zip(&mut aligned) {
                    *a = f16::from_le_bytes(*b);
                }
                aligned[..out.len()].convert_to_f32_slice(out);
            }
        }
        _ => unreachable!("the shard reader refuses other element types"),
    }
}

/// Position of the first NaN or infinity.
pub fn first_nonfinite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut at = 0;
    for chunk in values.chunks(1024) {
        // Branch-free per value, so that the common case runs at memory speed.
        if chunk.iter().fold(false, |any, v| any | (v.to_bits() & EXPONENT == EXPONENT)) {
            return chunk.iter().position(|v| !v.is_finite()).map(|i| at + i);
        }
        at += chunk.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn all_halves_convert_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        for (dtype, exact) in [
            (DType::F16, &(|b| f16::from_bits(b).to_f32()) as &dyn Fn(u16) -> f32),
            (DType::BF16, &|b| bf16::from_bits(b).to_f32()),
        ] {
            to_f32(dtype, &bytes, &mut out);
            for (bits, got) in (0..=u16::MAX).zip(&out) {
                let want = exact(bits);
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{dtype} {bits:#x}");
            }
        }
        let mut out = [0.0; 2];
        to_f32(DType::F32, &[0, 0, 128, 63, 0, 0, 0, 192], &mut out);
        assert_eq!(out, [1.0, -2.0]);
    }

    #[test]
    fn finds_the_first_value_that_is_not_finite() {
        let mut values = vec![f32::MAX; 5000];
        assert_eq!(first_nonfinite(&values), None);
        assert_eq!(first_nonfinite(&[]), None);
        values[4999] = f32::NEG_INFINITY;
        assert_eq!(first_nonfinite(&values), Some(4999));
        values[1024] = f32::NAN;
        assert_eq!(first_nonfinite(&values), Some(1024));
    }
}
