//! Statistics of a row of logits, chunk by chunk: what greedy decoding needs instead of the logits.
//!
//! Invariant: a chunk's statistics depend only on its logits, and chunks are merged in the order of their ids.

use super::lanes::{LANES, exp, greater, max, sum};
use crate::exec::RowStats;

/// Words of one stored [`ChunkStats`].
pub(in super::super) const STATS_WORDS: usize = 6;

/// Smaller differences to the maximum contribute exactly nothing; also keeps `0 · -∞` out of the entropy sum.
const FLOOR: f32 = -100.0;

/// One row, one chunk.
#[derive(Clone, Copy)]
pub(in super::super) struct ChunkStats {
    /// Greatest logit, banned or not.
    max: f32,
    /// Σ e^(z - max).
    pub(in super::super) sum: f32,
    /// Σ (z - max) e^(z - max).
    weighted: f32,
    /// Greatest and second greatest logit that is not banned.
    best: f32,
    second: f32,
    id: u32,
}

impl ChunkStats {
    /// As words of the scratch.
    pub(in super::super) fn to_words(self) -> [u32; STATS_WORDS] {
        let [a, b, c, d, e] = [self.max, self.sum, self.weighted, self.best, self.second].map(f32::to_bits);
        [a, b, c, d, e, self.id]
    }

    #[inline(always)]
    fn from_words([a, b, c, d, e, id]: [u32; STATS_WORDS]) -> Self {
        let [max, sum, weighted, best, second] = [a, b, c, d, e].map(f32::from_bits);
        ChunkStats { max, sum, weighted, best, second, id }
    }
}

/// `logits` is `[tiles][rows][16]`; columns past the vocabulary are -∞. `banned` is an id, or `u32::MAX`.
#[inline(always)]
pub(super) fn chunk_stats(logits: &[f32], rows: usize, row: usize, first_id: u32, banned: u32) -> ChunkStats {
    let tiles = || logits.as_chunks::<LANES>().0.iter().skip(row).step_by(rows);
    let mut peak = [f32::NEG_INFINITY; LANES];
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut second = [f32::NEG_INFINITY; LANES];
    let mut id = [u32::MAX; LANES];
    for (t, z) in tiles().enumerate() {
        let tile_id = first_id + (t * LANES) as u32;
        for i in 0..LANES {
            let this = tile_id + i as u32;
            let v = if this == banned { f32::NEG_INFINITY } else { z[i] };
            peak[i] = greater(peak[i], z[i]);
            second[i] = if v > best[i] { best[i] } else { greater(second[i], v) };
            id[i] = if v > best[i] { this } else { id[i] };
            best[i] = greater(best[i], v);
        }
    }
    let top = max(peak);
    let mut total = [0f32; LANES];
    let mut weighted = [0f32; LANES];
    for z in tiles() {
        for i in 0..LANES {
            let d = greater(FLOOR, z[i] - top);
            let e = exp(d);
            total[i] += e;
            weighted[i] = d.mul_add(e, weighted[i]);
        }
    }
    let mut out = ChunkStats {
        max: top,
        sum: sum(total),
        weighted: sum(weighted),
        best: f32::NEG_INFINITY,
        second: f32::NEG_INFINITY,
        id: u32::MAX,
    };
    for i in 0..LANES {
        if best[i] > out.best || (best[i] == out.best && id[i] < out.id) {
            out.second = greater(out.best, second[i]);
            (out.best, out.id) = (best[i], id[i]);
        } else {
            out.second = greater(out.second, best[i]);
        }
    }
    out
}

/// `chunks` is `[chunks][STATS_WORDS]` in the order of the ids.
#[inline(always)]
pub(super) fn merge_stats(chunks: &[u32]) -> RowStats {
    let chunks = || chunks.as_chunks::<STATS_WORDS>().0.iter().map(|w| ChunkStats::from_words(*w));
    let mut top = f32::NEG_INFINITY;
    let (mut best, mut second, mut id) = (f32::NEG_INFINITY, f32::NEG_INFINITY, u32::MAX);
    for c in chunks() {
        top = greater(top, c.max);
        if c.best > best {
            second = greater(best, c.second);
            (best, id) = (c.best, c.id);
        } else {
            second = greater(second, c.best);
        }
    }
    let (mut total, mut weighted) = (0f32, 0f32);
    for c in chunks() {
        let d = greater(FLOOR, c.max - top);
        let e = exp(d);
        total = c.sum.mul_add(e, total);
        weighted = e.mul_add(d.mul_add(c.sum, c.weighted), weighted);
    }
    let prob = exp(greater(FLOOR, best - top)) / total;
    let margin = prob - exp(greater(FLOOR, second - top)) / total;
    let entropy = (libm::logf(total) - weighted / total).max(0.0);
    RowStats { best: id as i32, prob, margin, entropy }
}
