//! Every rule finds a smallest graph of its kind, and nothing in that graph's mended twin.

use prost::Message;

use super::*;
use crate::export::proto::{self, Elem, float, int, node, small};
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// A graph: inputs, constants, nodes. Its last node's first result is its output.
struct Made(Vec<(&'static str, Elem, Vec<usize>)>, Vec<TensorProto>, Vec<NodeProto>);

fn findings(made: Made) -> Vec<Finding> {
    let Made(inputs, initializer, node) = made;
    let output = node.last().unwrap().output[0].clone();
    let graph = GraphProto {
        name: Some("g".into()),
        input: inputs.iter().map(|(name, elem, dims)| proto::value(name, *elem, dims)).collect(),
        output: vec![proto::value(&output, Elem::F32, &[1])],
        initializer,
        node,
        ..Default::default()
    };
    let opset = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    let model = ModelProto {
        ir_version: Some(11),
        opset_import: vec![opset("", 23), opset("com.microsoft", 1)],
        graph: Some(graph),
        ..Default::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    lint(&OnnxModel::open(&path).unwrap())
}

fn x(dims: &[usize]) -> Vec<(&'static str, Elem, Vec<usize>)> {
    vec![("x", Elem::F32, dims.into())]
}

fn scalar(name: &str, v: f32) -> TensorProto {
    small(name, Elem::F32, &[], v.to_le_bytes().into())
}

fn floats(name: &str, values: &[f32]) -> TensorProto {
    small(name, Elem::F32, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Codes of `to` around a value: `NAME.q` and `NAME.d`.
fn coded(from: &str, name: &str, elem: Elem, scale: f32) -> (Vec<TensorProto>, Vec<NodeProto>) {
    let [s, z, q, d] = ["s", "z", "q", "d"].map(|part| format!("{name}.{part}"));
    let bytes = if matches!(elem, Elem::U16) { 2 } else { 1 };
    let constants = vec![scalar(&s, scale), small(&z, elem, &[], vec![0; bytes])];
    let nodes = vec![
        node("QuantizeLinear", &[from, &s, &z], &[&q], vec![]),
        node("DequantizeLinear", &[&q, &s, &z], &[&d], vec![]),
    ];
    (constants, nodes)
}

/// An int4 matrix `[4, 2]` behind scales per output, or blocks of two.
fn matrix(zeros: bool, factors: Option<u8>) -> (Vec<TensorProto>, Vec<NodeProto>) {
    let mut constants = vec![small("w", Elem::I4, &[4, 2], vec![0x21; 4]), floats("ws", &[0.1, 0.2])];
    let mut inputs = vec!["w", "ws"];
    let mut nodes = Vec::new();
    let mut attributes = vec![int("axis", 1)];
    if let Some(factor) = factors {
        constants.push(small("f", Elem::U8, &[2, 2], vec![1, 1, 1, factor]));
        constants.push(small("fz", Elem::U8, &[2], vec![0; 2]));
        nodes.push(node("DequantizeLinear", &["f", "ws", "fz"], &["fs"], vec![int("axis", 1)]));
        (inputs[1], attributes) = ("fs", vec![int("axis", 0), int("block_size", 2)]);
    }
    if zeros {
        constants.push(if factors.is_some() {
            small("wz", Elem::I4, &[2, 2], vec![0; 2])
        } else {
            small("wz", Elem::I4, &[2], vec![0])
        });
        inputs.push("wz");
    }
    nodes.push(node("DequantizeLinear", &inputs, &["wd"], attributes));
    (constants, nodes)
}

/// `x`, through codes if asked, times that matrix.
fn product(op: &str, zeros: bool, factors: Option<u8>) -> Made {
    let (mut constants, mut nodes) = matrix(zeros, factors);
    let (more, codes) = coded("x", "a", Elem::U16, 0.1);
    constants.extend(more);
    nodes.extend(codes);
    nodes.push(node(op, &["a.d", "wd"], &["y"], vec![]));
    Made(x(&[3, 4]), constants, nodes)
}

fn best(op: &str, columns: usize, codes: bool) -> Made {
    let (mut constants, mut nodes) = if codes { coded("x", "a", Elem::U16, 0.1) } else { (vec![], vec![]) };
    let source = if codes { "a.d" } else { "x" };
    if op == "TopK" {
        constants.push(small("k", Elem::I64, &[1], 1i64.to_le_bytes().into()));
        nodes.push(node("TopK", &[source, "k"], &["y", "i"], vec![]));
    } else {
        nodes.push(node(op, &[source], &["y"], vec![int("axis", -1)]));
    }
    Made(x(&[1, columns]), constants, nodes)
}

fn activations(first: Elem, second: Elem) -> Made {
    let inputs = vec![("x", Elem::F32, vec![2, 3, 4]), ("z", Elem::F32, vec![2, 4, 3])];
    let (mut constants, mut nodes) = coded("x", "a", first, 0.1);
    let (more, codes) = coded("z", "b", second, 0.1);
    constants.extend(more);
    nodes.extend(codes);
    nodes.push(node("MatMul", &["a.d", "b.d"], &["y"], vec![]));
    Made(inputs, constants, nodes)
}

fn repeated(expand: bool) -> Made {
    let inputs = vec![("x", Elem::F32, vec![2, 8, 4]), ("t", Elem::U16, vec![8, 4])];
    let sizes = [2i64, 8, 4].iter().flat_map(|d| d.to_le_bytes()).collect();
    let constants = vec![
        floats("ones", &[1.0; 4]),
        scalar("ts", 0.1),
        small("tz", Elem::U16, &[], vec![0; 2]),
        small("all", Elem::I64, &[3], sizes),
    ];
    let mut nodes = vec![
        node("RMSNormalization", &["x", "ones"], &["n"], vec![int("axis", -1), float("epsilon", 1e-6)]),
        node("DequantizeLinear", &["t", "ts", "tz"], &["td"], vec![]),
    ];
    if expand {
        nodes.push(node("Expand", &["td", "all"], &["te"], vec![]));
    }
    nodes.push(node("Mul", &["n", if expand { "te" } else { "td" }], &["y"], vec![]));
    Made(inputs, constants, nodes)
}

fn normed(weight: f32) -> Made {
    let (mut constants, mut nodes) = matrix(true, Some(3));
    constants.push(floats("g", &[1.0, 1.0, weight, 1.0]));
    nodes.push(node("RMSNormalization", &["x", "g"], &["n"], vec![int("axis", -1)]));
    let (more, codes) = coded("n", "a", Elem::U16, 0.1);
    constants.extend(more);
    nodes.extend(codes);
    nodes.push(node("MatMul", &["a.d", "wd"], &["y"], vec![]));
    Made(x(&[3, 4]), constants, nodes)
}

fn scattered(updates: f32) -> Made {
    let inputs = vec![("x", Elem::F32, vec![4, 2]), ("u", Elem::F32, vec![1, 2]), ("at", Elem::I64, vec![1, 2])];
    let (mut constants, mut nodes) = coded("x", "a", Elem::U16, 0.1);
    for (from, name, scale) in [("u", "b", updates), ("c", "e", 0.1)] {
        let (more, codes) = coded(from, name, Elem::U16, scale);
        if from == "c" {
            nodes.push(node("ScatterElements", &["a.d", "at", "b.d"], &["c"], vec![int("axis", 0)]));
        }
        constants.extend(more);
        nodes.extend(codes);
    }
    Made(inputs, constants, nodes)
}

fn norm_of(rank: usize, codes: Option<Elem>) -> Made {
    let dims: Vec<usize> = (0..rank).map(|_| 4).collect();
    let mut constants = vec![floats("ones", &[1.0; 4])];
    let mut nodes = Vec::new();
    let mut weight = "ones";
    if let Some(elem) = codes {
        let bytes = if matches!(elem, Elem::U16) { 2 } else { 1 };
        constants =
            vec![small("g", elem, &[4], vec![1; 4 * bytes]), scalar("gs", 0.1), small("gz", elem, &[], vec![0; bytes])];
        nodes.push(node("DequantizeLinear", &["g", "gs", "gz"], &["gd"], vec![]));
        weight = "gd";
    }
    nodes.push(node("RMSNormalization", &["x", weight], &["y"], vec![int("axis", -1)]));
    Made(x(&dims), constants, nodes)
}

fn nbits(rank: usize, zeros: Option<Elem>) -> Made {
    let dims: Vec<usize> = [1, 2, 16].into_iter().skip(3 - rank).collect();
    let mut constants = vec![small("b", Elem::U8, &[2, 1, 8], vec![0; 16]), floats("s", &[0.1, 0.1])];
    let mut inputs = vec!["x", "b", "s"];
    if let Some(elem) = zeros {
        constants.push(if elem == Elem::U8 { small("z", elem, &[2], vec![8; 2]) } else { floats("z", &[8.0, 8.0]) });
        inputs.push("z");
    }
    let attributes = vec![int("K", 16), int("N", 2), int("bits", 4), int("block_size", 16)];
    let product = node("MatMulNBits", &inputs, &["y"], attributes);
    Made(x(&dims), constants, vec![NodeProto { domain: Some("com.microsoft".into()), ..product }])
}

fn alone(codes: bool) -> Made {
    let (mut constants, mut nodes) = coded("x", "a", Elem::U16, 0.1);
    constants.extend([
        small("w", Elem::I8, &[4, 2], vec![1; 8]),
        floats("ws", &[0.1, 0.2]),
        small("wz", Elem::I8, &[2], vec![0; 2]),
    ]);
    nodes.push(node("DequantizeLinear", &["w", "ws", "wz"], &["wd"], vec![int("axis", 1)]));
    nodes.push(node("MatMul", &[if codes { "a.d" } else { "x" }, "wd"], &["y"], vec![]));
    Made(x(&[3, 4]), constants, nodes)
}

fn softmax(columns: usize) -> Made {
    let (constants, codes) = coded("p", "a", Elem::U16, 0.1);
    let mut nodes = vec![node("Softmax", &["x"], &["p"], vec![int("axis", -1)])];
    nodes.extend(codes);
    Made(x(&[1, columns]), constants, nodes)
}

fn one(op: &str) -> Made {
    Made(x(&[2, 3]), vec![], vec![node(op, &["x"], &["y"], vec![])])
}

#[test]
fn every_rule_finds_its_graph_and_not_the_mended_one() {
    let cases: Vec<(&str, Made, Made)> = vec![
        ("int4-without-zero-point", product("MatMul", false, None), product("MatMul", true, None)),
        ("wide-indices", best("TopK", 70_000, false), best("TopK", 65_536, false)),
        ("wide-indices", best("ArgMax", 70_000, true), best("ArgMax", 70_000, false)),
        ("two-16-bit-activations", activations(Elem::U16, Elem::U16), activations(Elem::U16, Elem::U8)),
        ("norm-times-repeated-input", repeated(false), repeated(true)),
        ("weighted-norm-before-blocks", normed(1.5), normed(1.0)),
        ("scatter-of-unequal-scales", scattered(0.2), scattered(0.1)),
        ("block-factor-too-large", product("MatMul", true, Some(17)), product("MatMul", true, Some(15))),
        ("blocks-without-zeros", product("MatMul", false, Some(3)), product("MatMul", true, Some(3))),
        ("blocks-in-gemm", product("Gemm", true, Some(3)), product("MatMul", true, Some(3))),
        ("norm-weight-of-signed-codes", norm_of(3, Some(Elem::I8)), norm_of(3, Some(Elem::U16))),
        ("too-many-dimensions", norm_of(5, None), norm_of(4, None)),
        ("nbits-form", nbits(2, None), nbits(3, None)),
        ("nbits-form", nbits(3, Some(Elem::F32)), nbits(3, Some(Elem::U8))),
        ("weights-alone-per-output", alone(false), alone(true)),
        ("long-16-bit-softmax", softmax(4096), softmax(512)),
        ("operator", one("Erf"), one("Tanh")),
    ];
    for rule in RULES {
        assert!(cases.iter().any(|(name, ..)| *name == rule.name), "{} has no case", rule.name);
    }
    for (rule, wrong, right) in cases {
        let found: Vec<&str> = findings(wrong).iter().map(|f| f.rule).collect();
        assert_eq!(found, [rule]);
        assert_eq!(findings(right), [], "{rule}");
    }
}

/// A shape is followed once per node, however many ways lead to it.
#[test]
fn shapes_pass_through_doubling_chains() {
    let names: Vec<String> = (0..200).map(|i| if i == 0 { "x".into() } else { format!("y{i}") }).collect();
    let doubled = names.windows(2).map(|w| node("Add", &[&w[0], &w[0]], &[&w[1]], vec![]));
    let found = findings(Made(x(&[1, 1, 1, 1, 1, 2]), vec![], doubled.collect()));
    assert_eq!(found.iter().filter(|f| f.rule == "too-many-dimensions").count(), 199);
}
