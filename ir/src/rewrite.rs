//! The one way to change a graph: copy it forward and decide per node whether to keep, replace or drop it.
//!
//! Invariant: operands seen by the callback are already those of the new graph, and everything they depend on has been
//! copied, so what a callback builds is in schedule order by construction. What a node comes from survives it: see
//! [`rewrite`].

use crate::arena::{Id, SideTable, ValueId};
use crate::error::Error;
use crate::module::{Graph, Module, Node, Operand, WeightDef};
use crate::op::Op;
use crate::origin::Origin;
use std::collections::{BTreeMap, BTreeSet};

/// What to do with a node.
pub enum Rewrite {
    /// Copy it.
    Keep,
    /// Leave it out; its results are these values of the new graph.
    Replace(Vec<ValueId>),
    /// Leave it out; nothing reads its results.
    Drop,
}

/// What a rewrite did.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// Number of nodes that were not kept.
    pub changes: usize,
    /// For each value of the old graph, the value of the new one that stands for it; none for what was dropped.
    pub values: SideTable<ValueId, Option<ValueId>>,
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
    /// For each value of the old graph, what stands for it.
    map: SideTable<ValueId, Option<ValueId>>,
    defs: Vec<Option<usize>>,
    old_uses: Vec<usize>,
    old_defs: Vec<Option<usize>>,
    /// Whether any node says what it comes from.
    traced: bool,
}

/// A fusion takes in at most this many nodes in a row.
const DEPTH: usize = 32;

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

    /// The value of the new graph that stands for one of the old graph; none before its node, or when it was dropped.
    pub fn mapped(&self, old: ValueId) -> Option<ValueId> {
        self.map[old]
    }

    /// Appends a node; the results get inferred types and, in order, these names.
    ///
    /// # Errors
    /// The op does not fit its operands.
    pub fn emit(&mut self, op: Op, inputs: Vec<Operand>, names: &[&str]) -> Result<Vec<ValueId>, Error> {
        let outputs = self.graph.emit(self.module, op, inputs, names).map_err(|mut e| {
            e.place.push_str(&self.old.nodes[self.index].origin.to_string());
            e
        })?;
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

    /// Says of the nodes from `first` on, which were emitted for `node`, and of those that now stand for it what they
    /// come from.
    fn trace(&mut self, node: &Node, first: usize, values: &[ValueId]) {
        let reads: BTreeSet<Operand> = self.graph.nodes[first..].iter().flat_map(|n| &n.inputs).copied().collect();
        let mut origin = node.origin.clone();
        let mut seen = BTreeMap::new();
        for input in &node.inputs {
            self.take_in(*input, &reads, DEPTH, &mut seen, &mut origin);
        }
        let standing = values.iter().filter_map(|v| self.defs.get(v.index()).copied().flatten());
        for i in standing.chain(first..self.graph.nodes.len()).collect::<BTreeSet<_>>() {
            self.graph.nodes[i].origin.join(&origin);
        }
    }

    /// Joins the origins of the nodes and weight expressions that lie between `reads` and an operand, and says whether it depends on one of them.
    fn take_in(
        &self,
        operand: Operand,
        reads: &BTreeSet<Operand>,
        depth: usize,
        seen: &mut BTreeMap<Operand, bool>,
        origin: &mut Origin,
    ) -> bool {
        if reads.contains(&operand) {
            return true;
        }
        if let Some(depends) = seen.get(&operand) {
            return *depends;
        }
        let Some(depth) = depth.checked_sub(1) else { return false };
        let (inputs, made_by) = match (operand, self.pure_def(operand)) {
            (Operand::Weight(w), _) => match &self.module.weights[w].def {
                WeightDef::Expr(_, inputs) => {
                    (inputs.iter().map(|i| Operand::Weight(*i)).collect(), &self.module.weights[w].origin)
                }
                _ => return false,
            },
            (_, Some(node)) => (node.inputs.clone(), &node.origin),
            (_, None) => return false,
        };
        let depends = inputs.iter().fold(false, |any, i| self.take_in(*i, reads, depth, seen, origin) | any);
        seen.insert(operand, depends);
        if depends {
            origin.join(made_by);
        }
        depends
    }
}

/// Copies graph `index` of the module forward through `decide`, which sees every node with its operands already mapped.
///
/// A node that is emitted comes from what the current node comes from, and from what lies between its operands and
/// the current node, which it takes in. A node whose results replace others comes from what those came from, too.
///
/// # Errors
/// The first error of `decide`, or a use of a dropped result.
pub fn rewrite(
    module: &mut Module,
    index: usize,
    decide: &mut dyn FnMut(&mut Rewriter<'_>, &Node) -> Result<Rewrite, Error>,
) -> Result<Rewritten, Error> {
    let old = std::mem::take(&mut module.graphs[index]);
    let (graph, old_uses, old_defs) = (Graph::new(old.name.clone()), old.use_counts(), old.definitions());
    let traced = old.nodes.iter().any(|n| !n.origin.is_empty());
    let map = old.values.side_table(None);
    let mut rw = Rewriter { module, graph, old: &old, index: 0, map, defs: Vec::new(), old_uses, old_defs, traced };
    let outcome = copy(&mut rw, decide);
    let new = std::mem::take(&mut rw.graph);
    // A failing pass leaves the module as it was, so that the caller can write it to a repro file.
    module.graphs[index] = if outcome.is_ok() { new } else { old };
    outcome
}

fn copy(
    rw: &mut Rewriter<'_>,
    decide: &mut dyn FnMut(&mut Rewriter<'_>, &Node) -> Result<Rewrite, Error>,
) -> Result<Rewritten, Error> {
    let old = rw.old;
    for &p in &old.params {
        let value = &old.values[p];
        rw.map[p] = Some(rw.graph.param(&value.name, value.ty.clone()));
    }
    let dropped = |v: ValueId| Error::new(format!("%{}", old.values[v].name), "a dropped value is still read");
    let mut changes = 0;
    for (i, node) in old.nodes.iter().enumerate() {
        rw.index = i;
        let new = |input: &Operand| match input {
            Operand::Value(v) => rw.map[*v].map(Operand::Value).ok_or(*v),
            other => Ok(*other),
        };
        let mapped = match node.inputs.iter().map(new).collect::<Result<Vec<_>, _>>() {
            Ok(inputs) => Node { inputs, ..node.clone() },
            // What only feeds on dropped values goes with them.
            Err(_) if !node.op.has_effect() => {
                changes += 1;
                continue;
            }
            Err(v) => return Err(dropped(v)),
        };
        let first = rw.graph.nodes.len();
        match decide(rw, &mapped)? {
            Rewrite::Keep => {
                let copies = node.outputs.iter().map(|&o| {
                    let copy = rw.graph.value(&old.values[o].name, old.values[o].ty.clone());
                    rw.map[o] = Some(copy);
                    copy
                });
                let outputs = copies.collect();
                rw.graph.nodes.push(Node { outputs, ..mapped });
                rw.note_definition();
            }
            Rewrite::Replace(values) => {
                changes += 1;
                if rw.traced {
                    rw.trace(&mapped, first, &values);
                }
                for (&o, v) in node.outputs.iter().zip(values) {
                    rw.map[o] = Some(v);
                }
            }
            Rewrite::Drop => changes += 1,
        }
    }
    for &r in &old.results {
        rw.graph.results.push(rw.map[r].ok_or_else(|| dropped(r))?);
    }
    Ok(Rewritten { changes, values: rw.map.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::WeightId;
    use crate::attr::Post;
    use crate::types::{DType, Type};
    use crate::{parse, verify};

    const TEXT: &str = r#"module @m {
  weight @w: f32[2, 2] from "w"
  weight @n: f32[2]
  graph @g(%x: f32[4, 2]) -> (f32[4, 2], f32[4, 2], f32[4, 2]) {
    %d = silu %x: f32[4, 2] from "dead"
    %n = rms_norm %x, @n {eps=1e-6}: f32[4, 2] from "norm"
    %s = scale %n {by=2}: f32[4, 2] from "scale"
    %y = linear %s, @w: f32[4, 2] from "product"
    %a = silu %y: f32[4, 2] from "first"
    %b = silu %y: f32[4, 2] from "second"
    return %a, %b, %y
  }
}
"#;

    fn origins(module: &Module) -> Vec<(&'static str, Vec<&str>)> {
        module.graphs[0].nodes.iter().map(|n| (n.op.name(), n.origin.names().collect())).collect()
    }

    #[test]
    fn old_values_are_related_to_new_ones() {
        let mut module = parse(TEXT).unwrap();
        let old = module.graphs[0].clone();
        let done = rewrite(&mut module, 0, &mut |rw, node| {
            Ok(match (&node.op, node.inputs[0].value()) {
                (Op::Silu {}, _) if rw.index == 0 => Rewrite::Drop,
                (Op::Scale { .. }, Some(x)) => Rewrite::Replace(vec![x]),
                _ => Rewrite::Keep,
            })
        })
        .unwrap();
        assert_eq!(done.changes, 2);
        let new = &module.graphs[0];
        let stands = |old_name: &str| {
            let id = old.values.find(old_name).unwrap();
            done.values[id].map(|v| new.values[v].name.as_str())
        };
        assert_eq!([stands("x"), stands("d"), stands("n"), stands("s")], [Some("x"), None, Some("n"), Some("n")]);
        assert_eq!(new.nodes[0].origin, Origin::new(["norm", "scale"]));
    }

    #[test]
    fn a_fused_node_comes_from_all_that_it_took_in() {
        let mut module = parse(TEXT).unwrap();
        let old = module.graphs[0].clone();
        let mut equal = None;
        let done = rewrite(&mut module, 0, &mut |rw, node| match node.op {
            // A linear with the norm as its prologue, which jumps over the scale.
            Op::Linear { .. } => {
                let scale = rw.pure_def(node.inputs[0]).expect("the scale is there");
                let norm = rw.pure_def(scale.inputs[0]).expect("the norm is there");
                let inputs = vec![norm.inputs[0], node.inputs[1], norm.inputs[1]];
                let op = Op::Linear { n: 1, bias: false, norm: Some(1e-6), post: Post::None };
                Ok(Rewrite::Replace(rw.emit(op, inputs, &["y"])?))
            }
            // The later of two equal nodes.
            Op::Silu {} if rw.index > 0 => match equal {
                Some(v) => Ok(Rewrite::Replace(vec![v])),
                None => {
                    let emitted = rw.emit(Op::Silu {}, node.inputs.clone(), &["a"])?;
                    equal = Some(emitted[0]);
                    Ok(Rewrite::Replace(emitted))
                }
            },
            _ => Ok(Rewrite::Keep),
        })
        .unwrap();
        verify(&module).unwrap();
        let expected = [
            ("silu", vec!["dead"]),
            ("rms_norm", vec!["norm"]),
            ("scale", vec!["scale"]),
            ("linear", vec!["product", "norm", "scale"]),
            ("silu", vec!["first", "second"]),
        ];
        assert_eq!(origins(&module), expected);
        let [a, b] = ["a", "b"].map(|n| done.values[old.values.find(n).unwrap()]);
        assert!(a.is_some() && a == b);
        assert_eq!(parse(&module.to_string()).unwrap().to_string(), module.to_string());
    }

    #[test]
    fn what_stands_for_nothing_known_stays_unprinted() {
        let text = TEXT.lines().map(|l| l.split(" from ").next().unwrap_or(l)).collect::<Vec<_>>().join("\n");
        let mut module = parse(&text).unwrap();
        rewrite(&mut module, 0, &mut |rw, node| match node.op {
            Op::Scale { by } => Ok(Rewrite::Replace(rw.emit(Op::Scale { by }, node.inputs.clone(), &["s"])?)),
            _ => Ok(Rewrite::Keep),
        })
        .unwrap();
        assert!(!module.to_string().contains(" from "));
    }

    #[test]
    fn weight_expressions_come_from_their_inputs_and_errors_name_the_node() {
        let mut module = parse(TEXT).unwrap();
        let [w, n] = ["w", "n"].map(|name| module.weight(name).unwrap());
        let mut expr = |inputs: Vec<WeightId>| {
            let ty = Type::new(DType::F32, [4usize, 2]);
            let id = module.add_weight("e", ty, WeightDef::Expr(Op::Concat { axis: 0 }, inputs));
            module.weights[id].origin.clone()
        };
        assert_eq!(expr(vec![n, w, w]), Origin::new(["w"]));
        assert_eq!(expr(vec![n]), Origin::default());
        let error = rewrite(&mut module, 0, &mut |rw, node| {
            rw.emit(Op::Softmax {}, vec![node.inputs[0], node.inputs[0]], &[]).map(Rewrite::Replace)
        });
        assert_eq!(error.unwrap_err().place, "graph @g: softmax %x, %x from \"dead\"");
    }
}
