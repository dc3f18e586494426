//! The integer kernel for AVX-VNNI: 256-bit dot products of unsigned and signed bytes. The float kernel is AVX2's.
//!
//! Invariant: a tile is worked off as two halves of eight columns, so that accumulators, weights and broadcast activations
//! of four rows stay in the sixteen registers.

use super::DotArgs;
use super::avx2::MAX_ROWS;
use crate::cpu::pack::BLOCK;
use std::arch::x86_64::*;

/// The kernel as a module, for one spelling of the instruction.
macro_rules! kernel {
    ($name:ident, $features:literal, $dpbusd:ident) => {
        mod $name {
            use super::*;

            #[target_feature(enable = $features)]
            pub(in super::super) unsafe fn dot(p: &DotArgs) {
                for half in 0..2 {
                    // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have
                    // `DotArgs`' extents; a half is columns `8 * half..8 * half + 8` of each vector of 16.
                    unsafe {
                        match p.rows {
                            1 => dot_rows::<1>(p, half),
                            2 => dot_rows::<2>(p, half),
                            3 => dot_rows::<3>(p, half),
                            _ => dot_rows::<MAX_ROWS>(p, half),
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn dot_rows<const R: usize>(p: &DotArgs, half: usize) {
                // SAFETY: as `dot`.
                unsafe {
                    match (p.nibbles, p.min) {
                        (true, false) => dot_half::<R, true, false>(p, half),
                        (true, true) => dot_half::<R, true, true>(p, half),
                        (false, false) => dot_half::<R, false, false>(p, half),
                        (false, true) => dot_half::<R, false, true>(p, half),
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn dot_half<const R: usize, const NIBBLES: bool, const MIN: bool>(p: &DotArgs, half: usize) {
                // SAFETY: the streams advance by exactly the extents that `DotArgs` documents; `p.rows == R`, `half < 2`.
                unsafe {
                    let low = _mm256_set1_epi8(15);
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
                            for _ in 0..(if NIBBLES { 16 } else { 32 }) / p.groups {
                                let w = _mm256_loadu_si256(codes.cast());
                                codes = codes.add(64);
                                let first = if NIBBLES { _mm256_and_si256(w, low) } else { w };
                                for r in 0..R {
                                    sum[r] = $dpbusd(sum[r], first, _mm256_set1_epi32(*act.add(r) as i32));
                                }
                                act = act.add(R);
                                if NIBBLES {
                                    let second = _mm256_and_si256(_mm256_srli_epi16::<4>(w), low);
                                    for r in 0..R {
                                        sum[r] = $dpbusd(sum[r], second, _mm256_set1_epi32(*act.add(r) as i32));
                                    }
                                    act = act.add(R);
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
                                    let a = _mm256_set1_ps(f32::from_bits(*correction.add(r)));
                                    block[r] = _mm256_fmadd_ps(a, min, block[r]);
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
        }
    };
}

kernel!(vex, "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
pub(super) use vex::dot;

// The same body with the other encoding of the same instruction, so that more machines can test it.
#[cfg(test)]
kernel!(evex, "avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::kernels::scalar;

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
                        act,
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

    #[test]
    fn both_encodings_give_the_bits_of_plain_rust() {
        if Isa::AvxVnni.available() {
            compare(vex::dot);
        }
        if Isa::Avx512.available() {
            compare(evex::dot);
        }
    }
}
