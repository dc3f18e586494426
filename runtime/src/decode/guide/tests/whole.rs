//! Whole answers of every method, by a model that says anything.

use std::ops::ControlFlow;

use super::*;
use crate::decode::mock::Mock;
use crate::decode::policy::{CacheMode, StopAt};
use crate::decode::{Decoded, FinishReason, decode};
use dlx_ir::Mask;

fn answer(mock: &mut Mock, policy: &DecodePolicy, expression: &str, max_new: usize) -> Result<Decoded, DecodeError> {
    let resolved = policy.clone().resolve(mock)?.constrained(constraint(expression), mock)?;
    let noise = Noise::Seeded(policy.seed);
    decode(mock, resolved, &[5, 3, 1], max_new, 0, noise, &mut |_| ControlFlow::Continue(()))
}

/// Methods, and what their rows may attend.
fn methods() -> Vec<(&'static str, Mask, DecodePolicy)> {
    let block = Mask::BlockCausal(4);
    let full = |policy: DecodePolicy| DecodePolicy { block: 4, steps: 4, ..policy };
    vec![
        ("sdar", block, DecodePolicy::greedy(MASK, 4)),
        ("llada", Mask::Full, full(DecodePolicy::llada(MASK))),
        ("llada, the whole canvas", Mask::Full, DecodePolicy::llada(MASK)),
        ("llada, dual cache", Mask::Full, DecodePolicy { cache: CacheMode::Dual, ..full(DecodePolicy::llada(MASK)) }),
        ("dream", Mask::Full, full(DecodePolicy::dream(MASK))),
        (
            "dream, prefix cache",
            Mask::Full,
            DecodePolicy { cache: CacheMode::Prefix, ..full(DecodePolicy::dream(MASK)) },
        ),
        ("guided", Mask::Full, DecodePolicy { cfg_scale: 0.5, ..full(DecodePolicy::llada(MASK)) }),
        (
            "fast-dllm-v2",
            Mask::BlockCausal(8),
            DecodePolicy {
                sub_block: Some(crate::decode::policy::SubBlock { length: 4, cached: true }),
                ..DecodePolicy::fast_dllm_v2(MASK, 8)
            },
        ),
        ("autoregressive", Mask::Causal, DecodePolicy::autoregressive()),
        ("bd3lm", Mask::Full, full(DecodePolicy::bd3lm(MASK, Some(8), 4))),
        ("mdlm", Mask::Full, full(DecodePolicy::mdlm(MASK))),
    ]
}

#[test]
fn every_answer_of_every_method_is_allowed() {
    for (name, mask, policy) in methods() {
        for seed in 0..40 {
            for (expression, is_allowed) in LANGUAGES {
                let mut policy = DecodePolicy { stop_ids: STOPS.to_vec(), seed, ..policy.clone() };
                if seed % 3 == 1 {
                    policy.temperature = 1.3;
                }
                if seed % 3 == 2 {
                    (policy.temperature, policy.top_p, policy.top_k) = (0.7, 0.6, 3);
                }
                if seed % 4 == 3 {
                    policy.reveal =
                        Reveal::new(["factor", "random", "drawn", "entropy-bounded", "sequential"][seed as usize % 5]);
                }
                let max_new = 3 + seed as usize % 9;
                let mut mock = Mock::new(64, TOKENS.len(), &[64]).masked(mask).flat(1.0 + seed as f32);
                let decoded = answer(&mut mock, &policy, expression, max_new).unwrap();
                let end = decoded.ids.len().min(3 + max_new);
                let tokens = &decoded.ids[3..end];
                let tokens = match tokens.iter().position(|id| STOPS.contains(id)) {
                    Some(stop) => &tokens[..stop],
                    None => tokens,
                };
                let (_, text) =
                    ended(tokens).unwrap_or_else(|| panic!("{name} {expression} {seed}: {:?}", decoded.ids));
                assert!(is_allowed(&text), "{name} {expression} {seed}: {text}");
            }
        }
    }
}

#[test]
fn what_contradicts_a_constraint_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut DecodePolicy)| {
        let mut policy = policy();
        change(&mut policy);
        answer(&mut Mock::new(64, TOKENS.len(), &[64]), &policy, "a+b?", 8).unwrap_err().to_string()
    };
    assert!(refused(&|p| p.stop_ids.clear()).contains("`stop_ids` cannot be empty"));
    assert!(refused(&|p| p.stop_ids = vec![99]).contains("`stop_ids` cannot be empty"));
    assert!(refused(&|p| p.stop_ids.push(1)).contains("`stop_ids` cannot be tokens with a text"));
    assert!(refused(&|p| p.suppress_ids = vec![7, 8]).contains("`stop_ids` cannot be empty"));
    assert!(refused(&|p| p.suppress_ids = vec![2]).contains("`suppress_ids`"));
    assert!(refused(&|p| p.stop_at = StopAt::Revealed).contains("`stop_at`"));
    let infilled = || {
        let mut mock = Mock::new(64, TOKENS.len(), &[64]);
        let resolved = policy().resolve(&mock)?.constrained(constraint("a+b?"), &mock)?;
        decode(&mut mock, resolved, &[5, 0, 1], 4, 0, Noise::Seeded(0), &mut |_| ControlFlow::Continue(()))
    };
    assert!(matches!(infilled(), Err(DecodeError::ConstrainedInfill)));
    let small = Mock::new(64, TOKENS.len() - 4, &[64]);
    let policy = DecodePolicy { stop_ids: vec![4], ..policy() };
    let few = policy.resolve(&small).unwrap().constrained(constraint("a+b?"), &small);
    assert!(few.is_err());
}

#[test]
fn an_answer_that_cannot_be_that_short_is_refused() {
    let new = |expression: &str, max_new| {
        let mut mock = Mock::new(16, TOKENS.len(), &[16]).masked(Mask::BlockCausal(4));
        answer(&mut mock, &policy(), expression, max_new)
    };
    assert!(matches!(new("(a|b){3,}", 1), Err(DecodeError::NoRoom { shortest: 2, room: 1, asked: 1 })));
    assert!(new("(a|b){3,}", 2).is_ok());
    assert!(matches!(new("(abcc){8}", 99), Err(DecodeError::NoRoom { shortest: 16, room: 13, asked: 99 })));
}

#[test]
fn an_answer_ends_where_it_is_complete() {
    let mut mock = Mock::new(64, TOKENS.len(), &[64]).masked(Mask::BlockCausal(4));
    let decoded = answer(&mut mock, &policy(), "abcab|bac?|c", 12).unwrap();
    assert_eq!(decoded.finish, FinishReason::StopId);
    let (ended, _) = ended(&decoded.ids[3..decoded.settled]).unwrap();
    assert!(ended);
}
