//! The law that a token of a row is drawn from, as numbers: what speculative decoding compares and takes apart.
//!
//! Invariant: it is the law of [`Sampler::choose`] with the same policy, made by the same code: suppressed tokens, then the
//! temperature, then the filters, and the mask is no choice.

use super::draw::Choices;
use super::kept::Left;
use super::weights::weigh;
use super::{Room, Sampler, at_temperature, first_largest, without};
use crate::cpu::Work;
use crate::decode::noise::{Noise, NoiseRow};
use crate::decode::policy::DecodePolicy;

/// A distribution over tokens: those with a probability, by ascending id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Law {
    ids: Vec<i32>,
    probs: Vec<f64>,
}

impl Law {
    /// The law of these weights, which need not add up to 1; those that are not above 0 are left out. `None` when nothing is
    /// left.
    pub fn of(weights: impl IntoIterator<Item = (i32, f64)>) -> Option<Self> {
        let (ids, mut probs): (Vec<_>, Vec<_>) = weights.into_iter().filter(|(_, w)| *w > 0.0).unzip();
        let sum: f64 = probs.iter().sum();
        probs.iter_mut().for_each(|p| *p /= sum);
        (sum > 0.0 && sum.is_finite()).then_some(Self { ids, probs })
    }

    /// The law that has one outcome.
    pub fn point(token: i32) -> Self {
        Self { ids: vec![token], probs: vec![1.0] }
    }

    /// The probability of a token.
    pub fn prob(&self, token: i32) -> f64 {
        self.ids.binary_search(&token).map_or(0.0, |index| self.probs[index])
    }

    /// The tokens and their probabilities.
    pub fn iter(&self) -> impl Iterator<Item = (i32, f64)> + '_ {
        self.ids.iter().copied().zip(self.probs.iter().copied())
    }

    /// Its entropy in nats.
    pub fn entropy(&self) -> f64 {
        -self.probs.iter().map(|p| p * libm::log(*p)).sum::<f64>()
    }

    /// A draw: `argmax(p / e)` with one Exp(1) variate per token, as [`Sampler::choose`] draws. `None` when one is missing.
    pub fn draw(&self, noise: &Noise, at: NoiseRow) -> Option<i32> {
        let mut exponential = noise.exponential(at);
        let mut best: Option<(i32, f64)> = None;
        for (id, p) in self.iter() {
            let score = p / f64::from(exponential(id)?);
            if best.is_none_or(|(_, top)| score > top) {
                best = Some((id, score));
            }
        }
        best.map(|(id, _)| id)
    }
}

impl Sampler {
    /// The law that [`Sampler::choose`] draws from, given a policy that draws. `None` when no finite logit is left.
    pub fn law(&mut self, logits: &[f32], policy: &DecodePolicy) -> Option<Law> {
        self.kernels.run(LawOf { room: &mut self.room, logits, policy })
    }
}

/// The law of a row.
struct LawOf<'a> {
    room: &'a mut Room,
    logits: &'a [f32],
    policy: &'a DecodePolicy,
}

impl Work for LawOf<'_> {
    type Output = Option<Law>;

    #[inline(always)]
    fn run(self) -> Option<Law> {
        let LawOf { room, logits, policy } = self;
        let Room { row, scaled, weights, kept, tail, .. } = room;
        let all = without(logits, &policy.suppress_ids, row);
        let scaled = at_temperature(all, policy.temperature, scaled);
        let (left, _) = kept.filter(scaled, policy, weights, tail);
        let usable = |(id, w): (i32, &f32)| (id != policy.mask_id).then(|| (id, f64::from(*w)));
        let law = if left == Left::All {
            weigh(scaled, weights);
            Law::of((0..).zip(&*weights).filter_map(usable))
        } else {
            let Choices { ids, weights, .. } = kept.choices(left, policy.mask_id);
            match ids {
                Some(ids) => Law::of(ids.iter().copied().zip(weights).filter_map(usable)),
                None => Law::of((0..).zip(weights).filter_map(usable)),
            }
        };
        // The filters left the mask alone.
        law.or_else(|| first_largest(all, policy.mask_id).map(Law::point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::sample::{Choice, Needs};

    #[test]
    fn it_is_the_law_that_tokens_are_drawn_from() {
        let logits = [0.3, 1.0, -0.5, 2.0, 0.9, f32::NEG_INFINITY, 1.4, 0.0];
        let plain = DecodePolicy { temperature: 0.8, suppress_ids: vec![1], ..DecodePolicy::greedy(6, 4) };
        for policy in [plain.clone(), DecodePolicy { top_k: 3, ..plain.clone() }, DecodePolicy { top_p: 0.8, ..plain }]
        {
            let mut sampler = Sampler::default();
            let law = sampler.law(&logits, &policy).unwrap();
            assert_eq!((law.prob(1), law.prob(6)), (0.0, 0.0), "suppressed, and the mask");
            assert!((law.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-12);
            let draws = 40_000;
            let mut counts = [0.0f64; 8];
            for pass in 0..draws {
                let at = NoiseRow { pass, position: 3 };
                let noise = Noise::Seeded(5);
                let drawn = sampler.choose(&logits, &policy, Choice::AsPolicy, Needs::NOTHING, &noise, at).unwrap();
                counts[drawn.stats.best as usize] += 1.0;
            }
            for (id, count) in (0..).zip(counts) {
                let p = law.prob(id);
                let sigma = (p * (1.0 - p) / f64::from(draws as u32)).sqrt();
                assert!((count / f64::from(draws as u32) - p).abs() <= 4.5 * sigma, "{id}: {count} for {p}");
            }
        }
    }

    #[test]
    fn a_law_draws_its_tokens() {
        let law = Law::of([(3, 1.0), (9, 0.0), (12, 3.0)]).unwrap();
        assert_eq!((law.prob(3), law.prob(9), law.prob(12)), (0.25, 0.0, 0.75));
        let drawn = |pass| law.draw(&Noise::Seeded(1), NoiseRow { pass, position: 0 }).unwrap();
        let threes = (0..20_000).filter(|&pass| drawn(pass) == 3).count();
        assert!((4_700..5_300).contains(&threes), "{threes}");
        assert_eq!(Law::of([(1, 0.0)]), None);
        assert!((law.entropy() - 0.562_335).abs() < 1e-5);
    }
}
