//! `fuse-residual`: the residual add becomes the epilogue of the linear before it.
//!
//! ```text
//! %y = linear %a, @w: f32[4, 192]
//! %h = add %x, %y: f32[4, 192]
//! ```
//! becomes `%h = linear %a, @w, %x {n=1, post=add}: f32[4, 192]`; `dce` removes the first linear.

use crate::{PassInfo, rewrite_all};
use dlx_ir::{Id, Op, Operand, Post, Rewrite};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fuse-residual",
    doc: "linear + add → linear with a residual epilogue",
    params: &[],
    run: |module, _| {
        rewrite_all(module, &mut |rw, node| {
            if !matches!(node.op, Op::Add {}) {
                return Ok(Rewrite::Keep);
            }
            let uses = rw.old.use_counts();
            let read_once = |i: usize| {
                let old = rw.old.nodes[rw.index].inputs[i].value();
                old.is_some_and(|v| uses[v.index()] == 1)
            };
            for (y, residual) in [(1, 0), (0, 1)] {
                let Some(def) = rw.pure_def(node.inputs[y]).filter(|_| read_once(y)) else { continue };
                let Op::Linear { n: 1, bias, norm, post: Post::None } = def.op else { continue };
                if !matches!(node.inputs[residual], Operand::Value(_)) {
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
