//! `dce`: nodes whose results nobody reads go, then weights and states that nobody reads.
//!
//! Reachability runs on the petgraph view: from the results and from nodes that write a state which is read somewhere.
//! A write that only fed a dead read goes too, so a sweep that removed a node is followed by another.

use crate::{Keeps, PassInfo};
use dlx_ir::{Error, Id, Module, Rewrite, StateId, dataflow, rewrite};
use petgraph::graph::NodeIndex;
use petgraph::visit::{Dfs, Reversed};
use std::collections::BTreeSet;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "dce",
    doc: "removes nodes, weights and states that nothing reads",
    params: &[],
    keeps: |_| Keeps::Bits,
    run,
};

fn run(module: &mut Module, _: &crate::Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let mut changes = 0;
    loop {
        let mut dropped = 0;
        for g in 0..module.graphs.len() {
            // Dead writes go first: a node with an effect is never left without its operands.
            dropped += drop_dead(module, g, true)?;
            dropped += drop_dead(module, g, false)?;
        }
        if dropped == 0 {
            break;
        }
        changes += dropped;
    }
    Ok(changes + module.drop_unread_weights() + module.drop_unused_states())
}

/// Removes the dead nodes of a graph that have an effect, or those that have none.
fn drop_dead(module: &mut Module, g: usize, effect: bool) -> Result<usize, Error> {
    let live = live_nodes(module, g);
    let dead: Vec<bool> =
        live.iter().zip(&module.graphs[g].nodes).map(|(l, n)| !l && n.op.has_effect() == effect).collect();
    if !dead.contains(&true) {
        return Ok(0);
    }
    let done = rewrite(module, g, &mut |rw, _| Ok(if dead[rw.index] { Rewrite::Drop } else { Rewrite::Keep }))?;
    Ok(done.changes)
}

fn live_nodes(module: &Module, g: usize) -> Vec<bool> {
    let graph = &module.graphs[g];
    let view = dataflow(graph);
    let defs = graph.definitions();
    let mut roots: Vec<usize> = graph.results.iter().filter_map(|r| defs[r.index()]).collect();
    let reads = module.graphs.iter().flat_map(|g| &g.nodes).filter(|n| !n.op.has_effect());
    let read: BTreeSet<StateId> = reads.flat_map(|n| &n.inputs).filter_map(|i| i.state()).collect();
    let writes = graph.nodes.iter().enumerate().filter(|(_, n)| n.op.has_effect());
    roots.extend(
        writes.filter(|(_, n)| n.inputs.iter().any(|i| i.state().is_some_and(|s| read.contains(&s)))).map(|(i, _)| i),
    );
    let mut live = vec![false; graph.nodes.len()];
    let mut dfs = Dfs::empty(Reversed(&view));
    for root in roots {
        dfs.move_to(NodeIndex::new(root));
        while let Some(n) = dfs.next(Reversed(&view)) {
            live[view[n]] = true;
        }
    }
    live
}
