//! A shape as the graph that PyTorch's exporter writes for it: one sequence of any length, eager attention, f32.
//!
//! Invariant: the weights are those of [`Shape::tensors`] in that order, matrices behind a `MatMul` turned, so the same numbers
//! can be written as safetensors and as ONNX.

use prost::bytes::Bytes;

use super::shapes::{Attends, Shape, Tensor};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::{DataLocation, DataType};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// The file with the weights, beside the model.
pub(super) const DATA: &str = "model.onnx.data";

/// The operator set that PyTorch exports by default.
const OPSET: i64 = 20;

/// One weight as the file holds it.
pub(super) struct Stored {
    pub(super) tensor: Tensor,
    /// Whether the matrix `[N, K]` lies as `[K, N]`.
    pub(super) turned: bool,
}

/// The model, and its weights in the order in which they lie in the data file, f32 and densely packed.
pub(super) fn model(shape: &Shape, attends: Attends, theta: f64, eps: f32) -> (ModelProto, Vec<Stored>) {
    let mut b = Builder { graph: GraphProto::default(), weights: Vec::new(), offset: 0, values: 0 };
    let mut tensors = shape.tensors().into_iter().peekable();
    let mut next = || tensors.next().expect("a shape has all tensors of its graph");
    let hd = shape.head_dim as i64;

    let table = b.weight(next(), false);
    let mut h = b.node("Gather", &[&table, "input_ids"], vec![int("axis", 0)]);
    let frame = b.frame(attends, theta, hd, shape.heads / shape.kv_heads, shape.kv_heads);
    for _ in 0..shape.layers {
        let norm = next();
        let x = b.norm(&h, norm, eps);
        let [mut q, mut k, mut v] = [&shape.heads, &shape.kv_heads, &shape.kv_heads].map(|heads| {
            let weight = next();
            let mut y = b.linear(&x, weight);
            if shape.has_bias() {
                let bias = b.weight(next(), false);
                y = b.node("Add", &[&y, &bias], vec![]);
            }
            let dims = b.ints(&[1, -1, *heads as i64, hd]);
            b.node("Reshape", &[&y, &dims], vec![int("allowzero", 0)])
        });
        if shape.has_head_norms() {
            q = b.norm(&q, next(), eps);
            k = b.norm(&k, next(), eps);
        }
        [q, k, v] = [q, k, v].map(|x| b.node("Transpose", &[&x], vec![ints("perm", &[0, 2, 1, 3])]));
        [q, k] = [q, k].map(|x| b.rotate(&x, &frame, hd));
        [k, v] = [k, v].map(|x| b.repeat(&x, &frame, shape));
        let keys = b.node("Transpose", &[&k], vec![ints("perm", &[0, 1, 3, 2])]);
        let scores = b.node("MatMul", &[&q, &keys], vec![]);
        let scale = b.float(1.0 / (hd as f32).sqrt());
        let mut scores = b.node("Mul", &[&scores, &scale], vec![]);
        if let Some(mask) = &frame.mask {
            scores = b.node("Add", &[&scores, mask], vec![]);
        }
        let weights = b.node("Softmax", &[&scores], vec![int("axis", -1)]);
        let a = b.node("MatMul", &[&weights, &v], vec![]);
        let a = b.node("Transpose", &[&a], vec![ints("perm", &[0, 2, 1, 3])]);
        let dims = b.ints(&[1, -1, shape.heads as i64 * hd]);
        let a = b.node("Reshape", &[&a, &dims], vec![int("allowzero", 0)]);
        let a = b.linear(&a, next());
        h = b.node("Add", &[&h, &a], vec![]);

        let x = b.norm(&h, next(), eps);
        let gate = b.linear(&x, next());
        let sigmoid = b.node("Sigmoid", &[&gate], vec![]);
        let gate = b.node("Mul", &[&gate, &sigmoid], vec![]);
        let up = b.linear(&x, next());
        let m = b.node("Mul", &[&gate, &up], vec![]);
        let m = b.linear(&m, next());
        h = b.node("Add", &[&h, &m], vec![]);
    }
    let x = b.norm(&h, next(), eps);
    let logits = if shape.tied {
        let head = b.node("Transpose", &[&table], vec![ints("perm", &[1, 0])]);
        b.node("MatMul", &[&x, &head], vec![])
    } else {
        b.linear(&x, next())
    };
    if let Some(last) = b.graph.node.last_mut() {
        last.output = vec!["logits".into()];
    }
    debug_assert!(!logits.is_empty() && tensors.next().is_none(), "every tensor of the shape is in the graph");
    b.graph.name = Some("main_graph".into());
    b.graph.input = vec![value("input_ids", DataType::Int64, &[Ok(1), Err("T")])];
    b.graph.output = vec![value("logits", DataType::Float, &[Ok(1), Err("T"), Ok(shape.vocab as i64)])];
    let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) };
    let model = ModelProto {
        ir_version: Some(10),
        producer_name: Some("dlxc".into()),
        opset_import: vec![opset],
        graph: Some(b.graph),
        ..ModelProto::default()
    };
    (model, b.weights)
}

/// Values that all layers share.
struct Frame {
    cos: String,
    sin: String,
    mask: Option<String>,
    /// Sizes of repeated keys and values, `[1, kv_heads, repeats, T, head_dim]`.
    repeated: String,
}

struct Builder {
    graph: GraphProto,
    weights: Vec<Stored>,
    /// Bytes of the weights so far.
    offset: u64,
    values: usize,
}

impl Builder {
    fn fresh(&mut self) -> String {
        self.values += 1;
        format!("val_{}", self.values - 1)
    }

    fn node(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let output = self.fresh();
        self.graph.node.push(NodeProto {
            name: Some(format!("node_{op}_{}", self.graph.node.len())),
            op_type: Some(op.into()),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![output.clone()],
            attribute,
            ..NodeProto::default()
        });
        output
    }

    /// A weight in the data file.
    fn weight(&mut self, tensor: Tensor, turned: bool) -> String {
        let name = if turned { self.fresh() } else { tensor.name.clone() };
        let mut dims: Vec<i64> = tensor.shape.iter().map(|d| *d as i64).collect();
        if turned {
            dims.reverse();
        }
        let bytes = 4 * tensor.elements() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(DataType::Float as i32),
            dims,
            data_location: Some(DataLocation::External as i32),
            external_data: vec![
                entry("location", DATA.into()),
                entry("offset", self.offset.to_string()),
                entry("length", bytes.to_string()),
            ],
            ..TensorProto::default()
        });
        self.offset += bytes;
        self.weights.push(Stored { tensor, turned });
        name
    }

    fn constant(&mut self, data_type: DataType, dims: &[i64], raw: Vec<u8>) -> String {
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(data_type as i32),
            dims: dims.into(),
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        });
        name
    }

    fn float(&mut self, v: f32) -> String {
        self.constant(DataType::Float, &[], v.to_le_bytes().into())
    }

    fn int(&mut self, v: i64) -> String {
        self.constant(DataType::Int64, &[], v.to_le_bytes().into())
    }

    fn ints(&mut self, v: &[i64]) -> String {
        self.constant(DataType::Int64, &[v.len() as i64], v.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn linear(&mut self, x: &str, weight: Tensor) -> String {
        let weight = self.weight(weight, true);
        self.node("MatMul", &[x, &weight], vec![])
    }

    fn norm(&mut self, x: &str, weight: Tensor, eps: f32) -> String {
        let (weight, two, eps) = (self.weight(weight, false), self.float(2.0), self.float(eps));
        let last = self.ints(&[-1]);
        let square = self.node("Pow", &[x, &two], vec![]);
        let mean = self.node("ReduceMean", &[&square, &last], vec![int("keepdims", 1)]);
        let sum = self.node("Add", &[&mean, &eps], vec![]);
        let root = self.node("Sqrt", &[&sum], vec![]);
        let factor = self.node("Reciprocal", &[&root], vec![]);
        let y = self.node("Mul", &[x, &factor], vec![]);
        self.node("Mul", &[&weight, &y], vec![])
    }

    fn frame(&mut self, attends: Attends, theta: f64, hd: i64, repeats: usize, kv_heads: usize) -> Frame {
        let length = self.node("Shape", &["input_ids"], vec![int("start", 1), int("end", 2)]);
        let t = self.node("Squeeze", &[&length], vec![]);
        let (zero, one) = (self.int(0), self.int(1));
        let positions = self.node("Range", &[&zero, &t, &one], vec![]);

        let frequency = |i: i64| (1.0 / libm::pow(theta, 2.0 * i as f64 / hd as f64)) as f32;
        let frequencies = (0..hd / 2).flat_map(|i| frequency(i).to_le_bytes()).collect();
        let frequencies = self.constant(DataType::Float, &[1, 1, hd / 2], frequencies);
        let axes = self.ints(&[0, 2]);
        let column = self.node("Unsqueeze", &[&positions, &axes], vec![]);
        let column = self.node("Cast", &[&column], vec![int("to", DataType::Float as i64)]);
        let angles = self.node("Mul", &[&column, &frequencies], vec![]);
        let angles = self.node("Concat", &[&angles, &angles], vec![int("axis", -1)]);
        let heads = self.ints(&[1]);
        let [cos, sin] = ["Cos", "Sin"].map(|op| {
            let table = self.node(op, &[&angles], vec![]);
            self.node("Unsqueeze", &[&table, &heads], vec![])
        });

        let mask = match attends {
            Attends::Everything => None,
            Attends::Blocks(block) => {
                let block = self.int(block);
                let block = self.node("Div", &[&positions, &block], vec![]);
                let [rows, columns] = [[0, 1, 3], [0, 1, 2]].map(|axes| {
                    let axes = self.ints(&axes);
                    self.node("Unsqueeze", &[&block, &axes], vec![])
                });
                let sees = self.node("LessOrEqual", &[&columns, &rows], vec![]);
                let (yes, no) = (self.float(0.0), self.float(f32::MIN));
                Some(self.node("Where", &[&sees, &yes, &no], vec![]))
            }
        };
        let (before, after) = (self.ints(&[1, kv_heads as i64, repeats as i64]), self.ints(&[hd]));
        let repeated = self.node("Concat", &[&before, &length, &after], vec![int("axis", 0)]);
        Frame { cos, sin, mask, repeated }
    }

    fn rotate(&mut self, x: &str, frame: &Frame, hd: i64) -> String {
        let (axes, steps) = (self.ints(&[3]), self.ints(&[1]));
        let [low, high] = [(0, hd / 2), (hd / 2, i64::MAX)].map(|(start, end)| {
            let (start, end) = (self.ints(&[start]), self.ints(&[end]));
            self.node("Slice", &[x, &start, &end, &axes, &steps], vec![])
        });
        let straight = self.node("Mul", &[x, &frame.cos], vec![]);
        let high = self.node("Neg", &[&high], vec![]);
        let turned = self.node("Concat", &[&high, &low], vec![int("axis", -1)]);
        let turned = self.node("Mul", &[&turned, &frame.sin], vec![]);
        self.node("Add", &[&straight, &turned], vec![])
    }

    /// Keys or values, once for every query head.
    fn repeat(&mut self, x: &str, frame: &Frame, shape: &Shape) -> String {
        if shape.heads == shape.kv_heads {
            return x.to_owned();
        }
        let axis = self.ints(&[2]);
        let x = self.node("Unsqueeze", &[x, &axis], vec![]);
        let x = self.node("Expand", &[&x, &frame.repeated], vec![]);
        let dims = self.ints(&[1, shape.heads as i64, -1, shape.head_dim as i64]);
        self.node("Reshape", &[&x, &dims], vec![int("allowzero", 0)])
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    let r#type = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.into()), r#type, i: Some(i), ..AttributeProto::default() }
}

fn ints(name: &str, list: &[i64]) -> AttributeProto {
    let r#type = Some(AttributeType::Ints as i32);
    AttributeProto { name: Some(name.into()), r#type, ints: list.into(), ..AttributeProto::default() }
}

/// A value with sizes and names of sizes.
fn value(name: &str, elem: DataType, dims: &[Result<i64, &str>]) -> ValueInfoProto {
    let dim = |d: &Result<i64, &str>| match d {
        Ok(n) => dimension::Value::DimValue(*n),
        Err(name) => dimension::Value::DimParam((*name).to_owned()),
    };
    let dim = dims.iter().map(|d| Dimension { value: Some(dim(d)), ..Dimension::default() }).collect();
    let tensor = type_proto::Tensor { elem_type: Some(elem as i32), shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.into()), r#type, ..ValueInfoProto::default() }
}
