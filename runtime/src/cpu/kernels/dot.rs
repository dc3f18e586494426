//! The integer kernels, written once for all vector instruction sets.
//!
//! Invariant: lanes are output columns, so nothing crosses lanes, and sums are exact, so the way to them makes no
//! difference. Of a block, as many columns are worked off at once as have their accumulators in registers, then the next
//! ones while the block is in L1.

/// The kernels `dot` and `attend` as instructions of `$features`: for each number of rows, how many registers of columns
/// at once, or which module's kernels it is left to.
///
/// The caller has `Floats` of `LANES` columns with `load`, `store`, `splat`, `fmadd(x, y, sum)`, `widen_f16` and
/// `to_floats`; `splat_ints`; `prefetch`; `MOVED`, whether it takes 8-bit codes as signed, moved by −128; and
/// `add::<R, H, NIBBLES>(sum, codes, act, rounds)`, which adds the products of `rounds` times 32 k.
macro_rules! dot {
    ($features:literal, $($rows:literal => $registers:literal),* $(; $other:literal => $module:ident)?) => {
        /// Integer kernel; see [`DotArgs`].
        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels) unsafe fn dot(p: &DotArgs) {
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `DotArgs`' extents.
            unsafe {
                match p.rows {
                    $($rows => dot_rows::<$rows, $registers>(p),)*
                    $($other => $module::dot(p),)?
                    rows => unreachable!("no register tile has {rows} rows"),
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

        /// `H` registers of columns at once. With a `GROUPS` of 0 the number of groups is only known when it runs.
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
            let codes_bytes = BLOCK * TILE_COLUMNS / if NIBBLES { 2 } else { 1 };
            let table_bytes = groups * TILE_COLUMNS * 2;
            // SAFETY: the streams advance by exactly the extents that `DotArgs` documents; `p.rows == R`, and the columns
            // `first..first + H * LANES` are among the sixteen.
            unsafe {
                let (mut weights, mut act, mut ahead) = (p.weights, p.act, p.ahead);
                for _ in 0..p.blocks {
                    for _ in 0..p.ahead_lines {
                        prefetch(ahead);
                        ahead = ahead.wrapping_add(64);
                    }
                    let act_scale = act.add((BLOCK / 4 + groups) * R);
                    for first in (0..TILE_COLUMNS).step_by(H * LANES) {
                        let mut block = [[splat(0.0); H]; R];
                        let (mut codes, mut quads) = (weights.add(4 * first), act);
                        let mut correction = act.add(BLOCK / 4 * R);
                        let mut scales = weights.add(codes_bytes + 2 * first);
                        for _ in 0..groups {
                            let mut sum = [[splat_ints(0); H]; R];
                            for r in 0..R {
                                let correction = *correction.add(r);
                                let start = match (MOVED && !NIBBLES, MIN) {
                                    (false, false) => correction as i32,
                                    (false, true) | (true, false) => 0,
                                    // Undoes the move by -128: the correction is the exact sum of the activations.
                                    (true, true) => 128 * f32::from_bits(correction) as i32,
                                };
                                sum[r] = [splat_ints(start); H];
                            }
                            add::<R, H, NIBBLES>(&mut sum, codes, quads, rounds);
                            codes = codes.add(codes_bytes / 4 * rounds);
                            quads = quads.add(8 * R * rounds);
                            for h in 0..H {
                                let scale = scales.add(2 * LANES * h);
                                let (scale, min) = (widen_f16(scale), scale.add(table_bytes));
                                for r in 0..R {
                                    block[r][h] = fmadd(to_floats(sum[r][h]), scale, block[r][h]);
                                }
                                if MIN {
                                    let min = widen_f16(min);
                                    for r in 0..R {
                                        let a = splat(f32::from_bits(*correction.add(r)));
                                        block[r][h] = fmadd(a, min, block[r][h]);
                                    }
                                }
                            }
                            scales = scales.add(TILE_COLUMNS * 2);
                            correction = correction.add(R);
                        }
                        for r in 0..R {
                            let a = splat(f32::from_bits(*act_scale.add(r)));
                            for h in 0..H {
                                let total = p.total.add(TILE_COLUMNS * r + first + LANES * h);
                                store(total, fmadd(block[r][h], a, load(total)));
                            }
                        }
                    }
                    act = act_scale.add(R);
                    weights = weights.add(p.block_bytes);
                }
            }
        }

        attend!($features, $($rows => $registers),* $(; $other => $module)?);
    };
}
pub(super) use dot;

/// The kernel `attend`, with the arguments of `dot!` and of its caller as far as it needs them.
macro_rules! attend {
    ($features:literal, $($rows:literal => $registers:literal),* $(; $other:literal => $module:ident)?) => {
        /// Integer kernel of attention; see [`AttendArgs`].
        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels) unsafe fn attend(p: &AttendArgs) {
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `AttendArgs`' extents.
            unsafe {
                match p.rows {
                    $($rows => attend_rows::<$rows, $registers>(p),)*
                    $($other => $module::attend(p),)?
                    rows => unreachable!("no register tile has {rows} rows"),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn attend_rows<const R: usize, const H: usize>(p: &AttendArgs) {
            // SAFETY: `p.rows == R`, and the streams advance by exactly the extents that `AttendArgs` documents.
            unsafe {
                let scale = p.corrections.add(R);
                for t in 0..p.tiles {
                    for first in (0..TILE_COLUMNS).step_by(H * LANES) {
                        let mut sum = [[splat_ints(0); H]; R];
                        for r in 0..R {
                            let start = if MOVED { 0 } else { *p.corrections.add(r) as i32 };
                            sum[r] = [splat_ints(start); H];
                        }
                        let (mut codes, mut quads) = (p.codes.add(t * p.tile_bytes + 4 * first), p.act);
                        for _ in 0..p.rounds {
                            add::<R, H, false>(&mut sum, codes, quads, 1);
                            (codes, quads) = (codes.wrapping_add(p.round_bytes), quads.add(8 * R));
                        }
                        for r in 0..R {
                            let scale = splat(f32::from_bits(*scale.add(r)));
                            for h in 0..H {
                                let total = p.total.add(t * p.total_tile + r * p.total_row + first + LANES * h);
                                store(total, fmadd(to_floats(sum[r][h]), scale, load(total)));
                            }
                        }
                    }
                }
            }
        }
    };
}
pub(super) use attend;

/// `$name::<R, H, NIBBLES>(sum, codes, act, rounds)`, which adds the products of `rounds` times 32 k to sums of type
/// `$sum`, one quad of k after the other. `$unrolled` quads of 8-bit codes are in the body of the loop.
///
/// The caller has `load_codes`, `low` and `high` for the two nibbles of codes, and
/// `multiply::<NIBBLES>(sum, codes, quads of activations)`.
macro_rules! quads {
    ($features:literal, $name:ident, $sum:ty, $unrolled:literal) => {
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const H: usize, const NIBBLES: bool>(
            sum: &mut [[$sum; H]; R],
            mut codes: *const u8,
            mut act: *const u32,
            rounds: usize,
        ) {
            // SAFETY: the caller has the codes and the activations of so many k.
            unsafe {
                let unrolled = if NIBBLES { 4 } else { $unrolled };
                for _ in 0..rounds * if NIBBLES { 1 } else { 8 / unrolled } {
                    for _ in 0..unrolled {
                        for nibble in 0..if NIBBLES { 2 } else { 1 } {
                            let mut w = [load_codes(codes); H];
                            for h in 0..H {
                                let codes = load_codes(codes.add(4 * LANES * h));
                                w[h] = match (NIBBLES, nibble) {
                                    (false, _) => codes,
                                    (true, 0) => low(codes),
                                    (true, _) => high(codes),
                                };
                            }
                            for r in 0..R {
                                let a = splat_ints(*act.add(r) as i32);
                                for h in 0..H {
                                    sum[r][h] = multiply::<NIBBLES>(sum[r][h], w[h], a);
                                }
                            }
                            act = act.add(R);
                        }
                        codes = codes.add(64);
                    }
                }
            }
        }
    };
}
pub(super) use quads;
