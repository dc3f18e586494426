//! Floating-point formats up to 32 bits, by a table: what numbers they hold, how others are rounded to them, and the bits.
//!
//! Invariant: rounding is done once, from an f64, to the nearest number and of two equally near ones to the even one.

use crate::types::DType;

/// A floating-point format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Float {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    special: Special,
    /// Whether a cast takes the largest number for what is larger, unless it is told not to.
    saturates: bool,
}

/// What a format has besides numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Special {
    /// The largest exponent is that of infinities and NaN.
    Ieee,
    /// NaN where all bits but the sign are ones.
    Ones,
    /// NaN where minus zero would be.
    MinusZero,
    /// Nothing.
    None,
    /// Powers of two without sign or zero, and NaN where all bits are ones.
    Scale,
}

impl Float {
    /// The format of an element type; f64 and what is no float has none.
    pub(crate) fn of(dtype: DType) -> Option<Float> {
        let (exponent, mantissa, bias, special, saturates) = match dtype {
            DType::F32 => (8, 23, 127, Special::Ieee, false),
            DType::F16 => (5, 10, 15, Special::Ieee, false),
            DType::BF16 => (8, 7, 127, Special::Ieee, false),
            DType::F8E4M3 => (4, 3, 7, Special::Ones, true),
            DType::F8E4M3Z => (4, 3, 8, Special::MinusZero, true),
            DType::F8E5M2 => (5, 2, 15, Special::Ieee, true),
            DType::F8E5M2Z => (5, 2, 16, Special::MinusZero, true),
            DType::F8E8M0 => (8, 0, 127, Special::Scale, true),
            DType::F6E2M3 => (2, 3, 1, Special::None, true),
            DType::F6E3M2 => (3, 2, 3, Special::None, true),
            DType::F4E2M1 => (2, 1, 1, Special::None, true),
            _ => return None,
        };
        Some(Float { exponent, mantissa, bias, special, saturates })
    }

    /// Exponent of the smallest normal number.
    fn least(self) -> i32 {
        if self.special == Special::Scale { -self.bias } else { 1 - self.bias }
    }

    /// Largest number.
    fn max(self) -> f64 {
        let top =
            (1 << self.exponent) - 1 - self.bias - i32::from(matches!(self.special, Special::Ieee | Special::Scale));
        let step = pow2(top - self.mantissa as i32);
        let all = pow2(top + 1) - step;
        if self.special == Special::Ones { all - step } else { all }
    }

    /// The nearest number of the format. What is larger than all becomes an infinity, or else NaN, or else the largest.
    pub(crate) fn round(self, v: f64) -> f64 {
        self.nearest(v, false)
    }

    /// The number that a cast takes: as [`round`](Self::round), but that small formats take the largest number for what is
    /// larger, and scales the next larger one for what they do not have.
    pub(crate) fn cast(self, v: f64) -> f64 {
        self.nearest(v, self.saturates)
    }

    fn nearest(self, v: f64, saturate: bool) -> f64 {
        if v.is_nan() {
            // Without NaN, the zero of its sign bit that a small format keeps.
            return if self.special == Special::None { -0.0 } else { v };
        }
        if self.special == Special::Scale {
            return self.scale(v, saturate);
        }
        let size = v.abs();
        let step = pow2(exponent(size).max(self.least()) - self.mantissa as i32);
        let near = if size.is_finite() { (size / step).round_ties_even() * step } else { size };
        let near = match near > self.max() {
            true if saturate || self.special == Special::None => self.max(),
            true if self.special == Special::Ieee => f64::INFINITY,
            true => f64::NAN,
            false => near,
        };
        if near == 0.0 && self.special == Special::MinusZero { 0.0 } else { near.copysign(v) }
    }

    /// Scales are rounded up, or without saturation to the nearest; a negative number has none.
    fn scale(self, v: f64, saturate: bool) -> f64 {
        let (least, most) = (pow2(self.least()), self.max());
        if v < 0.0 || (!saturate && (v == 0.0 || v.is_infinite())) {
            return f64::NAN;
        }
        if v >= most {
            return if saturate || v < most * 1.5 { most } else { f64::NAN };
        }
        let below = pow2(exponent(v).max(self.least()));
        let up = if saturate { v > below } else { v >= below * 1.5 };
        let near = if up { below * 2.0 } else { below };
        if !saturate && v < least { f64::NAN } else { near.max(least) }
    }

    /// The bits of a number that the format holds.
    pub(crate) fn encode(self, v: f64) -> u32 {
        let size = v.abs();
        let sign = u32::from(v.is_sign_negative()) << (self.exponent + self.mantissa);
        let ones = (1u32 << (self.exponent + self.mantissa)) - 1;
        match self.special {
            Special::Scale if v.is_nan() => ones,
            Special::Scale => (exponent(v) + self.bias) as u32,
            Special::MinusZero if v.is_nan() => ones + 1,
            Special::Ones if v.is_nan() => ones | sign,
            Special::Ieee if v.is_nan() => (ones - (ones >> (self.exponent + 1))) | sign,
            Special::Ieee if v.is_infinite() => (ones - ((1 << self.mantissa) - 1)) | sign,
            _ => {
                // Subnormals have the step of the smallest normal numbers, whose leading bit counts for the exponent.
                let e = exponent(size).max(self.least());
                let steps = (size / pow2(e - self.mantissa as i32)) as u32;
                ((((e - self.least()) as u32) << self.mantissa) + steps) | sign
            }
        }
    }

    /// The number that bits stand for; bits beyond the format's are ignored.
    pub(crate) fn decode(self, bits: u32) -> f64 {
        let width = self.exponent + self.mantissa;
        let ones = (1u32 << width) - 1;
        let code = bits & ones;
        if self.special == Special::Scale {
            return if code == ones { f64::NAN } else { pow2(code as i32 - self.bias) };
        }
        let negative = bits >> width & 1 == 1;
        let (e, m) = (code >> self.mantissa, code & ((1 << self.mantissa) - 1));
        let top = e == (1 << self.exponent) - 1;
        let size = match self.special {
            Special::Ieee if top => {
                if m == 0 {
                    f64::INFINITY
                } else {
                    f64::NAN
                }
            }
            Special::Ones if code == ones => f64::NAN,
            Special::MinusZero if negative && code == 0 => return f64::NAN,
            _ => {
                let leading = if e == 0 { 0 } else { 1 << self.mantissa };
                f64::from(leading + m) * pow2(e.max(1) as i32 - self.bias - self.mantissa as i32)
            }
        };
        if negative { -size } else { size }
    }
}

/// Exponent of the leading bit of a positive number; of what is below all normal numbers, less than any other.
fn exponent(v: f64) -> i32 {
    (v.abs().to_bits() >> 52) as i32 - 1023
}

/// A power of two between 2⁻¹⁰²² and 2¹⁰²³.
fn pow2(e: i32) -> f64 {
    f64::from_bits(((e + 1023).clamp(1, 2046) as u64) << 52)
}
