//! What a program must be for its calls to be sound: the proof that loading demands.
//!
//! A checksum says that a file is what was written, not who wrote it, so a program is read as if its author were hostile.
//! [`Executor`](crate::exec::Executor) checks the parameters of every call; here every operand that says where to read or
//! write is shown to be one of them, and the right one. Then no index is left that a program could have made up.
//!
//! Invariants of a program that passes:
//! * token ids are the ids of the call, rotary positions its positions, cache rows its spans,
//!   rows of states its rows; caches are read only behind the write of the same pair in the same graph;
//! * a head returns what one `head_stats` reports, over a vocabulary with a token besides the banned one; all heads and
//!   logits have the same vocabulary;
//! * entries of a kind have different sizes and are otherwise the same graph;
//! * nothing is larger than the weights and the call justify: no value or row of a state is wider than the widest weight, no entry has more
//!   rows than [`MAX_ROWS`], and no two weights share bytes.
//!
//! Deliberately absent: whether the arithmetic is that of the model. The golden vectors tell.

use std::collections::{BTreeMap, BTreeSet};

use dlx_ir::{Entry, EntryKind, Graph, Module, Op, Operand, Post, WeightDef};

use crate::artifact::ALIGN;

/// Most rows of an entry. What a row costs is reserved, not touched, but for a few words of statistics.
pub(super) const MAX_ROWS: usize = 1 << 20;
/// Features that a value may have however narrow the weights are: a rotary table of a large head.
const FREE_WIDTH: usize = 1024;

/// Parameters of a step, in order.
const IDS: usize = 0;
const POS: usize = 1;
const SPANS: usize = 2;
/// The parameter of a head.
const ROWS: usize = 0;

/// Proves a graph of this kind, whose parameters and results have been found to have the right types.
///
/// # Errors
/// The text of the first node that reads something else than it must, and what that is.
pub(super) fn graph(module: &Module, graph: &Graph, kind: EntryKind) -> Result<(), String> {
    let mut written: BTreeSet<[Operand; 2]> = BTreeSet::new();
    for node in &graph.nodes {
        let place = |what: &str| format!("{}: {what}", module.node_text(graph, node));
        let is = |operand: usize, param: usize| {
            let param = graph.params.get(param).copied();
            param.is_some() && node.inputs.get(operand).and_then(|o| o.value()) == param
        };
        let named = |operand: usize, param: usize| match graph.params.get(param) {
            _ if is(operand, param) => Ok(()),
            Some(p) => Err(place(&format!("operand {} must be the parameter %{}", operand + 1, graph.values[*p].name))),
            None => Err(place("the graph lacks a parameter")),
        };
        match (&node.op, kind) {
            (Op::Embed {}, EntryKind::Step) => named(0, IDS)?,
            (Op::RopeTable { .. }, EntryKind::Step) => named(0, POS)?,
            (Op::KvWrite {}, EntryKind::Step) => {
                named(4, SPANS)?;
                written.insert([node.inputs[2], node.inputs[3]]);
            }
            (Op::CachedAttention { .. }, EntryKind::Step) => {
                named(3, SPANS)?;
                if !written.contains(&[node.inputs[1], node.inputs[2]]) {
                    return Err(place("it reads caches that no earlier kv_write of this graph writes together"));
                }
            }
            (Op::TakeRows {}, EntryKind::Head | EntryKind::Logits) => named(1, ROWS)?,
            (Op::TakeRows {}, EntryKind::Step) => return Err(place("a step cannot read rows of an earlier one")),
            (
                Op::Embed {} | Op::RopeTable { .. } | Op::KvWrite {} | Op::CachedAttention { .. } | Op::StoreRows {},
                EntryKind::Head | EntryKind::Logits,
            ) => return Err(place("only a step may do this")),
            (Op::HeadStats { ban, .. }, _) => {
                let tokens = module.operand_type(graph, node.inputs[1]).dims.first().and_then(|d| d.fixed());
                let tokens = tokens.unwrap_or(0);
                if tokens < 2 || ban.is_some_and(|ban| usize::try_from(ban).map_or(true, |ban| ban >= tokens)) {
                    return Err(place(&format!("a vocabulary of {tokens} has no such banned token, or no other")));
                }
            }
            _ => {}
        }
    }
    let maker = graph.nodes.iter().find(|n| !n.outputs.is_empty() && n.outputs == graph.results);
    match (kind, maker.map(|n| &n.op)) {
        (EntryKind::Step, _) | (EntryKind::Head, Some(Op::HeadStats { .. })) => Ok(()),
        (EntryKind::Logits, Some(Op::Linear { n: 1, post: Post::None, .. })) => Ok(()),
        (EntryKind::Head, _) => Err("does not return what one head_stats reports".into()),
        (EntryKind::Logits, _) => Err("does not return what one linear gives".into()),
    }
}

/// Proves what concerns a program as a whole; each of its graphs has been proved.
///
/// # Errors
/// The first two things that do not agree.
pub(super) fn program(module: &Module) -> Result<(), String> {
    let widest = widest_weight(module).max(FREE_WIDTH);
    let rows = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 2);
    if let Some((_, s)) = rows.into_iter().find(|(_, s)| s.ty.dims.get(1).and_then(|d| d.fixed()) > Some(widest)) {
        return Err(format!("state @{} is wider than any weight", s.name));
    }
    let mut vocab = None;
    let mut first: BTreeMap<EntryKind, &Graph> = BTreeMap::new();
    let mut sizes: BTreeSet<Entry> = BTreeSet::new();
    for graph in &module.graphs {
        let wide = graph.values.iter().find(|(_, v)| v.ty.dims.get(1).and_then(|d| d.fixed()) > Some(widest));
        if let Some((_, v)) = wide {
            return Err(format!("graph @{}: %{} is wider than any weight", graph.name, v.name));
        }
        let entry = Entry::of(graph).map_err(|e| format!("graph @{}: {e}", graph.name))?;
        let Entry { kind, rows } = entry;
        if rows > MAX_ROWS {
            return Err(format!("graph @{} has {rows} rows, more than the {MAX_ROWS} of any entry", graph.name));
        }
        if kind != EntryKind::Step {
            let tokens = tokens_of(module, graph);
            if i32::try_from(tokens).is_err() || *vocab.get_or_insert(tokens) != tokens {
                return Err(format!("graph @{} has a vocabulary of {tokens}, unlike an earlier one", graph.name));
            }
        }
        if !sizes.insert(entry) {
            return Err(format!("graph @{}: an earlier entry of its kind has {rows} rows too", graph.name));
        }
        let twin = *first.entry(kind).or_insert(graph);
        if !same(twin, graph) {
            return Err(format!("graphs @{} and @{} differ in more than their rows", twin.name, graph.name));
        }
    }
    Ok(())
}

/// Tokens that the results of a head or logits entry tell apart.
fn tokens_of(module: &Module, graph: &Graph) -> usize {
    let maker = graph.nodes.iter().find(|n| !n.outputs.is_empty() && n.outputs == graph.results);
    let weight = maker.and_then(|n| n.inputs.get(1)).map(|w| module.operand_type(graph, *w));
    weight.and_then(|ty| ty.dims.first()?.fixed()).unwrap_or(0)
}

/// Whether two graphs are the same but for their rows, names and slots.
fn same(a: &Graph, b: &Graph) -> bool {
    let types = a.values.iter().zip(b.values.iter()).all(|((_, a), (_, b))| {
        a.ty.dtype == b.ty.dtype && a.ty.dims.len() == b.ty.dims.len() && a.ty.dims.get(1) == b.ty.dims.get(1)
    });
    types && a.values.len() == b.values.len() && a.params == b.params && a.nodes == b.nodes && a.results == b.results
}

fn widest_weight(module: &Module) -> usize {
    module.weights.iter().flat_map(|(_, w)| &w.ty.dims).filter_map(|d| d.fixed()).max().unwrap_or(0)
}

/// Proves that weights begin at boundaries that kernels may load from, and share no bytes.
///
/// # Errors
/// The first weight that does not, or the first two that share some.
pub(super) fn weights(module: &Module) -> Result<(), String> {
    let mut places = Vec::with_capacity(module.weights.len());
    for (_, w) in module.weights.iter() {
        let WeightDef::Stored { offset, bytes, .. } = w.def else { continue };
        if !offset.is_multiple_of(ALIGN as u64) {
            return Err(format!("{}: its bytes do not begin at a multiple of {ALIGN}", module.weight_text(w)));
        }
        places.push((offset, offset.saturating_add(bytes), &w.name));
    }
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("weights @{} and @{} share bytes", pair[0].2, pair[1].2)),
        None => Ok(()),
    }
}
