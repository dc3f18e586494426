//! Looking codes of `l16` up ahead of the integer kernel, written once for the instruction sets without a table of 64 bytes
//! in one register.
//!
//! Invariant: what is written are the bytes that plain Rust writes.

/// `look_up` as instructions of `$features`, with `$lanes` columns to a register.
///
/// The caller has `load_codes`, `low` and `high` for the two nibbles of codes; `levels(at)`, the levels of four runs in each of
/// the four bytes of a column, the first run's in the lowest two bits; `next`, which brings the next run's there; `choose(levels)`,
/// what `numbers(codes, choice)` is given of the level in the lowest two bits; and `keep(at, numbers)`.
macro_rules! look_up {
    ($features:literal, $lanes:literal) => {
        /// See [`Lookup::Ahead`](super::Lookup).
        #[target_feature(enable = $features)]
        pub(super) unsafe fn look_up(from: *const u8, blocks: usize, to: *mut u8) {
            for b in 0..blocks {
                // SAFETY: the caller has so many blocks at `from`, and room for them at `to`.
                unsafe {
                    let from = from.add(b * TABLE_BLOCK_BYTES);
                    let to = to.add(b * LOOKED_UP_BYTES);
                    for first in (0..TILE_COLUMNS).step_by($lanes) {
                        for half in 0..2 {
                            let mut levels = levels(from.add(LEVELS_AT + 2 * first + half));
                            for run in 4 * half..4 * half + 4 {
                                let choice = choose(levels);
                                for vector in 2 * run..2 * run + 2 {
                                    let codes = load_codes(from.add(64 * vector + 4 * first));
                                    let to = to.add(128 * vector + 4 * first);
                                    keep(to, numbers(low(codes), choice));
                                    keep(to.add(64), numbers(high(codes), choice));
                                }
                                levels = next(levels);
                            }
                        }
                    }
                    to.add(CODES_BYTES).copy_from_nonoverlapping(from.add(SCALES_AT), TILE_SCALE_BYTES);
                }
            }
        }
    };
}
pub(super) use look_up;
