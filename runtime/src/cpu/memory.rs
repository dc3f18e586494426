//! What a program takes on the CPU besides its mapped weights, from its types alone: the same for weights that are stored and
//! for those that are not yet, so that a compile knows before it writes any.
//!
//! Invariant: what the executor reserves at load is what is counted here; it takes its sizes from here where it can.

use dlx_ir::{Entry, EntryKind, Graph, Module, Op};

use super::arena::{kv_shape, state_bytes};
use super::error::{LoadError, bad};
use super::{act_words, attention_scratch_words, head_words};
use crate::exec::RowStats;
use crate::selftest::PROBE_ROWS;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Bytes that the executor of a program holds, mapped weights left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuMemory {
    /// KV caches of one slot.
    pub caches: u64,
    /// Hidden states.
    pub hidden: u64,
    /// Values of the largest entry that is run, with the largest of logits that is asked for.
    pub arena: u64,
    /// Caches that the self-test touches.
    pub probed: u64,
    /// Working memory of the kernels, and statistics of rows.
    pub scratch: u64,
    /// Vectors, which are copied out of the mapping.
    pub vectors: u64,
}

impl CpuMemory {
    /// What a program takes on `threads` threads when no more than `logits_rows` rows of logits are asked for at a time.
    ///
    /// # Errors
    /// A state or an operand in a form that the CPU does not keep.
    pub fn of(module: &Module, threads: usize, logits_rows: usize) -> Result<Self, LoadError> {
        let mut memory = CpuMemory::default();
        for (_, state) in module.states.iter() {
            let bytes = state_bytes(state)? as u64;
            let Some(shape) = kv_shape(state.ty.dtype, &state.ty.shape().unwrap_or_default()) else {
                memory.hidden = memory.hidden.saturating_add(bytes);
                continue;
            };
            memory.caches = memory.caches.saturating_add(bytes);
            // Rows of a head lie together, scales behind all of them, and memory comes in pages.
            let rows = shape.whole_rows(PROBE_ROWS) as u64;
            let row = bytes.div_ceil(shape.max_seq.max(1) as u64);
            let pages = 3 * PAGE * shape.kv_heads as u64;
            memory.probed = memory.probed.saturating_add(bytes.min(row.saturating_mul(rows).saturating_add(pages)));
        }
        let stats_rows = entries(module, EntryKind::Head).map(|(_, rows)| rows).max().unwrap_or(0);
        let scratch = scratch_words(module, threads)?.saturating_mul(4);
        memory.scratch = scratch.saturating_add(stats_rows.saturating_mul(size_of::<RowStats>())) as u64;
        let reached = logits_entry(module, logits_rows);
        let run = |graph: &&Graph| match Entry::of(graph) {
            Ok(Entry { kind: EntryKind::Logits, rows }) => rows <= reached,
            _ => true,
        };
        memory.arena = module.graphs.iter().filter(run).map(Graph::arena_bytes).max().unwrap_or(0);
        let vectors = module.weights.iter().filter(|(_, w)| w.ty.dims.len() == 1).filter_map(|(_, w)| w.ty.bytes());
        memory.vectors = vectors.map(|b| b as u64).fold(0, u64::saturating_add);
        Ok(memory)
    }
}

/// Entries of a kind and their rows.
fn entries(module: &Module, kind: EntryKind) -> impl Iterator<Item = (&Graph, usize)> {
    let of = move |g| Entry::of(g).ok().filter(|e| e.kind == kind).map(|e| (g, e.rows));
    module.graphs.iter().filter_map(of)
}

/// Rows of the largest logits entry that a call of `rows` rows runs in.
fn logits_entry(module: &Module, rows: usize) -> usize {
    let fits = entries(module, EntryKind::Logits).map(|(_, r)| r).filter(|r| *r >= rows).min();
    fits.unwrap_or_else(|| entries(module, EntryKind::Logits).map(|(_, r)| r).max().unwrap_or(0))
}

/// Words of working memory that the kernels of a program need at most.
///
/// # Errors
/// An operand in a form that the CPU does not keep.
pub(super) fn scratch_words(module: &Module, threads: usize) -> Result<usize, LoadError> {
    let mut words = 0;
    for graph in &module.graphs {
        let rows = Entry::of(graph).map_err(bad)?.rows;
        for node in &graph.nodes {
            let matrices = node.inputs.iter().filter_map(|i| i.weight()).map(|w| &module.weights[w].ty);
            let mut matrices = matrices.filter_map(|ty| Some((ty.dtype, <[usize; 2]>::try_from(ty.shape()?).ok()?)));
            words = words.max(match node.op {
                Op::Linear { .. } => matrices.map(|(dtype, [_, k])| rows * act_words(dtype, k)).sum(),
                Op::HeadStats { .. } => matrices.next().map_or(0, |(dtype, [n, k])| head_words(rows, dtype, n, k)),
                Op::CachedAttention { .. } => {
                    let state = node.inputs.get(1).and_then(|i| i.state()).map(|s| &module.states[s].ty);
                    let shape = state.and_then(|ty| kv_shape(ty.dtype, &ty.shape()?));
                    let shape = shape.ok_or_else(|| bad(module.node_text(graph, node)))?;
                    attention_scratch_words(threads, shape)
                }
                _ => 0,
            });
        }
    }
    Ok(words)
}
