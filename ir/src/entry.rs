//! Entries: the graphs that an executor runs.
//!
//! Invariant: whether a graph is an entry, of which kind and of how many rows, is decided here and nowhere else.
//! ARCHITECTURE.md ("Entries") says what each kind does.

use std::fmt;

use crate::arena::{StateId, ValueId};
use crate::module::{Graph, Module};
use crate::op::Op;
use crate::spans::spans_type;
use crate::types::{DType, Type};

/// What an entry does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EntryKind {
    /// `(ids: i32[M], pos: i32[M], spans: i32[MAX_SPANS, SPAN_FIELDS])`: a forward pass over new rows.
    Step,
    /// `(rows: i32[R])` → `i32[R], f32[R, 3]`: statistics of chosen rows of the last step.
    Head,
    /// `(rows: i32[R])` → `f32[R, vocab]`: logits of chosen rows of the last step.
    Logits,
}

impl EntryKind {
    /// Every kind.
    pub const ALL: [EntryKind; 3] = [EntryKind::Step, EntryKind::Head, EntryKind::Logits];

    /// Name of a graph of this kind before it is specialized to a number of rows.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Step => "step",
            EntryKind::Head => "head",
            EntryKind::Logits => "logits",
        }
    }

    /// The kind of graph that has this name, specialized or not: `step`, `step_4`.
    pub fn of_name(name: &str) -> Option<Self> {
        let stem = name.split_once('_').map_or(name, |(stem, _)| stem);
        EntryKind::ALL.into_iter().find(|kind| kind.name() == stem)
    }
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A graph that an executor runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// What it does.
    pub kind: EntryKind,
    /// Rows of its bucket.
    pub rows: usize,
}

impl Entry {
    /// What a specialized graph is as an entry.
    ///
    /// # Errors
    /// A name of no kind, or parameters or results that are not those of its kind.
    pub fn of(graph: &Graph) -> Result<Self, String> {
        let kind = EntryKind::of_name(&graph.name).ok_or("is not a step, head or logits entry")?;
        let ty = |v: &ValueId| &graph.values[*v].ty;
        let rows = graph.params.first().and_then(|p| ty(p).dims.first()?.fixed()).unwrap_or(0);
        let vector = || Type::new(DType::I32, [rows]);
        let wanted = match kind {
            EntryKind::Step => vec![vector(), vector(), spans_type()],
            EntryKind::Head | EntryKind::Logits => vec![vector()],
        };
        if rows == 0 || !graph.params.iter().map(ty).eq(&wanted) {
            return Err("has parameters that are not those of its kind".into());
        }
        let results: Vec<_> = graph.results.iter().map(|r| (ty(r).dtype, ty(r).dims.len())).collect();
        let wanted: &[(DType, usize)] = match kind {
            EntryKind::Step => &[],
            EntryKind::Head => &[(DType::I32, 1), (DType::F32, 2)],
            EntryKind::Logits => &[(DType::F32, 2)],
        };
        if results == wanted {
            Ok(Entry { kind, rows })
        } else {
            Err("has results that are not those of its kind".into())
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.kind, self.rows)
    }
}

/// Where a step's second layer begins, which is where it writes its keys: how many nodes come before, and the f32 value
/// that the last of these with one computes. A graph of one layer ends there.
pub fn first_layer(graph: &Graph) -> Option<(usize, ValueId)> {
    let writes = graph.nodes.iter().enumerate().filter(|(_, n)| matches!(n.op, Op::KvWrite {}));
    let nodes = writes.map(|(i, _)| i).nth(1).unwrap_or(graph.nodes.len());
    let outputs = graph.nodes[..nodes].iter().rev().filter_map(|n| n.outputs.first().copied());
    let value = outputs.into_iter().find(|v| graph.values[*v].ty.dtype == DType::F32)?;
    Some((nodes, value))
}

/// The state that keeps the hidden rows of the last step: the one that steps store rows in.
pub fn hidden_state(module: &Module) -> Option<StateId> {
    let steps = module.graphs.iter().filter(|g| EntryKind::of_name(&g.name) == Some(EntryKind::Step));
    let mut stores = steps.flat_map(|g| &g.nodes).filter(|n| matches!(n.op, Op::StoreRows {}));
    stores.next()?.inputs.get(1)?.state()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_kind() {
        for (name, kind) in [("step", "step"), ("step_4", "step"), ("head_16", "head"), ("logits_1", "logits")] {
            assert_eq!(EntryKind::of_name(name).map(EntryKind::name), Some(kind));
        }
        assert_eq!(EntryKind::of_name("stepping"), None);
        assert_eq!(EntryKind::of_name("forward"), None);
    }

    #[test]
    fn the_first_layer_ends_where_the_second_writes() {
        let text = "module @m {
  state @k: f32[4, 1, 2]
  state @v: f32[4, 1, 2]
  state @rows: f32[2, 2]
  graph @step_2(%x: f32[2, 2], %spans: i32[64, 5]) -> () {
    kv_write %x, %x, @k, @v, %spans
    %a = silu %x: f32[2, 2]
    kv_write %a, %a, @k, @v, %spans
    %b = silu %a: f32[2, 2]
    store_rows %b, @rows
    return
  }
}";
        let module = crate::parse(text).unwrap();
        let (nodes, value) = first_layer(&module.graphs[0]).unwrap();
        assert_eq!((nodes, module.graphs[0].values[value].name.as_str()), (2, "a"));
        assert_eq!(module.states[hidden_state(&module).unwrap()].name, "rows");
    }
}
