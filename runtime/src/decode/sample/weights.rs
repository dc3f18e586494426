//! The exponentials of a row, and what is read of a distribution made of them.
//!
//! Invariant: an exponential is the very number that `libm::expf` gives, and sums are f64 over sixteen lanes, one for the
//! tokens of each remainder, so a probability does not depend on the instruction set, nor on whether tokens without
//! any weight are listed, nor on whether it was computed here or by [`softmax`](super::softmax). Nothing here knows
//! policies.

/// What weights have to be divided by, and where they come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mass {
    /// Sum of the weights, which are those of the finite values.
    pub(super) sum: f64,
    /// A value is NaN or +∞.
    broken: bool,
}

impl Mass {
    /// Sum of the weights of all values, finite or not.
    pub(super) fn of_all(&self) -> f64 {
        if self.broken { f64::NAN } else { self.sum }
    }
}

/// Values that one instruction may treat at once, or a few.
const LANES: usize = 16;

/// Makes `weights` the exponentials of `values - max`, 0 for what is not finite. The values are those of all tokens.
#[inline(always)]
pub(super) fn weigh(values: &[f32], weights: &mut Vec<f32>) -> Mass {
    let broken = exponentiate(values, weights);
    Mass { sum: sum(weights), broken }
}

/// The same for the values of some tokens.
#[inline(always)]
pub(super) fn weigh_listed(ids: &[i32], values: &[f32], weights: &mut Vec<f32>) -> Mass {
    let broken = exponentiate(values, weights);
    Mass { sum: sum_listed(ids.iter().copied().zip(weights.iter().copied())), broken }
}

/// Returns whether a value is NaN or +∞.
#[inline(always)]
fn exponentiate(values: &[f32], weights: &mut Vec<f32>) -> bool {
    let (max, broken) = largest(values);
    weights.resize(values.len(), 0.0);
    for (weight, &value) in weights.iter_mut().zip(values) {
        *weight = exp(value - max);
    }
    broken
}

/// Sum of the weights of all tokens.
#[inline(always)]
pub(super) fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f64::from(chunk[i]);
        }
    }
    for (lane, &weight) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(weight);
    }
    lanes.iter().sum()
}

/// Sum of the weights of some tokens.
pub(super) fn sum_listed(entries: impl Iterator<Item = (i32, f32)>) -> f64 {
    let mut lanes = [0.0f64; LANES];
    entries.for_each(|(id, weight)| lanes[id as usize % LANES] += f64::from(weight));
    lanes.iter().sum()
}

/// The largest finite value, and whether one is NaN or +∞.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut broken = [false; LANES];
    let mut add = |values: &[f32]| {
        for ((max, broken), &value) in lanes.iter_mut().zip(&mut broken).zip(values) {
            let usable = value < f32::INFINITY;
            let value = if usable { value } else { f32::NEG_INFINITY };
            *max = if value > *max { value } else { *max };
            *broken |= !usable;
        }
    };
    let (chunks, rest) = values.as_chunks::<LANES>();
    chunks.iter().for_each(|chunk| add(chunk));
    add(rest);
    (lanes.into_iter().fold(f32::NEG_INFINITY, f32::max), broken.contains(&true))
}

// From FreeBSD's e_expf.c, by way of libm: Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved. Developed at
// SunPro, a Sun Microsystems, Inc. business. Permission to use, copy, modify, and distribute this software is freely
// granted, provided that this notice is preserved.
const LN2_HI: f32 = f32::from_bits(0x3f31_7200);
const LN2_LO: f32 = f32::from_bits(0x35bf_be8e);
const INV_LN2: f32 = f32::from_bits(0x3fb8_aa3b);
const P1: f32 = f32::from_bits(0x3e2a_aa8f);
const P2: f32 = f32::from_bits(0xbb35_5215);
/// Half of ln 2, one and a half of it, and what is too far below zero, as libm compares them.
const HALF_LN2: f32 = f32::from_bits(0x3eb1_7218);
const THREE_HALVES_LN2: f32 = f32::from_bits(0x3f85_1592);
const TOO_SMALL: f32 = f32::from_bits(0x42cf_f1b5);
const TINY: f32 = f32::from_bits(0x3900_0000);
/// Added to a number whose magnitude is below 2²², it leaves an integer, in the lowest bits.
const INTEGER: f32 = 12_582_912.0;

/// `libm::expf` of a number that is not above 0, without its branches, so that many are computed at once; 0 for others.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let counts = x <= 0.0 && x > -TOO_SMALL;
    let x = if counts { x } else { 0.0 };
    // Towards zero, which for these numbers is upwards.
    let quotient = INV_LN2 * x - 0.5;
    let near = (quotient + INTEGER) - INTEGER;
    let far = if near < quotient { near + 1.0 } else { near };
    let k = if x < -THREE_HALVES_LN2 { far } else { -1.0 };
    let k = if x < -HALF_LN2 { k } else { 0.0 };
    let hi = x - k * LN2_HI;
    let lo = k * LN2_LO;
    let r = hi - lo;
    let rr = r * r;
    let c = r - rr * (P1 + rr * P2);
    let y = 1.0 + (r * c / (2.0 - c) - lo + hi);
    let y = if x < -TINY { y } else { 1.0 + x };
    // Two factors, of which only the last may round: 2^k itself need not be a normal number.
    let k = (k + INTEGER).to_bits() as i32 - INTEGER.to_bits() as i32;
    let half = k >> 1;
    let y = y * power(half) * power(k - half);
    if counts { y } else { 0.0 }
}

/// 2^k for -126 <= k <= 127.
#[inline(always)]
fn power(k: i32) -> f32 {
    f32::from_bits(((k + 127) as u32) << 23)
}

/// A distribution made of weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distribution<'a> {
    pub(super) weights: &'a [f32],
    pub(super) sum: f64,
    /// What the probabilities are divided by once more.
    pub(super) again: f32,
}

impl Distribution<'_> {
    /// The probability of a weight.
    pub(super) fn prob(&self, weight: f32) -> f32 {
        prob(weight, self.sum) / self.again
    }

    /// The largest probability minus the second.
    #[inline(always)]
    pub(super) fn margin(&self) -> f32 {
        let mut lanes = [[0.0f32; LANES]; 2];
        let mut add = |weights: &[f32]| {
            let [firsts, seconds] = &mut lanes;
            for ((first, second), &weight) in firsts.iter_mut().zip(seconds).zip(weights) {
                let less = if weight > *first { *first } else { weight };
                *first = if weight > *first { weight } else { *first };
                *second = if less > *second { less } else { *second };
            }
        };
        let (chunks, rest) = self.weights.as_chunks::<LANES>();
        chunks.iter().for_each(|chunk| add(chunk));
        add(rest);
        let (mut first, mut second) = (0.0f32, 0.0f32);
        for weight in lanes.into_iter().flatten() {
            if weight > first {
                (first, second) = (weight, first);
            } else if weight > second {
                second = weight;
            }
        }
        // Without any mass they are no numbers.
        self.prob(first).max(0.0) - self.prob(second).max(0.0)
    }

    /// In nats.
    pub(super) fn entropy(&self) -> f32 {
        let probs = self.weights.iter().map(|&weight| f64::from(self.prob(weight)));
        let sum: f64 = probs.filter(|&p| p > 0.0).map(|p| p * libm::log(p)).sum();
        -sum as f32
    }
}

#[inline(always)]
pub(super) fn prob(weight: f32, sum: f64) -> f32 {
    (f64::from(weight) / sum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_libm() {
        let near = |bits: u32| bits.saturating_sub(300)..=bits + 300;
        let edges = [TINY, HALF_LN2, THREE_HALVES_LN2, TOO_SMALL, 87.336_55, 1.0, f32::MIN_POSITIVE, f32::MAX, 0.0];
        // With all numbers the test holds as well, and takes two minutes.
        let all = (0..=f32::INFINITY.to_bits()).step_by(101);
        for bits in all.chain(edges.into_iter().flat_map(|edge| near(edge.to_bits()))) {
            let x = -f32::from_bits(bits);
            if !x.is_nan() {
                assert_eq!(exp(x).to_bits(), libm::expf(x).to_bits(), "{x:e}");
            }
        }
        assert_eq!([exp(f32::NAN), exp(f32::INFINITY), exp(1e-3)], [0.0; 3]);
    }
}
