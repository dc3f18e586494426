//! The two kernels for aarch64; the integer one for plain NEON, for the dot product and for the matrix instructions.
//!
//! Invariant: all sum the same integers, whatever the way. With [`MULL`], products are added up in 16 bits: codes are
//! at most 15 there (8-bit codes are split into nibbles), and two sums of 8 products of a lane fit: 16 · 15 · 127 < 2¹⁵.
//! With [`SDOT`], whose operands are signed, 8-bit codes are moved by −128, which for symmetric formats is what the
//! zero-point correction would do. [`MMLA`] multiplies the codes as they are.

use super::{DotArgs, FloatKind, FmaArgs, KEY_BLOCK};
use crate::cpu::pack::BLOCK;
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows per register tile.
pub(super) const MAX_ROWS: usize = 4;

/// The ways to multiply: widening multiply-add, `sdot`, `usmmla`.
const MULL: u8 = 0;
const SDOT: u8 = 1;
const MMLA: u8 = 2;

/// Integer kernel; see [`DotArgs`].
pub(super) unsafe fn dot(p: &DotArgs) {
    // SAFETY: NEON is part of the architecture; the caller's buffers have `DotArgs`' extents.
    unsafe {
        for part in 0..2 {
            dot_formats::<MULL, 2>(p, part);
        }
    }
}

/// Integer kernel with dot product instructions; see [`DotArgs`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dot_sdot(p: &DotArgs) {
    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
    unsafe { dot_formats::<SDOT, 4>(p, 0) }
}

/// Integer kernel with matrix instructions; see [`DotArgs`]. They take rows by two, so a single row is left to `sdot`.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn dot_usmmla(p: &DotArgs) {
    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
    unsafe { if p.rows == 1 { dot_sdot(p) } else { dot_formats::<MMLA, 4>(p, 0) } }
}

#[inline(always)]
unsafe fn dot_formats<const WAY: u8, const N: usize>(p: &DotArgs, part: usize) {
    // SAFETY: as the caller.
    unsafe {
        match (p.nibbles, p.min) {
            (true, false) => dot_rows::<WAY, N, true, false>(p, part),
            (true, true) => dot_rows::<WAY, N, true, true>(p, part),
            (false, false) => dot_rows::<WAY, N, false, false>(p, part),
            (false, true) => dot_rows::<WAY, N, false, true>(p, part),
        }
    }
}

#[inline(always)]
unsafe fn dot_rows<const WAY: u8, const N: usize, const NIBBLES: bool, const MIN: bool>(p: &DotArgs, part: usize) {
    // SAFETY: as the caller.
    unsafe {
        match p.rows {
            1 => dot_part::<WAY, N, NIBBLES, MIN, 1>(p, part),
            2 => dot_part::<WAY, N, NIBBLES, MIN, 2>(p, part),
            3 => dot_part::<WAY, N, NIBBLES, MIN, 3>(p, part),
            _ => dot_part::<WAY, N, NIBBLES, MIN, MAX_ROWS>(p, part),
        }
    }
}

/// Part `part` of the columns: those of `N` registers. Only inlined where the features of its way are enabled.
#[inline(always)]
unsafe fn dot_part<const WAY: u8, const N: usize, const NIBBLES: bool, const MIN: bool, const R: usize>(
    p: &DotArgs,
    part: usize,
) {
    // SAFETY: the streams advance by exactly the extents that `DotArgs` documents; `p.rows == R`, and columns
    // `4 * N * part..4 * N * (part + 1)` are among the 16.
    unsafe {
        let column = 4 * N * part;
        let (mut weights, mut act, mut ahead) = (p.weights, p.act, p.ahead);
        for _ in 0..p.blocks {
            for _ in 0..if part == 0 { p.ahead_lines } else { 0 } {
                prefetch(ahead);
                ahead = ahead.wrapping_add(64);
            }
            let mut block = [[vdupq_n_f32(0.0); N]; R];
            let mut correction = act.add(BLOCK / 4 * R);
            let act_scale = correction.add(p.groups * R);
            let mut codes = weights.add(4 * column);
            let mut scales = weights.add(BLOCK * 16 / if NIBBLES { 2 } else { 1 });
            let mut mins = scales.add(p.groups * 32);
            for _ in 0..p.groups {
                let mut sum = [[vdupq_n_s32(0); N]; R];
                for r in 0..R {
                    let correction = *correction.add(r);
                    let start = match (WAY == SDOT && !NIBBLES, MIN) {
                        (false, false) => correction as i32,
                        (false, true) | (true, false) => 0,
                        // Undoes the move by -128: the correction is the exact sum of the activations.
                        (true, true) => 128 * f32::from_bits(correction) as i32,
                    };
                    sum[r] = [vdupq_n_s32(start); N];
                }
                let rounds = 4 / p.groups;
                match WAY {
                    MULL => add_mull::<N, NIBBLES, R>(&mut sum, codes, act, rounds),
                    SDOT => add_sdot::<N, NIBBLES, R>(&mut sum, codes, act, rounds),
                    _ => add_usmmla::<N, NIBBLES, R>(&mut sum, codes, act, rounds),
                }
                codes = codes.add(rounds * ROUND_CODES / if NIBBLES { 2 } else { 1 });
                act = act.add(rounds * 8 * R);
                for n in 0..N {
                    let scale = widen_f16(scales.add(2 * (column + 4 * n)));
                    for r in 0..R {
                        block[r][n] = vfmaq_f32(block[r][n], vcvtq_f32_s32(sum[r][n]), scale);
                    }
                    if MIN {
                        let min = widen_f16(mins.add(2 * (column + 4 * n)));
                        for r in 0..R {
                            let a = vdupq_n_f32(f32::from_bits(*correction.add(r)));
                            block[r][n] = vfmaq_f32(block[r][n], a, min);
                        }
                    }
                }
                scales = scales.add(32);
                if MIN {
                    mins = mins.add(32);
                }
                correction = correction.add(R);
            }
            for r in 0..R {
                let a = vdupq_n_f32(f32::from_bits(*act_scale.add(r)));
                for n in 0..N {
                    let total = p.total.add(16 * r + column + 4 * n);
                    vst1q_f32(total, vfmaq_f32(vld1q_f32(total), block[r][n], a));
                }
            }
            act = act_scale.add(R);
            weights = if MIN { mins } else { scales };
        }
    }
}

/// Asks for a line; any address will do. The intrinsic is not stable yet.
#[inline(always)]
fn prefetch(at: *const u8) {
    // SAFETY: a hint, which neither faults nor changes anything that a program can see.
    unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly)) }
}

/// Codes of 32 k.
const ROUND_CODES: usize = 32 * 16;

/// Adds the products of `rounds` times 32 k.
#[inline(always)]
unsafe fn add_sdot<const N: usize, const NIBBLES: bool, const R: usize>(
    sum: &mut [[int32x4_t; N]; R],
    codes: *const u8,
    act: *const u32,
    rounds: usize,
) {
    // SAFETY: the caller has the codes and the activations of so many k, and the feature.
    unsafe {
        let (low, middle) = (vdupq_n_u8(15), vdupq_n_u8(128));
        for i in 0..rounds * if NIBBLES { 4 } else { 8 } {
            for n in 0..N {
                let w = vld1q_u8(codes.add(64 * i + 16 * n));
                if NIBBLES {
                    let (first, second) = (vandq_u8(w, low), vshrq_n_u8::<4>(w));
                    for r in 0..R {
                        sum[r][n] = sdot(sum[r][n], first, *act.add(2 * i * R + r));
                        sum[r][n] = sdot(sum[r][n], second, *act.add((2 * i + 1) * R + r));
                    }
                } else {
                    for r in 0..R {
                        sum[r][n] = sdot(sum[r][n], veorq_u8(w, middle), *act.add(i * R + r));
                    }
                }
            }
        }
    }
}

/// `sum + Σ4 w a` with signed bytes; the intrinsic is not stable yet.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, w: uint8x16_t, a: u32) -> int32x4_t {
    // SAFETY: the caller has the feature; registers only.
    unsafe {
        let a = vdupq_n_u32(a);
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// As [`add_sdot`], two columns by two rows and 8 k at a time.
///
/// Reads of activations may run into the words behind them, which fill the second half of a last, odd row.
#[inline(always)]
unsafe fn add_usmmla<const N: usize, const NIBBLES: bool, const R: usize>(
    sum: &mut [[int32x4_t; N]; R],
    codes: *const u8,
    act: *const u32,
    rounds: usize,
) {
    debug_assert!(R > 1, "a single row has no second one to read");
    // SAFETY: as `add_sdot`; at least `2 * R` words follow the activations of a block, and `R >= 2` of the four that
    // are read at the last quad are its own.
    unsafe {
        let low = vdupq_n_u8(15);
        // For rows `2 * pair` and the next one: of four columns the first and the last two, `[column][row]`.
        let mut pairs = [[[vdupq_n_s32(0); 2]; N]; MAX_ROWS / 2];
        for r in 0..R {
            for n in 0..N {
                let other = sum[if r + 1 < R { r + 1 } else { r }][n];
                if r % 2 == 0 {
                    pairs[r / 2][n] = [vzip1q_s32(sum[r][n], other), vzip2q_s32(sum[r][n], other)];
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
            for n in 0..N {
                let vector = |v: usize| vreinterpretq_u32_u8(vld1q_u8(codes.add(128 * i + 64 * v + 16 * n)));
                for (half, w) in zip(vector(0), vector(1)).into_iter().enumerate() {
                    let w = vreinterpretq_u8_u32(w);
                    for pair in 0..R.div_ceil(2) {
                        let sum = &mut pairs[pair][n][half];
                        if NIBBLES {
                            *sum = usmmla(*sum, vandq_u8(w, low), even[pair]);
                            *sum = usmmla(*sum, vshrq_n_u8::<4>(w), odd[pair]);
                        } else {
                            *sum = usmmla(*sum, w, even[pair]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                let [first, last] = pairs[r / 2][n];
                sum[r][n] = if r % 2 == 0 { vuzp1q_s32(first, last) } else { vuzp2q_s32(first, last) };
            }
        }
    }
}

#[inline(always)]
fn zip(a: uint32x4_t, b: uint32x4_t) -> [uint32x4_t; 2] {
    // SAFETY: NEON is part of the architecture.
    unsafe { [vzip1q_u32(a, b), vzip2q_u32(a, b)] }
}

/// `sum + w aᵀ` of two columns and two rows of 8 k, codes unsigned and activations signed; the intrinsic is not stable yet.
#[inline(always)]
unsafe fn usmmla(mut sum: int32x4_t, w: uint8x16_t, a: uint32x4_t) -> int32x4_t {
    // SAFETY: the caller has the feature; registers only.
    unsafe {
        asm!(
            "usmmla {sum:v}.4s, {w:v}.16b, {a:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// As [`add_sdot`] with 16-bit products.
#[inline(always)]
unsafe fn add_mull<const N: usize, const NIBBLES: bool, const R: usize>(
    sum: &mut [[int32x4_t; N]; R],
    codes: *const u8,
    act: *const u32,
    rounds: usize,
) {
    for round in 0..rounds {
        // SAFETY: the caller has the codes and the activations of so many k.
        unsafe {
            let codes = codes.add(round * ROUND_CODES / if NIBBLES { 2 } else { 1 });
            let act = act.add(round * 8 * R);
            let low = vdupq_n_u8(15);
            // Per register of columns, the first and the last two of them.
            let mut lo = [[[vdupq_n_s16(0); 2]; N]; R];
            let mut hi = [[[vdupq_n_s16(0); 2]; N]; R];
            for i in 0..if NIBBLES { 4 } else { 8 } {
                for n in 0..N {
                    let w = vld1q_u8(codes.add(64 * i + 16 * n));
                    let first = vreinterpretq_s8_u8(vandq_u8(w, low));
                    let second = vreinterpretq_s8_u8(vshrq_n_u8::<4>(w));
                    for r in 0..R {
                        // Nibbles of a 4-bit vector meet different activations; those of 8-bit codes meet the same ones.
                        if NIBBLES {
                            lo[r][n] = mull(lo[r][n], first, *act.add(2 * i * R + r));
                            lo[r][n] = mull(lo[r][n], second, *act.add((2 * i + 1) * R + r));
                        } else {
                            lo[r][n] = mull(lo[r][n], first, *act.add(i * R + r));
                            hi[r][n] = mull(hi[r][n], second, *act.add(i * R + r));
                        }
                    }
                }
            }
            for r in 0..R {
                for n in 0..N {
                    sum[r][n] = vpadalq_s16(sum[r][n], vpaddq_s16(lo[r][n][0], lo[r][n][1]));
                    if !NIBBLES {
                        let high = vpaddlq_s16(vpaddq_s16(hi[r][n][0], hi[r][n][1]));
                        sum[r][n] = vaddq_s32(sum[r][n], vshlq_n_s32::<4>(high));
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn mull(sum: [int16x8_t; 2], w: int8x16_t, a: u32) -> [int16x8_t; 2] {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let a = vreinterpretq_s8_u32(vdupq_n_u32(a));
        [vmlal_s8(sum[0], vget_low_s8(w), vget_low_s8(a)), vmlal_high_s8(sum[1], w, a)]
    }
}

/// Float kernel; see [`FmaArgs`].
pub(super) unsafe fn fma(p: &FmaArgs) {
    // SAFETY: NEON is part of the architecture; the caller's buffers have `FmaArgs`' extents.
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

unsafe fn fma_tile<const R: usize, const C: usize, const KIND: u8>(p: &FmaArgs, t: usize) {
    // SAFETY: `p.rows == R`, `t + C <= p.tiles`, and every index is below the extents that `FmaArgs` documents.
    unsafe {
        let size = p.w_kind.size();
        let (step, tile) = (p.w_step * size, p.w_tile * size);
        let mut w = p.w.add(t * tile);
        let total = p.total.add(t * p.total_tile);
        let mut sum = [[[vdupq_n_f32(0.0); 4]; R]; C];
        for c in 0..C {
            for r in 0..R {
                for n in 0..4 {
                    sum[c][r][n] = vld1q_f32(total.add(c * p.total_tile + r * p.total_row + 4 * n));
                }
            }
        }
        let (row, next) = if p.a_row_major { (KEY_BLOCK, 1) } else { (1, R) };
        let mut a = p.a;
        for _ in 0..p.k {
            for c in 0..C {
                let at = w.add(c * tile);
                let v = match KIND {
                    0 => [0, 16, 32, 48].map(|i| vld1q_f32(at.add(i).cast())),
                    1 => [0, 8, 16, 24].map(|i| widen_f16(at.add(i))),
                    2 => [0, 8, 16, 24].map(|i| widen_bf16(at.add(i))),
                    _ => widen_i8(at),
                };
                for r in 0..R {
                    let x = vdupq_n_f32(*a.add(r * row));
                    for n in 0..4 {
                        sum[c][r][n] = vfmaq_f32(sum[c][r][n], x, v[n]);
                    }
                }
            }
            w = w.wrapping_add(step);
            a = a.wrapping_add(next);
        }
        for c in 0..C {
            for r in 0..R {
                for n in 0..4 {
                    vst1q_f32(total.add(c * p.total_tile + r * p.total_row + 4 * n), sum[c][r][n]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn widen_f16(at: *const u8) -> float32x4_t {
    let out: float32x4_t;
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

#[inline(always)]
unsafe fn widen_bf16(at: *const u8) -> float32x4_t {
    // SAFETY: the caller has four elements at `at`.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(at)))) }
}

#[inline(always)]
unsafe fn widen_i8(at: *const u8) -> [float32x4_t; 4] {
    // SAFETY: the caller has sixteen elements at `at`.
    unsafe {
        let bytes = vld1q_s8(at.cast());
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
            .map(|v| vcvtq_f32_s32(v))
    }
}
