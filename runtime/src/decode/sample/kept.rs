//! What top-k, top-p and min-p leave of a row.
//!
//! Min-p comes last, as with Hugging Face: it compares with the largest probability, which no other filter changes.
//!
//! Invariant: entries keep their order, which is that of their tokens, and at least one stays. A row stays a row as long as
//! many tokens may be left, with nothing where a token is gone; top-k lists what it keeps.

use super::super::noise::GROUP;
use super::super::policy::{DecodePolicy, FilterOrder};
use super::tail::Tail;
use super::weights::{Mass, sum, weigh, weigh_listed};
use super::{Choices, Entry};

/// Memory for what is left.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) ids: Vec<i32>,
    values: Vec<f32>,
    pub(super) weights: Vec<f32>,
}

/// Where what the filters left stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// All finite values of the row.
    All,
    /// In [`Kept`], by token: -∞ where a token is gone.
    Row,
    /// In [`Kept`], beside the ids.
    Listed,
}

impl Kept {
    /// Filters a row. Returns where what is left stands, and what `weights` hold if they are those of the whole row.
    #[inline(always)]
    pub(super) fn filter(
        &mut self,
        row: &[f32],
        policy: &DecodePolicy,
        weights: &mut Vec<f32>,
        tail: &mut Tail,
    ) -> (Left, Option<Mass>) {
        tail.reserve(row.len(), policy.top_k, policy.top_p);
        if policy.top_k > 0 || policy.top_p < 1.0 || policy.min_p > 0.0 {
            self.clear(row.len());
        }
        let (mut left, mut whole) = (Left::All, None);
        for filter in in_order(policy.filter_order) {
            match (filter, left) {
                (Filter::TopK, _) if policy.top_k == 0 => {}
                (Filter::TopP, _) if policy.top_p >= 1.0 => {}
                (Filter::TopP, Left::Listed) => self.narrow(policy.top_p, tail),
                (Filter::TopP, _) => {
                    let mass = *whole.insert(weigh(row, weights));
                    if let Some(last) = tail.last_of_top_p(weights, mass.sum, policy.top_p) {
                        self.cut(row, weights, last.0, last.1 + 1);
                        left = Left::Row;
                    }
                }
                (Filter::TopK, Left::All) => {
                    let kth = tail.kth(row, policy.top_k);
                    self.list(row, kth);
                    left = Left::Listed;
                }
                (Filter::TopK, _) => {
                    self.shorten(policy.top_k, tail);
                    left = Left::Listed;
                }
            }
        }
        if policy.min_p > 0.0 {
            match left {
                Left::All => {
                    if whole.is_none() {
                        whole = Some(weigh(row, weights));
                    }
                    self.cut(row, weights, policy.min_p, row.len());
                    left = Left::Row;
                }
                Left::Row => self.blank(policy.min_p),
                Left::Listed => self.shed(policy.min_p),
            }
        }
        (left, whole)
    }

    /// What is left, to choose from, where it stands here.
    #[inline(always)]
    pub(super) fn choices(&mut self, left: Left, mask_id: i32) -> Choices<'_> {
        let Self { ids, values, weights } = self;
        if left == Left::Listed {
            let mass = weigh_listed(ids, values, weights);
            return Choices { ids: Some(ids), values, weights, sum: mass.sum, mask_id };
        }
        Choices { ids: None, values, weights, sum: sum(weights), mask_id }
    }

    fn clear(&mut self, room: usize) {
        self.ids.clear();
        self.ids.reserve(room);
        for numbers in [&mut self.values, &mut self.weights] {
            numbers.clear();
            numbers.reserve(room);
        }
    }

    /// Takes over what weighs more than `least` of a row, and before `end` also what weighs as much. The largest weights are
    /// among what stays, so that all weights are still those of their distribution.
    #[inline(always)]
    fn cut(&mut self, row: &[f32], weights: &[f32], least: f32, end: usize) {
        let (first, rest) = (row[..end].iter().zip(&weights[..end]), row[end..].iter().zip(&weights[end..]));
        let value = |keep: bool, value: f32| if keep { value } else { f32::NEG_INFINITY };
        self.values.extend(first.clone().map(|(v, w)| value(*w >= least, *v)));
        self.values.extend(rest.clone().map(|(v, w)| value(*w > least, *v)));
        self.weights.extend(first.map(|(_, w)| if *w >= least { *w } else { 0.0 }));
        self.weights.extend(rest.map(|(_, w)| if *w > least { *w } else { 0.0 }));
    }

    /// Lists the finite values of a row that are at least `least`.
    #[inline(always)]
    fn list(&mut self, row: &[f32], least: f32) {
        for (chunk, values) in row.chunks(GROUP).enumerate() {
            if !values.iter().fold(false, |any, &value| any | (value >= least)) {
                continue;
            }
            for (index, &value) in (chunk * GROUP..).zip(values) {
                if value >= least && value.is_finite() {
                    self.ids.push(index as i32);
                    self.values.push(value);
                }
            }
        }
    }

    /// Applies top-k to the row that is here, and lists what it keeps.
    #[inline(always)]
    fn shorten(&mut self, top_k: usize, tail: &mut Tail) {
        let kth = tail.kth(&self.values, top_k);
        self.ids.extend(0..self.values.len() as i32);
        self.retain(|_, value| value >= kth && value.is_finite());
    }

    /// Applies top-p to what is listed.
    #[inline(always)]
    fn narrow(&mut self, top_p: f32, tail: &mut Tail) {
        let mass = weigh_listed(&self.ids, &self.values, &mut self.weights);
        if let Some((least, end)) = tail.last_of_top_p(&self.weights, mass.sum, top_p) {
            let weights = std::mem::take(&mut self.weights);
            self.retain(|index, _| weights[index] > least || (weights[index] == least && index <= end));
            self.weights = weights;
        }
    }

    /// Applies min-p to the row that is here.
    #[inline(always)]
    fn blank(&mut self, min_p: f32) {
        for (value, weight) in self.values.iter_mut().zip(&mut self.weights) {
            let keep = *weight >= min_p;
            *value = if keep { *value } else { f32::NEG_INFINITY };
            *weight = if keep { *weight } else { 0.0 };
        }
    }

    /// Applies min-p to what is listed.
    #[inline(always)]
    fn shed(&mut self, min_p: f32) {
        weigh_listed(&self.ids, &self.values, &mut self.weights);
        let weights = std::mem::take(&mut self.weights);
        self.retain(|index, _| weights[index] >= min_p);
        self.weights = weights;
    }

    #[inline(always)]
    fn retain(&mut self, keep: impl Fn(usize, f32) -> bool) {
        let Self { ids, values, .. } = self;
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
            Filter::TopK => {
                let kth = tail.kth(&kept.values, top_k);
                kept.retain(|_, value| value >= kth);
            }
            Filter::TopP => kept.narrow(top_p, &mut tail),
        }
    }
    *entries = kept.ids.into_iter().zip(kept.values).collect();
}
