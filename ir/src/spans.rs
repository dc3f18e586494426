//! Spans: which rows of a step belong to which sequence, and the table that tells a step.
//!
//! Invariant: the layout of the table is known here and nowhere else. Whether a slot and its rows exist is for those to
//! check who hold the caches.

use std::ops::Range;

use crate::types::{DType, Type};

/// Most spans of a step: the sequences that one forward pass serves.
pub const MAX_SPANS: usize = 64;
/// Numbers that a step is told about each span: rows, slot, at, from, visible.
pub const SPAN_FIELDS: usize = 5;

/// Type of the table of spans.
pub fn spans_type() -> Type {
    Type::new(DType::I32, [MAX_SPANS, SPAN_FIELDS])
}

/// Rows of a step that belong to one sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpanRows {
    /// Which rows of the step; what lies behind the last span fills up the bucket.
    pub rows: Range<usize>,
    /// The sequence's slot of the caches.
    pub slot: usize,
    /// Cache row, counted from the slot's first, of the first of `rows`.
    pub at: usize,
    /// First cache row that may be attended.
    pub from: usize,
    /// Number of cache rows that exist.
    pub visible: usize,
}

impl SpanRows {
    /// The spans of a table, [`SPAN_FIELDS`] numbers each; those without rows are left out.
    ///
    /// # Errors
    /// A negative number, or more rows than the step has.
    pub fn read(table: &[i32], step_rows: usize) -> Result<Vec<Self>, String> {
        let mut spans = Vec::new();
        let mut next = 0usize;
        for fields in table.chunks_exact(SPAN_FIELDS) {
            let field = |i: usize| {
                usize::try_from(fields[i]).map_err(|_| format!("a span holds the negative number {}", fields[i]))
            };
            let rows = next..next.saturating_add(field(0)?);
            if rows.end > step_rows {
                return Err(format!("spans of {} rows do not fit a step of {step_rows}", rows.end));
            }
            next = rows.end;
            if !rows.is_empty() {
                spans.push(SpanRows { rows, slot: field(1)?, at: field(2)?, from: field(3)?, visible: field(4)? });
            }
        }
        Ok(spans)
    }

    /// The numbers of a table's row.
    pub fn fields(&self) -> [usize; SPAN_FIELDS] {
        [self.rows.len(), self.slot, self.at, self.from, self.visible]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_in_order_and_bounded() {
        let table = [2, 1, 4, 0, 6, 0, 9, 9, 9, 9, 1, 0, 0, 0, 1];
        let spans = SpanRows::read(&table, 4).unwrap();
        assert_eq!(spans.iter().map(|s| s.rows.clone()).collect::<Vec<_>>(), [0..2, 2..3]);
        assert_eq!(spans[0].fields(), [2, 1, 4, 0, 6]);
        assert!(SpanRows::read(&table, 2).unwrap_err().contains("3 rows"));
        assert!(SpanRows::read(&[1, -1, 0, 0, 1], 4).unwrap_err().contains("-1"));
    }
}
