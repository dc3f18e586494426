//! Choosing a token from a row of logits: temperature, top-k, top-p, and a draw.
//!
//! Invariant: the mask is never chosen, and equal values go to the lowest token id. A draw is `argmax(p / q)` with
//! q ~ Exp(1) per token, which is how PyTorch draws from a categorical distribution on a CPU; with recorded q the same
//! tokens come out. What a plain greedy decode needs never passes through here: it reads the head's statistics.

use super::noise::{Noise, NoiseRow};
use super::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
use crate::exec::RowStats;

/// A token id and its logit (or, after [`softmax`], its probability).
pub type Entry = (i32, f32);

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token and the statistics of the distribution that the policy reads its confidence from; `prob` is that of
    /// the chosen token, not of the most likely one.
    pub stats: RowStats,
    /// Entropy in nats at temperature 1, before any filter.
    pub entropy: f32,
}

/// Chooses a token from one row of raw logits, `[vocab]`. Greedy policies take the most likely token of the filtered
/// distribution at temperature 1.
///
/// LLaDA's Gumbel rule, `argmax(exp(l) / q^T)`, is a monotone function of `exp(l / T) / q` and so the same draw.
///
/// Returns `None` when no finite logit is left or a noise value was not recorded.
pub fn choose(logits: &[f32], policy: &DecodePolicy, noise: &Noise, at: NoiseRow) -> Option<Drawn> {
    let temperature = if policy.is_greedy() { 1.0 } else { policy.temperature };
    let all: Vec<Entry> = without(logits, &policy.suppress_ids);
    let mut scaled: Vec<Entry> = all.iter().map(|&(id, logit)| (id, logit / temperature)).collect();
    if scaled.iter().zip(&all).any(|(scaled, (_, logit))| logit.is_finite() && !scaled.1.is_finite()) {
        // So small a temperature that the quotients overflow. Those of the differences do so towards zero probability,
        // and what is left are the most likely tokens.
        let max = all.iter().map(|entry| entry.1).filter(|logit| logit.is_finite()).fold(f32::NEG_INFINITY, f32::max);
        scaled = all.iter().map(|&(id, logit)| (id, (logit - max) / temperature)).collect();
    }
    let mut kept: Vec<Entry> = scaled.iter().copied().filter(|entry| entry.1.is_finite()).collect();
    filter(&mut kept, policy.filter_order, policy.top_k, policy.top_p);
    let kept = softmax(&kept);

    let allowed = |entries: &[Entry]| -> Vec<Entry> {
        entries.iter().copied().filter(|&(id, value)| id != policy.mask_id && value.is_finite()).collect()
    };
    let mut choices = allowed(&kept);
    if choices.is_empty() {
        // The filters left the mask alone.
        choices = argmax(allowed(&all).into_iter()).map(|id| (id, 1.0)).into_iter().collect();
    }
    let token = if policy.is_greedy() {
        argmax(choices.into_iter())?
    } else {
        let mut exponential = noise.exponential(at);
        let scores: Option<Vec<Entry>> = choices.iter().map(|&(id, p)| Some((id, p / exponential(id)?))).collect();
        argmax(scores?.into_iter())?
    };

    let sure = |entries: &[Entry]| -> Vec<Entry> {
        entries.iter().copied().filter(|entry| !policy.unsure_ids.contains(&entry.0)).collect()
    };
    let stats = match policy.confidence_stage {
        ConfidenceStage::AfterFilters if policy.unsure_ids.is_empty() => stats(&kept, token),
        ConfidenceStage::AfterFilters => stats(&normalized(sure(&kept)), token),
        ConfidenceStage::BeforeFilters => stats(&softmax(&sure(&scaled)), token),
        ConfidenceStage::BeforeTemperature => stats(&softmax(&sure(&all)), token),
    };
    Some(Drawn { stats, entropy: entropy(&softmax(&all)) })
}

/// The entries of a row but for those of `ids`.
fn without(logits: &[f32], ids: &[i32]) -> Vec<Entry> {
    (0..).zip(logits.iter().copied()).filter(|(id, _)| !ids.contains(id)).collect()
}

fn normalized(mut probs: Vec<Entry>) -> Vec<Entry> {
    let sum: f32 = probs.iter().map(|entry| entry.1).sum();
    probs.iter_mut().for_each(|entry| entry.1 /= sum);
    probs
}

/// Removes the tail of a distribution. `entries` are `(id, logit)` with ascending ids and stay so; at least one stays.
/// `top_k` = 0 and `top_p` = 1 remove nothing.
///
/// Top-k keeps every entry that equals the k-th largest. Top-p keeps the entries, by falling probability, before which
/// the probabilities do not yet add up to more than `top_p`.
pub fn filter(entries: &mut Vec<Entry>, order: FilterOrder, top_k: usize, top_p: f32) {
    match order {
        FilterOrder::TopKTopP => {
            keep_top_k(entries, top_k);
            keep_top_p(entries, top_p);
        }
        FilterOrder::TopPTopK => {
            keep_top_p(entries, top_p);
            keep_top_k(entries, top_k);
        }
    }
}

fn keep_top_k(entries: &mut Vec<Entry>, top_k: usize) {
    if top_k == 0 || top_k >= entries.len() {
        return;
    }
    let mut logits: Vec<f32> = entries.iter().map(|entry| entry.1).collect();
    let (_, &mut smallest_kept, _) = logits.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
    entries.retain(|entry| entry.1 >= smallest_kept);
}

fn keep_top_p(entries: &mut Vec<Entry>, top_p: f32) {
    if top_p >= 1.0 || entries.is_empty() {
        return;
    }
    let probs = softmax(entries);
    let mut order: Vec<usize> = (0..probs.len()).collect();
    let by_prob = |a: &usize, b: &usize| probs[*b].1.total_cmp(&probs[*a].1).then(a.cmp(b));
    let (mut sum, mut kept, mut sorted) = (0.0f64, 0, 0);
    // The kept entries are few and the vocabulary is large: order only as much of it as the sum needs.
    while kept == sorted && sorted < order.len() {
        let end = (4 * sorted).max(64).min(order.len());
        if end < order.len() {
            order[sorted..].select_nth_unstable_by(end - sorted, by_prob);
        }
        order[sorted..end].sort_unstable_by(by_prob);
        for &at in &order[sorted..end] {
            if sum > f64::from(top_p) {
                break;
            }
            sum += f64::from(probs[at].1);
            kept += 1;
        }
        sorted = end;
    }
    order.truncate(kept);
    order.sort_unstable();
    *entries = order.iter().map(|&at| entries[at]).collect();
}

/// Probabilities of `(id, logit)` entries, in the same order. Sums in f64.
pub fn softmax(entries: &[Entry]) -> Vec<Entry> {
    let max = entries.iter().map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
    let mut probs: Vec<Entry> = entries.iter().map(|&(id, logit)| (id, libm::expf(logit - max))).collect();
    let sum: f64 = probs.iter().map(|entry| f64::from(entry.1)).sum();
    for entry in &mut probs {
        entry.1 = (f64::from(entry.1) / sum) as f32;
    }
    probs
}

fn argmax(entries: impl Iterator<Item = Entry>) -> Option<i32> {
    entries.fold(None, |best: Option<Entry>, entry| best.filter(|best| best.1 >= entry.1).or(Some(entry))).map(|e| e.0)
}

fn stats(probs: &[Entry], token: i32) -> RowStats {
    let (mut first, mut second) = (0.0f32, 0.0f32);
    for &(_, p) in probs {
        if p > first {
            (first, second) = (p, first);
        } else if p > second {
            second = p;
        }
    }
    let prob = probs.iter().find(|entry| entry.0 == token).map_or(0.0, |entry| entry.1);
    RowStats { best: token, prob, margin: first - second, entropy: entropy(probs) }
}

fn entropy(probs: &[Entry]) -> f32 {
    let sum: f64 = probs.iter().map(|entry| f64::from(entry.1)).filter(|&p| p > 0.0).map(|p| p * libm::log(p)).sum();
    -sum as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: NoiseRow = NoiseRow { pass: 0, position: 0 };

    fn ids(entries: &[Entry]) -> Vec<i32> {
        entries.iter().map(|entry| entry.0).collect()
    }

    fn filtered(logits: &[f32], order: FilterOrder, top_k: usize, top_p: f32) -> Vec<i32> {
        let mut entries: Vec<Entry> = (0..).zip(logits.iter().copied()).collect();
        filter(&mut entries, order, top_k, top_p);
        ids(&entries)
    }

    #[test]
    fn top_k_keeps_ties_with_the_last() {
        let logits = [1.0, 3.0, 2.0, 2.0, 0.0];
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 2, 1.0), [1, 2, 3]);
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 1, 1.0), [1]);
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, 1.0), [0, 1, 2, 3, 4]);
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 9, 1.0), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_always_keeps_the_first() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, 0.01), [0]);
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, 0.45), [0]);
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, 0.6), [0, 1]);
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, 0.99), [0, 1, 2]);
    }

    #[test]
    fn the_order_of_filters_matters() {
        // Top-k first renormalizes 0.5, 0.3 to 0.625, 0.375: the first alone exceeds 0.55.
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 2, 0.55), [0]);
        assert_eq!(filtered(&logits, FilterOrder::TopPTopK, 2, 0.55), [0, 1]);
    }

    #[test]
    fn the_mask_is_never_chosen_even_when_most_likely() {
        let mut policy = DecodePolicy::greedy(1, 4);
        let greedy = choose(&[0.0, 9.0, 1.0], &policy, &Noise::Seeded(0), AT).unwrap();
        assert_eq!(greedy.stats.best, 2);
        policy.temperature = 1.0;
        for seed in 0..200 {
            assert_ne!(choose(&[0.0, 9.0, 1.0], &policy, &Noise::Seeded(seed), AT).unwrap().stats.best, 1);
        }
    }

    #[test]
    fn a_filter_that_leaves_only_the_mask_does_not_choose_it() {
        let policy = DecodePolicy { top_k: 1, ..DecodePolicy::greedy(1, 4) };
        assert_eq!(choose(&[0.0, 9.0, 1.0], &policy, &Noise::Seeded(0), AT).unwrap().stats.best, 2);
    }

    #[test]
    fn suppressed_tokens_are_not_chosen_and_unsure_ones_have_no_confidence() {
        let mut policy = DecodePolicy { suppress_ids: vec![1], ..DecodePolicy::llada(0) };
        let logits = [-40.0, 9.0, 2.0, 1.0];
        let drawn = choose(&logits, &policy, &Noise::Seeded(0), AT).unwrap();
        assert_eq!(drawn.stats.best, 2);
        assert!((drawn.stats.prob - 0.731).abs() < 1e-3, "the distribution is that of what is left");
        for stage in [ConfidenceStage::BeforeTemperature, ConfidenceStage::BeforeFilters, ConfidenceStage::AfterFilters]
        {
            (policy.unsure_ids, policy.confidence_stage) = (vec![2], stage);
            let drawn = choose(&logits, &policy, &Noise::Seeded(0), AT).unwrap();
            assert_eq!((drawn.stats.best, drawn.stats.prob), (2, 0.0));
        }
        policy.unsure_ids = vec![3];
        assert_eq!(choose(&logits, &policy, &Noise::Seeded(0), AT).unwrap().stats.prob, 1.0);
    }

    #[test]
    fn greedy_ties_go_to_the_lowest_id() {
        let policy = DecodePolicy::greedy(0, 4);
        assert_eq!(choose(&[0.0, 1.0, 2.0, 2.0], &policy, &Noise::Seeded(0), AT).unwrap().stats.best, 2);
    }

    #[test]
    fn rows_without_a_finite_logit_choose_nothing() {
        let policy = DecodePolicy::greedy(0, 4);
        assert_eq!(choose(&[1.0, f32::NAN, f32::NAN], &policy, &Noise::Seeded(0), AT), None);
        assert_eq!(choose(&[1.0, f32::NEG_INFINITY], &policy, &Noise::Seeded(0), AT), None);
    }

    #[test]
    fn the_smallest_temperatures_are_greedy() {
        let logits = [-3.0, 88.0, 87.0, -90.0, 0.0];
        for temperature in [1e-3, 1e-30, 1e-37, f32::MIN_POSITIVE, 1e-40, f32::from_bits(1)] {
            for (top_k, top_p) in [(0, 1.0), (3, 1.0), (0, 0.9), (1, 0.5)] {
                for stage in [ConfidenceStage::AfterFilters, ConfidenceStage::BeforeFilters] {
                    let policy = DecodePolicy {
                        temperature,
                        top_k,
                        top_p,
                        confidence_stage: stage,
                        ..DecodePolicy::greedy(4, 4)
                    };
                    let drawn = choose(&logits, &policy, &Noise::Seeded(3), AT).unwrap();
                    assert_eq!(drawn.stats.best, 1, "{temperature:e}");
                    assert!(top_k == 1 || drawn.stats.prob == 1.0, "{temperature:e}: {:?}", drawn.stats);
                    assert!(drawn.stats.margin.is_finite() && drawn.entropy.is_finite());
                }
            }
        }
        // The mask is the most likely token, and all others have no probability left.
        let policy = DecodePolicy { temperature: 1e-40, ..DecodePolicy::greedy(1, 4) };
        assert_eq!(choose(&logits, &policy, &Noise::Seeded(3), AT).map(|drawn| drawn.stats.best), Some(2));
    }

    #[test]
    fn confidence_comes_from_the_stage_that_the_policy_names() {
        let mut policy = DecodePolicy { temperature: 1.0, top_k: 2, ..DecodePolicy::greedy(3, 4) };
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln(), f32::NEG_INFINITY];
        let before = choose(&logits, &policy, &Noise::Seeded(4), AT).unwrap();
        policy.confidence_stage = ConfidenceStage::AfterFilters;
        let after = choose(&logits, &policy, &Noise::Seeded(4), AT).unwrap();
        assert_eq!(before.stats.best, after.stats.best);
        assert!((after.stats.prob - before.stats.prob / 0.8).abs() < 1e-6);
        assert!((after.stats.margin - 0.25).abs() < 1e-6);
        assert!((before.stats.margin - 0.2).abs() < 1e-6);
        assert_eq!(before.entropy, after.entropy);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let policy = DecodePolicy { temperature: 1.0, ..DecodePolicy::greedy(3, 4) };
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln(), f32::NEG_INFINITY];
        let mut counts = [0usize; 4];
        for position in 0..6000 {
            let at = NoiseRow { position, ..AT };
            counts[choose(&logits, &policy, &Noise::Seeded(5), at).unwrap().stats.best as usize] += 1;
        }
        assert!((3450..3750).contains(&counts[0]), "{counts:?}");
        assert!((1680..1920).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[3], 0);
    }

    proptest! {
        #[test]
        fn top_p_equals_a_full_sort(
            logits in proptest::collection::vec(-8.0f32..8.0, 1..400),
            top_p in 0.01f32..0.999,
        ) {
            let entries: Vec<Entry> = (0..).zip(logits.iter().copied()).collect();
            let mut sorted = softmax(&entries);
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut sum = 0.0f64;
            let mut expected = Vec::new();
            for (id, p) in sorted {
                if sum > f64::from(top_p) {
                    break;
                }
                sum += f64::from(p);
                expected.push(id);
            }
            expected.sort_unstable();
            prop_assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, top_p), expected);
        }
    }
}
