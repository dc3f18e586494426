//! Broken nodes: what is wrong with operands, attributes and outputs of one op, or with what it would take.

use super::made::{body, floats, graph, input, int, ints, many, model, node, one, opset, tensor, value, with};
use super::onnx::proto::attribute_proto::AttributeType;
use super::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use super::{Case, case};

pub(super) fn ints_attr(name: &str, list: &[i64]) -> AttributeProto {
    let kind = Some(AttributeType::Ints.into());
    AttributeProto { name: Some(name.into()), r#type: kind, ints: list.to_vec(), ..Default::default() }
}

fn text(name: &str, s: &str) -> AttributeProto {
    let kind = Some(AttributeType::String.into());
    AttributeProto { name: Some(name.into()), r#type: kind, s: Some(s.into()), ..Default::default() }
}

fn scalar(name: &str, value: f32) -> TensorProto {
    floats(name, &[], &[value])
}

fn zeros(name: &str, dims: &[i64]) -> TensorProto {
    let n = dims.iter().product::<i64>() as usize;
    floats(name, dims, &vec![0.0; n])
}

fn bytes(name: &str, dims: &[i64]) -> TensorProto {
    let n = dims.iter().product::<i64>() as usize;
    TensorProto { raw_data: Some(vec![0; n].into()), ..tensor(name, 2, dims) }
}

/// A node of ONNX Runtime's own set over whole numbers.
fn ms(mut m: ModelProto, elem: i32, dims: &[i64]) -> ModelProto {
    m.opset_import.push(opset("com.microsoft", 1));
    m.graph.as_mut().unwrap().input = vec![input("x", elem, dims)];
    m
}

/// One node over an input of that element type and shape.
fn of(elem: i32, dims: &[i64], node: NodeProto, tensors: Vec<TensorProto>) -> ModelProto {
    let mut m = many(vec![node], tensors);
    m.graph.as_mut().unwrap().input = vec![input("x", elem, dims)];
    m
}

/// The node also makes `z`, which is returned.
fn also(node: NodeProto, tensors: Vec<TensorProto>) -> ModelProto {
    let mut m = many(vec![node], tensors);
    m.graph.as_mut().unwrap().output.push(value("z"));
    m
}

fn attrs(op: &str, inputs: &str, list: Vec<AttributeProto>, tensors: Vec<TensorProto>) -> ModelProto {
    many(vec![with(node(op, inputs, "y"), list)], tensors)
}

fn older(mut m: ModelProto, version: i64) -> ModelProto {
    m.opset_import = vec![opset("", version)];
    m
}

/// `MatMulNBits` of a weight `[4, 64]` in blocks of 32, with so many scales, over an element type.
fn nbits(scales: i64, elem: i32) -> ModelProto {
    let list = vec![int("K", 64), int("N", 4), int("bits", 4), int("block_size", 32)];
    let n = with(node("a=com.microsoft:MatMulNBits", "x w s", "y"), list);
    ms(many(vec![n], vec![bytes("w", &[4, 2, 16]), zeros("s", &[scales])]), elem, &[1, 64])
}

fn run_time_if(then: &str, other: &str) -> ModelProto {
    let branch = |op: &str| graph("", "r", vec![node(op, "x", "r")]);
    let n = with(node("a=If", "c", "y"), [body("then_branch", branch(then)), body("else_branch", branch(other))]);
    let mut m = many(vec![n], vec![]);
    m.graph.as_mut().unwrap().input.push(input("c", 9, &[]));
    m
}

fn endless() -> ModelProto {
    let mut inner = graph("i go v", "go w", vec![node("Neg", "v", "w")]);
    inner.input[0] = input("i", 7, &[]);
    many(vec![with(node("a=Loop", "_ _ x", "y"), [body("body", inner)])], vec![])
}

/// Loops in loops, a thousand times each.
fn loops() -> ModelProto {
    let mut inner = graph("", "", vec![]);
    for depth in 0..4usize {
        let names = [format!("i{depth}"), format!("go{depth}"), format!("v{depth}"), format!("w{depth}")];
        let [i, go, v, w] = &names;
        let below = depth.checked_sub(1);
        let step = match below {
            None => node("Neg", v, w),
            Some(_) => with(node("Loop", &format!("n _ {v}"), w), [body("body", inner)]),
        };
        inner = graph(&format!("{i} {go} {v}"), &format!("{go} {w}"), vec![step]);
    }
    let n = with(node("a=Loop", "n _ x", "y"), [body("body", inner)]);
    many(vec![n], vec![TensorProto { int64_data: vec![1000], ..tensor("n", 7, &[]) }])
}

/// A shape that is known when the model runs, and declared to be another one.
fn decided() -> ModelProto {
    let mut m = many(vec![node("a=Reshape", "x s", "y")], vec![]);
    let g = m.graph.as_mut().unwrap();
    g.input.push(input("s", 7, &[2]));
    g.output = vec![input("y", 1, &[4, 4])];
    m
}

pub(super) fn cases() -> Vec<Case> {
    let big = 1i64 << 40;
    let f3 = || zeros("w", &[3]);
    let unknown = vec![node("a=Foo", "x", "p"), node("b=Foo", "p", "q"), node("c=ai.onnx:Bar", "q", "y")];
    let norm = vec![zeros("s", &[3]), zeros("b", &[3]), zeros("m", &[3]), zeros("v", &[3])];
    let image = |n: NodeProto, tensors| of(1, &[1, 2, 4, 4], n, tensors);
    let i64s = |name: &str, dims: &[i64]| {
        let n = dims.iter().product::<i64>() as usize;
        TensorProto { int64_data: vec![1; n], ..tensor(name, 7, dims) }
    };
    vec![
        case("unknown ops", &many(unknown, vec![]), &["Foo ×2", "Bar ×1", "node \"a\"", "dlxc ops --onnx"]),
        case("random numbers", &one("a=RandomNormalLike", "x", vec![]), &["\"a\"", "random numbers"]),
        // Outputs.
        case(
            "an output that there is not",
            &also(node("a=Neg", "x", "y z"), vec![]),
            &["\"a\" (Neg)", "output 1, `z`"],
        ),
        case(
            "running statistics without training",
            &also(node("a=BatchNormalization", "x s b m v", "y z"), norm),
            &["\"a\" (BatchNormalization)", "output 1, `z`"],
        ),
        case(
            "a third part of two",
            &also(node("a=Split", "x s", "y q z"), vec![ints("s", &[1, 1])]),
            &["\"a\"", "`z`"],
        ),
        case(
            "an output that another node reads",
            &many(vec![node("a=Neg", "x", "p q"), node("Neg", "q", "y")], vec![]),
            &["\"a\" (Neg)", "`q`"],
        ),
        // Attributes.
        case("no axis", &one("a=Concat", "x x", vec![]), &["\"a\"", "`axis` is missing"]),
        case("no type", &one("a=Cast", "x", vec![]), &["\"a\"", "`to` is missing"]),
        case("no direction", &of(2, &[2, 3], node("a=BitShift", "x x", "y"), vec![]), &["`direction` is missing"]),
        case("no equation", &one("a=Einsum", "x", vec![]), &["\"a\"", "`equation` is missing"]),
        case("no kernel", &image(node("a=MaxPool", "x", "y"), vec![]), &["\"a\"", "`kernel_shape` is missing"]),
        case("no block", &image(node("a=DepthToSpace", "x", "y"), vec![]), &["\"a\"", "`blocksize` is missing"]),
        case("no groups", &one("a=GroupNormalization", "x w w", vec![f3()]), &["`num_groups` is missing"]),
        case("no size of a window", &image(node("a=LRN", "x", "y"), vec![]), &["`size` is missing"]),
        case(
            "no branch",
            &one("a=If", "c", vec![TensorProto { int32_data: vec![1], ..tensor("c", 9, &[]) }]),
            &["then_branch"],
        ),
        case("no axes", &older(one("a=Unsqueeze", "x", vec![]), 11), &["\"a\"", "`axes` is missing"]),
        case("no k", &older(one("a=TopK", "x", vec![]), 1), &["\"a\"", "`k` is missing"]),
        case("no value", &one("a=Constant", "", vec![]), &["\"a\"", "`value` is missing"]),
        case(
            "an attribute of another type",
            &attrs("a=Softmax", "x", vec![text("axis", "last")], vec![]),
            &["\"axis\" is STRING"],
        ),
        case(
            "a graph as an axis",
            &attrs("a=Softmax", "x", vec![body("axis", graph("", "", vec![]))], vec![]),
            &["\"axis\" is a graph"],
        ),
        case("an axis beyond", &attrs("a=Softmax", "x", vec![int("axis", 7)], vec![]), &["\"a\"", "axis 7"]),
        case(
            "an axis of -2^63",
            &attrs("a=Concat", "x x", vec![int("axis", i64::MIN)], vec![]),
            &["\"a\"", "axis -922"],
        ),
        case(
            "a permutation of one dimension",
            &attrs("a=Transpose", "x", vec![ints_attr("perm", &[0, 0])], vec![]),
            &["\"a\""],
        ),
        case("a type of number 99", &attrs("a=Cast", "x", vec![int("to", 99)], vec![]), &["element type 99"]),
        case(
            "another shift",
            &of(2, &[3], with(node("a=BitShift", "x x", "y"), [text("direction", "UP")]), vec![]),
            &["`UP`", "LEFT, RIGHT"],
        ),
        case(
            "another approximation",
            &attrs("a=Gelu", "x", vec![text("approximate", "fast")], vec![]),
            &["`fast`", "none, tanh"],
        ),
        case(
            "strides of 2^62",
            &image(
                with(node("a=Conv", "x w", "y"), [ints_attr("strides", &[1 << 62, 1])]),
                vec![zeros("w", &[2, 2, 1, 1])],
            ),
            &["\"a\"", "`strides`"],
        ),
        case(
            "groups of nothing",
            &image(with(node("a=Conv", "x w", "y"), [int("group", 0)]), vec![zeros("w", &[2, 2, 1, 1])]),
            &["\"a\"", "0 groups"],
        ),
        // Operands.
        case("an input too few", &one("a=Add", "x", vec![]), &["\"a\"", "input 1 is missing"]),
        case("an input too many", &one("a=Neg", "x x", vec![]), &["\"a\"", "2 inputs", "1 at most"]),
        case("integers and floats", &one("a=Add", "x w", vec![i64s("w", &[3])]), &["\"a\"", "f32 and i64", "cast one"]),
        case(
            "a product of integers and floats",
            &one("a=MatMul", "x w", vec![i64s("w", &[3, 2])]),
            &["\"a\"", "f32 and i64"],
        ),
        case("And of floats", &one("a=And", "x x", vec![]), &["\"a\""]),
        case("float indices", &one("a=Gather", "x w", vec![f3()]), &["\"a\"", "input 1 is f32[3]", "i32 or i64"]),
        case("a float shape", &one("a=Reshape", "x w", vec![floats("w", &[1], &[6.0])]), &["\"a\"", "i32 or i64"]),
        case("a float condition", &one("a=If", "w", vec![scalar("w", 1.0)]), &["\"a\"", "bool is needed"]),
        case("Where of numbers", &one("a=Where", "x x x", vec![]), &["\"a\"", "bool"]),
        case("sizes that do not fit", &one("a=Add", "x w", vec![zeros("w", &[4])]), &["\"a\"", "[2, 3]"]),
        case("a product that does not fit", &one("a=MatMul", "x w", vec![zeros("w", &[2, 2])]), &["\"a\""]),
        case(
            "Gemm of three dimensions",
            &of(1, &[2, 2, 3], node("a=Gemm", "x w", "y"), vec![zeros("w", &[3, 2])]),
            &["\"a\"", "f32[2, 2, 3]", "2 dimensions"],
        ),
        case(
            "a bias that is larger",
            &one("a=Gemm", "x w b", vec![zeros("w", &[3, 2]), zeros("b", &[5, 2, 2])]),
            &["\"a\"", "[5, 2, 2]"],
        ),
        case(
            "a convolution of a matrix",
            &one("a=Conv", "x w", vec![zeros("w", &[2, 3])]),
            &["\"a\"", "at least 3 dimensions"],
        ),
        case(
            "a pool of a matrix",
            &attrs("a=MaxPool", "x", vec![ints_attr("kernel_shape", &[1])], vec![]),
            &["\"a\"", "at least 3"],
        ),
        case(
            "an LSTM of a matrix",
            &one("a=LSTM", "x w w", vec![zeros("w", &[1, 4, 3])]),
            &["\"a\"", "3 dimensions are needed"],
        ),
        case(
            "too many channels of a bias",
            &image(node("a=Conv", "x w b", "y"), vec![zeros("w", &[1, 2, 1, 1]), zeros("b", &[4])]),
            &["\"a\"", "[1, 4, 4, 4]"],
        ),
        case(
            "a scale of another shape",
            &one("a=LayerNormalization", "x w", vec![zeros("w", &[5, 2, 3])]),
            &["\"a\"", "[5, 2, 3]"],
        ),
        case("an index out of range", &one("a=Gather", "w s", vec![f3(), ints("s", &[5])]), &["\"a\""]),
        case("division by zero", &one("a=Div", "s z", vec![ints("s", &[1]), ints("z", &[0])]), &["\"a\""]),
        case(
            "a shape of other elements",
            &one("a=Reshape", "x s", vec![ints("s", &[5])]),
            &["\"a\"", "[2, 3] cannot become [5]"],
        ),
        case("two open sizes", &one("a=Reshape", "x s", vec![ints("s", &[-1, -1])]), &["\"a\"", "[-1, -1]"]),
        case(
            "a shape that overflows",
            &one("a=Reshape", "x s", vec![ints("s", &[1 << 62, 4, -1])]),
            &["\"a\"", "overflows"],
        ),
        case("too few scales", &nbits(7, 1), &["\"a\"", "scales", "8 elements"]),
        case("codes times whole numbers", &nbits(8, 7), &["\"a\"", "i64, and floats are needed"]),
        case(
            "a weight times whole numbers",
            &ms(one("a=com.microsoft:FusedMatMul", "x w", vec![zeros("w", &[3, 2])]), 7, &[2, 3]),
            &["\"a\"", "i64 and f32"],
        ),
        case("branches of two types", &run_time_if("Neg", "Shape"), &["\"a\" (If)"]),
        case("a loop without end", &endless(), &["\"a\" (Loop)"]),
        case("loops in loops", &loops(), &["Loop", "more than"]),
        case(
            "a depth of two numbers",
            &of(7, &[2], node("a=OneHot", "x d v", "y"), vec![ints("d", &[2, 2]), zeros("v", &[2])]),
            &["\"a\"", "`depth`"],
        ),
        case(
            "three values of two",
            &of(7, &[2], node("a=OneHot", "x d v", "y"), vec![ints("d", &[2]), zeros("v", &[3])]),
            &["\"a\"", "not two numbers"],
        ),
        case("a k of two numbers", &one("a=TopK", "x s", vec![ints("s", &[1, 1])]), &["\"a\"", "`k`"]),
        case("a declared shape that cannot be", &decided(), &["\"a\"", "cannot become [4, 4]"]),
        // What is too large.
        case(
            "Expand of a constant",
            &one("a=Expand", "w s", vec![f3(), ints("s", &[big, 3])]),
            &["\"a\"", "1099511627776, 3]"],
        ),
        case("Expand", &one("a=Expand", "x s", vec![ints("s", &[big, 2, 3])]), &["\"a\"", "1099511627776, 2, 3]"]),
        case("Expand to 2^62", &one("a=Expand", "x s", vec![ints("s", &[1 << 31, 1 << 31, 2, 3])]), &["\"a\""]),
        case(
            "Expand beyond this machine",
            &one("a=Expand", "x s", vec![ints("s", &[1 << 33, 2, 3])]),
            &["\"a\"", "8589934592, 2, 3]"],
        ),
        case("Tile", &one("a=Tile", "x s", vec![ints("s", &[big, 1])]), &["\"a\"", "1099511627776"]),
        case("Tile of 2^80", &one("a=Tile", "x s", vec![ints("s", &[big, big])]), &["\"a\""]),
        case("ConstantOfShape", &one("a=ConstantOfShape", "s", vec![ints("s", &[big])]), &["\"a\"", "[1099511627776]"]),
        case("ConstantOfShape, negative", &one("a=ConstantOfShape", "s", vec![ints("s", &[-1])]), &["\"a\"", "[-1]"]),
        case(
            "Range",
            &one("a=Range", "f l d", vec![scalar("f", 0.0), scalar("l", 1e12), scalar("d", 1.0)]),
            &["\"a\"", "from 0 to"],
        ),
        case(
            "Range by 0",
            &one("a=Range", "f l d", vec![scalar("f", 0.0), scalar("l", 1.0), scalar("d", 0.0)]),
            &["\"a\"", "by 0"],
        ),
        case("Pad", &one("a=Pad", "x s", vec![ints("s", &[0, 0, 0, big - 4])]), &["\"a\"", "[2, 1099511627772]"]),
        case("Pad of 2^62", &one("a=Pad", "x s", vec![ints("s", &[0, 0, 0, 1 << 62])]), &["\"a\"", "3 padded by 0"]),
        case("Resize", &one("a=Resize", "x _ _ s", vec![ints("s", &[big, 3])]), &["\"a\"", "1099511627776"]),
        case(
            "OneHot",
            &of(7, &[2], node("a=OneHot", "x d v", "y"), vec![ints("d", &[big]), floats("v", &[2], &[0.0, 1.0])]),
            &["\"a\"", "1099511627776"],
        ),
        case(
            "a window",
            &one("a=HannWindow", "s", vec![TensorProto { int64_data: vec![big], ..tensor("s", 7, &[]) }]),
            &["\"a\"", "1099511627776"],
        ),
        case("a table of an unknown model", &model(graph("", "y", vec![node("a=EyeLike", "s", "y")])), &["\"s\""]),
    ]
}
