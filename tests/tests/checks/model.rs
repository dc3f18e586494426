//! A model of two small layers on which every pass of a target finds work.

use std::fmt::Write;

use dlx_ir::{VerifiedModule, parse};
use dlx_passes::{Step, parse_pipeline};

use crate::foreign;

/// What the CPU target runs, for the small model.
pub(crate) const PIPELINE: &str = "block-attention,cache-kv{max_seq=32, kv=f16},fold,cse,fuse-rope,fuse-linears{max=3},\
    fuse-swiglu,fuse-residual,split-head{rows=8, ban=63},dce,fuse-norm,hoist-weights,quantize{to=q8g32},\
    lower{pack=n16, keys=cpu.k16, values=cpu.v},dce,specialize{T=4:8, R=4},plan-memory";

/// What runs where a matrix is computed of weights.
pub(crate) const HOISTING: &str = "block-attention,cache-kv{max_seq=32, kv=f32},cse,fold,dce,hoist-weights";

/// What a target runs that reads weights in pieces.
pub(crate) const SHARDING: &str = "block-attention,cache-kv{max_seq=32, kv=f32},fold,dce,split-head{rows=8},dce,\
    quantize{to=q4g32},lower{pack=n16, keys=wgpu.rows, values=wgpu.rows},shard-weights{limit=1200},specialize{T=4, R=4},plan-memory";

/// What exports run.
pub(crate) const EXPORTING: &str = "block-attention,fold,cse,dce,externalize-kv{max_seq=16, rows=4:8, heads=4, edge=f32},\
    decompose,hoist-weights,fold,cse,dce";

/// Models with the passes that are for them.
pub(crate) fn cases() -> Vec<(VerifiedModule, Vec<Step>)> {
    let ours = [
        (Output::Linear, PIPELINE),
        (Output::Matmul, HOISTING),
        (Output::Linear, SHARDING),
        (Output::Linear, EXPORTING),
    ];
    let mut all: Vec<_> = ours.map(|(output, pipeline)| (model(output), pipeline)).into();
    all.push((foreign::model(), foreign::RAISING));
    all.into_iter().map(|(m, p)| (m, parse_pipeline(p).expect("the tests' own text"))).collect()
}

/// How the attention's output matrix is applied.
#[derive(Clone, Copy)]
pub(crate) enum Output {
    /// As targets want it.
    Linear,
    /// By a node that reads only weights, which is there to be hoisted.
    Matmul,
}

/// The model as a front end makes it.
pub(crate) fn model(attention: Output) -> VerifiedModule {
    let mut weights =
        String::from("  weight @embed: bf16[64, 32]\n  weight @norm: bf16[32]\n  weight @head: bf16[64, 32]\n");
    let mut nodes = String::from(
        "    %embed = embed %ids, @embed: f32[T, 32]
    %mask = mask %ids {rule=block_causal:4}: bool[T, T]
    %rope = rope_table %pos {theta=1e4, head_dim=16}: f32[T, 16]\n",
    );
    let mut x = String::from("embed");
    for l in 0..2 {
        for (name, ty) in [
            ("attn_norm", "f32[32]"),
            ("mlp_norm", "bf16[32]"),
            ("q_norm", "f32[16]"),
            ("k_norm", "f32[16]"),
            ("q", "f32[32, 32]"),
            ("k", "bf16[16, 32]"),
            ("v", "bf16[16, 32]"),
            ("o", "bf16[32, 32]"),
            ("gate", "bf16[64, 32]"),
            ("up", "bf16[64, 32]"),
            ("down", "bf16[32, 64]"),
        ] {
            writeln!(weights, "  weight @layers.{l}.{name}: {ty}").expect("the tests' own text");
        }
        let (wide, out) = match attention {
            Output::Linear => (String::new(), format!("linear %l{l}.attn, @layers.{l}.o")),
            Output::Matmul => {
                let wide = format!("    %l{l}.wide = cast @layers.{l}.o {{to=f32}}: f32[32, 32]\n");
                (wide, format!("matmul %l{l}.attn, %l{l}.wide"))
            }
        };
        // Norms are computed twice, the query's matrix is turned: for cse and fold.
        write!(
            nodes,
            "    %l{l}.n = rms_norm %{x}, @layers.{l}.attn_norm {{eps=1e-6}}: f32[T, 32]
    %l{l}.n2 = rms_norm %{x}, @layers.{l}.attn_norm {{eps=1e-6}}: f32[T, 32]
    %l{l}.qt = transpose @layers.{l}.q: f32[32, 32]
    %l{l}.q = matmul %l{l}.n, %l{l}.qt: f32[T, 32]
    %l{l}.k = linear %l{l}.n2, @layers.{l}.k: f32[T, 16]
    %l{l}.v = linear %l{l}.n, @layers.{l}.v: f32[T, 16]
    %l{l}.q_norm = rms_norm %l{l}.q, @layers.{l}.q_norm {{eps=1e-6}}: f32[T, 32]
    %l{l}.k_norm = rms_norm %l{l}.k, @layers.{l}.k_norm {{eps=1e-6}}: f32[T, 16]
    %l{l}.q_rope = rope %l{l}.q_norm, %rope {{head_dim=16}}: f32[T, 32]
    %l{l}.k_rope = rope %l{l}.k_norm, %rope {{head_dim=16}}: f32[T, 16]
    %l{l}.attn = attention %l{l}.q_rope, %l{l}.k_rope, %l{l}.v, %mask {{head_dim=16}}: f32[T, 32]
{wide}    %l{l}.attn_out = {out}: f32[T, 32]
    %l{l}.attn_sum = add %{x}, %l{l}.attn_out: f32[T, 32]
    %l{l}.mlp_norm = rms_norm %l{l}.attn_sum, @layers.{l}.mlp_norm {{eps=1e-6}}: f32[T, 32]
    %l{l}.gate = linear %l{l}.mlp_norm, @layers.{l}.gate: f32[T, 64]
    %l{l}.up = linear %l{l}.mlp_norm, @layers.{l}.up: f32[T, 64]
    %l{l}.silu = silu %l{l}.gate: f32[T, 64]
    %l{l}.mlp = mul %l{l}.silu, %l{l}.up: f32[T, 64]
    %l{l}.mlp_out = linear %l{l}.mlp, @layers.{l}.down: f32[T, 32]
    %l{l}.out = add %l{l}.attn_sum, %l{l}.mlp_out: f32[T, 32]\n"
        )
        .expect("the tests' own text");
        x = format!("l{l}.out");
    }
    let text = format!(
        "module @small {{\n{weights}\n  graph @forward(%ids: i32[T], %pos: i32[T]) -> (f32[T, 64]) {{\n{nodes}    \
         %norm = rms_norm %{x}, @norm {{eps=1e-6}}: f32[T, 32]\n    %full = linear %norm, @head: f32[T, 64]\n    \
         %half = scale %full {{by=0.5}}: f32[T, 64]\n    %logits = scale %half {{by=0.5}}: f32[T, 64]\n    return %logits\n  }}\n}}\n"
    );
    VerifiedModule::new(parse(&text).expect("the tests' own text")).unwrap_or_else(|e| panic!("{}", e[0]))
}
