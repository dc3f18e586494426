//! The same choice, computed the obvious way: every probability and every number, in new vectors.
//!
//! Only for comparison: nothing here is shared with what it checks but [`softmax`].

use super::super::{Drawn, Entry, softmax};
use crate::decode::noise::{Noise, NoiseRow};
use crate::decode::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
use crate::exec::RowStats;

/// Chooses a token from one row of raw logits, `[vocab]`. Greedy policies take the most likely token of the filtered
/// distribution at temperature 1.
///
/// LLaDA's Gumbel rule, `argmax(exp(l) / q^T)`, is a monotone function of `exp(l / T) / q` and so the same draw.
///
/// Returns `None` when no finite logit is left or a noise value was not recorded.
pub(super) fn choose(logits: &[f32], policy: &DecodePolicy, noise: &Noise, at: NoiseRow) -> Option<Drawn> {
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
    let largest = kept.iter().map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
    kept.retain(|entry| crate::cpu::exp(entry.1 - largest) >= policy.min_p);
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
pub(super) fn filter(entries: &mut Vec<Entry>, order: FilterOrder, top_k: usize, top_p: f32) {
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
    let max = entries.iter().map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = entries.iter().map(|entry| crate::cpu::exp(entry.1 - max)).collect();
    let aim = f64::from(top_p) * weights.iter().copied().map(f64::from).sum::<f64>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let by_weight = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let (mut sum, mut kept, mut sorted) = (0.0f64, 0, 0);
    // The kept entries are few and the vocabulary is large: order only as much of it as the sum needs.
    while kept == sorted && sorted < order.len() {
        let end = (4 * sorted).max(64).min(order.len());
        if end < order.len() {
            order[sorted..].select_nth_unstable_by(end - sorted, by_weight);
        }
        order[sorted..end].sort_unstable_by(by_weight);
        for &at in &order[sorted..end] {
            if sum > aim {
                break;
            }
            sum += f64::from(weights[at]);
            kept += 1;
        }
        sorted = end;
    }
    order.truncate(kept);
    order.sort_unstable();
    *entries = order.iter().map(|&at| entries[at]).collect();
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
