//! Local functions, expanded.

use super::made::{body, function, graph, int, model, node, open, opset, reference, refuses, tensor, text, with};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::{AttributeProto, FunctionProto, ModelProto, NodeProto};

/// A model `x -> y` of these nodes, with functions.
fn calling(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    ModelProto { functions, ..model(graph("x", "y", nodes)) }
}

#[track_caller]
fn expands(model: &ModelProto, want: &str) {
    assert_eq!(text(open(model).unwrap().graph()), want);
}

#[test]
fn a_call_becomes_the_body() {
    let f = function("F", "a b", "r", vec![node("Abs", "t", "r"), node("Add", "a b", "t")]);
    let nodes = vec![node("first=local:F", "x x", "m"), node("local:F", "m x", "y")];
    let opened = open(&calling(nodes, vec![f])).unwrap();
    let want = "first/t = Add(x, x)\nm = Abs(first/t)\ny/t = Add(m, x)\ny = Abs(y/t)\n";
    assert_eq!(text(opened.graph()), want);
    assert_eq!(opened.functions(), 1);
    assert!(opened.notes().is_empty(), "{:?}", opened.notes());
}

#[test]
fn names_stay_unique() {
    let f = function("F", "a", "r", vec![node("Neg", "a", "t"), node("Abs", "t", "r")]);
    let nodes = vec![
        node("n=local:F", "x", "p"),
        node("n=local:F", "p", "q"),
        node("Neg", "q", "n/t"),
        node("Neg", "n/t", "y"),
    ];
    let want = "n/t_2 = Neg(x)\np = Abs(n/t_2)\nn/t_3 = Neg(p)\nq = Abs(n/t_3)\nn/t = Neg(q)\ny = Neg(n/t)\n";
    expands(&calling(nodes, vec![f]), want);
}

#[test]
fn attributes_come_from_the_call_or_the_default() {
    let uses =
        |op: &str, i: &str, o: &str| with(node(op, i, o), [reference("axis", "ax", AttributeType::Int), int("k", 9)]);
    let mut f = function(
        "F",
        "a",
        "r",
        vec![uses("Neg", "a", "t"), with(node("Abs", "t", "r"), [reference("o", "opt", AttributeType::Int)])],
    );
    f.attribute = vec!["opt".into()];
    f.attribute_proto = vec![int("ax", 4)];
    let nodes = vec![node("n=local:F", "x", "m"), with(node("o=local:F", "m", "y"), [int("ax", 5), int("opt", 6)])];
    let want = "n/t = Neg(x) {axis=4, k=9}\nm = Abs(n/t)\no/t = Neg(m) {axis=5, k=9}\ny = Abs(o/t) {o=6}\n";
    expands(&calling(nodes.clone(), vec![f.clone()]), want);
    let float = AttributeProto { r#type: Some(AttributeType::Float.into()), f: Some(1.0), i: None, ..int("ax", 0) };
    let bad = vec![with(node("n=local:F", "x", "y"), [float])];
    refuses(&calling(bad, vec![f]), &["node \"n\" (local.F)", "\"ax\" is FLOAT", "needs INT"]);
    let stray = vec![with(node("n=Neg", "x", "y"), [reference("axis", "ax", AttributeType::Int)])];
    refuses(&calling(stray, vec![]), &["\"axis\" is said to be that of a function"]);
}

#[test]
fn functions_call_functions_and_hand_attributes_on() {
    let inner = function("In", "a", "r", vec![with(node("Neg", "a", "r"), [reference("k", "i", AttributeType::Int)])]);
    let call = with(node("c=local:In", "a", "t"), [reference("i", "o", AttributeType::Int)]);
    let outer = function("Out", "a", "r", vec![call, node("local:In", "t", "r")]);
    let nodes = vec![with(node("n=local:Out", "x", "y"), [int("o", 3)])];
    expands(&calling(nodes, vec![outer, inner]), "n/t = Neg(x) {k=3}\ny = Neg(n/t)\n");
}

#[test]
fn left_out_inputs_and_outputs() {
    let f = function("F", "a b", "r s", vec![node("Clip", "a b", "r"), node("Abs", "a", "s")]);
    let nodes = vec![node("n=local:F", "x", "m"), node("o=local:F", "m x", "_ y")];
    let want = "m = Clip(x, )\nn/s = Abs(x)\no/r = Clip(m, x)\ny = Abs(m)\n";
    expands(&calling(nodes, vec![f.clone()]), want);
    refuses(
        &calling(vec![node("n=local:F", "x x x", "y")], vec![f.clone()]),
        &["node \"n\" (local.F)", "3 inputs", "has 2"],
    );
    refuses(&calling(vec![node("n=local:F", "x", "y a b")], vec![f]), &["3 outputs", "has 2"]);
    // What is handed through, or returned twice.
    let through = function("F", "a b", "a b t t", vec![node("Neg", "a", "t")]);
    let nodes = vec![node("n=local:F", "x x", "p q r s"), node("Sum", "p q r s", "y")];
    let want = "r = Neg(x)\np = Identity(x)\nq = Identity(x)\ns = Identity(r)\ny = Sum(p, q, r, s)\n";
    expands(&calling(nodes, vec![through.clone()]), want);
    refuses(&calling(vec![node("n=local:F", "x", "p y")], vec![through]), &["leaves out \"b\""]);
}

#[test]
fn bodies_have_graphs_and_are_called_in_graphs() {
    let branch = graph(
        "",
        "u",
        vec![with(node("Neg", "t", "v"), [reference("k", "i", AttributeType::Int)]), node("local:G", "v", "u")],
    );
    let f = function(
        "F",
        "a",
        "r",
        vec![node("Abs", "a", "t"), with(node("i=If", "a", "r"), [body("then_branch", branch)])],
    );
    let g = function("G", "a", "r", vec![node("Exp", "a", "w"), node("Log", "w", "r")]);
    let within = graph("", "z", vec![with(node("f=local:F", "x", "z"), [int("i", 8)])]);
    let nodes = vec![with(node("If", "x", "y"), [body("else_branch", within)])];
    let want = "y = If(x)\nelse_branch:\n  f/t = Abs(x)\n  z = If(x)\n  then_branch:\n    f/v = Neg(f/t) {k=8}\n    f/u/w = Exp(f/v)\n    f/u = Log(f/u/w)\n    -> f/u\n  -> z\n";
    expands(&calling(nodes, vec![f, g]), want);
    // A graph handed to a function.
    let f = function(
        "F",
        "a",
        "r",
        vec![with(node("If", "a", "r"), [reference("then_branch", "b", AttributeType::Graph)])],
    );
    let nodes = vec![with(node("f=local:F", "x", "y"), [body("b", graph("", "u", vec![node("Neg", "x", "u")]))])];
    expands(&calling(nodes, vec![f]), "y = If(x)\nthen_branch:\n  u = Neg(x)\n  -> u\n");
}

#[test]
fn a_node_knows_its_own_version() {
    let mut f = function("F", "a", "r", vec![node("Neg", "a", "t"), node("Abs", "t", "r")]);
    f.opset_import = vec![opset("", 13)];
    let opened = open(&calling(vec![node("local:F", "x", "m"), node("Neg", "m", "y")], vec![f])).unwrap();
    assert_eq!(opened.graph().nodes.iter().map(|n| n.opset).collect::<Vec<_>>(), [13, 13, 20]);
}

#[test]
fn overloads_are_told_apart() {
    let over = |overload: &str, op: &str| FunctionProto {
        overload: Some(overload.into()),
        ..function("F", "a", "r", vec![node(op, "a", "r")])
    };
    let call =
        |overload: &str, i: &str, o: &str| NodeProto { overload: Some(overload.into()), ..node("local:F", i, o) };
    let nodes = vec![call("one", "x", "m"), call("", "m", "y")];
    expands(&calling(nodes.clone(), vec![over("one", "Neg"), over("", "Abs")]), "m = Neg(x)\ny = Abs(m)\n");
    refuses(
        &calling(nodes, vec![over("one", "Neg"), over("one", "Abs")]),
        &["function \"local.F:one\"", "is there twice"],
    );
}

#[test]
fn functions_without_end_are_refused() {
    let own = function("F", "a", "r", vec![node("local:F", "a", "r")]);
    refuses(
        &calling(vec![node("local:F", "x", "y")], vec![own.clone()]),
        &["function \"local.F\"", "calls itself without end"],
    );
    let f = function("F", "a", "r", vec![node("local:G", "a", "r")]);
    let g = function("G", "a", "r", vec![node("local:F", "a", "r")]);
    let want = "function \"local.F\", function \"local.G\", function \"local.F\"";
    refuses(&calling(vec![node("local:F", "x", "y")], vec![f, g]), &[want]);
    // One that nobody calls harms nobody.
    assert!(open(&calling(vec![node("Neg", "x", "y")], vec![own])).is_ok());
}

/// Functions `F0`, `F1`, …, each calling the next so many times; the last is a node.
fn chain(levels: usize, times: usize) -> Vec<FunctionProto> {
    let level = |i: usize| {
        let op = if i + 1 == levels { "Neg".into() } else { format!("local:F{}", i + 1) };
        let name = |j: usize| if j == 0 { "a".into() } else { format!("t{j}") };
        let nodes = (0..times).map(|j| node(&op, &name(j), &name(j + 1))).collect();
        function(&format!("F{i}"), "a", &name(times), nodes)
    };
    (0..levels).map(level).collect()
}

#[test]
fn expansion_is_bounded() {
    let call = || vec![node("local:F0", "x", "y")];
    assert_eq!(open(&calling(call(), chain(16, 1))).unwrap().graph().nodes.len(), 1);
    refuses(&calling(call(), chain(17, 1)), &["is a call inside 16 others"]);
    assert_eq!(open(&calling(call(), chain(4, 10))).unwrap().graph().nodes.len(), 10_000);
    refuses(&calling(call(), chain(6, 10)), &["makes more than 20000 nodes"]);
    let big = AttributeProto {
        t: Some(Box::new(crate::onnx::proto::TensorProto {
            float_data: vec![0.5; 1 << 20],
            ..tensor("", 1, &[1 << 20])
        })),
        r#type: Some(AttributeType::Tensor.into()),
        i: None,
        ..int("value", 0)
    };
    let mut many = chain(4, 10);
    many[3].node = vec![with(node("Constant", "", "c"), [big]), node("Add", "a c", "t10")];
    refuses(&calling(call(), many), &["64 MiB of names and attributes"]);
}

#[test]
fn a_damaged_body_is_named() {
    let f = function("F", "a", "r", vec![node("Neg", "q", "r")]);
    refuses(&calling(vec![node("local:F", "x", "y")], vec![f]), &["node of \"r\" (Neg)", "reads \"q\""]);
    let f = function("F", "a", "r", vec![node("Neg", "a", "t")]);
    refuses(
        &calling(vec![node("local:F", "x", "y")], vec![f]),
        &["function \"local.F\"", "output \"r\" is not defined"],
    );
}
