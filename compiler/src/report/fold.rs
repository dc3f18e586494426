//! The layers of a graph, and which of them are alike: same ops, same types, same operands up to the layer's number.
//!
//! Invariant: layers of a group follow each other, have as many nodes, and node `i` of each does the same.

use std::collections::{BTreeMap, HashMap};

use dlx_ir::{Graph, Module, ValueId};
use serde::Serialize;

use super::stages::node_layer;

/// A layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Layer {
    /// Its number.
    pub(super) number: u32,
    /// Its nodes, by their places in the graph.
    pub(super) nodes: Vec<usize>,
}

/// Layers of a graph that are alike, in groups of at least two.
pub(super) fn groups(module: &Module, graph: &Graph) -> Vec<Vec<Layer>> {
    let mut layers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(layer) = node_layer(module, graph, node) {
            layers.entry(layer).or_default().push(i);
        }
    }
    let mut groups: Vec<(Vec<String>, Vec<Layer>)> = Vec::new();
    for (number, nodes) in layers {
        let (signature, layer) = (signature(module, graph, &nodes), Layer { number, nodes });
        match groups.last_mut() {
            Some((same, group)) if *same == signature && group.last().is_some_and(|l| l.number + 1 == number) => {
                group.push(layer);
            }
            _ => groups.push((signature, vec![layer])),
        }
    }
    groups.into_iter().map(|(_, group)| group).filter(|group| group.len() > 1).collect()
}

/// What the nodes of a layer do: operands from inside are places, those from outside are types.
fn signature(module: &Module, graph: &Graph, nodes: &[usize]) -> Vec<String> {
    let mut inside: HashMap<ValueId, (usize, usize)> = HashMap::new();
    let mut lines = Vec::with_capacity(nodes.len());
    for (place, node) in nodes.iter().map(|n| &graph.nodes[*n]).enumerate() {
        let operand = |operand: &dlx_ir::Operand| match operand.value().and_then(|v| inside.get(&v)) {
            Some(place) => format!("{place:?}"),
            None => module.operand_type(graph, *operand).to_string(),
        };
        let operands: Vec<String> = node.inputs.iter().map(operand).collect();
        let types: Vec<String> = node.outputs.iter().map(|o| graph.values[*o].ty.to_string()).collect();
        lines.push(format!("{:?} {} {}", node.op, operands.join(", "), types.join(", ")));
        inside.extend(node.outputs.iter().enumerate().map(|(which, out)| (*out, (place, which))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_alike_and_follow_each_other_are_a_group() {
        let layer = |l: usize, x: &str, op: &str| {
            format!(
                "%l{l}.a = silu %{x}: f32[2, 4] %l{l}.b = {op} %l{l}.a, %{x}: f32[2, 4] store_rows %l{l}.b, @kv.{l}.s "
            )
        };
        let text = format!(
            "module @m {{ {} graph @g(%x: f32[2, 4]) -> (f32[2, 4]) {{ {}{}{}{}%y = silu %l3.b: f32[2, 4] store_rows %l3.b, @rows return %y }} }}",
            ["rows", "kv.0.s", "kv.1.s", "kv.2.s", "kv.3.s"].map(|s| format!("state @{s}: f32[2, 4]")).join(" "),
            layer(0, "x", "add"),
            layer(1, "l0.b", "add"),
            layer(2, "l1.b", "mul"),
            layer(3, "l2.b", "mul"),
        );
        let module = dlx_ir::parse(&text).unwrap();
        let groups = groups(&module, &module.graphs[0]);
        let found: Vec<Vec<(u32, &[usize])>> =
            groups.iter().map(|g| g.iter().map(|l| (l.number, &l.nodes[..])).collect()).collect();
        assert_eq!(found, [[(0, &[0, 1, 2][..]), (1, &[3, 4, 5])], [(2, &[6, 7, 8]), (3, &[9, 10, 11])]]);
    }
}
