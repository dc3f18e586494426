//! The kernels of floats and of int8 caches for AVX-512, looking codes up without VBMI, and what its integer kernels share.
//!
//! Invariant: eight rows keep every accumulator in a register.

use super::dot::{attend, quads};
use super::fma::fma;
use super::lookup::look_up;
use super::{
    AttendArgs, CODES_BYTES, FloatKind, FmaArgs, KEY_BLOCK, LEVELS_AT, LOOKED_UP_BYTES, SCALES_AT, TABLE_BLOCK_BYTES,
    TILE_SCALE_BYTES, UNSIGNED_TABLE,
};
use crate::cpu::pack::TILE_COLUMNS;
use std::arch::x86_64::*;
use std::arch::x86_64::{
    _mm512_cvtepi32_ps as to_floats, _mm512_fmadd_ps as fmadd, _mm512_loadu_ps as load,
    _mm512_set1_epi32 as splat_ints, _mm512_set1_ps as splat, _mm512_storeu_ps as store,
};

/// Rows per register tile of these kernels.
pub(super) const MAX_ROWS: usize = 8;
const LANES: usize = 16;
const MOVED: bool = false;

attend!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", 1 => 1, 2 => 1, 3 => 1, 4 => 1, 5 => 1, 6 => 1, 7 => 1, 8 => 1);
quads!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", add, __m512i, 8);
fma!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", 1 => 4, 2 => 4, 3 => 4, 4 => 4, 5 => 2, 6 => 2, 7 => 2, 8 => 2);
look_up!("avx512f,avx512bw", 16);

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load_codes(at: *const u8) -> __m512i {
    // SAFETY: the caller has 64 bytes at `at`.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn low(codes: __m512i) -> __m512i {
    _mm512_and_si512(codes, _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high(codes: __m512i) -> __m512i {
    low(_mm512_srli_epi16::<4>(codes))
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply<const NIBBLES: bool>(sum: __m512i, codes: __m512i, act: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, codes, act)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn widen_f16(at: *const u8) -> __m512 {
    // SAFETY: the caller has sixteen elements at `at`.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen_bf16(at: *const u8) -> __m512 {
    // SAFETY: the caller has sixteen elements at `at`.
    let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(at.cast()) });
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn levels(at: *const u8) -> __m512i {
    // SAFETY: the caller has 32 bytes at `at`.
    let columns = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(at.cast()) });
    _mm512_shuffle_epi8(columns, _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn next(levels: __m512i) -> __m512i {
    _mm512_srli_epi16::<2>(levels)
}

/// Where the level is 1, 2 and 3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn choose(levels: __m512i) -> [__mmask64; 3] {
    let low = _mm512_movepi8_mask(_mm512_slli_epi16::<7>(levels));
    let high = _mm512_movepi8_mask(_mm512_slli_epi16::<6>(levels));
    [low & !high, high & !low, low & high]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn numbers(codes: __m512i, choice: [__mmask64; 3]) -> __m512i {
    let book = |level: usize| {
        // SAFETY: a codebook has sixteen bytes.
        _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(UNSIGNED_TABLE[16 * level..][..16].as_ptr().cast()) })
    };
    let first = _mm512_shuffle_epi8(book(0), codes);
    let second = _mm512_mask_shuffle_epi8(first, choice[0], book(1), codes);
    let third = _mm512_mask_shuffle_epi8(second, choice[1], book(2), codes);
    _mm512_mask_shuffle_epi8(third, choice[2], book(3), codes)
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn keep(at: *mut u8, numbers: __m512i) {
    // SAFETY: the caller has room for 64 bytes at `at`.
    unsafe { _mm512_storeu_si512(at.cast(), numbers) }
}
