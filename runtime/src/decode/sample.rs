//! Choosing a token from a row of logits: temperature, top-k, top-p, min-p, and a draw.
//!
//! Invariant: the mask is never chosen, and equal values go to the lowest token id. A draw is `argmax(p / q)` with
//! q ~ Exp(1) per token, which is how PyTorch draws from a categorical distribution on a CPU; with recorded q the same
//! tokens come out. Only what is asked for is computed, in memory that is kept from row to row. What a plain greedy decode
//! needs never passes through here: it reads the head's statistics.

mod draw;
mod kept;
mod law;
mod tail;
mod weights;

use self::draw::Choices;
pub use self::kept::filter;
use self::kept::{Kept, Left};
pub use self::law::{Law, Logprob};
use self::tail::Tail;
use self::weights::{Distribution, prob, sum_listed, weigh};
use super::noise::{Noise, NoiseRow};
use super::policy::{ConfidenceStage, DecodePolicy};
use crate::cpu::{Isa, Kernels, Work, kernels};
use crate::exec::RowStats;

/// A token id and its logit (or, after [`softmax`], its probability).
pub type Entry = (i32, f32);

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token and the statistics of the distribution that the policy reads its confidence from; `prob` is that of
    /// the chosen token, not of the most likely one. A statistic that was not needed is NaN.
    pub stats: RowStats,
    /// Entropy in nats at temperature 1, before any filter; NaN if it was not needed.
    pub entropy: f32,
}

/// What is read of a [`Drawn`] besides its token. The rest is not computed and NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// `stats.prob`.
    pub prob: bool,
    /// `stats.margin`.
    pub margin: bool,
    /// `stats.entropy`.
    pub entropy: bool,
    /// `entropy`, that of the row.
    pub row_entropy: bool,
}

impl Needs {
    /// The token alone.
    pub const NOTHING: Self = Self { prob: false, margin: false, entropy: false, row_entropy: false };
    /// Everything.
    pub const ALL: Self = Self { prob: true, margin: true, entropy: true, row_entropy: true };
}

/// Which token of a distribution to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The most likely one of the filtered distribution at temperature 1, whatever the policy's temperature.
    MostLikely,
    /// The most likely one if the policy is greedy; otherwise a draw.
    AsPolicy,
    /// This one, which somebody else has chosen.
    Given(i32),
}

/// Chooses tokens. Its memory grows to what the largest row needs and is reused.
#[derive(Debug)]
pub struct Sampler {
    kernels: &'static Kernels,
    room: Room,
}

#[derive(Debug, Default)]
struct Room {
    /// The row without the suppressed tokens, which become -∞.
    row: Vec<f32>,
    /// The row at the policy's temperature.
    scaled: Vec<f32>,
    /// A row without the unsure tokens.
    sure: Vec<f32>,
    /// Exponentials of a whole row.
    weights: Vec<f32>,
    kept: Kept,
    tail: Tail,
}

impl Default for Sampler {
    /// With the instruction set that `DLX_ISA` names, or the best there is; no choice depends on it.
    fn default() -> Self {
        let isa = Isa::from_env().unwrap_or_else(|_| Isa::best());
        Sampler::new(kernels(isa).expect("it is one that this CPU has"))
    }
}

impl Sampler {
    /// One that computes with these kernels' instruction set.
    pub fn new(kernels: &'static Kernels) -> Self {
        Sampler { kernels, room: Room::default() }
    }

    /// The kernels that it computes with.
    pub(super) fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// Chooses a token from one row of raw logits, `[vocab]`.
    ///
    /// LLaDA's Gumbel rule, `argmax(exp(l) / q^T)`, is a monotone function of `exp(l / T) / q` and so the same draw.
    ///
    /// Returns `None` when no finite logit is left or a noise value was not recorded.
    pub fn choose(
        &mut self,
        logits: &[f32],
        policy: &DecodePolicy,
        choice: Choice,
        needs: Needs,
        noise: &Noise,
        at: NoiseRow,
    ) -> Option<Drawn> {
        self.kernels.run(Choose { room: &mut self.room, logits, policy, choice, needs, noise, at })
    }
}

/// The choice of one token.
struct Choose<'a> {
    room: &'a mut Room,
    logits: &'a [f32],
    policy: &'a DecodePolicy,
    choice: Choice,
    needs: Needs,
    noise: &'a Noise,
    at: NoiseRow,
}

impl Work for Choose<'_> {
    type Output = Option<Drawn>;

    #[inline(always)]
    fn run(self) -> Option<Drawn> {
        let Choose { room, logits, policy, choice, needs, noise, at } = self;
        let Room { row, scaled, sure, weights, kept, tail } = room;
        let greedy = choice == Choice::MostLikely || policy.is_greedy();
        let given = if let Choice::Given(token) = choice { Some(token) } else { None };
        let all = without(logits, &policy.suppress_ids, row);
        let scaled = if greedy { all } else { at_temperature(all, policy.temperature, scaled) };
        let (left, mut whole) = kept.filter(scaled, policy, weights, tail);
        let choices = if left == Left::All {
            // No closure: it would be compiled without the features of this function.
            let sum = match whole {
                Some(mass) => mass.sum,
                None => whole.insert(weigh(scaled, weights)).sum,
            };
            Choices { ids: None, values: scaled, weights, sum, mask_id: policy.mask_id }
        } else {
            kept.choices(left, policy.mask_id)
        };
        let chosen = match given {
            Some(token) => Some(token),
            None if greedy => choices.most_likely(),
            None => choices.draw(noise, at)?,
        };
        let token = match chosen {
            Some(token) => token,
            None => {
                // The filters left the mask alone.
                let token = first_largest(all, policy.mask_id)?;
                let drawn = greedy || noise.exponential(at)(token).is_some();
                drawn.then_some(token)?
            }
        };

        let mut drawn = Drawn {
            stats: RowStats { best: token, prob: f32::NAN, margin: f32::NAN, entropy: f32::NAN },
            entropy: f32::NAN,
        };
        let is_sure = !policy.unsure_ids.contains(&token);
        match policy.confidence_stage {
            _ if !(needs.prob || needs.margin || needs.entropy) => {}
            ConfidenceStage::AfterFilters => {
                let weight = choices.find(token).filter(|_| is_sure).map(|index| choices.weights[index]);
                let sum = choices.sum;
                let weights = if left == Left::All { &mut *weights } else { &mut kept.weights };
                let mut again = 1.0;
                if !policy.unsure_ids.is_empty() {
                    let ids = if left == Left::Listed { Some(&*kept.ids) } else { None };
                    for &id in &policy.unsure_ids {
                        if let Some(weight) = index_of(ids, id).and_then(|index| weights.get_mut(index)) {
                            *weight = 0.0;
                        }
                    }
                    again = weights.iter().map(|&weight| prob(weight, sum)).sum();
                    whole = whole.filter(|_| left != Left::All);
                }
                read(&mut drawn.stats, needs, &Distribution { weights, sum, again }, weight);
            }
            stage => {
                let values = if stage == ConfidenceStage::BeforeFilters { scaled } else { all };
                let same = policy.unsure_ids.is_empty() && std::ptr::eq(values, scaled);
                let mass = match whole.filter(|_| same) {
                    Some(mass) => mass,
                    None => weigh(without(values, &policy.unsure_ids, sure), weights),
                };
                whole = same.then_some(mass);
                let weight = index_of(None, token).filter(|_| is_sure).map(|index| weights[index]);
                read(&mut drawn.stats, needs, &Distribution { weights, sum: mass.of_all(), again: 1.0 }, weight);
            }
        }
        if needs.row_entropy {
            let mass = match whole.filter(|_| std::ptr::eq(all, scaled)) {
                Some(mass) => mass,
                None => weigh(all, weights),
            };
            drawn.entropy = Distribution { weights, sum: mass.of_all(), again: 1.0 }.entropy();
        }
        Some(drawn)
    }
}

/// Fills in the statistics of a distribution in which the token has this weight, if it is in it.
#[inline(always)]
fn read(stats: &mut RowStats, needs: Needs, distribution: &Distribution<'_>, weight: Option<f32>) {
    if needs.prob {
        stats.prob = weight.map_or(0.0, |weight| distribution.prob(weight));
    }
    if needs.margin {
        stats.margin = distribution.margin();
    }
    if needs.entropy {
        stats.entropy = distribution.entropy();
    }
}

/// The row, with -∞ for `ids`.
fn without<'a>(row: &'a [f32], ids: &[i32], copy: &'a mut Vec<f32>) -> &'a [f32] {
    if ids.is_empty() {
        return row;
    }
    copy.clear();
    copy.extend_from_slice(row);
    for &id in ids {
        if let Some(value) = index_of(None, id).and_then(|index| copy.get_mut(index)) {
            *value = f32::NEG_INFINITY;
        }
    }
    copy
}

/// Where a token stands in a list of ids, or in a whole row.
fn index_of(ids: Option<&[i32]>, id: i32) -> Option<usize> {
    match ids {
        Some(ids) => ids.binary_search(&id).ok(),
        None => usize::try_from(id).ok(),
    }
}

#[inline(always)]
fn at_temperature<'a>(row: &'a [f32], temperature: f32, scaled: &'a mut Vec<f32>) -> &'a [f32] {
    if temperature == 1.0 {
        return row;
    }
    scaled.clear();
    scaled.extend(row.iter().map(|logit| logit / temperature));
    let pairs = scaled.iter().zip(row);
    if pairs.fold(false, |any, (scaled, logit)| any | (logit.is_finite() & !scaled.is_finite())) {
        // So small a temperature that the quotients overflow. Those of the differences do so towards zero probability,
        // and what is left are the most likely tokens.
        let (max, _) = weights::largest(row);
        scaled.iter_mut().zip(row).for_each(|(scaled, logit)| *scaled = (logit - max) / temperature);
    }
    scaled
}

/// The token with the largest finite logit but for the mask.
fn first_largest(row: &[f32], mask_id: i32) -> Option<i32> {
    let usable = |(id, logit): &Entry| *id != mask_id && logit.is_finite();
    argmax((0..).zip(row.iter().copied()).filter(usable))
}

/// The first of the largest. A value that is no number gives way to whatever follows it.
fn argmax(entries: impl Iterator<Item = Entry>) -> Option<i32> {
    entries.fold(None, |best: Option<Entry>, entry| best.filter(|best| best.1 >= entry.1).or(Some(entry))).map(|e| e.0)
}

/// Probabilities of `(id, logit)` entries, in the same order.
pub fn softmax(entries: &[Entry]) -> Vec<Entry> {
    let max = entries.iter().map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
    let mut probs: Vec<Entry> = entries.iter().map(|&(id, logit)| (id, crate::cpu::exp(logit - max))).collect();
    let sum = sum_listed(probs.iter().copied());
    for entry in &mut probs {
        entry.1 = prob(entry.1, sum);
    }
    probs
}

#[cfg(test)]
mod tests;
