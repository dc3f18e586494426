//! Broken files, and what each says: one error that names the file, node or tensor, in bounded time and memory.

use prost::Message;

use super::made::{
    File, body, external, floats, function, graph, holding, input, int, ints, many, node, one, opset, tensor, with,
    write,
};
use crate::onnx::proto::{ModelProto, TensorProto, ValueInfoProto};
use crate::onnx::{Binding, OnnxModel, import, shapes};

/// What opening and importing a file says.
fn said(bytes: &[u8]) -> Result<usize, String> {
    let file: File = write(bytes);
    let model = OnnxModel::open(&file.path).map_err(|e| e.to_string())?;
    let shapes = shapes(&model, &Default::default()).map_err(|e| e.to_string())?;
    let binding = Binding { shapes, exact: true, ..Binding::default() };
    import(&model, "broken", &binding).map(|i| i.module.graphs[0].nodes.len()).map_err(|e| e.to_string())
}

fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let of = |m: ModelProto| m.encode_to_vec();
    let valid = of(one("Neg", "x", vec![]));
    let mut no_graph = one("Neg", "x", vec![]);
    no_graph.graph = None;
    let mut no_opset = one("Neg", "x", vec![]);
    no_opset.opset_import.clear();
    let mut twice = one("Neg", "x", vec![]);
    twice.opset_import.push(opset("ai.onnx", 13));
    let mut outputs = one("Neg", "x", vec![]);
    outputs.graph.as_mut().unwrap().output.push(input("z", 1, &[1]));
    let mut dynamic = one("Neg", "x", vec![]);
    dynamic.graph.as_mut().unwrap().input = vec![ValueInfoProto { ..input("x", 1, &[]) }];
    dynamic.graph.as_mut().unwrap().input[0].r#type = None;
    let mut empty_input = one("Neg", "x", vec![]);
    empty_input.graph.as_mut().unwrap().input = vec![input("x", 1, &[2, 0])];
    let mut complex = one("Neg", "x", vec![]);
    complex.graph.as_mut().unwrap().input = vec![input("x", 14, &[2])];
    let mut recursive = one("f=local:F", "x", vec![]);
    recursive.functions = vec![function("F", "a", "b", vec![node("again=local:F", "a", "b")])];
    recursive.opset_import.push(opset("local", 1));
    let deep = {
        let mut inner = graph("", "y", vec![node("Neg", "x", "y")]);
        for _ in 0..40 {
            let cond = with(node("If", "c", "y"), [body("then_branch", inner.clone()), body("else_branch", inner)]);
            inner = graph("", "y", vec![cond]);
            // Both branches double the file; one level is enough to nest further.
            inner.node[0].attribute.truncate(1);
        }
        let mut m = one("Neg", "x", vec![tensor("c", 9, &[])]);
        m.graph.as_mut().unwrap().node = inner.node;
        m
    };
    let branch = |op: &str| graph("", "r", vec![node(op, "x", "r")]);
    let choice = with(node("If", "c", "y"), [body("then_branch", branch("Neg")), body("else_branch", branch("Shape"))]);
    let mut run_time = many(vec![choice], vec![]);
    run_time.graph.as_mut().unwrap().input.push(input("c", 9, &[]));
    let endless = {
        let mut inner = graph("i go v", "go w", vec![node("Neg", "v", "w")]);
        inner.input[0] = input("i", 7, &[]);
        with(node("Loop", "_ _ x", "y"), [body("body", inner)])
    };
    let raw =
        |dims: &[i64], bytes: usize| TensorProto { raw_data: Some(vec![0; bytes].into()), ..tensor("w", 1, dims) };
    let shape = |list: &[i64]| ints("s", list);
    vec![
        ("empty file", vec![], "is empty"),
        ("cut in the middle", valid[..valid.len() / 2].to_vec(), "model.onnx"),
        ("text", b"hello, this is no protobuf at all\n".to_vec(), "model.onnx"),
        ("JSON", b"{\"architectures\": [\"X\"]}".to_vec(), "model.onnx"),
        ("zip archive", b"PK\x03\x04 and so on".to_vec(), "zip"),
        ("no graph", of(no_graph), "has no graph"),
        ("no operator set", of(no_opset), "does not say which version"),
        ("two versions of one domain", of(twice), "model.onnx"),
        (
            "circle",
            of(many(vec![node("a=Neg", "q", "p"), node("b=Neg", "p", "q"), node("Neg", "x", "y")], vec![])),
            "\"a\"",
        ),
        ("one name, two nodes", of(many(vec![node("a=Neg", "x", "y"), node("b=Abs", "x", "y")], vec![])), "\"b\""),
        ("node and initializer of one name", of(one("a=Neg", "x", vec![floats("y", &[1], &[1.0])])), "\"y\""),
        ("an input that nobody defines", of(one("a=Add", "x nothing", vec![])), "nothing"),
        ("an output that nobody defines", of(outputs), "\"z\""),
        ("no type of an input", of(dynamic), "`x`"),
        ("empty input", of(empty_input), "an empty tensor"),
        ("complex numbers", of(complex), "COMPLEX64"),
        (
            "unknown ops",
            of(many(vec![node("a=Foo", "x", "p"), node("b=Foo", "p", "q"), node("c=Bar", "q", "y")], vec![])),
            "Foo ×2",
        ),
        (
            "integers and floats",
            of(one("a=MatMul", "x w", vec![TensorProto { int64_data: vec![1; 6], ..tensor("w", 7, &[3, 2]) }])),
            "node \"a\"",
        ),
        ("And of floats", of(one("a=And", "x x", vec![])), "node \"a\""),
        ("sizes that do not fit", of(one("a=Add", "x w", vec![floats("w", &[4], &[0.0; 4])])), "node \"a\""),
        (
            "a product that does not fit",
            of(one("a=MatMul", "x w", vec![floats("w", &[2, 2], &[0.0; 4])])),
            "node \"a\"",
        ),
        ("reshape to other elements", of(one("a=Reshape", "x s", vec![shape(&[5])])), "cannot become"),
        ("no attribute", of(one("a=Cast", "x", vec![])), "`to` is missing"),
        (
            "attribute of another type",
            of(many(vec![with(node("a=Softmax", "x", "y"), [body("axis", graph("", "", vec![]))])], vec![])),
            "axis",
        ),
        ("no input", of(one("a=Add", "x", vec![])), "input 1 is missing"),
        ("axis beyond", of(many(vec![with(node("a=Softmax", "x", "y"), [int("axis", 7)])], vec![])), "axis 7"),
        ("2^62 elements", of(one("a=Expand", "x s", vec![shape(&[1 << 31, 1 << 31, 2, 3])])), "node \"a\""),
        ("gigabytes of zeros", of(one("a=ConstantOfShape", "s", vec![shape(&[1 << 20, 1 << 15])])), "node \"a\""),
        (
            "a range without end",
            of(one(
                "a=Range",
                "f l d",
                vec![floats("f", &[], &[0.0]), floats("l", &[], &[1e12]), floats("d", &[], &[1.0])],
            )),
            "no range",
        ),
        ("repeated beyond measure", of(one("a=Tile", "x s", vec![shape(&[1 << 40, 1 << 40])])), "node \"a\""),
        (
            "an index out of range",
            of(one("a=Gather", "w s", vec![floats("w", &[2], &[0.0; 2]), shape(&[5])])),
            "node \"a\"",
        ),
        ("division by zero", of(one("a=Div", "s z", vec![shape(&[1]), ints("z", &[0])])), "node \"a\""),
        ("a function that calls itself", of(recursive), "F"),
        ("subgraphs in subgraphs", of(deep), "model.onnx"),
        ("branches of two types", of(run_time), "If"),
        ("a loop without end", of(many(vec![endless], vec![])), "Loop"),
        ("negative sizes", of(one("a=Add", "x w", vec![tensor("w", 1, &[-1])])), "w"),
        ("2^62 sizes", of(one("a=Add", "x w", vec![tensor("w", 1, &[1 << 31, 1 << 31])])), "w"),
        ("too few bytes", of(holding(vec![raw(&[4], 15)])), "w"),
        ("too many bytes", of(holding(vec![raw(&[4], 17)])), "w"),
        ("twice the data", of(holding(vec![TensorProto { float_data: vec![0.0; 4], ..raw(&[4], 16) }])), "w"),
        (
            "strings",
            of(holding(vec![TensorProto { string_data: vec![b"a".to_vec()], ..tensor("w", 8, &[1]) }])),
            "strings",
        ),
        ("unknown element type", of(holding(vec![tensor("w", 99, &[1])])), "w"),
        ("another file, absolute", of(holding(vec![external("w", &[1], &[("location", "/etc/hostname")])])), "w"),
        ("another file, outside", of(holding(vec![external("w", &[1], &[("location", "../weights")])])), "w"),
        ("another file, missing", of(holding(vec![external("w", &[1], &[("location", "weights")])])), "w"),
        (
            "another file, beyond its end",
            of(holding(vec![external("w", &[1], &[("location", "model.onnx"), ("offset", "99999")])])),
            "w",
        ),
        (
            "another file, no number",
            of(holding(vec![external("w", &[1], &[("location", "model.onnx"), ("offset", "-1")])])),
            "w",
        ),
    ]
}

#[test]
fn every_broken_file_says_what_is_wrong() {
    let begin = std::time::Instant::now();
    let mut wrong = Vec::new();
    let all = cases();
    for (name, bytes, part) in &all {
        match said(bytes) {
            Err(text) if text.contains(part) => {
                // The directory is another one each time.
                let shown = text.split_once("model.onnx").map_or(text.as_str(), |(_, rest)| rest);
                println!("{name}\n    model.onnx{}", shown.replace('\n', "\n    "));
            }
            Err(text) => wrong.push(format!("{name}: {part:?} is not in: {text}")),
            Ok(nodes) => wrong.push(format!("{name}: became {nodes} nodes")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(all.len() >= 40 && begin.elapsed().as_secs() < 20, "{} files in {:?}", all.len(), begin.elapsed());
    assert!(said(&one("Neg", "x", vec![]).encode_to_vec()).is_ok_and(|nodes| nodes == 1));
}
