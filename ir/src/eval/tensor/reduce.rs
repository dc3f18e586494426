//! What becomes of the elements along a dimension: reductions, running sums, the largest, and order.

use super::elementwise::larger;
use super::{arg, order, sizes};
use crate::eval::data::{Data, Tensor};
use crate::eval::view::{Lanes, View};
use crate::kinds::Reduce;
use crate::types::{DType, Type};
use std::cmp::Ordering;

pub(super) fn reduce(args: &[&Tensor], kind: Reduce, ty: &Type) -> Result<Tensor, String> {
    /// Takes each element into the place of the result where it belongs.
    fn fold<T: Copy, R: Copy>(x: &[T], at: impl Iterator<Item = usize>, out: &mut [R], f: impl Fn(R, T) -> R) {
        x.iter().zip(at).for_each(|(v, i)| out[i] = f(out[i], *v));
    }
    let (x, shape) = (arg(args, 0)?, sizes(ty)?);
    let at = View::repeated(&shape, &x.shape).offsets();
    let count: usize = shape.iter().product();
    let each = (x.data.len() / count.max(1)).max(1);
    match x.dtype {
        DType::Bool => {
            let mut out = vec![kind == Reduce::Min; count];
            let f: fn(bool, bool) -> bool = if kind == Reduce::Min { |a, b| a & b } else { |a, b| a | b };
            fold(x.as_bools()?, at, &mut out, f);
            Tensor::of(ty, Data::Bool(out))
        }
        dtype if dtype.is_int() => {
            let x = x.as_wholes()?;
            let exact = |v: i64| if dtype == DType::U64 { i128::from(v as u64) } else { i128::from(v) };
            let mut out = match kind {
                Reduce::Max => vec![i128::MIN; count],
                Reduce::Min => vec![i128::MAX; count],
                Reduce::Prod => vec![1; count],
                Reduce::Mean | Reduce::Sum => vec![0; count],
            };
            match kind {
                Reduce::Max => fold(&x, at, &mut out, |a, v| a.max(exact(v))),
                Reduce::Min => fold(&x, at, &mut out, |a, v| a.min(exact(v))),
                Reduce::Prod => fold(&x, at, &mut out, |a, v| i128::from((a as i64).wrapping_mul(v))),
                Reduce::Mean | Reduce::Sum => fold(&x, at, &mut out, |a, v| a + exact(v)),
            }
            let divisor = if kind == Reduce::Mean { each as i128 } else { 1 };
            Tensor::wholes(ty, out.into_iter().map(|v| (v / divisor) as i64).collect())
        }
        _ => {
            let x = x.as_reals()?;
            let mut out = match kind {
                Reduce::Max => vec![f64::NEG_INFINITY; count],
                Reduce::Min => vec![f64::INFINITY; count],
                Reduce::Prod => vec![1.0; count],
                Reduce::Mean | Reduce::Sum => vec![0.0; count],
            };
            match kind {
                Reduce::Max => fold(&x, at, &mut out, larger),
                Reduce::Min => fold(&x, at, &mut out, |a, v| -larger(-a, -v)),
                Reduce::Prod => fold(&x, at, &mut out, |a, v| a * v),
                Reduce::Mean | Reduce::Sum => fold(&x, at, &mut out, |a, v| a + v),
            }
            if kind == Reduce::Mean {
                out.iter_mut().for_each(|v| *v /= each as f64);
            }
            Tensor::reals(ty, out)
        }
    }
}

pub(super) fn cumulate(
    args: &[&Tensor],
    axis: i64,
    prod: bool,
    exclusive: bool,
    reverse: bool,
    ty: &Type,
) -> Result<Tensor, String> {
    fn run<T: Copy>(x: &mut [T], lanes: Lanes, [exclusive, reverse]: [bool; 2], first: T, f: impl Fn(T, T) -> T) {
        for start in lanes.starts() {
            let mut all = first;
            for i in 0..lanes.n {
                let at = &mut x[start + if reverse { lanes.n - 1 - i } else { i } * lanes.inner];
                let next = f(all, *at);
                *at = if exclusive { all } else { next };
                all = next;
            }
        }
    }
    let (x, lanes, how) = (arg(args, 0)?, Lanes::new(&arg(args, 0)?.shape, axis), [exclusive, reverse]);
    if x.dtype.is_int() {
        let mut x = x.as_wholes()?.into_owned();
        match prod {
            true => run(&mut x, lanes, how, 1, i64::wrapping_mul),
            false => run(&mut x, lanes, how, 0, i64::wrapping_add),
        }
        return Tensor::wholes(ty, x);
    }
    let mut x = x.as_reals()?.into_owned();
    match prod {
        true => run(&mut x, lanes, how, 1.0, |a, b| a * b),
        false => run(&mut x, lanes, how, 0.0, |a, b| a + b),
    }
    Tensor::reals(ty, x)
}

/// How two elements of a tensor are ordered, by their places; NaN is above all numbers, and zeros are equal.
fn ordering(x: &Tensor) -> Result<Box<dyn Fn(usize, usize) -> Ordering + '_>, String> {
    if x.dtype.is_int() {
        let values = x.as_wholes()?;
        return Ok(Box::new(move |a, b| order(x.dtype, values[a]).cmp(&order(x.dtype, values[b]))));
    }
    let values = x.as_reals()?;
    Ok(Box::new(move |a, b| {
        let (a, b) = (values[a], values[b]);
        a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    }))
}

pub(super) fn arg_max(args: &[&Tensor], axis: i64, min: bool, last: bool, ty: &Type) -> Result<Tensor, String> {
    let (x, lanes) = (arg(args, 0)?, Lanes::new(&arg(args, 0)?.shape, axis));
    let ordering = ordering(x)?;
    let nan: Vec<bool> = match &x.data {
        Data::F32(v) => v.iter().map(|v| v.is_nan()).collect(),
        Data::F64(v) => v.iter().map(|v| v.is_nan()).collect(),
        _ => vec![false; x.data.len()],
    };
    let best = lanes.starts().map(|start| {
        let mut best = 0;
        for i in 1..lanes.n {
            let [a, b] = [best, i].map(|i| start + i * lanes.inner);
            // NaN wins on either side.
            let found = match nan[a] || nan[b] {
                true => nan[b].cmp(&nan[a]),
                false if min => ordering(a, b),
                false => ordering(b, a),
            };
            if found == Ordering::Greater || (last && found == Ordering::Equal) {
                best = i;
            }
        }
        best as i64
    });
    Tensor::wholes(ty, best.collect())
}

pub(super) fn sort(args: &[&Tensor], axis: i64, descending: bool, types: &[Type]) -> Result<Vec<Tensor>, String> {
    let [sorted, places] = types else { return Err("sort has two results".into()) };
    let (x, lanes) = (arg(args, 0)?, Lanes::new(&arg(args, 0)?.shape, axis));
    let ordering = ordering(x)?;
    let mut from = vec![0; x.data.len()];
    let mut index = vec![0; x.data.len()];
    for start in lanes.starts() {
        let at = |i: usize| start + i * lanes.inner;
        let mut row: Vec<usize> = (0..lanes.n).collect();
        row.sort_by(|&a, &b| if descending { ordering(at(b), at(a)) } else { ordering(at(a), at(b)) });
        for (i, origin) in row.into_iter().enumerate() {
            from[at(i)] = at(origin);
            index[at(i)] = origin as i64;
        }
    }
    Ok(vec![Tensor::of(sorted, x.data.pick(from.into_iter()))?, Tensor::wholes(places, index)?])
}
