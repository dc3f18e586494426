//! Where two recordings of a decode part, and which node of the model's program is the first to differ there.
//!
//! Invariant: everything is compared in the order in which it happened, and a difference is named with what stood on both
//! sides. Nothing is run here but steps that somebody is to look into.

use std::collections::BTreeMap;

use dlx_ir::{DType, Entry, EntryKind, Error, Graph, Module, Node};
use dlx_runtime::exec::{Executor, HIDDEN, Span};
use dlx_runtime::trace::{Decided, Row, Step};

/// What differs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// One of the two has no such pass.
    Missing,
    /// The passes feed or read other rows.
    Pass,
    /// A number of a row.
    Number {
        /// Which.
        name: &'static str,
        /// Of both; nothing where it was not asked for.
        of: [Option<f32>; 2],
    },
    /// The token chosen for a position.
    Token {
        /// Of both.
        of: [i32; 2],
    },
    /// Whether a position got a token.
    Revealed {
        /// The token that it got; nothing where it stayed undecided.
        of: [Option<i32>; 2],
    },
    /// The same positions were revealed in another order, or for another reason.
    Order,
}

/// A difference, and where it is.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Parting {
    /// Number of the pass, counted from 0.
    pub step: usize,
    /// The position, unless it concerns the whole pass.
    pub position: Option<usize>,
    /// What differs.
    pub what: What,
}

/// Every difference between two recordings, in order, up to where their canvases part: what follows has nothing in common.
/// Numbers may differ by `tolerance`; with 0 they must be the same to the bit.
pub fn compare(a: &[Step], b: &[Step], tolerance: f32) -> Vec<Parting> {
    let mut partings = Vec::new();
    for step in 0..a.len().max(b.len()) {
        let mut add = |position, what| partings.push(Parting { step, position, what });
        let (Some(ours), Some(theirs)) = (a.get(step), b.get(step)) else {
            add(None, What::Missing);
            break;
        };
        let looked =
            |step: &Step| step.decision.as_ref().map(|d| d.rows.iter().map(|r| r.position).collect::<Vec<_>>());
        if ours.pass != theirs.pass || looked(ours) != looked(theirs) {
            add(None, What::Pass);
            break;
        }
        let (Some(ours), Some(theirs)) = (&ours.decision, &theirs.decision) else { continue };
        ours.rows.iter().zip(&theirs.rows).for_each(|(a, b)| rows(a, b, tolerance, &mut add));
        revealed(ours, theirs, &mut add);
        if ours.canvas != theirs.canvas {
            break;
        }
    }
    partings
}

fn rows(a: &Row, b: &Row, tolerance: f32, add: &mut dyn FnMut(Option<usize>, What)) {
    if a.token != b.token {
        add(Some(a.position), What::Token { of: [a.token, b.token] });
    }
    for ((name, x), (_, y)) in a.numbers().into_iter().zip(b.numbers()) {
        let close = match (x, y) {
            (Some(x), Some(y)) => x.to_bits() == y.to_bits() || (tolerance > 0.0 && (x - y).abs() <= tolerance),
            _ => x == y,
        };
        if !close {
            add(Some(a.position), What::Number { name, of: [x, y] });
        }
    }
}

fn revealed(a: &Decided, b: &Decided, add: &mut dyn FnMut(Option<usize>, What)) {
    let [ours, theirs] = [a, b].map(|d| d.revealed.iter().copied().collect::<BTreeMap<usize, i32>>());
    let before = |ours: &BTreeMap<usize, i32>, theirs: &BTreeMap<usize, i32>| {
        ours.keys().filter(|at| !theirs.contains_key(at)).copied().collect::<Vec<_>>()
    };
    let mut other = [before(&ours, &theirs), before(&theirs, &ours)].concat();
    other.sort_unstable();
    for position in &other {
        let of = [ours.get(position).copied(), theirs.get(position).copied()];
        add(Some(*position), What::Revealed { of });
    }
    let order = |d: &Decided| d.revealed.iter().map(|r| r.0).collect::<Vec<_>>();
    let reason = |d: &Decided| (d.why, d.quota, d.part.to_bits(), d.block, order(d));
    if other.is_empty() && reason(a) != reason(b) {
        add(None, What::Order);
    }
}

/// A loaded model whose steps can be looked into.
pub struct Inside<'a> {
    /// Runs it.
    pub executor: &'a mut dyn Executor,
    /// The program that it runs.
    pub program: &'a Module,
}

/// The first value of a step that differs.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct FirstNode {
    /// Its name.
    pub value: String,
    /// Largest difference of an element, as a part of the largest element.
    pub distance: f32,
    /// Values before it that both compute and that agree.
    pub agree: usize,
    /// The node that computes it, as both programs have it.
    pub nodes: [Option<String>; 2],
    /// What it comes from in the checkpoint: source tensors of the weights that it reads.
    pub from: Vec<String>,
}

/// Runs a span as a step of both models and finds the first value, of those that both compute, that differs by more than
/// `tolerance` of its largest element.
///
/// # Errors
/// An executor that fails, or that nobody can look into.
pub fn first_node(a: Inside<'_>, b: Inside<'_>, span: Span<'_>, tolerance: f32) -> Result<Option<FirstNode>, Error> {
    let mut values: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    look(a.executor, span, &mut |name, rows| drop(values.insert(name.to_owned(), rows.to_vec())))?;
    let (mut agree, mut first) = (0, None);
    look(b.executor, span, &mut |name, rows| {
        let Some(other) = values.get(name).filter(|_| first.is_none()) else { return };
        let distance = distance(other, rows);
        if distance <= tolerance {
            agree += 1;
        } else {
            first = Some((name.to_owned(), distance));
        }
    })?;
    let Some((value, distance)) = first else { return Ok(None) };
    let [ours, theirs] = [a.program, b.program].map(|program| found(program, span.ids.len(), &value));
    let from = [(a.program, ours), (b.program, theirs)].into_iter().find_map(|(p, n)| Some(sources(p, n?.1)));
    let text = |program: &Module, found: Option<(&Graph, &Node)>| found.map(|(g, n)| program.node_text(g, n));
    let nodes = [text(a.program, ours), text(b.program, theirs)];
    Ok(Some(FirstNode { value, distance, agree, nodes, from: from.unwrap_or_default() }))
}

fn look(executor: &mut dyn Executor, span: Span<'_>, see: &mut dyn FnMut(&str, &[f32])) -> Result<(), Error> {
    match executor.observe(&[span], see) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new("", "nobody can look into steps of this executor").help("use cpu or wgpu")),
        Err(e) => Err(Error::new("", e.to_string())),
    }
}

/// Largest difference of two values, as a part of the first one's largest element; infinite where they have other lengths
/// or one is not finite.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let scale = a.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    let most = a.iter().zip(b).map(|(x, y)| if x == y { 0.0 } else { (x - y).abs() });
    let most = most.fold(0.0, |most: f32, d| if d.is_finite() { most.max(d) } else { f32::INFINITY });
    most / scale
}

/// The node that computes a value in the step that `rows` rows run in.
fn found<'m>(program: &'m Module, rows: usize, value: &str) -> Option<(&'m Graph, &'m Node)> {
    let entry = |g: &Graph| Entry::of(g).ok().filter(|e| e.kind == EntryKind::Step && e.rows >= rows);
    let graph = program.graphs.iter().filter_map(|g| Some((entry(g)?.rows, g))).min_by_key(|(rows, _)| *rows)?.1;
    let node = |name: &str| graph.nodes.iter().find(|n| n.outputs.iter().any(|o| graph.values[*o].name == name));
    let stores = || graph.nodes.iter().find(|n| matches!(n.op, dlx_ir::Op::StoreRows {}));
    let node = if value == HIDDEN { stores() } else { node(value) };
    Some((graph, node?))
}

/// Names of what a node comes from: its own, and those of the weights that it reads.
pub(crate) fn sources(program: &Module, node: &Node) -> Vec<String> {
    let mut names: Vec<String> = node.origin.names().map(str::to_owned).collect();
    for weight in node.inputs.iter().filter_map(|i| i.weight()).map(|w| &program.weights[w]) {
        let own = weight.origin.is_empty().then(|| source(&weight.name));
        names.extend(weight.origin.names().chain(own).map(str::to_owned));
    }
    names
}

/// The name of the tensor that a weight was made of: passes append what it became.
fn source(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((rest, last)) if last == "packed" || last.parse::<DType>().is_ok() => source(rest),
        _ => name,
    }
}

#[cfg(test)]
mod tests;
