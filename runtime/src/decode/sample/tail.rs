//! Where the tail of a distribution begins: top-k and top-p.
//!
//! Invariant: what is found is what a full sort and a sum in that order would find; sums in another order are trusted only
//! where their rounding cannot matter.

/// Rounding of a sum of weights in any order stays far below this part of it.
const DOUBT: f64 = 1e-9;
/// So many entries are sorted rather than halved.
const FEW: usize = 64;
/// So many entries are skipped at once when none of them counts.
const CHUNK: usize = 32;
/// Classes of weights, sixteen for each power of two; the last one holds whatever is smaller.
const CLASSES: usize = 512;
/// Places at which the weights of a class are added up, so that one addition need not wait for the last.
const PLACES: usize = 4;

/// An entry by its weight and its place in the row.
pub(super) type Ranked = (f32, usize);

/// Sums round too coarsely to tell.
struct Doubt;

/// Memory of the filters.
#[derive(Debug, Default)]
pub(super) struct Tail {
    values: Vec<f32>,
    keys: Vec<u64>,
    masses: Vec<[f64; PLACES]>,
}

impl Tail {
    /// Makes room for rows of this length, whatever they hold.
    pub(super) fn reserve(&mut self, row: usize, top_k: usize, top_p: f32) {
        let Self { values, keys, masses } = self;
        values.clear();
        values.reserve(if top_k > 0 { enough(top_k).saturating_add(CHUNK).min(row) } else { 0 });
        keys.clear();
        keys.reserve(if top_p < 1.0 { row } else { 0 });
        masses.clear();
        masses.reserve(if top_p < 1.0 { CLASSES } else { 0 });
    }

    /// The `top_k`th largest of the finite values; -∞ when there are not as many.
    #[inline(always)]
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

    /// The last entry that top-p keeps, by falling weight; entries of equal weight come in their order. `None`: it keeps all.
    /// The largest weight is 1.
    #[inline(always)]
    pub(super) fn last_of_top_p(&mut self, weights: &[f32], sum: f64, top_p: f32) -> Option<Ranked> {
        let aim = f64::from(top_p) * sum;
        let last = self.by_class(weights, aim, DOUBT * sum).unwrap_or_else(|Doubt| {
            self.collect(weights, |_| true);
            self.keys.sort_unstable_by(|a, b| b.cmp(a));
            walk(&self.keys, 0.0, aim, 0.0).unwrap_or_else(|Doubt| unreachable!("nothing is below no doubt"))
        });
        last.map(|key| (weight_of(key), (u32::MAX - key as u32) as usize))
    }

    /// Finds the class of weights in which the sum exceeds `aim`, and the entry among those of that class.
    #[inline(always)]
    fn by_class(&mut self, weights: &[f32], aim: f64, doubt: f64) -> Result<Option<u64>, Doubt> {
        if weights.len() <= 8 * CLASSES {
            self.collect(weights, |_| true);
            return last_by_halves(&mut self.keys, 0.0, aim, doubt);
        }
        self.masses.clear();
        self.masses.resize(CLASSES, [0.0; PLACES]);
        let masses = &mut self.masses[..CLASSES];
        let (chunks, rest) = weights.as_chunks::<PLACES>();
        let mut add = |place: usize, weight: f32| masses[class(weight)][place] += f64::from(weight);
        for chunk in chunks {
            chunk.iter().enumerate().for_each(|(place, &weight)| add(place, weight));
        }
        rest.iter().enumerate().for_each(|(place, &weight)| add(place, weight));
        let mut above = 0.0f64;
        for i in 0..CLASSES {
            let mass: f64 = self.masses[i].iter().sum();
            if above + mass > aim - doubt {
                self.collect(weights, |weight| class(weight) == i);
                return last_by_halves(&mut self.keys, above, aim, doubt);
            }
            above += mass;
        }
        Ok(None)
    }

    /// The entries whose weight is `wanted`, as keys that grow with the weight and fall with the index.
    #[inline(always)]
    fn collect(&mut self, weights: &[f32], wanted: impl Fn(f32) -> bool) {
        self.keys.clear();
        for (chunk, weights) in (0..).step_by(CHUNK).zip(weights.chunks(CHUNK)) {
            if weights.iter().fold(false, |any, &weight| any | wanted(weight)) {
                for (index, &weight) in (chunk..).zip(weights).filter(|(_, weight)| wanted(**weight)) {
                    self.keys.push(u64::from(weight.to_bits()) << 32 | u64::from(u32::MAX - index));
                }
            }
        }
    }
}

/// Values among which the `top_k` largest are looked for anew.
fn enough(top_k: usize) -> usize {
    top_k.saturating_mul(4).max(256)
}

/// The class of a weight from 0 to 1; larger weights have smaller classes.
#[inline(always)]
fn class(weight: f32) -> usize {
    ((1.0f32.to_bits().wrapping_sub(weight.to_bits())) >> 19).min(CLASSES as u32 - 1) as usize
}

fn weight_of(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}

/// The key at which the sum of the weights, from the largest on, first exceeds `aim`, if one does. What is not among the
/// keys weighs `above` as far as it is larger, and does not matter as far as it is smaller.
fn last_by_halves(mut keys: &mut [u64], mut above: f64, aim: f64, doubt: f64) -> Result<Option<u64>, Doubt> {
    while keys.len() > FEW {
        // The kept entries are few and the vocabulary is large.
        let middle = keys.len() / 8;
        keys.select_nth_unstable_by(middle, |a, b| b.cmp(a));
        let (high, low) = std::mem::take(&mut keys).split_at_mut(middle);
        let sum = above + high.iter().map(|&key| f64::from(weight_of(key))).sum::<f64>();
        if (sum - aim).abs() < doubt {
            return Err(Doubt);
        }
        if sum > aim {
            keys = high;
        } else {
            (above, keys) = (sum, low);
        }
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    walk(keys, above, aim, doubt)
}

/// Adds the weights of sorted keys to `sum`; the key that first exceeds `aim`, if one does.
fn walk(keys: &[u64], mut sum: f64, aim: f64, doubt: f64) -> Result<Option<u64>, Doubt> {
    for &key in keys {
        sum += f64::from(weight_of(key));
        if (sum - aim).abs() < doubt {
            return Err(Doubt);
        }
        if sum > aim {
            return Ok(Some(key));
        }
    }
    Ok(None)
}
