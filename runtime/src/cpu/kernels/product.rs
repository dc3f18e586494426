//! One weight as the kernels multiply by it: preparing activations, and products of column tiles.
//!
//! Invariant: which kernel multiplies, and how weights are cut into runs, changes no bit of a product.

use super::body::IntAct;
use super::elementwise::Norm;
use super::parallel::{Ctx, SharedMut};
use super::tiles::RowTiles;
use super::{DotArgs, FloatKind, FmaArgs, LOOKED_UP_BYTES, Lookup, PairArgs, Pairs};
use crate::cpu::pack::{PackedWeight, QuantTile, TILE_COLUMNS};
use dlx_ir::quant::zero_point;
use dlx_ir::{DType, Grid};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most rows per group, and the share of L2 that a group's activations may take.
pub(super) const MAX_GROUP_ROWS: usize = 144;
const GROUP_ACT_WORDS: usize = 128 * 1024;
/// Bytes of weights per kernel call when several row tiles share them: as much as stays in L1 beside activations.
const RUN_BYTES: usize = 9216;

/// Blocks of `l16` in a run.
const RUN_BLOCKS: usize = 8;

/// Room for a run of blocks of `l16` as 8-bit codes with their scales.
#[repr(align(64))]
struct LookedUp([MaybeUninit<u8>; RUN_BLOCKS * LOOKED_UP_BYTES]);

/// Blocks in a run of two column tiles, which stays in L1 beside activations.
const PAIR_BLOCKS: usize = 4;

/// Room for a run of blocks of one column tile with 8-bit codes; the most has four groups with minima.
#[repr(align(64))]
struct PairRoom([MaybeUninit<u8>; PAIR_BLOCKS * Pairs::block_bytes(8 * TILE_COLUMNS * 2)]);

/// What a product is of: column tiles, and register tiles of rows with their prepared activations.
struct Part<'a> {
    tiles: RowTiles,
    group: Range<usize>,
    columns: Range<usize>,
    /// The whole prepared activation.
    act: &'a [u32],
    /// Rows of the group.
    rows: usize,
}

/// How a weight wants its activations. Weights that agree share one prepared copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ActKind {
    Int(IntAct),
    Float,
}

/// A weight as the kernels see it.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) weight: PackedWeight<'a>,
    format: Format,
}

#[derive(Clone, Copy)]
enum Format {
    Int {
        layout: QuantTile,
        act: IntAct,
        nibbles: bool,
    },
    /// `l16`: as 8-bit codes in groups of 128, once they are looked up.
    Table {
        layout: QuantTile,
        act: IntAct,
    },
    Float(FloatKind),
}

impl<'a> Operand<'a> {
    pub(super) fn new(weight: PackedWeight<'a>) -> Self {
        let format = match weight.dtype() {
            DType::F32 => Format::Float(FloatKind::F32),
            DType::F16 => Format::Float(FloatKind::F16),
            DType::BF16 => Format::Float(FloatKind::BF16),
            DType::Quant(fmt) => {
                let layout = QuantTile::new(fmt, weight.k()).expect("PackedWeight checked the format");
                let zero = (!fmt.has_min()).then_some(i32::from(zero_point(fmt)));
                let act = IntAct { groups: layout.groups, zero };
                match fmt.grid {
                    Grid::Table => Format::Table { layout, act },
                    Grid::Symmetric | Grid::Affine => Format::Int { layout, act, nibbles: fmt.bits == 4 },
                }
            }
            _ => unreachable!("PackedWeight rejects integers"),
        };
        Operand { weight, format }
    }

    pub(super) fn act_kind(&self) -> ActKind {
        match self.format {
            Format::Int { act, .. } | Format::Table { act, .. } => ActKind::Int(act),
            Format::Float(_) => ActKind::Float,
        }
    }

    /// Most rows per register tile, of so many rows.
    pub(super) fn max_rows(&self, ctx: &Ctx<'_>, rows: usize) -> usize {
        ctx.kernels.rows_of(self.weight.dtype(), rows)
    }

    /// Words of prepared activations per row.
    pub(super) fn act_words(&self) -> usize {
        act_words(self.weight.dtype(), self.weight.k())
    }

    /// Register tiles per group of rows.
    pub(super) fn group_tiles(&self, max_rows: usize) -> usize {
        let rows = (GROUP_ACT_WORDS / self.act_words().max(1)).clamp(4 * max_rows, MAX_GROUP_ROWS);
        rows / max_rows
    }

    /// Prepares activations for this weight: `[tile]` consecutive, each as its kernel wants it.
    pub(super) fn prepare(&self, ctx: &Ctx<'_>, x: &[f32], norm: Option<Norm<'_>>, tiles: RowTiles, out: &mut [u32]) {
        /// Values below which handing work to another thread costs more than it saves.
        const MIN_VALUES: usize = 8 * 1024;
        let k = self.weight.k();
        let words = self.act_words();
        let out = SharedMut::new(out);
        let grain = MIN_VALUES.div_ceil(k * tiles.rows(0).len().max(1));
        ctx.parallel(tiles.count, grain, |_, range| {
            for t in range {
                let rows = tiles.rows(t);
                // SAFETY: tiles do not overlap and each is visited once.
                let out = unsafe { out.slice(rows.start * words, rows.len() * words) };
                let x = &x[rows.start * k..rows.end * k];
                match self.act_kind() {
                    ActKind::Int(spec) => ctx.kernels.portable.quantize_tile(x, rows.len(), norm, spec, out),
                    ActKind::Float => ctx.kernels.portable.interleave_tile(x, rows.len(), norm, out),
                }
            }
        });
    }

    /// `totals[tile][row][16]` = products of column tiles `columns` and the rows of register tiles `group`.
    ///
    /// `act` is the whole prepared activation. `room` is for at least the totals, which are returned.
    pub(super) fn multiply<'t>(
        &self,
        ctx: &Ctx<'_>,
        tiles: RowTiles,
        group: Range<usize>,
        columns: Range<usize>,
        act: &[u32],
        room: &'t mut [MaybeUninit<f32>],
    ) -> &'t mut [f32] {
        let first = tiles.start(group.start);
        let rows = tiles.start(group.end) - first;
        let words = self.act_words();
        assert!(columns.end <= self.weight.tiles() && act.len() >= (first + rows) * words, "operands");
        let room = &mut room[..columns.len() * rows * TILE_COLUMNS];
        room.fill(MaybeUninit::new(0.0));
        // SAFETY: every element has just been written.
        let totals = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<f32>(), room.len()) };
        let stride = self.weight.tile_stride();
        let part = Part { tiles, group, columns, act, rows };
        match self.format {
            Format::Int { layout, .. } | Format::Table { layout, .. } => {
                match ctx.kernels.pairs_of(self.weight.dtype(), tiles.start(tiles.count)) {
                    Some(pairs) => self.multiply_pairs(pairs, layout, part, totals),
                    None => self.multiply_tiles(ctx, layout, part, totals),
                }
            }
            Format::Float(kind) => {
                let Part { group, columns, .. } = part;
                for t in group {
                    let r = tiles.rows(t);
                    // SAFETY: as above; tiles of the weight are `stride` bytes apart.
                    unsafe {
                        (ctx.kernels.fma)(&FmaArgs {
                            rows: r.len(),
                            tiles: columns.len(),
                            k: self.weight.k(),
                            w: self.weight.tile(columns.start).as_ptr(),
                            w_kind: kind,
                            w_step: TILE_COLUMNS,
                            w_tile: stride / kind.size(),
                            a: act.as_ptr().add(r.start * words).cast(),
                            a_row_major: false,
                            total: totals.as_mut_ptr().add((r.start - first) * TILE_COLUMNS),
                            total_row: TILE_COLUMNS,
                            total_tile: rows * TILE_COLUMNS,
                        });
                    }
                }
            }
        }
        totals
    }

    /// Products of column tiles one after the other.
    fn multiply_tiles(&self, ctx: &Ctx<'_>, layout: QuantTile, part: Part<'_>, totals: &mut [f32]) {
        let Part { tiles, group, columns, act, rows } = part;
        let (words, first) = (self.act_words(), tiles.start(group.start));
        let block_bytes = if matches!((self.format, ctx.kernels.lookup), (Format::Table { .. }, Lookup::Ahead(_))) {
            LOOKED_UP_BYTES
        } else {
            layout.block_bytes
        };
        let min = layout.mins.is_some();
        let nibbles = matches!(self.format, Format::Int { nibbles: true, .. });
        // Blocks that are looked up ahead, and the kernel.
        let (ahead_of, dot) = match (self.format, ctx.kernels.lookup) {
            (Format::Table { .. }, Lookup::Ahead(look_up)) => (Some(look_up), ctx.kernels.dot),
            #[cfg(target_arch = "x86_64")]
            (Format::Table { .. }, Lookup::Within(dot, _)) => (None, dot),
            _ => (None, ctx.kernels.dot),
        };
        let mut found = LookedUp([MaybeUninit::uninit(); _]);
        // A single row tile goes through a column tile at once; several share a run of it while it is in L1.
        let alone = group.len() == 1 && ahead_of.is_none();
        let run = if alone { layout.blocks } else { (RUN_BYTES / layout.block_bytes).max(1) };
        assert!(ahead_of.is_none() || run <= RUN_BLOCKS, "a run that is looked up ahead has room");
        let ahead_lines = if alone { 0 } else { layout.block_bytes.div_ceil(64 * group.len()) };
        for (totals, column) in totals.chunks_exact_mut(rows * TILE_COLUMNS).zip(columns) {
            let tile = self.weight.tile(column).as_ptr();
            for b in (0..layout.blocks).step_by(run) {
                let blocks = run.min(layout.blocks - b);
                let mut weights = tile.wrapping_add(b * layout.block_bytes);
                // Behind a column tile lies the next one, which comes next.
                let mut ahead = weights.wrapping_add(blocks * layout.block_bytes);
                if let Some(look_up) = ahead_of {
                    // SAFETY: `blocks` blocks of the tile lie there, and there is room for a run of them.
                    unsafe { look_up(weights, blocks, found.0.as_mut_ptr().cast()) };
                    weights = found.0.as_ptr().cast();
                }
                let act_of = |r: Range<usize>| {
                    act.as_ptr().wrapping_add(r.start * words + b * r.len() * DotArgs::act_words(layout.groups))
                };
                for t in group.clone() {
                    let r = tiles.rows(t);
                    // SAFETY: offsets follow the layouts of the weight tile and of the prepared activations,
                    // whose lengths are checked above and by `PackedWeight`.
                    unsafe {
                        dot(&DotArgs {
                            rows: r.len(),
                            blocks,
                            groups: layout.groups,
                            nibbles,
                            min,
                            weights,
                            block_bytes,
                            act: act_of(r.clone()),
                            next_act: act_of(tiles.rows(if t + 1 < group.end { t + 1 } else { group.start })),
                            total: totals.as_mut_ptr().add((r.start - first) * TILE_COLUMNS),
                            ahead,
                            ahead_lines,
                        });
                    }
                    ahead = ahead.wrapping_add(blocks * ahead_lines * 64);
                }
            }
        }
    }

    /// Products of two column tiles at a time, of codes that are 8 bits wide or have been made so for all rows.
    fn multiply_pairs(&self, pairs: &Pairs, layout: QuantTile, part: Part<'_>, totals: &mut [f32]) {
        let Part { tiles, group, columns, act, rows } = part;
        let (words, first) = (self.act_words(), tiles.start(group.start));
        let tables = layout.block_bytes - layout.scales;
        let wide = matches!(self.format, Format::Int { nibbles: false, .. });
        let block_bytes = if wide { layout.block_bytes } else { Pairs::block_bytes(tables) };
        let ahead_lines = layout.block_bytes.div_ceil(64 * group.len());
        let mut room = [const { PairRoom([MaybeUninit::uninit(); _]) }; 2];
        // The last tile of an odd number is its own neighbor, whose products are dropped.
        let mut spare = [0f32; MAX_GROUP_ROWS * TILE_COLUMNS];
        let stride = self.weight.tile_stride();
        for (column, totals) in columns.clone().step_by(2).zip(totals.chunks_mut(2 * rows * TILE_COLUMNS)) {
            let tile = self.weight.tile(column).as_ptr();
            let neighbor = self.weight.tile((column + 1).min(columns.end - 1)).as_ptr();
            let (totals, other) = totals.split_at_mut(rows * TILE_COLUMNS);
            let other = if other.is_empty() { &mut spare[..] } else { other };
            for b in (0..layout.blocks).step_by(PAIR_BLOCKS) {
                let blocks = PAIR_BLOCKS.min(layout.blocks - b);
                let at = b * layout.block_bytes;
                let mut weights = [tile.wrapping_add(at), neighbor.wrapping_add(at)];
                // Behind the two tiles lie the next ones, which come next.
                let last = b + blocks == layout.blocks;
                let next = if last { 2 * stride } else { at + blocks * layout.block_bytes };
                let mut ahead = [tile.wrapping_add(next), tile.wrapping_add(next + stride)];
                if !wide {
                    for (weights, room) in weights.iter_mut().zip(&mut room) {
                        let to = room.0.as_mut_ptr().cast();
                        // SAFETY: `blocks` blocks of the tile lie there, and there is room for a run of them.
                        unsafe {
                            match self.format {
                                Format::Table { .. } => (pairs.look_up)(*weights, blocks, to),
                                _ => (pairs.widen)(*weights, blocks, tables, to),
                            }
                        }
                        *weights = room.0.as_ptr().cast();
                    }
                }
                let act_of = |r: Range<usize>| {
                    act.as_ptr().wrapping_add(r.start * words + b * r.len() * DotArgs::act_words(layout.groups))
                };
                for t in group.clone() {
                    let r = tiles.rows(t);
                    let to = (r.start - first) * TILE_COLUMNS;
                    // SAFETY: as in `multiply_tiles`; both totals have a part for every row of the group.
                    unsafe {
                        (pairs.dot)(&PairArgs {
                            dot: DotArgs {
                                rows: r.len(),
                                blocks,
                                groups: layout.groups,
                                nibbles: false,
                                min: layout.mins.is_some(),
                                weights: weights[0],
                                block_bytes,
                                act: act_of(r.clone()),
                                next_act: act_of(tiles.rows(if t + 1 < group.end { t + 1 } else { group.start })),
                                total: totals.as_mut_ptr().add(to),
                                ahead: ahead[0],
                                ahead_lines,
                            },
                            weights: weights[1],
                            total: other.as_mut_ptr().add(to),
                            ahead: ahead[1],
                        });
                    }
                    ahead = ahead.map(|a| a.wrapping_add(blocks * ahead_lines * 64));
                }
            }
        }
    }
}

/// Words of prepared activations per row, for a weight of `k` input features.
pub(in crate::cpu) fn act_words(dtype: DType, k: usize) -> usize {
    match dtype {
        DType::Quant(format) => {
            QuantTile::new(format, k).map_or(0, |layout| layout.blocks * DotArgs::act_words(layout.groups))
        }
        _ => k,
    }
}
