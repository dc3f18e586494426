//! What the ops of [`Level::Weight`](crate::Level::Weight) compute.

use super::data::Tensor;
use super::not_computed;
use super::tensor::arg;
use crate::op::Op;
use crate::quant::{QuantizedRow, quantize_row};
use crate::types::DType;

/// Evaluates an op of this level.
pub(super) fn compute(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    match op {
        // Packing changes no number.
        Op::Pack { layout: _, shard: _ } => Ok(vec![arg(args, 0)?.clone()]),
        Op::Quantize { to } => quantize(args, *to),
        other => not_computed(other),
    }
}

pub(super) fn quantize(args: &[&Tensor], to: DType) -> Result<Vec<Tensor>, String> {
    let DType::Quant(format) = to else { return Err(format!("{to} is not a quantized format")) };
    let x = arg(args, 0)?;
    let mut data = Vec::with_capacity(x.floats()?.len());
    for row in x.floats()?.chunks(x.cols()) {
        let mut q = QuantizedRow::zeroed(format, row.len());
        if !quantize_row(format, row, &mut q) {
            return Err("a scale does not fit f16".into());
        }
        data.extend(q.dequantize(format));
    }
    Ok(vec![Tensor::f32(&x.shape, data)])
}
