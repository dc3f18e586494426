//! Small models, made from messages.

use std::path::PathBuf;

use prost::Message;
use tempfile::TempDir;

use crate::onnx::OnnxModel;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

fn list(names: &str) -> Vec<String> {
    names.split_whitespace().map(|n| if n == "_" { String::new() } else { n.to_owned() }).collect()
}

/// A node; names are separated by blanks, `_` is one left out. The op may have a domain and a name: `name=com.x:Op`.
pub(super) fn node(op: &str, inputs: &str, outputs: &str) -> NodeProto {
    let (name, op) = op.split_once('=').map_or((None, op), |(n, op)| (Some(n.to_owned()), op));
    let (domain, op) = op.split_once(':').map_or((None, op), |(d, op)| (Some(d.to_owned()), op));
    NodeProto {
        name,
        op_type: Some(op.into()),
        domain,
        input: list(inputs),
        output: list(outputs),
        ..Default::default()
    }
}

pub(super) fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), ..Default::default() }
}

pub(super) fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

pub(super) fn graph(inputs: &str, outputs: &str, nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto {
        name: Some("g".into()),
        input: list(inputs).iter().map(|n| value(n)).collect(),
        output: list(outputs).iter().map(|n| value(n)).collect(),
        node: nodes,
        ..Default::default()
    }
}

pub(super) fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        producer_name: Some("test".into()),
        opset_import: vec![opset("", 20)],
        graph: Some(graph),
        ..Default::default()
    }
}

/// A model of one node that reads these tensors.
pub(super) fn holding(tensors: Vec<TensorProto>) -> ModelProto {
    let names: Vec<&str> = tensors.iter().map(TensorProto::name).collect();
    let mut graph = graph("", "y", vec![node("Concat", &names.join(" "), "y")]);
    graph.initializer = tensors;
    model(graph)
}

/// `name=Op`, of domain `local`, version 1.
pub(super) fn function(name: &str, inputs: &str, outputs: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: list(inputs),
        output: list(outputs),
        node: nodes,
        opset_import: vec![opset("", 20), opset("local", 1)],
        ..Default::default()
    }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    let kind = Some(AttributeType::Int.into());
    AttributeProto { name: Some(name.into()), r#type: kind, i: Some(i), ..Default::default() }
}

pub(super) fn body(name: &str, graph: GraphProto) -> AttributeProto {
    let kind = Some(AttributeType::Graph.into());
    AttributeProto { name: Some(name.into()), r#type: kind, g: Some(Box::new(graph)), ..Default::default() }
}

/// An attribute that is that of the function.
pub(super) fn reference(name: &str, of: &str, kind: AttributeType) -> AttributeProto {
    let (name, of) = (Some(name.into()), Some(of.into()));
    AttributeProto { name, ref_attr_name: of, r#type: Some(kind.into()), ..Default::default() }
}

pub(super) fn with(mut node: NodeProto, attrs: impl IntoIterator<Item = AttributeProto>) -> NodeProto {
    node.attribute.extend(attrs);
    node
}

pub(super) fn tensor(name: &str, number: i32, dims: &[i64]) -> TensorProto {
    TensorProto { name: Some(name.into()), data_type: Some(number), dims: dims.to_vec(), ..Default::default() }
}

/// A tensor of floats in another file.
pub(super) fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(k, v): &(&str, &str)| StringStringEntryProto { key: Some((*k).into()), value: Some((*v).into()) };
    let external_data = entries.iter().map(entry).collect();
    TensorProto { data_location: Some(DataLocation::External.into()), external_data, ..tensor(name, 1, dims) }
}

/// An input of an element type and shape.
pub(super) fn input(name: &str, elem: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| Dimension { value: Some(dimension::Value::DimValue(*d)), ..Default::default() };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(elem), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: Some(name.into()), r#type, ..Default::default() }
}

/// One node over an input `x: f32[2, 3]` and initializers.
pub(super) fn one(op: &str, inputs: &str, tensors: Vec<TensorProto>) -> ModelProto {
    many(vec![node(op, inputs, "y")], tensors)
}

/// Nodes over that input, of which `y` is returned.
pub(super) fn many(nodes: Vec<NodeProto>, tensors: Vec<TensorProto>) -> ModelProto {
    let mut g = graph("", "y", nodes);
    g.input = vec![input("x", 1, &[2, 3])];
    g.initializer = tensors;
    model(g)
}

pub(super) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto { float_data: values.to_vec(), ..tensor(name, 1, dims) }
}

pub(super) fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto { int64_data: values.to_vec(), ..tensor(name, 7, &[values.len() as i64]) }
}

/// A file in a directory of its own.
pub(super) struct File {
    /// Kept for as long as the file is.
    _dir: TempDir,
    pub(super) path: PathBuf,
}

pub(super) fn write(bytes: &[u8]) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    File { path, _dir: dir }
}

pub(super) fn open(model: &ModelProto) -> Result<OnnxModel, String> {
    let file = write(&model.encode_to_vec());
    OnnxModel::open(&file.path).map_err(|e| {
        let text = e.to_string();
        assert!(text.contains("\nhelp: "), "no help: {text}");
        text
    })
}

/// Fails unless opening says all of `parts`.
#[track_caller]
pub(super) fn refuses(model: &ModelProto, parts: &[&str]) {
    says(&open(model).map(|_| ()).expect_err("the model is valid"), parts);
}

#[track_caller]
pub(super) fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// The nodes of a graph, one a line: `outputs = Op(inputs)`.
pub(super) fn text(graph: &crate::onnx::Graph) -> String {
    let mut out = String::new();
    for node in &graph.nodes {
        let attrs: Vec<String> = node.attrs.values().map(|a| format!("{}={}", a.name(), a.i())).collect();
        let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
        out.push_str(&format!("{} = {}({}){attrs}\n", node.outputs.join(", "), node.op, node.inputs.join(", ")));
        for (name, graph) in node.graphs.iter().flat_map(|(n, gs)| gs.iter().map(move |g| (n, g))) {
            out.push_str(&format!("{name}:\n"));
            out.push_str(&text(graph).lines().map(|l| format!("  {l}\n")).collect::<String>());
            let outputs: Vec<_> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
            out.push_str(&format!("  -> {}\n", outputs.join(", ")));
        }
    }
    out
}
