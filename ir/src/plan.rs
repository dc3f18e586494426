//! Liveness and the memory plan: a byte offset in one arena for every value of a graph.
//!
//! Time runs over node indices plus one (parameters are born at 0, node `i` works at `i + 1`, results live past the end).
//! The plan is greedy first-fit in order of birth, so it is deterministic. The verifier recomputes liveness itself.

use crate::arena::{Arena, Id, ValueId};
use crate::module::{Graph, Value};

/// Alignment of every slot in bytes: one cache line, one AVX-512 register.
pub const SLOT_ALIGN: u64 = 64;

/// Largest value that is planned; sums over fewer than 2^22 values of this size cannot overflow.
const MAX_BYTES: u64 = 1 << 40;

/// First and last time at which each value holds its bytes, both inclusive.
pub fn live_ranges(graph: &Graph) -> Vec<(usize, usize)> {
    let mut live = vec![(0, 0); graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for &out in &node.outputs {
            live[out.index()] = (i + 1, i + 1);
        }
        for v in node.inputs.iter().filter_map(|o| o.value()) {
            live[v.index()].1 = i + 1;
        }
    }
    for &r in &graph.results {
        live[r.index()].1 = graph.nodes.len() + 1;
    }
    live
}

/// Assigns a slot to every value.
///
/// # Errors
/// The name of the first value whose size is not static, or absurd.
pub fn plan_memory(graph: &mut Graph) -> Result<(), String> {
    let live = live_ranges(graph);
    // Those placed so far that still live: births come in order.
    let mut alive: Vec<ValueId> = Vec::new();
    let mut births: Vec<(ValueId, Option<usize>)> = graph.params.iter().map(|&p| (p, None)).collect();
    births.extend(graph.nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().map(move |&o| (o, Some(i)))));
    for (id, node) in births {
        let bytes = size(&graph.values, id)?;
        alive.retain(|v| live[v.index()].1 >= live[id.index()].0);
        let slot = match node.and_then(|i| taken_over(graph, i, id, &live)) {
            Some(old) => graph.values[old].slot.expect("operands are placed before results"),
            None => place(&graph.values, &alive, bytes)?,
        };
        graph.values[id].slot = Some(slot);
        alive.push(id);
    }
    Ok(())
}

fn size(values: &Arena<ValueId, Value>, id: ValueId) -> Result<u64, String> {
    let bytes = values[id]
        .ty
        .bytes()
        .ok_or_else(|| format!("%{} has no static size; run specialize first", values[id].name))?;
    if bytes as u64 > MAX_BYTES {
        return Err(format!("%{} has {bytes} bytes, more than an arena can hold", values[id].name));
    }
    Ok((bytes as u64).next_multiple_of(SLOT_ALIGN))
}

/// The dying operand whose bytes result `out` of node `at` may take over.
fn taken_over(graph: &Graph, at: usize, out: ValueId, live: &[(usize, usize)]) -> Option<ValueId> {
    let node = &graph.nodes[at];
    let old = node.inputs.get(node.op.may_alias()?)?.value()?;
    let reads = node.inputs.iter().filter(|i| i.value() == Some(old)).count();
    let fits = graph.values[old].ty == graph.values[out].ty;
    (node.outputs.first() == Some(&out) && reads == 1 && live[old.index()].1 == at + 1 && fits).then_some(old)
}

fn place(values: &Arena<ValueId, Value>, alive: &[ValueId], bytes: u64) -> Result<u64, String> {
    let mut busy = Vec::new();
    for &p in alive {
        let start = values[p].slot.expect("placed values have slots");
        busy.push((start, start + size(values, p)?));
    }
    Ok(first_fit(busy, bytes))
}

/// The lowest place of `bytes` bytes that overlaps none of the busy ranges (start, end).
pub fn first_fit(mut busy: Vec<(u64, u64)>, bytes: u64) -> u64 {
    busy.sort_unstable();
    let mut at = 0;
    for (start, end) in busy {
        if at + bytes <= start {
            break;
        }
        at = at.max(end);
    }
    at
}
