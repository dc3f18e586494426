//! What a verifier makes of a drafted token: the acceptance rules that keep its law.
//!
//! With p the verifier's law at a position and q the law that the token was drawn from, a token y is accepted with
//! probability min(1, p(y) / q(y)), and one that is rejected is replaced by a draw from the normalized positive part of
//! p - q (Leviathan et al., "Fast inference from transformers via speculative decoding", 2211.17192; Chen et al.,
//! 2302.01318). Then what stands there has law p, *as long as, given everything that decided the positions before, y
//! really has law q*. Where that is not so – several denoising passes that reveal out of order – the token is taken as
//! given: q is 1 at y, which is exact however y came about.
//!
//! Invariant: nothing here looks at anything but these two laws, the token, and numbers of streams of their own.

use crate::decode::noise::{Noise, NoiseRow, Stream};
use crate::decode::sample::Law;

/// Where a drafted token comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Drawn from this law, independently of what decided the positions before, given those.
    Drawn(Law),
    /// From anywhere: the point-mass rule.
    Given,
}

/// A drafted token.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The token.
    pub token: i32,
    /// The law it was drawn from.
    pub origin: Origin,
}

impl Proposal {
    /// q(token) for any token.
    fn q(&self, token: i32) -> f64 {
        match &self.origin {
            Origin::Drawn(law) => law.prob(token),
            Origin::Given => f64::from(u8::from(token == self.token)),
        }
    }

    /// The probability that a verifier with law `p` accepts it.
    pub fn chance(&self, p: &Law) -> f64 {
        let q = self.q(self.token);
        // A token that its own law does not have was not drawn from it; it is then worth nothing.
        if q > 0.0 { (p.prob(self.token) / q).min(1.0) } else { 0.0 }
    }

    /// The law of the token in its place when it is rejected: the positive part of p - q.
    pub fn residual(&self, p: &Law) -> Law {
        let rest = Law::of(p.iter().map(|(id, prob)| (id, prob - self.q(id))));
        // Nothing is left where p and q agree up to rounding, and there nothing is rejected but by rounding.
        rest.unwrap_or_else(|| p.clone())
    }

    /// The token that stands at the position in the end, and whether it is the drafted one. `None` when the noise ran out.
    pub fn judge(&self, p: &Law, seed: u64, at: NoiseRow) -> Option<(i32, bool)> {
        // -ln u is an Exp(1) variate, so u < chance says the same as this.
        let variate = f64::from(Noise::Stream(seed, Stream::Accept).of_position(at)?);
        if variate > -libm::log(self.chance(p)) {
            return Some((self.token, true));
        }
        Some((self.residual(p).draw(&Noise::Stream(seed, Stream::Residual), at)?, false))
    }
}

/// The token behind a draft that was accepted as a whole.
pub fn bonus(p: &Law, seed: u64, at: NoiseRow) -> Option<i32> {
    p.draw(&Noise::Stream(seed, Stream::Bonus), at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(probs: &[f64]) -> Law {
        Law::of((0..).zip(probs.iter().copied())).unwrap()
    }

    /// What stands at a position in the end, over all that may be drafted, drawn and accepted there: by enumeration.
    fn outcome(p: &Law, proposals: &[(f64, Proposal)]) -> Vec<f64> {
        let of = |id: i32| {
            let each = proposals.iter().map(|(weight, proposal)| {
                let kept = if proposal.token == id { proposal.chance(p) } else { 0.0 };
                weight * (kept + (1.0 - proposal.chance(p)) * proposal.residual(p).prob(id))
            });
            each.sum()
        };
        (0..4).map(of).collect()
    }

    fn close(found: &[f64], wanted: &Law) -> bool {
        (0..).zip(found).all(|(id, p)| (p - wanted.prob(id)).abs() < 1e-12)
    }

    #[test]
    fn both_rules_keep_the_law_exactly() {
        let p = law(&[0.5, 0.2, 0.2, 0.1]);
        for q in [law(&[0.1, 0.6, 0.0, 0.3]), law(&[0.5, 0.2, 0.2, 0.1]), law(&[0.0, 0.0, 0.0, 1.0])] {
            let drawn = |id| Proposal { token: id, origin: Origin::Drawn(q.clone()) };
            let drafts: Vec<_> = q.iter().map(|(id, weight)| (weight, drawn(id))).collect();
            assert!(close(&outcome(&p, &drafts), &p));
            let given = |id| Proposal { token: id, origin: Origin::Given };
            let drafts: Vec<_> = q.iter().map(|(id, weight)| (weight, given(id))).collect();
            assert!(close(&outcome(&p, &drafts), &p));
            // The wrong q of an argmax: its softmax probability, though it was certain.
            let (best, _) = q.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            let wrong = outcome(&p, &[(1.0, drawn(best))]);
            assert!(q.prob(best) == 1.0 || q == p || !close(&wrong, &p), "{wrong:?}");
        }
    }

    #[test]
    fn a_verdict_is_drawn_from_those_numbers() {
        let (p, q) = (law(&[0.5, 0.2, 0.2, 0.1]), law(&[0.1, 0.6, 0.1, 0.2]));
        let mut counts = [0.0; 4];
        let mut accepted = 0.0;
        for pass in 0..40_000 {
            let at = NoiseRow { pass, position: 9 };
            let token = q.draw(&Noise::Stream(3, Stream::Draft), at).unwrap();
            let proposal = Proposal { token, origin: Origin::Drawn(q.clone()) };
            let (token, kept) = proposal.judge(&p, 3, at).unwrap();
            counts[token as usize] += 1.0 / 40_000.0;
            accepted += f64::from(u8::from(kept)) / 40_000.0;
        }
        for (id, count) in (0..).zip(counts) {
            assert!((count - p.prob(id)).abs() < 4.5 * (0.25f64 / 40_000.0).sqrt(), "{id}: {count}");
        }
        // The sum of the smaller of both probabilities.
        assert!((accepted - 0.5f64).abs() < 4.5 * (0.25f64 / 40_000.0).sqrt(), "{accepted}");
    }

    /// Two tokens, two passes: the second position is revealed first, uniformly; the first one copies it with probability
    /// 0.9. The target is uniform. Returns P(00) of two rounds in which `origin` says where tokens come from.
    fn out_of_order(origin: impl Fn(&Law) -> Origin) -> f64 {
        let uniform = law(&[0.5, 0.5]);
        let mut total = 0.0;
        for (second, weight) in uniform.iter() {
            let copies = law(&if second == 0 { [0.9, 0.1] } else { [0.1, 0.9] });
            for (first, chance) in copies.iter() {
                let one = Proposal { token: first, origin: origin(&copies) };
                let two = Proposal { token: second, origin: origin(&uniform) };
                // 0 stands first when it was drafted and accepted, and then the second position is judged; or when it
                // took the place of what was rejected, and then the second position is the verifier's alone.
                let accepted = if first == 0 { one.chance(&uniform) } else { 0.0 };
                let then = f64::from(u8::from(second == 0)) * two.chance(&uniform)
                    + (1.0 - two.chance(&uniform)) * two.residual(&uniform).prob(0);
                let replaced = (1.0 - one.chance(&uniform)) * one.residual(&uniform).prob(0);
                total += weight * chance * (accepted * then + replaced * 0.5);
            }
        }
        total
    }

    #[test]
    fn the_law_of_the_revealing_pass_is_wrong_out_of_order() {
        assert!((out_of_order(|law| Origin::Drawn(law.clone())) - 0.35).abs() < 1e-12, "the counter-example");
        assert!((out_of_order(|_| Origin::Given) - 0.25).abs() < 1e-12);
    }
}
