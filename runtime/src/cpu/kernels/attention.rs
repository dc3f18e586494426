//! KV states and attention with an online softmax.
//!
//! States of one layer, per KV head: keys are interleaved by 16 rows, `[row / 16][head_dim][16]` (layout `cpu.k16`), so
//! that lanes are keys; values are rows, `[row][head_dim]` with head_dim rounded up to 16 (layout `cpu.v`). Int8 elements
//! are followed by one f32 scale per row. They are widened in registers; a key's scale multiplies its scores, a value's
//! scale its weights. The query heads that share a KV head are worked off together, a register tile of (row, head) pairs
//! at a time.
//!
//! Invariant: key blocks start at fixed multiples, so a row's result depends neither on the rows beside it nor on
//! threads; no key outside `from..visible` is ever multiplied.

use super::body::{NewRows, SCALE_BYTES};
use super::parallel::{Ctx, SharedMut, prefetch_line};
use super::tiles::RowTiles;
use super::{FloatKind, FmaArgs, KEY_BLOCK};
use dlx_ir::{DType, Mask};
use std::ops::Range;

/// Rows of keys that are interleaved.
const KEY_LANES: usize = 16;
/// Most rows of a register tile, of any instruction set.
const MAX_TILE_ROWS: usize = 8;

/// Shape of one layer's KV states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvShape {
    /// Element type: f32, f16, or [`DType::CACHE_Q8`].
    pub dtype: DType,
    /// Cache rows.
    pub max_seq: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
}

impl KvShape {
    fn kind(&self) -> FloatKind {
        match self.dtype {
            DType::F32 => FloatKind::F32,
            DType::F16 => FloatKind::F16,
            DType::CACHE_Q8 => FloatKind::I8,
            other => panic!("KV states are f32, f16 or q8, not {other}"),
        }
    }

    fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(KEY_LANES)
    }
}

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

fn state_bytes(shape: KvShape, width: usize) -> Option<usize> {
    let row = match shape.dtype {
        DType::F32 | DType::F16 => width.checked_mul(shape.kind().size())?,
        DType::CACHE_Q8 => width.checked_add(SCALE_BYTES)?,
        _ => return None,
    };
    shape.max_seq.checked_next_multiple_of(KEY_LANES)?.checked_mul(shape.kv_heads)?.checked_mul(row)
}

/// Bytes of a layer's key state; `None` on overflow or for another element type.
pub fn k_state_bytes(shape: KvShape) -> Option<usize> {
    state_bytes(shape, shape.head_dim)
}

/// Bytes of a layer's value state; `None` on overflow or for another element type.
pub fn v_state_bytes(shape: KvShape) -> Option<usize> {
    state_bytes(shape, shape.head_dim.checked_next_multiple_of(KEY_LANES)?)
}

/// Where a head of `head_bytes` bytes, of keys or of values, holds its first `rows` rows: the elements and, behind those of
/// all rows, the scales. Keys are interleaved, so whole tiles of rows are named.
pub(in crate::cpu) fn kv_row_parts(shape: KvShape, head_bytes: usize, rows: usize) -> [Range<usize>; 2] {
    let all = shape.max_seq.next_multiple_of(KEY_LANES);
    let scale = if shape.dtype == DType::CACHE_Q8 { SCALE_BYTES } else { 0 };
    let (rows, elements) = (rows.next_multiple_of(KEY_LANES), head_bytes / all - scale);
    [0..rows * elements, all * elements..all * elements + rows * scale]
}

/// Writes new rows of keys and values, each `[rows, kv_heads * head_dim]`, to cache rows `at..`.
///
/// # Panics
/// When sizes do not fit.
pub fn kv_write(
    ctx: &Ctx<'_>,
    shape: KvShape,
    k: &[f32],
    v: &[f32],
    at: usize,
    k_state: &mut [u8],
    v_state: &mut [u8],
) {
    /// Values below which handing work to another thread costs more than it saves.
    const MIN_VALUES: usize = 16 * 1024;
    let width = shape.kv_heads * shape.head_dim;
    assert!(k.len() == v.len() && k.len().is_multiple_of(width), "whole rows of keys and values");
    let rows = k.len() / width;
    assert!(at <= shape.max_seq && rows <= shape.max_seq - at, "rows {at}+{rows} of {}", shape.max_seq);
    check_states(shape, k_state, v_state);
    if rows == 0 {
        return;
    }
    let (k_head, v_head) = (k_state.len() / shape.kv_heads, v_state.len() / shape.kv_heads);
    let (keys, values) = (SharedMut::new(k_state), SharedMut::new(v_state));
    let kind = shape.kind();
    ctx.parallel(shape.kv_heads, MIN_VALUES.div_ceil(rows * shape.head_dim), |_, heads| {
        for h in heads {
            // SAFETY: each head is visited once, and heads do not overlap.
            let (keys, values) = unsafe { (keys.slice(h * k_head, k_head), values.slice(h * v_head, v_head)) };
            let new = |x| NewRows { x, stride: width, head_dim: shape.head_dim, at };
            ctx.kernels.portable.write_keys(new(&k[h * shape.head_dim..]), kind, keys);
            ctx.kernels.portable.write_values(new(&v[h * shape.head_dim..]), kind, values);
        }
    });
}

fn check_states(shape: KvShape, k_state: &[u8], v_state: &[u8]) {
    assert_eq!(Some(k_state.len()), k_state_bytes(shape), "key state size");
    assert_eq!(Some(v_state.len()), v_state_bytes(shape), "value state size");
}

/// Words of one thread's working memory: interleaved queries, scores, weighted values, sums and maxima.
fn slot_words(shape: KvShape) -> usize {
    MAX_TILE_ROWS * (shape.head_dim + KEY_BLOCK + shape.value_width() + KEY_LANES + KEY_LANES)
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

impl Task<'_> {
    fn run(&self, q: &[f32], k_state: &[u8], v_state: &[u8], out: SharedMut<'_, f32>, slot: &mut [u32]) {
        let (shape, kv) = (self.shape, self.shape.kv);
        let (head_dim, value_width, kind) = (kv.head_dim, kv.value_width(), kv.kind());
        let pairs = self.tiles.rows(self.tile);
        let rows = pairs.len();
        let group = shape.heads / kv.kv_heads;
        let locate = |pair: usize| {
            let (row, head) = (pair / group, self.head * group + pair % group);
            (row, (row * shape.heads + head) * head_dim)
        };
        // SAFETY: u32 and f32 have the same size and alignment, and every bit pattern is valid in both.
        let slot: &mut [f32] = unsafe { std::slice::from_raw_parts_mut(slot.as_mut_ptr().cast(), slot.len()) };
        let (queries, slot) = slot.split_at_mut(rows * head_dim);
        let (scores, slot) = slot.split_at_mut(rows * KEY_BLOCK);
        let (acc, slot) = slot.split_at_mut(rows * value_width);
        let (sum, slot) = slot.split_at_mut(rows * KEY_LANES);
        let max = &mut slot[..rows];
        let mut ends = [0; MAX_TILE_ROWS];
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (r, pair) in pairs.clone().enumerate() {
            let (row, at) = locate(pair);
            ends[r] = shape.mask.end(shape.at + row).min(shape.visible);
            for (to, x) in queries[r..].iter_mut().step_by(rows).zip(&q[at..at + head_dim]) {
                *to = x * scale;
            }
        }
        acc.fill(0.0);
        sum.fill(0.0);
        max.fill(f32::NEG_INFINITY);

        let (k_head, v_head) = (k_state.len() / kv.kv_heads, v_state.len() / kv.kv_heads);
        let keys = &k_state[self.head * k_head..][..k_head];
        let values = &v_state[self.head * v_head..][..v_head];
        // Behind the elements, int8 states have a scale per row and others nothing.
        let cache_rows = kv.max_seq.next_multiple_of(KEY_LANES);
        let key_scales = &keys[cache_rows * head_dim * kind.size()..];
        let value_scales = &values[cache_rows * value_width * kind.size()..];
        let end = ends[..rows].iter().copied().max().unwrap_or(0);
        let blocks = if shape.from < end { shape.from / KEY_BLOCK..end.div_ceil(KEY_BLOCK) } else { 0..0 };
        for block in blocks.map(|b| b * KEY_BLOCK) {
            let first = shape.from.saturating_sub(block);
            let stop = (end - block).min(KEY_BLOCK);
            let first_tile = first / KEY_LANES;
            scores.fill(0.0);
            if self.tile == 0 {
                prefetch(values, block + first, stop - first, value_width * kind.size());
            }
            // SAFETY: key tiles up to `end.div_ceil(16)` exist because the state has whole tiles for `max_seq` rows;
            // scores of a tile are the 16 columns from `16 * tile`.
            unsafe {
                (self.ctx.kernels.fma)(&FmaArgs {
                    rows,
                    tiles: stop.div_ceil(KEY_LANES) - first_tile,
                    k: head_dim,
                    w: keys.as_ptr().add((block + first_tile * KEY_LANES) * head_dim * kind.size()),
                    w_kind: kind,
                    w_step: KEY_LANES,
                    w_tile: KEY_LANES * head_dim,
                    a: queries.as_ptr(),
                    a_row_major: false,
                    total: scores.as_mut_ptr().add(first_tile * KEY_LANES),
                    total_row: KEY_BLOCK,
                    total_tile: KEY_LANES,
                });
            }
            if kind == FloatKind::I8 {
                self.ctx.kernels.portable.apply_scales(scores, KEY_BLOCK, &key_scales[block * SCALE_BYTES..]);
            }
            let mut block_ends = [0; MAX_TILE_ROWS];
            for (to, end) in block_ends.iter_mut().zip(&ends[..rows]) {
                *to = end.saturating_sub(block);
            }
            self.ctx.kernels.portable.softmax_block(scores, first, &block_ends[..rows], max, sum, acc);
            if kind == FloatKind::I8 {
                self.ctx.kernels.portable.apply_scales(scores, KEY_BLOCK, &value_scales[block * SCALE_BYTES..]);
            }
            if self.tile == 0 {
                prefetch(keys, block + KEY_BLOCK, KEY_BLOCK, head_dim * kind.size());
            }
            // SAFETY: value rows `block + first..block + stop` are below `visible`; `acc` is `[rows][value_width]`.
            unsafe {
                (self.ctx.kernels.fma)(&FmaArgs {
                    rows,
                    tiles: value_width / KEY_LANES,
                    k: stop - first,
                    w: values.as_ptr().add((block + first) * value_width * kind.size()),
                    w_kind: kind,
                    w_step: value_width,
                    w_tile: KEY_LANES,
                    a: scores.as_ptr().add(first),
                    a_row_major: true,
                    total: acc.as_mut_ptr(),
                    total_row: value_width,
                    total_tile: KEY_LANES,
                });
            }
        }
        self.ctx.kernels.portable.softmax_finish(sum, acc);
        for (pair, acc) in pairs.zip(acc.chunks_exact(value_width)) {
            let (_, at) = locate(pair);
            // SAFETY: a (row, head) pair belongs to one task.
            unsafe { out.slice(at, head_dim) }.copy_from_slice(&acc[..head_dim]);
        }
    }
}
