//! Linear layers: one parallel region over column tiles, and the epilogues. Products are `product.rs`'.
//!
//! Rows are cut into register tiles, tiles are grouped so that a group's activations stay in L2 while every column tile
//! passes over them. Invariant: an item (row group, few column tiles) writes those output elements and no others.

use super::body::{Store, StoreMode};
use super::elementwise::Norm;
use super::parallel::{Ctx, SharedMut};
use super::product::{MAX_GROUP_ROWS, Operand, act_words};
use super::tiles::RowTiles;
use crate::cpu::pack::{PackedWeight, TILE_COLUMNS};
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
/// Most column tiles per item: neighbors on a row of the output are written together.
const ITEM_TILES: usize = 4;
/// Room for the sums of one item, `[tiles][rows][16]`.
type Totals = [MaybeUninit<f32>; MAX_GROUP_ROWS * ITEM_TILES * TILE_COLUMNS];

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
    let max_rows = weights.iter().map(|w| ctx.kernels.rows_of(w.dtype(), rows)).min().unwrap_or(1);
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
    // Of the same size, so that no group goes through all weights for a thin remainder.
    let group_tiles = tiles.count.div_ceil(tiles.count.div_ceil(group_tiles));
    let column_tiles: usize = weights.iter().map(PackedWeight::tiles).sum();
    let item_tiles = (column_tiles / (8 * ctx.threads())).clamp(1, ITEM_TILES);
    let pairs = weights.iter().any(|w| ctx.kernels.pairs_of(w.dtype(), rows).is_some());
    let job = Job {
        ctx,
        tiles,
        group_tiles,
        item_tiles: if pairs { item_tiles.next_multiple_of(2) } else { item_tiles },
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
    let tiles = RowTiles::new(rows, operand.max_rows(ctx, rows));
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
