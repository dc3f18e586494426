//! The exponentials of a row, and what is read of a distribution made of them.
//!
//! Invariant: an exponential is the same number on every instruction set, and sums are f64 over sixteen lanes, one for the
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

/// e^x of a number that is not above 0; 0 for others.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let power = crate::cpu::exp(x);
    if x <= 0.0 { power } else { 0.0 }
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
