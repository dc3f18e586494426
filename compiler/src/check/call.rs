//! Runs of a module's graphs: what they are called at any stage, and what they computed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dlx_ir::{DType, Data, Dim, Graph, Module, Tensor, spans_type};

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
    /// Rows in whose multiples a sequence may be cut; nothing where every row sees all others.
    pub unit: Option<usize>,
    /// Whether steps whose caches are outside were given what a host gives, so that they compute what other stages do.
    pub hosted: bool,
}

impl Run {
    /// The value of that name: of the same call, else of the step before it, else the second half of what a step has that takes
    /// both halves of a sequence at once.
    pub fn named(&self, seen: &Seen) -> Option<Rc<Tensor>> {
        let of = |same: &dyn Fn(&Call) -> bool| {
            let mut values = self.values.iter().filter(|v| v.name == seen.name && same(&v.call));
            values.next().map(|v| v.tensor.clone())
        };
        let Call { rows, step, turn, .. } = seen.call;
        let own = of(&|call| *call == seen.call);
        if own.is_some() || rows != step {
            return own;
        }
        let in_step =
            |size: usize, turn: usize| of(&|c: &Call| (c.role.as_str(), c.step, c.turn) == ("step", size, turn));
        let halves = turn == 1 && self.unit.is_some_and(|unit| step.is_multiple_of(unit));
        in_step(step, turn).or_else(|| second_half(&*in_step(2 * step, 0).filter(|_| halves)?, step))
    }
}

/// The last `rows` of twice as many.
fn second_half(whole: &Tensor, rows: usize) -> Option<Rc<Tensor>> {
    let all = whole.floats().ok().filter(|_| whole.shape.first() == Some(&(2 * rows)))?;
    let shape = [&[rows], &whole.shape[1..]].concat();
    Some(Rc::new(Tensor { dtype: whole.dtype, data: Data::F32(all[all.len() / 2..].to_vec()), shape }))
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

/// Whether a step has caches, inside or outside.
pub fn has_caches(graph: &Graph) -> bool {
    outside(graph).is_some() || graph.params.iter().any(|p| graph.values[*p].ty == spans_type())
}

/// Stands beside the roles where sizes are, for sequences that steps with caches take in two calls.
pub const WHOLE: &str = "whole sequence";

/// Cache rows of a step whose caches are outside: what its mask has beside the rows of the step.
pub fn outside(graph: &Graph) -> Option<usize> {
    let (role, rows) = role(graph);
    let mask = graph.params.iter().map(|p| &graph.values[*p]).find(|v| v.name == "mask")?;
    let columns = *mask.ty.shape()?.get(1)?;
    columns.checked_sub(rows?).filter(|_| role == "step")
}

/// Sizes of calls, by the role of their graph, and of a [`WHOLE`].
pub type Sizes = BTreeMap<String, BTreeSet<usize>>;

/// The sizes that any of some stages fixes, `rows`, and as many as all states hold.
pub fn sizes<'m>(stages: impl IntoIterator<Item = &'m Module>, rows: usize) -> Sizes {
    let (mut sizes, mut all_hold) = (Sizes::new(), rows);
    for module in stages {
        for graph in &module.graphs {
            let (role, size) = role(graph);
            sizes.entry(role.to_owned()).or_default().extend(size);
            // Its second call is the other half of a sequence that a step without caches takes as a whole.
            if role == "step" && has_caches(graph) {
                sizes.entry(WHOLE.to_owned()).or_default().extend(size.map(|size| 2 * size));
            }
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
