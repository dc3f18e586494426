//! What is known of a program before it runs: that a graph executor can run it, when its values die, and how much memory
//! they take.

use dlx_ir::{Graph, Id, Level, Module, Operand, Type, ValueId, WeightDef, held_bytes};

/// The life of a graph's values.
#[derive(Debug)]
pub(super) struct Plan {
    /// For each node, the values that nobody reads after it.
    pub(super) dying: Vec<Vec<ValueId>>,
    /// Most bytes that values take at one time, with room for an op to work in: its largest operand and its results again.
    pub(super) peak: u64,
}

/// Checks that a program is made of graphs of pure ops on static shapes, and that its weights lie in a section of
/// that length.
///
/// # Errors
/// The first thing that is not so.
pub(super) fn check(module: &Module, section: usize) -> Result<(), String> {
    if !module.states.is_empty() || module.graphs.is_empty() {
        return Err("it needs at least one graph, and no states".into());
    }
    for (_, w) in module.weights.iter() {
        let inside = |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= section as u64);
        match &w.def {
            WeightDef::Literal(_) => {}
            WeightDef::Stored { offset, bytes, .. } if w.ty.layout.is_none() && inside(*offset, *bytes) => {}
            WeightDef::Stored { .. } => {
                return Err(format!("@{} is packed or lies outside the weights", w.name));
            }
            _ => return Err(format!("@{} is not stored", w.name)),
        }
    }
    for graph in &module.graphs {
        if let Some((_, v)) = graph.values.iter().find(|(_, v)| held_bytes(&v.ty).is_none()) {
            return Err(format!("@{}: %{} is {}, whose size is not known", graph.name, v.name, v.ty));
        }
        let impure = |l: Level| matches!(l, Level::State | Level::Weight);
        if let Some(node) = graph.nodes.iter().find(|n| impure(n.op.level())) {
            return Err(format!("@{}: `{}` is not an op of values alone", graph.name, node.op.name()));
        }
    }
    Ok(())
}

impl Plan {
    /// The plan of a checked graph; `None` when its sizes overflow.
    pub(super) fn of(module: &Module, graph: &Graph) -> Option<Self> {
        let size = |ty: &Type| held_bytes(ty);
        let mut last = vec![None; graph.values.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in node.inputs.iter().filter_map(|input| input.value()).chain(node.outputs.iter().copied()) {
                last[v.index()] = Some(i);
            }
        }
        for v in graph.results.iter().chain(&graph.params) {
            // Results stay, and inputs are the caller's.
            last[v.index()] = None;
        }
        let mut dying = vec![Vec::new(); graph.nodes.len()];
        for (v, _) in graph.values.iter() {
            if let Some(node) = last[v.index()] {
                dying[node].push(v);
            }
        }
        let mut live = 0u64;
        for p in &graph.params {
            live = live.checked_add(size(&graph.values[*p].ty)?)?;
        }
        let mut peak = live;
        for (node, dying) in graph.nodes.iter().zip(&dying) {
            let mut scratch = 0;
            for input in &node.inputs {
                if !matches!(input, Operand::State(_)) {
                    scratch = scratch.max(size(module.operand_type(graph, *input))?);
                }
            }
            for out in &node.outputs {
                let bytes = size(&graph.values[*out].ty)?;
                live = live.checked_add(bytes)?;
                scratch = scratch.checked_add(bytes)?;
            }
            peak = peak.max(live.checked_add(scratch)?);
            for v in dying {
                live -= size(&graph.values[*v].ty)?;
            }
        }
        Some(Plan { dying, peak })
    }
}
