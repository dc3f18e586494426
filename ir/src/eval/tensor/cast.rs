//! Conversions between element types, and between numbers and bits.

use super::arg;
use crate::eval::data::{Data, Tensor};
use crate::float::Float;
use crate::types::{DType, Type};

pub(super) fn cast(args: &[&Tensor], wrap: bool, ty: &Type) -> Result<Tensor, String> {
    let (x, to) = (arg(args, 0)?, ty.dtype);
    match &x.data {
        Data::Bool(v) if to == DType::Bool => Tensor::of(ty, Data::Bool(v.clone())),
        Data::Bool(v) if to.is_int() => Tensor::wholes(ty, v.iter().map(|v| i64::from(*v)).collect()),
        Data::Bool(v) => Tensor::reals(ty, v.iter().map(|v| f64::from(u8::from(*v))).collect()),
        Data::I32(_) | Data::I64(_) => {
            let v = x.as_wholes()?;
            match to {
                DType::Bool => Tensor::of(ty, Data::Bool(v.iter().map(|v| *v != 0).collect())),
                to if to.is_int() => Tensor::wholes(ty, v.into_owned()),
                to => floats(ty, wrap, v.iter().map(|v| to_real(*v, x.dtype == DType::U64, to))),
            }
        }
        Data::F32(_) | Data::F64(_) => {
            let v = x.as_reals()?;
            match to {
                DType::Bool => Tensor::of(ty, Data::Bool(v.iter().map(|v| *v != 0.0).collect())),
                to if to.is_int() => Tensor::wholes(ty, v.iter().map(|v| to_whole(*v, to)).collect()),
                _ => floats(ty, wrap, v.iter().copied()),
            }
        }
    }
}

/// Floats as a cast rounds them to their type.
fn floats(ty: &Type, wrap: bool, values: impl Iterator<Item = f64>) -> Result<Tensor, String> {
    match Float::of(ty.dtype) {
        Some(float) if !wrap => Tensor::reals(ty, values.map(|v| float.cast(v)).collect()),
        _ => Tensor::reals(ty, values.collect()),
    }
}

/// The integer toward zero. What 64 bits do not hold becomes the nearest that they do, before the type's low bits are taken.
pub(super) fn to_whole(v: f64, to: DType) -> i64 {
    if to == DType::U64 && v >= 0.0 { v as u64 as i64 } else { v as i64 }
}

/// An integer as a float that is yet to be rounded to a type: an f64 is the nearest, but of the others no bit is lost that
/// could decide between two neighbors.
fn to_real(v: i64, unsigned: bool, to: DType) -> f64 {
    let (size, negative) = if unsigned { (v as u64, false) } else { (v.unsigned_abs(), v < 0) };
    let spare = (64 - size.leading_zeros()).saturating_sub(53);
    let real = if to == DType::F64 || spare == 0 {
        size as f64
    } else {
        let kept = size >> spare;
        let lost = u64::from(kept << spare != size);
        (kept | lost) as f64 * f64::from(1u32 << spare)
    };
    if negative { -real } else { real }
}

pub(super) fn bitcast(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let from = Float::of(x.dtype);
    let encoded = |v: f32| if x.dtype == DType::F32 { v.to_bits() } else { from.map_or(0, |f| f.encode(f64::from(v))) };
    let bits: Vec<u64> = match &x.data {
        Data::F64(v) => v.iter().map(|v| v.to_bits()).collect(),
        Data::F32(v) => v.iter().map(|v| u64::from(encoded(*v))).collect(),
        Data::I32(_) | Data::I64(_) => x.as_wholes()?.iter().map(|v| *v as u64).collect(),
        Data::Bool(v) => v.iter().map(|v| u64::from(*v)).collect(),
    };
    match (ty.dtype, Float::of(ty.dtype)) {
        (DType::F64, _) => Tensor::of(ty, Data::F64(bits.into_iter().map(f64::from_bits).collect())),
        (DType::F32, _) => Tensor::of(ty, Data::F32(bits.into_iter().map(|b| f32::from_bits(b as u32)).collect())),
        (_, Some(to)) => Tensor::of(ty, Data::F32(bits.into_iter().map(|b| to.decode(b as u32) as f32).collect())),
        (_, None) => Tensor::wholes(ty, bits.into_iter().map(|b| b as i64).collect()),
    }
}
