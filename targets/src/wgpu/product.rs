//! The inner product of a tile: rows of activations times columns of packed weights, and what its templates are told.
//!
//! A workgroup computes a few 16-column tiles for a few groups of four rows. Its threads are columns times slices of k; a
//! slice takes every n-th block. Activations are staged in workgroup memory, four rows to a vector, and the slices'
//! sums are added there.
//!
//! Integer sums are exact: only the fold with the scales rounds, so results agree with the CPU's up to f32 rounding.

use dlx_ir::layout::{self, QuantTile};
pub(super) use dlx_ir::layout::{BLOCK, TILE_COLUMNS as TILE};
use dlx_ir::quant::{codebook, zero_point};
use dlx_ir::{DType, Grid, QuantFormat};

use super::source::Source;

/// Words per block of 128 quantized activations and four rows: 32 of codes, 4 of sums (one per 32 codes), a scale.
pub(super) const ACT_WORDS: usize = 37;
/// k's per block of the float product.
const FLOAT_BLOCK: usize = 32;

/// How a product is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Groups of four rows per thread.
    pub(super) groups: usize,
    /// Slices of k.
    pub(super) slices: usize,
    /// Column tiles side by side.
    pub(super) tiles: usize,
}

impl Cut {
    pub(super) fn threads(self) -> usize {
        self.slices * self.columns()
    }

    pub(super) fn columns(self) -> usize {
        self.tiles * TILE
    }
}

/// A product: `rows × k` activations times one or two weights `[n, k]` of one type.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) dtype: DType,
    pub(super) weights: usize,
    pub(super) cut: Cut,
}

impl Product {
    /// A product cut for its number of rows: few rows leave the weights' bytes as the cost, so k is cut finely; many rows
    /// reuse them.
    pub(super) fn new(rows: usize, n: usize, k: usize, dtype: DType, weights: usize) -> Self {
        let row_groups = rows.div_ceil(4);
        let cut = match row_groups {
            1 => Cut { groups: 1, slices: 8, tiles: 1 },
            2 => Cut { groups: 2, slices: 8, tiles: 1 },
            3 | 4 => Cut { groups: 4, slices: 4, tiles: 2 },
            _ if weights > 1 => Cut { groups: 4, slices: 4, tiles: 2 },
            _ => Cut { groups: 8, slices: 2, tiles: 4 },
        };
        Product { rows, n, k, dtype, weights, cut }.fitted()
    }

    /// A product whose results are needed by the whole workgroup, which costs it workgroup memory.
    pub(super) fn for_head(rows: usize, n: usize, k: usize, dtype: DType) -> Self {
        let cut = match rows.div_ceil(4) {
            1 => Cut { groups: 1, slices: 8, tiles: 1 },
            2 => Cut { groups: 2, slices: 8, tiles: 1 },
            _ => Cut { groups: 4, slices: 2, tiles: 4 },
        };
        Product { rows, n, k, dtype, weights: 1, cut }.fitted()
    }

    /// Slices that would have no block become tiles.
    fn fitted(mut self) -> Self {
        while self.cut.slices > 1 && self.cut.slices / 2 >= self.blocks() {
            self.cut.slices /= 2;
            if self.cut.tiles < 4 {
                self.cut.tiles *= 2;
            }
        }
        self
    }

    pub(super) fn row_groups(&self) -> usize {
        self.rows.div_ceil(4)
    }

    pub(super) fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    pub(super) fn quantized(&self) -> Option<QuantFormat> {
        if let DType::Quant(format) = self.dtype { Some(format) } else { None }
    }

    /// Blocks along k.
    pub(super) fn blocks(&self) -> usize {
        self.k.div_ceil(if self.quantized().is_some() { BLOCK } else { FLOAT_BLOCK })
    }

    /// Declares what `product.wgsl` and `product_sums.wgsl` read, and binds activations and weights.
    pub(super) fn declare(&self, source: Source) -> Source {
        let Cut { groups, slices, tiles } = self.cut;
        let (element, block) = if self.quantized().is_some() { ("vec4<u32>", ACT_WORDS) } else { ("f32", FLOAT_BLOCK) };
        let staged = slices * block;
        let sums: Vec<_> = (0..self.weights).flat_map(|w| (0..groups).map(move |g| (w, g))).collect();
        let kept = (slices - 1) * sums.len() * self.cut.columns();
        let source = (0..self.weights)
            .fold(source.write("activations", element), |s, w| s.read(format!("weight{w}"), "u32"))
            .set("weights", self.weights)
            .set("sums", sums)
            .size("ROWS", self.rows)
            .size("ROW_GROUPS", self.row_groups())
            .size("GROUPS", groups)
            .size("SLICES", slices)
            .size("SIDE", tiles)
            .size("COLUMNS", self.cut.columns())
            .size("THREADS", self.cut.threads())
            .size("TILES", self.tiles())
            .size("BLOCKS", self.blocks())
            .size("STEPS", self.blocks().div_ceil(slices))
            .size("STAGED", staged)
            .size("POOL", (staged * groups).max(kept));
        let source = declare_weight(source, self.n, self.k, self.dtype);
        match self.quantized() {
            Some(format) => source
                .size("ACT_WORDS", ACT_WORDS)
                .size("ROW_VECTORS", self.blocks() * ACT_WORDS)
                .constant("CORRECTION", "i32", correction(format)),
            None => source.size("FLOAT_BLOCK", FLOAT_BLOCK),
        }
    }
}

/// Declares what `weight.wgsl` and readers of a packed weight `[n, k]` read.
pub(super) fn declare_weight(source: Source, n: usize, k: usize, dtype: DType) -> Source {
    let tile_words = layout::tile_bytes(dtype, k).unwrap_or(0) / 4;
    let source = source.size("N", n).size("K", k).size("TILE_WORDS", tile_words);
    let DType::Quant(format) = dtype else {
        return source.set("weight", dtype.to_string()).set("books", Vec::<u32>::new());
    };
    let tile = QuantTile::new(format, k).expect("lowering checked the size of the weight");
    // Four numbers to a word, or none.
    let books = tile.levels.map_or(Vec::new(), |_| {
        let words = codebook::TABLE.as_chunks::<4>().0.iter();
        words.map(|four| u32::from_le_bytes(four.map(|v| v as u8))).collect()
    });
    source
        .set("weight", "codes")
        .set("books", books)
        .size("LEVELS_AT", tile.levels.unwrap_or(0) / 4)
        .set("bits", format.bits)
        .set("minimums", format.has_min())
        .size("WEIGHT_GROUP", BLOCK / tile.groups)
        .size("CODE_WORDS", tile.scales / 4)
        .size("TABLE_WORDS", tile.table_bytes() / 4)
        .size("BLOCK_WORDS", tile.block_bytes / 4)
}

/// What is added to a group's sum of products, in sums of activations: the zero point of 4-bit codes, which are multiplied as
/// they are stored; 8-bit codes are multiplied with their top bit flipped, that is less 128, and numbers of codebooks as they are.
fn correction(format: QuantFormat) -> i32 {
    if format.grid == Grid::Table {
        return 0;
    }
    let flipped = if format.bits == 8 { 128 } else { 0 };
    flipped - i32::from(zero_point(format))
}
