//! Compares what two stages of a module compute, and names what lies between them where they differ.

use std::collections::BTreeSet;

use dlx_ir::{Data, Error, Graph, Module, Node, Op, Operand, Tensor, ValueId, compute};
use dlx_passes::Keeps;
use serde::Serialize;

use super::call::{Call, Run, Seen, role};

/// Difference that another order of sums may make, as a part of the largest number of a tensor.
pub const ROUNDING: f32 = 2e-5;
/// Columns up to which statistics are made of logits to compare them with.
const MAX_COLUMNS: usize = 4096;

/// How far a tensor is from what was expected.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Distance {
    /// Largest difference over the largest expected number; of integers, 1 where any differs.
    pub largest: f32,
    /// RMS of the difference over that of what was expected.
    pub rms: f32,
    /// Rows whose largest number stands elsewhere.
    pub flips: usize,
    /// Flat index of the largest difference.
    pub at: usize,
}

/// A result or value that differs by more than it may.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Breach {
    /// Value, such as `%logits`, with the graph that computes it.
    pub value: String,
    /// Row and column of the largest difference.
    pub at: [usize; 2],
    /// What was expected there, and found.
    pub expected: f64,
    /// See `expected`.
    pub found: f64,
}

/// What a comparison of results says.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Comparison {
    /// Results that were compared.
    pub compared: usize,
    /// Results that the other stage does not have.
    pub unmatched: usize,
    /// The largest distance, in the measure of what is to be kept.
    pub error: f32,
    /// Rows of results whose largest number stands elsewhere.
    pub flips: usize,
    /// The first result that differs by more than it may.
    pub breach: Option<Breach>,
    /// The call that gave it, and its place among the results.
    #[serde(skip)]
    pub at: Option<(Call, usize)>,
}

/// How far `found` is from `expected`; nothing if they are not of one size.
pub fn distance(expected: &Tensor, found: &Tensor) -> Option<Distance> {
    let (a, b) = (numbers(&expected.data), numbers(&found.data));
    if a.len() != b.len() || squeezed(expected) != squeezed(found) {
        return None;
    }
    let mut d = Distance::default();
    let (mut scale, mut worst, mut square, mut whole) = (0f64, 0f64, 0f64, 0f64);
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        let off = if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() };
        let off = if off.is_nan() { f64::INFINITY } else { off };
        if off > worst {
            (worst, d.at) = (off, i);
        }
        if x.is_finite() {
            scale = scale.max(x.abs());
            whole += x * x;
        }
        square += off * off;
    }
    if matches!(found.data, Data::F32(_) | Data::F64(_)) {
        let over = |x: f64, by: f64| if x == 0.0 { 0.0 } else { (x / by.max(f64::MIN_POSITIVE)) as f32 };
        (d.largest, d.rms) = (over(worst, scale), over(libm::sqrt(square), libm::sqrt(whole)));
        let width = expected.shape.last().copied().unwrap_or(1).max(1);
        d.flips = a.chunks(width).zip(b.chunks(width)).filter(|(a, b)| largest(a) != largest(b)).count();
    } else {
        d.flips = a.iter().zip(&b).filter(|(x, y)| x != y).count();
        d.largest = if d.flips > 0 { 1.0 } else { 0.0 };
    }
    Some(d)
}

impl Distance {
    /// The measure that decides.
    pub fn error(&self, keeps: Keeps) -> f32 {
        if let Keeps::Format(_) = keeps { self.rms } else { self.largest }
    }

    /// Whether it is no more than may be.
    pub fn within(&self, keeps: Keeps) -> bool {
        self.error(keeps) <= limit(keeps)
    }
}

/// The largest error that is allowed.
pub fn limit(keeps: Keeps) -> f32 {
    match keeps {
        Keeps::Bits => 0.0,
        Keeps::Rounding => ROUNDING,
        Keeps::Format(loss) => loss,
    }
}

/// Compares all results of a run with those of the stage before it.
pub fn results(before: &Run, after: &Run, module: &Module, keeps: Keeps) -> Comparison {
    let mut all = Comparison::default();
    for (call, results) in &after.results {
        for (i, found) in results.iter().enumerate() {
            let expected = before.results.get(call).and_then(|r| r.get(i)).map(|t| (**t).clone());
            let expected = expected.or_else(|| of_logits(before, call, i, (module, after)));
            let distance = expected.as_ref().and_then(|e| Some((e, distance(e, found)?)));
            let Some((expected, distance)) = distance else {
                all.unmatched += 1;
                continue;
            };
            all.compared += 1;
            all.error = all.error.max(distance.error(keeps));
            all.flips += distance.flips;
            if !distance.within(keeps) && all.breach.is_none() {
                all.breach = Some(breach(&format!("result {i} of @{}", at(call)), expected, found, distance));
                all.at = Some((call.clone(), i));
            }
        }
    }
    all
}

fn at(call: &Call) -> String {
    format!("{} for {} rows", call.role, call.rows)
}

fn breach(value: &str, expected: &Tensor, found: &Tensor, d: Distance) -> Breach {
    let width = expected.shape.last().copied().unwrap_or(1).max(1);
    let number = |t: &Tensor| numbers(&t.data).get(d.at).copied().unwrap_or(f64::NAN);
    Breach {
        value: value.to_owned(),
        at: [d.at / width, d.at % width],
        expected: number(expected),
        found: number(found),
    }
}

/// What a head or logits entry must say where the stage before it gives logits from the step itself, and a second step where
/// that takes both halves of a sequence at once.
fn of_logits(before: &Run, call: &Call, result: usize, (module, after): (&Module, &Run)) -> Option<Tensor> {
    let step = Call { role: "step".into(), rows: call.step, ..call.clone() };
    let whole = Call { rows: 2 * call.step, step: 2 * call.step, turn: 0, ..step.clone() };
    let (logits, first) = match before.results.get(&step) {
        Some(results) if *call != step => (results.first()?, 0),
        None if call.turn == 1 && before.unit.is_some_and(|unit| call.step.is_multiple_of(unit)) => {
            (before.results.get(&whole)?.first()?, call.step)
        }
        _ => return None,
    };
    let columns = *logits.shape.last()?;
    let all = logits.floats().ok()?.get(first * columns..)?;
    let round = (0..call.rows).flat_map(|r| &all[r % call.step * columns..][..columns]).copied().collect();
    let logits = Tensor::f32(&[call.rows, columns], round);
    match call.role.as_str() {
        "step" | "logits" => Some(logits).filter(|_| result == 0),
        "head" if after.hosted => Some(logits),
        "head" if columns <= MAX_COLUMNS => {
            let nodes = module.graphs.iter().filter(|g| role(g).0 == "head").flat_map(|g| &g.nodes);
            let ban =
                nodes.into_iter().find_map(|n| if let Op::HeadStats { ban, .. } = n.op { Some(ban) } else { None })?;
            let mut identity = vec![0.0; columns * columns];
            identity.iter_mut().step_by(columns + 1).for_each(|d| *d = 1.0);
            let identity = Tensor::f32(&[columns, columns], identity);
            compute(&Op::HeadStats { norm: None, ban }, &[&logits, &identity]).ok()?.into_iter().nth(result)
        }
        _ => None,
    }
}

/// The largest distance of a value from the one that has its name in the stage before.
pub fn largest_error(before: &Run, after: &Run, keeps: Keeps) -> f32 {
    let errors = after.values.iter().filter_map(|v| Some(distance(&*before.named(v)?, &v.tensor)?.error(keeps)));
    errors.fold(0.0, f32::max)
}

/// The first value, in the order of execution, that has the name of a value of the stage before it and is not what that is.
pub fn first_value(before: &Run, after: &Run, keeps: Keeps) -> Option<(Seen, Breach)> {
    after.values.iter().find_map(|seen| {
        let expected = before.named(seen)?;
        let d = distance(&expected, &seen.tensor).filter(|d| !d.within(keeps))?;
        Some((seen.clone(), breach(&format!("%{} of @{}", seen.name, at(&seen.call)), &expected, &seen.tensor, d)))
    })
}

/// The value that a result is.
pub fn result(after: (&Module, &Run), at: Option<&(Call, usize)>) -> Option<Seen> {
    let (call, i) = at?;
    let graph = graph_of(after.0, call)?;
    let name = &graph.values[*graph.results.get(*i)?].name;
    after.1.values.iter().find(|v| v.call == *call && v.name == *name).cloned()
}

/// What lies between a value that differs and those before it that agree.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Between {
    /// Nodes of the stage before, in the order of execution.
    pub before: Vec<String>,
    /// Nodes of the stage after; the last one computes the value.
    pub after: Vec<String>,
    /// Weights that these read, which are the checkpoint's tensors or made of them.
    pub sources: Vec<String>,
}

/// See [`Between`].
///
/// # Errors
/// The value is in no graph.
pub fn between(before: (&Module, &Run), after: (&Module, &Run), bad: &Seen, keeps: Keeps) -> Result<Between, Error> {
    let agrees = |name: &str| {
        let seen = after.1.values.iter().find(|v| v.name == name && v.call == bad.call);
        let Some(seen) = seen else { return Agrees::No };
        match before.1.named(seen).and_then(|e| distance(&e, &seen.tensor)) {
            Some(d) if d.within(keeps) => Agrees::Value,
            None if in_any_order(before.1, seen, keeps) => Agrees::Numbers,
            _ => Agrees::No,
        }
    };
    let missing = || Error::new(format!("%{}", bad.name), "is in no graph");
    let graph = graph_of(after.0, &bad.call).ok_or_else(missing)?;
    let found = cone(graph, &bad.name, &agrees);
    // What a step keeps for a head is written by a node of the step.
    let step = Call { role: "step".into(), rows: bad.call.step, ..bad.call.clone() };
    let text = |module: &Module, graph: &Graph, nodes: &BTreeSet<usize>| -> Vec<String> {
        let states: BTreeSet<&Operand> =
            nodes.iter().flat_map(|i| &graph.nodes[*i].inputs).filter(|i| i.state().is_some()).collect();
        let writes = |node: &&Node| node.op.has_effect() && node.inputs.iter().any(|i| states.contains(i));
        let step = graph_of(module, &step).filter(|step| step.name != graph.name);
        let written = step.into_iter().flat_map(|s| s.nodes.iter().filter(writes).map(|n| module.node_text(s, n)));
        written.chain(nodes.iter().map(|i| module.node_text(graph, &graph.nodes[*i]))).collect()
    };
    let mut out = Between { after: text(after.0, graph, &found), ..Between::default() };
    let weights = found.iter().flat_map(|i| &graph.nodes[*i].inputs).filter_map(|i| i.weight());
    let sources: BTreeSet<String> = weights.flat_map(|w| sources(after.0, w)).collect();
    out.sources = sources.into_iter().collect();
    // A node may have moved to another graph.
    let old = before.0.graphs.iter().find(|g| role(g).0 == bad.call.role && g.values.find(&bad.name).is_some());
    if let Some(old) = old.or_else(|| before.0.graphs.iter().find(|g| g.values.find(&bad.name).is_some())) {
        out.before = text(before.0, old, &cone(old, &bad.name, &agrees));
    }
    Ok(out)
}

/// The graph that a call ran.
pub fn graph_of<'m>(module: &'m Module, call: &Call) -> Option<&'m Graph> {
    let fits = |g: &&Graph| role(g).0 == call.role && role(g).1.is_none_or(|size| size == call.rows);
    module.graphs.iter().find(fits)
}

/// Names of the source tensors that a weight is made of.
pub fn sources(module: &Module, weight: dlx_ir::WeightId) -> Vec<String> {
    match &module.weights[weight].def {
        dlx_ir::WeightDef::Expr(_, inputs) => inputs.iter().flat_map(|i| sources(module, *i)).collect(),
        _ => vec![module.weights[weight].name.clone()],
    }
}

/// Whether a value is one of the stage before.
#[derive(Clone, Copy, PartialEq)]
enum Agrees {
    /// It is that of its name.
    Value,
    /// Its name did not survive, or it lies in another way: some value has the same numbers in some order.
    Numbers,
    /// It is none.
    No,
}

/// Whether some value of the same call of the stage before has these numbers, in any order.
fn in_any_order(before: &Run, seen: &Seen, keeps: Keeps) -> bool {
    let sorted = |t: &Tensor| {
        let mut all = numbers(&t.data);
        all.sort_by(f64::total_cmp);
        Tensor::f32(&[all.len()], all.iter().map(|n| *n as f32).collect())
    };
    let found = sorted(&seen.tensor);
    let same = before.values.iter().filter(|v| v.call == seen.call && numbers(&v.tensor.data).len() == found.shape[0]);
    same.into_iter().any(|v| distance(&sorted(&v.tensor), &found).is_some_and(|d| d.within(keeps)))
}

/// Nodes that a value is computed by, back to values that agree; with those that write the states which they read. What agrees
/// up to the order of its numbers may have been put into a wrong one, so its node is among them.
fn cone(graph: &Graph, value: &str, agrees: &dyn Fn(&str) -> Agrees) -> BTreeSet<usize> {
    let defs = graph.definitions();
    let mut nodes = BTreeSet::new();
    let mut open: Vec<ValueId> = graph.values.find(value).into_iter().collect();
    while let Some(v) = open.pop() {
        let Some(i) = defs[dlx_ir::Id::index(v)].filter(|i| nodes.insert(*i)) else { continue };
        let reads = |node: &Node| node.inputs.iter().filter_map(|i| i.value()).collect::<Vec<_>>();
        let mut inputs = reads(&graph.nodes[i]);
        let states: BTreeSet<Operand> = graph.nodes[i].inputs.iter().filter(|i| i.state().is_some()).copied().collect();
        for (w, writer) in graph.nodes[..i].iter().enumerate() {
            if writer.op.has_effect() && writer.inputs.iter().any(|i| states.contains(i)) && nodes.insert(w) {
                inputs.extend(reads(writer));
            }
        }
        for input in inputs {
            match agrees(&graph.values[input].name) {
                Agrees::No => open.push(input),
                Agrees::Numbers => nodes.extend(defs[dlx_ir::Id::index(input)]),
                Agrees::Value => {}
            }
        }
    }
    nodes
}

fn numbers(data: &Data) -> Vec<f64> {
    match data {
        Data::F64(x) => x.clone(),
        Data::F32(x) => x.iter().map(|v| f64::from(*v)).collect(),
        Data::I32(x) => x.iter().map(|v| f64::from(*v)).collect(),
        Data::I64(x) => x.iter().map(|v| *v as f64).collect(),
        Data::Bool(x) => x.iter().map(|v| f64::from(u8::from(*v))).collect(),
    }
}

fn squeezed(tensor: &Tensor) -> Vec<usize> {
    tensor.shape.iter().copied().filter(|d| *d != 1).collect()
}

fn largest(row: &[f64]) -> usize {
    row.iter().enumerate().fold((0, f64::NEG_INFINITY), |m, (i, v)| if *v > m.1 { (i, *v) } else { m }).0
}
