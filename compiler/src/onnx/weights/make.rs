//! Recipes from tensors, with everything checked that reading relies on.

use std::sync::{Arc, OnceLock};

use dlx_ir::Error;

use super::codes::{Packing, integer, is_float};
use super::grid::Axis;
use super::recipe::{Quant, Recipe, Zeros};
use crate::onnx::elem::ElemType;
use crate::onnx::tensor::RawTensor;

/// The weight of a `MatMulNBits`: `[N, K]` in blocks along K, each in whole bytes.
#[derive(Clone, Debug)]
pub struct NBits<'a> {
    /// `U8[N, blocks, block · bits / 8]`.
    pub codes: Arc<RawTensor<'a>>,
    /// Floats `[N · blocks]`.
    pub scales: Arc<RawTensor<'a>>,
    /// Packed `U8[N, ceil(blocks · bits / 8)]`, or floats `[N · blocks]`; the middle of the codes if there are none.
    pub zeros: Option<Arc<RawTensor<'a>>>,
    /// `I32[K]`: the block of each column, if they are not in order.
    pub groups: Option<Arc<RawTensor<'a>>>,
    /// Rows.
    pub n: usize,
    /// Columns; what the last block holds beyond them is not read.
    pub k: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Columns of a block.
    pub block: usize,
}

/// The table of a `GatherBlockQuantized` that is quantized along its rows.
#[derive(Clone, Debug)]
pub struct BlockTable<'a> {
    /// `[V, K]` codes of 4-bit types, or bytes that hold codes of `bits` bits.
    pub codes: Arc<RawTensor<'a>>,
    /// Floats `[V, blocks]`.
    pub scales: Arc<RawTensor<'a>>,
    /// Of the type of the codes, and packed like them, row by row.
    pub zeros: Option<Arc<RawTensor<'a>>>,
    /// Rows.
    pub n: usize,
    /// Columns that are stored.
    pub k: usize,
    /// Bits of a code in bytes: 4 or 8.
    pub bits: usize,
    /// Columns of a block.
    pub block: usize,
}

impl<'a> Recipe<'a> {
    /// A tensor of floats as it is.
    ///
    /// # Errors
    /// It holds something else, or nothing.
    pub fn plain(place: impl Into<String>, tensor: Arc<RawTensor<'a>>) -> Result<Self, Error> {
        let place = place.into();
        if !is_float(tensor.elem) {
            return Err(Error::new(place, format!("holds {}, and weights are floats or quantized", tensor.elem)));
        }
        let (n, k) = sizes(&place, &tensor.dims)?;
        let dims = tensor.dims.clone();
        Self::new(place, dims, [Axis::plain(n, k), Axis::plain(k, 1)], tensor, None)
    }

    /// The weight of a `MatMulNBits` as `[N, K]`.
    ///
    /// # Errors
    /// Tensors that do not have the sizes that the attributes ask for, or group numbers of no group.
    pub fn nbits(place: impl Into<String>, from: NBits<'a>) -> Result<Self, Error> {
        let (place, NBits { codes, scales, zeros, groups, n, k, bits, block }) = (place.into(), from);
        if !matches!(bits, 2 | 4 | 8) || block == 0 || !block.saturating_mul(bits).is_multiple_of(8) {
            return Err(Error::new(place, format!("has {bits} bits in blocks of {block}; 2, 4 and 8 bits are read")));
        }
        let packing = Packing { bits, signed: false };
        let blocks = k.div_ceil(block);
        let groups = groups.map(|g| in_groups(&place, &g, k, block)).transpose()?.flatten();
        let scales = Scales { scales, zeros, default: 1 << (bits - 1), packed_rows: true };
        Self::blocks(place, [n, k], blocks.saturating_mul(block), block, packing, codes, scales, groups)
    }

    /// The table of a `GatherBlockQuantized` as `[V, K]`.
    ///
    /// # Errors
    /// Tensors that do not have the sizes that the attributes ask for.
    pub fn block_table(place: impl Into<String>, from: BlockTable<'a>) -> Result<Self, Error> {
        let (place, BlockTable { codes, scales, zeros, n, k, bits, block }) = (place.into(), from);
        let packing = match codes.elem {
            ElemType::Uint8 if matches!(bits, 4 | 8) => Packing { bits, signed: false },
            ElemType::Int4 => Packing { bits: 4, signed: true },
            ElemType::Uint4 => Packing { bits: 4, signed: false },
            other => return Err(Error::new(place, format!("has {bits}-bit codes in {other}, which is not read"))),
        };
        let bytes = codes.elem == ElemType::Uint8;
        if block == 0 || bytes && !k.saturating_mul(bits).is_multiple_of(8) {
            return Err(Error::new(place, format!("has rows of {k} codes in blocks of {block}, which is not read")));
        }
        let default = if bytes { 1 << (bits - 1) } else { 0 };
        let scales = Scales { scales, zeros, default, packed_rows: bytes };
        Self::blocks(place, [n, k], k, block, packing, codes, scales, None)
    }

    /// What a `DequantizeLinear` makes of a constant: one scale for all, one per index of a dimension, or (`block_size`
    /// above 0) one per block along it.
    ///
    /// # Errors
    /// Tensors that do not fit each other, or blocks of a tensor that is no matrix.
    pub fn dequantized(
        place: impl Into<String>,
        codes: Arc<RawTensor<'a>>,
        scales: Arc<RawTensor<'a>>,
        zeros: Option<Arc<RawTensor<'a>>>,
        axis: i64,
        block_size: usize,
    ) -> Result<Self, Error> {
        let place = place.into();
        let Some((bits, signed)) = integer(codes.elem) else {
            return Err(Error::new(place, format!("holds {}, and no codes that are read", codes.elem)));
        };
        let packing = Packing { bits, signed };
        let (n, k) = sizes(&place, &codes.dims)?;
        let (mut rows, mut columns) = (Axis::plain(n, k), Axis::plain(k, 1));
        let rank = codes.dims.len();
        let along = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|a| *a < rank);
        let per = |axis: Axis, block: usize, stride: usize| Axis { block, scales: stride, zeros: stride, ..axis };
        let shape = scales.dims.as_slice();
        let unfit = |place: &str| {
            let found = format!("scales {shape:?} do not fit codes {:?} along axis {axis}", codes.dims);
            Error::new(place, format!("{found} in blocks of {block_size}"))
        };
        match (along, block_size) {
            _ if block_size == 0 && matches!(shape, [] | [1]) => {}
            (Some(0), 0) if shape == [n] => rows = per(rows, 1, 1),
            (Some(1), 0) if rank == 2 && shape == [k] => columns = per(columns, 1, 1),
            (Some(0), block) if block > 0 && rank == 2 && shape == [n.div_ceil(block), k] => {
                (rows, columns) = (per(rows, block, k), per(columns, 1, 1));
            }
            (Some(1), block) if block > 0 && rank == 2 && shape == [n, k.div_ceil(block)] => {
                (rows, columns) = (per(rows, 1, k.div_ceil(block)), per(columns, block, 1));
            }
            _ => return Err(unfit(&place)),
        }
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let count = count.ok_or_else(|| unfit(&place))?;
        floats(&place, "scales", &scales, count)?;
        let zeros = match zeros {
            None => Zeros::Of(0),
            Some(zeros) if zeros.elem == codes.elem => {
                holds(&place, "zero points", &zeros, count, bits)?;
                Zeros::Codes(packing, zeros)
            }
            Some(zeros) => {
                return Err(Error::new(
                    place,
                    format!("has zero points of {} and codes of {}", zeros.elem, codes.elem),
                ));
            }
        };
        let dims = codes.dims.clone();
        Self::new(place, dims, [rows, columns], codes, Some(Quant { packing, scales, zeros, groups: None }))
    }

    /// Rows of codes, `stored` to a row, in blocks along them.
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own about one tensor")]
    fn blocks(
        place: String,
        [n, k]: [usize; 2],
        stored: usize,
        block: usize,
        packing: Packing,
        codes: Arc<RawTensor<'a>>,
        from: Scales<'a>,
        groups: Option<Arc<[u32]>>,
    ) -> Result<Self, Error> {
        let blocks = k.div_ceil(block);
        let Some(count) = n.checked_mul(blocks) else {
            return Err(Error::new(place, format!("has {n} rows of {blocks} blocks, which is too many")));
        };
        floats(&place, "scales", &from.scales, count)?;
        let per_byte = 8 / packing.bits;
        let padded = if from.packed_rows { blocks.next_multiple_of(per_byte) } else { blocks };
        let (zeros, zeros_stride) = match from.zeros {
            None => (Zeros::Of(from.default), 0),
            Some(zeros) if is_float(zeros.elem) => {
                floats(&place, "zero points", &zeros, count)?;
                (Zeros::Floats(zeros), blocks)
            }
            Some(zeros) if zeros.elem == codes.elem => {
                holds(&place, "zero points", &zeros, n.saturating_mul(padded), packing.bits)?;
                (Zeros::Codes(packing, zeros), padded)
            }
            Some(zeros) => return Err(Error::new(place, format!("has zero points of {}", zeros.elem))),
        };
        let rows = Axis { block: 1, scales: blocks, zeros: zeros_stride, ..Axis::plain(n, stored) };
        let columns = Axis { block, scales: 1, zeros: usize::from(zeros_stride > 0), ..Axis::plain(k, 1) };
        let quant = Quant { packing, scales: from.scales, zeros, groups };
        Self::new(place, vec![n, k], [rows, columns], codes, Some(quant))
    }

    fn new(
        place: String,
        dims: Vec<usize>,
        [rows, columns]: [Axis; 2],
        codes: Arc<RawTensor<'a>>,
        quant: Option<Quant<'a>>,
    ) -> Result<Self, Error> {
        if rows.len == 0 || columns.len == 0 {
            return Err(Error::new(place, format!("has no elements: {dims:?}")));
        }
        let bits = quant.as_ref().map_or(codes.elem.bits(), |q| q.packing.bits);
        holds(&place, "the tensor", &codes, rows.len.saturating_mul(rows.stride), bits)?;
        Ok(Recipe { place, dims, rows, columns, codes, quant, factor: 1.0, keeps: true, format: OnceLock::new() })
    }
}

/// Scales of rows of blocks.
struct Scales<'a> {
    scales: Arc<RawTensor<'a>>,
    zeros: Option<Arc<RawTensor<'a>>>,
    /// Zero point where there are none.
    default: i64,
    /// Whether each row of zero points begins with a byte.
    packed_rows: bool,
}

/// Rows, and elements of a row.
fn sizes(place: &str, dims: &[usize]) -> Result<(usize, usize), Error> {
    let (n, rest) = dims.split_first().map_or((1, &[][..]), |(n, rest)| (*n, rest));
    let k = rest.iter().try_fold(1usize, |k, d| k.checked_mul(*d)).filter(|k| n.checked_mul(*k).is_some());
    k.map(|k| (n, k)).ok_or_else(|| Error::new(place, format!("has too many elements: {dims:?}")))
}

/// Fails unless a tensor has `count` elements of `bits` bits.
fn holds(place: &str, what: &str, tensor: &RawTensor<'_>, count: usize, bits: usize) -> Result<(), Error> {
    let bytes = count.checked_mul(bits).map(|b| b.div_ceil(8));
    if bytes == Some(tensor.bytes.len()) {
        return Ok(());
    }
    let found = tensor.bytes.len();
    Err(Error::new(
        place,
        format!(
            "{what} {:?} of {} have {found} bytes, where {count} elements of {bits} bits were expected",
            tensor.dims, tensor.elem
        ),
    )
    .help("the model is damaged: download or export it again"))
}

/// Fails unless a tensor has `count` floats.
fn floats(place: &str, what: &str, tensor: &RawTensor<'_>, count: usize) -> Result<(), Error> {
    if !is_float(tensor.elem) {
        return Err(Error::new(place, format!("{what} are {}, not floats", tensor.elem)));
    }
    holds(place, what, tensor, count, tensor.elem.bits())
}

/// The block of each column; none if they are in order.
fn in_groups(place: &str, tensor: &RawTensor<'_>, k: usize, block: usize) -> Result<Option<Arc<[u32]>>, Error> {
    if tensor.elem != ElemType::Int32 {
        return Err(Error::new(place, format!("group numbers are {}, not {}", tensor.elem, ElemType::Int32)));
    }
    holds(place, "group numbers", tensor, k, 32)?;
    let blocks = k.div_ceil(block);
    let mut all = Vec::with_capacity(k);
    for (column, bytes) in tensor.bytes.as_chunks().0.iter().enumerate() {
        let group = i32::from_le_bytes(*bytes);
        match u32::try_from(group).ok().filter(|g| (*g as usize) < blocks) {
            Some(group) => all.push(group),
            None => {
                return Err(Error::new(place, format!("column {column} is in group {group} of {blocks}"))
                    .help("the model is damaged: download or export it again"));
            }
        }
    }
    let in_order = all.iter().enumerate().all(|(i, g)| i / block == *g as usize);
    Ok((!in_order).then(|| all.into()))
}
