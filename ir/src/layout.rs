//! The packed weight layout `n16`: what the compiler writes and the kernels of every target read.
//!
//! A weight `[N, K]` (`y = x Wᵀ`) is a concatenation of `ceil(N / 16)` tiles of equal size, a multiple of 64 bytes. A
//! tile holds 16 consecutive rows of W, that is 16 output columns; rows past N are zero. Tiles are independent, so a
//! weight can be packed in any order and by any number of threads.
//!
//! Float tile: `[k][16]` elements, then zero padding.
//!
//! Quantized tile: K is padded to blocks of 128 with `G` groups each (4, 2, 1 for groups of 32, 64, 128; the whole-row
//! format `q8` repeats its scale per block). A block is, in one stream of memory:
//! * 8-bit codes: one 64-byte vector per 4 consecutive k, `[16 columns][4 k]`, stored code = code + 128 (or the bare
//!   code when the format has a minimum);
//! * or 4-bit codes: one such vector per 8 consecutive k; low nibbles are the first four k, high nibbles the other
//!   four; stored code = code + 8 (or the bare code when the format has a minimum or codebooks);
//! * of `l16`, the levels `[16 columns][8 runs of 16 k]`, two bits each, the first run in the lowest;
//! * then f16 scales `[G][16]`, then f16 minima likewise if the format has them.
//!
//! The last block is followed by zero padding.
//!
//! Invariant: this is the only authority on sizes and offsets. Nothing here packs or reads.

use crate::quant::codebook::RUN;
use crate::types::{DType, Grid, QuantFormat};

/// The layout's name in types.
pub const N16: &str = "n16";

/// Output columns per tile: rows of W.
pub const TILE_COLUMNS: usize = 16;

/// Weights per block along k: one activation scale covers this many.
pub const BLOCK: usize = 128;

/// Bytes of the levels of a block.
const LEVEL_BYTES: usize = TILE_COLUMNS * BLOCK / RUN / 4;

/// Byte offsets inside a quantized tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantTile {
    /// Blocks of 128 k.
    pub blocks: usize,
    /// Weight groups per block.
    pub groups: usize,
    /// Bytes from one block to the next.
    pub block_bytes: usize,
    /// Offset of the levels in a block, behind the codes, if any.
    pub levels: Option<usize>,
    /// Offset of the scales in a block, behind codes and levels.
    pub scales: usize,
    /// Offset of the minima in a block, if any.
    pub mins: Option<usize>,
    /// Tile size.
    pub bytes: usize,
}

impl QuantTile {
    /// Layout of a tile of `k` weights per column; `None` on overflow or for a format that is not packed.
    pub fn new(fmt: QuantFormat, k: usize) -> Option<Self> {
        let blocks = k.div_ceil(BLOCK);
        let groups = match (fmt.bits, fmt.group, fmt.grid) {
            (4, Some(128), Grid::Table) => 1,
            (_, _, Grid::Table) => return None,
            (8, None, _) => 1,
            (4 | 8, Some(g @ (32 | 64 | 128)), _) => BLOCK / g as usize,
            _ => return None,
        };
        let codes = BLOCK * TILE_COLUMNS * usize::from(fmt.bits) / 8;
        let levels = (fmt.grid == Grid::Table).then_some(codes);
        let scales = codes + levels.map_or(0, |_| LEVEL_BYTES);
        let table = table_bytes(groups);
        let mins = fmt.has_min().then_some(scales + table);
        let block_bytes = mins.unwrap_or(scales) + table;
        let bytes = blocks.checked_mul(block_bytes)?.checked_next_multiple_of(64)?;
        Some(QuantTile { blocks, groups, block_bytes, levels, scales, mins, bytes })
    }

    /// Bytes of a table: the scales, or the minima, of a block.
    pub fn table_bytes(&self) -> usize {
        table_bytes(self.groups)
    }

    /// Offset of the vector that holds weight `kk`, with `per_vector` k to a vector.
    pub fn vector(&self, kk: usize, per_vector: usize) -> usize {
        kk / BLOCK * self.block_bytes + kk % BLOCK / per_vector * 64
    }

    /// Offset of the byte that holds the code of weight `kk` of column `col`, of that many bits.
    pub fn code(&self, bits: u8, kk: usize, col: usize) -> usize {
        self.vector(kk, if bits == 4 { 8 } else { 4 }) + col * 4 + kk % 4
    }

    /// Byte and shift of the level of weight `kk` in column `col`, in the levels at `levels`.
    pub fn level(&self, levels: usize, kk: usize, col: usize) -> (usize, usize) {
        let run = kk % BLOCK / RUN;
        (kk / BLOCK * self.block_bytes + levels + col * 2 + run / 4, run % 4 * 2)
    }

    /// Offset of the entry of group `slot` (counted over all blocks) and column `col` in the table at `table`.
    pub fn entry(&self, table: usize, slot: usize, col: usize) -> usize {
        slot / self.groups * self.block_bytes + table + (slot % self.groups * TILE_COLUMNS + col) * 2
    }
}

fn table_bytes(groups: usize) -> usize {
    groups * TILE_COLUMNS * 2
}

/// Bytes of one 16-column tile of a weight with `k` input features; `None` on overflow or if `dtype` cannot be packed.
pub fn tile_bytes(dtype: DType, k: usize) -> Option<usize> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            k.checked_mul(TILE_COLUMNS)?.checked_mul(dtype.size()?)?.checked_next_multiple_of(64)
        }
        DType::Quant(fmt) => Some(QuantTile::new(fmt, k)?.bytes),
        _ => None,
    }
}

/// Bytes of a packed `[n, k]` weight; `None` on overflow or if `dtype` cannot be packed.
pub fn packed_bytes(dtype: DType, n: usize, k: usize) -> Option<usize> {
    tile_bytes(dtype, k)?.checked_mul(n.div_ceil(TILE_COLUMNS))
}
