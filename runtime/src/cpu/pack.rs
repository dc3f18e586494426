//! Packed weights on the CPU: packing tiles and reading rows back. The layout is [`dlx_ir::layout`]'s.
//!
//! Invariant: every read below stays within [`packed_bytes`].

pub(crate) use dlx_ir::layout::{BLOCK, QuantTile};
pub use dlx_ir::layout::{TILE_COLUMNS, packed_bytes, tile_bytes};
use dlx_ir::quant::codebook::{RUN, number};
use dlx_ir::quant::zero_point;
use dlx_ir::{DType, QuantFormat};
use half::{bf16, f16};

/// A weight in the `n16` layout, its size checked against its bytes.
#[derive(Clone, Copy, Debug)]
pub struct PackedWeight<'a> {
    dtype: DType,
    n: usize,
    k: usize,
    bytes: &'a [u8],
}

impl<'a> PackedWeight<'a> {
    /// Wraps packed bytes; `None` unless they are exactly as long as [`packed_bytes`] says.
    pub fn new(dtype: DType, n: usize, k: usize, bytes: &'a [u8]) -> Option<Self> {
        (packed_bytes(dtype, n, k)? == bytes.len() && k > 0).then_some(PackedWeight { dtype, n, k, bytes })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Output features (rows of W).
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features (columns of W).
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of 16-column tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.n.div_ceil(TILE_COLUMNS)
    }

    /// Bytes of one tile.
    pub(crate) fn tile_stride(&self) -> usize {
        self.bytes.len().checked_div(self.tiles()).unwrap_or(0)
    }

    /// Bytes of tile `t`.
    pub(crate) fn tile(&self, t: usize) -> &'a [u8] {
        let stride = self.tile_stride();
        &self.bytes[t * stride..][..stride]
    }
}

/// Packs up to 16 rows of a float weight into one tile.
///
/// `rows` holds the little-endian elements of the valid rows, row-major; `out` is one tile ([`tile_bytes`]).
///
/// # Panics
/// When `dtype` is not a float type, or a length does not fit.
pub fn pack_tile_float(dtype: DType, rows: &[u8], k: usize, out: &mut [u8]) {
    assert!(dtype.is_float(), "pack_tile_float takes f32, f16 or bf16, not {dtype}");
    let size = dtype.size().unwrap_or(0);
    assert_eq!(Some(out.len()), tile_bytes(dtype, k), "tile length");
    assert!(rows.len().is_multiple_of(k * size) && rows.len() <= TILE_COLUMNS * k * size, "row bytes");
    out.fill(0);
    for (col, row) in rows.chunks_exact(k * size).enumerate() {
        for (kk, element) in row.chunks_exact(size).enumerate() {
            out[(kk * TILE_COLUMNS + col) * size..][..size].copy_from_slice(element);
        }
    }
}

/// Packs up to 16 rows of a quantized weight into one tile.
///
/// `codes` holds the valid rows, row-major, as [`dlx_ir::quant`] stores them: with [`zero_point`] already added, or of `l16`
/// level and code, the level being that of the first weight of its run. `scales` and `mins` hold
/// `fmt.groups(k)` entries per valid row (`mins` is empty for formats without minimum); `out` is one tile
/// ([`tile_bytes`]).
///
/// # Panics
/// When the format cannot be packed, or a length does not fit.
pub fn pack_tile_quant(fmt: QuantFormat, codes: &[u8], scales: &[f16], mins: &[f16], k: usize, out: &mut [u8]) {
    let layout = QuantTile::new(fmt, k).expect("a packable format and size");
    assert_eq!(out.len(), layout.bytes, "tile length");
    assert!(codes.len().is_multiple_of(k) && codes.len() <= TILE_COLUMNS * k, "codes");
    let rows = codes.len() / k;
    let row_groups = fmt.groups(k);
    assert_eq!(scales.len(), rows * row_groups, "scales");
    assert_eq!(mins.len(), if fmt.has_min() { rows * row_groups } else { 0 }, "mins");
    out.fill(0);
    for (col, row) in codes.chunks_exact(k).enumerate() {
        if fmt.bits == 4 {
            for (pair, eight) in row.chunks(8).enumerate() {
                for (j, &code) in eight.iter().enumerate() {
                    out[layout.vector(pair * 8, 8) + col * 4 + j % 4] |= (code & 15) << (4 * (j / 4));
                }
            }
        } else {
            for (quad, four) in row.chunks(4).enumerate() {
                out[layout.vector(quad * 4, 4) + col * 4..][..four.len()].copy_from_slice(four);
            }
        }
    }
    if let Some(at) = layout.levels {
        for (col, row) in codes.chunks_exact(k).enumerate() {
            for (run, codes) in row.chunks(RUN).enumerate() {
                let (byte, shift) = layout.level(at, run * RUN, col);
                out[byte] |= (codes[0] >> 4 & 3) << shift;
            }
        }
    }
    let mut write_table = |at: usize, values: &[f16]| {
        for (col, row) in values.chunks_exact(row_groups).enumerate() {
            // A whole-row format has one entry per row and one table entry per block: it is repeated.
            for slot in 0..layout.blocks * layout.groups {
                let group = if fmt.group.is_none() { 0 } else { slot };
                if let Some(v) = row.get(group) {
                    out[layout.entry(at, slot, col)..][..2].copy_from_slice(&v.to_le_bytes());
                }
            }
        }
    };
    write_table(layout.scales, scales);
    if let Some(at) = layout.mins {
        write_table(at, mins);
    }
}

/// Reads row `row` of a packed weight back as floats: the embedding gather, which lets a tied embedding share the
/// head's bytes.
///
/// # Panics
/// When `row` is not a row of the weight or `out` is not `k` long.
pub fn unpack_row(weight: &PackedWeight<'_>, row: usize, out: &mut [f32]) {
    assert!(row < weight.n, "row {row} of a weight with {} rows", weight.n);
    assert_eq!(out.len(), weight.k, "row length");
    let tile = weight.tile(row / TILE_COLUMNS);
    let col = row % TILE_COLUMNS;
    let half_at = |at: usize| [tile[at], tile[at + 1]];
    match weight.dtype {
        DType::F32 => {
            for (v, e) in out.iter_mut().zip(tile.as_chunks::<4>().0.iter().skip(col).step_by(TILE_COLUMNS)) {
                *v = f32::from_le_bytes(*e);
            }
        }
        DType::F16 => {
            for (v, e) in out.iter_mut().zip(tile.as_chunks::<2>().0.iter().skip(col).step_by(TILE_COLUMNS)) {
                *v = f16::from_le_bytes(*e).to_f32();
            }
        }
        DType::BF16 => {
            for (v, e) in out.iter_mut().zip(tile.as_chunks::<2>().0.iter().skip(col).step_by(TILE_COLUMNS)) {
                *v = bf16::from_le_bytes(*e).to_f32();
            }
        }
        DType::Quant(fmt) => {
            let layout = QuantTile::new(fmt, weight.k).expect("the constructor checked the format");
            let zero = i32::from(zero_point(fmt));
            let group_len = BLOCK / layout.groups;
            for (slot, group) in out.chunks_mut(group_len).enumerate() {
                let entry = |table| f16::from_le_bytes(half_at(layout.entry(table, slot, col))).to_f32();
                let scale = entry(layout.scales);
                let min = layout.mins.map_or(0.0, entry);
                for (j, v) in group.iter_mut().enumerate() {
                    let kk = slot * group_len + j;
                    let byte = tile[layout.code(fmt.bits, kk, col)];
                    let stored = if fmt.bits == 4 { (byte >> (kk % 8 / 4 * 4)) & 15 } else { byte };
                    let code = match layout.levels {
                        Some(at) => {
                            let (byte, shift) = layout.level(at, kk, col);
                            i32::from(number(tile[byte] >> shift << 4 & 0x30 | stored))
                        }
                        None => i32::from(stored) - zero,
                    };
                    *v = scale.mul_add(code as f32, min);
                }
            }
        }
        _ => unreachable!("the constructor rejects {}", weight.dtype),
    }
}
