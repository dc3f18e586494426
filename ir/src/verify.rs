//! The verifier. Its list of invariants is the specification of the IR:
//!
//! * weights, states and graphs have unique names within the module, values within their graph;
//! * every dimension is positive; sizes do not overflow;
//! * a weight expression reads only earlier weights, its op has one result, touches no state, and its written type is
//!   the inferred one; a stored weight has a layout or a plain type of exactly its bytes;
//! * a literal weight has a plain float or i32 type, at most [`MAX_LITERAL`](crate::MAX_LITERAL) elements, and numbers
//!   that the type holds;
//! * shards of a packed weight are a multiple of 16 rows;
//! * states have static shapes and float elements, caches also q8;
//! * values are row-major and not quantized;
//! * every value is a parameter or the result of exactly one node, and is defined before it is read;
//! * every node's written result types are the inferred ones;
//! * arena slots: all values of a graph have one or none has; slots are 64-byte aligned; values that are live at the
//!   same time do not overlap, except where an op may alias an operand that dies there ([`Op::may_alias`]).
//!
//! Not checked: that a state is written before it is read, and that stored offsets lie in the weight section (the
//! artifact reader does).

use crate::arena::{Id, ValueId};
use crate::error::Error;
use crate::infer::{Arg, ArgKind, SHARD_ROWS, infer};
use crate::module::{Graph, Module, Node, Operand, WeightDef};
use crate::op::Op;
use crate::plan::SLOT_ALIGN;
use crate::types::{Dim, Type};
use std::collections::BTreeSet;
use std::ops::Deref;

/// A module that passed the verifier and has not changed since. Passes start and end with one; emission, plans and
/// executors demand one.
#[derive(Clone, Debug)]
pub struct VerifiedModule(Module);

impl VerifiedModule {
    /// Verifies a module and keeps it.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn new(module: Module) -> Result<Self, Vec<Error>> {
        verify(&module).map(|()| VerifiedModule(module))
    }

    /// The module, to be changed and verified again.
    pub fn into_inner(self) -> Module {
        self.0
    }
}

impl Deref for VerifiedModule {
    type Target = Module;

    fn deref(&self) -> &Module {
        &self.0
    }
}

/// Checks every invariant and collects all violations.
///
/// # Errors
/// One error per violation; each names the graph and the node's text.
pub fn verify(module: &Module) -> Result<(), Vec<Error>> {
    let mut v = Verifier { module, errors: Vec::new() };
    v.globals();
    for graph in &module.graphs {
        v.graph(graph);
    }
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

struct Verifier<'m> {
    module: &'m Module,
    errors: Vec<Error>,
}

impl<'m> Verifier<'m> {
    fn report(&mut self, place: impl std::fmt::Display, message: impl Into<String>) {
        self.errors.push(Error::new(place, message));
    }

    fn unique<'a>(&mut self, names: impl Iterator<Item = &'a str>, sigil: char, place: &str) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.report(place, format!("{sigil}{name} is defined twice"));
            }
        }
    }

    fn well_formed(&mut self, ty: &Type, place: &str) {
        if ty.dims.contains(&Dim::Fixed(0)) {
            self.report(place, format!("{ty} has an empty dimension"));
        }
        let fixed = ty.dims.iter().filter_map(Dim::fixed);
        if fixed.clone().try_fold(8usize, usize::checked_mul).is_none() {
            self.report(place, format!("the size of {ty} overflows"));
        }
    }

    fn globals(&mut self) {
        let m = self.module;
        let names = m.weights.iter().map(|(_, w)| w.name.as_str()).chain(m.states.iter().map(|(_, s)| s.name.as_str()));
        self.unique(names, '@', "module");
        self.unique(m.graphs.iter().map(|g| g.name.as_str()), '@', "module");
        for (id, w) in m.weights.iter() {
            let text = m.weight_text(w);
            self.well_formed(&w.ty, &text);
            if w.ty.shape().is_none() {
                self.report(&text, "a weight needs static dimensions");
            }
            match &w.def {
                WeightDef::Source => {
                    if w.ty.layout.is_some() {
                        self.report(&text, "a source weight cannot have a layout");
                    }
                }
                WeightDef::Literal(literal) => {
                    if let Err(e) = literal.check(&w.ty) {
                        self.report(&text, e);
                    }
                }
                WeightDef::Stored { bytes, shard, .. } => {
                    if shard.is_some_and(|rows| w.ty.layout.is_none() || rows == 0 || rows % SHARD_ROWS != 0) {
                        self.report(&text, format!("a shard has a multiple of {SHARD_ROWS} rows of a packed weight"));
                    }
                    if w.ty.layout.is_none() && w.ty.bytes().map(|b| b as u64) != Some(*bytes) {
                        self.report(&text, format!("{bytes} bytes do not fit the type"));
                    }
                }
                WeightDef::Expr(op, inputs) => {
                    if let Some(i) = inputs.iter().find(|i| **i >= id) {
                        self.report(&text, format!("@{} is not an earlier weight", m.weights[*i].name));
                        continue;
                    }
                    let args: Vec<_> = inputs.iter().map(|&i| arg(ArgKind::Weight, &m.weights[i].ty)).collect();
                    self.check_types(op, &args, &[&w.ty], &text);
                    if op.touches_state() {
                        self.report(&text, "a weight expression cannot touch states");
                    }
                }
            }
        }
        for (_, s) in m.states.iter() {
            let text = format!("state @{}: {}", s.name, s.ty);
            self.well_formed(&s.ty, &text);
            if s.ty.shape().is_none() || s.ty.dims.is_empty() || !s.ty.dtype.is_cache() {
                self.report(&text, "a state needs a float type, or q8 for a cache, with static dimensions");
            }
        }
    }

    fn check_types(&mut self, op: &Op, args: &[Arg<'_>], written: &[&Type], place: impl std::fmt::Display) {
        match infer(op, args) {
            Err(e) => self.report(place, e),
            Ok(inferred) if inferred.iter().ne(written.iter().copied()) => {
                let text: Vec<_> = inferred.iter().map(Type::to_string).collect();
                self.report(place, format!("the op gives ({}), not what is written", text.join(", ")));
            }
            Ok(_) => {}
        }
    }

    fn graph(&mut self, graph: &'m Graph) {
        let place = format!("graph @{}", graph.name);
        self.unique(graph.values.iter().map(|(_, v)| v.name.as_str()), '%', &place);
        for (_, v) in graph.values.iter() {
            let text = format!("{place}: %{}", v.name);
            self.well_formed(&v.ty, &text);
            if v.ty.layout.is_some() || v.ty.dtype.size().is_none() {
                self.report(text, format!("a value cannot be {}: only weights and caches are packed", v.ty));
            }
        }
        let mut defined = graph.values.side_table(false);
        for &p in &graph.params {
            if std::mem::replace(&mut defined[p], true) {
                self.report(&place, format!("parameter %{} is listed twice", graph.values[p].name));
            }
        }
        for node in &graph.nodes {
            self.node(graph, node, &mut defined);
        }
        for &r in &graph.results {
            if !defined[r] {
                self.report(&place, format!("%{} is returned but not defined", graph.values[r].name));
            }
        }
        if let Some((_, v)) = graph.values.iter().find(|(id, _)| !defined[*id]) {
            self.report(&place, format!("%{} is defined by no node", v.name));
        }
        self.slots(graph, &place);
    }

    fn node(&mut self, graph: &Graph, node: &Node, defined: &mut crate::arena::SideTable<ValueId, bool>) {
        let module = self.module;
        // Written only for a message: a sound module has many nodes and no messages.
        let text = std::fmt::from_fn(|f| write!(f, "graph @{}: {}", graph.name, module.node_text(graph, node)));
        for v in node.inputs.iter().filter_map(|i| i.value()) {
            if !defined[v] {
                self.report(&text, format!("%{} is read before it is defined", graph.values[v].name));
            }
        }
        for &out in &node.outputs {
            if std::mem::replace(&mut defined[out], true) {
                self.report(&text, format!("%{} is defined twice", graph.values[out].name));
            }
        }
        let args: Vec<_> = node.inputs.iter().map(|&i| arg(i.kind(), self.module.operand_type(graph, i))).collect();
        let written: Vec<_> = node.outputs.iter().map(|&o| &graph.values[o].ty).collect();
        self.check_types(&node.op, &args, &written, &text);
    }

    /// Walks the schedule backwards with the set of live values and checks that nothing overwrites one of them.
    fn slots(&mut self, graph: &Graph, place: &str) {
        if graph.values.iter().all(|(_, v)| v.slot.is_none()) {
            return;
        }
        let mut spans = graph.values.side_table((0, 0));
        for (id, v) in graph.values.iter() {
            let end = |slot: u64| Some((slot, slot.checked_add(v.ty.bytes()? as u64)?));
            match v.slot.filter(|s| s.is_multiple_of(SLOT_ALIGN)).and_then(end) {
                Some(span) => spans[id] = span,
                None => self
                    .report(place, format!("%{} has no aligned slot of static size, but others are planned", v.name)),
            }
        }
        let overlap = |a: ValueId, b: ValueId| spans[a].0 < spans[b].1 && spans[b].0 < spans[a].1;
        let mut clashes = BTreeSet::new();
        let mut live = Live::default();
        let results: BTreeSet<ValueId> = graph.results.iter().copied().collect();
        for r in results {
            clashes.extend(live.insert(r, spans[r]).map(|v| (v.min(r), v.max(r))));
        }
        for node in graph.nodes.iter().rev() {
            let reads: Vec<_> = node.inputs.iter().filter_map(|i| i.value()).collect();
            for out in &node.outputs {
                live.remove(*out, spans[*out]);
            }
            for (i, &out) in node.outputs.iter().enumerate() {
                let others = live.over(spans[out]).into_iter().chain(node.outputs[..i].iter().copied());
                clashes.extend(others.filter(|&v| overlap(v, out)).map(|v| (v, out)));
                let dying = reads.iter().copied().filter(|&v| overlap(v, out)).filter(|&v| {
                    let in_place =
                        i == 0 && may_take_over(graph, node, v) && spans[v] == spans[out] && !live.has(v, spans[v]);
                    !in_place
                });
                clashes.extend(dying.map(|v| (v, out)));
            }
            for v in reads {
                clashes.extend(live.insert(v, spans[v]).map(|other| (v.min(other), v.max(other))));
            }
        }
        let mut params: Vec<ValueId> = graph.params.clone();
        params.sort_unstable_by_key(|p| spans[*p]);
        clashes.extend(params.windows(2).filter(|w| overlap(w[0], w[1])).map(|w| (w[0].min(w[1]), w[0].max(w[1]))));
        for (a, b) in clashes {
            let (a, b) = (&graph.values[a].name, &graph.values[b].name);
            self.report(place, format!("%{a} and %{b} share bytes while both are live"));
        }
    }
}

/// Values that are live at one time, by place. They lie apart, or the graph has been found wrong.
#[derive(Default)]
struct Live(BTreeSet<(u64, u64, ValueId)>);

impl Live {
    /// Adds a value, unless it would lie on another one: that is returned.
    fn insert(&mut self, value: ValueId, span: (u64, u64)) -> Option<ValueId> {
        match self.over(span) {
            Some(other) if other != value => Some(other),
            _ => {
                self.0.insert((span.0, span.1, value));
                None
            }
        }
    }

    fn remove(&mut self, value: ValueId, span: (u64, u64)) {
        self.0.remove(&(span.0, span.1, value));
    }

    fn has(&self, value: ValueId, span: (u64, u64)) -> bool {
        self.0.contains(&(span.0, span.1, value))
    }

    /// A value that shares bytes with a place. What lies apart is sorted by its ends, too: only the last one that begins
    /// before the place ends can reach into it.
    fn over(&self, span: (u64, u64)) -> Option<ValueId> {
        let before = self.0.range(..(span.1, 0, ValueId::new(0))).next_back();
        before.filter(|(_, end, _)| *end > span.0).map(|(_, _, v)| *v)
    }
}

/// Whether result 0 of `node` may take over the bytes of `old`, which dies here. An operand that repeats is read again
/// after results have been written: only one of the result's type is done with as it is overwritten.
fn may_take_over(graph: &Graph, node: &Node, old: ValueId) -> bool {
    let operand = node.op.may_alias().and_then(|i| node.inputs.get(i));
    let reads = node.inputs.iter().filter(|i| **i == Operand::Value(old)).count();
    let alike = node.outputs.first().is_some_and(|out| graph.values[*out].ty == graph.values[old].ty);
    operand == Some(&Operand::Value(old)) && reads == 1 && alike
}

fn arg(kind: ArgKind, ty: &Type) -> Arg<'_> {
    Arg { kind, ty }
}
