//! Choosing a token from a row of logits: temperature, top-k, top-p, and a draw.
//!
//! Invariant: the mask is never chosen, and equal values go to the lowest token id. A draw is `argmax(p / q)` with
//! q ~ Exp(1) per token, which is how PyTorch draws from a categorical distribution on a CPU; with recorded q the same
//! tokens come out. Only what is asked for is computed, in memory that is kept from row to row. What a plain greedy decode
//! needs never passes through here: it reads the head's statistics.

mod law;
mod tail;
mod weights;

pub use self::law::Law;
use self::tail::Tail;
use self::weights::{Distribution, Mass, prob, weigh};
use super::noise::{self, GROUP, Noise, NoiseRow};
use super::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
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
}

/// Chooses tokens. Its memory grows to what the largest row needs and is reused.
#[derive(Debug, Default)]
pub struct Sampler {
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

/// What the filters leave, by ascending id.
#[derive(Debug, Default)]
struct Kept {
    ids: Vec<i32>,
    values: Vec<f32>,
    weights: Vec<f32>,
}

/// The choices of a row and their weights.
#[derive(Clone, Copy)]
struct Choices<'a> {
    /// `None`: every finite value of the row is one.
    ids: Option<&'a [i32]>,
    values: &'a [f32],
    weights: &'a [f32],
    sum: f64,
    mask_id: i32,
}

impl Sampler {
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
        let Self { row, scaled, sure, weights, kept, tail } = self;
        let greedy = choice == Choice::MostLikely || policy.is_greedy();
        let all = without(logits, &policy.suppress_ids, row);
        let scaled = if greedy { all } else { at_temperature(all, policy.temperature, scaled) };
        let (listed, mut whole) = kept.filter(scaled, policy, weights, tail);
        let choices = if listed {
            let mass = weigh(&kept.values, &mut kept.weights);
            let ids = Some(&*kept.ids);
            Choices { ids, values: &kept.values, weights: &kept.weights, sum: mass.sum, mask_id: policy.mask_id }
        } else {
            let sum = whole.get_or_insert_with(|| weigh(scaled, weights)).sum;
            Choices { ids: None, values: scaled, weights, sum, mask_id: policy.mask_id }
        };
        let token = match if greedy { choices.most_likely() } else { choices.draw(noise, at)? } {
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
                let weights = if listed { &mut kept.weights } else { &mut *weights };
                let mut again = 1.0;
                if !policy.unsure_ids.is_empty() {
                    let ids = if listed { Some(&*kept.ids) } else { None };
                    for &id in &policy.unsure_ids {
                        if let Some(weight) = index_of(ids, id).and_then(|index| weights.get_mut(index)) {
                            *weight = 0.0;
                        }
                    }
                    again = weights.iter().map(|&weight| prob(weight, sum)).sum();
                    whole = None;
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

impl Kept {
    /// Filters a row. Returns whether what is left is listed here (otherwise it is every finite value), and what
    /// `weights` hold if they are those of the whole row.
    fn filter(
        &mut self,
        row: &[f32],
        policy: &DecodePolicy,
        weights: &mut Vec<f32>,
        tail: &mut Tail,
    ) -> (bool, Option<Mass>) {
        tail.reserve(row.len(), policy.top_k, policy.top_p);
        let (mut listed, mut whole) = (false, None);
        for filter in in_order(policy.filter_order) {
            match filter {
                Filter::TopK if policy.top_k == 0 => {}
                Filter::TopP if policy.top_p >= 1.0 => {}
                filter if listed => self.narrow(filter, policy.top_k, policy.top_p, tail),
                Filter::TopK => {
                    let kth = tail.kth(row, policy.top_k);
                    self.list(row, row, kth, |_, _| true);
                    listed = true;
                }
                Filter::TopP => {
                    let mass = *whole.insert(weigh(row, weights));
                    let Some(last) = tail.last_of_top_p(weights, mass.sum, policy.top_p) else { continue };
                    self.list(row, weights, least_weight(last.0, mass.sum), |index, weight| {
                        is_kept(prob(weight, mass.sum), index, last)
                    });
                    listed = true;
                }
            }
        }
        (listed, whole)
    }

    /// Lists the finite values of a row whose key is at least `least` and which `keep` wants.
    fn list(&mut self, row: &[f32], keys: &[f32], least: f32, keep: impl Fn(usize, f32) -> bool) {
        let Self { ids, values, weights } = self;
        ids.clear();
        ids.reserve(row.len());
        for numbers in [values, weights] {
            numbers.clear();
            numbers.reserve(row.len());
        }
        for (chunk, (values, keys)) in row.chunks(GROUP).zip(keys.chunks(GROUP)).enumerate() {
            if !keys.iter().fold(false, |any, &key| any | (key >= least)) {
                continue;
            }
            for (index, (&value, &key)) in (chunk * GROUP..).zip(values.iter().zip(keys)) {
                if key >= least && value.is_finite() && keep(index, key) {
                    self.ids.push(index as i32);
                    self.values.push(value);
                }
            }
        }
    }

    /// Applies a filter to what is listed.
    fn narrow(&mut self, filter: Filter, top_k: usize, top_p: f32, tail: &mut Tail) {
        let Self { ids, values, weights } = self;
        match filter {
            Filter::TopK => {
                let kth = tail.kth(values, top_k);
                retain(ids, values, |_, value| value >= kth);
            }
            Filter::TopP => {
                let mass = weigh(values, weights);
                if let Some(last) = tail.last_of_top_p(weights, mass.sum, top_p) {
                    retain(ids, values, |index, _| is_kept(prob(weights[index], mass.sum), index, last));
                }
            }
        }
    }
}

fn retain(ids: &mut Vec<i32>, values: &mut Vec<f32>, keep: impl Fn(usize, f32) -> bool) {
    let mut kept = 0;
    for index in 0..values.len() {
        if keep(index, values[index]) {
            (ids[kept], values[kept]) = (ids[index], values[index]);
            kept += 1;
        }
    }
    ids.truncate(kept);
    values.truncate(kept);
}

/// A weight below that of any entry with the probability `prob`.
fn least_weight(prob: f32, sum: f64) -> f32 {
    if prob > 1e-30 { (f64::from(prob) * sum * (1.0 - 1e-6)) as f32 } else { 0.0 }
}

fn is_kept(prob: f32, index: usize, last: (f32, usize)) -> bool {
    prob > last.0 || (prob == last.0 && index <= last.1)
}

#[derive(Clone, Copy)]
enum Filter {
    TopK,
    TopP,
}

fn in_order(order: FilterOrder) -> [Filter; 2] {
    match order {
        FilterOrder::TopKTopP => [Filter::TopK, Filter::TopP],
        FilterOrder::TopPTopK => [Filter::TopP, Filter::TopK],
    }
}

/// Removes the tail of a distribution. `entries` are `(id, logit)` with ascending ids and stay so; at least one stays.
/// `top_k` = 0 and `top_p` = 1 remove nothing.
///
/// Top-k keeps every entry that equals the k-th largest. Top-p keeps the entries, by falling probability, before which
/// the probabilities do not yet add up to more than `top_p`.
pub fn filter(entries: &mut Vec<Entry>, order: FilterOrder, top_k: usize, top_p: f32) {
    let (mut kept, mut tail) = (Kept::default(), Tail::default());
    (kept.ids, kept.values) = entries.iter().copied().unzip();
    for filter in in_order(order) {
        match filter {
            Filter::TopK if top_k == 0 => {}
            Filter::TopP if top_p >= 1.0 => {}
            filter => kept.narrow(filter, top_k, top_p, &mut tail),
        }
    }
    *entries = kept.ids.into_iter().zip(kept.values).collect();
}

/// Probabilities of `(id, logit)` entries, in the same order. Sums in f64.
pub fn softmax(entries: &[Entry]) -> Vec<Entry> {
    let max = entries.iter().map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
    let mut probs: Vec<Entry> = entries.iter().map(|&(id, logit)| (id, libm::expf(logit - max))).collect();
    let sum: f64 = probs.iter().map(|entry| f64::from(entry.1)).sum();
    for entry in &mut probs {
        entry.1 = prob(entry.1, sum);
    }
    probs
}

/// Finds the largest of the scores p / q.
struct Race {
    best: Option<Entry>,
    sum: f64,
    /// No choice whose weight divided by q is below this can win, however its probability and score are rounded.
    limit: f32,
}

impl Race {
    fn enter(&mut self, id: i32, weight: f32, q: f32) {
        let score = prob(weight, self.sum) / q;
        if self.best.is_none_or(|(best, top)| score > top || (score == top && id < best)) {
            self.best = Some((id, score));
            // Scores near zero may be rounded by more than the slack.
            let limit = f64::from(score) * self.sum * (1.0 - 1e-6);
            self.limit = if score > 1e-20 { limit as f32 } else { 0.0 };
        }
    }
}

impl Choices<'_> {
    fn id(&self, index: usize) -> i32 {
        self.ids.map_or(index as i32, |ids| ids[index])
    }

    fn find(&self, id: i32) -> Option<usize> {
        index_of(self.ids, id).filter(|&index| self.values.get(index).is_some_and(|value| value.is_finite()))
    }

    fn may_be_chosen(&self, index: usize) -> bool {
        self.values[index].is_finite() && self.id(index) != self.mask_id
    }

    fn race(&self) -> Race {
        Race { best: None, sum: self.sum, limit: 0.0 }
    }

    fn most_likely(&self) -> Option<i32> {
        let mut race = self.race();
        for (group, weights) in self.weights.chunks(GROUP).enumerate() {
            if !weights.iter().fold(false, |any, &weight| any | (weight >= race.limit)) {
                continue;
            }
            for (index, &weight) in (group * GROUP..).zip(weights) {
                if weight >= race.limit && self.may_be_chosen(index) {
                    race.enter(self.id(index), weight, 1.0);
                }
            }
        }
        race.best.map(|entry| entry.0)
    }

    /// The outer `None`: a noise value was not recorded.
    fn draw(&self, noise: &Noise, at: NoiseRow) -> Option<Option<i32>> {
        let Some(mut uniform) = noise.uniform(at) else {
            let mut exponential = noise.exponential(at);
            let choices = (0..self.weights.len()).filter(|&index| self.may_be_chosen(index));
            let mut missing = false;
            let scores = choices.map_while(|index| {
                let q = exponential(self.id(index));
                missing |= q.is_none();
                Some((self.id(index), prob(self.weights[index], self.sum) / q?))
            });
            let best = argmax(scores);
            return (!missing).then_some(best);
        };
        let mut race = self.race();
        // With the most likely one ahead, whole groups need no noise.
        let top = self.weights.iter().position(|&weight| weight == 1.0);
        if let Some(top) = top.filter(|&top| self.may_be_chosen(top)) {
            let id = self.id(top);
            race.enter(id, 1.0, noise::exponential(uniform.of(id as u32)));
        }
        for (group, weights) in self.weights.chunks(GROUP).enumerate() {
            let least = race.limit * noise::LEAST;
            if !weights.iter().fold(false, |any, &weight| any | (weight >= least)) {
                continue;
            }
            let first = group * GROUP;
            let bits = match self.ids {
                None => uniform.group(first as u32),
                Some(ids) => {
                    let mut ids = ids[first..].iter();
                    std::array::from_fn(|_| ids.next().map_or(0, |&id| uniform.of(id as u32)))
                }
            };
            let pairs = weights.iter().zip(&bits);
            let limit = race.limit;
            if !pairs.fold(false, |any, (&weight, &bits)| any | (weight >= limit * noise::at_least(bits))) {
                continue;
            }
            for (index, (&weight, &bits)) in (first..).zip(weights.iter().zip(&bits)) {
                if weight >= race.limit * noise::at_least(bits) && self.may_be_chosen(index) {
                    race.enter(self.id(index), weight, noise::exponential(bits));
                }
            }
        }
        Some(race.best.map(|entry| entry.0))
    }
}

#[cfg(test)]
mod tests;
