//! Unit tests of decoding, on an executor without a model.

mod adjusted;
mod beside;
mod chosen;

use proptest::prelude::*;

use super::*;
use crate::decode::mock::{Call, Mock};
use crate::decode::policy::{BlockGrid, ConfidenceStage, FirstRow, PromptTail, Reveal, SubBlock};
use crate::decode::reveal::RevealRule;
use crate::decode::{DecodePolicy, decode};
use crate::exec::ExecError;

fn run(mock: &mut Mock, policy: &DecodePolicy, prompt: &[i32], max_new: usize) -> Result<Decoded, DecodeError> {
    let resolved = policy.clone().resolve(mock).map_err(DecodeError::from)?;
    decode(mock, resolved, prompt, max_new, 0, Noise::Seeded(policy.seed), &mut |_| ControlFlow::Continue(()))
}

fn greedy() -> DecodePolicy {
    DecodePolicy::greedy(0, 4)
}

#[test]
fn prefills_whole_blocks_decodes_and_commits() {
    let mut mock = Mock::new(64, 32, &[4, 8]);
    let prompt: Vec<i32> = (1..12).collect();
    let decoded = run(&mut mock, &greedy(), &prompt, 4).unwrap();
    assert_eq!(decoded.ids.len(), 16);
    assert_eq!(&decoded.ids[..11], &prompt[..]);
    assert!(!decoded.ids.contains(&0));
    assert_eq!(decoded.finish, FinishReason::MaxTokens);
    assert_eq!(decoded.passes, Passes { prefill: 1, denoise: 1 + 4, commit: 2, head: 5 });
    assert_eq!(mock.calls[0], Call::Step { slot: 0, at: 0, len: 8, visible: 8 });
    assert_eq!(mock.calls[1], Call::Step { slot: 0, at: 8, len: 4, visible: 12 });
    assert_eq!(mock.calls[2], Call::Head(vec![3]), "only the masked row of the shared block");
    assert_eq!(mock.calls[3], Call::Step { slot: 0, at: 8, len: 4, visible: 12 }, "the commit has no head");
    assert_eq!(mock.calls[5], Call::Head(vec![0, 1, 2, 3]));
}

#[test]
fn long_prompts_are_prefilled_in_chunks_of_whole_blocks() {
    let mut mock = Mock::new(64, 32, &[4, 10]);
    let decoded = run(&mut mock, &greedy(), &[5; 21], 3).unwrap();
    let steps: Vec<_> = mock.calls.iter().take(3).cloned().collect();
    assert_eq!(steps[0], Call::Step { slot: 0, at: 0, len: 8, visible: 8 });
    assert_eq!(steps[1], Call::Step { slot: 0, at: 8, len: 8, visible: 16 });
    assert_eq!(steps[2], Call::Step { slot: 0, at: 16, len: 4, visible: 20 });
    assert_eq!(decoded.passes.prefill, 3);
}

#[test]
fn stops_after_the_block_that_holds_a_stop_id() {
    let mut mock = Mock::new(64, 32, &[8]);
    mock.say(13, 31);
    let policy = DecodePolicy { stop_ids: vec![31], ..greedy() };
    let decoded = run(&mut mock, &policy, &[5; 6], 30).unwrap();
    assert_eq!(decoded.finish, FinishReason::StopId);
    assert_eq!((decoded.ids.len(), decoded.settled), (36, 16));
    assert_eq!(decoded.ids[13], 31);
    assert!(decoded.ids[16..].iter().all(|&id| id == 0));
    assert_eq!(decoded.passes.commit, 3, "the last block is committed too");
}

#[test]
fn a_stop_id_in_the_prompt_stops_nothing() {
    let mut mock = Mock::new(64, 32, &[8]);
    let policy = DecodePolicy { stop_ids: vec![31], ..greedy() };
    assert_eq!(run(&mut mock, &policy, &[31; 6], 6).unwrap().finish, FinishReason::MaxTokens);
}

#[test]
fn ends_cleanly_where_the_caches_end() {
    let mut mock = Mock::new(18, 32, &[8]);
    let decoded = run(&mut mock, &greedy(), &[5; 6], usize::MAX).unwrap();
    assert_eq!((decoded.finish, decoded.ids.len()), (FinishReason::ContextFull, 16));
    assert!(!decoded.ids.contains(&0));
    let decoded = run(&mut mock, &greedy(), &[5; 6], 10).unwrap();
    assert_eq!((decoded.finish, decoded.ids.len()), (FinishReason::MaxTokens, 16));
    let error = run(&mut mock, &greedy(), &[5; 16], 1).unwrap_err();
    assert!(error.to_string().contains("at most 15 tokens"), "{error}");
    assert_eq!(run(&mut mock, &greedy(), &[5; 15], 1).unwrap().ids.len(), 16);
}

#[test]
fn bad_prompts_are_typed_errors() {
    let mut mock = Mock::new(16, 32, &[8]);
    assert!(matches!(run(&mut mock, &greedy(), &[], 4), Err(DecodeError::EmptyPrompt)));
    assert!(matches!(run(&mut mock, &greedy(), &[1], 0), Err(DecodeError::ZeroMaxNew)));
    assert!(matches!(run(&mut mock, &greedy(), &[1, 32], 4), Err(DecodeError::TokenId { position: 1, id: 32 })));
    assert!(matches!(run(&mut mock, &greedy(), &[-1], 4), Err(DecodeError::TokenId { position: 0, id: -1 })));
    assert!(mock.calls.is_empty());
}

#[test]
fn a_device_error_comes_out() {
    let mut mock = Mock::new(16, 32, &[8]);
    mock.fail_after(3);
    assert!(matches!(run(&mut mock, &greedy(), &[1], 8), Err(DecodeError::Exec(ExecError::Device(_)))));
}

#[test]
fn a_model_that_answers_with_the_mask_or_no_number_is_an_error_not_a_loop() {
    let mut mock = Mock::new(16, 32, &[8]);
    mock.say(2, 0);
    assert!(matches!(run(&mut mock, &greedy(), &[1], 8), Err(DecodeError::BadRow { position: 2 })));
    let mut mock = Mock::new(16, 32, &[8]);
    mock.say_with(3, 7, f32::NAN);
    assert!(matches!(run(&mut mock, &greedy(), &[1], 8), Err(DecodeError::NotFinite { position: 3, .. })));
}

#[test]
fn a_schedule_shorter_than_the_rule_needs_still_finishes_the_block() {
    let mut mock = Mock::new(16, 32, &[8]);
    let policy = DecodePolicy {
        steps: 1,
        block: 8,
        reveal: Reveal::new("entropy-bounded").with("bound", 0.0),
        ..DecodePolicy::greedy(0, 8)
    };
    let decoded = run(&mut mock, &policy, &[1], 7).unwrap();
    assert_eq!(decoded.passes.denoise, 7);
    assert!(!decoded.ids.contains(&0));
}

#[test]
fn a_rule_that_draws_ends_where_its_schedule_is_due_nothing() {
    let policy = DecodePolicy { steps: 1 << 16, reveal: Reveal::new("random"), ..greedy() };
    for curve in ["even", "even-block", "linear"] {
        let policy = DecodePolicy { schedule: crate::decode::Schedule::new(curve), ..policy.clone() };
        let decoded = run(&mut Mock::new(64, 32, &[8]), &policy, &[5; 4], 12).unwrap();
        assert!(decoded.passes.denoise <= 3 * 5, "{curve}: {:?}", decoded.passes);
    }
}

#[test]
fn a_rule_that_never_reveals_is_overruled() {
    static IDLE: RevealRule = RevealRule {
        name: "idle",
        doc: "",
        params: &[],
        random: false,
        carries: false,
        entropy: false,
        ordered: false,
        reveal: |_, _| {},
    };
    let (mut mock, policy) = (Mock::new(16, 32, &[8]), DecodePolicy { steps: 2, ..greedy() });
    let resolved = Resolved { rule: &IDLE, ..policy.resolve(&mock).unwrap() };
    let ignore = &mut |_: Moment<'_>| ControlFlow::Continue(());
    let decoded = decode(&mut mock, resolved, &[5], 3, 0, Noise::Seeded(0), ignore).unwrap();
    assert_eq!((decoded.settled, decoded.passes.denoise), (4, 2 + 4 + 1));
    assert!(!decoded.ids.contains(&0));
}

fn steps(mock: &Mock) -> Vec<(usize, usize, usize)> {
    let step = |call: &Call| match *call {
        Call::Step { slot, at, len, visible } => Some((slot * 100 + at, len, visible)),
        _ => None,
    };
    mock.calls.iter().filter_map(step).collect()
}

fn heads(mock: &Mock) -> Vec<Vec<usize>> {
    let head = |call: &Call| match call {
        Call::Head(rows) | Call::Logits(rows) => Some(rows.clone()),
        Call::Step { .. } => None,
    };
    mock.calls.iter().filter_map(head).collect()
}

#[test]
fn caches_of_full_attention_feed_less_and_less() {
    let run_with = |cache| {
        let mut mock = Mock::new(64, 32, &[32]);
        let policy =
            DecodePolicy { cache, block: 4, steps: 2, reveal: Reveal::new("static"), ..DecodePolicy::llada(0) };
        assert!(!run(&mut mock, &policy, &[5; 6], 8).unwrap().ids.contains(&0));
        assert_eq!(heads(&mock)[0].len(), 4, "only rows of the block");
        steps(&mock)
    };
    assert_eq!(run_with(CacheMode::None), [(0, 14, 14); 4]);
    assert_eq!(run_with(CacheMode::Prefix), [(0, 14, 14), (6, 8, 14), (0, 14, 14), (10, 4, 14)]);
    assert_eq!(run_with(CacheMode::Dual), [(0, 14, 14), (6, 4, 14), (0, 14, 14), (10, 4, 14)]);
}

#[test]
fn a_lead_decides_the_first_token_of_a_block() {
    let mut mock = Mock::new(64, 32, &[32]);
    mock.say(5, 9);
    let policy =
        DecodePolicy { cache: CacheMode::Dual, block: 4, reveal: Reveal::new("static"), ..DecodePolicy::dream(0) };
    assert_eq!(run(&mut mock, &policy, &[5; 6], 4).unwrap().ids[6], 9);
    assert_eq!(heads(&mock)[..2], [vec![5], vec![0, 1, 2]]);

    let mut mock = Mock::new(64, 32, &[32]);
    mock.say(2, 9);
    let decoded = run(&mut mock, &DecodePolicy::autoregressive(), &[5; 3], 3).unwrap();
    assert_eq!((decoded.ids.len(), decoded.ids[3]), (6, 9));
    assert_eq!(steps(&mock), [(0, 3, 3), (3, 1, 4), (4, 1, 5)], "the last token is never fed");
    assert_eq!(heads(&mock), [[2], [0], [0]]);
}

#[test]
fn cached_sub_blocks_are_fed_alone_once_their_first_position_is_known() {
    let mut mock = Mock::new(64, 32, &[8]);
    let policy = DecodePolicy {
        sub_block: Some(SubBlock { length: 4, cached: true }),
        reveal: Reveal::new("sequential"),
        ..DecodePolicy::fast_dllm_v2(0, 8)
    };
    let decoded = run(&mut mock, &policy, &[5; 8], 9).unwrap();
    assert_eq!((decoded.ids.len(), decoded.finish), (17, FinishReason::MaxTokens));
    let (whole, first, second) = ((8, 8, 16), (8, 4, 16), (12, 4, 16));
    let expected = [(0, 8, 8), whole, first, first, whole, second, second, second, whole];
    assert_eq!(steps(&mock), expected, "prefill, two sub-blocks, commit");
    assert_eq!(heads(&mock)[0], [7], "the prefill leads");
}

#[test]
fn hidden_tokens_get_no_cache_row() {
    let mut mock = Mock::new(64, 32, &[8]);
    mock.say(5, 30);
    let policy = DecodePolicy::bd3lm(0, Some(30), 4);
    let decoded = run(&mut mock, &policy, &[5, 30, 6, 7, 8], 8).unwrap();
    assert_eq!(decoded.ids[6], 30);
    let steps = steps(&mock);
    assert_eq!(steps[..3], [(0, 1, 1), (1, 3, 4), (4, 4, 8)], "the prompt's first block is short");
    assert_eq!(steps[6..8], [(4, 3, 7), (7, 4, 11)], "the commit leaves the hidden token out");
}

#[test]
fn guidance_runs_a_second_sequence_with_the_prompt_masked() {
    let policy = DecodePolicy { cfg_scale: 0.5, ..DecodePolicy::bd3lm(0, None, 4) };
    let mut mock = Mock::new(64, 32, &[8]);
    run(&mut mock, &policy, &[5; 4], 4).unwrap();
    assert_eq!(steps(&mock)[..4], [(0, 4, 4), (100, 4, 4), (4, 4, 8), (104, 4, 8)]);
    let without = run(&mut mock, &DecodePolicy { cfg_scale: 0.0, ..policy.clone() }, &[5; 4], 4).unwrap();
    let guided = run(&mut mock, &DecodePolicy { cfg_scale: 50.0, ..policy }, &[5; 4], 4).unwrap();
    assert_ne!(without.ids, guided.ids);
}

#[test]
fn a_shifted_block_can_borrow_the_row_before_it() {
    let policy = DecodePolicy { logit_shift: 1, first_row: FirstRow::Before, ..DecodePolicy::bd3lm(0, None, 4) };
    let mut mock = Mock::new(64, 32, &[8]);
    mock.say(3, 9);
    let decoded = run(&mut mock, &policy, &[5; 4], 4).unwrap();
    assert_eq!(decoded.ids[4], 9);
    assert_eq!(heads(&mock)[..2], [vec![3], vec![0, 1, 2]]);
}

#[test]
fn a_prefilled_prompt_tail_is_fed_again_by_the_commit_only() {
    let policy = DecodePolicy {
        grid: BlockGrid::Absolute,
        prompt_tail: PromptTail::Prefilled,
        steps: 1,
        ..DecodePolicy::bd3lm(0, None, 4)
    };
    let mut mock = Mock::new(64, 32, &[8]);
    run(&mut mock, &policy, &[5; 6], 4).unwrap();
    assert_eq!(steps(&mock), [(0, 4, 4), (4, 2, 6), (6, 2, 8), (4, 4, 8), (8, 2, 10)]);
}

#[test]
fn stop_tokens_end_decoding_when_the_policy_says() {
    let stopped = |stop_at, rule: &str| {
        let mut mock = Mock::new(64, 32, &[16]);
        mock.say(6, 31);
        let policy = DecodePolicy {
            stop_at,
            stop_ids: vec![31],
            sub_block: Some(SubBlock { length: 4, cached: false }),
            logit_shift: 0,
            lead: Lead::None,
            reveal: Reveal::new(rule),
            ..DecodePolicy::fast_dllm_v2(0, 8)
        };
        let decoded = run(&mut mock, &policy, &[5; 4], 20).unwrap();
        assert_eq!((decoded.finish, decoded.passes.commit), (FinishReason::StopId, 0));
        (decoded.settled, decoded.passes.denoise, decoded.ids[4..8].iter().filter(|&&id| id == 0).count())
    };
    assert_eq!(stopped(StopAt::Revealed, "static"), (4, 1, 3), "the scripted token is the surest");
    assert_eq!(stopped(StopAt::Settled, "sequential"), (7, 3, 1));
    assert_eq!(stopped(StopAt::SubBlock, "sequential"), (8, 4, 0));
    assert_eq!(stopped(StopAt::Block, "sequential"), (8, 4, 0));
}

#[test]
fn masks_in_the_prompt_are_filled_in() {
    let mut prompt = vec![5; 12];
    (prompt[2], prompt[9]) = (0, 0);
    for policy in [DecodePolicy::llada(0), DecodePolicy { block: 4, ..DecodePolicy::mdlm(0) }, greedy()] {
        for max_new in [0, 3] {
            let mut mock = Mock::new(64, 32, &[32]);
            let decoded = run(&mut mock, &policy, &prompt, max_new).unwrap();
            assert!(!decoded.ids.contains(&0));
            assert_eq!(decoded.ids.len(), if max_new == 3 && policy == greedy() { 16 } else { 12 + max_new });
            assert!((0..12).all(|at| prompt[at] == 0 || decoded.ids[at] == 5));
        }
    }
    let mut mock = Mock::new(64, 32, &[32]);
    assert!(matches!(run(&mut mock, &DecodePolicy::mdlm(0), &[5; 3], 0), Err(DecodeError::ZeroMaxNew)));
}

#[test]
fn what_one_step_leaves_of_its_quota_the_next_may_use() {
    let mut mock = Mock::new(64, 32, &[32]);
    let policy = DecodePolicy {
        steps: 2,
        block: 8,
        reveal: Reveal::new("capped-threshold").with("threshold", 2.0),
        ..DecodePolicy::dream(0)
    };
    let decoded = run(&mut mock, &policy, &[5; 3], 8).unwrap();
    assert_eq!(decoded.passes.denoise, 8, "nothing but the best is ever accepted");
    let policy = DecodePolicy { reveal: Reveal::new("capped-threshold").with("threshold", 0.0), ..policy };
    assert_eq!(run(&mut mock, &policy, &[5; 3], 8).unwrap().passes.denoise, 2);
}

#[test]
fn shifted_logits_come_from_the_row_before() {
    let mut mock = Mock::new(16, 32, &[8]);
    let policy = DecodePolicy { logit_shift: 1, ..greedy() };
    run(&mut mock, &policy, &[1, 2, 3, 4, 5], 3).unwrap();
    assert!(mock.calls.contains(&Call::Head(vec![0, 1, 2])));
    mock.calls.clear();
    run(&mut mock, &policy, &[1, 2, 3, 4], 4).unwrap();
    assert!(mock.calls.contains(&Call::Head(vec![0, 0, 1, 2])), "the first row stands for itself");
}

#[test]
fn the_observer_sees_every_pass_and_can_end_at_any_of_them() {
    let prompt = [5; 6];
    let mut all = Vec::new();
    let mut mock = Mock::new(64, 32, &[8]);
    let resolved = || greedy().resolve(&Mock::new(64, 32, &[8])).unwrap();
    let mut observe = |moment: Moment<'_>| {
        all.push(format!("{moment:?}"));
        ControlFlow::Continue(())
    };
    decode(&mut mock, resolved(), &prompt, 6, 0, Noise::Seeded(0), &mut observe).unwrap();
    for stop_at in 0..all.len() {
        let mut seen = Vec::new();
        let mut observe = |moment: Moment<'_>| {
            seen.push(format!("{moment:?}"));
            if seen.len() > stop_at { ControlFlow::Break(FinishReason::Cancelled) } else { ControlFlow::Continue(()) }
        };
        let mut mock = Mock::new(64, 32, &[8]);
        let decoded = decode(&mut mock, resolved(), &prompt, 6, 0, Noise::Seeded(0), &mut observe).unwrap();
        assert_eq!(decoded.finish, FinishReason::Cancelled);
        assert!(decoded.ids[..decoded.settled].iter().all(|&id| id != 0));
        assert_eq!(seen, all[..=stop_at]);
    }
}

proptest! {
    #[test]
    fn any_policy_decodes_everything_and_leaves_the_prompt_alone(
        prompt in proptest::collection::vec(1i32..32, 1..30),
        max_new in 1usize..40,
        block in 1usize..9,
        steps in 1usize..12,
        rule in 0usize..crate::decode::reveal::REVEAL_RULES.len(),
        measure in 0usize..crate::decode::confidence::CONFIDENCES.len(),
        temperature in prop_oneof![Just(0.0f32), Just(0.7)],
        top_k in 0usize..4,
        after in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let policy = DecodePolicy {
            block,
            steps,
            reveal: Reveal::new(crate::decode::reveal::REVEAL_RULES[rule].name),
            confidence: crate::decode::confidence::CONFIDENCES[measure].name.to_owned(),
            confidence_stage: if after { ConfidenceStage::AfterFilters } else { ConfidenceStage::BeforeFilters },
            temperature,
            top_k,
            top_p: 0.95,
            seed,
            ..greedy()
        };
        let mut mock = Mock::new(96, 32, &[4, 8, 16]);
        let decoded = run(&mut mock, &policy, &prompt, max_new).unwrap();
        prop_assert_eq!(&decoded.ids[..prompt.len()], &prompt[..]);
        prop_assert_eq!(decoded.ids.len(), (prompt.len() + max_new).next_multiple_of(block));
        prop_assert_eq!(decoded.settled, decoded.ids.len());
        prop_assert!(!decoded.ids.contains(&0));
        let again = run(&mut Mock::new(96, 32, &[16]), &policy, &prompt, max_new).unwrap();
        prop_assert_eq!(again.ids, decoded.ids, "other buckets, same tokens");
    }

    #[test]
    fn any_method_decodes_everything_and_leaves_the_prompt_alone(
        prompt in proptest::collection::vec(1i32..32, 1..30),
        max_new in 1usize..30,
        method in 0usize..8,
        rule in 0usize..crate::decode::reveal::REVEAL_RULES.len(),
        curve in 0usize..schedule::SCHEDULES.len(),
        steps in 1usize..12,
        temperature in prop_oneof![Just(0.0f32), Just(0.7)],
        cfg_scale in prop_oneof![Just(0.0f32), Just(1.5)],
        masked in proptest::option::of(0usize..30),
    ) {
        let policy = DecodePolicy {
            reveal: Reveal::new(crate::decode::reveal::REVEAL_RULES[rule].name),
            schedule: crate::decode::Schedule::new(schedule::SCHEDULES[curve].name),
            steps,
            temperature,
            cfg_scale: if method == 7 { 0.0 } else { cfg_scale },
            ..method_of(method)
        };
        let mut prompt = prompt;
        let hole = masked.filter(|&at| at < prompt.len() && method != 7);
        if let Some(at) = hole {
            prompt[at] = 0;
        }
        let mut mock = Mock::new(160, 32, &[8, 64]);
        let decoded = run(&mut mock, &policy, &prompt, max_new).unwrap();
        prop_assert!(decoded.ids.len() >= prompt.len() + max_new);
        prop_assert!(decoded.ids.len() < prompt.len() + max_new + 8);
        prop_assert_eq!(decoded.settled, decoded.ids.len());
        prop_assert!(!decoded.ids.contains(&policy.mask_id));
        prop_assert!((0..prompt.len()).all(|at| hole == Some(at) || decoded.ids[at] == prompt[at]));
    }
}

/// A policy of every way to cache, in blocks of 8.
fn method_of(method: usize) -> DecodePolicy {
    let base = match method {
        0 => DecodePolicy::llada(0),
        1 => DecodePolicy { cache: CacheMode::Prefix, ..DecodePolicy::dream(0) },
        2 => DecodePolicy { cache: CacheMode::Dual, ..DecodePolicy::dream(0) },
        3 => DecodePolicy::fast_dllm_v2(0, 8),
        4 => DecodePolicy::bd3lm(0, Some(7), 8),
        5 => DecodePolicy { logit_shift: 1, first_row: FirstRow::Before, ..DecodePolicy::bd3lm(0, None, 8) },
        6 => DecodePolicy::greedy(0, 8),
        _ => return DecodePolicy::autoregressive(),
    };
    DecodePolicy { block: 8, ..base }
}

#[test]
fn what_the_caches_hold_is_not_fed_again() {
    for policy in [greedy(), DecodePolicy::fast_dllm_v2(0, 4), DecodePolicy::autoregressive()] {
        let decode = |mock: &mut Mock, prompt: &[i32], held: usize| {
            let resolved = policy.clone().resolve(mock).unwrap();
            let ignore = &mut |_: Moment<'_>| ControlFlow::Continue(());
            super::super::decode(mock, resolved, prompt, 8, held, Noise::Seeded(0), ignore).unwrap()
        };
        let mut mock = Mock::new(96, 32, &[8]);
        let first = decode(&mut mock, &[5; 21], 0);
        assert!(first.stored >= 24 && first.held == 0, "{first:?}");
        let next = [&first.ids[..], &[6; 9]].concat();
        let (again, fresh) = (decode(&mut mock, &next, first.stored), decode(&mut Mock::new(96, 32, &[8]), &next, 0));
        assert_eq!(again.ids, fresh.ids);
        assert!(again.held >= first.stored / 4 * 4 && again.passes.prefill < fresh.passes.prefill, "{again:?}");
    }
}

#[test]
fn a_row_that_is_not_finite_is_an_error_on_every_path() {
    let guided = DecodePolicy { cfg_scale: 1.0, ..DecodePolicy::llada(0) };
    let sampled = DecodePolicy { temperature: 1.0, ..greedy() };
    let dual = DecodePolicy { cache: CacheMode::Dual, block: 4, ..DecodePolicy::llada(0) };
    let policies = [
        greedy(),
        sampled.clone(),
        DecodePolicy::llada(0),
        guided,
        dual,
        DecodePolicy::dream(0),
        DecodePolicy::fast_dllm_v2(0, 4),
        DecodePolicy::autoregressive(),
        DecodePolicy { temperature: 1.0, ..DecodePolicy::autoregressive() },
    ];
    for policy in policies {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // The whole answer of every row, so that the path does not matter.
            let mut mock = Mock::new(128, 32, &[4, 32, 64]);
            (0..128).for_each(|position| mock.say_with(position, 7, value));
            let failed = run(&mut mock, &policy, &[5; 4], 8);
            let fused = !policy.clone().resolve(&mock).unwrap().needs_logits;
            // The mock's fused head, like any, gives no sign of a token that has no probability.
            if fused && value == f32::NEG_INFINITY {
                continue;
            }
            assert!(matches!(failed, Err(DecodeError::NotFinite { .. })), "{value} {policy:?}: {failed:?}");
        }
    }
}

#[test]
fn guidance_that_overflows_names_its_scale() {
    let mut mock = Mock::new(64, 32, &[64]);
    let policy = DecodePolicy { cfg_scale: 3e38, ..DecodePolicy::llada(0) };
    let failed = run(&mut mock, &policy, &[5; 4], 8);
    assert!(matches!(failed, Err(DecodeError::Guidance { scale: 3e38 })), "{failed:?}");
}

#[test]
fn the_smallest_temperature_decodes_as_zero_does() {
    let prompt = [5; 4];
    let greedy = run(&mut Mock::new(64, 32, &[8]), &greedy(), &prompt, 12).unwrap();
    for temperature in [1e-30, f32::from_bits(1)] {
        let policy = DecodePolicy { temperature, ..self::greedy() };
        assert_eq!(run(&mut Mock::new(64, 32, &[8]), &policy, &prompt, 12).unwrap().settled, greedy.settled);
    }
}

#[test]
fn what_is_decoded_beyond_the_request_is_never_attended_by_what_is_kept() {
    // Whatever stands behind the tokens that were asked for, the tokens and the steps before it are the same.
    for prompt in [4usize, 5, 7] {
        let answer = |max_new: usize| {
            let mut mock = Mock::new(64, 32, &[8]);
            let decoded = run(&mut mock, &greedy(), &vec![5; prompt], max_new).unwrap();
            (decoded.ids, mock.calls)
        };
        let (long, long_calls) = answer(24);
        for max_new in 1..20 {
            let (ids, calls) = answer(max_new);
            assert_eq!(ids, long[..ids.len()]);
            let end = (prompt + max_new).next_multiple_of(4);
            let rows = calls.iter().filter_map(|call| match call {
                Call::Step { at, len, visible, .. } => Some((at + len).max(*visible)),
                _ => None,
            });
            assert_eq!(rows.max(), Some(end), "rows beyond the last block exist for nobody");
            assert_eq!(calls[..], long_calls[..calls.len()]);
        }
    }
}

#[test]
fn padding_never_enters_a_cache() {
    // Steps of a bucket that is larger than the block feed the block's rows and no others.
    for bucket in [4, 5, 8, 32] {
        let mut mock = Mock::new(64, 32, &[bucket]);
        let decoded = run(&mut mock, &greedy(), &[5; 6], 9).unwrap();
        let exact = run(&mut Mock::new(64, 32, &[4]), &greedy(), &[5; 6], 9).unwrap();
        assert_eq!(decoded.ids, exact.ids, "{bucket}");
        for call in &mock.calls {
            if let Call::Step { at, len, visible, .. } = *call {
                assert_eq!(at + len, visible, "a row is visible exactly when it was fed");
                assert!(visible <= 16 && at % 4 == 0);
            }
        }
    }
}
