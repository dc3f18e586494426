//! What is chosen, against a plain reference.

use proptest::prelude::*;

use super::*;
use crate::decode::noise::Recorded;
use crate::decode::policy::FilterOrder;

mod reference;

const AT: NoiseRow = NoiseRow { pass: 0, position: 0 };

fn choose(logits: &[f32], policy: &DecodePolicy, noise: &Noise, at: NoiseRow) -> Option<Drawn> {
    Sampler::default().choose(logits, policy, Choice::AsPolicy, Needs::ALL, noise, at)
}

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
fn min_p_compares_with_the_most_likely_token() {
    // 0.5, 0.3, 0.2: a part of 0.5 of the largest is 0.25, whatever top-p has left.
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln(), f32::NEG_INFINITY];
    let chosen = |min_p, top_k, top_p| {
        let policy = DecodePolicy { temperature: 1.0, min_p, top_k, top_p, ..DecodePolicy::greedy(3, 4) };
        let of = |seed| choose(&logits, &policy, &Noise::Seeded(seed), AT).unwrap().stats.best;
        (0..200).map(of).collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    for (top_k, top_p) in [(0, 1.0), (3, 1.0), (0, 0.95)] {
        assert_eq!(chosen(0.5, top_k, top_p), [0, 1]);
        assert_eq!(chosen(1.0, top_k, top_p), [0]);
        assert_eq!(chosen(0.39, top_k, top_p), [0, 1, 2]);
    }
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
    for stage in [ConfidenceStage::BeforeTemperature, ConfidenceStage::BeforeFilters, ConfidenceStage::AfterFilters] {
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
                let policy =
                    DecodePolicy { temperature, top_k, top_p, confidence_stage: stage, ..DecodePolicy::greedy(4, 4) };
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

/// Pseudo-random logits of this spread.
fn spread_row(vocab: usize, spread: f32) -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0
    };
    (0..vocab).map(|_| spread * ((0..6).map(|_| uniform()).sum::<f32>() - 3.0)).collect()
}

/// Policies that draw, one for each way through the filters.
fn drawing() -> Vec<DecodePolicy> {
    let filters = [(0, 1.0), (9, 1.0), (0, 0.9), (9, 0.8)];
    let orders = [FilterOrder::TopKTopP, FilterOrder::TopPTopK];
    let policy = |(top_k, top_p), filter_order| DecodePolicy {
        temperature: 0.8,
        top_k,
        top_p,
        filter_order,
        confidence_stage: ConfidenceStage::AfterFilters,
        ..DecodePolicy::greedy(3, 4)
    };
    filters.into_iter().flat_map(|filter| orders.map(|order| policy(filter, order))).collect()
}

/// Pearson's statistic of many seeds against the law that a policy states: logits over the temperature, filtered, without the
/// mask, normalized in f64 here.
#[test]
fn draws_follow_the_law() {
    const DRAWS: usize = 6000;
    let row = spread_row(40, 1.0);
    for policy in drawing() {
        let mut entries: Vec<Entry> = (0..).zip(row.iter().map(|logit| logit / policy.temperature)).collect();
        filter(&mut entries, policy.filter_order, policy.top_k, policy.top_p);
        entries.retain(|entry| entry.0 != policy.mask_id);
        let weights: Vec<f64> = entries.iter().map(|entry| f64::from(entry.1).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut counts = vec![0u32; row.len()];
        let mut sampler = Sampler::default();
        for seed in 0..DRAWS {
            let at = NoiseRow { pass: seed % 3, position: seed % 5 };
            let noise = Noise::Seeded(seed as u64);
            let drawn = sampler.choose(&row, &policy, Choice::AsPolicy, Needs::NOTHING, &noise, at).unwrap();
            counts[drawn.stats.best as usize] += 1;
        }
        let mut statistic = 0.0;
        let mut seen = 0;
        for (entry, weight) in entries.iter().zip(&weights) {
            let (count, expected) = (counts[entry.0 as usize], DRAWS as f64 * weight / sum);
            statistic += (f64::from(count) - expected).powi(2) / expected;
            seen += count as usize;
        }
        assert_eq!(seen, DRAWS, "only what the filters keep is drawn");
        // Mean and standard deviation of the statistic; seeds are fixed, so this fails always or never.
        let freedom = (entries.len() - 1) as f64;
        assert!(statistic < freedom + 4.0 * (2.0 * freedom).sqrt(), "{statistic} for {freedom}: {policy:?}");
    }
}

#[test]
fn choices_do_not_depend_on_the_instruction_set() {
    // Long enough for classes of weights, and no multiple of any number of lanes.
    let rows = [spread_row(5003, 0.0), spread_row(5003, 1.0), spread_row(5003, 4.0)];
    let choose = |kernels| {
        let mut sampler = Sampler::new(kernels);
        let mut drawn = Vec::new();
        for (position, row) in rows.iter().enumerate() {
            for policy in drawing() {
                let at = NoiseRow { pass: 0, position };
                let noise = Noise::Seeded(9);
                let d = sampler.choose(row, &policy, Choice::AsPolicy, Needs::ALL, &noise, at).unwrap();
                let numbers = [d.stats.prob, d.stats.margin, d.stats.entropy, d.entropy];
                drawn.push((d.stats.best, numbers.map(f32::to_bits)));
            }
        }
        drawn
    };
    let scalar = choose(kernels(Isa::Scalar).unwrap());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        assert_eq!(choose(kernels(isa).unwrap()), scalar, "{isa}");
    }
}

proptest! {
    #[test]
    fn top_p_equals_a_full_sort(
        logits in proptest::collection::vec(-8.0f32..8.0, 1..400),
        top_p in 0.01f32..0.999,
    ) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sorted: Vec<Entry> = (0..).zip(logits.iter().map(|logit| crate::cpu::exp(logit - max))).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let all: f64 = sorted.iter().map(|entry| f64::from(entry.1)).sum();
        let mut sum = 0.0f64;
        let mut expected = Vec::new();
        for (id, weight) in sorted {
            if sum > f64::from(top_p) * all {
                break;
            }
            sum += f64::from(weight);
            expected.push(id);
        }
        expected.sort_unstable();
        prop_assert_eq!(filtered(&logits, FilterOrder::TopKTopP, 0, top_p), expected);
    }
}

/// The same numbers, where 0 has one sign and what is no number equals itself.
fn same(a: f32, b: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// Checks a choice against the obvious computation, with everything needed and with nothing.
fn compare(sampler: &mut Sampler, logits: &[f32], policy: &DecodePolicy, noise: &Noise, at: NoiseRow) {
    let cold = DecodePolicy { temperature: 0.0, ..policy.clone() };
    for (choice, as_policy) in [(Choice::AsPolicy, policy), (Choice::MostLikely, &cold)] {
        let expected = reference::choose(logits, as_policy, noise, at);
        let drawn = sampler.choose(logits, policy, choice, Needs::ALL, noise, at);
        let equal = match (&drawn, &expected) {
            (Some(ours), Some(theirs)) => {
                ours.stats.best == theirs.stats.best
                    && same(ours.stats.prob, theirs.stats.prob)
                    && same(ours.stats.margin, theirs.stats.margin)
                    && same(ours.stats.entropy, theirs.stats.entropy)
                    && same(ours.entropy, theirs.entropy)
            }
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        assert!(equal, "{drawn:?} instead of {expected:?}: {choice:?}, {policy:?}, {noise:?}");
        let needs = [
            Needs::NOTHING,
            Needs { prob: true, ..Needs::NOTHING },
            Needs { margin: true, row_entropy: true, ..Needs::NOTHING },
            Needs { entropy: true, ..Needs::NOTHING },
        ];
        for needs in needs {
            let some = sampler.choose(logits, policy, choice, needs, noise, at);
            let of = |needed: bool, value: f32| if needed { value } else { f32::NAN };
            for (some, all) in some.iter().zip(&drawn) {
                assert_eq!(some.stats.best, all.stats.best);
                assert!(same(some.stats.prob, of(needs.prob, all.stats.prob)), "{needs:?}");
                assert!(same(some.stats.margin, of(needs.margin, all.stats.margin)), "{needs:?}");
                assert!(same(some.stats.entropy, of(needs.entropy, all.stats.entropy)), "{needs:?}");
                assert!(same(some.entropy, of(needs.row_entropy, all.entropy)), "{needs:?}");
            }
            assert_eq!(some.is_some(), drawn.is_some());
        }
    }
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        12 => -9.0f32..9.0,
        // Ties.
        4 => (-3i8..4).prop_map(f32::from),
        1 => -200.0f32..200.0,
        1 => Just(f32::NEG_INFINITY),
    ]
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    let odd = prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::MAX), Just(f32::MIN), Just(-0.0)];
    let rows = prop_oneof![proptest::collection::vec(logit(), 1..12), proptest::collection::vec(logit(), 1..700)];
    let spoil = proptest::option::weighted(0.1, (any::<proptest::sample::Index>(), odd));
    (rows, spoil, 0.0f32..3.0).prop_map(|(mut row, spoil, scale)| {
        row.iter_mut().for_each(|logit| *logit *= scale);
        if let Some((at, odd)) = spoil {
            let at = at.index(row.len());
            row[at] = odd;
        }
        row
    })
}

fn policy() -> impl Strategy<Value = DecodePolicy> {
    let temperature = prop_oneof![
        Just(0.0f32),
        Just(1.0),
        0.05f32..3.0,
        prop_oneof![Just(1e-3f32), Just(1e-30), Just(1e-37), Just(f32::MIN_POSITIVE), Just(1e-40), Just(1e30)],
    ];
    let top_k = prop_oneof![2 => Just(0usize), 1 => Just(1), 2 => 2usize..60, 1 => 60usize..900];
    let top_p = prop_oneof![
        2 => Just(1.0f32),
        3 => 0.01f32..1.0,
        1 => prop_oneof![Just(0.5f32), Just(0.25), Just(0.999_999), Just(1e-6)],
    ];
    let order = prop_oneof![Just(FilterOrder::TopKTopP), Just(FilterOrder::TopPTopK)];
    let stage = prop_oneof![
        Just(ConfidenceStage::BeforeTemperature),
        Just(ConfidenceStage::BeforeFilters),
        Just(ConfidenceStage::AfterFilters),
    ];
    let ids = || proptest::collection::vec(-1i32..16, 0..4);
    let ids = || prop_oneof![Just(Vec::new()), ids()];
    let min_p = prop_oneof![4 => Just(0.0f32), 2 => 0.0f32..0.5, 1 => Just(1.0f32)];
    (temperature, (top_k, top_p, min_p), order, stage, ids(), ids(), -1i32..14).prop_map(
        |(temperature, (top_k, top_p, min_p), filter_order, confidence_stage, suppress_ids, unsure_ids, mask_id)| {
            DecodePolicy {
                temperature,
                top_k,
                top_p,
                min_p,
                filter_order,
                confidence_stage,
                suppress_ids,
                unsure_ids,
                ..DecodePolicy::greedy(mask_id, 4)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn choices_equal_the_obvious_computation(
        rows in proptest::collection::vec(row(), 1..4),
        policy in policy(),
        seed in any::<u64>(),
    ) {
        let mut sampler = Sampler::default();
        for (position, row) in rows.iter().enumerate() {
            compare(&mut sampler, row, &policy, &Noise::Seeded(seed), NoiseRow { pass: 1, position });
        }
    }

    #[test]
    fn recorded_choices_equal_the_obvious_computation(
        row in row(),
        policy in policy(),
        numbers in proptest::collection::vec(prop_oneof![8 => 0.0f32..4.0, 1 => Just(f32::NAN), 1 => Just(0.0)], 0..600),
    ) {
        let tokens = std::collections::BTreeMap::from([(0, numbers)]);
        let noise = Noise::Recorded(vec![Recorded { tokens, ..Recorded::default() }]);
        compare(&mut Sampler::default(), &row, &policy, &noise, AT);
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(512)
}

#[test]
fn choices_of_a_large_vocabulary_equal_the_obvious_computation() {
    let mut sampler = Sampler::default();
    for (position, (spread, peak)) in [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (3.0, 20.0)].into_iter().enumerate() {
        let mut row = spread_row(20_001, spread);
        row[77] += peak;
        for (top_k, top_p) in [(0, 1.0), (50, 1.0), (0, 0.95), (50, 0.9), (0, 0.999_999_9)] {
            for (mask_id, order) in [(77, FilterOrder::TopKTopP), (3, FilterOrder::TopPTopK)] {
                let policy = DecodePolicy {
                    temperature: 0.7,
                    top_k,
                    top_p,
                    filter_order: order,
                    confidence_stage: ConfidenceStage::AfterFilters,
                    ..DecodePolicy::greedy(mask_id, 4)
                };
                compare(&mut sampler, &row, &policy, &Noise::Seeded(9), NoiseRow { pass: 0, position });
            }
        }
    }
}
