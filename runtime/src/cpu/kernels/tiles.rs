//! How rows are cut into register tiles.
//!
//! Invariant: tiles are balanced (sizes differ by at most one), so no kernel call works on a thin remainder.

use std::ops::Range;

/// `rows` cut into the fewest tiles of at most `max` rows.
#[derive(Clone, Copy)]
pub(super) struct RowTiles {
    rows: usize,
    pub(super) count: usize,
}

impl RowTiles {
    pub(super) fn new(rows: usize, max: usize) -> Self {
        RowTiles { rows, count: rows.div_ceil(max) }
    }

    /// Rows of tile `t`; `t == count` gives the empty range at the end.
    pub(super) fn rows(&self, t: usize) -> Range<usize> {
        self.start(t)..self.start(t + 1)
    }

    /// First row of tile `t`.
    pub(super) fn start(&self, t: usize) -> usize {
        let t = t.min(self.count);
        let (base, extra) = (self.rows / self.count.max(1), self.rows % self.count.max(1));
        t * base + t.min(extra)
    }
}
