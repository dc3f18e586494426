//! Choosing among the tokens that are left: the most likely one, or a draw.
//!
//! Invariant: the mask is never chosen, and equal scores go to the lowest token id. A token whose noise cannot make it win
//! gets none, which changes no choice.

use super::super::noise::{self, GROUP, Noise, NoiseRow};
use super::weights::prob;
use super::{Entry, argmax, index_of};

/// The choices of a row and their weights.
#[derive(Clone, Copy)]
pub(super) struct Choices<'a> {
    /// `None`: every finite value is one, by token.
    pub(super) ids: Option<&'a [i32]>,
    pub(super) values: &'a [f32],
    pub(super) weights: &'a [f32],
    pub(super) sum: f64,
    pub(super) mask_id: i32,
}

/// Finds the largest of the scores p / q.
struct Race {
    best: Option<Entry>,
    sum: f64,
    /// No choice whose weight divided by q is below this can win, however its probability and score are rounded.
    limit: f32,
}

impl Race {
    #[inline(always)]
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
    #[inline(always)]
    fn id(&self, index: usize) -> i32 {
        self.ids.map_or(index as i32, |ids| ids[index])
    }

    pub(super) fn find(&self, id: i32) -> Option<usize> {
        index_of(self.ids, id).filter(|&index| self.values.get(index).is_some_and(|value| value.is_finite()))
    }

    #[inline(always)]
    fn may_be_chosen(&self, index: usize) -> bool {
        self.values[index].is_finite() && self.id(index) != self.mask_id
    }

    /// The first with the largest weight, which is 1.
    #[inline(always)]
    fn top(&self) -> Option<usize> {
        let holds = |weights: &[f32]| weights.iter().fold(false, |any, &weight| any | (weight == 1.0));
        let group = self.weights.chunks(GROUP).position(holds)?;
        let within = self.weights[group * GROUP..].iter().position(|&weight| weight == 1.0)?;
        Some(group * GROUP + within)
    }

    #[inline(always)]
    fn race(&self) -> Race {
        Race { best: None, sum: self.sum, limit: 0.0 }
    }

    #[inline(always)]
    pub(super) fn most_likely(&self) -> Option<i32> {
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
    #[inline(always)]
    pub(super) fn draw(&self, noise: &Noise, at: NoiseRow) -> Option<Option<i32>> {
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
        if let Some(top) = self.top().filter(|&top| self.may_be_chosen(top)) {
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
