//! Races whose trials are made up: what must win is known.

use std::convert::Infallible;

use dlx_runtime::decode::policy::CacheMode;
use dlx_runtime::decode::{DecodePolicy, Reveal};

use super::*;

/// Settings of which number i answers `right(i)` of ten prompts in `i + 1` passes of a millisecond.
fn race(count: usize, budget: Option<Duration>, right: fn(usize) -> usize) -> Outcome {
    let setting = |i: usize| Settings {
        reveal: Reveal::new("static"),
        steps: i + 1,
        block: 64,
        cache: CacheMode::CommitBlock,
        draft: None,
    };
    let settings: Vec<_> = (0..count).map(setting).collect();
    let race = Race { settings: &settings, prompts: 200, max_new: 64, seed: 7, budget };
    let mut run = |setting: usize, prompt: usize| {
        let passes = setting + 1;
        let agreement_ppm = if prompt % 10 < right(setting) { 1_000_000 } else { 0 };
        let (prefill_ns, total_ns) = (500_000, 500_000 + 1_000_000 * passes as u64);
        let (prompt_tokens, tokens, prefills) = (10, 20, 1);
        Ok::<_, Infallible>(Trial {
            setting,
            prompt,
            agreement_ppm,
            prompt_tokens,
            tokens,
            prefills,
            passes,
            prefill_ns,
            total_ns,
        })
    };
    race.run(&|_| {}, &mut run).unwrap_or_else(|never| match never {})
}

#[test]
fn the_front_is_found_and_monotone() {
    // Every fourth setting is on the front, the three behind it cost more and agree less.
    let outcome = race(32, None, |i| if i % 4 == 0 { 2 + i / 4 } else { 1 });
    let steps: Vec<_> = outcome.points.iter().map(|p| p.settings.steps).collect();
    assert_eq!(steps, [1, 5, 9, 13, 17, 21, 25, 29]);
    for pair in outcome.points.windows(2) {
        assert!(pair[0].seconds.mean < pair[1].seconds.mean && pair[0].agreement.mean < pair[1].agreement.mean);
        assert!(pair[0].passes.mean < pair[1].passes.mean);
    }
    let last = outcome.rounds.last().unwrap();
    assert_eq!(last.prompts, 200);
    assert!(last.settings.len() < 12, "{last:?}");
    let all = 32 * 200;
    assert!(outcome.trials.len() < all / 2, "{} trials of {all}", outcome.trials.len());
    let cost = outcome.points[1].cost;
    assert!((cost.prompt_token - 50e-6).abs() < 1e-12 && (cost.pass - 1e-3).abs() < 1e-12, "{cost:?}");
    assert!((cost.answer - 5e-3).abs() < 1e-12 && (cost.position - 5e-3 / 64.0).abs() < 1e-12, "{cost:?}");
}

#[test]
fn nothing_is_asked_twice_and_the_careful_one_always() {
    let outcome = race(32, None, |i| if i == 0 { 0 } else { 5 });
    let mut asked: Vec<_> = outcome.trials.iter().map(|t| (t.setting, t.prompt)).collect();
    assert_eq!(asked.iter().filter(|(setting, _)| *setting == 0).count(), 200);
    let all = asked.len();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), all);
}

#[test]
fn a_budget_takes_prompts_away() {
    let spent = |outcome: &Outcome| outcome.trials.iter().map(|t| t.total_ns).sum::<u64>();
    let free = race(32, None, |_| 5);
    let budget = Duration::from_nanos(spent(&free) * 6 / 10);
    let short = race(32, Some(budget), |_| 5);
    assert!(u128::from(spent(&short)) <= budget.as_nanos() * 11 / 10, "{} of {budget:?}", spent(&short));
    let prompts = short.rounds.last().unwrap().prompts;
    assert!((MIN_PROMPTS..200).contains(&prompts), "{prompts}");
    let none = race(32, Some(Duration::from_nanos(1)), |_| 5);
    assert_eq!((none.rounds.len(), none.trials.len()), (1, 32 * MIN_PROMPTS), "the first round runs in any case");
}

#[test]
fn intervals_are_those_of_the_books() {
    // Wilson's interval of 8 of 10: 0.490 to 0.943.
    let wilson = stats::wilson(0.8, 10);
    assert!((wilson.low - 0.4902).abs() < 1e-4 && (wilson.high - 0.9433).abs() < 1e-4, "{wilson:?}");
    let (all, none) = (stats::wilson(1.0, 10), stats::wilson(0.0, 10));
    assert!((all.low - 0.7225).abs() < 1e-4 && all.high == 1.0 && none.low == 0.0, "{all:?} {none:?}");
    // The mean of 0..100 is 49.5 with a standard error of 2.87.
    let values: Vec<f64> = (0..100).map(f64::from).collect();
    let mean = stats::bootstrap(&values, 3);
    assert!((mean.low - 43.9).abs() < 1.0 && (mean.high - 55.1).abs() < 1.0, "{mean:?}");
    assert_eq!(stats::bootstrap(&values, 3), mean);
    assert_eq!(stats::upper(values), 97.0);
}

#[test]
fn grids_hold_what_a_family_can_change() {
    let causal = grid::settings(&DecodePolicy::autoregressive(), 256, false);
    assert_eq!(causal, [grid::careful(&DecodePolicy::autoregressive())]);
    let sdar = grid::settings(&DecodePolicy::greedy(9, 4), 256, false);
    assert!(sdar.iter().all(|s| s.block == 4 && s.cache == CacheMode::CommitBlock));
    assert!(sdar.len() > 12, "{}", sdar.len());
    let llada = grid::settings(&DecodePolicy::llada(9), 64, false);
    for block in [16, 32, 64] {
        for cache in [CacheMode::None, CacheMode::Prefix, CacheMode::Dual] {
            assert!(llada.iter().any(|s| (s.block, s.cache) == (block, cache)), "{block} {cache:?}");
        }
    }
    assert!(llada[1..].iter().all(|s| *s != llada[0]), "none twice");
}

#[test]
fn a_drafter_makes_lengths_of_drafts_what_is_swept() {
    let causal = DecodePolicy::autoregressive();
    let swept = grid::settings(&causal, 256, true);
    assert_eq!((&swept[0], swept.len() > 4), (&grid::careful(&causal), true));
    assert!(swept[1..].iter().all(|s| s.draft.is_some_and(|draft| draft > 1) && s.block == swept[0].block));
}
