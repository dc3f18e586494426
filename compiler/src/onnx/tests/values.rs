//! Values of tensors, in every form that a file may have them.

use std::borrow::Cow;

use prost::bytes::Bytes;

use super::made::{holding, open, says, tensor};
use crate::onnx::proto::TensorProto;
use crate::onnx::proto::tensor_proto::DataType;
use crate::onnx::{ElemType, RawTensor};

/// Type, dims, bytes of the only initializer of a model.
fn read(t: TensorProto) -> Result<(ElemType, Vec<usize>, Vec<u8>), String> {
    let model = open(&holding(vec![t]))?;
    let t = model.graph().initializers.values().next().unwrap();
    let RawTensor { elem, dims, bytes } = model.tensor(t).map_err(|e| e.to_string())?;
    Ok((elem, dims, bytes.into_owned()))
}

fn bytes(t: TensorProto) -> Vec<u8> {
    read(t).unwrap().2
}

#[track_caller]
fn fails(t: TensorProto, parts: &[&str]) {
    says(&read(t).expect_err("the tensor is valid"), &[&["tensor \"t\""], parts].concat());
}

#[test]
fn every_type_of_the_specification_has_a_row() {
    let known: Vec<i32> = (1..100).filter(|n| DataType::try_from(*n).is_ok()).collect();
    assert_eq!(ElemType::all().map(ElemType::number).collect::<Vec<_>>(), known);
    for elem in ElemType::all() {
        assert_eq!(DataType::from_str_name(elem.name()).map(i32::from), Some(elem.number()));
        assert_eq!(ElemType::from_number(elem.number()), Some(elem));
    }
    assert_eq!((ElemType::from_number(0), ElemType::from_number(29), ElemType::from_number(-1)), (None, None, None));
    assert_eq!(ElemType::Float8E4m3fn.to_string(), "FLOAT8E4M3FN");
}

#[test]
fn typed_fields_become_packed_bytes() {
    let ints =
        |number, dims: &[i64], v: &[i32]| bytes(TensorProto { int32_data: v.to_vec(), ..tensor("t", number, dims) });
    let floats =
        |number, dims: &[i64], v: &[f32]| bytes(TensorProto { float_data: v.to_vec(), ..tensor("t", number, dims) });
    let uints =
        |number, v: &[u64]| bytes(TensorProto { uint64_data: v.to_vec(), ..tensor("t", number, &[v.len() as i64]) });
    let doubles = |number, n, v: &[f64]| bytes(TensorProto { double_data: v.to_vec(), ..tensor("t", number, &[n]) });
    assert_eq!(floats(1, &[2], &[1.0, -2.5]), [1f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat());
    assert_eq!(floats(14, &[1], &[1.0, 2.0]), [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
    assert_eq!(doubles(11, 1, &[0.1]), 0.1f64.to_le_bytes());
    assert_eq!(doubles(15, 1, &[1.0, 2.0]), [1f64.to_le_bytes(), 2f64.to_le_bytes()].concat());
    assert_eq!(ints(2, &[2], &[0, 255]), [0, 255]);
    assert_eq!(ints(3, &[2], &[-128, 127]), [128, 127]);
    assert_eq!(ints(4, &[1], &[65535]), [255, 255]);
    assert_eq!(ints(5, &[1], &[-2]), [254, 255]);
    assert_eq!(ints(6, &[1], &[-2]), [254, 255, 255, 255]);
    assert_eq!(ints(9, &[2], &[0, 1]), [0, 1]);
    for number in [10, 16] {
        assert_eq!(ints(number, &[1], &[0x3c01]), [1, 0x3c]);
    }
    for number in [17, 18, 19, 20, 24] {
        assert_eq!(ints(number, &[2], &[0x80, 3]), [0x80, 3]);
    }
    for number in [21, 22, 23] {
        assert_eq!(ints(number, &[3], &[0x21, 0x03]), [0x21, 0x03]);
    }
    assert_eq!(ints(22, &[2], &[-1]), [255]);
    for number in [25, 26] {
        assert_eq!(ints(number, &[5], &[0b11_10_01_00, 0b10]), [0b11_10_01_00, 0b10]);
    }
    for number in [27, 28] {
        // x0 | (x1 & 3) << 6, x1 >> 2 | (x2 & 15) << 4, x2 >> 4 | x3 << 2, and the rest padded.
        let (x0, x1, x2, x3, x4) = (0b10_1010, 0b01_1001, 0b11_0110, 0b10_0001, 0b11_1111);
        let want = [x0 | (x1 & 3) << 6, x1 >> 2 | (x2 & 15) << 4, x2 >> 4 | x3 << 2, x4].map(|v: i32| v as u8);
        assert_eq!(ints(number, &[5], &[x0, x1, x2, x3, x4]), want);
    }
    assert_eq!(uints(12, &[u64::from(u32::MAX)]), [255; 4]);
    assert_eq!(uints(13, &[u64::MAX, 1])[..9], [255, 255, 255, 255, 255, 255, 255, 255, 1]);
    assert_eq!(bytes(TensorProto { int64_data: vec![-1], ..tensor("t", 7, &[]) }), [255; 8]);
}

#[test]
fn raw_data_stays_where_it_is() {
    let raw = |number, dims: &[i64], raw: &'static [u8]| TensorProto {
        raw_data: Some(Bytes::from_static(raw)),
        ..tensor("t", number, dims)
    };
    let model = open(&holding(vec![raw(22, &[3, 1], &[0x21, 3])])).unwrap();
    let t = model.tensor(&model.graph().initializers["t"]).unwrap();
    assert!(matches!(t.bytes, Cow::Borrowed([0x21, 3])), "{:?}", t.bytes);
    assert_eq!((t.elem, t.dims), (ElemType::Int4, vec![3, 1]));
    assert_eq!(bytes(raw(27, &[5], &[1, 2, 3, 4])), [1, 2, 3, 4]);
    assert!(bytes(raw(1, &[0, 7], &[])).is_empty());
    assert!(bytes(tensor("t", 1, &[0])).is_empty());
    fails(raw(1, &[2], &[0; 7]), &["has 7 bytes, FLOAT[2] need 8"]);
    fails(raw(21, &[3], &[0; 3]), &["has 3 bytes, UINT4[3] need 2"]);
    fails(TensorProto { float_data: vec![1.0], ..raw(1, &[1], &[0; 4]) }, &["twice: in raw_data and in float_data"]);
    // An empty raw_data beside values is a habit of some writers.
    assert_eq!(bytes(TensorProto { int64_data: vec![1], ..raw(7, &[1], &[]) })[0], 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let ints = |number, dims: &[i64], v: &[i32]| TensorProto { int32_data: v.to_vec(), ..tensor("t", number, dims) };
    fails(ints(2, &[1], &[256]), &["256 in int32_data, which is no UINT8"]);
    fails(ints(3, &[1], &[-129]), &["-129 in int32_data"]);
    fails(ints(9, &[1], &[2]), &["2 in int32_data, which is no BOOL"]);
    fails(ints(10, &[1], &[-1]), &["-1 in int32_data"]);
    fails(ints(27, &[1], &[64]), &["64 in int32_data"]);
    fails(ints(6, &[2, 2], &[1, 2, 3]), &["has 3 values in int32_data, INT32[2, 2] need 4"]);
    fails(ints(22, &[4], &[1, 2, 3, 4]), &["has 4 values in int32_data, INT4[4] need 2"]);
    fails(ints(7, &[1], &[1]), &["has 1 values in int32_data, those of INT64 belong in int64_data"]);
    fails(TensorProto { uint64_data: vec![1 << 32], ..tensor("t", 12, &[1]) }, &["4294967296 in uint64_data"]);
    fails(TensorProto { float_data: vec![1.0], ..tensor("t", 14, &[1]) }, &["COMPLEX64[1] need 2"]);
    fails(TensorProto { int64_data: vec![1], ..ints(6, &[1], &[1]) }, &["twice: in int32_data and in int64_data"]);
    fails(tensor("t", 1, &[3]), &["has no values"]);
    fails(tensor("t", 0, &[3]), &["element type 0"]);
    fails(tensor("t", 99, &[3]), &["element type 99"]);
    fails(tensor("t", 1, &[3, -1]), &["negative dimension: [3, -1]"]);
}

#[test]
fn huge_dimensions_allocate_nothing() {
    for dims in [&[1i64 << 62][..], &[1 << 62, 0], &[1 << 32, 1 << 32], &[i64::MAX], &[1 << 61; 300]] {
        fails(tensor("t", 1, dims), &["too large for any memory"]);
    }
    fails(TensorProto { float_data: vec![0.0; 3], ..tensor("t", 1, &[1 << 40]) }, &["has 3 values in float_data"]);
    fails(TensorProto { int32_data: vec![0; 3], ..tensor("t", 21, &[1 << 40]) }, &["need 549755813888"]);
    fails(TensorProto { raw_data: Some(Bytes::from_static(&[0])), ..tensor("t", 1, &[1 << 40]) }, &["has 1 bytes"]);
}

#[test]
fn strings_are_read_as_such() {
    let strings = |data: &[&[u8]], dims: &[i64]| TensorProto {
        string_data: data.iter().map(|s| s.to_vec()).collect(),
        ..tensor("t", 8, dims)
    };
    let read = |t: TensorProto| {
        let model = open(&holding(vec![t])).unwrap();
        let t = &model.graph().initializers["t"];
        model.strings(t).map(|s| s.join("|")).map_err(|e| e.to_string())
    };
    assert_eq!(read(strings(&[b"a", b""], &[2, 1])).unwrap(), "a|");
    says(&read(strings(&[b"a"], &[2])).unwrap_err(), &["has 1 strings, STRING[2] need 2"]);
    says(&read(strings(&[b"\xff"], &[1])).unwrap_err(), &["not UTF-8"]);
    says(&read(tensor("t", 1, &[1])).unwrap_err(), &["holds FLOAT where strings are needed"]);
    fails(strings(&[b"a"], &[1]), &["holds strings where numbers are needed"]);
}
