//! `decompose`: row-wise model ops become ops that any tensor language has, for static shapes.
//!
//! ```text
//! %n = rms_norm %x, @w {eps=1e-6}: f32[4, 192]
//! ```
//! becomes, for three heads of 64 features,
//! ```text
//! %n.parts = reshape %x {dims=[4, 3, 64]}: f32[4, 3, 64]
//! %n.normed = normalize %n.parts {kind=rms, eps=1e-6}: f32[4, 3, 64]
//! %n.scaled = mul %n.normed, @w: f32[4, 3, 64]
//! %n = reshape %n.scaled {dims=[4, 192]}: f32[4, 192]
//! ```
//! The bias of a linear becomes an `add`; a linear without one stays what it is, since its weight may be stored as codes. A
//! reshape of a reshape becomes one.

use dlx_ir::{DType, Error, Norm, Op, Operand, Post, Rewrite, Rewriter, Unary};

use crate::{Keeps, PassInfo, rewrite_all};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "decompose",
    doc: "rms_norm, silu, biases → tensor ops, at static shapes",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, _| {
        rewrite_all(module, &mut |rw, node| {
            // An op without results, such as a write to a cache, has no name.
            let (&[x, ref rest @ ..], [_, ..]) = (&node.inputs[..], &node.outputs[..]) else {
                return Ok(Rewrite::Keep);
            };
            let name = rw.old_name(node, 0);
            // Names of steps on the way are made of it: other nodes of the graph before may be called what the step is.
            let step = |what: &str| format!("{name}.{what}");
            let dims = |rw: &Rewriter<'_>, x: Operand| rw.module.operand_type(&rw.graph, x).shape();
            let signed = |dims: &[usize]| dims.iter().map(|d| *d as i64).collect::<Vec<_>>();
            Ok(match &node.op {
                Op::RmsNorm { eps } => {
                    let (Some(shape), Some(&[chunk])) = (dims(rw, x), dims(rw, rest[0]).as_deref()) else {
                        return Ok(Rewrite::Keep);
                    };
                    let &[rows, features] = &shape[..] else { return Ok(Rewrite::Keep) };
                    let parts = signed(&[rows, features / chunk, chunk]);
                    let mut y = x;
                    if features != chunk {
                        y = rw.emit(Op::Reshape { dims: parts }, vec![y], &[&step("parts")])?[0].into();
                    }
                    y = rw.emit(Op::Normalize { kind: Norm::Rms, eps: *eps }, vec![y], &[&step("normed")])?[0].into();
                    let w = wide(rw, rest[0], &step("w"))?;
                    let (whole, scaled) = (features == chunk, step("scaled"));
                    y = rw.emit(Op::Mul {}, vec![y, w], &[if whole { &name } else { &scaled }])?[0].into();
                    if !whole {
                        y = rw.emit(Op::Reshape { dims: signed(&shape) }, vec![y], &[&name])?[0].into();
                    }
                    Rewrite::Replace(y.value().into_iter().collect())
                }
                Op::Silu {} => {
                    let gate = rw.emit(Op::Unary { kind: Unary::Sigmoid }, vec![x], &[&step("gate")])?[0];
                    Rewrite::Replace(rw.emit(Op::Mul {}, vec![x, gate.into()], &[&name])?)
                }
                Op::Linear { n: 1, bias: true, norm: None, post: Post::None } => {
                    let op = Op::Linear { n: 1, bias: false, norm: None, post: Post::None };
                    let y = rw.emit(op, vec![x, rest[0]], &[&step("product")])?[0];
                    let bias = wide(rw, rest[1], &step("w"))?;
                    Rewrite::Replace(rw.emit(Op::Add {}, vec![y.into(), bias], &[&name])?)
                }
                Op::Reshape { dims } => match rw.pure_def(x) {
                    Some(def) if matches!(def.op, Op::Reshape { .. }) => {
                        let x = def.inputs[0];
                        Rewrite::Replace(rw.emit(Op::Reshape { dims: dims.clone() }, vec![x], &[&name])?)
                    }
                    _ => Rewrite::Keep,
                },
                _ => Rewrite::Keep,
            })
        })
    },
};

/// A weight as f32, which model ops take as it is stored and tensor ops do not.
fn wide(rw: &mut Rewriter<'_>, w: Operand, name: &str) -> Result<Operand, Error> {
    if rw.module.operand_type(&rw.graph, w).dtype == DType::F32 {
        return Ok(w);
    }
    Ok(rw.emit(Op::Cast { to: DType::F32, wrap: false }, vec![w], &[name])?[0].into())
}
