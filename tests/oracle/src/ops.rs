//! The op table in burn.
//!
//! Invariant: [`oracle`] names every op, so that a new one does not compile until somebody has said here what it means.

mod attention;
mod elementwise;
mod index;
mod model;
mod order;
mod shape;

use dlx_ir::Op;

use crate::value::{Operand, Value};

pub use attention::{attend, sees};
pub use model::rotation;

/// The results of an op without states.
///
/// # Errors
/// Operands of another kind than the op takes.
pub fn oracle(op: &Op, args: &[Operand]) -> Result<Vec<Value>, String> {
    let one = match op {
        Op::Add {} | Op::Mul {} => elementwise::arithmetic(op, args),
        Op::ArgMax { axis, min, last } => order::arg_max(&args[0], *axis, *min, *last),
        Op::Binary { kind } => elementwise::binary(*kind, args),
        Op::Bitcast { to } => elementwise::bitcast(&args[0], *to),
        Op::Cast { to, wrap: _ } => elementwise::cast(&args[0], *to),
        Op::Compare { kind } => elementwise::compare(*kind, args),
        Op::Concat { axis } => shape::concat(args, *axis),
        Op::Cumulate { axis, prod, exclusive, reverse } => {
            shape::cumulate(&args[0], *axis, *prod, *exclusive, *reverse)
        }
        Op::Expand { dims } => shape::expand(&args[0], dims),
        Op::Gather { axis } => index::gather(args, *axis),
        Op::GatherElements { axis } => index::gather_elements(args, *axis),
        Op::GatherNd { batch } => index::gather_nd(args, *batch),
        Op::Matmul {} => attention::matmul(args),
        Op::Normalize { kind, eps } => attention::normalize(&args[0], *kind, *eps),
        Op::Reduce { kind, axes } => shape::reduce(&args[0], *kind, axes),
        Op::Reshape { dims } => shape::reshape(&args[0], dims),
        Op::Rotary { interleaved } => attention::rotary(args, *interleaved),
        Op::Scale { by } => args[0].float().map(|x| Value::Float(x.mul_scalar(f64::from(*by)))),
        Op::Scatter { axis, kind } => index::scatter(args, *axis, *kind),
        Op::ScatterNd { kind } => index::scatter_nd(args, *kind),
        Op::Sdpa { scale, cap, mask } => attention::sdpa(args, *scale, *cap, *mask),
        Op::Select {} => elementwise::select(args),
        Op::Silu {} => args[0].float().map(|x| Value::Float(elementwise::silu(x))),
        Op::Slice { starts, ends, steps } => shape::slice(&args[0], starts, ends, steps),
        Op::Softmax {} => attention::softmax(&args[0]),
        Op::Sort { axis, descending } => return order::sort(&args[0], *axis, *descending),
        Op::Transpose { perm } => shape::transpose(&args[0], perm),
        Op::Unary { kind } => elementwise::unary(&args[0], *kind),
        Op::Attention { head_dim, mask } => model::attention(args, *head_dim, *mask),
        Op::Embed {} => model::embed(args),
        Op::HeadStats { norm, ban } => return model::head_stats(args, *norm, *ban),
        Op::Linear { n, bias, norm, post } => return model::linear(args, *n as usize, *bias, *norm, *post),
        Op::Mask { rule } => Ok(Value::Bool(sees(*rule, 0, args[0].shape[0], args[0].shape[0]))),
        Op::RmsNorm { eps } => model::rms_norm(args, *eps),
        Op::Rope { head_dim, norm } => model::rope(args, *head_dim, *norm),
        Op::RopeTable { theta, head_dim } => model::rope_table(&args[0], *theta, *head_dim),
        Op::CachedAttention { .. } | Op::KvWrite {} | Op::StoreRows {} | Op::TakeRows {} => {
            return Err(format!("`{}` needs states; see `states`", op.name()));
        }
        // Packing changes no number.
        Op::Pack { layout: _, shard: _ } => Ok(args[0].value.clone()),
        Op::Quantize { to: _ } => Err("what a quantizer chooses is bounded, not said; see `weights`".into()),
    };
    one.map(|value| vec![value])
}
