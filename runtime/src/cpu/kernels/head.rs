//! The LM head: full logits, or per-row statistics without materialized logits.
//!
//! Invariant: the vocabulary is cut into chunks of fixed size whatever the thread count; a chunk's logits live on one
//! thread's stack, its statistics in the scratch, and chunks are merged in the order of their ids.

use super::body::STATS_WORDS;
use super::elementwise::Norm;
use super::linear::{Epilogue, linear};
use super::parallel::{Ctx, SharedMut};
use super::product::{Operand, act_words};
use super::tiles::RowTiles;
use crate::cpu::pack::{PackedWeight, TILE_COLUMNS};
use crate::exec::RowStats;
use dlx_ir::DType;
use std::mem::MaybeUninit;

/// Column tiles per chunk of the vocabulary.
const CHUNK_TILES: usize = 16;
/// Rows per item: bounded by the logits on the stack.
const ITEM_ROWS: usize = 64;

/// Words of scratch that [`head_stats`] needs for `rows` rows of this head.
pub fn head_stats_scratch_words(rows: usize, head: &PackedWeight<'_>) -> usize {
    head_words(rows, head.dtype(), head.n(), head.k())
}

/// The same for a head of `n` tokens and `k` features.
pub(in crate::cpu) fn head_words(rows: usize, dtype: DType, n: usize, k: usize) -> usize {
    rows * (act_words(dtype, k) + n.div_ceil(TILE_COLUMNS).div_ceil(CHUNK_TILES) * STATS_WORDS)
}

/// Statistics of each row's distribution over the vocabulary.
///
/// `x` is `[out.len(), k]`. `banned` (the mask id) is never the best or second best token but counts in the softmax.
///
/// # Panics
/// When shapes do not fit each other or the scratch ([`head_stats_scratch_words`]), or nothing but the banned id exists.
pub fn head_stats(
    ctx: &Ctx<'_>,
    x: &[f32],
    norm: Option<Norm<'_>>,
    head: &PackedWeight<'_>,
    banned: Option<usize>,
    out: &mut [RowStats],
    scratch: &mut [u32],
) {
    let rows = out.len();
    if rows == 0 {
        return;
    }
    assert_eq!(x.len(), rows * head.k(), "input size");
    assert!(norm.is_none_or(|n| n.weight.len() == head.k()), "norm length");
    let first_allowed = (0..head.n()).find(|id| Some(*id) != banned).expect("a token that is not banned");
    let banned = banned.and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX);
    let operand = Operand::new(*head);
    let max_rows = operand.max_rows(ctx, rows);
    let tiles = RowTiles::new(rows, max_rows);
    let (act, stats) = scratch.split_at_mut(rows * operand.act_words());
    operand.prepare(ctx, x, norm, tiles, act);
    let act = &*act;

    let chunks = head.tiles().div_ceil(CHUNK_TILES);
    let stats = &mut stats[..rows * chunks * STATS_WORDS];
    let shared = SharedMut::new(stats);
    let group_tiles = operand.group_tiles(max_rows).min(ITEM_ROWS / max_rows);
    let groups = tiles.count.div_ceil(group_tiles);
    let group_tiles = tiles.count.div_ceil(groups);
    ctx.parallel(chunks * groups, 1, |_, range| {
        let mut room: [_; ITEM_ROWS * CHUNK_TILES * TILE_COLUMNS] = [MaybeUninit::uninit(); _];
        for item in range {
            let (group, chunk) = (item / chunks, item % chunks);
            let group = group * group_tiles..((group + 1) * group_tiles).min(tiles.count);
            let columns = chunk * CHUNK_TILES..((chunk + 1) * CHUNK_TILES).min(head.tiles());
            let first = tiles.start(group.start);
            let item_rows = tiles.start(group.end) - first;
            let logits = operand.multiply(ctx, tiles, group, columns.clone(), act, &mut room);
            // The statistics pass over what is no number. No finite sum then, so that the row shows it.
            let not_finite = |z: &f32| z.to_bits() & 0x7f80_0000 == 0x7f80_0000;
            let broken = logits.iter().fold(0u32, |count, z| count + u32::from(not_finite(z))) > 0;
            let breaks = |row: usize, logits: &[f32]| {
                let mut tiles = logits.as_chunks::<TILE_COLUMNS>().0.iter().skip(row).step_by(item_rows);
                broken && tiles.any(|tile| tile.iter().any(not_finite))
            };
            let mut no_number = [false; ITEM_ROWS];
            no_number.iter_mut().enumerate().take(item_rows).for_each(|(row, no)| *no = breaks(row, logits));
            let missing = columns.end * TILE_COLUMNS - head.n().min(columns.end * TILE_COLUMNS);
            let last = (columns.len() - 1) * item_rows * TILE_COLUMNS;
            for row in logits[last..].as_chunks_mut::<TILE_COLUMNS>().0 {
                row[TILE_COLUMNS - missing..].fill(f32::NEG_INFINITY);
            }
            for row in 0..item_rows {
                let id = (columns.start * TILE_COLUMNS) as u32;
                let mut stats = ctx.kernels.portable.chunk_stats(logits, item_rows, row, id, banned);
                if no_number[row] {
                    stats.sum = f32::NAN;
                }
                let words = stats.to_words();
                // SAFETY: one item writes one chunk of its rows; items do not overlap.
                let to = unsafe { shared.slice(((first + row) * chunks + chunk) * STATS_WORDS, STATS_WORDS) };
                to.copy_from_slice(&words);
            }
        }
    });
    for (out, stats) in out.iter_mut().zip(stats.chunks_exact(chunks * STATS_WORDS)) {
        *out = ctx.kernels.portable.merge_stats(stats);
        // A row without a single finite logit has no best token; the first allowed one keeps the id valid.
        if out.best < 0 {
            out.best = first_allowed as i32;
        }
    }
}

/// Full logits, `[rows, vocabulary]`. The scratch is that of [`linear`].
///
/// # Panics
/// As [`linear`].
pub fn head_logits(
    ctx: &Ctx<'_>,
    x: &[f32],
    rows: usize,
    norm: Option<Norm<'_>>,
    head: &PackedWeight<'_>,
    out: &mut [f32],
    scratch: &mut [u32],
) {
    linear(ctx, x, rows, norm, &[*head], &[], Epilogue::Store, &mut [out], scratch);
}
