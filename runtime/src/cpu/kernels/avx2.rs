//! The two kernels for AVX2 with FMA and F16C.
//!
//! Invariant: a tile is worked off as two halves of eight columns, four rows at a time, so that accumulators stay in the
//! sixteen registers. Codes are at most 15 when they meet `vpmaddubsw` (8-bit codes are split into nibbles), so 32
//! products of a lane fit its 16 bits: 8 · 2 · 15 · 127 < 2¹⁵.

use super::{DotArgs, FloatKind, FmaArgs, KEY_BLOCK};
use crate::cpu::pack::BLOCK;
use std::arch::x86_64::*;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 4;

/// Integer kernel; see [`DotArgs`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dot(p: &DotArgs) {
    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
    unsafe {
        match p.rows {
            1 => dot_rows::<1>(p),
            2 => dot_rows::<2>(p),
            3 => dot_rows::<3>(p),
            _ => dot_rows::<MAX_ROWS>(p),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_rows<const R: usize>(p: &DotArgs) {
    for half in 0..2 {
        // SAFETY: as `dot`; a half is columns `8 * half..8 * half + 8` of each vector of 16.
        unsafe {
            match (p.nibbles, p.min) {
                (true, false) => dot_half::<R, true, false>(p, half),
                (true, true) => dot_half::<R, true, true>(p, half),
                (false, false) => dot_half::<R, false, false>(p, half),
                (false, true) => dot_half::<R, false, true>(p, half),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_half<const R: usize, const NIBBLES: bool, const MIN: bool>(p: &DotArgs, half: usize) {
    // SAFETY: the streams advance by exactly the extents that `DotArgs` documents; `p.rows == R` and `half < 2`.
    unsafe {
        let low = _mm256_set1_epi8(15);
        let ones = _mm256_set1_epi16(1);
        let (mut weights, mut act) = (p.weights, p.act);
        for _ in 0..p.blocks {
            let mut block = [_mm256_setzero_ps(); R];
            let mut correction = act.add(BLOCK / 4 * R);
            let act_scale = correction.add(p.groups * R);
            let mut codes = weights.add(32 * half);
            let mut scales = weights.add(BLOCK * 16 / if NIBBLES { 2 } else { 1 });
            let mut mins = scales.add(p.groups * 32);
            for _ in 0..p.groups {
                let mut sum = [_mm256_setzero_si256(); R];
                if !MIN {
                    for r in 0..R {
                        sum[r] = _mm256_set1_epi32(*correction.add(r) as i32);
                    }
                }
                for _ in 0..4 / p.groups {
                    let mut lo = [_mm256_setzero_si256(); R];
                    let mut hi = [_mm256_setzero_si256(); R];
                    for _ in 0..if NIBBLES { 4 } else { 8 } {
                        let w = _mm256_loadu_si256(codes.cast());
                        codes = codes.add(64);
                        let first = _mm256_and_si256(w, low);
                        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                        // Nibbles of a 4-bit vector meet different activations; those of 8-bit codes meet the same ones.
                        let next = if NIBBLES { R } else { 0 };
                        for r in 0..R {
                            let a = _mm256_set1_epi32(*act.add(r) as i32);
                            lo[r] = _mm256_add_epi16(lo[r], _mm256_maddubs_epi16(first, a));
                            let a = _mm256_set1_epi32(*act.add(next + r) as i32);
                            let product = _mm256_maddubs_epi16(second, a);
                            if NIBBLES {
                                lo[r] = _mm256_add_epi16(lo[r], product);
                            } else {
                                hi[r] = _mm256_add_epi16(hi[r], product);
                            }
                        }
                        act = act.add(R + next);
                    }
                    for r in 0..R {
                        sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(lo[r], ones));
                        if !NIBBLES {
                            let high = _mm256_slli_epi32::<4>(_mm256_madd_epi16(hi[r], ones));
                            sum[r] = _mm256_add_epi32(sum[r], high);
                        }
                    }
                }
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.add(16 * half).cast()));
                scales = scales.add(32);
                for r in 0..R {
                    block[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r]), scale, block[r]);
                }
                if MIN {
                    let min = _mm256_cvtph_ps(_mm_loadu_si128(mins.add(16 * half).cast()));
                    mins = mins.add(32);
                    for r in 0..R {
                        block[r] = _mm256_fmadd_ps(_mm256_set1_ps(f32::from_bits(*correction.add(r))), min, block[r]);
                    }
                }
                correction = correction.add(R);
            }
            for r in 0..R {
                let total = p.total.add(16 * r + 8 * half);
                let a = _mm256_set1_ps(f32::from_bits(*act_scale.add(r)));
                _mm256_storeu_ps(total, _mm256_fmadd_ps(block[r], a, _mm256_loadu_ps(total)));
            }
            act = act_scale.add(R);
            weights = if MIN { mins } else { scales };
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
