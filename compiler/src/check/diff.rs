//! What differs between two modules: in structure, up to names, and in the numbers that they compute.

use std::collections::BTreeMap;
use std::rc::Rc;

use dlx_ir::{Error, Graph, Module, Node, Operand, Tensor, ValueId, WeightDef, WeightId};
use dlx_targets::WeightSource;
use serde::Serialize;
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::call::{Call, Run};
use super::compare::{Distance, distance, graph_of};
use super::each::Stages;

/// What differs between two graphs of one name, or between the weights or states of two modules.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Changes {
    /// `@step_4`, `weights` or `states`.
    pub place: String,
    /// Lines that only the first has.
    pub removed: usize,
    /// Lines that only the second has.
    pub added: usize,
    /// Those lines, behind `- ` and `+ `, in order.
    pub lines: Vec<String>,
}

/// Compares two modules. What only has another name, or another place in a file, is the same.
pub fn structure(a: &Module, b: &Module) -> Vec<Changes> {
    let mut all = Vec::new();
    let names = a.graphs.iter().map(|g| &g.name).chain(b.graphs.iter().map(|g| &g.name));
    let mut seen: Vec<&String> = Vec::new();
    let empty = Graph::default();
    for name in names {
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        let (of_a, of_b) = (a.graph(name).unwrap_or(&empty), b.graph(name).unwrap_or(&empty));
        all.extend(changes(format!("@{name}"), graphs((a, of_a), (b, of_b))));
    }
    let states = |m: &Module| m.states.iter().map(|(_, s)| format!("state {}", s.ty)).collect::<Vec<_>>();
    all.extend(changes("states".into(), lines(&states(a), &states(b))));
    let weights = |m: &Module| m.weights.iter().map(|(id, _)| weight(m, id)).collect::<Vec<_>>();
    all.extend(changes("weights".into(), lines(&weights(a), &weights(b))));
    all
}

fn changes(place: String, lines: Vec<String>) -> Option<Changes> {
    let count = |sign: char| lines.iter().filter(|l| l.starts_with(sign)).count();
    let (removed, added) = (count('-'), count('+'));
    (!lines.is_empty()).then_some(Changes { place, removed, added, lines })
}

fn lines(a: &[String], b: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    for op in capture_diff_slices(Algorithm::Patience, a, b) {
        if !matches!(op, DiffOp::Equal { .. }) {
            out.extend(a[op.old_range()].iter().map(|l| format!("- {l}")));
            out.extend(b[op.new_range()].iter().map(|l| format!("+ {l}")));
        }
    }
    out
}

/// Nodes that differ: their ops, or what they read once nodes that are alike stand for each other.
fn graphs(a: (&Module, &Graph), b: (&Module, &Graph)) -> Vec<String> {
    let key = |(m, g): (&Module, &Graph)| g.nodes.iter().map(|n| shallow(m, g, n)).collect::<Vec<_>>();
    let text = |(m, g): (&Module, &Graph), i: usize| m.node_text(g, &g.nodes[i]);
    let params = a.1.params.iter().copied().zip(b.1.params.iter().copied());
    let mut twin: BTreeMap<ValueId, ValueId> = params.collect();
    let mut out = Vec::new();
    for op in capture_diff_slices(Algorithm::Patience, &key(a), &key(b)) {
        if !matches!(op, DiffOp::Equal { .. }) {
            out.extend(op.old_range().map(|i| format!("- {}", text(a, i))));
            out.extend(op.new_range().map(|i| format!("+ {}", text(b, i))));
            // What took the place of a value is read where it was.
            if let DiffOp::Replace { .. } = op {
                let named = |g: &Graph, nodes: std::ops::Range<usize>| -> Vec<ValueId> {
                    g.nodes[nodes].iter().flat_map(|n| n.outputs.iter().copied()).collect()
                };
                for old in named(a.1, op.old_range()) {
                    let same = |v: &ValueId| b.1.values[*v].name == a.1.values[old].name;
                    twin.extend(named(b.1, op.new_range()).into_iter().find(same).map(|new| (old, new)));
                }
            }
            continue;
        }
        for (i, j) in op.old_range().zip(op.new_range()) {
            let (old, new) = (&a.1.nodes[i], &b.1.nodes[j]);
            let agree = |(x, y): (&Operand, &Operand)| match (x, y) {
                (Operand::Value(x), Operand::Value(y)) => twin.get(x) == Some(y),
                _ => true,
            };
            if !old.inputs.iter().zip(&new.inputs).all(agree) {
                out.push(format!("- {}", text(a, i)));
                out.push(format!("+ {}", text(b, j)));
            }
            twin.extend(old.outputs.iter().copied().zip(new.outputs.iter().copied()));
        }
    }
    out
}

/// A node without the names of values.
fn shallow(module: &Module, graph: &Graph, node: &Node) -> String {
    let mut text = format!("{:?}", node.op);
    for input in &node.inputs {
        text.push(' ');
        match input {
            Operand::Value(v) => text.push_str(&graph.values[*v].ty.to_string()),
            Operand::Weight(w) => text.push_str(&weight(module, *w)),
            Operand::State(s) => text.push_str(&format!("state {}", module.states[*s].ty)),
        }
    }
    for out in &node.outputs {
        text.push_str(&format!(" -> {}", graph.values[*out].ty));
    }
    text
}

/// A weight by what it is made of.
fn weight(module: &Module, id: WeightId) -> String {
    let w = &module.weights[id];
    match &w.def {
        WeightDef::Expr(op, inputs) => {
            let inputs: Vec<String> = inputs.iter().map(|i| weight(module, *i)).collect();
            format!("{} = {op:?}({})", w.ty, inputs.join(", "))
        }
        WeightDef::Literal(_) => module.weight_text(w),
        WeightDef::Source | WeightDef::Stored { .. } => format!("@{}: {}", w.name, w.ty),
    }
}

/// What two models compute of the same inputs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Numbers {
    /// Values that both have.
    pub compared: usize,
    /// The first one that differs by more than the tolerance.
    pub first: Option<Growth>,
    /// Values at which the error at least doubles, and the last one.
    pub growth: Vec<Growth>,
    /// RMS of the difference of the logits over that of the first model's.
    pub logits: Option<f32>,
    /// Rows of logits, and rows whose most likely token is another one.
    pub rows: usize,
    /// See `rows`.
    pub flips: usize,
    /// Rows of which one model is sure enough to reveal them, and the other is not.
    pub decisions: Option<usize>,
}

/// The error of a value.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Growth {
    /// The value.
    pub value: String,
    /// RMS of the difference over that of the first model's.
    pub error: f32,
    /// The node that computes it in the second model, with what it comes from.
    pub node: String,
}

/// Values by name in the order of execution, and logits.
#[derive(Default)]
pub struct Computed {
    /// Of one step.
    pub values: Vec<(String, Rc<Tensor>)>,
    /// Of all its rows.
    pub logits: Option<Rc<Tensor>>,
}

/// Runs two modules on the same inputs and compares them, at the largest step that both have.
///
/// # Errors
/// A module that cannot be run.
pub fn run_both(
    a: &Module,
    b: &Module,
    weights: (&dyn WeightSource, &dyn WeightSource),
    seed: u64,
    tolerance: f32,
) -> Result<Numbers, Error> {
    let (mut old, mut new) = (Stages::new(a, weights.0, seed), Stages::new(b, weights.1, seed));
    let mut sizes = old.sizes([a, b]);
    sizes.values_mut().for_each(|s| *s = s.iter().copied().filter(|n| *n <= 64).collect());
    sizes.retain(|_, s| !s.is_empty());
    let (old, new) = (old.run(a, &sizes)?, new.run(b, &sizes)?);
    let common = |call: &&Call| new.results.contains_key(*call) && call.turn == 0;
    let largest = old.results.keys().filter(common).max_by_key(|c| (c.step, c.rows)).cloned();
    let Some(call) = largest else { return Ok(Numbers::default()) };
    let node = |name: &str| {
        let step = Call { role: "step".into(), rows: call.step, ..call.clone() };
        let graphs = [graph_of(b, &step), graph_of(b, &call)];
        let found = graphs.into_iter().flatten().find_map(|g| Some((g, g.values.find(name)?)));
        found
            .and_then(|(g, v)| Some((g, g.nodes.iter().find(|n| n.outputs.contains(&v))?)))
            .map_or_else(String::new, |(g, n)| b.node_text(g, n))
    };
    Ok(numbers(&computed(&old, &call), &computed(&new, &call), tolerance, &node))
}

fn computed(run: &Run, call: &Call) -> Computed {
    let same = |c: &Call| c.step == call.step && c.turn == 0;
    let values = run.values.iter().filter(|v| same(&v.call)).map(|v| (v.name.clone(), v.tensor.clone()));
    let of = |role: &str| run.results.iter().find(|(c, r)| c.role == role && same(c) && !r.is_empty());
    let logits = of("logits").or_else(|| of("step")).map(|(_, r)| r[0].clone());
    Computed { values: values.collect(), logits }
}

/// Compares what two models computed; `node` is the text of what computes a value.
pub fn numbers(a: &Computed, b: &Computed, tolerance: f32, node: &dyn Fn(&str) -> String) -> Numbers {
    let mut out = Numbers::default();
    let mut new: BTreeMap<&str, &Rc<Tensor>> = BTreeMap::new();
    for (name, tensor) in &b.values {
        new.entry(name).or_insert(tensor);
    }
    let (mut largest, mut last) = (0f32, None);
    for (name, expected) in &a.values {
        let Some(d) = new.get(name.as_str()).and_then(|t| distance(expected, t)) else { continue };
        out.compared += 1;
        let error = if d.rms > 0.0 { d.rms } else { d.largest };
        let growth = || Growth { value: name.clone(), error, node: node(name) };
        if out.first.is_none() && (error > tolerance || error.is_nan()) {
            out.first = Some(growth());
        }
        if error > 2.0 * largest {
            out.growth.push(growth());
            largest = error;
        }
        last = Some(growth());
    }
    out.growth.extend(last.filter(|l| out.growth.last().is_some_and(|g| g.value != l.value)));
    if let (Some(x), Some(y)) = (&a.logits, &b.logits)
        && let Some(Distance { rms, flips, .. }) = distance(x, y)
    {
        out.logits = Some(rms);
        out.rows = x.shape.first().copied().unwrap_or(0);
        out.flips = flips;
    }
    out
}

impl Numbers {
    /// Whether anything is further apart than allowed.
    pub fn differ(&self, tolerance: f32) -> bool {
        self.first.is_some() || self.logits.is_some_and(|l| l.is_nan() || l > tolerance)
    }
}
