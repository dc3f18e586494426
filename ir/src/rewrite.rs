//! The one way to change a graph: copy it forward and decide per node whether to keep, replace or drop it.
//!
//! Invariant: operands seen by the callback are already those of the new graph, and everything they depend on has been
//! copied, so what a callback builds is in schedule order by construction.

use crate::arena::{Id, ValueId};
use crate::error::Error;
use crate::module::{Graph, Module, Node, Operand};
use crate::op::Op;

/// What to do with a node.
pub enum Rewrite {
    /// Copy it.
    Keep,
    /// Leave it out; its results are these values of the new graph.
    Replace(Vec<ValueId>),
    /// Leave it out; nothing reads its results.
    Drop,
}

/// The graph under construction, the module it belongs to, and the old node's place.
pub struct Rewriter<'m> {
    /// The module, without the graph that is being rewritten.
    pub module: &'m mut Module,
    /// The new graph so far.
    pub graph: Graph,
    /// The graph being copied.
    pub old: &'m Graph,
    /// Index of the current node in the old graph.
    pub index: usize,
    defs: Vec<Option<usize>>,
    old_uses: Vec<usize>,
    old_defs: Vec<Option<usize>>,
}

impl Rewriter<'_> {
    /// The node of the new graph that defines a value, unless it is a parameter or the node touches a state.
    pub fn pure_def(&self, operand: Operand) -> Option<&Node> {
        let at = self.defs.get(operand.value()?.index()).copied().flatten()?;
        Some(&self.graph.nodes[at]).filter(|n| !n.op.touches_state())
    }

    /// Whether the current node is the only reader of its operand `input`, so that fusing the two computes nothing twice.
    pub fn read_once(&self, input: usize) -> bool {
        let operand = self.old.nodes[self.index].inputs[input].value();
        operand.is_some_and(|v| self.uses(v) == 1)
    }

    /// How often a value of the old graph is read or returned.
    pub fn uses(&self, old: ValueId) -> usize {
        self.old_uses[old.index()]
    }

    /// The node of the old graph that defines a value, unless it is a parameter.
    pub fn old_def(&self, old: ValueId) -> Option<&Node> {
        self.old_defs[old.index()].map(|i| &self.old.nodes[i])
    }

    /// Appends a node; the results get inferred types and, in order, these names.
    ///
    /// # Errors
    /// The op does not fit its operands.
    pub fn emit(&mut self, op: Op, inputs: Vec<Operand>, names: &[&str]) -> Result<Vec<ValueId>, Error> {
        let outputs = self.graph.emit(self.module, op, inputs, names)?;
        self.note_definition();
        Ok(outputs)
    }

    /// The text of the current node in the old graph, for messages.
    pub fn old_text(&self) -> String {
        self.module.node_text(self.old, &self.old.nodes[self.index])
    }

    /// Name that a result of `node` (as given to the callback) has in the old graph.
    pub fn old_name(&self, node: &Node, result: usize) -> String {
        self.old.values[node.outputs[result]].name.clone()
    }

    /// Records the last node as the definition of its results.
    fn note_definition(&mut self) {
        self.defs.resize(self.graph.values.len(), None);
        let last = self.graph.nodes.len() - 1;
        for out in &self.graph.nodes[last].outputs {
            self.defs[out.index()] = Some(last);
        }
    }
}

/// Copies graph `index` of the module forward through `decide`, which sees every node with its operands already mapped.
/// Returns the number of nodes that were not kept.
///
/// # Errors
/// The first error of `decide`, or a use of a dropped result.
pub fn rewrite(
    module: &mut Module,
    index: usize,
    decide: &mut dyn FnMut(&mut Rewriter<'_>, &Node) -> Result<Rewrite, Error>,
) -> Result<usize, Error> {
    let old = std::mem::take(&mut module.graphs[index]);
    let (graph, old_uses, old_defs) = (Graph::new(old.name.clone()), old.use_counts(), old.definitions());
    let mut rw = Rewriter { module, graph, old: &old, index: 0, defs: Vec::new(), old_uses, old_defs };
    let outcome = copy(&mut rw, decide);
    let new = std::mem::take(&mut rw.graph);
    // A failing pass leaves the module as it was, so that the caller can write it to a repro file.
    module.graphs[index] = if outcome.is_ok() { new } else { old };
    outcome
}

fn copy(
    rw: &mut Rewriter<'_>,
    decide: &mut dyn FnMut(&mut Rewriter<'_>, &Node) -> Result<Rewrite, Error>,
) -> Result<usize, Error> {
    let old = rw.old;
    let mut map: Vec<Option<ValueId>> = vec![None; old.values.len()];
    for &p in &old.params {
        let value = &old.values[p];
        map[p.index()] = Some(rw.graph.param(&value.name, value.ty.clone()));
    }
    let dropped = |v: ValueId| Error::new(format!("%{}", old.values[v].name), "a dropped value is still read");
    let mut changes = 0;
    for (i, node) in old.nodes.iter().enumerate() {
        rw.index = i;
        let new = |input: &Operand| match input {
            Operand::Value(v) => map[v.index()].map(Operand::Value).ok_or(*v),
            other => Ok(*other),
        };
        let mapped = match node.inputs.iter().map(new).collect::<Result<Vec<_>, _>>() {
            Ok(inputs) => Node { op: node.op.clone(), inputs, outputs: node.outputs.clone() },
            // What only feeds on dropped values goes with them.
            Err(_) if !node.op.has_effect() => {
                changes += 1;
                continue;
            }
            Err(v) => return Err(dropped(v)),
        };
        match decide(rw, &mapped)? {
            Rewrite::Keep => {
                let copies = node.outputs.iter().map(|&o| {
                    let copy = rw.graph.value(&old.values[o].name, old.values[o].ty.clone());
                    map[o.index()] = Some(copy);
                    copy
                });
                let outputs = copies.collect();
                rw.graph.nodes.push(Node { outputs, ..mapped });
                rw.note_definition();
            }
            Rewrite::Replace(values) => {
                changes += 1;
                for (&o, v) in node.outputs.iter().zip(values) {
                    map[o.index()] = Some(v);
                }
            }
            Rewrite::Drop => changes += 1,
        }
    }
    for &r in &old.results {
        rw.graph.results.push(map[r.index()].ok_or_else(|| dropped(r))?);
    }
    Ok(changes)
}
