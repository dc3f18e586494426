//! Places in the arena: values from the node that makes them to the last that reads them, temporaries while their node runs.
//!
//! Invariant: what is held at the same time does not overlap, so no dispatch binds a byte twice. Nothing is computed in place.

use dlx_ir::{Graph, Id, ValueId, first_fit};
use dlx_runtime::wgpu::plan::{BIND_ALIGN, Range};

/// Temporary of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Temporary {
    /// The node.
    pub(super) node: usize,
    /// Size.
    pub(super) bytes: u64,
}

/// Places of an entry.
pub(super) struct Places {
    /// Of values; none for parameters and results, which lie in other buffers.
    pub(super) values: Vec<Option<Range>>,
    /// Of temporaries.
    pub(super) temporaries: Vec<Range>,
    /// Bytes in use.
    pub(super) bytes: u64,
}

/// Places every value that is neither parameter nor result, and every temporary.
pub(super) fn place(graph: &Graph, temporaries: &[Temporary]) -> Places {
    let mut last = vec![0; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for v in node.inputs.iter().filter_map(|o| o.value()).chain(node.outputs.iter().copied()) {
            last[v.index()] = i;
        }
    }
    let mut placed: Vec<((usize, usize), (u64, u64))> = Vec::new();
    let mut take = |span: (usize, usize), bytes: u64| {
        let bytes = bytes.next_multiple_of(BIND_ALIGN);
        let busy = placed.iter().filter(|((a, b), _)| *a <= span.1 && span.0 <= *b).map(|(_, bytes)| *bytes);
        let start = first_fit(busy.collect(), bytes);
        placed.push((span, (start, start + bytes)));
        start
    };
    let mut places = Places { values: vec![None; graph.values.len()], temporaries: Vec::new(), bytes: 0 };
    let mut next = temporaries.iter().peekable();
    for (i, node) in graph.nodes.iter().enumerate() {
        for &out in node.outputs.iter().filter(|o| !graph.results.contains(o)) {
            let bytes = value_bytes(graph, out);
            let range = Range { offset: take((i, last[out.index()]), bytes), bytes };
            places.values[out.index()] = Some(range);
        }
        while let Some(t) = next.next_if(|t| t.node == i) {
            places.temporaries.push(Range { offset: take((i, i), t.bytes), bytes: t.bytes });
        }
    }
    places.bytes = placed.iter().map(|(_, (_, end))| *end).max().unwrap_or(0);
    places
}

/// Bytes of a value; the verifier has seen that sizes do not overflow.
pub(super) fn value_bytes(graph: &Graph, v: ValueId) -> u64 {
    graph.values[v].ty.bytes().unwrap_or(0) as u64
}
