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

impl Run {
    /// The value of that name: of the same call, else of the step before it.
    pub fn named(&self, seen: &Seen) -> Option<Rc<Tensor>> {
        let of = |same: &dyn Fn(&Call) -> bool| {
            let mut values = self.values.iter().filter(|v| v.name == seen.name && same(&v.call));
            values.next().map(|v| v.tensor.clone())
        };
        of(&|call| *call == seen.call).or_else(|| {
            let same = |c: &Call| c.role == "step" && (c.step, c.turn) == (seen.call.step, seen.call.turn);
            of(&same).filter(|_| seen.call.rows == seen.call.step)
        })
    }
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

/// Sizes of calls, by the role of their graph.
pub type Sizes = BTreeMap<String, BTreeSet<usize>>;

/// The sizes that any of some stages fixes, `rows`, and as many as all states hold.
pub fn sizes<'m>(stages: impl IntoIterator<Item = &'m Module>, rows: usize) -> Sizes {
    let (mut sizes, mut all_hold) = (Sizes::new(), rows);
    for module in stages {
        for graph in &module.graphs {
            let (role, size) = role(graph);
            let of_role = sizes.entry(role.to_owned()).or_default();
            of_role.extend(size);
            // Its second call is the other half of a sequence that a step without caches takes as a whole.
            let twice = size.map(|size| 2 * size);
            of_role.extend(twice.filter(|rows| outside(graph).is_some_and(|cached| cached >= *rows)));
        }
        all_hold = all_hold.min(room(module));
    }
    sizes.values_mut().for_each(|of_role| of_role.extend([all_hold, rows]));
    sizes
}

/// Rows that every state of a module holds.
pub fn room(module: &Module) -> usize {
    module.states.iter().filter_map(|(_, s)| s.ty.dims.first()?.fixed()).min().unwrap_or(usize::MAX)
}
