//! `fold`: what does nothing goes, and constant factors join.
//!
//! * `cast` to the type that is there, `scale` by 1, `transpose` of the `transpose` that it undoes → their operand;
//! * `scale` of a `scale` → one scale, unless the product leaves the range of f32;
//! * `matmul %x, (transpose @w)` → `linear %x, @w`, which needs no transposed copy.

use crate::{Keeps, PassInfo, rewrite_all};
use dlx_ir::{DType, Op, Operand, Post, Rewrite, Rewriter, ValueId, WeightDef};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fold",
    doc: "removes operations without effect and joins constant factors",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            let Some(&x) = node.inputs.first() else { return Ok(Rewrite::Keep) };
            let def = rw.pure_def(x).map(|d| (d.op.clone(), d.inputs.first().copied()));
            match (&node.op, def) {
                (Op::Cast { to, .. }, _) if rw.module.operand_type(&rw.graph, x).dtype == *to => Ok(same(x)),
                (Op::Scale { by: 1.0 }, _) => Ok(same(x)),
                (Op::Transpose { perm }, Some((Op::Transpose { perm: first }, Some(inner))))
                    if undoes(perm, &first) =>
                {
                    Ok(same(inner))
                }
                // A product that overflows or vanishes is not the same as two steps.
                (Op::Scale { by }, Some((Op::Scale { by: first }, Some(inner)))) if (by * first).is_normal() => {
                    let name = rw.old_name(node, 0);
                    Ok(Rewrite::Replace(rw.emit(Op::Scale { by: by * first }, vec![inner], &[&name])?))
                }
                (Op::Matmul {}, _) if rw.module.operand_type(&rw.graph, x).dtype == DType::F32 => {
                    let Some(weight) = transposed_weight(rw, node.inputs[1]) else { return Ok(Rewrite::Keep) };
                    let op = Op::Linear { n: 1, bias: false, norm: None, post: Post::None };
                    let name = rw.old_name(node, 0);
                    Ok(Rewrite::Replace(rw.emit(op, vec![x, weight], &[&name])?))
                }
                _ => Ok(Rewrite::Keep),
            }
        })
    },
};

fn same(x: Operand) -> Rewrite {
    x.value().map_or(Rewrite::Keep, |v: ValueId| Rewrite::Replace(vec![v]))
}

/// Whether one order of dimensions puts another back.
fn undoes(perm: &[i64], first: &[i64]) -> bool {
    perm.iter().zip(0..).all(|(i, d)| usize::try_from(*i).ok().and_then(|i| first.get(i)) == Some(&d))
}

fn is_turned(op: &Op) -> bool {
    matches!(op, Op::Transpose { perm } if perm[..] == [1, 0])
}

/// The weight whose transpose this operand is.
fn transposed_weight(rw: &Rewriter<'_>, operand: Operand) -> Option<Operand> {
    if let Operand::Weight(w) = operand {
        return match &rw.module.weights[w].def {
            WeightDef::Expr(op, inputs) if is_turned(op) => Some(Operand::Weight(inputs[0])),
            _ => None,
        };
    }
    let def = rw.pure_def(operand).filter(|d| is_turned(&d.op))?;
    Some(def.inputs[0]).filter(|i| i.weight().is_some())
}
