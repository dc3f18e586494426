//! Messages of an ONNX file, made.

use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::type_proto::{self, Tensor};
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto};

/// Element types that an export writes, by their numbers in `onnx.proto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Elem {
    /// 32-bit float.
    F32 = 1,
    /// Byte.
    U8 = 2,
    /// Signed byte.
    I8 = 3,
    /// 16-bit code.
    U16 = 4,
    /// Shapes and indices.
    I64 = 7,
    /// 16-bit float.
    F16 = 10,
    /// Signed code of four bits, two to a byte.
    I4 = 22,
}

/// A tensor without its elements.
pub(super) fn tensor(name: &str, elem: Elem, dims: &[usize]) -> TensorProto {
    TensorProto { name: Some(name.into()), data_type: Some(elem as i32), dims: signed(dims), ..Default::default() }
}

/// A tensor with its elements.
pub(super) fn small(name: &str, elem: Elem, dims: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto { raw_data: Some(bytes.into()), ..tensor(name, elem, dims) }
}

/// An input or an output.
pub(super) fn value(name: &str, elem: Elem, dims: &[usize]) -> ValueInfoProto {
    let dim = |d: &i64| Dimension { value: Some(dimension::Value::DimValue(*d)), ..Default::default() };
    let shape = TensorShapeProto { dim: signed(dims).iter().map(dim).collect() };
    let ty = Tensor { elem_type: Some(elem as i32), shape: Some(shape) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(ty)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..Default::default() }
}

/// A node of the standard operators, called what its first result is called.
pub(super) fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    NodeProto {
        name: outputs.first().map(|n| (*n).to_owned()),
        op_type: Some(op.into()),
        input: list(inputs),
        output: list(outputs),
        attribute,
        ..Default::default()
    }
}

/// An integer attribute.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, AttributeType::Int) }
}

/// A float attribute.
pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f: Some(f), ..attribute(name, AttributeType::Float) }
}

/// An attribute of several integers.
pub(super) fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

fn attribute(name: &str, r#type: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(r#type as i32), ..Default::default() }
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect()
}
