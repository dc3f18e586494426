//! The kernels for AVX2 with FMA and F16C.
//!
//! Invariant: the sums of `vpmaddubsw` fit their 16 bits. 4-bit codes are at most 15, which allows for all of a round,
//! 8 · 2 · 15 · 127 < 2¹⁵; signed 8-bit codes are at most 128 in size, which allows for one, 2 · 128 · 127 < 2¹⁵.
//! An activation of −128, whose sign `vpsignb` cannot change, only occurs where the scale is not a number.

use super::dot::{attend, dot, quads};
use super::fma::fma;
use super::lookup::look_up;
use super::{
    AttendArgs, CODES_BYTES, DotArgs, FloatKind, FmaArgs, KEY_BLOCK, LEVELS_AT, LOOKED_UP_BYTES, SCALES_AT,
    TABLE_BLOCK_BYTES, TILE_SCALE_BYTES, UNSIGNED_TABLE,
};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use std::arch::x86_64::*;
pub(super) use std::arch::x86_64::{
    _mm256_cvtepi32_ps as to_floats, _mm256_fmadd_ps as fmadd, _mm256_loadu_ps as load,
    _mm256_set1_epi32 as splat_ints, _mm256_set1_ps as splat, _mm256_storeu_ps as store,
};

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 4;
pub(super) const LANES: usize = 8;
/// A signed code is its size times the activation with its sign.
const MOVED: bool = true;

dot!("avx2,fma,f16c", 1 => 2, 2 => 2, 3 => 2, 4 => 1);
// Unrolled, three rows of 8-bit codes spill registers.
quads!("avx2,fma,f16c", add_quads, __m256i, 1);
fma!("avx2,fma,f16c", 1 => 4, 2 => 2, 3 => 1, 4 => 1);
look_up!("avx2", 8);

/// As `add_quads`, whose sums of 4-bit codes are 16 bits wide and hold one round.
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
        if !NIBBLES {
            return add_quads::<R, H, NIBBLES>(sum, codes, act, rounds);
        }
        for _ in 0..rounds {
            let mut words = [[splat_ints(0); H]; R];
            add_quads::<R, H, NIBBLES>(&mut words, codes, act, 1);
            (codes, act) = (codes.add(256), act.add(8 * R));
            for r in 0..R {
                for h in 0..H {
                    sum[r][h] = add_words(sum[r][h], words[r][h]);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_words(sum: __m256i, words: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn multiply<const NIBBLES: bool>(sum: __m256i, codes: __m256i, act: __m256i) -> __m256i {
    if NIBBLES {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, act));
    }
    let codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    add_words(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(act, codes)))
}

#[inline]
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: a hint, which neither faults nor changes anything that a program can see.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_codes(at: *const u8) -> __m256i {
    // SAFETY: the caller has 32 bytes at `at`.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn low(codes: __m256i) -> __m256i {
    _mm256_and_si256(codes, _mm256_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn high(codes: __m256i) -> __m256i {
    low(_mm256_srli_epi16::<4>(codes))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn widen_f16(at: *const u8) -> __m256 {
    // SAFETY: the caller has eight elements at `at`.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen_bf16(at: *const u8) -> __m256 {
    // SAFETY: the caller has eight elements at `at`.
    let bits = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(at.cast()) });
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn levels(at: *const u8) -> __m256i {
    // SAFETY: the caller has sixteen bytes at `at`.
    let columns = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(at.cast()) });
    _mm256_shuffle_epi8(columns, _mm256_broadcastsi128_si256(_mm_set_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn next(levels: __m256i) -> __m256i {
    _mm256_srli_epi16::<2>(levels)
}

/// Both bits of the level, each as the sign of a byte.
#[inline]
#[target_feature(enable = "avx2")]
fn choose(levels: __m256i) -> [__m256i; 2] {
    [_mm256_slli_epi16::<7>(levels), _mm256_slli_epi16::<6>(levels)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn numbers(codes: __m256i, [low, high]: [__m256i; 2]) -> __m256i {
    let book = |level: usize| {
        // SAFETY: a codebook has sixteen bytes.
        let book = unsafe { _mm_loadu_si128(UNSIGNED_TABLE[16 * level..][..16].as_ptr().cast()) };
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(book), codes)
    };
    let even = _mm256_blendv_epi8(book(0), book(1), low);
    _mm256_blendv_epi8(even, _mm256_blendv_epi8(book(2), book(3), low), high)
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn keep(at: *mut u8, numbers: __m256i) {
    // SAFETY: the caller has room for 32 bytes at `at`.
    unsafe { _mm256_storeu_si256(at.cast(), numbers) }
}
