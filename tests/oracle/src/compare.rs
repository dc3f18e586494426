//! How far a result is from the oracle's, and how far it may be.
//!
//! Invariant: the oracle's floats stay f64. Rounding them in burn would compare two roundings, and burn's from f64 to 16 bits
//! is not to the nearest.

use dlx_ir::{DType, Data, Tensor};

use crate::value::{RANK, Value, whole};

/// How far a result may be from the oracle's, besides the one rounding to its element type.
#[derive(Clone, Copy, Debug)]
pub enum Within {
    /// Not at all, and nothing is rounded: elements that are moved or counted, integers, comparisons.
    Exact,
    /// Part of each element.
    Element(f64),
    /// Part of the largest element: sums, in which what cancels leaves the error of the terms behind.
    Largest(f64),
}

/// How an element type rounds to the nearest: half a step as a part of a number, half the step of its subnormal numbers, and
/// from where on a number becomes an infinity.
struct Rounding {
    part: f64,
    least: f64,
    end: f64,
}

impl Rounding {
    fn of(dtype: DType) -> Result<Self, String> {
        // Digits of the mantissa with the one in front, exponents of the least subnormal and of the end.
        let (digits, least, end) = match dtype {
            DType::F64 => return Ok(Rounding { part: 0.0, least: 0.0, end: f64::INFINITY }),
            DType::F32 => (24, -149, 128),
            DType::F16 => (11, -24, 16),
            DType::BF16 => (8, -133, 128),
            other => return Err(format!("{other} is no float that is compared")),
        };
        let power = |n: i32| 2.0f64.powi(n);
        let end = power(end) * (1.0 - power(-digits - 1));
        Ok(Rounding { part: power(-digits), least: power(least - 1), end })
    }
}

/// The worst of many comparisons.
#[derive(Clone, Copy, Default, Debug)]
pub struct Worst {
    /// Elements compared.
    pub elements: usize,
    /// Largest difference beyond one rounding.
    pub absolute: f64,
    /// The same as a part of what the tolerance is a part of.
    pub relative: f64,
}

impl Worst {
    /// The worse of two.
    pub fn and(self, other: Worst) -> Worst {
        Worst {
            elements: self.elements + other.elements,
            absolute: self.absolute.max(other.absolute),
            relative: self.relative.max(other.relative),
        }
    }
}

/// Compares what was computed with the oracle's value.
///
/// # Errors
/// Another shape or kind of elements, or an element that is further away than allowed.
pub fn compare(got: &Tensor, oracle: &Value, within: Within) -> Result<Worst, String> {
    let dims = oracle.dims();
    let (front, sizes) = dims.split_at(RANK - got.shape.len());
    if sizes != got.shape || front.iter().any(|size| *size != 1) {
        return Err(format!("shape {:?} where the oracle has {:?}", got.shape, oracle.dims()));
    }
    match (&got.data, oracle) {
        (Data::F64(x), Value::Float(_)) => reals(x, &oracle.reals()?, within, DType::F64),
        (Data::F32(x), Value::Float(_)) => {
            let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            reals(&x, &oracle.reals()?, within, got.dtype)
        }
        (Data::I32(x), Value::Int(y)) => wholes(&x.iter().map(|v| i64::from(*v)).collect::<Vec<_>>(), &whole(y)?),
        (Data::I64(x), Value::Int(y)) => wholes(x, &whole(y)?),
        (Data::Bool(x), Value::Bool(_)) => {
            let x: Vec<f64> = x.iter().map(|v| f64::from(u8::from(*v))).collect();
            reals(&x, &oracle.reals()?, Within::Exact, DType::F64)
        }
        _ => Err(format!("elements of {} where the oracle has others", got.dtype)),
    }
}

fn wholes(got: &[i64], oracle: &[i64]) -> Result<Worst, String> {
    match got.iter().zip(oracle).position(|(a, b)| a != b) {
        Some(i) => Err(format!("element {i} is {}, the oracle's {}", got[i], oracle[i])),
        None => Ok(Worst { elements: got.len(), ..Worst::default() }),
    }
}

/// Compares floats with what they would be without the one rounding to their type. What is told is beyond that rounding.
///
/// # Errors
/// The first element outside the tolerance.
pub fn reals(got: &[f64], oracle: &[f64], within: Within, dtype: DType) -> Result<Worst, String> {
    let rounding = Rounding::of(dtype)?;
    let largest = oracle.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let mut worst = Worst { elements: got.len(), ..Worst::default() };
    for (i, (&a, &b)) in got.iter().zip(oracle).enumerate() {
        let beyond_end = a.is_infinite() && b.abs() >= rounding.end && a.signum() == b.signum();
        if a == b || beyond_end || (a.is_nan() && b.is_nan()) {
            continue;
        }
        let (size, part) = match within {
            Within::Exact => return Err(format!("element {i} is {a:e}, the oracle's {b:e}")),
            Within::Element(part) => (b.abs(), part),
            Within::Largest(part) => (largest, part),
        };
        let beyond = (a - b).abs() - b.abs() * rounding.part - rounding.least;
        if beyond.is_nan() || beyond > size * part {
            return Err(format!("element {i} is {a:e}, the oracle's {b:e}: more than {within:?} of {size:e} away"));
        }
        let absolute = beyond.max(0.0);
        let relative = if absolute > 0.0 { absolute / size } else { 0.0 };
        worst = worst.and(Worst { elements: 0, absolute, relative });
    }
    Ok(worst)
}
