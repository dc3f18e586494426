//! Typing rules of the ops of [`Level::Tensor`](crate::Level::Tensor), a file per group.
//!
//! Dimensions may be names wherever a rule needs no number. Axes count from the front: what counts from the end
//! somewhere else was turned around before it came here.

mod elementwise;
mod index;
mod product;
mod shape;

use super::no_rule;
use super::operands::Operands;
use crate::op::Op;
use crate::types::{DType, Dim, Type};

impl<'a> Operands<'a> {
    /// Result types of an op of this level.
    pub(super) fn tensor_op(&mut self, op: &Op) -> Result<Vec<Type>, String> {
        let results = match op {
            Op::Add {} | Op::Mul {} => self.arithmetic(),
            Op::ArgMax { axis, min: _, last: _ } => self.arg_max(*axis),
            Op::Binary { kind } => self.binary(*kind),
            Op::Bitcast { to } => self.bitcast(*to),
            Op::Cast { to, wrap: _ } => self.cast(*to),
            Op::Compare { kind } => self.compare(*kind),
            Op::Concat { axis } => self.concat(*axis),
            Op::Cumulate { axis, prod: _, exclusive: _, reverse: _ } => self.cumulate(*axis),
            Op::Expand { dims } => self.expand(dims),
            Op::Gather { axis } => self.gather(*axis),
            Op::GatherElements { axis } => self.gather_elements(*axis),
            Op::GatherNd { batch } => self.gather_nd(*batch),
            Op::Matmul {} => self.matmul(),
            Op::Normalize { kind: _, eps } => self.normalize(*eps),
            Op::Reduce { kind, axes } => self.reduce(*kind, axes),
            Op::Reshape { dims } => self.reshape(dims),
            Op::Rotary { interleaved: _ } => self.rotary(),
            Op::Scale { by: _ } | Op::Silu {} => Ok(vec![self.real("operand")?.clone()]),
            Op::Scatter { axis, kind } => self.scatter(*axis, *kind),
            Op::ScatterNd { kind } => self.scatter_nd(*kind),
            Op::Sdpa { scale: _, cap, mask } => self.sdpa(*cap, *mask),
            Op::Select {} => self.select(),
            Op::Slice { starts, ends, steps } => self.slice(starts, ends, steps),
            Op::Softmax {} => self.softmax(),
            Op::Sort { axis, descending: _ } => self.sort(*axis),
            Op::Transpose { perm } => self.transpose(perm),
            Op::Unary { kind } => self.unary(*kind),
            other => no_rule(other),
        }?;
        let constant = self.constant();
        match results.iter().find(|ty| !countable(ty, constant)) {
            Some(ty) => Err(format!("the result would be {ty}, which has no element or too many")),
            None => Ok(results),
        }
    }

    /// A row-major value or weight of an element type that is none of a quantized format.
    fn tensor(&mut self, what: &str) -> Result<&'a Type, String> {
        let ty = self.any(what)?;
        let plain = ty.layout.is_none() && !matches!(ty.dtype, DType::Quant(_)) && countable(ty, self.constant());
        if plain { Ok(ty) } else { Err(format!("{what} is {ty}, not a plain tensor")) }
    }

    /// A tensor of an element type that satisfies a condition.
    fn of(&mut self, what: &str, wanted: &str, holds: impl Fn(DType) -> bool) -> Result<&'a Type, String> {
        let ty = self.tensor(what)?;
        if holds(ty.dtype) { Ok(ty) } else { Err(format!("{what} is {ty}, not {wanted}")) }
    }

    /// A tensor of floats that are computed with.
    fn real(&mut self, what: &str) -> Result<&'a Type, String> {
        self.of(what, "a plain float tensor", DType::is_real)
    }

    /// A tensor of floats or integers.
    fn numeric(&mut self, what: &str) -> Result<&'a Type, String> {
        self.of(what, "a tensor of numbers", DType::is_numeric)
    }

    fn bools(&mut self, what: &str) -> Result<&'a Type, String> {
        self.of(what, "a bool tensor", |dtype| dtype == DType::Bool)
    }

    /// A tensor of indices.
    fn indices(&mut self) -> Result<&'a Type, String> {
        self.of("the index", "a tensor of i32 or i64", |dtype| matches!(dtype, DType::I32 | DType::I64))
    }

    /// A tensor of the element type of another one.
    fn alike(&mut self, other: &Type, what: &str) -> Result<&'a Type, String> {
        let ty = self.tensor(what)?;
        if ty.dtype == other.dtype {
            Ok(ty)
        } else {
            Err(format!("element types {} and {} differ; cast one of them", other.dtype, ty.dtype))
        }
    }
}

/// Whether a type has elements whose bytes can be counted. A constant may have none.
fn countable(ty: &Type, constant: bool) -> bool {
    let mut fixed = ty.dims.iter().filter_map(Dim::fixed);
    let none = constant && fixed.clone().any(|d| d == 0);
    none || fixed.try_fold(8usize, |n, d| n.checked_mul(d)).is_some_and(|bytes| bytes > 0)
}

/// An axis of a type as an index of its dimensions.
fn axis_of(axis: i64, ty: &Type) -> Result<usize, String> {
    let rank = ty.dims.len();
    usize::try_from(axis).ok().filter(|a| *a < rank).ok_or_else(|| format!("{ty} has no dimension {axis}"))
}

/// The static size of a dimension.
fn fixed(dim: &Dim, what: &str) -> Result<usize, String> {
    dim.fixed().ok_or_else(|| format!("{what} needs static sizes, and {dim} is a name"))
}

/// A size that stands in an attribute.
fn size(n: i64) -> Result<usize, String> {
    usize::try_from(n).map_err(|_| format!("{n} is not a size"))
}

/// What two shapes become when sizes of 1, and the whole in front, repeat.
fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let one = Dim::Fixed(1);
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(rank).map_or(one.clone(), |i| dims[i].clone());
    let pair = |i: usize| match (at(a, i), at(b, i)) {
        (x, y) if x == y || y == one => Some(x),
        (x, y) if x == one => Some(y),
        _ => None,
    };
    (0..rank).map(pair).collect::<Option<_>>().ok_or_else(|| format!("shapes {} and {} differ", list(a), list(b)))
}

/// Sizes as text.
fn list(dims: &[Dim]) -> String {
    format!("[{}]", dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
}
