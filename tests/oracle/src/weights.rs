//! What a quantizer may choose: every code the nearest to its weight, the sum of squares no worse than that of the plain
//! quantizer which spans a group's extremes, and numbers that are what codes and scales say.

use burn::tensor::{FloatDType, Tensor as Burn, TensorData};
use dlx_ir::quant::{QuantizedRow, quantize_row, zero_point};
use dlx_ir::{DType, Op, QuantFormat, Tensor, compute};

use crate::cases::Rng;
use crate::compare::{Within, Worst, reals};
use crate::value::device;

/// Every format whose codes are whole numbers.
pub fn formats() -> Vec<QuantFormat> {
    let mut all = vec![QuantFormat::symmetric(8, None), QuantFormat::affine(8, None)];
    for bits in [4, 8] {
        for group in [32, 64, 128] {
            all.extend([QuantFormat::symmetric, QuantFormat::affine].map(|format| format(bits, Some(group))));
        }
    }
    all
}

fn column(values: Vec<f64>) -> Burn<2> {
    let n = values.len();
    Burn::from_data(TensorData::new(values, [n, 1]), (&device(), FloatDType::F64.into()))
}

fn row(values: &[f32]) -> Burn<2> {
    column(values.iter().map(|v| f64::from(*v)).collect()).transpose()
}

fn total(x: Burn<2>) -> Result<f64, String> {
    x.sum().try_into_scalar::<f64>().map_err(|e| e.to_string())
}

/// What the codes of a format may be, before scale and minimum.
fn codes(format: QuantFormat) -> Burn<2> {
    let zero = f64::from(zero_point(format));
    // Signed codes of 8 bits leave out −128, so that a sign is a sign.
    let least = if format.bits == 8 && !format.has_min() { 1 } else { 0 };
    column((least..1 << u32::from(format.bits)).map(|c| f64::from(c) - zero).collect())
}

/// The plain quantizer of a group: the scale, in f16, makes the extremes the first and the last code.
fn plain(x: &Burn<2>, format: QuantFormat) -> Burn<2> {
    let half = |x: Burn<2>| x.cast(FloatDType::F16).cast(FloatDType::F64);
    let (low, most) = match (format.has_min(), format.bits) {
        (true, bits) => (Some(half(x.clone().min_dim(1))), f64::from((1 << u32::from(bits)) - 1)),
        (false, bits) => (None, f64::from((1 << (u32::from(bits) - 1)) - 1)),
    };
    let sizes = x.dims();
    let (least, base) = match low {
        Some(low) => (0.0, low.expand(sizes)),
        None => (-most, x.zeros_like()),
    };
    let above = x.clone() - base.clone();
    let scale = half(above.clone().abs().max_dim(1).div_scalar(most)).clamp_min(1e-30).expand(sizes);
    (above / scale.clone()).round().clamp(least, most) * scale + base
}

/// How a format's quantizer compares with the plain one.
#[derive(Clone, Copy, Default, Debug)]
pub struct Found {
    /// Distance of the numbers from what codes and scales say.
    pub worst: Worst,
    /// Sum of squares, as a part of the plain quantizer's.
    pub squares: f64,
    /// Groups whose own sum of squares is larger than the plain quantizer's, of how many.
    pub worse: (usize, usize),
}

/// Quantizes seeded weights: of several widths, with and without outliers, with equal ones and with zeros.
///
/// # Errors
/// What does not hold.
pub fn check(format: QuantFormat, rng: &mut Rng) -> Result<Found, String> {
    let (mut found, mut squares, mut plain_squares) = (Found::default(), 0.0, 0.0);
    for width in [32, 128, 160, 300] {
        for kind in 0..6 {
            let mut w = rng.floats(&[4, width], -1.0, 1.0).floats()?.to_vec();
            match kind {
                0 => {}
                1 => w.iter_mut().for_each(|v| *v = *v * *v * *v * 0.02),
                2 => w.iter_mut().step_by(37).for_each(|v| *v *= 8.0),
                3 => w.iter_mut().for_each(|v| *v = v.abs() + 0.5),
                4 => w.fill(0.0),
                _ => w.fill(-0.375),
            }
            let to = DType::Quant(format);
            let got = compute(&Op::Quantize { to }, &[&Tensor::f32(&[4, width], w.clone())])?;
            let got = got[0].floats()?;
            for (w, got) in w.chunks(width).zip(got.chunks(width)) {
                let mut q = QuantizedRow::zeroed(format, width);
                if !quantize_row(format, w, &mut q) {
                    return Err("a scale does not fit f16".into());
                }
                let len = format.group_len(width);
                for (g, (w, got)) in w.chunks(len).zip(got.chunks(len)).enumerate() {
                    let (scale, min) = (q.scales[g].to_f64(), q.mins[g].to_f64());
                    let (weights, numbers) = (row(w), row(got));
                    let own = q.codes[g * len..].iter().take(w.len());
                    let own = own.map(|c| f64::from(*c) - f64::from(zero_point(format))).collect();
                    let said = column(own).transpose().mul_scalar(scale).add_scalar(min);
                    let (a, b) = (vec(numbers.clone())?, vec(said)?);
                    found.worst = found.worst.and(reals(&a, &b, Within::Element(1e-15), DType::F32)?);

                    // No other code is nearer; a tie may have been broken by f32.
                    let all = codes(format).mul_scalar(scale).add_scalar(min);
                    let (n, m) = (w.len(), all.dims()[0]);
                    let nearest = (all.expand([m, n]) - weights.clone().expand([m, n])).abs().min_dim(0);
                    let over = (numbers.clone() - weights.clone()).abs() - nearest;
                    let over = over.max().try_into_scalar::<f64>().map_err(|e| e.to_string())?;
                    if over > 2e-6 * scale.abs().max(1e-6) * 128.0 {
                        return Err(format!(
                            "width {width}, kind {kind}: a nearer code by {over:e}, of a step {scale:e}"
                        ));
                    }

                    let ours = total((numbers - weights.clone()).square())?;
                    let other = total((plain(&weights, format) - weights).square())?;
                    (squares, plain_squares) = (squares + ours, plain_squares + other);
                    let worse = ours > other * (1.0 + 1e-9) + 1e-12;
                    found.worse = (found.worse.0 + usize::from(worse), found.worse.1 + 1);
                }
            }
        }
    }
    found.squares = squares / plain_squares;
    if squares > plain_squares {
        return Err(format!("squares of {squares:e}, the plain quantizer's {plain_squares:e}"));
    }
    Ok(found)
}

fn vec(x: Burn<2>) -> Result<Vec<f64>, String> {
    x.try_into_vec_as::<f64>().map_err(|e| e.to_string())
}
