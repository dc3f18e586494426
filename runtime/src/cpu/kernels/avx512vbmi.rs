//! The integer kernel for weights of `l16` on AVX-512 with VBMI, whose `vpermb` looks 64 codes up in one instruction.
//!
//! Invariant: integer sums stay in registers, and so do float sums of as many rows as there are registers for; activations
//! are memory operands with embedded broadcast. `vpermb` passes over the upper two bits of its indices, so what stands
//! there does not matter.

use super::avx2::prefetch;
use super::avx512::{levels, load_codes, widen_f16};
use super::{DotArgs, LEVELS_AT, SCALES_AT, TABLE_BLOCK_BYTES, UNSIGNED_TABLE};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use std::arch::x86_64::*;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 16;
/// Up to so many rows have their float sums in registers as well.
const ALL_SUMS_ROWS: usize = 12;
/// Up to so many rows have two sums each, which hides how long a product takes.
const TWO_SUMS_ROWS: usize = 5;

/// Bytes ahead that a single row tile fetches into L1, and into L2: few rows run at the speed of memory.
const NEAR: usize = 2 << 10;
const FAR: usize = 8 << 10;
const FAR_FEW_ROWS: usize = 16 << 10;
const FEW_ROWS: usize = 4;

macro_rules! rows {
    ($($rows:literal)*) => {
        /// Integer kernel for `l16`; see [`DotArgs`]. There is one group, no minimum, and the zero point is 128.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
        pub(super) unsafe fn dot(p: &DotArgs) {
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
            unsafe {
                match (p.rows, p.ahead_lines) {
                    $(
                        ($rows, 0) => tile::<$rows, true>(p),
                        ($rows, _) => tile::<$rows, false>(p),
                    )*
                    (rows, _) => unreachable!("no register tile has {rows} rows"),
                }
            }
        }
    };
}
rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);

/// `ALONE`: no other row tile fetches what comes next.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const R: usize, const ALONE: bool>(p: &DotArgs) {
    let far = if R <= FEW_ROWS { FAR_FEW_ROWS } else { FAR };
    // SAFETY: the streams advance by exactly the extents that `DotArgs` documents, and `p.rows == R`.
    unsafe {
        let table = load_codes(UNSIGNED_TABLE.as_ptr());
        let nibble = _mm512_set1_epi8(15);
        let mut totals = [_mm512_setzero_ps(); R];
        let total = |r: usize| p.total.add(TILE_COLUMNS * r);
        if R <= ALL_SUMS_ROWS {
            for r in 0..R {
                totals[r] = _mm512_loadu_ps(total(r));
            }
        }
        let (mut weights, mut act, mut ahead) = (p.weights, p.act, p.ahead);
        for _ in 0..p.blocks {
            let mut sums = [[_mm512_setzero_si512(); R]; 2];
            for r in 0..R {
                sums[0][r] = _mm512_set1_epi32(*act.add(BLOCK / 4 * R + r) as i32);
            }
            if ALONE {
                prefetch(weights.wrapping_add(NEAR + LEVELS_AT));
                _mm_prefetch::<_MM_HINT_T1>(weights.wrapping_add(far + LEVELS_AT).cast());
            } else {
                for _ in 0..p.ahead_lines {
                    prefetch(ahead);
                    ahead = ahead.wrapping_add(64);
                }
            }
            let (mut codes, mut quads) = (weights, act);
            for half in 0..2 {
                // The four bytes of a column are equal, so turning all 32 bits turns each byte.
                let mut level = _mm512_rol_epi32::<4>(levels(weights.add(LEVELS_AT + half)));
                for _ in 0..4 {
                    for _ in 0..2 {
                        if ALONE {
                            prefetch(codes.wrapping_add(NEAR));
                            _mm_prefetch::<_MM_HINT_T1>(codes.wrapping_add(far).cast());
                        }
                        let both = load_codes(codes);
                        for (i, code) in [both, _mm512_srli_epi16::<4>(both)].into_iter().enumerate() {
                            // Codes where `nibble` is, levels elsewhere.
                            let index = _mm512_ternarylogic_epi32::<0xca>(nibble, code, level);
                            let w = _mm512_permutexvar_epi8(index, table);
                            let sums = &mut sums[if R <= TWO_SUMS_ROWS { i } else { 0 }];
                            for r in 0..R {
                                let a = _mm512_set1_epi32(*quads.add(r) as i32);
                                sums[r] = _mm512_dpbusd_epi32(sums[r], w, a);
                            }
                            quads = quads.add(R);
                        }
                        codes = codes.add(64);
                    }
                    level = _mm512_ror_epi32::<2>(level);
                }
            }
            let scale = widen_f16(weights.add(SCALES_AT));
            act = act.add(BLOCK / 4 * R + R);
            for r in 0..R {
                let sum = if R <= TWO_SUMS_ROWS { _mm512_add_epi32(sums[0][r], sums[1][r]) } else { sums[0][r] };
                let block = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
                let a = _mm512_set1_ps(f32::from_bits(*act.add(r)));
                if R <= ALL_SUMS_ROWS {
                    totals[r] = _mm512_fmadd_ps(block, a, totals[r]);
                } else {
                    _mm512_storeu_ps(total(r), _mm512_fmadd_ps(block, a, _mm512_loadu_ps(total(r))));
                }
            }
            act = act.add(R);
            weights = weights.add(TABLE_BLOCK_BYTES);
        }
        if R <= ALL_SUMS_ROWS {
            for r in 0..R {
                _mm512_storeu_ps(total(r), totals[r]);
            }
        }
    }
}
