//! Quantized activations where they are not rounded: what moves or multiplies their codes is given the floats.

use prost::Message;

use super::made::{graph, int, model, node, tensor, with, write};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use crate::onnx::{Binding, OnnxModel, import, shapes};

fn codes(name: &str, elem: i32, dims: &[i64], values: &[i32]) -> TensorProto {
    TensorProto { int32_data: values.to_vec(), ..tensor(name, elem, dims) }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto { float_data: values.to_vec(), ..tensor(name, 1, dims) }
}

/// The ops that an import over `x: f32[1, 2]` leaves, in order, and what its only matrix holds.
fn left(nodes: Vec<NodeProto>, tensors: Vec<TensorProto>) -> (String, Vec<f32>) {
    let dims = [1, 2].map(|d| Dimension { value: Some(dimension::Value::DimValue(d)), ..Default::default() });
    let shape = Some(TensorShapeProto { dim: dims.into() });
    let tensor = type_proto::Tensor { elem_type: Some(1), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() });
    let mut g = graph("", "y", nodes);
    g.input = vec![ValueInfoProto { name: Some("x".into()), r#type, ..Default::default() }];
    g.initializer = tensors;
    let file = write(&model(g).encode_to_vec());
    let model = OnnxModel::open(&file.path).unwrap();
    let shapes = shapes(&model, &Default::default()).unwrap();
    let import = import(&model, "left", &Binding { shapes, ..Binding::default() }).unwrap();
    let mut module = import.module;
    let dce = dlx_passes::parse_pipeline("dce").unwrap();
    dlx_ir::verify(&module).unwrap();
    let verified = dlx_ir::VerifiedModule::new(module).unwrap();
    module =
        dlx_passes::run_pipeline(verified, &dce, &mut |_, _, _| Ok(())).map_err(|f| f.error).unwrap().0.into_inner();
    let ops: Vec<&str> = module.graphs[0].nodes.iter().map(|n| n.op.name()).collect();
    let used = import.sources.0.iter().find(|(name, s)| module.weight(name).is_some() && s.dims().len() == 2);
    let weight = used.map(|(_, s)| s.read(&model).unwrap().floats().unwrap().to_vec());
    (ops.join(" "), weight.unwrap_or_default())
}

#[test]
fn scales_of_a_dynamic_product_go_into_the_weight() {
    let nodes = || {
        vec![
            node("DynamicQuantizeLinear", "x", "q s z"),
            node("MatMulInteger", "q w z wz", "i"),
            with(node("Cast", "i", "f"), [int("to", 1)]),
            node("Mul", "s ws", "both"),
            node("Mul", "f both", "m"),
            node("Add", "m bias", "y"),
        ]
    };
    let bias = || floats("bias", &[2], &[1.0, 2.0]);
    let one = vec![codes("w", 3, &[2, 2], &[2, 4, 6, 8]), codes("wz", 3, &[], &[1]), floats("ws", &[], &[0.5]), bias()];
    assert_eq!(left(nodes(), one), ("linear add".into(), vec![0.5, 2.5, 1.5, 3.5]));
    // A scale and a zero point for each column.
    let several = vec![
        codes("w", 2, &[2, 2], &[2, 4, 6, 8]),
        codes("wz", 2, &[2], &[1, 4]),
        floats("ws", &[2], &[0.5, 2.0]),
        bias(),
    ];
    assert_eq!(left(nodes(), several), ("linear add".into(), vec![0.5, 2.5, 0.0, 8.0]));
}

#[test]
fn views_of_codes_are_views_of_floats() {
    let scales = || vec![floats("s", &[], &[0.5]), codes("z", 2, &[], &[3])];
    let nodes =
        vec![node("QuantizeLinear", "x s z", "q"), node("Transpose", "q", "t"), node("DequantizeLinear", "t s z", "y")];
    assert_eq!(left(nodes, scales()).0, "transpose");
    // Constants beside activations are not rounded either, and a single code is a number.
    let nodes = vec![
        node("Cos", "angle", "cos"),
        node("QuantizeLinear", "cos s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "two s z", "p"),
        node("Pow", "x p", "xp"),
        node("Mul", "xp d", "y"),
    ];
    let more = vec![floats("angle", &[2], &[0.1, 0.2]), codes("two", 2, &[], &[7])];
    assert_eq!(left(nodes, [scales(), more].concat()), ("binary mul".into(), vec![]));
}

#[test]
fn ops_on_codes_compute_with_what_they_stand_for() {
    let nodes = vec![
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearMatMul", "q s z w ws wz s z", "p"),
        node("com.microsoft:QLinearAdd", "p s z q s z s z", "a"),
        node("DequantizeLinear", "a s z", "y"),
    ];
    let tensors = vec![
        floats("s", &[], &[0.5]),
        codes("z", 2, &[], &[3]),
        codes("w", 3, &[2, 2], &[2, 4, 6, 8]),
        codes("wz", 3, &[], &[0]),
        floats("ws", &[], &[0.25]),
    ];
    assert_eq!(left(nodes, tensors), ("linear add".into(), vec![0.5, 1.5, 1.0, 2.0]));
}
