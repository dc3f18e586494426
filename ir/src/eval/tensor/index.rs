//! What reads and writes where indices say. An index below zero counts from the end; one out of range is an error.

use super::elementwise::larger;
use super::{arg, order, sizes};
use crate::eval::data::Tensor;
use crate::eval::view::{Lanes, View};
use crate::kinds::Scatter;
use crate::types::Type;

/// An index of a dimension.
fn place(index: i64, n: usize) -> Result<usize, String> {
    let from_front = if index < 0 { index.wrapping_add(n as i64) } else { index };
    let found = usize::try_from(from_front).ok().filter(|i| *i < n);
    found.ok_or_else(|| format!("there is no element {index} in a dimension of {n}"))
}

pub(super) fn gather(args: &[&Tensor], axis: i64, ty: &Type) -> Result<Tensor, String> {
    let (x, lanes) = (arg(args, 0)?, Lanes::new(&arg(args, 0)?.shape, axis));
    let at = arg(args, 1)?.as_wholes()?.iter().map(|i| place(*i, lanes.n)).collect::<Result<Vec<_>, _>>()?;
    let slices = (0..lanes.outer).flat_map(|o| at.iter().map(move |i| (o * lanes.n + i) * lanes.inner));
    Tensor::of(ty, x.data.pick(slices.flat_map(|start| start..start + lanes.inner)))
}

/// Where `gather_elements` reads.
fn element_places(x: &Tensor, indices: &Tensor, axis: i64) -> Result<Vec<usize>, String> {
    // Zero along the axis, the index's own place along the others.
    let mut view = View::new(&x.shape);
    let (n, stride) = (x.shape[axis as usize], view.strides[axis as usize]);
    view.strides[axis as usize] = 0;
    view.shape.clone_from(&indices.shape);
    let at = |(base, i): (usize, &i64)| place(*i, n).map(|i| base + i * stride as usize);
    view.offsets().zip(indices.as_wholes()?.iter()).map(at).collect()
}

pub(super) fn gather_elements(args: &[&Tensor], axis: i64, ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let at = element_places(x, arg(args, 1)?, axis)?;
    Tensor::of(ty, x.data.pick(at.into_iter()))
}

/// Where the slices begin that `gather_nd` reads, and how long each is.
fn slice_places(x: &Tensor, indices: &Tensor, batch: usize) -> Result<(Vec<usize>, usize), String> {
    let (depth, fronts) = indices.shape.split_last().ok_or("the index needs a dimension")?;
    let strides = View::new(&x.shape).strides;
    let (sizes, rest) = x.shape[batch..].split_at(*depth);
    let length = rest.iter().product();
    // Each batch has as many coordinates, and as many elements.
    let count: usize = fronts.iter().product();
    let per_batch = fronts[batch..].iter().product::<usize>();
    let elements: usize = x.shape[batch..].iter().product();
    let coordinates = indices.as_wholes()?;
    let start = |i: usize| {
        let mut at = i / per_batch * elements;
        for (d, (&n, index)) in sizes.iter().zip(&coordinates[i * depth..]).enumerate() {
            at += place(*index, n)? * strides[batch + d] as usize;
        }
        Ok(at)
    };
    Ok(((0..count).map(start).collect::<Result<_, String>>()?, length))
}

pub(super) fn gather_nd(args: &[&Tensor], batch: i64, ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let (starts, length) = slice_places(x, arg(args, 1)?, batch as usize)?;
    Tensor::of(ty, x.data.pick(starts.into_iter().flat_map(|start| start..start + length)))
}

pub(super) fn scatter(args: &[&Tensor], axis: i64, kind: Scatter, ty: &Type) -> Result<Tensor, String> {
    let at = element_places(arg(args, 0)?, arg(args, 1)?, axis)?;
    scattered(args, &at, kind, ty)
}

pub(super) fn scatter_nd(args: &[&Tensor], kind: Scatter, ty: &Type) -> Result<Tensor, String> {
    let (starts, length) = slice_places(arg(args, 0)?, arg(args, 1)?, 0)?;
    let at: Vec<usize> = starts.into_iter().flat_map(|start| start..start + length).collect();
    scattered(args, &at, kind, ty)
}

/// Operand 0 with the elements of operand 2 in some places; where there are several, they come in order.
fn scattered(args: &[&Tensor], at: &[usize], kind: Scatter, ty: &Type) -> Result<Tensor, String> {
    fn merge<T: Copy>(to: &mut [T], at: &[usize], from: &[T], f: impl Fn(T, T) -> T) {
        at.iter().zip(from).for_each(|(i, v)| to[*i] = f(to[*i], *v));
    }
    let (x, updates) = (arg(args, 0)?, arg(args, 2)?);
    if kind == Scatter::Set {
        let mut data = x.data.clone();
        data.put(at, &updates.data)?;
        return Ok(Tensor { dtype: ty.dtype, shape: sizes(ty)?, data });
    }
    let dtype = ty.dtype;
    if dtype.is_int() {
        let (mut to, from) = (x.as_wholes()?.into_owned(), updates.as_wholes()?);
        let least = |a, b| if order(dtype, b) < order(dtype, a) { b } else { a };
        let most = |a, b| if order(dtype, b) > order(dtype, a) { b } else { a };
        match kind {
            Scatter::Add => merge(&mut to, at, &from, i64::wrapping_add),
            Scatter::Mul => merge(&mut to, at, &from, i64::wrapping_mul),
            Scatter::Min => merge(&mut to, at, &from, least),
            Scatter::Max | Scatter::Set => merge(&mut to, at, &from, most),
        }
        return Tensor::wholes(ty, to);
    }
    let (mut to, from) = (x.as_reals()?.into_owned(), updates.as_reals()?);
    match kind {
        Scatter::Add => merge(&mut to, at, &from, |a, b| a + b),
        Scatter::Mul => merge(&mut to, at, &from, |a, b| a * b),
        Scatter::Min => merge(&mut to, at, &from, |a, b| -larger(-a, -b)),
        Scatter::Max | Scatter::Set => merge(&mut to, at, &from, larger),
    }
    Tensor::reals(ty, to)
}
