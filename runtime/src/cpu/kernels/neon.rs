//! The kernels for aarch64; the integer ones for plain NEON, for the dot product and for the matrix instructions.
//!
//! Invariant: all sum the same integers, whatever the way. With [`mull`], products are added up in 16 bits: codes are
//! at most 15 there (8-bit codes are split into nibbles), and two sums of 8 products of a lane fit: 16 · 15 · 127 < 2¹⁵.
//! With [`sdot`], whose operands are signed, 8-bit codes are moved by −128, which for symmetric formats is what the
//! zero-point correction would do. [`usmmla`] multiplies the codes as they are.

use super::dot::{attend, dot, quads};
use super::fma::fma;
use super::lookup::look_up;
use super::{
    AttendArgs, CODES_BYTES, DotArgs, FloatKind, FmaArgs, KEY_BLOCK, LEVELS_AT, LOOKED_UP_BYTES, SCALES_AT,
    TABLE_BLOCK_BYTES, TILE_SCALE_BYTES, UNSIGNED_TABLE,
};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use std::arch::aarch64::*;
use std::arch::aarch64::{
    float32x4_t as Floats, int32x4_t as Ints, uint8x16_t as Codes, vcvtq_f32_s32 as to_floats, vdupq_n_f32 as splat,
    vdupq_n_s32 as splat_ints, vld1q_f32 as load, vld1q_u8 as load_codes, vst1q_f32 as store,
};
use std::arch::asm;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 4;
const LANES: usize = 4;

fma!("neon", 1 => 4, 2 => 2, 3 => 1, 4 => 1);
look_up!("neon", 4);

/// The integer kernel with widening multiply-adds.
pub(super) mod mull {
    use super::*;

    const MOVED: bool = false;

    dot!("neon", 1 => 2, 2 => 2, 3 => 2, 4 => 2);
    quads!("neon", add_quads, [Words; 2], 8);

    /// Sums of the first and of the last two columns.
    type Words = [int16x8_t; 2];

    /// As `add_quads`, whose sums are 16 bits wide and hold one round.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add<const R: usize, const H: usize, const NIBBLES: bool>(
        sum: &mut [[Ints; H]; R],
        mut codes: *const u8,
        act: *const u32,
        rounds: usize,
    ) {
        for round in 0..rounds {
            // SAFETY: the caller has the codes and the activations of so many k.
            unsafe {
                let mut words = [[[[vdupq_n_s16(0); 2]; 2]; H]; R];
                add_quads::<R, H, NIBBLES>(&mut words, codes, act.add(8 * R * round), 1);
                codes = codes.add(32 * TILE_COLUMNS / if NIBBLES { 2 } else { 1 });
                for r in 0..R {
                    for h in 0..H {
                        let [first, second] = words[r][h];
                        sum[r][h] = vpadalq_s16(sum[r][h], vpaddq_s16(first[0], first[1]));
                        if !NIBBLES {
                            let high = vpaddlq_s16(vpaddq_s16(second[0], second[1]));
                            sum[r][h] = vaddq_s32(sum[r][h], vshlq_n_s32::<4>(high));
                        }
                    }
                }
            }
        }
    }

    /// Of 8-bit codes, the low nibbles add to the first sums and the high ones to the second.
    #[inline]
    #[target_feature(enable = "neon")]
    fn multiply<const NIBBLES: bool>([first, second]: [Words; 2], codes: Codes, act: Ints) -> [Words; 2] {
        if NIBBLES {
            return [add_words(first, codes, act), second];
        }
        [add_words(first, low(codes), act), add_words(second, high(codes), act)]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn add_words(sum: Words, codes: Codes, act: Ints) -> Words {
        let (codes, act) = (vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(act));
        [vmlal_s8(sum[0], vget_low_s8(codes), vget_low_s8(act)), vmlal_high_s8(sum[1], codes, act)]
    }
}

/// The integer kernel with dot product instructions.
pub(super) mod sdot {
    use super::*;

    const MOVED: bool = true;

    dot!("neon,dotprod", 1 => 4, 2 => 4, 3 => 4, 4 => 4);
    quads!("neon,dotprod", add, Ints, 1);

    /// `sum + Σ4 w a` with signed bytes; the intrinsic is not stable yet.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn multiply<const NIBBLES: bool>(mut sum: Ints, codes: Codes, act: Ints) -> Ints {
        let codes = if NIBBLES { codes } else { veorq_u8(codes, vdupq_n_u8(128)) };
        // SAFETY: registers only.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {codes:v}.16b, {act:v}.16b",
                sum = inout(vreg) sum, codes = in(vreg) codes, act = in(vreg) act,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// The integer kernel with matrix instructions. They take rows by two, so a single row is left to `sdot`.
pub(super) mod usmmla {
    use super::*;

    const MOVED: bool = false;

    dot!("neon,dotprod,i8mm", 2 => 4, 3 => 4, 4 => 4; 1 => sdot);

    /// Two columns by two rows and 8 k at a time.
    ///
    /// Reads of activations may run into the words behind them, which fill the second half of a last, odd row.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn add<const R: usize, const H: usize, const NIBBLES: bool>(
        sum: &mut [[Ints; H]; R],
        codes: *const u8,
        act: *const u32,
        rounds: usize,
    ) {
        debug_assert!(R > 1, "a single row has no second one to read");
        // SAFETY: the caller has the codes and the activations of so many k; at least `2 * R` words follow the activations of
        // a block, and `R >= 2` of the four that are read at the last quad are its own.
        unsafe {
            // For rows `2 * pair` and the next one: of four columns the first and the last two, `[column][row]`.
            let mut pairs = [[[splat_ints(0); 2]; H]; MAX_ROWS / 2];
            for r in 0..R {
                for h in 0..H {
                    let other = sum[if r + 1 < R { r + 1 } else { r }][h];
                    if r % 2 == 0 {
                        pairs[r / 2][h] = [vzip1q_s32(sum[r][h], other), vzip2q_s32(sum[r][h], other)];
                    }
                }
            }
            for i in 0..rounds * if NIBBLES { 2 } else { 4 } {
                // Two vectors of codes. With nibbles the low ones are the first and the third quad of k, the high ones the
                // second and the fourth.
                let at = act.add(if NIBBLES { 4 } else { 2 } * i * R);
                let quad = |q: usize| vld1q_u32(at.add(q * R));
                let [even, odd] =
                    if NIBBLES { [zip(quad(0), quad(2)), zip(quad(1), quad(3))] } else { [zip(quad(0), quad(1)); 2] };
                for h in 0..H {
                    let vector = |v: usize| vreinterpretq_u32_u8(vld1q_u8(codes.add(128 * i + 64 * v + 16 * h)));
                    for (part, w) in zip(vector(0), vector(1)).into_iter().enumerate() {
                        let w = vreinterpretq_u8_u32(w);
                        for pair in 0..R.div_ceil(2) {
                            let sum = &mut pairs[pair][h][part];
                            if NIBBLES {
                                *sum = multiply(*sum, low(w), even[pair]);
                                *sum = multiply(*sum, high(w), odd[pair]);
                            } else {
                                *sum = multiply(*sum, w, even[pair]);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                for h in 0..H {
                    let [first, last] = pairs[r / 2][h];
                    sum[r][h] = if r % 2 == 0 { vuzp1q_s32(first, last) } else { vuzp2q_s32(first, last) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn zip(a: uint32x4_t, b: uint32x4_t) -> [uint32x4_t; 2] {
        [vzip1q_u32(a, b), vzip2q_u32(a, b)]
    }

    /// `sum + w aᵀ` of two columns and two rows of 8 k, codes unsigned and activations signed; the intrinsic is not stable yet.
    #[inline]
    #[target_feature(enable = "neon,i8mm")]
    fn multiply(mut sum: Ints, codes: Codes, act: uint32x4_t) -> Ints {
        // SAFETY: registers only.
        unsafe {
            asm!(
                "usmmla {sum:v}.4s, {codes:v}.16b, {act:v}.16b",
                sum = inout(vreg) sum, codes = in(vreg) codes, act = in(vreg) act,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// Asks for a line; any address will do. The intrinsic is not stable yet.
#[inline]
fn prefetch(at: *const u8) {
    // SAFETY: a hint, which neither faults nor changes anything that a program can see.
    unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly)) }
}

#[inline]
#[target_feature(enable = "neon")]
fn low(codes: Codes) -> Codes {
    vandq_u8(codes, vdupq_n_u8(15))
}

#[inline]
#[target_feature(enable = "neon")]
fn high(codes: Codes) -> Codes {
    vshrq_n_u8::<4>(codes)
}

#[inline]
#[target_feature(enable = "neon")]
fn fmadd(x: Floats, y: Floats, sum: Floats) -> Floats {
    vfmaq_f32(sum, x, y)
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn widen_f16(at: *const u8) -> Floats {
    let out: Floats;
    // SAFETY: the caller has four elements at `at`; the instruction is part of the architecture, its intrinsic not stable.
    unsafe {
        let half = vld1_u8(at);
        asm!(
            "fcvtl {out:v}.4s, {half:v}.4h",
            out = lateout(vreg) out, half = in(vreg) half,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn widen_bf16(at: *const u8) -> Floats {
    // SAFETY: the caller has four elements at `at`.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(at)))) }
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn levels(at: *const u8) -> Codes {
    // SAFETY: the caller has eight bytes at `at`.
    let columns = vmovl_u16(vreinterpret_u16_u8(unsafe { vld1_u8(at) }));
    vreinterpretq_u8_u32(vmulq_n_u32(vandq_u32(columns, vdupq_n_u32(0xff)), 0x0101_0101))
}

#[inline]
#[target_feature(enable = "neon")]
fn next(levels: Codes) -> Codes {
    vshrq_n_u8::<2>(levels)
}

/// The place of the level's codebook in the table.
#[inline]
#[target_feature(enable = "neon")]
fn choose(levels: Codes) -> Codes {
    vandq_u8(vshlq_n_u8::<4>(levels), vdupq_n_u8(0x30))
}

#[inline]
#[target_feature(enable = "neon")]
fn numbers(codes: Codes, choice: Codes) -> Codes {
    // SAFETY: the table has 64 bytes.
    let table = unsafe { vld1q_u8_x4(UNSIGNED_TABLE.as_ptr()) };
    vqtbl4q_u8(table, vorrq_u8(codes, choice))
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn keep(at: *mut u8, numbers: Codes) {
    // SAFETY: the caller has room for sixteen bytes at `at`.
    unsafe { vst1q_u8(at, numbers) }
}
