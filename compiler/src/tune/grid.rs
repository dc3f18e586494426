//! The settings that a sweep tries for a model: reveal rules with their numbers, steps, blocks and caches; for a model that
//! verifies what another drafts, lengths of drafts.
//!
//! Deliberately absent: rules that draw positions at random, whose agreement is that of one seed; `at-least`, which differs
//! from `threshold` only in what a confidence equal to the threshold does; what the model fixes (grid, shift, lead).

use dlx_runtime::decode::policy::{Attention, CacheMode};
use dlx_runtime::decode::{DecodePolicy, Reveal};
use dlx_runtime::policies::Settings;

/// A rule, its parameter with the values to try, and how many positions of a block a step is due at least.
struct Sweep {
    rule: &'static str,
    param: Option<(&'static str, &'static [f32])>,
    due: &'static [usize],
}

/// What is tried of each rule.
const SWEEPS: &[Sweep] = &[
    Sweep { rule: "static", param: None, due: &[1, 2, 4] },
    Sweep { rule: "sequential", param: None, due: &[1, 2] },
    Sweep { rule: "threshold", param: Some(("threshold", &[0.5, 0.6, 0.7, 0.8, 0.9, 0.95])), due: &[1] },
    Sweep { rule: "factor", param: Some(("factor", &[0.5, 1.0, 2.0])), due: &[1] },
    Sweep { rule: "entropy-bounded", param: Some(("bound", &[0.1, 0.35, 1.0])), due: &[1] },
    Sweep { rule: "capped-threshold", param: Some(("threshold", &[0.8])), due: &[2, 4] },
];

/// Lengths of drafts.
const DRAFTS: [usize; 6] = [2, 3, 4, 6, 8, 16];

/// The most careful setting: one token per step, in the model's own blocks, without approximate caches.
pub fn careful(policy: &DecodePolicy) -> Settings {
    let cache = if policy.commits() { policy.cache } else { CacheMode::None };
    Settings { reveal: Reveal::new("static"), steps: policy.block, block: policy.block, cache, draft: None }
}

/// All settings for answers of at most `max_new` tokens, with a drafter or without, the careful one first and none twice.
pub fn settings(policy: &DecodePolicy, max_new: usize, drafts: bool) -> Vec<Settings> {
    let mut all = vec![careful(policy)];
    if drafts {
        // What is verified is decoded token by token.
        all.extend(DRAFTS.map(|draft| Settings { draft: Some(draft), ..careful(policy) }));
        return all;
    }
    for block in blocks(policy, max_new) {
        for cache in caches(policy) {
            for sweep in SWEEPS {
                for &due in sweep.due.iter().filter(|due| **due <= block) {
                    let rule = Reveal::new(sweep.rule);
                    let reveals: Vec<Reveal> = match sweep.param {
                        Some((name, values)) => values.iter().map(|&v| rule.clone().with(name, v)).collect(),
                        None => vec![rule],
                    };
                    all.extend(reveals.into_iter().map(|reveal| Settings {
                        reveal,
                        steps: block / due,
                        block,
                        cache,
                        draft: None,
                    }));
                }
            }
        }
    }
    // A block of one position gives a rule no choice.
    all.retain(|s| s.block > 1 || *s == careful(policy));
    let mut unique: Vec<Settings> = Vec::with_capacity(all.len());
    for setting in all {
        if !unique.contains(&setting) {
            unique.push(setting);
        }
    }
    unique
}

/// Block lengths: half, once and twice the model's own, where its attention does not fix it.
fn blocks(policy: &DecodePolicy, max_new: usize) -> Vec<usize> {
    let own = policy.block;
    if policy.attention != Attention::Full {
        return vec![own];
    }
    let others = [own / 2, own.saturating_mul(2)].into_iter().filter(|b| (2..=max_new).contains(b));
    others.chain([own]).collect()
}

fn caches(policy: &DecodePolicy) -> Vec<CacheMode> {
    let own = [policy.cache];
    let others = [CacheMode::None, CacheMode::Prefix, CacheMode::Dual];
    let others = others.into_iter().filter(|c| policy.attention == Attention::Full && *c != policy.cache);
    own.into_iter().chain(others).collect()
}
