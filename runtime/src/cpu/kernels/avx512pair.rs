//! Products of many rows on AVX-512 with VNNI: two column tiles at a time, from codes that have been made 8 bits wide.
//!
//! Many rows share the work of unpacking codes when it is done once, ahead of them, and two column tiles share the loads
//! of activations. Invariant: integer sums stay in registers and, of blocks with several groups, float sums as well.

use super::avx2::prefetch;
use super::avx512::{levels, load_codes, widen_f16};
use super::{CODES_BYTES, DotArgs, LEVELS_AT, PairArgs, Pairs, SCALES_AT, TABLE_BLOCK_BYTES, UNSIGNED_TABLE};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use std::arch::x86_64::*;

/// Without an instruction that looks 64 codes up.
pub(super) const PAIRS: Pairs = Pairs { dot, rows: [12, 6], widen, look_up: super::avx512::look_up };
/// With it.
pub(super) const PAIRS_VBMI: Pairs = Pairs { look_up, ..PAIRS };

macro_rules! rows {
    ($([$groups:pat, $min:literal, $const:literal: $($rows:literal)*])*) => {
        /// See [`Pairs`].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        unsafe fn dot(p: &PairArgs) {
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have the extents that
            // `PairArgs` documents.
            unsafe {
                match (p.dot.groups, p.dot.min, p.dot.rows) {
                    $($(($groups, $min, $rows) => tile::<$rows, $const, $min>(p),)*)*
                    (_, _, rows) => unreachable!("no register tile has {rows} rows"),
                }
            }
        }
    };
}
// At least `Pairs::MIN_ROWS` rows, cut into the fewest tiles of at most six rows or more, make none of fewer than five.
rows!(
    [1, false, 1: 5 6 7 8 9 10 11 12]
    [1, true, 1: 5 6 7 8 9 10 11 12]
    [_, false, 0: 5 6]
    [_, true, 0: 5 6]
);

/// With `GROUPS` of 0 the number of groups is only known when it runs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const R: usize, const GROUPS: usize, const MIN: bool>(p: &PairArgs) {
    /// Quads of k in the body of the loop.
    const UNROLLED: usize = 4;
    let groups = if GROUPS == 0 { p.dot.groups } else { GROUPS };
    let words = DotArgs::act_words(groups) * R;
    // SAFETY: the streams advance by exactly the extents that `PairArgs` documents, and there are `R` rows.
    unsafe {
        let (mut weights, mut act, mut ahead) = ([p.dot.weights, p.weights], p.dot.act, [p.dot.ahead, p.ahead]);
        for b in 1..=p.dot.blocks {
            // Where the activations of the next block are: they come from L2.
            let mut next = if b < p.dot.blocks { act.wrapping_add(words) } else { p.dot.next_act }.cast::<u8>();
            for _ in 0..p.dot.ahead_lines {
                for ahead in &mut ahead {
                    prefetch(*ahead);
                    *ahead = ahead.wrapping_add(64);
                }
            }
            let (mut codes, mut quads) = (weights, act);
            let mut correction = act.add(BLOCK / 4 * R);
            let mut block = [[_mm512_setzero_ps(); 2]; R];
            for group in 0..groups {
                let mut sums = [[_mm512_setzero_si512(); 2]; R];
                if !MIN {
                    for r in 0..R {
                        sums[r] = [_mm512_set1_epi32(*correction.add(r) as i32); 2];
                    }
                }
                for _ in 0..BLOCK / 4 / UNROLLED / groups {
                    for line in 0..(4 * UNROLLED * R).div_ceil(64) {
                        prefetch(next.wrapping_add(64 * line));
                    }
                    next = next.wrapping_add(4 * UNROLLED * R);
                    for q in 0..UNROLLED {
                        let w = [load_codes(codes[0].add(64 * q)), load_codes(codes[1].add(64 * q))];
                        for r in 0..R {
                            let a = _mm512_set1_epi32(*quads.add(R * q + r) as i32);
                            for h in 0..2 {
                                sums[r][h] = _mm512_dpbusd_epi32(sums[r][h], w[h], a);
                            }
                        }
                    }
                    codes = codes.map(|codes| codes.add(64 * UNROLLED));
                    quads = quads.add(UNROLLED * R);
                }
                let table = CODES_BYTES + group * TILE_COLUMNS * 2;
                let scale = weights.map(|w| widen_f16(w.add(table)));
                for r in 0..R {
                    for h in 0..2 {
                        block[r][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][h]), scale[h], block[r][h]);
                    }
                }
                if MIN {
                    let min = weights.map(|w| widen_f16(w.add(table + groups * TILE_COLUMNS * 2)));
                    for r in 0..R {
                        let a = _mm512_set1_ps(f32::from_bits(*correction.add(r)));
                        for h in 0..2 {
                            block[r][h] = _mm512_fmadd_ps(a, min[h], block[r][h]);
                        }
                    }
                }
                correction = correction.add(R);
            }
            prefetch(next);
            for r in 0..R {
                let a = _mm512_set1_ps(f32::from_bits(*correction.add(r)));
                for (h, total) in [p.dot.total, p.total].into_iter().enumerate() {
                    let total = total.add(TILE_COLUMNS * r);
                    _mm512_storeu_ps(total, _mm512_fmadd_ps(block[r][h], a, _mm512_loadu_ps(total)));
                }
            }
            act = act.add(words);
            weights = weights.map(|w| w.add(p.dot.block_bytes));
        }
    }
}

/// See [`Pairs`]. Stores are half as wide as registers, because some CPUs take two and a half times as long for a whole one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn widen(from: *const u8, blocks: usize, tables: usize, to: *mut u8) {
    let nibble = _mm256_set1_epi8(15);
    for b in 0..blocks {
        // SAFETY: the caller has so many blocks at `from`, and room for them at `to`.
        unsafe {
            let from = from.add(b * (CODES_BYTES / 2 + tables));
            let to = to.add(b * Pairs::block_bytes(tables));
            for half in 0..CODES_BYTES / 64 {
                let codes = _mm256_loadu_si256(from.add(32 * half).cast());
                let to = to.add(128 * (half / 2) + 32 * (half % 2));
                _mm256_storeu_si256(to.cast(), _mm256_and_si256(codes, nibble));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
                _mm256_storeu_si256(to.add(64).cast(), high);
            }
            // Tables are multiples of 32 bytes.
            for at in (0..tables).step_by(32) {
                let part = _mm256_loadu_si256(from.add(CODES_BYTES / 2 + at).cast());
                _mm256_storeu_si256(to.add(CODES_BYTES + at).cast(), part);
            }
        }
    }
}

/// See [`Lookup::Ahead`](super::Lookup). `vpermb` passes over the upper two bits of its indices.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn look_up(from: *const u8, blocks: usize, to: *mut u8) {
    let nibble = _mm512_set1_epi8(15);
    for b in 0..blocks {
        // SAFETY: the caller has so many blocks at `from`, and room for them at `to`.
        unsafe {
            let table = load_codes(UNSIGNED_TABLE.as_ptr());
            let from = from.add(b * TABLE_BLOCK_BYTES);
            let to = to.add(b * Pairs::block_bytes(TILE_COLUMNS * 2));
            for half in 0..2 {
                // The four bytes of a column are equal, so turning all 32 bits turns each byte.
                let mut level = _mm512_rol_epi32::<4>(levels(from.add(LEVELS_AT + half)));
                for run in 4 * half..4 * half + 4 {
                    for vector in 2 * run..2 * run + 2 {
                        let both = load_codes(from.add(64 * vector));
                        for (i, code) in [both, _mm512_srli_epi16::<4>(both)].into_iter().enumerate() {
                            // Codes where `nibble` is, levels elsewhere.
                            let index = _mm512_ternarylogic_epi32::<0xca>(nibble, code, level);
                            let number = _mm512_permutexvar_epi8(index, table);
                            let to = to.add(128 * vector + 64 * i);
                            _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(number));
                            _mm256_storeu_si256(to.add(32).cast(), _mm512_extracti64x4_epi64::<1>(number));
                        }
                    }
                    level = _mm512_ror_epi32::<2>(level);
                }
            }
            _mm256_storeu_si256(to.add(CODES_BYTES).cast(), _mm256_loadu_si256(from.add(SCALES_AT).cast()));
        }
    }
}
