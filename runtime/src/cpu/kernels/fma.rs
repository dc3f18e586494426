//! The float kernel, written once for all vector instruction sets.
//!
//! Invariant: lanes are output columns, so nothing crosses lanes, and each sums sequentially over k.

/// The kernel `fma` as instructions of `$features`: for each number of rows, how many column tiles at once. Few rows take
/// several, so that enough independent sums are in flight to hide the latency.
///
/// The caller has `Floats` of `LANES` columns with `load`, `store`, `splat`, `fmadd(x, y, sum)`, `widen_f16` and
/// `widen_bf16`.
macro_rules! fma {
    ($features:literal, $($rows:literal => $tiles:literal),*) => {
        /// Float kernel; see [`FmaArgs`].
        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels) unsafe fn fma(p: &FmaArgs) {
            // SAFETY: the CPU has the features (they are enabled here too) and the caller's buffers have `FmaArgs`' extents.
            unsafe {
                match p.rows {
                    $($rows => fma_rows::<$rows, $tiles>(p),)*
                    rows => unreachable!("no register tile has {rows} rows"),
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
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

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn fma_kind<const R: usize, const C: usize>(p: &FmaArgs, t: usize) {
            // SAFETY: as `fma`.
            unsafe {
                match (p.w_kind, p.a_row_major) {
                    (FloatKind::F32, false) => fma_tile::<R, C, 0, false>(p, t),
                    (FloatKind::F32, true) => fma_tile::<R, C, 0, true>(p, t),
                    (FloatKind::F16, false) => fma_tile::<R, C, 1, false>(p, t),
                    (FloatKind::F16, true) => fma_tile::<R, C, 1, true>(p, t),
                    (FloatKind::BF16, false) => fma_tile::<R, C, 2, false>(p, t),
                    (FloatKind::BF16, true) => fma_tile::<R, C, 2, true>(p, t),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn fma_tile<const R: usize, const C: usize, const KIND: u8, const ROW_MAJOR: bool>(
            p: &FmaArgs,
            t: usize,
        ) {
            const N: usize = TILE_COLUMNS / LANES;
            // SAFETY: `p.rows == R`, `t + C <= p.tiles`, and every index is below the extents that `FmaArgs` documents.
            unsafe {
                let size = p.w_kind.size();
                let (step, tile) = (p.w_step * size, p.w_tile * size);
                let (row, next) = if ROW_MAJOR { (KEY_BLOCK, 1) } else { (1, R) };
                let (mut w, mut a) = (p.w.add(t * tile), p.a);
                let total = p.total.add(t * p.total_tile);
                let mut sum = [[[splat(0.0); N]; R]; C];
                for c in 0..C {
                    for r in 0..R {
                        for n in 0..N {
                            sum[c][r][n] = load(total.add(c * p.total_tile + r * p.total_row + LANES * n));
                        }
                    }
                }
                for _ in 0..p.k {
                    let mut v = [[splat(0.0); N]; C];
                    for c in 0..C {
                        let at = w.add(c * tile);
                        for n in 0..N {
                            v[c][n] = match KIND {
                                0 => load(at.add(4 * LANES * n).cast()),
                                1 => widen_f16(at.add(2 * LANES * n)),
                                _ => widen_bf16(at.add(2 * LANES * n)),
                            };
                        }
                    }
                    for r in 0..R {
                        let x = splat(*a.add(r * row));
                        for c in 0..C {
                            for n in 0..N {
                                sum[c][r][n] = fmadd(x, v[c][n], sum[c][r][n]);
                            }
                        }
                    }
                    w = w.wrapping_add(step);
                    a = a.wrapping_add(next);
                }
                for c in 0..C {
                    for r in 0..R {
                        for n in 0..N {
                            store(total.add(c * p.total_tile + r * p.total_row + LANES * n), sum[c][r][n]);
                        }
                    }
                }
            }
        }
    };
}
pub(super) use fma;
