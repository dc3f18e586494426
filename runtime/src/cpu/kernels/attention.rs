//! Attention over KV caches with an online softmax.
//!
//! The query heads that share a KV head are worked off together, a register tile of (row, head) pairs at a time. Lanes are
//! keys, then features of values.
//!
//! Int8 caches are multiplied as integers. Queries become int8 once per register tile, with a scale per row and 128
//! features; so do the weights of a block of keys, times the scales of the values, with a scale per row. Sums of integers
//! are exact, so the way to them makes no difference.
//!
//! Invariant: key blocks start at fixed multiples, so a row's result depends neither on the rows beside it nor on
//! threads; no key outside `from..visible` is ever multiplied, except by an integer zero.

use super::body::{IntAct, SCALE_BYTES};
use super::caches::{KEY_LANES, KvShape, check_states};
use super::parallel::{Ctx, SharedMut, prefetch_line};
use super::tiles::RowTiles;
use super::{AttendArgs, DotArgs, FloatKind, FmaArgs, KEY_BLOCK, ROUND, ROUND_BYTES};
use crate::cpu::pack::BLOCK;
use dlx_ir::Mask;

/// Most rows of a register tile, of any instruction set.
const MAX_TILE_ROWS: usize = 8;

/// A call of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// The states.
    pub kv: KvShape,
    /// Query heads, a multiple of the KV heads.
    pub heads: usize,
    /// Static mask.
    pub mask: Mask,
    /// Cache row of the first query.
    pub at: usize,
    /// First key that may be attended.
    pub from: usize,
    /// Number of rows in the cache.
    pub visible: usize,
}

/// Words of a row's queries: interleaved floats, or what the integer kernel reads of int8 ones.
fn query_words(shape: KvShape) -> usize {
    if shape.float().is_some() { shape.head_dim } else { shape.head_dim.div_ceil(BLOCK) * DotArgs::act_words(1) }
}

/// Words of a row's quantized weights of a block: codes, correction and scale.
const WEIGHT_WORDS: usize = KEY_BLOCK / 4 + 2;

/// Words of one thread's working memory: queries, scores, weights, weighted values, sums and maxima.
fn slot_words(shape: KvShape) -> usize {
    MAX_TILE_ROWS * (query_words(shape) + KEY_BLOCK + WEIGHT_WORDS + shape.value_width() + KEY_LANES + KEY_LANES)
}

/// Words of scratch that [`attention`] needs on `threads` threads.
pub fn attention_scratch_words(threads: usize, shape: KvShape) -> usize {
    threads * slot_words(shape)
}

/// `out = softmax(q Kᵀ / sqrt(head_dim)) V` for `q` and `out` of `[rows, heads * head_dim]`.
///
/// Query row `i` stands in cache row `at + i`. Query head `j` uses KV head `j / (heads / kv_heads)`. A row that may
/// attend no key gives zeros.
///
/// # Panics
/// When sizes do not fit each other or the scratch ([`attention_scratch_words`]).
pub fn attention(
    ctx: &Ctx<'_>,
    shape: AttentionShape,
    q: &[f32],
    k_state: &[u8],
    v_state: &[u8],
    out: &mut [f32],
    scratch: &mut [u32],
) {
    let kv = shape.kv;
    check_states(kv, k_state, v_state);
    assert!(shape.visible <= kv.max_seq && kv.max_seq < usize::MAX / 2, "visible rows");
    assert!(shape.heads > 0 && shape.heads.is_multiple_of(kv.kv_heads), "whole groups of heads");
    let width = shape.heads * kv.head_dim;
    assert!(q.len() == out.len() && q.len().is_multiple_of(width), "whole rows of queries");
    let rows = q.len() / width;
    if rows == 0 {
        return;
    }
    let tiles = RowTiles::new(rows * (shape.heads / kv.kv_heads), ctx.kernels.max_rows);
    let words = slot_words(kv);
    let (out, scratch) = (SharedMut::new(out), SharedMut::new(scratch));
    ctx.parallel(kv.kv_heads * tiles.count, 1, |slot, range| {
        // SAFETY: slots of ranges that run at the same time differ.
        let slot = unsafe { scratch.slice(slot * words, words) };
        for item in range {
            let task = Task { ctx, shape, head: item / tiles.count, tiles, tile: item % tiles.count };
            task.run(q, k_state, v_state, out, slot);
        }
    });
}

/// Asks for `rows` cache rows from `first` on, which are needed in a moment: a long cache comes from memory, and keys and
/// values take turns too fast for the hardware to follow. The first tile of a head brings them into the caches for the others.
fn prefetch(state: &[u8], first: usize, rows: usize, row_bytes: usize) {
    let part = state.get(first * row_bytes..).unwrap_or_default();
    for line in part.chunks(64).take(rows * row_bytes / 64) {
        prefetch_line(line.as_ptr());
    }
}

/// One register tile of queries over one KV head.
struct Task<'a> {
    ctx: &'a Ctx<'a>,
    shape: AttentionShape,
    head: usize,
    tiles: RowTiles,
    tile: usize,
}

/// What a head's states hold: elements, and of int8 ones the scales behind them.
struct HeadState<'a> {
    elements: &'a [u8],
    scales: &'a [u8],
    /// Elements per row.
    width: usize,
}

impl<'a> HeadState<'a> {
    fn new(kv: KvShape, state: &'a [u8], head: usize, width: usize) -> Self {
        let bytes = state.len() / kv.kv_heads;
        let (elements, scales) =
            state[head * bytes..][..bytes].split_at(kv.whole_rows(kv.max_seq) * width * kv.element_bytes());
        HeadState { elements, scales, width }
    }

    /// The scales from a row on.
    fn scales_from(&self, row: usize) -> &'a [u8] {
        &self.scales[row * SCALE_BYTES..]
    }
}

/// The keys of a block that are multiplied: `first..stop` from cache row `start` on.
#[derive(Clone, Copy)]
struct KeyBlock {
    start: usize,
    first: usize,
    stop: usize,
}

impl Task<'_> {
    fn run(&self, q: &[f32], k_state: &[u8], v_state: &[u8], out: SharedMut<'_, f32>, slot: &mut [u32]) {
        let (shape, kv) = (self.shape, self.shape.kv);
        let (head_dim, value_width, portable) = (kv.head_dim, kv.value_width(), self.ctx.kernels.portable);
        let pairs = self.tiles.rows(self.tile);
        let rows = pairs.len();
        let group = shape.heads / kv.kv_heads;
        let locate = |pair: usize| {
            let (row, head) = (pair / group, self.head * group + pair % group);
            (row, (row * shape.heads + head) * head_dim)
        };
        let (queries, slot) = slot.split_at_mut(rows * query_words(kv));
        let (weights, slot) = slot.split_at_mut(rows * WEIGHT_WORDS);
        // SAFETY: u32 and f32 have the same size and alignment, and every bit pattern is valid in both.
        let slot: &mut [f32] = unsafe { std::slice::from_raw_parts_mut(slot.as_mut_ptr().cast(), slot.len()) };
        let (scores, slot) = slot.split_at_mut(rows * KEY_BLOCK);
        let (acc, slot) = slot.split_at_mut(rows * value_width);
        let (sum, slot) = slot.split_at_mut(rows * KEY_LANES);
        let max = &mut slot[..rows];
        let mut ends = [0; MAX_TILE_ROWS];
        let scale = 1.0 / (head_dim as f32).sqrt();
        // The rows of the tile are brought together where their results will be.
        let gathered = &mut acc[..rows * head_dim];
        for (r, (pair, to)) in pairs.clone().zip(gathered.chunks_exact_mut(head_dim)).enumerate() {
            let (row, at) = locate(pair);
            ends[r] = shape.mask.end(shape.at + row).min(shape.visible);
            for (to, x) in to.iter_mut().zip(&q[at..at + head_dim]) {
                *to = x * scale;
            }
        }
        match kv.float() {
            Some(_) => portable.interleave_tile(gathered, rows, None, queries),
            None => portable.quantize_tile(gathered, rows, None, IntAct { groups: 1, zero: Some(128) }, queries),
        }
        acc.fill(0.0);
        sum.fill(0.0);
        max.fill(f32::NEG_INFINITY);

        let keys = HeadState::new(kv, k_state, self.head, kv.key_width());
        let values = HeadState::new(kv, v_state, self.head, value_width);
        let end = ends[..rows].iter().copied().max().unwrap_or(0);
        let blocks = if shape.from < end { shape.from / KEY_BLOCK..end.div_ceil(KEY_BLOCK) } else { 0..0 };
        for start in blocks.map(|b| b * KEY_BLOCK) {
            let first = shape.from.saturating_sub(start);
            let block = KeyBlock { start, first, stop: (end - start).min(KEY_BLOCK) };
            scores.fill(0.0);
            if self.tile == 0 {
                prefetch(values.elements, start + first, block.stop - first, value_width * kv.element_bytes());
            }
            // SAFETY: `queries` and `scores` are those of `rows` rows, and the keys of `block` are in the state.
            unsafe {
                match kv.float() {
                    Some(kind) => self.float_scores(kind, &keys, block, queries, scores),
                    None => self.int8_scores(&keys, block, queries, scores),
                }
            }
            let mut block_ends = [0; MAX_TILE_ROWS];
            for (to, end) in block_ends.iter_mut().zip(&ends[..rows]) {
                *to = end.saturating_sub(start);
            }
            let block_ends = &block_ends[..rows];
            portable.softmax_block(scores, first, block_ends, max, sum, acc);
            if self.tile == 0 {
                prefetch(keys.elements, start + KEY_BLOCK, KEY_BLOCK, keys.width * kv.element_bytes());
            }
            // SAFETY: `scores` or `weights`, and `acc`, are those of `rows` rows; the values of `block` are in the state.
            unsafe {
                match kv.float() {
                    Some(kind) => self.float_values(kind, &values, block, scores, acc),
                    None => {
                        portable.quantize_weights(scores, first, block_ends, values.scales_from(start), weights);
                        self.int8_values(&values, block, weights, acc);
                    }
                }
            }
        }
        portable.softmax_finish(sum, acc);
        for (pair, acc) in pairs.zip(acc.chunks_exact(value_width)) {
            let (_, at) = locate(pair);
            // SAFETY: a (row, head) pair belongs to one task.
            unsafe { out.slice(at, head_dim) }.copy_from_slice(&acc[..head_dim]);
        }
    }

    /// Adds products of float keys to `scores`, `[rows][KEY_BLOCK]`.
    ///
    /// # Safety
    /// `queries` is `[head_dim][rows]`, and the state has whole tiles of keys up to `block.stop`.
    unsafe fn float_scores(
        &self,
        kind: FloatKind,
        keys: &HeadState<'_>,
        block: KeyBlock,
        queries: &[u32],
        scores: &mut [f32],
    ) {
        let first_tile = block.first / KEY_LANES;
        // SAFETY: as promised; scores of a tile are the 16 columns from `16 * tile`.
        unsafe {
            (self.ctx.kernels.fma)(&FmaArgs {
                rows: scores.len() / KEY_BLOCK,
                tiles: block.stop.div_ceil(KEY_LANES) - first_tile,
                k: keys.width,
                w: keys.elements.as_ptr().add((block.start + first_tile * KEY_LANES) * keys.width * kind.size()),
                w_kind: kind,
                w_step: KEY_LANES,
                w_tile: KEY_LANES * keys.width,
                a: queries.as_ptr().cast(),
                a_row_major: false,
                total: scores.as_mut_ptr().add(first_tile * KEY_LANES),
                total_row: KEY_BLOCK,
                total_tile: KEY_LANES,
            });
        }
    }

    /// Adds values, times weights of `[rows][KEY_BLOCK]`, to `acc`, `[rows][width]`.
    ///
    /// # Safety
    /// The state has the values up to `block.stop`.
    unsafe fn float_values(
        &self,
        kind: FloatKind,
        values: &HeadState<'_>,
        block: KeyBlock,
        weights: &[f32],
        acc: &mut [f32],
    ) {
        // SAFETY: as promised.
        unsafe {
            (self.ctx.kernels.fma)(&FmaArgs {
                rows: weights.len() / KEY_BLOCK,
                tiles: values.width / KEY_LANES,
                k: block.stop - block.first,
                w: values.elements.as_ptr().add((block.start + block.first) * values.width * kind.size()),
                w_kind: kind,
                w_step: values.width,
                w_tile: KEY_LANES,
                a: weights.as_ptr().add(block.first),
                a_row_major: true,
                total: acc.as_mut_ptr(),
                total_row: values.width,
                total_tile: KEY_LANES,
            });
        }
    }

    /// As [`Task::float_scores`] of int8 keys.
    ///
    /// # Safety
    /// `queries` is quantized, and the state has whole tiles of keys up to `block.stop`.
    unsafe fn int8_scores(&self, keys: &HeadState<'_>, block: KeyBlock, queries: &[u32], scores: &mut [f32]) {
        let rows = scores.len() / KEY_BLOCK;
        let first_tile = block.first / KEY_LANES;
        let codes = keys.elements[(block.start + first_tile * KEY_LANES) * keys.width..].as_ptr();
        for (b, act) in queries.chunks_exact(rows * DotArgs::act_words(1)).enumerate() {
            // SAFETY: as promised; a block of features has whole rounds, and its corrections and scales behind its quads.
            unsafe {
                (self.ctx.kernels.attend)(&AttendArgs {
                    rows,
                    tiles: block.stop.div_ceil(KEY_LANES) - first_tile,
                    rounds: (keys.width - b * BLOCK).min(BLOCK) / ROUND,
                    codes: codes.add(b * BLOCK * KEY_LANES),
                    round_bytes: ROUND_BYTES,
                    tile_bytes: keys.width * KEY_LANES,
                    act: act.as_ptr(),
                    corrections: act.as_ptr().add(BLOCK / 4 * rows),
                    total: scores.as_mut_ptr().add(first_tile * KEY_LANES),
                    total_row: KEY_BLOCK,
                    total_tile: KEY_LANES,
                });
            }
        }
        self.ctx.kernels.portable.apply_scales(scores, KEY_BLOCK, keys.scales_from(block.start));
    }

    /// As [`Task::float_values`] of int8 values and weights.
    ///
    /// # Safety
    /// `weights` is what `quantize_weights` makes, and the state has whole rounds of values up to `block.stop`.
    unsafe fn int8_values(&self, values: &HeadState<'_>, block: KeyBlock, weights: &[u32], acc: &mut [f32]) {
        let rows = weights.len() / WEIGHT_WORDS;
        let first_round = block.first / ROUND;
        // SAFETY: as promised; what is multiplied by weights of zero may be anything.
        unsafe {
            (self.ctx.kernels.attend)(&AttendArgs {
                rows,
                tiles: values.width / KEY_LANES,
                rounds: block.stop.div_ceil(ROUND) - first_round,
                codes: values.elements[(block.start + first_round * ROUND) * values.width..].as_ptr(),
                round_bytes: ROUND * values.width,
                tile_bytes: ROUND_BYTES,
                act: weights.as_ptr().add(first_round * ROUND / 4 * rows),
                corrections: weights.as_ptr().add(KEY_BLOCK / 4 * rows),
                total: acc.as_mut_ptr(),
                total_row: values.width,
                total_tile: KEY_LANES,
            });
        }
    }
}
