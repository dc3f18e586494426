//! Removing the tail of a distribution: top-k and top-p.
//!
//! Invariant: entries keep their order, which is that of their tokens, and at least one stays. What is kept is what a
//! full sort and a sum in that order would keep; sums in another order are trusted only where their rounding cannot
//! matter.

use super::weights::prob;

/// Rounding of a sum of probabilities in any order stays far below this.
const DOUBT: f64 = 1e-9;
/// So many entries are sorted rather than halved.
const FEW: usize = 64;
/// So many entries are skipped at once when none of them counts.
const CHUNK: usize = 32;

/// Memory of the filters.
#[derive(Debug, Default)]
pub(super) struct Tail {
    values: Vec<f32>,
    keys: Vec<u64>,
}

impl Tail {
    /// Makes room for rows of this length, whatever they hold.
    pub(super) fn reserve(&mut self, row: usize, top_k: usize, top_p: f32) {
        let Self { values, keys } = self;
        values.clear();
        values.reserve(if top_k > 0 { enough(top_k).saturating_add(CHUNK).min(row) } else { 0 });
        keys.clear();
        keys.reserve(if top_p < 1.0 { row } else { 0 });
    }

    /// The `top_k`th largest of the finite values; -∞ when there are not as many.
    pub(super) fn kth(&mut self, values: &[f32], top_k: usize) -> f32 {
        let largest = &mut self.values;
        largest.clear();
        let mut kth = f32::NEG_INFINITY;
        let shrink = |largest: &mut Vec<f32>| {
            let (_, &mut kth, _) = largest.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
            largest.truncate(top_k);
            kth
        };
        for values in values.chunks(CHUNK) {
            if !values.iter().fold(false, |any, &value| any | (value > kth)) {
                continue;
            }
            largest.extend(values.iter().copied().filter(|&value| value > kth && value < f32::INFINITY));
            if largest.len() >= enough(top_k) {
                kth = shrink(largest);
            }
        }
        if largest.len() > top_k { shrink(largest) } else { kth }
    }

    /// The last entry that top-p keeps, by falling probability: `(probability, index)`. `None`: it keeps all.
    pub(super) fn last_of_top_p(&mut self, weights: &[f32], sum: f64, top_p: f32) -> Option<(f32, usize)> {
        let top_p = f64::from(top_p);
        // Entries below this are together less than half of what may be left out.
        let left_out = (1.0 - top_p) / 2.0;
        let least = if left_out > 1e-5 { left_out / weights.len() as f64 } else { 0.0 };
        self.collect(weights, sum, least);
        let last = last_by_halves(&mut self.keys, top_p).or_else(|| {
            self.collect(weights, sum, 0.0);
            self.keys.sort_unstable_by(|a, b| b.cmp(a));
            walk(&self.keys, 0.0, top_p, 0.0).ok().flatten()
        });
        last.map(|key| (prob_of(key), (u32::MAX - key as u32) as usize))
    }

    /// The entries with a probability of at least `least`, and some below, as keys that grow with the probability and
    /// fall with the index.
    fn collect(&mut self, weights: &[f32], sum: f64, least: f64) {
        self.keys.clear();
        let least = (least * sum * (1.0 - 1e-6)) as f32;
        for (chunk, weights) in (0..).step_by(CHUNK).zip(weights.chunks(CHUNK)) {
            if weights.iter().fold(false, |any, &weight| any | (weight >= least)) {
                for (index, &weight) in (chunk..).zip(weights) {
                    if weight >= least {
                        self.keys.push(u64::from(prob(weight, sum).to_bits()) << 32 | u64::from(u32::MAX - index));
                    }
                }
            }
        }
    }
}

/// Values among which the `top_k` largest are looked for anew.
fn enough(top_k: usize) -> usize {
    top_k.saturating_mul(4).max(256)
}

fn prob_of(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}

/// The key at which the sum of the probabilities, from the largest on, first exceeds `top_p`. `None`: none does, or
/// rounding may decide which.
fn last_by_halves(mut keys: &mut [u64], top_p: f64) -> Option<u64> {
    let mut above = 0.0f64;
    while keys.len() > FEW {
        // The kept entries are few and the vocabulary is large.
        let middle = keys.len() / 8;
        keys.select_nth_unstable_by(middle, |a, b| b.cmp(a));
        let (high, low) = std::mem::take(&mut keys).split_at_mut(middle);
        let sum = above + high.iter().map(|&key| f64::from(prob_of(key))).sum::<f64>();
        if (sum - top_p).abs() < DOUBT {
            return None;
        }
        if sum > top_p {
            keys = high;
        } else {
            (above, keys) = (sum, low);
        }
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    walk(keys, above, top_p, DOUBT).ok().flatten()
}

/// Adds the probabilities of sorted keys to `sum`; the key that first exceeds `top_p`, if one does. An error where that
/// is in doubt.
fn walk(keys: &[u64], mut sum: f64, top_p: f64, doubt: f64) -> Result<Option<u64>, ()> {
    for &key in keys {
        sum += f64::from(prob_of(key));
        if (sum - top_p).abs() < doubt {
            return Err(());
        }
        if sum > top_p {
            return Ok(Some(key));
        }
    }
    Ok(None)
}
