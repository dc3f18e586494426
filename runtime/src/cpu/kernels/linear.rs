//! Linear layers: activation preparation, one parallel region over column tiles, and the epilogues.
//!
//! Rows are cut into register tiles, tiles are grouped so that a group's activations stay in L2 while every column tile
//! passes over them. Invariant: an item (row group, few column tiles) writes those output elements and no others.

use super::body::{IntAct, Store, StoreMode};
use super::elementwise::Norm;
use super::parallel::{Ctx, SharedMut};
use super::tiles::RowTiles;
use super::{DotArgs, FloatKind, FmaArgs, LOOKED_UP_BYTES, Lookup};
use crate::cpu::pack::{PackedWeight, QuantTile, TILE_COLUMNS};
use dlx_ir::quant::zero_point;
use dlx_ir::{DType, Grid};
use std::mem::MaybeUninit;
use std::ops::Range;

/// What happens to the products.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// One output per weight.
    Store,
    /// One weight: `out = residual + y`.
    Add(&'a [f32]),
    /// One weight: `out += y`.
    AddInPlace,
    /// Two weights, gate and up: `out = silu(gate) * up`.
    SwiGlu,
}

/// Most weights that share one input.
pub const MAX_WEIGHTS: usize = 3;
/// Most rows per group, and the share of L2 that a group's activations may take.
const MAX_GROUP_ROWS: usize = 128;
const GROUP_ACT_WORDS: usize = 128 * 1024;
/// Most column tiles per item: neighbors on a row of the output are written together.
const ITEM_TILES: usize = 4;
/// Bytes of weights per kernel call when several row tiles share them: as much as stays in L1 beside activations.
const RUN_BYTES: usize = 9216;

/// Blocks of `l16` in a run.
const RUN_BLOCKS: usize = 8;

/// Room for a run of blocks of `l16` as 8-bit codes with their scales.
#[repr(align(64))]
struct LookedUp([MaybeUninit<u8>; RUN_BLOCKS * LOOKED_UP_BYTES]);

/// Room for the sums of one item, `[tiles][rows][16]`.
type Totals = [MaybeUninit<f32>; MAX_GROUP_ROWS * ITEM_TILES * TILE_COLUMNS];

/// How a weight wants its activations. Weights that agree share one prepared copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ActKind {
    Int(IntAct),
    Float,
}

/// A weight as the kernels see it.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    weight: PackedWeight<'a>,
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

    fn act_kind(&self) -> ActKind {
        match self.format {
            Format::Int { act, .. } | Format::Table { act, .. } => ActKind::Int(act),
            Format::Float(_) => ActKind::Float,
        }
    }

    /// Most rows per register tile.
    pub(super) fn max_rows(&self, ctx: &Ctx<'_>) -> usize {
        ctx.kernels.rows_of(self.weight.dtype())
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
        match self.format {
            Format::Int { layout, .. } | Format::Table { layout, .. } => {
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
                                    act: act
                                        .as_ptr()
                                        .add(r.start * words + b * r.len() * DotArgs::act_words(layout.groups)),
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
            Format::Float(kind) => {
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

/// Words of scratch that [`linear`] needs for `rows` rows and these weights.
pub fn linear_scratch_words(rows: usize, weights: &[PackedWeight<'_>]) -> usize {
    weights.iter().map(|w| rows * act_words(w.dtype(), w.k())).sum()
}

/// `y = norm(x) Wᵀ + b` for one to three weights that share the input, with an epilogue.
///
/// `x` is `[rows, k]`; `biases` is empty or has one entry per weight; `outs[i]` is `[rows, n_i]`. Quantized weights
/// multiply activations that are quantized to int8 with one scale per row and 128 features; float weights multiply f32
/// activations, summed in the order of k.
///
/// # Panics
/// When shapes do not fit each other, the epilogue or the scratch ([`linear_scratch_words`]).
#[allow(clippy::too_many_arguments, reason = "operands of an op")]
pub fn linear(
    ctx: &Ctx<'_>,
    x: &[f32],
    rows: usize,
    norm: Option<Norm<'_>>,
    weights: &[PackedWeight<'_>],
    biases: &[Option<&[f32]>],
    epilogue: Epilogue<'_>,
    outs: &mut [&mut [f32]],
    scratch: &mut [u32],
) {
    if rows == 0 {
        return;
    }
    check(x, rows, norm, weights, biases, epilogue, outs);
    let mut operands = [Operand::new(weights[0]); MAX_WEIGHTS];
    let mut acts: [&[u32]; MAX_WEIGHTS] = [&[]; MAX_WEIGHTS];
    let max_rows = weights.iter().map(|w| ctx.kernels.rows_of(w.dtype())).min().unwrap_or(1);
    let tiles = RowTiles::new(rows, max_rows);
    let mut scratch = scratch;
    for (i, weight) in weights.iter().enumerate() {
        operands[i] = Operand::new(*weight);
        let same = operands[..i].iter().position(|o| o.act_kind() == operands[i].act_kind());
        acts[i] = if let Some(j) = same {
            acts[j]
        } else {
            let (act, rest) = scratch.split_at_mut(rows * operands[i].act_words());
            scratch = rest;
            operands[i].prepare(ctx, x, norm, tiles, act);
            act
        };
    }
    let mut shared = [const { None }; MAX_WEIGHTS];
    for (s, out) in shared.iter_mut().zip(outs.iter_mut()) {
        *s = Some(SharedMut::new(out));
    }
    let group_tiles = operands[..weights.len()].iter().map(|o| o.group_tiles(max_rows)).min().unwrap_or(1);
    let column_tiles: usize = weights.iter().map(PackedWeight::tiles).sum();
    let job = Job {
        ctx,
        tiles,
        group_tiles,
        item_tiles: (column_tiles / (8 * ctx.threads())).clamp(1, ITEM_TILES),
        operands: &operands[..weights.len()],
        acts: &acts[..weights.len()],
        biases,
        epilogue,
        outs: shared,
    };
    let items = job.column_items() * tiles.count.div_ceil(group_tiles);
    ctx.parallel(items, 1, |_, range| {
        let mut room: [Totals; 2] = [[MaybeUninit::uninit(); _]; 2];
        for item in range {
            job.run(item, &mut room);
        }
    });
}

/// The first part of [`linear`] alone, which is for those who time it: puts the rows of `x` through the norm and into the
/// form that `weight` multiplies. The scratch is that of [`linear`].
///
/// # Panics
/// As [`linear`].
pub fn prepare_rows(ctx: &Ctx<'_>, x: &[f32], norm: Option<Norm<'_>>, weight: PackedWeight<'_>, scratch: &mut [u32]) {
    assert!(x.len().is_multiple_of(weight.k()) && norm.is_none_or(|n| n.weight.len() == weight.k()), "whole rows");
    let (operand, rows) = (Operand::new(weight), x.len() / weight.k());
    let tiles = RowTiles::new(rows, operand.max_rows(ctx));
    operand.prepare(ctx, x, norm, tiles, &mut scratch[..rows * operand.act_words()]);
}

fn check(
    x: &[f32],
    rows: usize,
    norm: Option<Norm<'_>>,
    weights: &[PackedWeight<'_>],
    biases: &[Option<&[f32]>],
    epilogue: Epilogue<'_>,
    outs: &[&mut [f32]],
) {
    let allowed = match epilogue {
        Epilogue::Store => 1..=MAX_WEIGHTS,
        Epilogue::Add(_) | Epilogue::AddInPlace => 1..=1,
        Epilogue::SwiGlu => 2..=2,
    };
    assert!(allowed.contains(&weights.len()), "{} weights with {epilogue:?}", weights.len());
    let k = weights[0].k();
    assert_eq!(x.len(), rows * k, "input size");
    assert!(weights.iter().all(|w| w.k() == k), "weights of one input");
    assert!(norm.is_none_or(|n| n.weight.len() == k), "norm length");
    assert!(biases.is_empty() || biases.len() == weights.len(), "one bias entry per weight");
    for (w, bias) in weights.iter().zip(biases) {
        assert!(bias.is_none_or(|b| b.len() == w.n()), "bias length");
    }
    if matches!(epilogue, Epilogue::SwiGlu) {
        assert!(outs.len() == 1 && weights[0].n() == weights[1].n(), "gate and up make one output");
    } else {
        assert_eq!(outs.len(), weights.len(), "one output per weight");
    }
    for (w, out) in weights.iter().zip(outs) {
        assert_eq!(out.len(), rows * w.n(), "output size");
    }
    if let Epilogue::Add(residual) = epilogue {
        assert_eq!(residual.len(), outs[0].len(), "residual size");
    }
}

/// A linear op whose activations are prepared.
struct Job<'a> {
    ctx: &'a Ctx<'a>,
    tiles: RowTiles,
    /// Register tiles per group of rows.
    group_tiles: usize,
    /// Column tiles per item.
    item_tiles: usize,
    operands: &'a [Operand<'a>],
    acts: &'a [&'a [u32]],
    biases: &'a [Option<&'a [f32]>],
    epilogue: Epilogue<'a>,
    outs: [Option<SharedMut<'a, f32>>; MAX_WEIGHTS],
}

impl Job<'_> {
    fn weight_items(&self, operand: &Operand<'_>) -> usize {
        operand.weight.tiles().div_ceil(self.item_tiles)
    }

    /// Items per group of rows.
    fn column_items(&self) -> usize {
        match self.epilogue {
            Epilogue::SwiGlu => self.weight_items(&self.operands[0]),
            _ => self.operands.iter().map(|o| self.weight_items(o)).sum(),
        }
    }

    fn run(&self, item: usize, [first, second]: &mut [Totals; 2]) {
        let per_group = self.column_items();
        let start = item / per_group * self.group_tiles;
        let group = start..(start + self.group_tiles).min(self.tiles.count);
        let mut at = item % per_group;
        let mut i = 0;
        while at >= self.weight_items(&self.operands[i]) {
            at -= self.weight_items(&self.operands[i]);
            i += 1;
        }
        let columns = at * self.item_tiles..((at + 1) * self.item_tiles).min(self.operands[i].weight.tiles());
        self.prefetch(i, &group, &columns);
        let totals = self.product(i, group.clone(), columns.clone(), first);
        if matches!(self.epilogue, Epilogue::SwiGlu) {
            let up = self.product(1, group.clone(), columns.clone(), second);
            self.ctx.kernels.portable.silu_mul(totals, up);
        }
        self.write(i, group, columns, totals);
    }

    /// Asks for the output lines of an item, so that writing them after the products does not wait for them.
    fn prefetch(&self, i: usize, group: &Range<usize>, columns: &Range<usize>) {
        let n = self.operands[i].weight.n();
        let out = self.outs[i].as_ref().expect("one output per weight");
        for row in self.tiles.start(group.start)..self.tiles.start(group.end) {
            for column in columns.clone() {
                out.prefetch(row * n + column * TILE_COLUMNS);
            }
        }
    }

    /// Products of weight `i` with its bias.
    fn product<'t>(&self, i: usize, group: Range<usize>, columns: Range<usize>, room: &'t mut Totals) -> &'t mut [f32] {
        let (operand, act) = (&self.operands[i], self.acts[i]);
        let totals = operand.multiply(self.ctx, self.tiles, group.clone(), columns.clone(), act, room);
        let Some(bias) = self.biases.get(i).copied().flatten() else { return totals };
        let rows = self.tiles.start(group.end) - self.tiles.start(group.start);
        for (column, totals) in columns.zip(totals.chunks_exact_mut(rows * TILE_COLUMNS)) {
            let bias = &bias[column * TILE_COLUMNS..];
            for row in totals.as_chunks_mut::<TILE_COLUMNS>().0 {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        }
        totals
    }

    fn write(&self, i: usize, group: Range<usize>, columns: Range<usize>, totals: &[f32]) {
        let n = self.operands[i].weight.n();
        let rows = self.tiles.start(group.start)..self.tiles.start(group.end);
        let first = columns.start * TILE_COLUMNS;
        // An item owns its rows and columns of the output; items do not overlap.
        let to = Store {
            out: self.outs[i].expect("one output per weight"),
            at: rows.start * n + first,
            stride: n,
            rows: rows.len(),
            columns: (columns.end * TILE_COLUMNS).min(n) - first,
            mode: match self.epilogue {
                Epilogue::Store | Epilogue::SwiGlu => StoreMode::Set,
                Epilogue::Add(residual) => StoreMode::Add(residual),
                Epilogue::AddInPlace => StoreMode::AddInPlace,
            },
        };
        self.ctx.kernels.portable.store(totals, &to);
    }
}
