//! Modules: weights, states and straight-line graphs.
//!
//! Invariant: the node list is the schedule. A graph is executed from top to bottom; there are no use-lists.

use crate::arena::{Arena, Id, Named, StateId, ValueId, WeightId};
use crate::error::Error;
use crate::eval::Data;
use crate::infer::{Arg, ArgKind, infer};
use crate::op::Op;
use crate::origin::Origin;
use crate::types::Type;

/// A model: weights and states shared by a few graphs (entries).
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Module {
    /// Name without the `@`.
    pub name: String,
    /// Weights, each defined by earlier ones, by a source tensor of the same name, or by its numbers.
    pub weights: Arena<WeightId, Weight>,
    /// State buffers that live as long as a session, such as KV caches.
    pub states: Arena<StateId, State>,
    /// Entries.
    pub graphs: Vec<Graph>,
}

/// A weight is an expression, not bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// Name without the `@`; source weights carry the checkpoint's tensor name.
    pub name: String,
    /// Type, always written.
    pub ty: Type,
    /// What makes it.
    pub def: WeightDef,
    /// What it was called where it comes from, if somebody said.
    pub origin: Origin,
}

/// What makes a weight.
#[derive(Clone, PartialEq, Debug)]
pub enum WeightDef {
    /// The tensor of that name in the checkpoint.
    Source,
    /// These numbers.
    Literal(Data),
    /// An op over earlier weights, computed when the artifact is emitted.
    Expr(Op, Vec<WeightId>),
    /// Bytes in the artifact's weight section.
    Stored {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
        /// Rows that a device reads as one piece, if not all.
        shard: Option<u32>,
    },
}

/// A named buffer that lives as long as a session.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// Name without the `@`.
    pub name: String,
    /// Type; the first dimension is rows.
    pub ty: Type,
}

/// A straight-line list of nodes in execution order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    /// Name without the `@`.
    pub name: String,
    /// Parameters.
    pub params: Vec<ValueId>,
    /// All values: parameters and node results.
    pub values: Arena<ValueId, Value>,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Returned values.
    pub results: Vec<ValueId>,
}

/// A value of a graph.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    /// Name without the `%`, unique in its graph.
    pub name: String,
    /// Type, always written.
    pub ty: Type,
    /// Byte offset in the executor's arena, once planned.
    pub slot: Option<u64>,
}

/// One operation.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<Operand>,
    /// Results, defined here.
    pub outputs: Vec<ValueId>,
    /// What it was called where it comes from, if somebody said.
    pub origin: Origin,
}

/// What a node reads (or, for a state, writes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operand {
    /// A value of the same graph.
    Value(ValueId),
    /// A weight.
    Weight(WeightId),
    /// A state.
    State(StateId),
}

impl Module {
    /// An empty module.
    pub fn new(name: impl Into<String>) -> Self {
        Module { name: name.into(), ..Module::default() }
    }

    /// Adds a weight under `name`, or under a numbered name when that is taken. An expression comes from what its inputs
    /// come from.
    pub fn add_weight(&mut self, name: &str, ty: Type, def: WeightDef) -> WeightId {
        let mut weight = Weight::new(self.fresh_global(name), ty, def);
        if let WeightDef::Expr(_, inputs) = &weight.def {
            inputs.iter().for_each(|i| weight.origin.join(&self.weights[*i].origin));
        }
        self.weights.push(weight)
    }

    /// Adds a state under `name`, or under a numbered name when that is taken.
    pub fn add_state(&mut self, name: &str, ty: Type) -> StateId {
        let name = self.fresh_global(name);
        self.states.push(State { name, ty })
    }

    /// A name that neither a weight nor a state has.
    fn fresh_global(&mut self, wanted: &str) -> String {
        self.weights.fresh_name(wanted, |n| self.states.find(n).is_some())
    }

    /// The weight of that name.
    pub fn weight(&self, name: &str) -> Option<WeightId> {
        self.weights.find(name)
    }

    /// The graph of that name.
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.graphs.iter().find(|g| g.name == name)
    }

    /// Type of an operand in `graph`.
    pub fn operand_type<'a>(&'a self, graph: &'a Graph, operand: Operand) -> &'a Type {
        match operand {
            Operand::Value(v) => &graph.values[v].ty,
            Operand::Weight(w) => &self.weights[w].ty,
            Operand::State(s) => &self.states[s].ty,
        }
    }
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds a parameter.
    pub fn param(&mut self, name: &str, ty: Type) -> ValueId {
        let id = self.value(name, ty);
        self.params.push(id);
        id
    }

    /// Adds a value that a node will define, under `name` or a numbered variant of it.
    pub fn value(&mut self, name: &str, ty: Type) -> ValueId {
        let name = self.values.fresh_name(name, |_| false);
        self.values.push(Value { name, ty, slot: None })
    }

    /// Appends a node; the results get inferred types and, in order, these names.
    ///
    /// # Errors
    /// The op does not fit its operands.
    pub fn emit(
        &mut self,
        module: &Module,
        op: Op,
        inputs: Vec<Operand>,
        names: &[&str],
    ) -> Result<Vec<ValueId>, Error> {
        let args: Vec<_> = inputs.iter().map(|&i| Arg { kind: i.kind(), ty: module.operand_type(self, i) }).collect();
        let types = infer(&op, &args).map_err(|e| {
            let operands: Vec<_> = inputs.iter().map(|&i| module.operand_text(self, i)).collect();
            Error::new(format!("graph @{}: {} {}", self.name, op.name(), operands.join(", ")), e)
        })?;
        let names = names.iter().copied().chain(std::iter::repeat("v"));
        let outputs: Vec<_> = types.into_iter().zip(names).map(|(ty, name)| self.value(name, ty)).collect();
        self.nodes.push(Node::new(op, inputs, outputs.clone()));
        Ok(outputs)
    }

    /// Bytes of arena that the planned graph needs; 0 before planning.
    pub fn arena_bytes(&self) -> u64 {
        let end = |v: &Value| Some(v.slot? + v.ty.bytes()? as u64);
        self.values.iter().filter_map(|(_, v)| end(v)).max().unwrap_or(0)
    }

    /// Index of the node that defines each value; parameters have none.
    pub fn definitions(&self) -> Vec<Option<usize>> {
        let mut defs = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for out in &node.outputs {
                defs[out.index()] = Some(i);
            }
        }
        defs
    }

    /// How often each value is read by nodes or returned.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        let reads = self.nodes.iter().flat_map(|n| &n.inputs).filter_map(|i| i.value());
        for v in reads.chain(self.results.iter().copied()) {
            uses[v.index()] += 1;
        }
        uses
    }
}

impl Weight {
    /// A weight of which nobody says where it comes from.
    pub fn new(name: impl Into<String>, ty: Type, def: WeightDef) -> Self {
        Weight { name: name.into(), ty, def, origin: Origin::default() }
    }
}

impl Node {
    /// A node of which nobody says where it comes from.
    pub fn new(op: Op, inputs: Vec<Operand>, outputs: Vec<ValueId>) -> Self {
        Node { op, inputs, outputs, origin: Origin::default() }
    }
}

impl From<ValueId> for Operand {
    fn from(v: ValueId) -> Self {
        Operand::Value(v)
    }
}

impl Operand {
    /// What kind of thing this is.
    pub fn kind(self) -> ArgKind {
        match self {
            Operand::Value(_) => ArgKind::Value,
            Operand::Weight(_) => ArgKind::Weight,
            Operand::State(_) => ArgKind::State,
        }
    }

    /// The value, if it is one.
    pub fn value(self) -> Option<ValueId> {
        if let Operand::Value(v) = self { Some(v) } else { None }
    }

    /// The weight, if it is one.
    pub fn weight(self) -> Option<WeightId> {
        if let Operand::Weight(w) = self { Some(w) } else { None }
    }

    /// The state, if it is one.
    pub fn state(self) -> Option<StateId> {
        if let Operand::State(s) = self { Some(s) } else { None }
    }
}

macro_rules! named {
    ($($entry:ident),*) => {$(
        impl Named for $entry {
            fn name(&self) -> &str {
                &self.name
            }
        }
    )*};
}

named!(State, Value, Weight);
