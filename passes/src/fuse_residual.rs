//! `fuse-residual`: the residual add becomes the epilogue of the linear before it.
//!
//! ```text
//! %y = linear %a, @w: f32[4, 192]
//! %h = add %x, %y: f32[4, 192]
//! ```
//! becomes `%h = linear %a, @w, %x {post=add}: f32[4, 192]`; `dce` removes the first linear.
//! A linear that something else reads too stays: it would be computed twice.

use crate::{Keeps, PassInfo, rewrite_all};
use dlx_ir::{Op, Operand, Post, Rewrite};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fuse-residual",
    doc: "linear + add → linear with a residual epilogue",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            if !matches!(node.op, Op::Add {}) {
                return Ok(Rewrite::Keep);
            }
            for (y, residual) in [(1, 0), (0, 1)] {
                let Some(def) = rw.pure_def(node.inputs[y]).filter(|_| rw.read_once(y)) else { continue };
                let Op::Linear { n: 1, bias, norm, post: Post::None } = def.op else { continue };
                // A residual that repeats is no residual.
                let alike = rw.module.operand_type(&rw.graph, node.inputs[0]).dims
                    == rw.module.operand_type(&rw.graph, node.inputs[1]).dims;
                if !alike || !matches!(node.inputs[residual], Operand::Value(_)) {
                    continue;
                }
                let mut inputs = def.inputs.clone();
                inputs.push(node.inputs[residual]);
                let op = Op::Linear { n: 1, bias, norm, post: Post::Add };
                let name = rw.old_name(node, 0);
                return Ok(Rewrite::Replace(rw.emit(op, inputs, &[&name])?));
            }
            Ok(Rewrite::Keep)
        })
    },
};
