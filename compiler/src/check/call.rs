//! Runs of a module's graphs: what they are called at any stage, and what they computed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dlx_ir::{DType, Dim, Graph, Module, Tensor};

/// One run of a graph.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Call {
    /// Role of the graph, such as `step`.
    pub role: String,
    /// Size of its named dimension.
    pub rows: usize,
    /// Rows of the step before it, which is the call itself for a step.
    pub step: usize,
    /// 0, or 1 for the rows that follow.
    pub turn: usize,
}

/// A value that a run computed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The run of its graph.
    pub call: Call,
    /// Its name.
    pub name: String,
    /// What it is.
    pub tensor: Rc<Tensor>,
}

/// All values of a module's graphs, as they were computed.
#[derive(Debug, Default)]
pub struct Run {
    /// In the order of execution.
    pub values: Vec<Seen>,
    /// What each run of a graph returned.
    pub results: BTreeMap<Call, Vec<Rc<Tensor>>>,
}

/// The role of a graph, and the size that its name says if it is specialized. A graph that takes the ids of one sequence, and
/// nothing else, is the step before it is raised to rows.
pub fn role(graph: &Graph) -> (&str, Option<usize>) {
    let named = || graph.values.iter().flat_map(|(_, v)| &v.ty.dims).any(|d| matches!(d, Dim::Named(_)));
    if let [ids] = graph.params[..]
        && let ty = &graph.values[ids].ty
        && let (DType::I64 | DType::I32, Some(&[1, rows])) = (ty.dtype, ty.shape().as_deref())
    {
        return ("step", Some(rows));
    }
    match graph.name.rsplit_once('_').map(|(stem, size)| (stem, size.parse())) {
        Some((stem, Ok(size))) if !named() => (stem, Some(size)),
        _ if graph.name == "forward" => ("step", None),
        _ => (&graph.name, None),
    }
}

/// Cache rows of a step whose caches are outside: what its mask has beside the rows of the step.
pub fn outside(graph: &Graph) -> Option<usize> {
    let (role, rows) = role(graph);
    let mask = graph.params.iter().map(|p| &graph.values[*p]).find(|v| v.name == "mask")?;
    let columns = *mask.ty.shape()?.get(1)?;
    columns.checked_sub(rows?).filter(|_| role == "step")
}

/// The sizes that a module fixes, by role.
pub fn sizes(module: &Module) -> BTreeMap<String, BTreeSet<usize>> {
    let mut sizes: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for graph in &module.graphs {
        if let (role, Some(size)) = role(graph) {
            let of_role = sizes.entry(role.to_owned()).or_default();
            of_role.insert(size);
            // Its second call is the other half of a sequence that a step without caches takes as a whole.
            if outside(graph).is_some_and(|rows| rows >= 2 * size) {
                of_role.insert(2 * size);
            }
        }
    }
    sizes
}
