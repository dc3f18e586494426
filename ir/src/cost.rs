//! What a node costs: multiply-adds of matrix products and attention, and the bytes of matrices, caches and values.
//!
//! Counts are those of the mathematics, whatever a kernel does: rows that fill up a bucket, tiles and padding are not in
//! them. The arithmetic of elementwise work and norms is left out, since their numbers are read and written for longer than
//! they are computed; so are vectors, which are small beside everything else.

use crate::attr::Mask;
use crate::module::{Graph, Module, Node, Operand, Weight, WeightDef};
use crate::op::Op;
use crate::quant::codebook::RUN;
use crate::spans::{SpanRows, spans_type};
use crate::types::{DType, Grid, Type};

/// What a node costs, as far as it does not depend on a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Multiply-adds of matrix products for one row.
    pub row_products: u64,
    /// Multiply-adds of attention for one row and one cache row that it attends; see [`attended`].
    pub key_products: u64,
    /// Bytes of the matrices that the products read, once for all rows.
    pub weight_bytes: u64,
    /// Bytes of the keys and values of one cache row. Attention reads them once for all rows of a span; what writes caches
    /// writes them for each row.
    pub cache_bytes: u64,
    /// Bytes of values that are read and written for one row, a gathered row of a table or of a state among them.
    pub row_bytes: u64,
    /// Numbers that are made for one row.
    pub row_values: u64,
}

impl Cost {
    /// The cost of a node; `None` while a size that it depends on is a name.
    pub fn of(module: &Module, graph: &Graph, node: &Node) -> Option<Self> {
        let mut cost = Cost::default();
        for &matrix in matrices(node)? {
            let elements = module.operand_type(graph, matrix).elements()? as u64;
            cost.row_products = cost.row_products.saturating_add(elements);
            if let Operand::Weight(w) = matrix {
                cost.weight_bytes = cost.weight_bytes.saturating_add(weight_bytes(&module.weights[w])?);
            }
        }
        if let Op::Attention { .. } | Op::CachedAttention { .. } = &node.op {
            let q = module.operand_type(graph, *node.inputs.first()?);
            // One with a key, one with its value.
            cost.key_products = (q.dims.last()?.fixed()? as u64).saturating_mul(2);
        }
        for &input in &node.inputs {
            let ty = module.operand_type(graph, input);
            let of_row = match (input, &node.op) {
                (Operand::Value(_), Op::Matmul {}) if node.inputs.get(1) == Some(&input) => continue,
                (Operand::Value(_), _) if *ty == spans_type() => continue,
                (Operand::Value(_), _) | (Operand::Weight(_), Op::Embed {}) => &mut cost.row_bytes,
                (Operand::State(_), Op::StoreRows {} | Op::TakeRows {}) => &mut cost.row_bytes,
                (Operand::State(_), _) => &mut cost.cache_bytes,
                (Operand::Weight(_), _) => continue,
            };
            *of_row = of_row.saturating_add(row_bytes(ty)?);
        }
        for &output in &node.outputs {
            let ty = &graph.values[output].ty;
            cost.row_bytes = cost.row_bytes.saturating_add(row_bytes(ty)?);
            cost.row_values = cost.row_values.saturating_add(row_elements(ty)?);
        }
        Some(cost)
    }

    /// Multiply-adds of a call: of this many rows, which attend `attended` cache rows in all.
    pub fn products(&self, rows: u64, attended: u64) -> u64 {
        let matrix = self.row_products.saturating_mul(rows);
        matrix.saturating_add(self.key_products.saturating_mul(attended))
    }
}

/// The matrices that a node multiplies its rows by; `None` if it lacks an operand.
pub fn matrices(node: &Node) -> Option<&[Operand]> {
    match &node.op {
        Op::Linear { n, .. } => node.inputs.get(1..1 + *n as usize),
        Op::HeadStats { .. } | Op::Matmul {} => node.inputs.get(1..2),
        _ => Some(&[]),
    }
}

/// Cache rows that the rows of a span attend, added up. A whole sequence is one span from row 0.
pub fn attended(mask: Mask, span: &SpanRows) -> u64 {
    let keys = |row: usize| mask.end(row).min(span.visible).saturating_sub(span.from) as u64;
    (span.at..span.at.saturating_add(span.rows.len())).map(keys).fold(0, u64::saturating_add)
}

/// Bytes of a weight: those in the artifact if it is stored, else those of its codes and scales without padding. `None`
/// while a size is a name, or when it overflows.
pub fn weight_bytes(weight: &Weight) -> Option<u64> {
    match weight.def {
        WeightDef::Stored { bytes, .. } => Some(bytes),
        WeightDef::Source | WeightDef::Literal(_) | WeightDef::Expr(..) => type_bytes(&weight.ty),
    }
}

fn type_bytes(ty: &Type) -> Option<u64> {
    let DType::Quant(format) = ty.dtype else { return ty.bytes().map(|b| b as u64) };
    let (k, rows) = ty.dims.split_last()?;
    let k = k.fixed()?;
    let rows = rows.iter().try_fold(1u64, |n, d| n.checked_mul(d.fixed()? as u64))?;
    let levels = if format.grid == Grid::Table { (k as u64).div_ceil(RUN as u64).checked_mul(2)? } else { 0 };
    let codes = (k as u64).checked_mul(u64::from(format.bits))?.checked_add(levels)?.div_ceil(8);
    let tables = (format.groups(k) as u64).checked_mul(if format.has_min() { 4 } else { 2 })?;
    rows.checked_mul(codes.checked_add(tables)?)
}

/// Elements behind one index of the first dimension.
fn row_elements(ty: &Type) -> Option<u64> {
    ty.dims.get(1..)?.iter().try_fold(1u64, |n, d| n.checked_mul(d.fixed()? as u64))
}

/// Bytes of them. Of a quantized row: codes and scales, which int8 caches keep as one f32 for each of their heads.
fn row_bytes(ty: &Type) -> Option<u64> {
    let elements = row_elements(ty)?;
    match (ty.dtype, ty.dims.get(1..)?) {
        (DType::CACHE_Q8, [heads, _]) => elements.checked_add((heads.fixed()? as u64).checked_mul(4)?),
        (DType::Quant(_), dims) => type_bytes(&Type::new(ty.dtype, dims.iter().map(|d| d.fixed().unwrap_or(0)))),
        (dtype, _) => elements.checked_mul(dtype.size()? as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    fn costs(text: &str) -> Vec<Option<Cost>> {
        let module = parse(text).unwrap();
        let graph = &module.graphs[0];
        graph.nodes.iter().map(|n| Cost::of(&module, graph, n)).collect()
    }

    #[test]
    fn matrices_cost_their_elements_for_each_row() {
        let found = costs(
            "module @m {
               weight @w: f16[8, 4]
               weight @q: q4g32m[6, 40] = quantize @w {to=q4g32m}
               weight @s: q8[6, 40] @n16 = stored {offset=0, bytes=999}
               graph @g(%x: f32[T, 4], %y: f32[4, T], %z: f32[2, 40]) -> () {
                 %a, %b = linear %x, @w, @w {n=2}: f32[T, 8], f32[T, 8]
                 %c = linear %z, @q: f32[2, 6]
                 %i, %t = head_stats %z, @s: i32[2], f32[2, 3]
                 %d = silu %a: f32[T, 8]
                 %e = matmul %x, %y: f32[T, T]
                 return
               }
             }",
        );
        let cost = |row_products, weight_bytes, row_bytes, row_values| {
            Some(Cost { row_products, weight_bytes, row_bytes, row_values, ..Cost::default() })
        };
        // Of 40 numbers: 20 bytes of codes, and a scale and a minimum for each of two groups. Of rows: what is read, then
        // what is written.
        let wanted = [
            cost(64, 128, 4 * (4 + 8 + 8), 16),
            cost(240, 6 * (20 + 8), 4 * (40 + 6), 6),
            cost(240, 999, 4 * (40 + 1 + 3), 4),
            cost(0, 0, 4 * (8 + 8), 8),
            None,
        ];
        assert_eq!(found, wanted);
        assert_eq!(found[0].unwrap().products(3, 0), 3 * 64);
    }

    #[test]
    fn attention_costs_two_products_for_each_feature_and_attended_row() {
        let found = costs(
            "module @m {
               graph @g(%q: f32[T, 8], %k: f32[T, 4]) -> () {
                 %a = attention %q, %k, %k {head_dim=4, mask=causal}: f32[T, 8]
                 return
               }
             }",
        );
        let cost = found[0].unwrap();
        assert_eq!(cost, Cost { key_products: 16, row_bytes: 4 * (8 + 4 + 4 + 8), row_values: 8, ..Cost::default() });
        let span = |rows, at, from, visible| SpanRows { rows, slot: 0, at, from, visible };
        assert_eq!(attended(Mask::Full, &span(0..3, 5, 0, 8)), 24);
        assert_eq!(attended(Mask::Full, &span(2..5, 5, 2, 8)), 18);
        assert_eq!(attended(Mask::Causal, &span(0..3, 0, 0, 3)), 1 + 2 + 3);
        // Rows 5, 6 and 7 are in blocks that end at 8, of which the span sees 7.
        assert_eq!(attended(Mask::BlockCausal(4), &span(0..3, 5, 4, 7)), 9);
        assert_eq!(attended(Mask::Causal, &span(0..1, 0, 4, 7)), 0);
        assert_eq!(cost.products(3, 6), 96);
    }

    #[test]
    fn caches_cost_their_rows_and_gathered_rows_are_read() {
        let found = costs(
            "module @m {
               weight @t: q8g32[100, 40] @n16 = stored {offset=0, bytes=4096}
               state @k: f16[64, 2, 20]
               state @v: f16[64, 2, 20]
               state @k8: q8[64, 2, 20]
               state @v8: q8[64, 2, 20]
               state @rows: f32[4, 40]
               graph @step_4(%ids: i32[4], %spans: i32[64, 5]) -> () {
                 %x = embed %ids, @t: f32[4, 40]
                 kv_write %x, %x, @k, @v, %spans
                 %a = cached_attention %x, @k8, @v8, %spans {head_dim=20, mask=full}: f32[4, 40]
                 store_rows %a, @rows
                 %b = take_rows @rows, %ids: f32[4, 40]
                 return
               }
             }",
        );
        let cost = |cache_bytes, row_bytes, row_values| Cost { cache_bytes, row_bytes, row_values, ..Cost::default() };
        let row = 4 * 40;
        let wanted = [
            // An id, 40 codes with two scales, and the row that is made.
            cost(0, 4 + 40 + 4 + row, 40),
            cost(2 * 2 * 40, 2 * row, 0),
            // Codes, and a scale for each of two heads.
            Cost { key_products: 80, ..cost(2 * (40 + 2 * 4), 2 * row, 40) },
            cost(0, 2 * row, 0),
            cost(0, 4 + 2 * row, 40),
        ];
        assert_eq!(found.into_iter().map(Option::unwrap).collect::<Vec<_>>(), wanted);
    }
}
