//! Broken files: what is wrong with the file, its graph or its tensors, whatever the nodes compute.

use super::made::{
    body, external, floats, function, graph, holding, input, int, ints, many, model, node, one, opset, tensor, value,
    with,
};
use super::onnx::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};
use super::{Case, case};
use prost::Message;

/// A valid model, with a graph that is changed.
fn changed(f: impl FnOnce(&mut GraphProto)) -> ModelProto {
    let mut m = one("a=Add", "x w", vec![floats("w", &[3], &[0.5; 3])]);
    f(m.graph.as_mut().unwrap());
    m
}

fn imports(opsets: &[(&str, i64)]) -> ModelProto {
    let mut m = one("a=Neg", "x", vec![]);
    m.opset_import = opsets.iter().map(|(domain, version)| opset(domain, *version)).collect();
    m
}

/// A model of one external tensor.
fn elsewhere(entries: &[(&str, &str)]) -> ModelProto {
    one("a=Add", "x w", vec![external("w", &[3], entries)])
}

/// Graphs inside each other.
fn nested(depth: usize) -> ModelProto {
    let mut inner = graph("", "u", vec![node("Neg", "x", "u")]);
    for _ in 0..depth {
        inner = graph("", "u", vec![with(node("If", "c", "u"), [body("then_branch", inner)])]);
    }
    many(vec![with(node("If", "c", "y"), [body("then_branch", inner)])], vec![tensor("c", 9, &[])])
}

/// Functions that call each other `calls` times, each ten times the next.
fn functions(calls: &[(&str, &str)]) -> ModelProto {
    let mut m = one("a=local:F0", "x", vec![]);
    m.opset_import.push(opset("local", 1));
    for (name, callee) in calls {
        let name_of = |n: usize| match n {
            0 => "p".to_owned(),
            10 => "r".to_owned(),
            n => format!("v{n}"),
        };
        let ten = (0..10).map(|n| node(callee, &name_of(n), &name_of(n + 1)));
        m.functions.push(function(name, "p", "r", ten.collect()));
    }
    m
}

fn raw(name: &str, number: i32, dims: &[i64], bytes: usize) -> TensorProto {
    TensorProto { raw_data: Some(vec![0; bytes].into()), ..tensor(name, number, dims) }
}

/// A model that reads `w`.
fn reads(w: TensorProto) -> ModelProto {
    one("a=Add", "x w", vec![w])
}

fn bytes(what: &'static str, bytes: &[u8], says: &'static [&'static str]) -> Case {
    Case { what, bytes: bytes.to_vec(), args: &[], says }
}

fn with_args(case: Case, args: &'static [&'static str]) -> Case {
    Case { args, ..case }
}

fn inputs(list: Vec<ValueInfoProto>) -> ModelProto {
    changed(|g| g.input = list)
}

pub(super) fn cases() -> Vec<Case> {
    let good = one("a=Neg", "x", vec![]).encode_to_vec();
    let dynamic = |name: &str| {
        use super::onnx::proto::{TensorShapeProto, TypeProto, tensor_shape_proto::*, type_proto};
        let value = Some(dimension::Value::DimParam(name.to_owned()));
        let dims = vec![Dimension { value, ..Default::default() }, Dimension::default()];
        let shape = Some(TensorShapeProto { dim: dims });
        let tensor = type_proto::Tensor { elem_type: Some(1), shape };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() });
        many_of(ValueInfoProto { name: Some("x".into()), r#type, ..Default::default() })
    };
    let mut old = one("a=Neg", "x", vec![]);
    old.opset_import.clear();
    let mut none = one("a=Neg", "x", vec![]);
    none.graph = None;
    let recursion = functions(&[("F0", "local:F1"), ("F1", "local:F0")]);
    let tower: Vec<(String, String)> = (0..9).map(|n| (format!("F{n}"), format!("local:F{}", n + 1))).collect();
    let tower: Vec<(&str, &str)> = tower.iter().map(|(a, b)| (a.as_str(), b.as_str())).chain([("F9", "Neg")]).collect();
    vec![
        bytes("an empty file", b"", &["is empty"]),
        bytes("text", b"hello, this is no protobuf at all\n", &["is a text file", ".onnx file"]),
        bytes("JSON", b"{\"architectures\": [\"X\"]}", &["is a JSON file"]),
        bytes("a zip archive", b"PK\x03\x04 and so on", &["zip"]),
        bytes("zeros", &[0; 4096], &["begins with zeros"]),
        bytes("cut by one byte", &good[..good.len() - 1], &["cut short or damaged"]),
        bytes("a length of 2^63", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", &["cut short or damaged"]),
        bytes("messages without end", &b"\x3a\x02\x0a\x00".repeat(1 << 18), &["case"]),
        case("no graph", &none, &["has no graph"]),
        case("no operator set", &old, &["does not say which version", "export the model again"]),
        case("no operator set of the standard", &imports(&[("ai.onnx.ml", 3)]), &["\"a\" (Neg)", "imports no version"]),
        case("version 0", &imports(&[("", 0)]), &["version 0"]),
        case("two versions", &imports(&[("", 20), ("ai.onnx", 13)]), &["20 and 13"]),
        case("a domain that is not imported", &one("a=my:Op", "x", vec![]), &["\"a\" (my.Op)", "domain \"my\""]),
        case("no output", &changed(|g| g.output.clear()), &["output"]),
        case("an output twice", &changed(|g| g.output.push(value("y"))), &["`y`"]),
        case("an output that nobody makes", &changed(|g| g.output.push(value("z"))), &["\"z\""]),
        case("an output without a name", &changed(|g| g.output = vec![value("")]), &["output"]),
        case("an input without a name", &inputs(vec![input("", 1, &[2, 3])]), &["without a name"]),
        case("an input twice", &inputs(vec![input("x", 1, &[2, 3]), input("x", 1, &[2, 3])]), &["\"x\""]),
        case("an input without a type", &inputs(vec![value("x")]), &["`x`", "no shape", "--dim NAME=N"]),
        case("an empty input", &inputs(vec![input("x", 1, &[0, 3])]), &["`x`", "empty tensor", "--dim NAME=N"]),
        case("a dynamic input", &dynamic("batch"), &["batch, x.1", "--dim \"batch=N\" --dim \"x.1=N\""]),
        with_args(case("a size too few", &dynamic("B"), &["--dim \"x.1=N\""]), &["--dim", "B=2"]),
        with_args(
            case("a size of nothing", &one("a=Neg", "x", vec![]), &["`seq`", "leave --dim out"]),
            &["--dim", "seq=2"],
        ),
        with_args(
            case("a size of something else", &dynamic("B"), &["`seq`", "there are B, x.1"]),
            &["--dim", "B=2", "--dim", "x.1=2", "--dim", "seq=2"],
        ),
        with_args(
            case("a size twice", &dynamic("B"), &["`B` twice", "\"B=N,N\""]),
            &["--dim", "B=2", "--dim", "B=3", "--dim", "x.1=2"],
        ),
        with_args(case("a size of 0", &dynamic("B"), &["`0` is no size"]), &["--dim", "B=0"]),
        case("an input of negative sizes", &inputs(vec![input("x", 1, &[-2, 3])]), &["x.0", "--dim \"x.0=N\""]),
        case(
            "an input of 2^62 elements",
            &inputs(vec![input("x", 1, &[1 << 31, 1 << 31])]),
            &["`x`", "[2147483648, 2147483648]"],
        ),
        case("an input of strings", &inputs(vec![input("x", 8, &[2, 3])]), &["`x`", "STRING"]),
        case("an input of complex numbers", &inputs(vec![input("x", 14, &[2, 3])]), &["`x`", "COMPLEX64"]),
        case("an input of an unknown type", &inputs(vec![input("x", 99, &[2, 3])]), &["\"x\"", "type 99"]),
        case(
            "a circle",
            &many(vec![node("a=Neg", "q", "p"), node("b=Neg", "p", "q"), node("Neg", "x", "y")], vec![]),
            &["in a circle", "\"a\"", "\"b\""],
        ),
        case("itself", &one("a=Add", "x y", vec![]), &["\"a\"", "itself"]),
        case("one name, two nodes", &many(vec![node("a=Neg", "x", "y"), node("b=Abs", "x", "y")], vec![]), &["\"b\""]),
        case("a node named like an initializer", &one("a=Neg", "x", vec![floats("y", &[1], &[1.0])]), &["\"y\""]),
        case("an initializer twice", &changed(|g| g.initializer.push(floats("w", &[3], &[0.0; 3]))), &["\"w\""]),
        case("an initializer without a name", &changed(|g| g.initializer[0].name = None), &["without a name"]),
        case("a name that nobody defines", &one("a=Add", "x nothing", vec![]), &["\"a\"", "\"nothing\""]),
        case(
            "an attribute twice",
            &many(vec![with(node("a=Softmax", "x", "y"), [int("axis", 0), int("axis", 1)])], vec![]),
            &["\"a\"", "\"axis\""],
        ),
        case("a node without an op", &one("a=", "x", vec![]), &["\"a\"", "no operator"]),
        case("graphs in graphs", &nested(17), &["inside"]),
        case("graphs deeper than messages may be", &nested(60), &["more than 100 messages"]),
        case("functions that call each other", &recursion, &["F0", "F1", "without end"]),
        case("functions that multiply", &functions(&tower), &["without local functions"]),
        case("negative sizes", &reads(tensor("w", 1, &[-1])), &["\"w\"", "negative"]),
        case("2^62 elements", &reads(tensor("w", 1, &[1 << 31, 1 << 31])), &["\"w\""]),
        case("sizes that overflow", &reads(tensor("w", 1, &[1 << 62, 1 << 62])), &["\"w\"", "too large"]),
        case("a byte too few", &reads(raw("w", 1, &[3], 11)), &["\"w\""]),
        case("a byte too many", &reads(raw("w", 1, &[3], 13)), &["\"w\""]),
        case("values in the wrong field", &reads(ints("w", &[1, 2, 3]).typed(1)), &["\"w\""]),
        case("values twice", &reads(TensorProto { float_data: vec![0.0; 3], ..raw("w", 1, &[3], 12) }), &["\"w\""]),
        case("a tensor of an unknown type", &reads(raw("w", 99, &[3], 12)), &["\"w\"", "type 99"]),
        case(
            "strings",
            &holding(vec![TensorProto { string_data: vec![b"a".to_vec()], ..tensor("w", 8, &[1]) }]),
            &["\"w\""],
        ),
        case("a file without a location", &elsewhere(&[]), &["\"w\""]),
        case("a file that is not there", &elsewhere(&[("location", "weights")]), &["\"w\"", "weights"]),
        case("an absolute file", &elsewhere(&[("location", "/etc/hostname")]), &["\"w\""]),
        case("a file outside", &elsewhere(&[("location", "../weights")]), &["\"w\""]),
        case("a file outside and back", &elsewhere(&[("location", "a/../../weights")]), &["\"w\""]),
        case("a directory", &elsewhere(&[("location", ".")]), &["\"w\""]),
        case("an offset that is no number", &elsewhere(&[("location", "case0.onnx"), ("offset", "-1")]), &["\"w\""]),
        case("an offset beyond", &elsewhere(&[("location", "case1.onnx"), ("offset", "99999")]), &["\"w\""]),
        case(
            "a length beyond",
            &elsewhere(&[("location", "case1.onnx"), ("length", "99999999999999999999")]),
            &["\"w\""],
        ),
        case("another length", &elsewhere(&[("location", "case1.onnx"), ("length", "8")]), &["\"w\""]),
        case("a file's name with a zero", &elsewhere(&[("location", "a\0b")]), &["\"w\""]),
    ]
}

fn many_of(x: ValueInfoProto) -> ModelProto {
    let mut g = graph("", "y", vec![node("a=Neg", "x", "y")]);
    g.input = vec![x];
    model(g)
}

/// A tensor whose type is not that of its values.
trait Typed {
    fn typed(self, number: i32) -> Self;
}

impl Typed for TensorProto {
    fn typed(mut self, number: i32) -> Self {
        self.data_type = Some(number);
        self
    }
}
