//! Functions of one element.

use super::arg;
use crate::eval::data::{Data, Tensor};
use crate::kinds::Unary;
use crate::types::{DType, Type};

/// A function of each float.
pub(super) fn map(args: &[&Tensor], ty: &Type, f: impl Fn(f64) -> f64) -> Result<Tensor, String> {
    Tensor::reals(ty, arg(args, 0)?.as_reals()?.iter().map(|v| f(*v)).collect())
}

pub(super) fn unary(args: &[&Tensor], kind: Unary, ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let asked = |f: fn(f64) -> bool| Tensor::of(ty, Data::Bool(x.as_reals()?.iter().map(|v| f(*v)).collect()));
    let f: fn(f64) -> f64 = match kind {
        Unary::IsInf => return asked(f64::is_infinite),
        Unary::IsNan => return asked(f64::is_nan),
        Unary::Not => return Tensor::of(ty, Data::Bool(x.as_bools()?.iter().map(|v| !v).collect())),
        kind if x.dtype.is_int() => {
            let f = whole(kind, x.dtype)?;
            return Tensor::wholes(ty, x.as_wholes()?.iter().map(|v| f(*v)).collect());
        }
        Unary::BitNot => return Err(format!("`{kind}` of {} is not computed", x.dtype)),
        Unary::Abs => f64::abs,
        Unary::Acos => libm::acos,
        Unary::Acosh => libm::acosh,
        Unary::Asin => libm::asin,
        Unary::Asinh => libm::asinh,
        Unary::Atan => libm::atan,
        Unary::Atanh => libm::atanh,
        Unary::Ceil => f64::ceil,
        Unary::Cos => libm::cos,
        Unary::Cosh => libm::cosh,
        Unary::Erf => libm::erf,
        Unary::Exp => libm::exp,
        Unary::Floor => f64::floor,
        Unary::Log => libm::log,
        Unary::Neg => |v| -v,
        Unary::Reciprocal => |v| 1.0 / v,
        Unary::Round => f64::round_ties_even,
        Unary::Sigmoid => |v| 1.0 / (1.0 + libm::exp(-v)),
        // Zeros and NaN are their own sign.
        Unary::Sign => |v| {
            if v > 0.0 {
                1.0
            } else if v < 0.0 {
                -1.0
            } else {
                v
            }
        },
        Unary::Sin => libm::sin,
        Unary::Sinh => libm::sinh,
        Unary::Sqrt => f64::sqrt,
        Unary::Tan => libm::tan,
        Unary::Tanh => libm::tanh,
    };
    map(args, ty, f)
}

/// A function of each integer.
fn whole(kind: Unary, dtype: DType) -> Result<fn(i64) -> i64, String> {
    match kind {
        Unary::Abs if dtype.is_unsigned() => Ok(|v| v),
        Unary::Abs => Ok(i64::wrapping_abs),
        Unary::BitNot => Ok(|v| !v),
        Unary::Neg => Ok(i64::wrapping_neg),
        Unary::Sign if dtype.is_unsigned() => Ok(|v| i64::from(v != 0)),
        Unary::Sign => Ok(i64::signum),
        other => Err(format!("`{other}` of {dtype} is not computed")),
    }
}
