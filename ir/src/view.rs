//! A petgraph view of a graph: nodes are indices into the node list, edges run from definition to use.
//!
//! Borrowed and built on demand for algorithms that want a graph (reachability, DOT); the IR itself keeps no edges.

use crate::arena::{Id, StateId};
use crate::module::{Graph, Operand};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::BTreeMap;

/// The data-flow edges of a graph, plus the order edges between nodes that touch the same state.
pub fn dataflow(graph: &Graph) -> DiGraph<usize, ()> {
    let mut view = DiGraph::with_capacity(graph.nodes.len(), graph.nodes.len() * 2);
    let mut last_touch: BTreeMap<StateId, NodeIndex> = BTreeMap::new();
    let defs = graph.definitions();
    for (i, node) in graph.nodes.iter().enumerate() {
        let here = view.add_node(i);
        for &input in &node.inputs {
            match input {
                Operand::Value(v) => {
                    if let Some(def) = defs[v.index()] {
                        view.add_edge(NodeIndex::new(def), here, ());
                    }
                }
                Operand::Weight(_) => {}
                Operand::State(s) => {
                    if let Some(last) = last_touch.insert(s, here) {
                        view.add_edge(last, here, ());
                    }
                }
            }
        }
    }
    view
}
