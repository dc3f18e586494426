//! What the lint knows of an ONNX graph: who makes and reads a value, and its type and shape where that is simple to tell.

use std::collections::BTreeMap;

use crate::onnx::proto::TensorProto;
use crate::onnx::{DimText, ElemType, Node, OnnxModel, ValueInfo};

/// Most dimensions of a shape that is followed.
const MAX_RANK: usize = 32;

/// A graph, seen by its names.
pub(super) struct View<'a> {
    pub(super) model: &'a OnnxModel,
    makers: BTreeMap<&'a str, &'a Node>,
    readers: BTreeMap<&'a str, Vec<&'a Node>>,
    inputs: BTreeMap<&'a str, &'a ValueInfo>,
    /// Of everything but constants.
    elems: BTreeMap<&'a str, Option<ElemType>>,
    shapes: BTreeMap<&'a str, Option<Vec<usize>>>,
}

impl<'a> View<'a> {
    pub(super) fn of(model: &'a OnnxModel) -> Self {
        let graph = model.graph();
        let mut view = View {
            model,
            makers: BTreeMap::new(),
            readers: BTreeMap::new(),
            inputs: BTreeMap::new(),
            elems: BTreeMap::new(),
            shapes: BTreeMap::new(),
        };
        for node in &graph.nodes {
            view.makers.extend(node.outputs.iter().map(|name| (name.as_str(), node)));
            for name in &node.inputs {
                view.readers.entry(name).or_default().push(node);
            }
        }
        for input in &graph.inputs {
            let known = |d: &DimText| if let DimText::Known(n) = d { Some(*n) } else { None };
            let shape = input.dims.as_ref().and_then(|dims| dims.iter().map(known).collect());
            view.inputs.insert(&input.name, input);
            view.note(&input.name, input.elem, shape);
        }
        // A node comes after those that it reads.
        for node in &graph.nodes {
            let (elem, shape) = (view.elem_of(node), view.shape_of(node));
            for name in &node.outputs {
                view.note(name, elem, shape.clone());
            }
        }
        view
    }

    fn note(&mut self, name: &'a str, elem: Option<ElemType>, shape: Option<Vec<usize>>) {
        self.elems.insert(name, elem);
        self.shapes.insert(name, shape.filter(|dims| dims.len() <= MAX_RANK));
    }

    /// The node that makes a value, if it is of that op.
    pub(super) fn made_by(&self, name: &str, op: &str) -> Option<&'a Node> {
        self.makers.get(name).copied().filter(|n| n.op == op)
    }

    pub(super) fn readers(&self, name: &str) -> &[&'a Node] {
        self.readers.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn constant(&self, name: &str) -> Option<&'a TensorProto> {
        self.model.graph().initializers.get(name)
    }

    pub(super) fn input(&self, name: &str) -> Option<&'a ValueInfo> {
        self.inputs.get(name).copied()
    }

    /// An input of a node that is there.
    pub(super) fn given(node: &'a Node, index: usize) -> Option<&'a str> {
        node.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Element type.
    pub(super) fn elem(&self, name: &str) -> Option<ElemType> {
        match self.constant(name) {
            Some(t) => ElemType::from_number(t.data_type()),
            None => *self.elems.get(name)?,
        }
    }

    fn elem_of(&self, node: &'a Node) -> Option<ElemType> {
        match node.op.as_str() {
            "DequantizeLinear" => self.elem(Self::given(node, 1)?),
            "QuantizeLinear" => Self::given(node, 2).map_or(Some(ElemType::Uint8), |zero| self.elem(zero)),
            "Cast" => ElemType::from_number(node.int("to").ok()?.and_then(|n| i32::try_from(n).ok())?),
            _ => self.elem(Self::given(node, 0)?),
        }
    }

    /// Dimensions.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.constant(name) {
            Some(t) => t.dims.iter().map(|d| usize::try_from(*d).ok()).collect(),
            None => self.shapes.get(name)?.clone(),
        }
    }

    fn shape_of(&self, node: &'a Node) -> Option<Vec<usize>> {
        let of = |i: usize| self.shape(Self::given(node, i)?);
        match node.op.as_str() {
            "Reshape" | "Expand" => {
                let wanted = self.model.tensor(self.constant(Self::given(node, 1)?)?).ok()?;
                let dims = wanted.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
                dims.map(|d| usize::try_from(d).ok()).collect()
            }
            "Transpose" => {
                let (x, perm) = (of(0)?, node.ints("perm").ok()??);
                perm.iter().map(|p| x.get(usize::try_from(*p).ok()?).copied()).collect()
            }
            "MatMul" => {
                let (mut a, b) = (of(0)?, of(1)?);
                *a.last_mut()? = *b.last()?;
                Some(a)
            }
            "Add" | "Mul" | "Sub" | "Div" => {
                let (a, b) = (of(0)?, of(1)?);
                let elements = |dims: &[usize]| dims.iter().map(|d| *d as f64).product::<f64>();
                Some(if b.len() > a.len() || elements(&b) > elements(&a) { b } else { a })
            }
            "Cast" | "QuantizeLinear" | "DequantizeLinear" | "RMSNormalization" | "Softmax" | "Sigmoid"
            | "Identity" | "Clip" | "Relu" | "Tanh" => of(0),
            _ => None,
        }
    }

    /// The type of the codes that a value stands for, where a `DequantizeLinear` makes it.
    pub(super) fn codes(&self, name: &str) -> Option<ElemType> {
        self.elem(Self::given(self.made_by(name, "DequantizeLinear")?, 0)?)
    }

    /// The `DequantizeLinear` that makes a value of constant codes, if one does.
    pub(super) fn weight(&self, name: &str) -> Option<&'a Node> {
        let node = self.made_by(name, "DequantizeLinear")?;
        self.constant(Self::given(node, 0)?).map(|_| node)
    }

    /// The bytes of a constant.
    pub(super) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        Some(self.model.tensor(self.constant(name)?).ok()?.bytes.into_owned())
    }
}

/// Features that share a scale, where there are blocks.
pub(super) fn block(node: &Node) -> Option<i64> {
    node.int("block_size").ok().flatten().filter(|b| *b > 0)
}
