//! The two kernels for AVX-512 with VNNI.
//!
//! Invariant: eight rows keep every accumulator in a register (8 integer + 8 float + weights, scale and mask of 32);
//! activations are memory operands with embedded broadcast. Lanes are output columns, so no reduction crosses lanes.

use super::{DotArgs, FloatKind, FmaArgs, KEY_BLOCK};
use crate::cpu::pack::BLOCK;
use std::arch::x86_64::*;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 8;

/// Bytes ahead of the weight stream that are fetched into L1, per row, where nothing else says what to fetch. One to three
/// rows run at the speed of memory, which the hardware's own prefetch reaches; more rows leave it too little to look ahead on.
const PREFETCH_PER_ROW: usize = 512;
const PREFETCH_MIN_ROWS: usize = 4;
/// Bytes ahead that are fetched into L2 as well when there is much to compute in between.
const PREFETCH_FAR: usize = 16 << 10;

/// Integer kernel; see [`DotArgs`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn dot(p: &DotArgs) {
    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
    unsafe {
        match p.rows {
            1 => dot_rows::<1>(p),
            2 => dot_rows::<2>(p),
            3 => dot_rows::<3>(p),
            4 => dot_rows::<4>(p),
            5 => dot_rows::<5>(p),
            6 => dot_rows::<6>(p),
            7 => dot_rows::<7>(p),
            _ => dot_rows::<MAX_ROWS>(p),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_rows<const R: usize>(p: &DotArgs) {
    // SAFETY: as `dot`.
    unsafe {
        match (p.nibbles, p.min, p.groups) {
            (true, false, 1) => dot_tile::<R, true, false, 1>(p),
            (true, false, 2) => dot_tile::<R, true, false, 2>(p),
            (true, false, 4) => dot_tile::<R, true, false, 4>(p),
            (true, false, _) => dot_tile::<R, true, false, 0>(p),
            (true, true, _) => dot_tile::<R, true, true, 0>(p),
            (false, false, _) => dot_tile::<R, false, false, 0>(p),
            (false, true, _) => dot_tile::<R, false, true, 0>(p),
        }
    }
}

/// With a `GROUPS` of 0 the number of groups is only known when it runs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_tile<const R: usize, const NIBBLES: bool, const MIN: bool, const GROUPS: usize>(p: &DotArgs) {
    let groups = if GROUPS == 0 { p.groups } else { GROUPS };
    // 32 k per round: no more unrolling than the shortest group needs.
    let rounds = 4 / groups;
    // SAFETY: the streams advance by exactly the extents that `DotArgs` documents; `p.rows == R`.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let (mut codes, mut act, mut ahead) = (p.weights, p.act, p.ahead);
        for _ in 0..p.blocks {
            for _ in 0..p.ahead_lines {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(64);
            }
            let mut block = [_mm512_setzero_ps(); R];
            let mut correction = act.add(BLOCK / 4 * R);
            let act_scale = correction.add(groups * R);
            let mut scales = codes.add(BLOCK * 16 / if NIBBLES { 2 } else { 1 });
            let mut mins = scales.add(groups * 32);
            for _ in 0..groups {
                let mut sum = [_mm512_setzero_si512(); R];
                if !MIN {
                    for r in 0..R {
                        sum[r] = _mm512_set1_epi32(*correction.add(r) as i32);
                    }
                }
                for _ in 0..rounds {
                    if NIBBLES {
                        for _ in 0..4 {
                            prefetch::<R>(codes);
                            let w = _mm512_loadu_si512(codes.cast());
                            codes = codes.add(64);
                            let first = _mm512_and_si512(w, low);
                            let second = _mm512_and_si512(_mm512_srli_epi16::<4>(w), low);
                            for r in 0..R {
                                sum[r] = _mm512_dpbusd_epi32(sum[r], first, _mm512_set1_epi32(*act.add(r) as i32));
                            }
                            for r in 0..R {
                                let a = _mm512_set1_epi32(*act.add(R + r) as i32);
                                sum[r] = _mm512_dpbusd_epi32(sum[r], second, a);
                            }
                            act = act.add(2 * R);
                        }
                    } else {
                        for _ in 0..8 {
                            prefetch::<R>(codes);
                            let w = _mm512_loadu_si512(codes.cast());
                            codes = codes.add(64);
                            for r in 0..R {
                                sum[r] = _mm512_dpbusd_epi32(sum[r], w, _mm512_set1_epi32(*act.add(r) as i32));
                            }
                            act = act.add(R);
                        }
                    }
                }
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                scales = scales.add(32);
                for r in 0..R {
                    block[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), scale, block[r]);
                }
                if MIN {
                    let min = _mm512_cvtph_ps(_mm256_loadu_si256(mins.cast()));
                    mins = mins.add(32);
                    for r in 0..R {
                        block[r] = _mm512_fmadd_ps(_mm512_set1_ps(f32::from_bits(*correction.add(r))), min, block[r]);
                    }
                }
                correction = correction.add(R);
            }
            for r in 0..R {
                let total = p.total.add(16 * r);
                let a = _mm512_set1_ps(f32::from_bits(*act_scale.add(r)));
                _mm512_storeu_ps(total, _mm512_fmadd_ps(block[r], a, _mm512_loadu_ps(total)));
            }
            act = act_scale.add(R);
            codes = if MIN { mins } else { scales };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<const R: usize>(stream: *const u8) {
    if R >= PREFETCH_MIN_ROWS {
        _mm_prefetch::<_MM_HINT_T0>(stream.wrapping_add(R * PREFETCH_PER_ROW).cast());
    }
    if R > PREFETCH_MIN_ROWS {
        _mm_prefetch::<_MM_HINT_T1>(stream.wrapping_add(PREFETCH_FAR).cast());
    }
}

/// Float kernel; see [`FmaArgs`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn fma(p: &FmaArgs) {
    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `FmaArgs`' extents.
    // Few rows take several tiles at once, so that enough independent sums are in flight to hide the latency.
    unsafe {
        match p.rows {
            1 => fma_rows::<1, 4>(p),
            2 => fma_rows::<2, 4>(p),
            3 => fma_rows::<3, 4>(p),
            4 => fma_rows::<4, 4>(p),
            5 => fma_rows::<5, 2>(p),
            6 => fma_rows::<6, 2>(p),
            7 => fma_rows::<7, 2>(p),
            _ => fma_rows::<MAX_ROWS, 2>(p),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn fma_kind<const R: usize, const C: usize>(p: &FmaArgs, t: usize) {
    // SAFETY: as `fma`.
    unsafe {
        match (p.w_kind, p.a_row_major) {
            (FloatKind::F32, false) => fma_tile::<R, C, 0, false>(p, t),
            (FloatKind::F32, true) => fma_tile::<R, C, 0, true>(p, t),
            (FloatKind::F16, false) => fma_tile::<R, C, 1, false>(p, t),
            (FloatKind::F16, true) => fma_tile::<R, C, 1, true>(p, t),
            (FloatKind::BF16, _) => fma_tile::<R, C, 2, false>(p, t),
            (FloatKind::I8, false) => fma_tile::<R, C, 3, false>(p, t),
            (FloatKind::I8, true) => fma_tile::<R, C, 3, true>(p, t),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn fma_tile<const R: usize, const C: usize, const KIND: u8, const ROW_MAJOR: bool>(p: &FmaArgs, t: usize) {
    // SAFETY: `p.rows == R`, `t + C <= p.tiles`, and every index is below the extents that `FmaArgs` documents.
    unsafe {
        let size = p.w_kind.size();
        let (step, tile) = (p.w_step * size, p.w_tile * size);
        let mut w = p.w.add(t * tile);
        let total = p.total.add(t * p.total_tile);
        let mut sum = [[_mm512_setzero_ps(); R]; C];
        for c in 0..C {
            for r in 0..R {
                sum[c][r] = _mm512_loadu_ps(total.add(c * p.total_tile + r * p.total_row));
            }
        }
        let mut a = p.a;
        for _ in 0..p.k {
            let mut v = [_mm512_setzero_ps(); C];
            for c in 0..C {
                let at = w.add(c * tile);
                v[c] = match KIND {
                    0 => _mm512_loadu_ps(at.cast()),
                    1 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
                    3 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))),
                    _ => {
                        let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
                    }
                };
            }
            for r in 0..R {
                let x = _mm512_set1_ps(*a.add(if ROW_MAJOR { r * KEY_BLOCK } else { r }));
                for c in 0..C {
                    sum[c][r] = _mm512_fmadd_ps(x, v[c], sum[c][r]);
                }
            }
            w = w.wrapping_add(step);
            a = a.wrapping_add(if ROW_MAJOR { 1 } else { R });
        }
        for c in 0..C {
            for r in 0..R {
                _mm512_storeu_ps(total.add(c * p.total_tile + r * p.total_row), sum[c][r]);
            }
        }
    }
}
