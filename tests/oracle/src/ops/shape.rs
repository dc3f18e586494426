//! What moves elements, and what makes a dimension shorter or runs along it.

use burn::tensor::Tensor as Burn;
use dlx_ir::Reduce;

use crate::value::{Floats, Ints, Operand, RANK, Value, axis, ints, padded};

/// The same function of whatever the elements are.
macro_rules! any_kind {
    ($value:expr, $x:ident => $result:expr) => {
        match $value {
            Value::Float($x) => Value::Float($result),
            Value::Int($x) => Value::Int($result),
            Value::Bool($x) => Value::Bool($result),
        }
    };
}
pub(super) use any_kind;

fn sizes(dims: &[i64]) -> Result<Vec<usize>, String> {
    dims.iter().map(|n| usize::try_from(*n).map_err(|e| e.to_string())).collect()
}

pub(super) fn concat(args: &[Operand], along: i64) -> Result<Value, String> {
    let dim = axis(along, args[0].rank());
    Ok(match &args[0].value {
        Value::Float(_) => Value::Float(Burn::cat(args.iter().map(Operand::float).collect::<Result<_, _>>()?, dim)),
        Value::Int(_) => Value::Int(Burn::cat(args.iter().map(Operand::int).collect::<Result<_, _>>()?, dim)),
        Value::Bool(_) => Value::Bool(Burn::cat(args.iter().map(Operand::bool).collect::<Result<_, _>>()?, dim)),
    })
}

pub(super) fn expand(x: &Operand, dims: &[i64]) -> Result<Value, String> {
    let to = padded(&sizes(dims)?);
    Ok(any_kind!(x.value.clone(), x => x.expand(to)))
}

pub(super) fn reshape(x: &Operand, dims: &[i64]) -> Result<Value, String> {
    let to = padded(&sizes(dims)?);
    Ok(any_kind!(x.value.clone(), x => x.reshape(to)))
}

pub(super) fn transpose(x: &Operand, perm: &[i64]) -> Result<Value, String> {
    let mut axes: [usize; RANK] = std::array::from_fn(|i| i);
    for (i, &from) in perm.iter().enumerate() {
        axes[RANK - perm.len() + i] = axis(from, perm.len());
    }
    Ok(any_kind!(x.value.clone(), x => x.permute(axes)))
}

pub(super) fn slice(x: &Operand, starts: &[i64], ends: &[i64], steps: &[i64]) -> Result<Value, String> {
    let mut value = x.value.clone();
    for (d, ((&start, &end), &step)) in starts.iter().zip(ends).zip(steps).enumerate() {
        let before = |at: &i64| if step > 0 { *at < end } else { *at > end };
        let taken: Vec<i64> = std::iter::successors(Some(start), |at| Some(at + step)).take_while(before).collect();
        let (dim, n) = (RANK - x.rank() + d, taken.len());
        let taken = ints(taken, &[n]).reshape([n]);
        value = any_kind!(value, v => v.select(dim, taken));
    }
    Ok(value)
}

pub(super) fn reduce(x: &Operand, kind: Reduce, axes: &[i64]) -> Result<Value, String> {
    let mut value = x.value.clone();
    for &a in axes {
        let dim = axis(a, x.rank());
        value = match value {
            Value::Float(x) => Value::Float(along(x, kind, dim)),
            Value::Int(x) => Value::Int(match kind {
                Reduce::Max => x.max_dim(dim),
                Reduce::Min => x.min_dim(dim),
                Reduce::Prod => x.prod_dim(dim),
                Reduce::Sum => x.sum_dim(dim),
                Reduce::Mean => return Err("the table does not say how a mean of integers is rounded".into()),
            }),
            Value::Bool(x) if kind == Reduce::Max => Value::Bool(x.any_dim(dim)),
            Value::Bool(x) => Value::Bool(x.all_dim(dim)),
        };
    }
    Ok(value)
}

fn along(x: Floats, kind: Reduce, dim: usize) -> Floats {
    let nan = x.clone().is_nan();
    let nan_wins = |x: Floats| x.mask_fill(nan.clone().any_dim(dim), f64::NAN);
    match kind {
        Reduce::Max => nan_wins(x.mask_fill(nan.clone(), f64::NEG_INFINITY).max_dim(dim)),
        Reduce::Min => nan_wins(x.mask_fill(nan.clone(), f64::INFINITY).min_dim(dim)),
        Reduce::Mean => x.mean_dim(dim),
        Reduce::Prod => x.prod_dim(dim),
        Reduce::Sum => x.sum_dim(dim),
    }
}

/// Backwards is along the turned dimension; without itself, an element has what the one before it has.
pub(super) fn cumulate(x: &Operand, a: i64, prod: bool, exclusive: bool, reverse: bool) -> Result<Value, String> {
    let dim = axis(a, x.rank());
    macro_rules! run {
        ($x:expr) => {{
            let turned = if reverse { $x.flip([dim]) } else { $x };
            let n = turned.dims()[dim];
            let all = if prod { turned.cumprod(dim) } else { turned.cumsum(dim) };
            let shifted = if exclusive {
                let first = all.clone().narrow(dim, 0, 1);
                let nothing = if prod { first.ones_like() } else { first.zeros_like() };
                if n == 1 { nothing } else { Burn::cat(vec![nothing, all.narrow(dim, 0, n - 1)], dim) }
            } else {
                all
            };
            if reverse { shifted.flip([dim]) } else { shifted }
        }};
    }
    Ok(match x.value.clone() {
        Value::Float(x) => Value::Float(run!(x)),
        Value::Int(x) => {
            let x: Ints = x;
            Value::Int(run!(x))
        }
        Value::Bool(_) => return Err("a sum of bools".into()),
    })
}
