//! A model of two small layers as an exporter of ONNX files spells it: norms, rotations and attention in arithmetic.

use std::fmt::Write;

use dlx_ir::{VerifiedModule, parse};

/// The passes that recognize it.
pub(crate) const RAISING: &str = dlxc::onnx::RAISE;

/// Rows of the sequence, and features of each of the two heads.
const ROWS: usize = 4;

/// The model as it is imported.
pub(crate) fn model() -> VerifiedModule {
    let angles = |of: fn(f64) -> f64| -> String {
        let row = |p: usize| [1.0, 0.01, 1.0, 0.01].map(|f| of(p as f64 * f) as f32);
        (0..ROWS).flat_map(row).map(|v| format!("{v}")).collect::<Vec<_>>().join(", ")
    };
    let seen = |i: usize| if i % ROWS <= i / ROWS { "0" } else { "-inf" };
    let mask = (0..ROWS * ROWS).map(seen).collect::<Vec<_>>().join(", ");
    let mut weights = format!(
        "  weight @embed: f32[16, 8]\n  weight @norm: f32[8]\n  weight @head: f32[16, 8]\n  weight @two: f32[] = [2]
  weight @eps: f32[1] = [1e-6]\n  weight @half: f32[] = [0.5]\n  weight @mask: f32[1, 1, 4, 4] = [{mask}]
  weight @cos: f32[1, 1, 4, 4] = [{}]\n  weight @sin: f32[1, 1, 4, 4] = [{}]\n",
        angles(libm::cos),
        angles(libm::sin)
    );
    let mut nodes = String::from("    %embed = gather @embed, %input_ids {axis=0}: f32[1, 4, 8]\n");
    let mut x = String::from("embed");
    for l in 0..2 {
        for (name, ty) in [
            ("n1", "[8]"),
            ("n2", "[8]"),
            ("q", "[8, 8]"),
            ("k", "[8, 8]"),
            ("v", "[8, 8]"),
            ("o", "[8, 8]"),
            ("gate", "[12, 8]"),
            ("up", "[12, 8]"),
            ("down", "[8, 12]"),
        ] {
            writeln!(weights, "  weight @{l}.{name}: f32{ty}").expect("the tests' own text");
        }
        norm(&mut nodes, &x, &format!("n{l}"), &format!("{l}.n1"));
        for part in ["q", "k", "v"] {
            write!(
                nodes,
                "    %{part}{l}0 = linear %n{l}, @{l}.{part}: f32[1, 4, 8]
    %{part}{l}1 = reshape %{part}{l}0 {{dims=[1, 4, 2, 4]}}: f32[1, 4, 2, 4]
    %{part}{l}2 = transpose %{part}{l}1 {{perm=[0, 2, 1, 3]}}: f32[1, 2, 4, 4]\n"
            )
            .expect("the tests' own text");
        }
        for part in [format!("q{l}"), format!("k{l}")] {
            write!(
                nodes,
                "    %{part}a = mul %{part}2, @cos: f32[1, 2, 4, 4]
    %{part}l = slice %{part}2 {{starts=[0, 0, 0, 0], ends=[1, 2, 4, 2], steps=[1, 1, 1, 1]}}: f32[1, 2, 4, 2]
    %{part}h = slice %{part}2 {{starts=[0, 0, 0, 2], ends=[1, 2, 4, 4], steps=[1, 1, 1, 1]}}: f32[1, 2, 4, 2]
    %{part}n = unary %{part}h {{kind=neg}}: f32[1, 2, 4, 2]
    %{part}t = concat %{part}n, %{part}l {{axis=3}}: f32[1, 2, 4, 4]
    %{part}b = mul %{part}t, @sin: f32[1, 2, 4, 4]
    %{part}r = add %{part}a, %{part}b: f32[1, 2, 4, 4]\n"
            )
            .expect("the tests' own text");
        }
        write!(
            nodes,
            "    %t{l} = transpose %k{l}r {{perm=[0, 1, 3, 2]}}: f32[1, 2, 4, 4]
    %s{l} = matmul %q{l}r, %t{l}: f32[1, 2, 4, 4]
    %c{l} = mul %s{l}, @half: f32[1, 2, 4, 4]
    %m{l} = add %c{l}, @mask: f32[1, 2, 4, 4]
    %p{l} = softmax %m{l}: f32[1, 2, 4, 4]
    %a{l} = matmul %p{l}, %v{l}2: f32[1, 2, 4, 4]
    %a{l}1 = transpose %a{l} {{perm=[0, 2, 1, 3]}}: f32[1, 4, 2, 4]
    %a{l}2 = reshape %a{l}1 {{dims=[1, 4, 8]}}: f32[1, 4, 8]
    %o{l} = linear %a{l}2, @{l}.o: f32[1, 4, 8]
    %h{l} = add %{x}, %o{l}: f32[1, 4, 8]\n"
        )
        .expect("the tests' own text");
        norm(&mut nodes, &format!("h{l}"), &format!("w{l}"), &format!("{l}.n2"));
        write!(
            nodes,
            "    %g{l} = linear %w{l}, @{l}.gate: f32[1, 4, 12]
    %u{l} = linear %w{l}, @{l}.up: f32[1, 4, 12]
    %i{l} = unary %g{l} {{kind=sigmoid}}: f32[1, 4, 12]
    %j{l} = mul %g{l}, %i{l}: f32[1, 4, 12]
    %y{l} = mul %j{l}, %u{l}: f32[1, 4, 12]
    %d{l} = linear %y{l}, @{l}.down: f32[1, 4, 8]
    %x{l} = add %h{l}, %d{l}: f32[1, 4, 8]\n"
        )
        .expect("the tests' own text");
        x = format!("x{l}");
    }
    norm(&mut nodes, &x, "z", "norm");
    let text = format!(
        "module @foreign {{\n{weights}\n  graph @main(%input_ids: i64[1, 4]) -> (f32[1, 4, 16]) {{\n{nodes}    \
         %logits = linear %z, @head: f32[1, 4, 16]\n    return %logits\n  }}\n}}\n"
    );
    VerifiedModule::new(parse(&text).expect("the tests' own text")).unwrap_or_else(|e| panic!("{}", e[0]))
}

/// A root mean square in five nodes, and its weight.
fn norm(nodes: &mut String, x: &str, out: &str, weight: &str) {
    write!(
        nodes,
        "    %{out}p = binary %{x}, @two {{kind=pow}}: f32[1, 4, 8]
    %{out}m = reduce %{out}p {{kind=mean, axes=[2]}}: f32[1, 4, 1]
    %{out}e = add %{out}m, @eps: f32[1, 4, 1]
    %{out}s = unary %{out}e {{kind=sqrt}}: f32[1, 4, 1]
    %{out}r = unary %{out}s {{kind=reciprocal}}: f32[1, 4, 1]
    %{out}x = mul %{x}, %{out}r: f32[1, 4, 8]
    %{out} = mul @{weight}, %{out}x: f32[1, 4, 8]\n"
    )
    .expect("the tests' own text");
}
