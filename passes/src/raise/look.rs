//! A graph as the raising passes look at it: what defines an operand, which operands are constants, and what a part of
//! the graph computes.
//!
//! Invariant: looking changes nothing and is bounded: no more than [`MAX_NODES`] nodes are computed for one question, and no
//! value of more than [`MAX_ELEMENTS`] elements.

use crate::Note;
use dlx_ir::{DType, Data, Graph, Id, Module, Node, Op, Operand, Tensor, Type, ValueId, WeightDef, WeightId, compute};
use std::collections::{BTreeMap, BTreeSet};

/// Most nodes that are computed to answer one question.
pub(crate) const MAX_NODES: usize = 1024;

/// Most elements of a value that is computed.
const MAX_ELEMENTS: usize = 1 << 26;

/// A module and one of its graphs.
#[derive(Clone, Copy)]
pub(crate) struct Look<'a> {
    pub(crate) module: &'a Module,
    pub(crate) graph: &'a Graph,
    defs: &'a [Option<usize>],
}

impl<'a> Look<'a> {
    /// A graph whose values are defined by the nodes of these indices.
    pub(crate) fn new(module: &'a Module, graph: &'a Graph, defs: &'a [Option<usize>]) -> Self {
        Look { module, graph, defs }
    }

    /// Index of the node that defines a value.
    pub(crate) fn index(&self, value: ValueId) -> Option<usize> {
        self.defs.get(value.index()).copied().flatten()
    }

    /// The node that defines an operand.
    pub(crate) fn def(&self, operand: Operand) -> Option<&'a Node> {
        self.index(operand.value()?).map(|i| &self.graph.nodes[i])
    }

    pub(crate) fn ty(&self, operand: Operand) -> &'a Type {
        match operand {
            Operand::Value(v) => &self.graph.values[v].ty,
            Operand::Weight(w) => &self.module.weights[w].ty,
            Operand::State(s) => &self.module.states[s].ty,
        }
    }

    /// Sizes of an operand; empty where they are not all known, as of a scalar.
    pub(crate) fn shape(&self, operand: Operand) -> Vec<usize> {
        self.ty(operand).shape().unwrap_or_default()
    }

    pub(crate) fn text(&self, node: &Node) -> String {
        self.module.node_text(self.graph, node)
    }

    /// The name of an operand.
    pub(crate) fn name(&self, operand: Operand) -> String {
        self.module.operand_text(self.graph, operand)
    }

    /// A note about the node that defines a value.
    pub(crate) fn note(&self, what: &'static str, value: ValueId, why: impl Into<String>) -> Note {
        let node = self.def(Operand::Value(value)).map_or_else(|| self.name(Operand::Value(value)), |n| self.text(n));
        Note { what, node, why: why.into() }
    }

    /// The numbers of a literal weight.
    pub(crate) fn literal(&self, operand: Operand) -> Option<&'a Data> {
        match &self.module.weights[operand.weight()?].def {
            WeightDef::Literal(data) => Some(data),
            _ => None,
        }
    }

    /// The number that all elements of a literal are equal to.
    pub(crate) fn scalar(&self, operand: Operand) -> Option<f64> {
        fn all<T: Copy + PartialEq>(x: &[T]) -> Option<T> {
            x.first().copied().filter(|first| x.iter().all(|v| v == first))
        }
        match self.literal(operand)? {
            Data::F64(x) => all(x),
            Data::F32(x) => all(x).map(f64::from),
            Data::I32(x) => all(x).map(f64::from),
            Data::I64(x) => all(x).map(|v| v as f64),
            Data::Bool(_) => None,
        }
    }

    /// What a value is, given others; literals and what is made of them need not be given.
    ///
    /// # Errors
    /// It depends on something that is neither given nor constant, or is too large to be computed here.
    pub(crate) fn compute(&self, root: Operand, given: &BTreeMap<ValueId, Tensor>) -> Result<Tensor, String> {
        let wanted = self.between(root, |v| given.contains_key(&v))?;
        let mut known: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        for i in wanted.nodes {
            let node = &self.graph.nodes[i];
            let mut constants = Vec::new();
            for input in &node.inputs {
                constants.push(if input.value().is_none() { Some(self.constant(*input)?) } else { None });
            }
            let args = node.inputs.iter().zip(&constants).map(|(input, constant)| {
                let of = |v: ValueId| known.get(&v).or_else(|| given.get(&v));
                constant
                    .as_ref()
                    .or_else(|| of(input.value()?))
                    .ok_or_else(|| format!("{} is not known", self.name(*input)))
            });
            let args = args.collect::<Result<Vec<_>, _>>()?;
            let results = compute(&node.op, &args).map_err(|e| format!("{}: {e}", self.text(node)))?;
            known.extend(node.outputs.iter().copied().zip(results));
        }
        match root {
            Operand::Value(v) => {
                known.remove(&v).or_else(|| given.get(&v).cloned()).ok_or_else(|| "is not known".into())
            }
            constant => self.constant(constant),
        }
    }

    /// A literal, or what one op makes of literals.
    fn constant(&self, operand: Operand) -> Result<Tensor, String> {
        let unknown = || format!("{} is not a constant", self.name(operand));
        let id = operand.weight().ok_or_else(unknown)?;
        match &self.module.weights[id].def {
            WeightDef::Expr(op, inputs) => {
                let args =
                    inputs.iter().map(|i| self.numbers(*i).ok_or_else(unknown)).collect::<Result<Vec<_>, _>>()?;
                compute(op, &args.iter().collect::<Vec<_>>())?.pop().ok_or_else(unknown)
            }
            _ => self.numbers(id).ok_or_else(unknown),
        }
    }

    /// A literal as a tensor.
    fn numbers(&self, id: WeightId) -> Option<Tensor> {
        let weight = &self.module.weights[id];
        let WeightDef::Literal(data) = &weight.def else { return None };
        Some(Tensor { dtype: weight.ty.dtype, shape: weight.ty.shape()?, data: data.clone() })
    }

    /// What a value is made of.
    ///
    /// # Errors
    /// There is too much of it, or a weight among it that is no constant.
    pub(crate) fn between(&self, root: Operand, given: impl Fn(ValueId) -> bool) -> Result<Made, String> {
        let (mut nodes, mut params, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut todo: Vec<ValueId> = root.value().into_iter().collect();
        while let Some(v) = todo.pop() {
            if given(v) || !seen.insert(v) {
                continue;
            }
            if self.graph.values[v].ty.elements().is_none_or(|n| n > MAX_ELEMENTS) {
                return Err(format!("%{} is too large to be looked at", self.graph.values[v].name));
            }
            let Some(i) = self.index(v) else {
                params.insert(v);
                continue;
            };
            nodes.insert(i);
            if nodes.len() > MAX_NODES {
                return Err(format!("it is made by more than {MAX_NODES} nodes"));
            }
            for input in &self.graph.nodes[i].inputs {
                match *input {
                    Operand::Value(v) => todo.push(v),
                    other if self.is_constant(other) => {}
                    other => {
                        return Err(format!("it depends on {}, whose numbers are not known here", self.name(other)));
                    }
                }
            }
        }
        Ok(Made { nodes, params })
    }

    /// Whether an operand is a literal, or what one op makes of literals.
    pub(crate) fn is_constant(&self, operand: Operand) -> bool {
        let literal = |w: WeightId| matches!(self.module.weights[w].def, WeightDef::Literal(_));
        operand.weight().is_some_and(|w| match &self.module.weights[w].def {
            WeightDef::Expr(_, inputs) => inputs.iter().all(|i| literal(*i)),
            _ => literal(w),
        })
    }

    /// An operand without the conversions between float types above it.
    pub(crate) fn uncast(&self, mut operand: Operand) -> Operand {
        while let Some(Node { op: Op::Cast { .. }, inputs, .. }) = self.def(operand) {
            if !is_float(self.ty(inputs[0]).dtype) || !is_float(self.ty(operand).dtype) {
                break;
            }
            operand = inputs[0];
        }
        operand
    }
}

/// What a value is made of: the nodes in order, and the parameters.
pub(crate) struct Made {
    pub(crate) nodes: BTreeSet<usize>,
    pub(crate) params: BTreeSet<ValueId>,
}

/// Whether activations may have this type.
pub(crate) fn is_float(dtype: DType) -> bool {
    dtype.is_float() || dtype == DType::F64
}

/// How far two results in this type may be apart that are rounded differently, where numbers are about one.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 4e-2,
        DType::F16 => 5e-3,
        _ => 3e-5,
    }
}

/// The floats of a tensor in f64.
pub(crate) fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    match &tensor.data {
        Data::F32(x) => Some(x.iter().map(|v| f64::from(*v)).collect()),
        Data::F64(x) => Some(x.clone()),
        _ => None,
    }
}

/// A tensor of these numbers in a float type; `None` for other types and numbers that are too many or too few.
pub(crate) fn tensor(dtype: DType, shape: &[usize], numbers: Vec<f64>) -> Option<Tensor> {
    let wide = Tensor { dtype: DType::F64, shape: shape.to_vec(), data: Data::F64(numbers) };
    let cast = Op::Cast { to: dtype, wrap: false };
    if is_float(dtype) { compute(&cast, &[&wide]).ok()?.pop() } else { None }
}

/// Numbers between −1 and 1, the same ones every time.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The largest distance between two tensors; infinite where they cannot be compared.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    match (floats(a), floats(b)) {
        (Some(x), Some(y)) if a.shape == b.shape && x.len() == y.len() => {
            let apart = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
            x.iter().zip(&y).map(apart).fold(0.0, f64::max)
        }
        _ => f64::INFINITY,
    }
}
