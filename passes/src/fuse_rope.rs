//! `fuse-rope`: the per-head RMSNorm of q and k joins the rotation after it.
//!
//! ```text
//! %n = rms_norm %q, @q_norm {eps=1e-6}: f32[4, 192]
//! %r = rope %n, %table {head_dim=64}: f32[4, 192]
//! ```
//! becomes `%r = rope %q, %table, @q_norm {head_dim=64, norm=1e-6}: f32[4, 192]`; `dce` removes the norm.
//! A norm that something else reads too stays, as does one over other chunks than the heads.

use crate::{Keeps, PassInfo, rewrite_all};
use dlx_ir::{Dim, Op, Rewrite};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fuse-rope",
    doc: "per-head rms_norm + rope → rope with a norm",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            let Op::Rope { head_dim, norm: None } = node.op else { return Ok(Rewrite::Keep) };
            let Some(def) = rw.pure_def(node.inputs[0]).filter(|_| rw.read_once(0)) else { return Ok(Rewrite::Keep) };
            let Op::RmsNorm { eps } = def.op else { return Ok(Rewrite::Keep) };
            let (x, weight) = (def.inputs[0], def.inputs[1]);
            if rw.module.operand_type(&rw.graph, weight).dims != [Dim::Fixed(head_dim as usize)] {
                return Ok(Rewrite::Keep);
            }
            let op = Op::Rope { head_dim, norm: Some(eps) };
            let name = rw.old_name(node, 0);
            Ok(Rewrite::Replace(rw.emit(op, vec![x, node.inputs[1], weight], &[&name])?))
        })
    },
};
