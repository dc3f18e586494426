//! The tile loop of the integer kernels of AVX2 and AVX-VNNI, whose registers hold half of the sixteen columns.
//!
//! Invariant: of a block, both halves of the columns are worked off at once as long as their accumulators fit the sixteen
//! registers, else one after the other while the block is in L1. Sums are exact, so the way makes no difference.

/// The kernel `dot` as instructions of `$features`, with both halves at once up to `$both` rows.
///
/// The caller has `MAX_ROWS`; `MOVED`, whether it takes 8-bit codes as signed, moved by −128; and
/// `add::<R, H, NIBBLES>(sum, codes, act, rounds)`, which adds the products of `rounds` times 32 k.
macro_rules! dot256 {
    ($features:literal, $both:literal) => {
        /// Integer kernel; see [`DotArgs`].
        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels) unsafe fn dot(p: &DotArgs) {
            const fn halves(rows: usize) -> usize {
                if rows <= $both { 2 } else { 1 }
            }
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
            unsafe {
                match p.rows {
                    1 => dot_rows::<1, { halves(1) }>(p),
                    2 => dot_rows::<2, { halves(2) }>(p),
                    3 => dot_rows::<3, { halves(3) }>(p),
                    _ => dot_rows::<MAX_ROWS, { halves(MAX_ROWS) }>(p),
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn dot_rows<const R: usize, const H: usize>(p: &DotArgs) {
            // SAFETY: as `dot`.
            unsafe {
                match (p.nibbles, p.min, p.groups) {
                    (true, false, 1) => dot_tile::<R, H, true, false, 1>(p),
                    (true, false, 2) => dot_tile::<R, H, true, false, 2>(p),
                    (true, false, _) => dot_tile::<R, H, true, false, 4>(p),
                    (true, true, _) => dot_tile::<R, H, true, true, 0>(p),
                    // Unrolled over short groups, two to four rows of 8-bit codes run slower from memory.
                    (false, false, _) => dot_tile::<R, H, false, false, 0>(p),
                    (false, true, _) => dot_tile::<R, H, false, true, 0>(p),
                }
            }
        }

        /// `H` halves at once. With a `GROUPS` of 0 the number of groups is only known when it runs.
        #[target_feature(enable = $features)]
        unsafe fn dot_tile<
            const R: usize,
            const H: usize,
            const NIBBLES: bool,
            const MIN: bool,
            const GROUPS: usize,
        >(
            p: &DotArgs,
        ) {
            let groups = if GROUPS == 0 { p.groups } else { GROUPS };
            // 32 k per round: no more unrolling than the shortest group needs.
            let rounds = 4 / groups;
            let codes_bytes = BLOCK * 16 / if NIBBLES { 2 } else { 1 };
            let block_bytes = codes_bytes + groups * 32 * if MIN { 2 } else { 1 };
            // SAFETY: the streams advance by exactly the extents that `DotArgs` documents; `p.rows == R`, and the halves
            // `first..first + H` are among the two.
            unsafe {
                let (mut weights, mut act, mut ahead) = (p.weights, p.act, p.ahead);
                for _ in 0..p.blocks {
                    for _ in 0..p.ahead_lines {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        ahead = ahead.wrapping_add(64);
                    }
                    let act_scale = act.add((BLOCK / 4 + groups) * R);
                    for first in (0..2).step_by(H) {
                        let mut block = [[_mm256_setzero_ps(); H]; R];
                        let (mut codes, mut quads) = (weights.add(32 * first), act);
                        let mut correction = act.add(BLOCK / 4 * R);
                        let mut scales = weights.add(codes_bytes + 16 * first);
                        for _ in 0..groups {
                            let mut sum = [[_mm256_setzero_si256(); H]; R];
                            for r in 0..R {
                                let correction = *correction.add(r);
                                let start = match (MOVED && !NIBBLES, MIN) {
                                    (false, false) => correction as i32,
                                    (false, true) | (true, false) => 0,
                                    // Undoes the move by -128: the correction is the exact sum of the activations.
                                    (true, true) => 128 * f32::from_bits(correction) as i32,
                                };
                                sum[r] = [_mm256_set1_epi32(start); H];
                            }
                            add::<R, H, NIBBLES>(&mut sum, codes, quads, rounds);
                            codes = codes.add(codes_bytes / 4 * rounds);
                            quads = quads.add(8 * R * rounds);
                            for h in 0..H {
                                let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.add(16 * h).cast()));
                                for r in 0..R {
                                    block[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]), scale, block[r][h]);
                                }
                                if MIN {
                                    let min = _mm_loadu_si128(scales.add(groups * 32 + 16 * h).cast());
                                    let min = _mm256_cvtph_ps(min);
                                    for r in 0..R {
                                        let a = _mm256_set1_ps(f32::from_bits(*correction.add(r)));
                                        block[r][h] = _mm256_fmadd_ps(a, min, block[r][h]);
                                    }
                                }
                            }
                            scales = scales.add(32);
                            correction = correction.add(R);
                        }
                        for r in 0..R {
                            let a = _mm256_set1_ps(f32::from_bits(*act_scale.add(r)));
                            for h in 0..H {
                                let total = p.total.add(16 * r + 8 * (first + h));
                                _mm256_storeu_ps(total, _mm256_fmadd_ps(block[r][h], a, _mm256_loadu_ps(total)));
                            }
                        }
                    }
                    act = act_scale.add(R);
                    weights = weights.add(block_bytes);
                }
            }
        }

        /// `H` registers of codes.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load<const H: usize>(codes: *const u8) -> [__m256i; H] {
            let mut w = [_mm256_setzero_si256(); H];
            for h in 0..H {
                // SAFETY: the caller has so many.
                w[h] = unsafe { _mm256_loadu_si256(codes.add(32 * h).cast()) };
            }
            w
        }
    };
}
pub(super) use dot256;
