//! The two kernels for AVX2 with FMA and F16C.
//!
//! Invariant: the sums of `vpmaddubsw` fit their 16 bits. 4-bit codes are at most 15, which allows for all of a round,
//! 8 · 2 · 15 · 127 < 2¹⁵; signed 8-bit codes are at most 128 in size, which allows for one, 2 · 128 · 127 < 2¹⁵.
//! An activation of −128, whose sign `vpsignb` cannot change, only occurs where the scale is not a number.

use super::dot256::dot256;
use super::{DotArgs, FloatKind, FmaArgs, KEY_BLOCK};
use crate::cpu::pack::BLOCK;
use std::arch::x86_64::*;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 4;

dot256!("avx2,fma,f16c", 3);

/// A signed code is its size times the activation with its sign.
const MOVED: bool = true;

/// Adds the products of `rounds` times 32 k.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add<const R: usize, const H: usize, const NIBBLES: bool>(
    sum: &mut [[__m256i; H]; R],
    mut codes: *const u8,
    mut act: *const u32,
    rounds: usize,
) {
    // SAFETY: the caller has the codes and the activations of so many k.
    unsafe {
        let (low, middle, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128), _mm256_set1_epi16(1));
        if NIBBLES {
            for _ in 0..rounds {
                let mut words = [[_mm256_setzero_si256(); H]; R];
                for _ in 0..4 {
                    let w = load::<H>(codes);
                    codes = codes.add(64);
                    let first = w.map(|w| _mm256_and_si256(w, low));
                    let second = w.map(|w| _mm256_and_si256(_mm256_srli_epi16::<4>(w), low));
                    for w in [first, second] {
                        for r in 0..R {
                            let a = _mm256_set1_epi32(*act.add(r) as i32);
                            for h in 0..H {
                                words[r][h] = _mm256_add_epi16(words[r][h], _mm256_maddubs_epi16(w[h], a));
                            }
                        }
                        act = act.add(R);
                    }
                }
                for r in 0..R {
                    for h in 0..H {
                        sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(words[r][h], ones));
                    }
                }
            }
        } else {
            for _ in 0..8 * rounds {
                let w = load::<H>(codes).map(|w| _mm256_xor_si256(w, middle));
                let size = w.map(|w| _mm256_abs_epi8(w));
                codes = codes.add(64);
                for r in 0..R {
                    let a = _mm256_set1_epi32(*act.add(r) as i32);
                    for h in 0..H {
                        let words = _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(a, w[h]));
                        sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(words, ones));
                    }
                }
                act = act.add(R);
            }
        }
    }
}

/// Float kernel; see [`FmaArgs`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn fma(p: &FmaArgs) {
    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `FmaArgs`' extents.
    // Few rows take several tiles at once, so that enough independent sums are in flight to hide the latency.
    unsafe {
        match p.rows {
            1 => fma_rows::<1, 4>(p),
            2 => fma_rows::<2, 2>(p),
            3 => fma_rows::<3, 1>(p),
            _ => fma_rows::<MAX_ROWS, 1>(p),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fma_rows<const R: usize, const C: usize>(p: &FmaArgs) {
    // SAFETY: as `fma`; the tiles `0..p.tiles` are visited once each.
    unsafe {
        let mut t = 0;
        while t + C <= p.tiles {
            fma_kind::<R, C>(p, t);
            t += C;
        }
        while t < p.tiles {
            fma_kind::<R, 1>(p, t);
            t += 1;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fma_kind<const R: usize, const C: usize>(p: &FmaArgs, t: usize) {
    // SAFETY: as `fma`.
    unsafe {
        match p.w_kind {
            FloatKind::F32 => fma_tile::<R, C, 0>(p, t),
            FloatKind::F16 => fma_tile::<R, C, 1>(p, t),
            FloatKind::BF16 => fma_tile::<R, C, 2>(p, t),
            FloatKind::I8 => fma_tile::<R, C, 3>(p, t),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fma_tile<const R: usize, const C: usize, const KIND: u8>(p: &FmaArgs, t: usize) {
    // SAFETY: `p.rows == R`, `t + C <= p.tiles`, and every index is below the extents that `FmaArgs` documents.
    unsafe {
        let size = p.w_kind.size();
        let (step, tile) = (p.w_step * size, p.w_tile * size);
        let mut w = p.w.add(t * tile);
        let total = p.total.add(t * p.total_tile);
        let mut sum = [[[_mm256_setzero_ps(); 2]; R]; C];
        for c in 0..C {
            for r in 0..R {
                let from = total.add(c * p.total_tile + r * p.total_row);
                sum[c][r] = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
            }
        }
        let (row, next) = if p.a_row_major { (KEY_BLOCK, 1) } else { (1, R) };
        let mut a = p.a;
        for _ in 0..p.k {
            for c in 0..C {
                let at = w.add(c * tile);
                let v = match KIND {
                    0 => [_mm256_loadu_ps(at.cast()), _mm256_loadu_ps(at.cast::<f32>().add(8))],
                    1 => [
                        _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                        _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast())),
                    ],
                    2 => [widen_bf16(at), widen_bf16(at.add(16))],
                    _ => [widen_i8(at), widen_i8(at.add(8))],
                };
                for r in 0..R {
                    let x = _mm256_set1_ps(*a.add(r * row));
                    sum[c][r] = [_mm256_fmadd_ps(x, v[0], sum[c][r][0]), _mm256_fmadd_ps(x, v[1], sum[c][r][1])];
                }
            }
            w = w.wrapping_add(step);
            a = a.wrapping_add(next);
        }
        for c in 0..C {
            for r in 0..R {
                let to = total.add(c * p.total_tile + r * p.total_row);
                _mm256_storeu_ps(to, sum[c][r][0]);
                _mm256_storeu_ps(to.add(8), sum[c][r][1]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_bf16(at: *const u8) -> __m256 {
    // SAFETY: the caller has eight elements at `at`.
    let bits = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_i8(at: *const u8) -> __m256 {
    // SAFETY: the caller has eight elements at `at`.
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}
