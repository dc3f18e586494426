//! Typing rules of the ops of [`Level::Weight`](crate::Level::Weight).

use super::no_rule;
use super::operands::{Operands, rank2};
use crate::layout::TILE_COLUMNS;
use crate::name::plain_name_char;
use crate::op::Op;
use crate::types::{DType, Type};

/// Shards of a packed weight are whole multiples of this many rows.
pub const SHARD_ROWS: u32 = TILE_COLUMNS as u32;

impl Operands<'_> {
    /// Result types of an op of this level.
    pub(super) fn weight_op(&mut self, op: &Op) -> Result<Vec<Type>, String> {
        match op {
            Op::Pack { layout, shard } => self.pack(layout, *shard),
            Op::Quantize { to } => self.quantize(*to),
            other => no_rule(other),
        }
    }

    fn pack(&mut self, layout: &str, shard: Option<u32>) -> Result<Vec<Type>, String> {
        let x = self.row_major_weight()?;
        if !layout.chars().all(plain_name_char) {
            return Err(format!("`{layout}` is not the name of a layout"));
        }
        if shard.is_some_and(|rows| !rows.is_multiple_of(SHARD_ROWS)) {
            return Err(format!("a shard has a multiple of {SHARD_ROWS} rows"));
        }
        Ok(vec![Type { layout: Some(layout.into()), ..x.clone() }])
    }

    fn quantize(&mut self, to: DType) -> Result<Vec<Type>, String> {
        if !matches!(to, DType::Quant(_)) {
            return Err(format!("{to} is not a quantized format"));
        }
        let x = self.row_major_weight()?;
        rank2(x)?;
        if !x.dtype.is_float() {
            return Err(format!("{} cannot be quantized", x.dtype));
        }
        Ok(vec![Type { dtype: to, ..x.clone() }])
    }
}
