//! `block-attention`: a mask tensor made by a rule becomes a static mask of the attention.
//!
//! ```text
//! %m = mask %x {rule=block_causal:4}: bool[T, T]
//! %a = attention %q, %k, %v, %m {head_dim=64}: f32[T, 192]
//! ```
//! becomes `%a = attention %q, %k, %v {head_dim=64, mask=block_causal:4}`; `dce` removes the mask.

use crate::{Keeps, PassInfo, rewrite_all};
use dlx_ir::{Op, Rewrite};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "block-attention",
    doc: "attention with a mask tensor made by a rule → attention with a static mask",
    params: &[],
    keeps: |_| Keeps::Bits,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            let (Op::Attention { head_dim, mask: None }, [q, k, v, mask]) = (&node.op, &node.inputs[..]) else {
                return Ok(Rewrite::Keep);
            };
            let Some(Op::Mask { rule }) = rw.pure_def(*mask).map(|def| &def.op) else { return Ok(Rewrite::Keep) };
            let op = Op::Attention { head_dim: *head_dim, mask: Some(*rule) };
            let name = rw.old_name(node, 0);
            Ok(Rewrite::Replace(rw.emit(op, vec![*q, *k, *v], &[&name])?))
        })
    },
};
