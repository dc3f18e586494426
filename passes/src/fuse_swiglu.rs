//! `fuse-swiglu`: the gated product becomes the epilogue of the gate/up linear.
//!
//! ```text
//! %g, %u = linear %x, @gate, @up {n=2}: f32[4, 512], f32[4, 512]
//! %s = silu %g: f32[4, 512]
//! %m = mul %s, %u: f32[4, 512]
//! ```
//! becomes `%m = linear %x, @gate, @up {n=2, post=swiglu}: f32[4, 512]`; `dce` removes the rest.
//! A gate, its SiLU or an up that something else reads too stays: the linear would be computed twice.

use crate::{Keeps, PassInfo, rewrite_all};
use dlx_ir::{Op, Operand, Post, Rewrite, Rewriter};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fuse-swiglu",
    doc: "silu(gate) · up after a linear of two weights → linear with a SwiGLU epilogue",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            if !matches!(node.op, Op::Mul {}) {
                return Ok(Rewrite::Keep);
            }
            for (s, u) in [(0, 1), (1, 0)] {
                let Some((op, inputs)) = gated(rw, node.inputs[s], node.inputs[u]) else { continue };
                if !(rw.read_once(s) && rw.read_once(u) && gate_read_once(rw, s)) {
                    continue;
                }
                let name = rw.old_name(node, 0);
                return Ok(Rewrite::Replace(rw.emit(op, inputs, &[&name])?));
            }
            Ok(Rewrite::Keep)
        })
    },
};

/// Whether only the SiLU, operand `s` of the current node, reads the gate.
fn gate_read_once(rw: &Rewriter<'_>, s: usize) -> bool {
    let silu = rw.old.nodes[rw.index].inputs[s].value();
    let gate = silu.and_then(|v| rw.old_def(v)?.inputs[0].value());
    gate.is_some_and(|v| rw.uses(v) == 1)
}

fn gated(rw: &Rewriter<'_>, silu: Operand, up: Operand) -> Option<(Op, Vec<Operand>)> {
    let silu = rw.pure_def(silu).filter(|d| matches!(d.op, Op::Silu {}))?;
    let linear = rw.pure_def(up)?;
    let Op::Linear { n: 2, bias, norm, post: Post::None } = linear.op else { return None };
    let gate = silu.inputs[0].value()?;
    let in_order = linear.outputs == [gate, up.value()?];
    // One weight of a single output would repeat.
    let alike = rw.graph.values[gate].ty == rw.graph.values[up.value()?].ty;
    (in_order && alike).then(|| (Op::Linear { n: 2, bias, norm, post: Post::SwiGlu }, linear.inputs.clone()))
}
