//! The naive reference evaluator: what every op means, written for reading.
//!
//! Sums run in f64 and are rounded once, so results are at least as exact as any target's. Nothing here is fast, blocked
//! or shared with a target's kernels. One file per level of ops.

mod data;
mod model;
mod source;
mod state;
mod tensor;
mod view;
mod weight;

pub use data::{Data, Tensor};
pub use source::{Contents, Source};

use crate::arena::{ValueId, WeightId};
use crate::error::Error;
use crate::infer::{Arg, ArgKind, infer};
use crate::module::{Graph, Module, Node, Operand, WeightDef};
use crate::op::{Level, Op};
use crate::types::Type;
use data::{accepts, fits, rounded};
use state::{Bound, States};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most elements of a result.
const MAX_ELEMENTS: usize = 1 << 31;

/// A module being evaluated: its weights, computed once, and its states, which live from call to call.
pub struct Evaluator<'m> {
    module: &'m Module,
    source: &'m dyn Source,
    weights: BTreeMap<WeightId, Rc<Tensor>>,
    states: States<'m>,
}

impl<'m> Evaluator<'m> {
    /// An evaluator with zeroed states; weights are computed when first read. Caches hold `slots` sequences.
    pub fn new(module: &'m Module, source: &'m dyn Source, slots: usize) -> Self {
        Evaluator { module, source, weights: BTreeMap::new(), states: States::new(module, slots) }
    }

    /// Runs a graph. `observe` sees every value as it is computed, by name, and may put another in its place.
    ///
    /// # Errors
    /// A missing graph or weight, arguments that do not fit, or a row number out of range; the place is the node's text.
    pub fn run(
        &mut self,
        graph: &str,
        args: &[Tensor],
        observe: &mut dyn FnMut(&str, &mut Tensor),
    ) -> Result<Vec<Tensor>, Error> {
        let place = format!("graph @{graph}");
        let graph = self.module.graph(graph).ok_or_else(|| Error::new(&place, "is not in the module"))?;
        if args.len() != graph.params.len() {
            return Err(Error::new(place, format!("takes {} arguments, not {}", graph.params.len(), args.len())));
        }
        let mut env: BTreeMap<ValueId, Rc<Tensor>> = BTreeMap::new();
        let mut sizes = BTreeMap::new();
        for (&p, arg) in graph.params.iter().zip(args) {
            let value = &graph.values[p];
            accepts(&value.ty, arg, &mut sizes).map_err(|e| Error::new(format!("{place}: %{}", value.name), e))?;
            env.insert(p, Rc::new(rounded(arg.clone(), value.ty.dtype)));
        }
        for node in &graph.nodes {
            let outs = self.node(graph, node, &env).map_err(|e| Error::new(self.module.node_text(graph, node), e))?;
            for (&id, out) in node.outputs.iter().zip(outs) {
                let mut out = rounded(out, graph.values[id].ty.dtype);
                observe(&graph.values[id].name, &mut out);
                env.insert(id, Rc::new(out));
            }
        }
        Ok(graph.results.iter().map(|r| (*env[r]).clone()).collect())
    }

    /// Value of a weight.
    ///
    /// # Errors
    /// The source has no such tensor, or the wrong number of elements, or the expression cannot be evaluated.
    pub fn weight(&mut self, id: WeightId) -> Result<Rc<Tensor>, String> {
        if let Some(t) = self.weights.get(&id) {
            return Ok(t.clone());
        }
        let w = &self.module.weights[id];
        let shape = w.ty.shape().ok_or("a weight needs static dimensions")?;
        let tensor = match &w.def {
            WeightDef::Source => source::tensor(self.source, w, shape)?,
            WeightDef::Literal(literal) => {
                literal.check(&w.ty)?;
                Tensor { dtype: w.ty.dtype, shape, data: literal.clone() }
            }
            WeightDef::Expr(op, inputs) => {
                let args = inputs.iter().map(|&i| self.weight(i)).collect::<Result<Vec<_>, _>>()?;
                let args: Vec<&Tensor> = args.iter().map(|t| &**t).collect();
                rounded(evaluate(op, &args, None)?.pop().ok_or("a weight expression needs a result")?, w.ty.dtype)
            }
            WeightDef::Stored { .. } => {
                return Err(format!("@{} is packed; evaluate the module before emission", w.name));
            }
        };
        let tensor = Rc::new(tensor);
        self.weights.insert(id, tensor.clone());
        Ok(tensor)
    }

    fn node(&mut self, graph: &Graph, node: &Node, env: &BTreeMap<ValueId, Rc<Tensor>>) -> Result<Vec<Tensor>, String> {
        let mut args: Vec<Rc<Tensor>> = Vec::new();
        let mut states = Vec::new();
        for &input in &node.inputs {
            match input {
                Operand::Value(v) => args.push(env[&v].clone()),
                Operand::Weight(w) => args.push(self.weight(w)?),
                Operand::State(s) => states.push(s),
            }
        }
        let args: Vec<&Tensor> = args.iter().map(|t| &**t).collect();
        let bound = if node.op.touches_state() { Some(self.states.bind(&states)?) } else { None };
        let outs = evaluate(&node.op, &args, bound)?;
        // A symbolic dimension may meet a wrong argument; the written rank and sizes must hold.
        for (out, &id) in outs.iter().zip(&node.outputs) {
            fits(out, &graph.values[id].ty)?;
        }
        Ok(outs)
    }
}

/// Evaluates an op; `states` are those that its node names, in order.
fn evaluate(op: &Op, args: &[&Tensor], states: Option<Bound<'_, '_>>) -> Result<Vec<Tensor>, String> {
    match op.level() {
        Level::State => states.ok_or_else(|| format!("{} needs a state", op.name()))?.compute(op, args),
        _ => pure(op, args),
    }
}

/// Evaluates an op that touches no state, on tensors that may be anything.
fn pure(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let types: Vec<Type> = args.iter().map(|t| t.checked()).collect::<Result<_, _>>()?;
    let operands: Vec<_> = types.iter().map(|ty| Arg { kind: ArgKind::Constant, ty }).collect();
    let results = infer(op, &operands)?;
    if let Some(ty) = results.iter().find(|ty| ty.elements().is_none_or(|n| n > MAX_ELEMENTS)) {
        return Err(format!("the result would be {ty}; at most {MAX_ELEMENTS} elements are computed at a time"));
    }
    let outs = match op.level() {
        Level::Tensor => return tensor::compute(op, args, &results),
        Level::Model => model::compute(op, args),
        Level::State => not_computed(op),
        Level::Weight => weight::compute(op, args),
    }?;
    Ok(outs.into_iter().zip(results).map(|(out, ty)| rounded(out, ty.dtype)).collect())
}

/// What an op without states makes of tensors, each result of the type that inference gives it: what constants fold by.
/// Tensors stand for values or for weights, as the op wants them.
///
/// # Errors
/// Operands that do not fit the op or are not what their type says, values that it has no result for, and results of more
/// than 2³¹ elements.
pub fn compute(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    pure(op, args)
}

/// An op that the file of its level does not compute.
fn not_computed(op: &Op) -> Result<Vec<Tensor>, String> {
    Err(format!("`{}` is not computed", op.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;
    use crate::spans::{MAX_SPANS, SPAN_FIELDS, SpanRows};

    fn spans(list: &[SpanRows]) -> Tensor {
        let mut table = vec![0; MAX_SPANS * SPAN_FIELDS];
        for (to, n) in table.iter_mut().zip(list.iter().flat_map(SpanRows::fields)) {
            *to = n as i32;
        }
        Tensor::i32(&[MAX_SPANS, SPAN_FIELDS], table)
    }

    #[test]
    fn slots_of_a_cache_are_apart_and_live_from_call_to_call() {
        let text = "module @m {
            state @k: f32[2, 1, 2]
            state @v: f32[2, 1, 2]
            graph @step(%x: f32[3, 2], %spans: i32[64, 5]) -> (f32[3, 2]) {
                kv_write %x, %x, @k, @v, %spans
                %a = cached_attention %x, @k, @v, %spans {head_dim=2, mask=causal}: f32[3, 2]
                return %a
            }
        }";
        let module = parse(text).unwrap();
        let no_weights = |_: &str| Err::<Vec<f32>, _>("no weights".to_owned());
        let mut evaluator = Evaluator::new(&module, &no_weights, 2);
        let mut run = |x: [f32; 6], list: &[SpanRows]| {
            let args = [Tensor::f32(&[3, 2], x.to_vec()), spans(list)];
            evaluator.run("step", &args, &mut |_, _| {}).map(|out| out[0].floats().unwrap().to_vec())
        };
        let span = |rows, slot, at, visible| SpanRows { rows, slot, at, from: 0, visible };
        // Equal keys weigh equally; the last row fills up and gets zeros.
        let out = run([1.0, 0.0, 0.0, 5.0, 9.0, 9.0], &[span(0..1, 0, 0, 1), span(1..2, 1, 0, 1)]).unwrap();
        assert_eq!(out, [1.0, 0.0, 0.0, 5.0, 0.0, 0.0]);
        // The second row of slot 1 has a query of zeros, so it takes the mean of both rows of its slot.
        let out = run([0.0; 6], &[span(0..1, 1, 1, 2)]).unwrap();
        assert_eq!(out, [0.0, 2.5, 0.0, 0.0, 0.0, 0.0]);
        assert!(run([0.0; 6], &[span(0..1, 2, 0, 1)]).unwrap_err().message.contains("slot 2"));
        assert!(run([0.0; 6], &[span(0..2, 0, 1, 2)]).unwrap_err().message.contains("beyond"));
    }

    #[test]
    fn a_weight_expression_has_no_state() {
        let outcome = evaluate(&Op::TakeRows {}, &[], None);
        assert_eq!(outcome.unwrap_err(), "take_rows needs a state");
    }
}
