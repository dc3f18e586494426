//! `fuse-norm`: RMSNorm becomes the prologue of the linear or head that reads it.
//!
//! ```text
//! %n = rms_norm %x, @norm {eps=1e-6}: f32[4, 192]
//! %y = linear %n, @w: f32[4, 512]
//! ```
//! becomes `%y = linear %x, @w, @norm {norm=1e-6}: f32[4, 512]`; `dce` removes the norm.
//! A norm that several nodes read stays: it would be computed once for each.

use crate::{Keeps, PassInfo, rewrite_all};
use dlx_ir::{Op, Post, Rewrite};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fuse-norm",
    doc: "rms_norm + linear or head_stats → one op with a norm prologue",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            let Some(Op::RmsNorm { eps }) = node.inputs.first().and_then(|x| rw.pure_def(*x)).map(|d| &d.op) else {
                return Ok(Rewrite::Keep);
            };
            let eps = Some(*eps);
            let op = match node.op {
                Op::Linear { n, bias, norm: None, post: post @ (Post::None | Post::SwiGlu) } => {
                    Op::Linear { n, bias, norm: eps, post }
                }
                Op::HeadStats { norm: None, ban } => Op::HeadStats { norm: eps, ban },
                _ => return Ok(Rewrite::Keep),
            };
            let def = rw.pure_def(node.inputs[0]).expect("matched above");
            let (x, weight) = (def.inputs[0], def.inputs[1]);
            // A per-head norm works on chunks of the features and is no prologue of the whole row.
            let features = rw.module.operand_type(&rw.graph, x).dims.get(1);
            if !rw.read_once(0) || features != rw.module.operand_type(&rw.graph, weight).dims.first() {
                return Ok(Rewrite::Keep);
            }
            let mut inputs = node.inputs.clone();
            inputs[0] = x;
            inputs.push(weight);
            let names: Vec<String> = (0..node.outputs.len()).map(|i| rw.old_name(node, i)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Ok(Rewrite::Replace(rw.emit(op, inputs, &names)?))
        })
    },
};
