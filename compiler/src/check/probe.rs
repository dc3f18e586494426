//! Runs a module, at any stage before its weights are packed into a file, on seeded inputs.
//!
//! Invariant: what a graph is given depends on the seed, the role of the graph, and the name and size of its parameters
//! alone, so that two stages of one model compute the same thing. A graph has one role at all stages: `@forward`, `@step`
//! and `@step_4` are all the step; `@head_4` is `@head` for four rows.
//!
//! A step is called twice where caches exist and hold it: on rows from the first one on, and on those that follow. After
//! each step every head runs, on rows that go round. A graph that is not fed by a step finds states full of seeded numbers.
//!
//! A run may go along another one: whatever a node computes, those that read it get the value of that name from the other
//! run. What a format loses then shows at each node by itself, and does not add up from layer to layer.

use std::collections::BTreeSet;
use std::rc::Rc;

use dlx_ir::{
    Data, Dim, Error, Evaluator, Graph, MAX_SPANS, Module, Op, Operand, SPAN_FIELDS, Source, SpanRows, Tensor, Type,
    ValueId, spans_type,
};

use super::call::{Call, Run, Seen, Sizes, WHOLE, has_caches, outside, role, room};
use super::host::{Host, Kept};
use crate::synth::numbers::{hash, mix};

/// What a module is run on.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Seed of all inputs.
    pub seed: u64,
    /// Most rows of calls whose size no stage fixes.
    pub rows: usize,
    /// Rows in whose multiples a sequence may be cut, if it may.
    pub unit: Option<usize>,
    /// Tokens to feed, instead of seeded ones.
    pub ids: Vec<i32>,
}

impl Probe {
    /// Tokens of the sequence that all steps of a run are fed, however it is cut.
    fn tokens(&self, vocab: usize, rows: std::ops::Range<usize>) -> Vec<i32> {
        let key = mix(self.seed ^ hash("ids"));
        let seeded = |i: usize| (mix(key.wrapping_add(i as u64 ^ 0x9e37_79b9_7f4a_7c15)) % vocab.max(1) as u64) as i32;
        let given = |i: usize| self.ids.get(i.checked_rem(self.ids.len())?).copied();
        rows.map(|i| given(i).unwrap_or_else(|| seeded(i))).collect()
    }

    /// Runs every graph of a module, those with named dimensions at each of the `sizes` of their role; `along` another run,
    /// if one is given. Steps whose caches are outside are given what the `host` gives, or seeded numbers where there is none.
    ///
    /// # Errors
    /// What the evaluator says of a node or a weight.
    pub fn run(
        &self,
        module: &Module,
        source: &dyn Source,
        sizes: &Sizes,
        host: Option<&Host<'_>>,
        along: Option<&Run>,
    ) -> Result<Run, Error> {
        let stepped = module.graphs.iter().any(|g| role(g).0 == "step");
        let filled;
        let module = if stepped {
            module
        } else {
            filled = with_fill(module)?;
            &filled
        };
        let evaluator = Evaluator::new(module, source, 1);
        let (kept, run) = (Kept::default(), Run { unit: self.unit, ..Run::default() });
        let mut runner = Runner { probe: self, module, evaluator, host, along, kept, run };
        if !stepped {
            runner.fill()?;
        }
        let calls = |graph: &Graph| -> Vec<usize> {
            match (role(graph), sizes.get(role(graph).0)) {
                ((_, Some(size)), _) => vec![size],
                ((role, None), Some(of_role)) => {
                    let whole = sizes.get(WHOLE).filter(|_| role == "step" && !has_caches(graph));
                    let all: BTreeSet<usize> = of_role.iter().chain(whole.into_iter().flatten()).copied().collect();
                    all.into_iter().filter(|rows| *rows <= room(module)).collect()
                }
                ((_, None), None) => Vec::new(),
            }
        };
        let (steps, others): (Vec<&Graph>, Vec<&Graph>) = module.graphs.iter().partition(|g| role(g).0 == "step");
        let others: Vec<&Graph> = others.into_iter().filter(|g| g.name != FILL).collect();
        for graph in &steps {
            for rows in calls(graph) {
                let follows = match outside(graph) {
                    Some(room) => room >= 2 * rows && host.is_some(),
                    None => has_caches(graph) && runner.room() >= 2 * rows,
                };
                for turn in 0..if follows { 2 } else { 1 } {
                    runner.call(graph, rows, rows, turn)?;
                    for head in &others {
                        for size in calls(head) {
                            runner.call(head, size, rows, turn)?;
                        }
                    }
                }
            }
        }
        if steps.is_empty() {
            for graph in others {
                for rows in calls(graph) {
                    runner.call(graph, rows, rows, 0)?;
                }
            }
        }
        Ok(runner.run)
    }
}

/// Name of the graph that fills states.
const FILL: &str = "fill states";

/// The module with a graph that writes what it is given to every state.
fn with_fill(module: &Module) -> Result<Module, Error> {
    let mut module = module.clone();
    let mut graph = Graph::new(FILL);
    let spans = Operand::Value(graph.param("spans", spans_type()));
    let caches: BTreeSet<_> = module.graphs.iter().flat_map(|g| &g.nodes).filter_map(caches_of).collect();
    for (keys, values) in caches {
        let mut whole = |state: dlx_ir::StateId| {
            let State3 { rows, features } = State3::of(&module.states[state].ty)?;
            Some(Operand::Value(
                graph.param(&module.states[state].name, Type::new(dlx_ir::DType::F32, [rows, features])),
            ))
        };
        let (Some(k), Some(v)) = (whole(keys), whole(values)) else { continue };
        let inputs = vec![k, v, Operand::State(keys), Operand::State(values), spans];
        graph.emit(&module, Op::KvWrite {}, inputs, &[])?;
    }
    let flat: Vec<_> = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 2 && s.ty.shape().is_some()).collect();
    for (id, state) in flat {
        let x = Operand::Value(graph.param(&state.name, Type { dtype: dlx_ir::DType::F32, ..state.ty.clone() }));
        graph.emit(&module, Op::StoreRows {}, vec![x, Operand::State(id)], &[])?;
    }
    module.graphs.push(graph);
    Ok(module)
}

/// The caches that a node reads or writes.
fn caches_of(node: &dlx_ir::Node) -> Option<(dlx_ir::StateId, dlx_ir::StateId)> {
    let at = match node.op {
        Op::CachedAttention { .. } => 1,
        Op::KvWrite {} => 2,
        _ => return None,
    };
    Some((node.inputs.get(at)?.state()?, node.inputs.get(at + 1)?.state()?))
}

/// Rows of a cache, and features of each.
struct State3 {
    rows: usize,
    features: usize,
}

impl State3 {
    fn of(ty: &Type) -> Option<Self> {
        let shape = ty.shape()?;
        let &[rows, heads, dim] = &shape[..] else { return None };
        Some(State3 { rows, features: heads * dim })
    }
}

struct Runner<'m> {
    probe: &'m Probe,
    module: &'m Module,
    evaluator: Evaluator<'m>,
    host: Option<&'m Host<'m>>,
    along: Option<&'m Run>,
    kept: Kept,
    run: Run,
}

impl Runner<'_> {
    /// Rows that the smallest cache holds.
    fn room(&self) -> usize {
        self.module.states.iter().filter_map(|(_, s)| State3::of(&s.ty)).map(|s| s.rows).min().unwrap_or(0)
    }

    fn fill(&mut self) -> Result<(), Error> {
        let rows = self.room();
        let call = Call { role: FILL.into(), rows, step: rows, turn: 0 };
        let graph = self.module.graph(FILL).expect("it was added");
        let args = graph
            .params
            .iter()
            .map(|p| argument(self.probe, self.module, graph, *p, &call))
            .collect::<Result<Vec<_>, _>>()?;
        self.evaluator.run(FILL, &args, &mut |_, _| {}).map(drop)
    }

    fn call(&mut self, graph: &Graph, rows: usize, step: usize, turn: usize) -> Result<(), Error> {
        let call = Call { role: role(graph).0.to_owned(), rows, step, turn };
        let mut args = Vec::new();
        for p in &graph.params {
            let hosted = match self.host {
                Some(host) => {
                    let ids = self.probe.tokens(host.vocab(), turn * rows..(turn + 1) * rows);
                    host.argument(graph, *p, &call, &ids, &self.kept)?
                }
                None => None,
            };
            args.push(match hosted {
                Some(tensor) => tensor,
                None => argument(self.probe, self.module, graph, *p, &call)?,
            });
        }
        let (values, along) = (&mut self.run.values, self.along);
        let results = self.evaluator.run(&graph.name, &args, &mut |name, tensor| {
            let seen = Seen { call: call.clone(), name: name.to_owned(), tensor: Rc::new(tensor.clone()) };
            let given = along.and_then(|run| run.named(&seen));
            if let Some(given) = given.filter(|t| (t.dtype, &t.shape) == (tensor.dtype, &tensor.shape)) {
                tensor.clone_from(&given);
            }
            values.push(seen);
        })?;
        let outside = outside(graph).is_some();
        if outside {
            self.run.hosted = self.host.is_some();
            self.kept.take(graph, &call, &results);
        }
        // What the graph computed itself, not what stood in its place.
        let own = |v: &ValueId| values.iter().rev().find(|s| s.call == call && s.name == graph.values[*v].name);
        let results = graph.results.iter().zip(results);
        let results = results.map(|(v, given)| own(v).map_or_else(|| Rc::new(given), |seen| seen.tensor.clone()));
        let results = results.collect();
        let mut call = call;
        if outside {
            // Hidden rows, keys and values: not what other steps give.
            call.role.push_str(OUTSIDE);
        }
        self.run.results.insert(call, results);
        Ok(())
    }
}

/// What is added to the role of a step whose caches are outside, where its results stand.
const OUTSIDE: &str = " with caches outside";

/// What a parameter is given in a call.
///
/// # Errors
/// Its type is one of which no inputs are made.
pub fn argument(probe: &Probe, module: &Module, graph: &Graph, param: ValueId, call: &Call) -> Result<Tensor, Error> {
    let value = &graph.values[param];
    let size = |d: &Dim| d.fixed().unwrap_or(call.rows);
    let shape: Vec<usize> = value.ty.dims.iter().map(size).collect();
    if value.ty == spans_type() {
        return Ok(spans(call));
    }
    let (at, len) = (call.turn * call.rows, shape.iter().product::<usize>());
    let key = mix(probe.seed ^ mix(hash(&call.role) ^ hash(&value.name).rotate_left(1) ^ call.turn as u64));
    let bits = |i: usize| mix(key.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let used = use_of(module, graph, param);
    let tokens = match used {
        Use::Token(vocab) if call.role == "step" => probe.tokens(vocab, at..at + len),
        _ => Vec::new(),
    };
    let whole = |i: usize| match used {
        Use::Position => (at + i) as i64,
        Use::Token(_) if i < tokens.len() => i64::from(tokens[i]),
        Use::Row => (i % call.step.max(1)) as i64,
        Use::Token(n) | Use::Index(n) => (bits(i) % n.max(1) as u64) as i64,
    };
    let dtype = value.ty.dtype;
    let data = match dtype {
        dlx_ir::DType::F64 => Data::F64((0..len).map(|i| f64::from(normal(bits(i)))).collect()),
        dlx_ir::DType::Bool => Data::Bool((0..len).map(|i| !bits(i).is_multiple_of(4)).collect()),
        dlx_ir::DType::I32 => Data::I32((0..len).map(|i| whole(i) as i32).collect()),
        _ if dtype.is_int() => Data::I64((0..len).map(whole).collect()),
        _ if dtype.is_float() || dtype.is_small_float() => {
            Data::F32((0..len).map(|i| dtype.round(normal(bits(i)))).collect())
        }
        _ => return Err(Error::new(format!("%{}", value.name), format!("no input of type {dtype} can be made"))),
    };
    Ok(Tensor { dtype, shape, data })
}

/// One span of all rows of a call.
fn spans(call: &Call) -> Tensor {
    let at = call.turn * call.rows;
    let span = SpanRows { rows: 0..call.rows, slot: 0, at, from: 0, visible: at + call.rows };
    let mut table: Vec<i32> = span.fields().into_iter().map(|n| n as i32).collect();
    table.resize(MAX_SPANS * SPAN_FIELDS, 0);
    Tensor::i32(&[MAX_SPANS, SPAN_FIELDS], table)
}

/// What the integers of a parameter are.
enum Use {
    /// Counted from the first row on.
    Position,
    /// Rows of the step before.
    Row,
    /// Of a vocabulary of that many.
    Token(usize),
    /// Below a number.
    Index(usize),
}

/// Told by the nodes that read it, through those that only move it.
fn use_of(module: &Module, graph: &Graph, param: ValueId) -> Use {
    let mut same = BTreeSet::from([param]);
    for node in &graph.nodes {
        let Some(at) = node.inputs.iter().position(|i| i.value().is_some_and(|v| same.contains(&v))) else { continue };
        let size = |operand: usize, axis: i64| {
            let ty = module.operand_type(graph, node.inputs[operand]);
            let axis = if axis < 0 { axis + ty.dims.len() as i64 } else { axis };
            usize::try_from(axis).ok().and_then(|a| ty.dims.get(a)?.fixed()).unwrap_or(1)
        };
        match &node.op {
            Op::RopeTable { .. } => return Use::Position,
            Op::TakeRows {} => return Use::Row,
            Op::Embed {} => return Use::Token(size(1, 0)),
            // Of rows of a table.
            Op::Gather { axis: 0 } if at == 1 && node.inputs[0].weight().is_some() => return Use::Token(size(0, 0)),
            Op::Gather { axis } | Op::GatherElements { axis } | Op::Scatter { axis, .. } if at == 1 => {
                return Use::Index(size(0, *axis));
            }
            Op::Cast { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Expand { .. } => {
                same.extend(node.outputs.iter().copied());
            }
            _ => {}
        }
    }
    Use::Index(2)
}

/// Of a bell-shaped distribution of standard deviation 1, about.
pub(super) fn normal(bits: u64) -> f32 {
    let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
    // Standard deviation of the sum of four: 65536 / sqrt(3).
    (sum as f32 - 131_070.0) / 37_837.2
}
