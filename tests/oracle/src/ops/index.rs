//! What reads and writes at indices, as positions in the flat tensor: one rule for reading serves all of `gather…`, and
//! one for writing all of `scatter…`.
//!
//! Invariant: writing is a reduction over one-hot rows, not burn's `scatter`, whose result for indices that come twice is
//! undefined or in any order.

use burn::tensor::{Bool, FloatDType, Int, IntDType, Tensor as Burn};
use dlx_ir::Scatter;

use super::shape::any_kind;
use crate::value::{Ints, Operand, RANK, Value, axis, count, padded};

/// Distances between neighbors along each dimension.
fn strides(dims: &[usize]) -> Vec<i64> {
    (0..dims.len()).map(|d| dims[d + 1..].iter().product::<usize>() as i64).collect()
}

/// Negative indices count from the end.
fn from_front(i: &Operand, n: usize) -> Result<Ints, String> {
    let i = i.int()?.cast(IntDType::I64);
    Ok(i.clone().mask_where(i.clone().lower_scalar(0), i.add_scalar(n as i64)))
}

/// Elements at positions of the flat tensor, in another shape.
fn read(x: &Operand, at: Burn<1, Int>, to: [usize; RANK]) -> Value {
    let n = x.shape.iter().product::<usize>();
    any_kind!(x.value.clone(), x => x.reshape([n]).select(0, at).reshape(to))
}

pub(super) fn gather(args: &[Operand], a: i64) -> Result<Value, String> {
    let (x, i) = (&args[0], &args[1]);
    let along = axis(a, x.rank());
    let (own, count) = (along + x.rank() - RANK, i.shape.iter().product::<usize>());
    let at = from_front(i, x.shape[own])?.reshape([count]);
    let to = padded(&[&x.shape[..own], &i.shape, &x.shape[own + 1..]].concat());
    Ok(any_kind!(x.value.clone(), x => x.select(along, at).reshape(to)))
}

/// Flat positions of the elements that an index of `gather_elements` speaks of.
fn positions(x: &Operand, i: &Operand, a: i64) -> Result<Burn<1, Int>, String> {
    let dims = i.value.dims();
    let along = axis(a, x.rank());
    let strides = strides(&padded(&x.shape));
    let mut at = from_front(i, padded(&x.shape)[along])?.mul_scalar(strides[along]);
    for d in (0..RANK).filter(|d| *d != along) {
        at = at + count(dims[d], d).mul_scalar(strides[d]).expand(dims);
    }
    Ok(at.reshape([dims.iter().product::<usize>()]))
}

pub(super) fn gather_elements(args: &[Operand], a: i64) -> Result<Value, String> {
    Ok(read(&args[0], positions(&args[0], &args[1], a)?, args[1].value.dims()))
}

/// Flat positions of the slices at coordinates, their elements one after the other; and the sizes of a slice.
fn slices(x: &Operand, i: &Operand, batch: usize) -> Result<(Burn<1, Int>, Vec<usize>), String> {
    let (depth, fronts) = i.shape.split_last().ok_or("an index without coordinates")?;
    let rest = x.shape[batch + depth..].to_vec();
    let (groups, inner) = (fronts.iter().product::<usize>(), rest.iter().product::<usize>());
    let strides = strides(&x.shape);
    let coordinates: Burn<2, Int> = i.int()?.cast(IntDType::I64).reshape([groups, *depth]);
    let mut at: Burn<2, Int> = coordinates.clone().narrow(1, 0, 1).mul_scalar(0);
    for k in 0..*depth {
        let c = coordinates.clone().narrow(1, k, 1);
        let size = x.shape[batch + k] as i64;
        let c = c.clone().mask_where(c.clone().lower_scalar(0), c.add_scalar(size));
        at = at + c.mul_scalar(strides[batch + k]);
    }
    // The batch dimensions of the index are those of x.
    for b in 0..batch {
        let mut sizes = fronts.to_vec();
        sizes.iter_mut().enumerate().filter(|(d, _)| *d != b).for_each(|(_, s)| *s = 1);
        let own = count(fronts[b], RANK - 1).reshape(padded(&sizes)).expand(padded(fronts));
        at = at + own.mul_scalar(strides[b]).reshape([groups, 1]);
    }
    let within = count(inner, RANK - 1).reshape([1, inner]).expand([groups, inner]);
    Ok(((at.expand([groups, inner]) + within).reshape([groups * inner]), rest))
}

pub(super) fn gather_nd(args: &[Operand], batch: i64) -> Result<Value, String> {
    let batch = usize::try_from(batch).map_err(|e| e.to_string())?;
    let (at, rest) = slices(&args[0], &args[1], batch)?;
    let fronts = &args[1].shape[..args[1].rank() - 1];
    Ok(read(&args[0], at, padded(&[fronts, &rest].concat())))
}

pub(super) fn scatter(args: &[Operand], a: i64, kind: Scatter) -> Result<Value, String> {
    write(&args[0], positions(&args[0], &args[1], a)?, &args[2], kind)
}

pub(super) fn scatter_nd(args: &[Operand], kind: Scatter) -> Result<Value, String> {
    write(&args[0], slices(&args[0], &args[1], 0)?.0, &args[2], kind)
}

/// x with updates put at flat positions.
fn write(x: &Operand, at: Burn<1, Int>, updates: &Operand, kind: Scatter) -> Result<Value, String> {
    let n = x.shape.iter().product::<usize>();
    let [m] = at.dims();
    let places = count(n, RANK - 1).reshape([1, n]).expand([m, n]);
    let hot: Burn<2, Bool> = at.reshape([m, 1]).expand([m, n]).equal(places);
    let (hit, cold) = (hot.clone().any_dim(0), hot.bool_not());
    let to = padded(&x.shape);
    macro_rules! put {
        ($x:expr, $u:expr, $least:expr, $most:expr) => {{
            let x = $x.reshape([1, n]);
            let u = $u.reshape([m, 1]).expand([m, n]);
            let written = match kind {
                Scatter::Set => x.clone().mask_where(hit, u.mask_fill(cold, 0).sum_dim(0)),
                Scatter::Add => x.clone() + u.mask_fill(cold, 0).sum_dim(0),
                Scatter::Mul => x.clone() * u.mask_fill(cold, 1).prod_dim(0),
                Scatter::Max => {
                    let u = u.mask_fill(cold, $least).max_dim(0);
                    x.clone().mask_where(u.clone().greater(x), u)
                }
                Scatter::Min => {
                    let u = u.mask_fill(cold, $most).min_dim(0);
                    x.clone().mask_where(u.clone().lower(x), u)
                }
            };
            written.reshape(to)
        }};
    }
    Ok(match (&x.value, &updates.value) {
        (Value::Float(x), Value::Float(u)) => {
            Value::Float(put!(x.clone(), u.clone(), f64::NEG_INFINITY, f64::INFINITY))
        }
        (Value::Int(a), Value::Int(u)) => {
            let ty = crate::value::int_type(x.dtype).ok_or("burn lacks the type")?;
            let (a, u) = (a.clone().cast(IntDType::I64), u.clone().cast(IntDType::I64));
            Value::Int(put!(a, u, i64::MIN, i64::MAX).cast(ty))
        }
        (Value::Bool(a), Value::Bool(u)) => {
            let (a, u) = (a.clone().cast(FloatDType::F64), u.clone().cast(FloatDType::F64));
            Value::Bool(put!(a, u, 0.0, 1.0).greater_scalar(0.5))
        }
        _ => return Err("updates of another kind".into()),
    })
}
