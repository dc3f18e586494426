//! Names, order and attributes of graphs.

use super::made::{body, graph, int, model, node, open, opset, refuses, says, tensor, text, value, with};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::{AttributeProto, TensorProto, TypeProto, tensor_shape_proto, type_proto};
use crate::onnx::{ElemType, Summary};

#[test]
fn nodes_are_put_in_order_and_others_stay() {
    let nodes = vec![node("Add", "b a", "y"), node("Neg", "x", "a"), node("Abs", "a", "b"), node("Neg", "x", "c")];
    let opened = open(&model(graph("x", "y", nodes))).unwrap();
    assert_eq!(text(opened.graph()), "a = Neg(x)\nb = Abs(a)\ny = Add(b, a)\nc = Neg(x)\n");
    assert_eq!(opened.notes(), ["nodes were not in order: they were sorted"]);
    let nodes = vec![node("Neg", "x", "c"), node("Neg", "x", "a"), node("Clip", "a _ c", "_ y")];
    let opened = open(&model(graph("x", "y", nodes))).unwrap();
    assert_eq!(text(opened.graph()), "c = Neg(x)\na = Neg(x)\n, y = Clip(a, , c)\n");
    assert!(opened.notes().is_empty());
}

#[test]
fn what_is_read_must_be_defined() {
    refuses(&model(graph("x", "y", vec![node("n=Add", "x z", "y")])), &["node \"n\" (Add)", "reads \"z\""]);
    refuses(&model(graph("x", "y", vec![node("Add", "x x", "z")])), &["the graph", "output \"y\" is not defined"]);
    refuses(&model(graph("x _", "x", vec![])), &["input without a name"]);
    assert!(open(&model(graph("x", "x", vec![]))).is_ok());
}

#[test]
fn a_name_is_defined_once() {
    let two = |b| model(graph("x", "y", vec![node("a=Neg", "x", "y"), b]));
    refuses(&two(node("b=Abs", "x", "y")), &["node \"b\" (Abs)", "\"y\"", "node \"a\" (Neg) defines it too"]);
    refuses(&two(node("b=Abs", "x", "x")), &["node \"b\" (Abs)", "\"x\"", "an input is named so too"]);
    refuses(&two(node("b=Split", "x", "z z")), &["node \"b\" (Split)", "node \"b\" (Split) defines it too"]);
    refuses(&model(graph("x x", "x", vec![])), &["\"x\"", "an input is named so too"]);
    let mut m = two(node("b=Abs", "x", "w"));
    m.graph.as_mut().unwrap().initializer = vec![tensor("w", 1, &[0])];
    refuses(&m, &["node \"b\" (Abs)", "\"w\"", "an initializer is named so too"]);
    m.graph.as_mut().unwrap().initializer = vec![tensor("v", 1, &[0]), tensor("v", 1, &[0])];
    refuses(&m, &["two initializers named \"v\""]);
    m.graph.as_mut().unwrap().initializer = vec![tensor("", 1, &[0])];
    refuses(&m, &["initializer without a name"]);
    // An unnamed node is named by what it defines.
    refuses(&two(node("Abs", "q", "z")), &["node of \"z\" (Abs)"]);
}

#[test]
fn an_input_with_a_default_is_an_initializer() {
    let mut m = model(graph("x w", "y", vec![node("Add", "x w", "y")]));
    m.graph.as_mut().unwrap().initializer = vec![TensorProto { float_data: vec![1.0], ..tensor("w", 1, &[]) }];
    let opened = open(&m).unwrap();
    assert_eq!(opened.graph().inputs.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["x"]);
    assert!(opened.graph().initializers.contains_key("w"));
}

#[test]
fn circles_are_named() {
    let nodes = vec![
        node("a=Neg", "x", "a"),
        node("b=Add", "a d", "b"),
        node("c=Neg", "b", "c"),
        node("d=Abs", "c", "d"),
        node("e=Abs", "d", "e"),
    ];
    let parts = ["in a circle: ", "node \"b\" (Add)", "node \"c\" (Neg)", "node \"d\" (Abs)"];
    let text = open(&model(graph("x", "e", nodes))).unwrap_err();
    says(&text, &parts);
    assert!(!text.contains("\"e\"") && !text.contains("\"a\""), "{text}");
    refuses(
        &model(graph("x", "y", vec![node("n=Neg", "y", "y")])),
        &["node \"n\" (Neg)", "reads what it defines itself"],
    );
}

#[test]
fn graphs_inside_nodes_see_those_around_them() {
    let branch = |nodes, out: &str| graph("", out, nodes);
    let then = branch(vec![node("Neg", "t", "u"), node("Abs", "late", "t")], "u");
    let other = branch(vec![node("Neg", "x", "u")], "u");
    let cond = with(node("i=If", "c", "y"), [body("then_branch", then), body("else_branch", other)]);
    let opened = open(&model(graph("x c", "y", vec![cond.clone(), node("Neg", "x", "late")]))).unwrap();
    let want = "late = Neg(x)\ny = If(c)\nelse_branch:\n  u = Neg(x)\n  -> u\nthen_branch:\n  t = Abs(late)\n  u = Neg(t)\n  -> u\n";
    assert_eq!(text(opened.graph()), want);
    let node_ = &opened.graph().nodes[1];
    assert_eq!(node_.graph("then_branch").unwrap().unwrap().nodes.len(), 2);
    says(&node_.int("then_branch").unwrap_err().to_string(), &["is a graph where INT is needed"]);
    assert_eq!(Summary::of(&opened).unwrap().subgraphs, 2);

    refuses(&model(graph("x c", "y", vec![cond.clone()])), &["reads \"late\""]);
    let shadow = vec![cond.clone(), node("s=Neg", "x", "late"), node("Abs", "x", "t")];
    refuses(&model(graph("x c", "y", shadow)), &["\"t\"", "a graph around this one defines it too"]);
    // Reading its own output, through a graph inside it.
    refuses(
        &model(graph("x c", "y", vec![cond, node("n=Neg", "y", "late")])),
        &["in a circle", "\"i\" (If)", "\"n\" (Neg)"],
    );
    // A branch cannot see into the other.
    let blind = [
        body("then_branch", branch(vec![node("Neg", "v", "u")], "u")),
        body("else_branch", branch(vec![node("Neg", "x", "v")], "v")),
    ];
    refuses(&model(graph("x c", "y", vec![with(node("If", "c", "y"), blind)])), &["reads \"v\""]);
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        let mut inner = graph("", "x", vec![]);
        for _ in 1..depth {
            inner = graph("", "x", vec![with(node("If", "x", "_"), [body("then_branch", inner)])]);
        }
        model(graph("x", "y", vec![with(node("If", "x", "y"), [body("then_branch", inner)])]))
    };
    assert!(open(&nested(16)).is_ok());
    refuses(&nested(17), &["lies inside 17 others"]);
    // Deeper than decoding goes.
    refuses(&nested(60), &["nests more than 100 messages"]);
}

#[test]
fn domains_and_versions() {
    let nodes = vec![node("ai.onnx:Neg", "x", "a"), node("com.microsoft:QuickGelu", "a", "y")];
    let mut m = model(graph("x", "y", nodes));
    m.opset_import = vec![opset("ai.onnx", 17), opset("ai.onnx.ml", 3), opset("", 17)];
    let opened = open(&m).unwrap();
    let nodes: Vec<_> = opened.graph().nodes.iter().map(|n| (n.domain.as_str(), n.opset)).collect();
    assert_eq!(nodes, [("", 17), ("com.microsoft", 1)]);
    assert_eq!((opened.opset(""), opened.opset("ai.onnx"), opened.opset("x")), (17, 17, 0));
    says(&opened.notes().join("\n"), &["no version of com.microsoft is imported"]);
    m.opset_import.push(opset("", 18));
    refuses(&m, &["imports versions 17 and 18 of domain \"\""]);
    m.opset_import = vec![opset("", 0)];
    refuses(&m, &["imports version 0"]);
    m.opset_import = vec![opset("ai.onnx.ml", 3)];
    refuses(&m, &["node of \"a\" (Neg)", "the ONNX standard, of which the file imports no version"]);
    m.opset_import.clear();
    refuses(&m, &["does not say which version"]);
    m.ir_version = Some(2);
    assert_eq!(open(&m).unwrap().graph().nodes[0].opset, 1);
    refuses(&model(graph("x", "y", vec![node("my:Op", "x", "y")])), &["node of \"y\" (my.Op)", "domain \"my\""]);
}

#[test]
fn attributes_are_read_by_type() {
    let attr = |name: &str, a: AttributeProto| AttributeProto { name: Some(name.into()), ..a };
    let kind = |kind: AttributeType, a: AttributeProto| AttributeProto { r#type: Some(kind.into()), ..a };
    let empty = AttributeProto::default;
    let n = with(
        node("n=Op", "x", "y"),
        [
            int("i", 7),
            attr("is", kind(AttributeType::Ints, AttributeProto { ints: vec![1, 2], ..empty() })),
            attr("f", kind(AttributeType::Float, AttributeProto { f: Some(0.5), ..empty() })),
            attr("fs", kind(AttributeType::Floats, AttributeProto { floats: vec![0.5], ..empty() })),
            attr("s", kind(AttributeType::String, AttributeProto { s: Some(b"NOTSET".to_vec()), ..empty() })),
            attr("bad", kind(AttributeType::String, AttributeProto { s: Some(vec![255]), ..empty() })),
            attr("ss", kind(AttributeType::Strings, AttributeProto { strings: vec![b"a".to_vec()], ..empty() })),
            attr(
                "t",
                kind(AttributeType::Tensor, AttributeProto { t: Some(Box::new(tensor("", 1, &[0]))), ..empty() }),
            ),
            attr("no", kind(AttributeType::Tensor, empty())),
            attr("untyped", AttributeProto { i: Some(3), ..empty() }),
            attr("nothing", empty()),
        ],
    );
    let opened = open(&model(graph("x", "y", vec![n]))).unwrap();
    let n = &opened.graph().nodes[0];
    assert_eq!((n.int("i").unwrap(), n.int("untyped").unwrap(), n.int("other").unwrap()), (Some(7), Some(3), None));
    assert_eq!((n.ints("is").unwrap(), n.ints("nothing").unwrap()), (Some(&[1, 2][..]), Some(&[][..])));
    assert_eq!((n.float("f").unwrap(), n.floats("fs").unwrap()), (Some(0.5), Some(&[0.5f32][..])));
    assert_eq!((n.string("s").unwrap(), n.strings("ss").unwrap()), (Some("NOTSET"), Some(vec!["a"])));
    let t = n.tensor("t").unwrap().unwrap();
    assert_eq!(opened.tensor(t).unwrap().dims, [0]);
    for (result, what) in [
        (n.int("f").map(drop), "\"n\" (Op): attribute \"f\" is FLOAT where INT is needed"),
        (n.ints("i").map(drop), "is INT where INTS is needed"),
        (n.string("bad").map(drop), "is not UTF-8"),
        (n.tensor("no").map(drop), "holds no tensor"),
        (n.graph("i").map(drop), "is no graph"),
        (n.int("nothing").map(drop), "is UNDEFINED where INT is needed"),
    ] {
        says(&result.unwrap_err().to_string(), &[what, "\nhelp: "]);
    }
    let twice = with(node("Op", "x", "y"), [int("i", 1), int("i", 2)]);
    refuses(&model(graph("x", "y", vec![twice])), &["attribute \"i\" is given twice"]);
    let strange = with(node("Op", "x", "y"), [AttributeProto { r#type: Some(77), ..int("i", 1) }]);
    refuses(&model(graph("x", "y", vec![strange])), &["has a type that ONNX 1.23 does not know"]);
}

#[test]
fn declared_types_and_the_summary() {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |value| Dimension { value, denotation: None };
    let dims = vec![
        dim(Some(Value::DimValue(1))),
        dim(Some(Value::DimParam("seq + 1".into()))),
        dim(Some(Value::DimValue(-1))),
        dim(None),
    ];
    let shape = Some(crate::onnx::proto::TensorShapeProto { dim: dims });
    let tensor_type = type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(7), shape });
    let mut m = model(graph("s", "y", vec![node("com.microsoft:QuickGelu", "x", "y"), node("Neg", "w", "z")]));
    let g = m.graph.as_mut().unwrap();
    let mut x = value("x");
    x.r#type = Some(TypeProto { value: Some(tensor_type), denotation: None });
    g.input.insert(0, x);
    g.initializer = vec![TensorProto { float_data: vec![0.0; 6], ..tensor("w", 1, &[2, 3]) }];
    let opened = open(&m).unwrap();
    let [x, s] = opened.graph().inputs.as_slice() else { panic!() };
    assert_eq!(
        (x.elem, x.to_string(), s.to_string()),
        (Some(ElemType::Int64), "INT64[1, seq + 1, ?, ?]".into(), "?".into())
    );
    let json = serde_json::to_value(Summary::of(&opened).unwrap()).unwrap();
    assert_eq!(json["initializers"], serde_json::json!({"count": 1, "bytes": 24, "external_bytes": 0}));
    assert_eq!(json["ops"], serde_json::json!({"Neg": 1, "com.microsoft.QuickGelu": 1}));
    assert_eq!(json["opsets"], serde_json::json!({"ai.onnx": 20}));
    assert_eq!(json["inputs"][0]["dims"], serde_json::json!([1, "seq + 1", null, null]));
}
