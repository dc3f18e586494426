//! Files that are cut, changed, enormous, or something else altogether.

use prost::Message;
use prost::bytes::Bytes;
use prost::encoding::encode_varint;

use super::made::{File, body, function, graph, int, model, node, opset, says, tensor, with, write};
use crate::onnx::proto::{ModelProto, TensorProto, TrainingInfoProto};
use crate::onnx::{OnnxModel, Summary};

/// A small model with something of everything.
fn everything() -> Vec<u8> {
    let branch = |op: &str| graph("", "u", vec![node(op, "m", "u")]);
    let cond =
        with(node("i=If", "b", "y"), [body("then_branch", branch("Neg")), body("else_branch", branch("local:F"))]);
    let nodes = vec![with(node("f=local:F", "x w", "m"), [int("k", 3)]), node("com.microsoft:Cmp", "m h", "b"), cond];
    let mut g = graph("x w", "y", nodes);
    g.initializer = vec![
        TensorProto { float_data: vec![1.0, 2.0], ..tensor("w", 1, &[2]) },
        TensorProto { raw_data: Some(Bytes::from_static(&[1, 2, 3])), ..tensor("h", 21, &[6]) },
        TensorProto { int64_data: vec![1, -1], ..tensor("s", 7, &[2]) },
    ];
    let mut f = function("F", "a b", "r", vec![node("Abs", "a", "t"), node("Neg", "t", "r")]);
    f.attribute_proto = vec![int("k", 1)];
    let training_info = vec![TrainingInfoProto { algorithm: Some(graph("", "", vec![])), ..Default::default() }];
    let opset_import = vec![opset("", 20), opset("local", 1)];
    ModelProto { functions: vec![f], training_info, opset_import, ..model(g) }.encode_to_vec()
}

/// Opens a file of these bytes and reads all that is in it.
fn read(bytes: &[u8]) -> Result<(), String> {
    thread_local!(static FILE: File = write(b""));
    let path = FILE.with(|file| file.path.clone());
    std::fs::write(&path, bytes).unwrap();
    let model = OnnxModel::open(&path).map_err(|e| e.to_string())?;
    Summary::of(&model).map_err(|e| e.to_string())?;
    for t in model.graph().tensors() {
        model.tensor(t).map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[test]
fn a_file_that_is_cut_anywhere_is_an_error_or_valid() {
    let bytes = everything();
    read(&bytes).unwrap();
    let mut whole = 0;
    for len in 0..bytes.len() {
        match read(&bytes[..len]) {
            Ok(()) => whole += 1,
            Err(text) => says(&text, &["model.onnx", "\nhelp: "]),
        }
    }
    // Only where a part that nothing needs begins.
    assert!(whole < 4, "{whole}");
    says(&read(&bytes[..bytes.len() / 2]).unwrap_err(), &["is cut short or damaged: the field at byte"]);
}

#[test]
fn changed_bytes_never_panic() {
    let bytes = everything();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let (mut valid, mut refused) = (0, 0);
    for _ in 0..2000 {
        let mut changed = bytes.clone();
        for _ in 0..1 + next() % 3 {
            let (at, with) = (next() % changed.len(), next());
            changed[at] = if with & 256 == 0 { with as u8 } else { changed[at] ^ 1 << (with % 8) };
        }
        match read(&changed) {
            Ok(()) => valid += 1,
            Err(text) => {
                refused += 1;
                assert!(text.contains("\nhelp: "), "{text}");
            }
        }
    }
    assert!(valid > 100 && refused > 100, "{valid} valid, {refused} refused");
}

#[test]
fn what_is_no_onnx_file_is_named() {
    let mut safetensors = 40u64.to_le_bytes().to_vec();
    safetensors.extend(b"{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}      ");
    for (bytes, what) in [
        (&b""[..], "is empty"),
        (&safetensors, "is a safetensors file"),
        (b"PK\x03\x04\x14\x00", "is a zip archive"),
        (b"  {\"architectures\": []}", "is a JSON file"),
        (b"[1, 2]", "is a JSON file"),
        (b"# A model\n\nSee below.", "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
        (&[0; 64], "begins with zeros"),
        (b"\x08\x0a", "has no graph"),
        (b"\xff\xff\xff\xff", "is not a valid ONNX file"),
        (b"\x0b\x0c", "has a group, which the format does not use"),
    ] {
        says(&read(bytes).unwrap_err(), &["model.onnx", what, "\nhelp: "]);
    }
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("none.onnx")] {
        assert!(OnnxModel::open(&path).is_err());
    }
}

/// A length-delimited field.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(u64::from(number) << 3 | 2, &mut out);
    encode_varint(value.len() as u64, &mut out);
    out.extend(value);
    out
}

#[test]
fn a_small_file_cannot_ask_for_all_memory() {
    let repeated = |bytes: &[u8], n: usize| bytes.repeat(n);
    // Nodes, initializers, inputs, and attributes of one node, all of them empty.
    for (number, within) in [(1, None), (5, None), (11, None), (5, Some(1))] {
        let mut graph = repeated(&[number << 3 | 2, 0], 2_000_000);
        if let Some(outer) = within {
            graph = field(outer, &graph);
        }
        says(&read(&field(7, &graph)).unwrap_err(), &["MiB of memory, though it has only"]);
    }
    // Raw data is not memory, and justifies none.
    let mut graph = repeated(&[1 << 3 | 2, 0], 2_000_000);
    graph.extend(field(5, &field(9, &vec![0; 16 << 20])));
    says(&read(&field(7, &graph)).unwrap_err(), &["MiB of memory, though it has only"]);
    // Lists of small numbers are honest.
    let dims = field(5, &field(7, &vec![1; 8 << 20]));
    says(&read(&field(7, &dims)).unwrap_err(), &["does not say which version"]);
}

#[test]
fn raw_data_is_not_copied() {
    let n = 8 << 20;
    let t = TensorProto { raw_data: Some(vec![7; n].into()), ..tensor("t", 2, &[n as i64]) };
    let file = write(&super::made::holding(vec![t]).encode_to_vec());
    let model = OnnxModel::open(&file.path).unwrap();
    let t = &model.graph().initializers["t"];
    let (a, b) = (model.tensor(t).unwrap().bytes, t.raw_data.clone().unwrap());
    assert_eq!((a.as_ptr(), a.len()), (b.as_ptr(), n));
    assert!(matches!(a, std::borrow::Cow::Borrowed(_)));
}
