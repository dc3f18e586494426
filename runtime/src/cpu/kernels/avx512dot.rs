//! The integer kernel for AVX-512 with VNNI.
//!
//! Invariant: every integer sum and every float sum of a block is in a register; activations are memory operands with
//! embedded broadcast. A dot product takes four or five cycles, so few rows work on two pieces of a block at once.

use super::DotArgs;
use super::avx2::prefetch;
use super::avx512::{load_codes, widen_f16};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use std::arch::x86_64::*;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 12;
/// Up to so many rows work on two pieces of a block at once.
const PAIRED_ROWS: usize = 4;
/// Vectors of codes in the body of the loop: as many as the shortest piece has.
const UNROLLED: usize = 4;

/// Bytes ahead of the weight stream that are fetched into L1, per row, where nothing else says what to fetch. One to three
/// rows run at the speed of memory, which the hardware's own prefetch reaches; more rows leave it too little to look ahead on.
const PREFETCH_PER_ROW: usize = 512;
const PREFETCH_MIN_ROWS: usize = 4;
/// Bytes ahead that are fetched into L2 as well when there is much to compute in between.
const PREFETCH_FAR: usize = 16 << 10;

macro_rules! rows {
    ($($rows:literal)*) => {
        /// Integer kernel; see [`DotArgs`].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        pub(super) unsafe fn dot(p: &DotArgs) {
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
            unsafe {
                match p.rows {
                    $($rows => dot_rows::<$rows>(p),)*
                    rows => unreachable!("no register tile has {rows} rows"),
                }
            }
        }
    };
}
rows!(1 2 3 4 5 6 7 8 9 10 11 12);

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_rows<const R: usize>(p: &DotArgs) {
    // SAFETY: as `dot`.
    unsafe {
        match (p.nibbles, p.min, p.groups) {
            (true, false, 1) => tile::<R, true, false, 1>(p),
            (true, false, 2) => tile::<R, true, false, 2>(p),
            (true, false, _) => tile::<R, true, false, 4>(p),
            (true, true, _) => tile::<R, true, true, 0>(p),
            (false, false, _) => tile::<R, false, false, 0>(p),
            (false, true, _) => tile::<R, false, true, 0>(p),
        }
    }
}

/// With a `GROUPS` of 0 the number of groups is only known when it runs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const R: usize, const NIBBLES: bool, const MIN: bool, const GROUPS: usize>(p: &DotArgs) {
    let groups = if GROUPS == 0 { p.groups } else { GROUPS };
    let at_once = if R <= PAIRED_ROWS { 2 } else { 1 };
    // A piece is a group or, where a block has but one, a half of it.
    let pieces = groups.max(at_once);
    let halves = groups < at_once;
    let quads_of_vector = if NIBBLES { 2 } else { 1 };
    let vectors = BLOCK / 4 / quads_of_vector / pieces;
    let codes_bytes = BLOCK * TILE_COLUMNS / if NIBBLES { 2 } else { 1 };
    let table_bytes = groups * TILE_COLUMNS * 2;
    let words = DotArgs::act_words(groups) * R;
    let nibble = _mm512_set1_epi8(15);
    // SAFETY: the streams advance by exactly the extents that `DotArgs` documents, and `p.rows == R`.
    unsafe {
        let (mut weights, mut act, mut ahead) = (p.weights, p.act, p.ahead);
        for b in 1..=p.blocks {
            // Where the activations of the next block are: of many rows they come from L2.
            let next = if b < p.blocks { act.wrapping_add(words) } else { p.next_act }.cast::<u8>();
            for _ in 0..p.ahead_lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(64);
            }
            let mut block = [_mm512_setzero_ps(); R];
            let (mut codes, mut quads) = (weights, act);
            let mut correction = act.add(BLOCK / 4 * R);
            let mut scales = weights.add(codes_bytes);
            for _ in (0..pieces).step_by(at_once) {
                let mut sums = [[_mm512_setzero_si512(); R]; 2];
                if !MIN {
                    for piece in 0..if halves { 1 } else { at_once } {
                        for r in 0..R {
                            sums[piece][r] = _mm512_set1_epi32(*correction.add(piece * R + r) as i32);
                        }
                    }
                }
                let quads_at_once = quads_of_vector * R * at_once * vectors;
                if p.ahead_lines > 0 {
                    let next = next.wrapping_add(quads.byte_offset_from_unsigned(act));
                    for line in 0..(4 * quads_at_once).div_ceil(64) {
                        prefetch(next.wrapping_add(64 * line));
                    }
                }
                let (mut some_codes, mut some_quads) = (codes, quads);
                for _ in 0..vectors / UNROLLED {
                    for v in 0..UNROLLED {
                        for piece in 0..at_once {
                            let codes = some_codes.add(64 * (piece * vectors + v));
                            if p.ahead_lines == 0 && R >= PREFETCH_MIN_ROWS {
                                prefetch(codes.wrapping_add(R * PREFETCH_PER_ROW));
                                if R > PREFETCH_MIN_ROWS {
                                    _mm_prefetch::<_MM_HINT_T1>(codes.wrapping_add(PREFETCH_FAR).cast());
                                }
                            }
                            let stored = load_codes(codes);
                            let quads = some_quads.add(quads_of_vector * R * (piece * vectors + v));
                            for q in 0..quads_of_vector {
                                let w = match (NIBBLES, q) {
                                    (false, _) => stored,
                                    (true, 0) => _mm512_and_si512(stored, nibble),
                                    (true, _) => _mm512_and_si512(_mm512_srli_epi16::<4>(stored), nibble),
                                };
                                for r in 0..R {
                                    let a = _mm512_set1_epi32(*quads.add(R * q + r) as i32);
                                    sums[piece][r] = _mm512_dpbusd_epi32(sums[piece][r], w, a);
                                }
                            }
                        }
                    }
                    some_codes = some_codes.add(64 * UNROLLED);
                    some_quads = some_quads.add(quads_of_vector * R * UNROLLED);
                }
                codes = codes.add(64 * at_once * vectors);
                quads = quads.add(quads_at_once);
                if halves {
                    for r in 0..R {
                        sums[0][r] = _mm512_add_epi32(sums[0][r], sums[1][r]);
                    }
                }
                for group in 0..if halves { 1 } else { at_once } {
                    let scale = widen_f16(scales);
                    for r in 0..R {
                        block[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[group][r]), scale, block[r]);
                    }
                    if MIN {
                        let min = widen_f16(scales.add(table_bytes));
                        for r in 0..R {
                            let a = _mm512_set1_ps(f32::from_bits(*correction.add(r)));
                            block[r] = _mm512_fmadd_ps(a, min, block[r]);
                        }
                    }
                    scales = scales.add(TILE_COLUMNS * 2);
                    correction = correction.add(R);
                }
            }
            act = act.add(words);
            weights = weights.add(p.block_bytes);
            for r in 0..R {
                let a = _mm512_set1_ps(f32::from_bits(*act.sub(R).add(r)));
                let total = p.total.add(TILE_COLUMNS * r);
                _mm512_storeu_ps(total, _mm512_fmadd_ps(block[r], a, _mm512_loadu_ps(total)));
            }
        }
    }
}
