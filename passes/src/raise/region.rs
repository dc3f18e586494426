//! Parts of a graph that depend on a single value: found by walking back from a result until one value is left, and then
//! asked what they compute. So it does not matter how something is spelled, only what it does.

use super::look::{Look, noise, tensor};
use dlx_ir::{Node, Operand, Tensor, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Nodes through which `root` depends on `source` and, but for constants, on nothing else.
pub(crate) struct Region<'a> {
    look: Look<'a>,
    pub(crate) source: ValueId,
    pub(crate) root: ValueId,
    pub(crate) nodes: Vec<&'a Node>,
}

impl<'a> Region<'a> {
    /// Walks back from `root` through nodes that `may` be inside, at most `limit` of them, and gives the first answer about a
    /// region on the way.
    pub(crate) fn find<T>(
        look: Look<'a>,
        root: ValueId,
        limit: usize,
        may: &dyn Fn(&Node) -> bool,
        accept: &mut dyn FnMut(&Region<'a>) -> Option<T>,
    ) -> Option<T> {
        // Ordered by the node that defines a value, so that the last one is read by nothing that is still to come; parameters
        // come before all nodes.
        let mut frontier = BTreeSet::from([(look.index(root), root)]);
        let mut region = Region { look, source: root, root, nodes: Vec::new() };
        while let Some((index, _)) = frontier.pop_last() {
            let node = &look.graph.nodes[index?];
            if !may(node) || region.nodes.len() == limit {
                return None;
            }
            region.nodes.push(node);
            for input in &node.inputs {
                match *input {
                    Operand::Value(v) => drop(frontier.insert((look.index(v), v))),
                    other if look.is_constant(other) => {}
                    _ => return None,
                }
            }
            if let (1, Some((_, source))) = (frontier.len(), frontier.first()) {
                region.source = *source;
                if let Some(answer) = accept(&region) {
                    return Some(answer);
                }
            }
        }
        None
    }

    /// What tells the region from others: regions of one key compute the same. Layers repeat themselves, so an answer about one
    /// is an answer about all.
    pub(crate) fn key(&self) -> String {
        let mut names = BTreeMap::from([(self.source, 0)]);
        let mut key = self.look.graph.values[self.source].ty.to_string();
        for node in self.nodes.iter().rev() {
            let _ = write!(key, ";{:?}", node.op);
            for input in &node.inputs {
                let _ = match input {
                    Operand::Value(v) => write!(key, " {}", names.get(v).copied().unwrap_or(usize::MAX)),
                    other => write!(key, " {other:?}"),
                };
            }
            let next = names.len();
            names.extend(node.outputs.iter().zip(next..).map(|(o, i)| (*o, i)));
        }
        key
    }

    pub(crate) fn has(&self, is: impl Fn(&Node) -> bool) -> bool {
        self.nodes.iter().any(|n| is(n))
    }

    /// What the root is, given the source.
    pub(crate) fn of(&self, x: Tensor) -> Option<Tensor> {
        self.look.compute(Operand::Value(self.root), &BTreeMap::from([(self.source, x)])).ok()
    }

    /// A tensor of the source's type.
    pub(crate) fn input(&self, numbers: Vec<f64>) -> Option<Tensor> {
        let ty = &self.look.graph.values[self.source].ty;
        tensor(ty.dtype, &ty.shape()?, numbers)
    }

    /// Noise for the source, times a factor, around a center.
    pub(crate) fn noise(&self, factor: f64, center: f64) -> Option<Tensor> {
        let n = self.look.graph.values[self.source].ty.elements().filter(|n| *n <= 1 << 26)?;
        self.input(noise(1, n).into_iter().map(|v| (v + center) * factor).collect())
    }
}
