//! Sixteen virtual lanes: reductions with one fixed tree, and the exponential.

/// Lanes of a chunk.
pub(super) const LANES: usize = 16;

/// One chunk.
pub(super) type Lanes = [f32; LANES];

/// log2(e).
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has trailing zeros, so that `n * LN_2_HIGH` is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding it to a small number leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Below `EXP_MIN` the exponential is flushed to zero; above `EXP_MAX` it is infinite.
const EXP_MIN: f32 = -87.3;
const EXP_MAX: f32 = 88.0;

/// Sum of the lanes.
#[inline(always)]
pub(super) fn sum(v: Lanes) -> f32 {
    fold(v, |a, b| a + b)
}

/// Greatest lane.
#[inline(always)]
pub(super) fn max(v: Lanes) -> f32 {
    fold(v, greater)
}

/// Folds upper halves onto lower halves: the one tree of all reductions.
#[inline(always)]
fn fold(v: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    #[inline(always)]
    fn halve<const N: usize, const H: usize>(v: [f32; N], f: &impl Fn(f32, f32) -> f32) -> [f32; H] {
        let mut out = [0f32; H];
        for i in 0..H {
            out[i] = f(v[i], v[i + H]);
        }
        out
    }
    let v: [f32; 8] = halve(v, &f);
    let v: [f32; 4] = halve(v, &f);
    let v: [f32; 2] = halve(v, &f);
    f(v[0], v[1])
}

/// The greater of two numbers (`a` when they compare equal or `b` is not a number).
#[inline(always)]
pub(super) fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Greatest magnitude.
#[inline(always)]
pub(super) fn peak(x: &[f32]) -> f32 {
    // The bits of non-negative floats are ordered as they are, and integers may be reduced in any order.
    let mut peak = 0u32;
    for x in x {
        peak = peak.max(x.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(peak)
}

/// The nearest integer (ties to even) of a number below 2²² in magnitude, as the low 22 bits in two's complement.
#[inline(always)]
pub(super) fn round(x: f32) -> u32 {
    (x + ROUND).to_bits()
}

/// e^x within two units in the last place; exactly 0 below -87.3 and infinite above 88.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let c = x.clamp(EXP_MIN, EXP_MAX);
    let t = c.mul_add(LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, c));
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, coefficient);
    }
    let power = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < EXP_MIN {
        0.0
    } else if x > EXP_MAX {
        f32::INFINITY
    } else {
        p * power
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Sum of squares over sixteen lanes, in order.
#[inline(always)]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            acc[i] = chunk[i].mul_add(chunk[i], acc[i]);
        }
    }
    for (a, v) in acc.iter_mut().zip(rest) {
        *a = v.mul_add(*v, *a);
    }
    sum(acc)
}

/// The factor `1 / sqrt(mean(x²) + eps)` of an RMS norm.
#[inline(always)]
pub(super) fn rms_factor(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

/// f32 to f16 bits, round to nearest even.
#[inline(always)]
pub(super) fn to_f16(x: f32) -> u16 {
    const SUBNORMAL: u32 = 0x3f00_0000;
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let abs = bits & 0x7fff_ffff;
    // Adding 0.5 aligns the bits of a number below 2⁻¹⁴ to f16's subnormal position, correctly rounded.
    let small = (f32::from_bits(abs) + f32::from_bits(SUBNORMAL)).to_bits().wrapping_sub(SUBNORMAL);
    let normal = abs.wrapping_add((abs >> 13) & 1).wrapping_sub((112 << 23) - 0xfff) >> 13;
    let large = if abs > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let magnitude = if abs >= 0x4780_0000 {
        large
    } else if abs < 0x3880_0000 {
        small
    } else {
        normal
    };
    (sign | magnitude) as u16
}
