//! The law that a token of a row is drawn from, as numbers: what speculative decoding compares and takes apart, and what is
//! told of a token's probability.
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

/// How likely a token was where it was decided.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Logprob {
    /// The token.
    pub token: i32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens and theirs, by falling probability; among equals the lowest id comes first. Tokens that could
    /// not be drawn are none of them.
    pub top: Vec<(i32, f32)>,
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

    /// How likely a token is, beside so many of the most likely ones.
    pub fn logprob(&self, token: i32, beside: usize) -> Logprob {
        let log = |p: f64| libm::log(p) as f32;
        let mut order: Vec<usize> = if beside > 0 { (0..self.ids.len()).collect() } else { Vec::new() };
        let likelier = |a: &usize, b: &usize| self.probs[*b].total_cmp(&self.probs[*a]).then(a.cmp(b));
        if beside > 0 && beside < order.len() {
            order.select_nth_unstable_by(beside - 1, likelier);
            order.truncate(beside);
        }
        order.sort_unstable_by(likelier);
        let top = order.into_iter().map(|i| (self.ids[i], log(self.probs[i]))).collect();
        Logprob { token, logprob: log(self.prob(token)), top }
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
        self.kernels.run(LawOf { room: &mut self.room, logits, policy, greedy: false })
    }

    /// The law whose most likely token a greedy choice is: the softmax of what may be chosen, unfiltered, at temperature 1.
    /// `None` when no finite logit is left.
    pub fn plain_law(&mut self, logits: &[f32], policy: &DecodePolicy) -> Option<Law> {
        self.kernels.run(LawOf { room: &mut self.room, logits, policy, greedy: true })
    }
}

/// The law of a row.
struct LawOf<'a> {
    room: &'a mut Room,
    logits: &'a [f32],
    policy: &'a DecodePolicy,
    greedy: bool,
}

impl Work for LawOf<'_> {
    type Output = Option<Law>;

    #[inline(always)]
    fn run(self) -> Option<Law> {
        let LawOf { room, logits, policy, greedy } = self;
        let Room { row, scaled, weights, kept, tail, .. } = room;
        let all = without(logits, &policy.suppress_ids, row);
        let scaled = if greedy { all } else { at_temperature(all, policy.temperature, scaled) };
        let left = if greedy { Left::All } else { kept.filter(scaled, policy, weights, tail).0 };
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
        for policy in [
            plain.clone(),
            DecodePolicy { top_k: 3, ..plain.clone() },
            DecodePolicy { min_p: 0.3, ..plain.clone() },
            DecodePolicy { top_p: 0.8, ..plain },
        ] {
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
    fn what_is_told_of_a_token_is_a_logarithm_of_its_probability() {
        let law = Law::of([(3, 1.0), (5, 2.0), (6, 0.0), (9, 1.0), (12, 4.0)]).unwrap();
        let ln = |p: f64| libm::log(p) as f32;
        let told = law.logprob(9, 3);
        assert_eq!((told.token, told.logprob), (9, ln(0.125)));
        assert_eq!(told.top, [(12, ln(0.5)), (5, ln(0.25)), (3, ln(0.125))]);
        assert_eq!((law.logprob(12, 0).top.len(), law.logprob(12, 99).top.len()), (0, 4));
    }

    #[test]
    fn a_greedy_choice_is_of_the_plain_softmax() {
        let logits = [1.0, 3.0, 2.0, 9.0, f32::NEG_INFINITY, 0.5];
        let policy = DecodePolicy { suppress_ids: vec![5], top_k: 2, min_p: 0.9, ..DecodePolicy::greedy(3, 4) };
        let law = Sampler::default().plain_law(&logits, &policy).unwrap();
        let sum: f64 = [1.0f64, 3.0, 2.0].iter().map(|x| x.exp()).sum();
        for (id, logit) in [(0, 1.0f64), (1, 3.0), (2, 2.0)] {
            assert!((law.prob(id) - logit.exp() / sum).abs() < 1e-6, "the mask and what is suppressed are left out");
        }
        assert_eq!(law.iter().count(), 3);
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
