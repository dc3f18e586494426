//! The integer kernels for AVX-VNNI: 256-bit dot products of unsigned and signed bytes. The float kernel is AVX2's.
//!
//! Invariant: codes are unsigned bytes as they are stored, and `vpdpbusd` sums their products exactly.

use super::avx2::*;
use super::dot::{attend, dot, quads};
use super::{AttendArgs, DotArgs};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use std::arch::x86_64::__m256i;

/// The kernel as a module, for one spelling of the instruction.
macro_rules! kernel {
    ($name:ident, $features:literal, $dpbusd:ident) => {
        mod $name {
            use super::*;

            const MOVED: bool = false;

            dot!($features, 1 => 2, 2 => 2, 3 => 2, 4 => 2);
            quads!($features, add, __m256i, 8);

            #[inline]
            #[target_feature(enable = $features)]
            fn multiply<const NIBBLES: bool>(sum: __m256i, codes: __m256i, act: __m256i) -> __m256i {
                std::arch::x86_64::$dpbusd(sum, codes, act)
            }
        }
    };
}

kernel!(vex, "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
pub(super) use vex::{attend, dot};

// The same body with the other encoding of the same instruction, so that more machines can test it.
#[cfg(test)]
kernel!(evex, "avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::kernels::{ROUND_BYTES, scalar};

    /// Every shape of a call on pseudo-random operands, bit for bit against plain Rust.
    fn compare(dot: unsafe fn(&DotArgs)) {
        const BLOCKS: usize = 3;
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for (rows, groups) in (1..=MAX_ROWS).flat_map(|r| [1, 2, 4].map(|g| (r, g))) {
            for (nibbles, min) in [(true, false), (true, true), (false, false), (false, true)] {
                let mut weights = Vec::new();
                let mut act = Vec::new();
                for _ in 0..BLOCKS {
                    weights.extend((0..BLOCK * 16 / if nibbles { 2 } else { 1 }).map(|_| byte()));
                    // Scales and minima between 2⁻⁷ and 2, of both signs.
                    for _ in 0..groups * 16 * if min { 2 } else { 1 } {
                        weights.extend([byte(), 0x20 | (byte() & 0x9f)]);
                    }
                    let codes =
                        (0..BLOCK / 4 * rows).map(|_| u32::from_le_bytes([(); 4].map(|()| byte().clamp(1, 255))));
                    act.extend(codes.collect::<Vec<_>>());
                    for _ in 0..groups * rows {
                        let sum = i32::from(byte()) * 16 - 2048;
                        act.push(if min { (sum as f32).to_bits() } else { sum as u32 });
                    }
                    act.extend((0..rows).map(|_| (f32::from(byte()) * 0.01).to_bits()));
                }
                let run = |dot: unsafe fn(&DotArgs)| {
                    let mut total = vec![0.5f32; rows * 16];
                    let (weights, act) = (weights.as_ptr(), act.as_ptr());
                    let args = DotArgs {
                        rows,
                        blocks: BLOCKS,
                        groups,
                        nibbles,
                        min,
                        weights,
                        block_bytes: BLOCK * 16 / if nibbles { 2 } else { 1 } + groups * 32 * if min { 2 } else { 1 },
                        act,
                        next_act: act,
                        total: total.as_mut_ptr(),
                        ahead: weights,
                        ahead_lines: 0,
                    };
                    // SAFETY: the operands have the extents that `DotArgs` documents; the caller checked the features.
                    unsafe { dot(&args) };
                    total.iter().map(|t| t.to_bits()).collect::<Vec<_>>()
                };
                assert_eq!(run(dot), run(scalar::dot), "{rows} rows, {groups} groups, nibbles {nibbles}, min {min}");
            }
        }
    }

    /// The same for attention: tiles and rounds that lie apart, and every count of rows.
    fn compare_attention(attend: unsafe fn(&AttendArgs)) {
        const TILES: usize = 3;
        const ROUNDS: usize = 2;
        let codes: Vec<u8> = (0..TILES * ROUNDS * ROUND_BYTES).map(|i| (i * 7919 % 257) as u8).collect();
        for rows in 1..=MAX_ROWS {
            let mut act: Vec<u32> = (0..8 * ROUNDS * rows).map(|i| (i as u32).wrapping_mul(0x9e37_79b1) | 1).collect();
            act.iter_mut()
                .for_each(|a| *a = u32::from_le_bytes(a.to_le_bytes().map(|b| if b == 128 { 127 } else { b })));
            let corrections = act.len();
            for r in 0..rows {
                let sum = |a: &u32| a.to_le_bytes().map(|b| i32::from(b as i8)).iter().sum::<i32>();
                act.push((-128 * act[r..corrections].iter().step_by(rows).map(sum).sum::<i32>()) as u32);
            }
            act.extend((0..rows).map(|r| (0.01 + r as f32).to_bits()));
            let run = |attend: unsafe fn(&AttendArgs)| {
                let mut total = vec![0.5f32; TILES * rows * 16];
                let args = AttendArgs {
                    rows,
                    tiles: TILES,
                    rounds: ROUNDS,
                    codes: codes.as_ptr(),
                    round_bytes: TILES * ROUND_BYTES,
                    tile_bytes: ROUND_BYTES,
                    act: act.as_ptr(),
                    corrections: act[corrections..].as_ptr(),
                    total: total.as_mut_ptr(),
                    total_row: 16,
                    total_tile: 16 * rows,
                };
                // SAFETY: the operands have the extents that `AttendArgs` documents; the caller checked the features.
                unsafe { attend(&args) };
                total.iter().map(|t| t.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(run(attend), run(scalar::attend), "attention of {rows} rows");
        }
    }

    #[test]
    fn both_encodings_give_the_bits_of_plain_rust() {
        if Isa::AvxVnni.available() {
            compare(vex::dot);
            compare_attention(vex::attend);
        }
        if Isa::Avx512.available() {
            compare(evex::dot);
            compare_attention(evex::attend);
        }
    }
}
