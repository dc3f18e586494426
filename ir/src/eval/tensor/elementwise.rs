//! Functions of two or three elements, whose sizes of 1 repeat.

use super::{arg, order, sizes};
use crate::eval::data::{Data, Tensor};
use crate::eval::view::View;
use crate::kinds::{Binary, Compare};
use crate::types::{DType, Type};

/// A function of each two elements, and of their operands' places in the result.
fn zip<A: Copy, B: Copy, R>(
    (a, b): (&[A], &[B]),
    args: &[&Tensor],
    ty: &Type,
    f: impl Fn(A, B) -> R,
) -> Result<Vec<R>, String> {
    let shape = sizes(ty)?;
    if args[0].shape == args[1].shape {
        return Ok(a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect());
    }
    let [va, vb] = [0, 1].map(|i| View::repeated(&args[i].shape, &shape));
    Ok(va.offsets().zip(vb.offsets()).map(|(i, j)| f(a[i], b[j])).collect())
}

fn reals(args: &[&Tensor], ty: &Type, f: impl Fn(f64, f64) -> f64) -> Result<Tensor, String> {
    let (a, b) = (arg(args, 0)?.as_reals()?, arg(args, 1)?.as_reals()?);
    Tensor::reals(ty, zip((&a, &b), args, ty, f)?)
}

fn wholes(args: &[&Tensor], ty: &Type, f: impl Fn(i64, i64) -> i64) -> Result<Tensor, String> {
    let (a, b) = (arg(args, 0)?.as_wholes()?, arg(args, 1)?.as_wholes()?);
    Tensor::wholes(ty, zip((&a, &b), args, ty, f)?)
}

/// A function of integers that has no value for some.
fn partial(args: &[&Tensor], ty: &Type, f: impl Fn(i64, i64) -> Option<i64>) -> Result<Tensor, String> {
    let (a, b) = (arg(args, 0)?.as_wholes()?, arg(args, 1)?.as_wholes()?);
    let all: Option<Vec<i64>> = zip((&a, &b), args, ty, f)?.into_iter().collect();
    Tensor::wholes(ty, all.ok_or("an integer is divided by zero")?)
}

fn bools(args: &[&Tensor], ty: &Type, f: impl Fn(bool, bool) -> bool) -> Result<Tensor, String> {
    let (a, b) = (arg(args, 0)?.as_bools()?, arg(args, 1)?.as_bools()?);
    Tensor::of(ty, Data::Bool(zip((a, b), args, ty, f)?))
}

pub(super) fn add(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    if ty.dtype.is_int() { wholes(args, ty, i64::wrapping_add) } else { reals(args, ty, |a, b| a + b) }
}

pub(super) fn mul(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    if ty.dtype.is_int() { wholes(args, ty, i64::wrapping_mul) } else { reals(args, ty, |a, b| a * b) }
}

pub(super) fn binary(args: &[&Tensor], kind: Binary, ty: &Type) -> Result<Tensor, String> {
    match kind {
        Binary::And => bools(args, ty, |a, b| a & b),
        Binary::Or => bools(args, ty, |a, b| a | b),
        Binary::Xor => bools(args, ty, |a, b| a ^ b),
        Binary::Pow => pow(args, ty),
        kind if ty.dtype.is_int() => whole_binary(args, kind, ty),
        Binary::Div => reals(args, ty, |a, b| a / b),
        Binary::Max => reals(args, ty, larger),
        Binary::Min => reals(args, ty, |a, b| -larger(-a, -b)),
        Binary::Mod => reals(args, ty, |a, b| match libm::fmod(a, b) {
            0.0 => 0f64.copysign(b),
            rest if (rest < 0.0) == (b < 0.0) => rest,
            rest => rest + b,
        }),
        Binary::Rem => reals(args, ty, libm::fmod),
        Binary::Sub => reals(args, ty, |a, b| a - b),
        _ => Err(format!("`{kind}` of {} is not computed", ty.dtype)),
    }
}

fn whole_binary(args: &[&Tensor], kind: Binary, ty: &Type) -> Result<Tensor, String> {
    let unsigned = ty.dtype == DType::U64;
    let bits = ty.dtype.bits().unwrap_or(0) as i64;
    match kind {
        Binary::BitAnd => wholes(args, ty, |a, b| a & b),
        Binary::BitOr => wholes(args, ty, |a, b| a | b),
        Binary::BitXor => wholes(args, ty, |a, b| a ^ b),
        Binary::Div if unsigned => partial(args, ty, |a, b| (a as u64).checked_div(b as u64).map(|v| v as i64)),
        Binary::Div => partial(args, ty, |a, b| (b != 0).then(|| a.wrapping_div(b))),
        Binary::Max => wholes(args, ty, |a, b| if order(ty.dtype, b) > order(ty.dtype, a) { b } else { a }),
        Binary::Min => wholes(args, ty, |a, b| if order(ty.dtype, b) < order(ty.dtype, a) { b } else { a }),
        Binary::Mod | Binary::Rem if unsigned => {
            partial(args, ty, |a, b| (a as u64).checked_rem(b as u64).map(|v| v as i64))
        }
        Binary::Rem => partial(args, ty, |a, b| (b != 0).then(|| a.wrapping_rem(b))),
        Binary::Mod => partial(args, ty, |a, b| {
            let rest = (b != 0).then(|| a.wrapping_rem(b))?;
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }),
        Binary::Shl => wholes(args, ty, |a, b| if (0..bits).contains(&b) { a << b } else { 0 }),
        Binary::Shr if unsigned => {
            wholes(args, ty, |a, b| if (0..bits).contains(&b) { (a as u64 >> b) as i64 } else { 0 })
        }
        Binary::Shr => wholes(args, ty, |a, b| a >> if (0..bits).contains(&b) { b } else { 63 }),
        Binary::Sub => wholes(args, ty, i64::wrapping_sub),
        _ => Err(format!("`{kind}` of {} is not computed", ty.dtype)),
    }
}

/// The larger of two; NaN wins.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a >= b { a } else { b }
}

fn pow(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    let exponent = arg(args, 1)?;
    match (ty.dtype.is_int(), exponent.dtype.is_int()) {
        (true, true) => partial(args, ty, |a, n| whole_power(a, n, exponent.dtype == DType::U64)),
        (true, false) => {
            let (a, b) = (arg(args, 0)?, exponent.as_reals()?);
            let real = |v: i64| if a.dtype == DType::U64 { v as u64 as f64 } else { v as f64 };
            let power = |a: i64, b: f64| super::cast::to_whole(libm::pow(real(a), b), ty.dtype);
            Tensor::wholes(ty, zip((&a.as_wholes()?, &b), args, ty, power)?)
        }
        (false, true) => {
            let (a, b) = (arg(args, 0)?.as_reals()?, exponent.as_wholes()?);
            let real = |v: i64| if exponent.dtype == DType::U64 { v as u64 as f64 } else { v as f64 };
            Tensor::reals(ty, zip((&a, &b), args, ty, |a, b| libm::pow(a, real(b)))?)
        }
        (false, false) => reals(args, ty, libm::pow),
    }
}

/// A power of integers, which wraps; none for zero to a negative power.
fn whole_power(base: i64, n: i64, unsigned: bool) -> Option<i64> {
    if n < 0 && !unsigned {
        return match base {
            0 => None,
            1 => Some(1),
            -1 => Some(if n % 2 == 0 { 1 } else { -1 }),
            _ => Some(0),
        };
    }
    let (mut power, mut square, mut left) = (1i64, base, n as u64);
    while left > 0 {
        if left & 1 == 1 {
            power = power.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    Some(power)
}

pub(super) fn compare(args: &[&Tensor], kind: Compare, ty: &Type) -> Result<Tensor, String> {
    fn holds<T: PartialOrd>(kind: Compare) -> fn(T, T) -> bool {
        match kind {
            Compare::Eq => |a, b| a == b,
            Compare::Ge => |a, b| a >= b,
            Compare::Gt => |a, b| a > b,
            Compare::Le => |a, b| a <= b,
            Compare::Lt => |a, b| a < b,
        }
    }
    let (a, b) = (arg(args, 0)?, arg(args, 1)?);
    let out = match a.dtype {
        DType::Bool => zip((a.as_bools()?, b.as_bools()?), args, ty, holds(kind)),
        dtype if dtype.is_int() => {
            let f = holds(kind);
            zip((&a.as_wholes()?, &b.as_wholes()?), args, ty, |a, b| f(order(dtype, a), order(dtype, b)))
        }
        _ => zip((&a.as_reals()?, &b.as_reals()?), args, ty, holds(kind)),
    }?;
    Tensor::of(ty, Data::Bool(out))
}

pub(super) fn select(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    fn pick<T: Copy>(c: &[bool], a: &[T], b: &[T], [vc, va, vb]: [View; 3]) -> Vec<T> {
        let places = vc.offsets().zip(va.offsets().zip(vb.offsets()));
        places.map(|(i, (j, k))| if c[i] { a[j] } else { b[k] }).collect()
    }
    let (c, shape) = (arg(args, 0)?.as_bools()?, sizes(ty)?);
    let views = [0, 1, 2].map(|i| View::repeated(&args[i].shape, &shape));
    let data = match (&arg(args, 1)?.data, &arg(args, 2)?.data) {
        (Data::F64(a), Data::F64(b)) => Data::F64(pick(c, a, b, views)),
        (Data::F32(a), Data::F32(b)) => Data::F32(pick(c, a, b, views)),
        (Data::I32(a), Data::I32(b)) => Data::I32(pick(c, a, b, views)),
        (Data::I64(a), Data::I64(b)) => Data::I64(pick(c, a, b, views)),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool(pick(c, a, b, views)),
        _ => return Err("the elements of both sides are of different types".into()),
    };
    Tensor::of(ty, data)
}

pub(in crate::eval) fn silu(v: f64) -> f64 {
    v / (1.0 + libm::exp(-v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute;
    use crate::op::Op;

    fn shifted(dtype: DType, kind: Binary, values: &[i64], by: &[i64]) -> Vec<i64> {
        let [a, b] = [values, by].map(|x| {
            let data = if dtype == DType::I32 {
                Data::I32(x.iter().map(|v| *v as i32).collect())
            } else {
                Data::I64(x.to_vec())
            };
            Tensor { dtype, shape: vec![x.len()], data }
        });
        compute(&Op::Binary { kind }, &[&a, &b]).unwrap()[0].as_wholes().unwrap().into_owned()
    }

    #[test]
    fn shifts_beyond_the_bits_leave_the_sign() {
        assert_eq!(shifted(DType::I8, Binary::Shl, &[64, 1, -64, 4, -1], &[1, 7, 1, 8, -1]), [-128, -128, -128, 0, 0]);
        assert_eq!(shifted(DType::I8, Binary::Shr, &[-8, 4, -1, -8, 4], &[8, 9, 127, 1, -1]), [-1, 0, -1, -4, 0]);
        assert_eq!(shifted(DType::I32, Binary::Shl, &[1, 1], &[31, 32]), [i64::from(i32::MIN), 0]);
        assert_eq!(shifted(DType::U64, Binary::Shr, &[-1, -1], &[63, 64]), [1, 0]);
        assert_eq!(shifted(DType::I64, Binary::Shr, &[-1, 5], &[63, 64]), [-1, 0]);
    }
}
