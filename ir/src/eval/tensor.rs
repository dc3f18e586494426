//! What the ops of [`Level::Tensor`](crate::Level::Tensor) compute, a file per group.
//!
//! Floats are computed with as f64 and rounded to their type once, integers exactly and wrapped to it. The types of the
//! operands have been inferred from, so that shapes fit each other here.

mod attention;
mod cast;
mod elementwise;
mod index;
mod product;
mod reduce;
mod rows;
mod shape;
mod unary;

use super::data::{Data, Tensor};
use super::not_computed;
use crate::op::Op;
use crate::types::{DType, Type};
use std::borrow::Cow;

pub(super) use elementwise::silu;
pub(super) use product::product;
pub(super) use rows::probabilities;

/// Evaluates an op of this level, whose results have these types.
pub(super) fn compute(op: &Op, args: &[&Tensor], results: &[Type]) -> Result<Vec<Tensor>, String> {
    let ty = results.first().ok_or("an op needs a result")?;
    if results.iter().all(|ty| ty.elements() == Some(0)) {
        return results.iter().map(Tensor::none).collect();
    }
    // What has no element can be joined, summed over and scattered; nothing else is made of it.
    let joins =
        matches!(op, Op::Concat { .. } | Op::Reduce { .. } | Op::Scatter { .. } | Op::ScatterNd { .. } | Op::Matmul {});
    if !joins && args.iter().any(|x| x.data.is_empty()) {
        return Err(format!("an operand of `{}` has no element", op.name()));
    }
    let out = match op {
        Op::Add {} => elementwise::add(args, ty),
        Op::ArgMax { axis, min, last } => reduce::arg_max(args, *axis, *min, *last, ty),
        Op::Binary { kind } => elementwise::binary(args, *kind, ty),
        Op::Bitcast { to: _ } => cast::bitcast(args, ty),
        Op::Cast { to: _, wrap } => cast::cast(args, *wrap, ty),
        Op::Compare { kind } => elementwise::compare(args, *kind, ty),
        Op::Concat { axis } => shape::concat(args, *axis, ty),
        Op::Cumulate { axis, prod, exclusive, reverse } => {
            reduce::cumulate(args, *axis, *prod, *exclusive, *reverse, ty)
        }
        Op::Expand { dims: _ } => shape::expand(args, ty),
        Op::Gather { axis } => index::gather(args, *axis, ty),
        Op::GatherElements { axis } => index::gather_elements(args, *axis, ty),
        Op::GatherNd { batch } => index::gather_nd(args, *batch, ty),
        Op::Matmul {} => product::matmul(args, ty),
        Op::Mul {} => elementwise::mul(args, ty),
        Op::Normalize { kind, eps } => rows::normalize(args, *kind, *eps, ty),
        Op::Reduce { kind, axes: _ } => reduce::reduce(args, *kind, ty),
        Op::Reshape { dims: _ } => shape::reshape(args, ty),
        Op::Rotary { interleaved } => attention::rotary(args, *interleaved, ty),
        Op::Scale { by } => unary::map(args, ty, |v| v * f64::from(*by)),
        Op::Scatter { axis, kind } => index::scatter(args, *axis, *kind, ty),
        Op::ScatterNd { kind } => index::scatter_nd(args, *kind, ty),
        Op::Sdpa { scale, cap, mask } => attention::sdpa(args, *scale, *cap, *mask, ty),
        Op::Select {} => elementwise::select(args, ty),
        Op::Silu {} => unary::map(args, ty, elementwise::silu),
        Op::Slice { starts, ends: _, steps } => shape::slice(args, starts, steps, ty),
        Op::Softmax {} => rows::softmax(args, ty),
        Op::Sort { axis, descending } => return reduce::sort(args, *axis, *descending, results),
        Op::Transpose { perm } => shape::transpose(args, perm, ty),
        Op::Unary { kind } => unary::unary(args, *kind, ty),
        other => return not_computed(other),
    };
    out.map(|tensor| vec![tensor])
}

/// Operand `i`.
pub(super) fn arg<'t>(args: &[&'t Tensor], i: usize) -> Result<&'t Tensor, String> {
    args.get(i).copied().ok_or_else(|| format!("operand {} is missing", i + 1))
}

impl Tensor {
    /// The sizes of a type that has no names.
    pub(super) fn of(ty: &Type, data: Data) -> Result<Self, String> {
        Ok(Tensor { dtype: ty.dtype, shape: sizes(ty)?, data })
    }

    /// A tensor without elements.
    fn none(ty: &Type) -> Result<Self, String> {
        match ty.dtype {
            DType::Bool => Tensor::of(ty, Data::Bool(vec![])),
            dtype if dtype.is_int() => Tensor::wholes(ty, vec![]),
            _ => Tensor::reals(ty, vec![]),
        }
    }

    /// Floats rounded to their type.
    pub(super) fn reals(ty: &Type, mut values: Vec<f64>) -> Result<Self, String> {
        let data = match ty.dtype {
            DType::F64 => Data::F64(values),
            DType::F32 => Data::F32(values.into_iter().map(|v| v as f32).collect()),
            dtype => Data::F32(values.drain(..).map(|v| dtype.round_f64(v) as f32).collect()),
        };
        Tensor::of(ty, data)
    }

    /// Integers wrapped to their type.
    pub(super) fn wholes(ty: &Type, mut values: Vec<i64>) -> Result<Self, String> {
        let data = match ty.dtype {
            DType::I32 => Data::I32(values.into_iter().map(|v| v as i32).collect()),
            dtype => {
                values.iter_mut().for_each(|v| *v = dtype.wrap(*v));
                Data::I64(values)
            }
        };
        Tensor::of(ty, data)
    }

    pub(super) fn as_reals(&self) -> Result<Cow<'_, [f64]>, String> {
        match &self.data {
            Data::F64(x) => Ok(x.into()),
            Data::F32(x) => Ok(x.iter().map(|v| f64::from(*v)).collect()),
            _ => Err("a float tensor was expected".into()),
        }
    }

    pub(super) fn as_wholes(&self) -> Result<Cow<'_, [i64]>, String> {
        match &self.data {
            Data::I32(x) => Ok(x.iter().map(|v| i64::from(*v)).collect()),
            Data::I64(x) => Ok(x.into()),
            _ => Err("an integer tensor was expected".into()),
        }
    }

    pub(super) fn as_bools(&self) -> Result<&[bool], String> {
        if let Data::Bool(x) = &self.data { Ok(x) } else { Err("a bool tensor was expected".into()) }
    }
}

/// The sizes of a type.
fn sizes(ty: &Type) -> Result<Vec<usize>, String> {
    ty.shape().ok_or_else(|| format!("{ty} has no static size"))
}

/// What integers of a type are ordered by: u64 is held by its bits.
fn order(dtype: DType, v: i64) -> i64 {
    if dtype == DType::U64 { v ^ i64::MIN } else { v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute;
    use crate::kinds::{Binary, Reduce};

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::f32(shape, vec![0.0; shape.iter().product()])
    }

    #[test]
    fn constants_may_be_empty() {
        let (none, two) = (zeros(&[0, 2]), zeros(&[3, 2]));
        let shape = |op: &Op, args: &[&Tensor]| compute(op, args).map(|out| (out[0].shape.clone(), out[0].data.len()));
        let sliced = Op::Slice { starts: vec![1, 0], ends: vec![1, 2], steps: vec![1, 1] };
        assert_eq!(shape(&sliced, &[&two]), Ok((vec![0, 2], 0)));
        assert_eq!(shape(&Op::Concat { axis: 0 }, &[&none, &two]), Ok((vec![3, 2], 6)));
        assert_eq!(shape(&Op::Matmul {}, &[&zeros(&[2, 0]), &none]), Ok((vec![2, 2], 4)));
        assert_eq!(shape(&Op::Binary { kind: Binary::Sub }, &[&none, &zeros(&[2])]), Ok((vec![0, 2], 0)));
        let sum = compute(&Op::Reduce { kind: Reduce::Sum, axes: vec![0] }, &[&none]).unwrap();
        assert_eq!((&sum[0].shape, sum[0].floats()), (&vec![1, 2], Ok(&[0.0, 0.0][..])));
        assert!(compute(&Op::ArgMax { axis: 0, min: false, last: false }, &[&none]).is_err());
        assert!(compute(&Op::Gather { axis: 0 }, &[&none, &Tensor::i32(&[1], vec![0])]).is_err());
    }
}
