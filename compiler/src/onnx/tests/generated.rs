//! That the types in `proto.rs` are those of `onnx.proto`. `DLX_BLESS=1` writes them anew.

use std::path::Path;

/// What stands above the generated code.
const HEADER: &str = "\
//! The messages of `onnx.proto` (beside this file: ONNX 1.23.2, IR version 14), as prost generates them. Do not edit: change
//! `onnx.proto` and run the tests of this crate with `DLX_BLESS=1`. What a field means is said in `onnx.proto`.
#![allow(clippy::all, reason = \"generated code\")]

";

#[test]
fn the_generated_types_are_those_of_the_specification() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/onnx");
    let out = tempfile::tempdir().unwrap();
    let mut config = prost_build::Config::new();
    for field in ["t", "g", "sparse_tensor", "tp"] {
        // Most attributes are a number or two: they should not be as large as the largest.
        config.boxed(format!(".onnx.AttributeProto.{field}"));
    }
    config
        .bytes([".onnx.TensorProto.raw_data"])
        .disable_comments(["."])
        .out_dir(out.path())
        .compile_fds(protox::compile(["onnx.proto"], [&here]).unwrap())
        .unwrap();
    let want = HEADER.to_owned() + &std::fs::read_to_string(out.path().join("onnx.rs")).unwrap();
    let committed = here.join("proto.rs");
    if std::env::var_os("DLX_BLESS").is_some() {
        std::fs::write(&committed, &want).unwrap();
    }
    let have = std::fs::read_to_string(committed).unwrap();
    assert!(have == want, "proto.rs is not what prost makes of onnx.proto: run this test with DLX_BLESS=1");
}
