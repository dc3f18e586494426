//! `shard-weights`: packed matrices that are too large for a device to read as one piece are marked with the rows of a shard.
//!
//! ```text
//! weight @w.packed: f32[256, 64] @n16 = pack @w {layout=n16}
//! ```
//! becomes, for a limit of 40,000 bytes, `weight @w.packed: f32[256, 64] @n16 = pack @w {layout=n16, shard=128}`.
//!
//! No byte changes, so other targets may read the same weight whole. Shards are of about the same size and, where the limit
//! allows, a multiple of 64 rows. Parameter: `limit` – bytes of the largest shard.

use crate::{Keeps, Params, PassInfo};
use dlx_ir::{Error, Module, Op, SHARD_ROWS, Type, WeightDef, WeightId, layout};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "shard-weights",
    doc: "packed matrices above a size → marked with the rows that are read as one piece {limit}",
    params: &["limit"],
    keeps: |_| Keeps::Bits,
    run,
};

/// Rows for which the bytes of a shard are a multiple of what devices align bindings to.
const ALIGNED_ROWS: u64 = 64;

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let limit: u64 = params.require("limit")?;
    let mut marks: Vec<(WeightId, u32)> = Vec::new();
    for (id, w) in module.weights.iter() {
        let WeightDef::Expr(Op::Pack { .. }, _) = w.def else { continue };
        let place = || module.weight_text(w);
        let sizes = sizes(&w.ty).ok_or_else(|| Error::new(place(), "has a layout whose size is not known here"))?;
        if sizes.bytes <= limit {
            continue;
        }
        let most = limit / sizes.tile * u64::from(SHARD_ROWS);
        let step = if most >= ALIGNED_ROWS { ALIGNED_ROWS } else { u64::from(SHARD_ROWS) };
        let most = most / step * step;
        let shards = sizes.rows.checked_div(most).map(|_| sizes.rows.div_ceil(most));
        let shard = shards.map(|n| sizes.rows.div_ceil(n).next_multiple_of(step)).and_then(|s| u32::try_from(s).ok());
        let Some(shard) = shard else {
            let what = format!("{SHARD_ROWS} rows have {} bytes, more than {limit}", sizes.tile);
            return Err(Error::new(place(), what).help("use a larger limit"));
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

/// Sizes of a packed matrix: its rows, the bytes of the rows of the smallest shard, and of all.
struct Sizes {
    rows: u64,
    tile: u64,
    bytes: u64,
}

fn sizes(ty: &Type) -> Option<Sizes> {
    let &[rows, k] = ty.shape()?.as_slice() else { return None };
    let packed = ty.layout.as_deref() == Some(layout::N16);
    let (tile, bytes) = (layout::tile_bytes(ty.dtype, k)?, layout::packed_bytes(ty.dtype, rows, k)?);
    packed.then_some(Sizes { rows: rows as u64, tile: tile as u64, bytes: bytes as u64 })
}
