//! `shard-weights`: packed matrices that are too large for a device to read as one piece are marked with the rows of a shard.
//!
//! ```text
//! weight @w.packed: f32[256, 64] @n16 = pack @w {layout=n16}
//! ```
//! becomes, for a limit of 40,000 bytes, `weight @w.packed: f32[256, 64] @n16 = pack @w {layout=n16, shard=128}`.
//!
//! No byte changes, so other targets may read the same weight whole. Shards are of about the same size and, where the limit
//! allows, a multiple of 64 rows. Parameter: `limit` – bytes of the largest shard.

use crate::{Params, PassInfo};
use dlx_ir::{DType, Error, Module, Op, SHARD_ROWS, Type, WeightDef, WeightId};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "shard-weights",
    doc: "packed matrices above a size → marked with the rows that are read as one piece {limit}",
    params: &["limit"],
    run,
};

/// Rows for which the bytes of a shard are a multiple of what devices align bindings to.
const ALIGNED_ROWS: u64 = 64;

fn run(module: &mut Module, params: &Params) -> Result<usize, Error> {
    let limit: u64 = params.require("limit")?;
    let mut marks: Vec<(WeightId, u32)> = Vec::new();
    for (id, w) in module.weights.iter() {
        let WeightDef::Expr(Op::Pack { .. }, _) = w.def else { continue };
        let Some((rows, row_bytes)) = size(&w.ty) else { continue };
        if rows.saturating_mul(row_bytes) <= limit {
            continue;
        }
        let most = limit / row_bytes;
        let step = if most >= ALIGNED_ROWS { ALIGNED_ROWS } else { u64::from(SHARD_ROWS) };
        let most = most / step * step;
        let shards = rows.checked_div(most).map(|_| rows.div_ceil(most));
        let shard = shards.map(|n| rows.div_ceil(n).next_multiple_of(step)).and_then(|s| u32::try_from(s).ok());
        let Some(shard) = shard else {
            let what = format!("{SHARD_ROWS} rows have {} bytes, more than {limit}", row_bytes * u64::from(SHARD_ROWS));
            return Err(Error::new(module.weight_text(w), what).help("use a larger limit"));
        };
        marks.push((id, shard));
    }
    for &(id, rows) in &marks {
        if let WeightDef::Expr(Op::Pack { shard, .. }, _) = &mut module.weights[id].def {
            *shard = Some(rows);
        }
    }
    Ok(marks.len())
}

/// Rows of a matrix, and the most bytes that one has when packed: codes in whole blocks of 128, f16 scales and minima, and
/// a share of the padding of its tile.
fn size(ty: &Type) -> Option<(u64, u64)> {
    const BLOCK: u64 = 128;
    const PADDING: u64 = 4;
    let &[rows, k] = ty.shape()?.as_slice() else { return None };
    let (rows, k) = (rows as u64, k as u64);
    let bytes = match ty.dtype {
        DType::Quant(format) => {
            let groups = BLOCK / format.group.map_or(BLOCK, u64::from);
            let tables = if format.min { 4 } else { 2 } * groups;
            k.div_ceil(BLOCK).checked_mul(BLOCK * u64::from(format.bits) / 8 + tables)?
        }
        dtype => k.checked_mul(dtype.size()? as u64)?,
    };
    Some((rows, bytes.checked_add(PADDING)?))
}
