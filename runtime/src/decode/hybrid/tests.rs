//! Whole decodes on mocks: the verifier's own tokens at temperature 0, its own law otherwise, whoever drafts.

mod adjusted;

use std::ops::ControlFlow;

use crate::decode::trace::Moment;
use crate::exec::Span;

use dlx_ir::Mask;
use proptest::prelude::*;

use super::super::mock::Mock;
use super::super::{Noise, Observer, Overrides, decode};
use super::*;
use crate::decode::sample::{Law, Sampler};

/// Tokens of the mocks. The last one is never likely unless scripted.
const VOCAB: usize = 12;
const MASK: i32 = 0;

fn quiet() -> Box<Observer<'static>> {
    Box::new(|_| ControlFlow::Continue(()))
}

fn verifier() -> Mock {
    Mock::new(96, VOCAB, &[1, 4, 16]).masked(Mask::Causal)
}

fn policy(overrides: &Overrides) -> DecodePolicy {
    DecodePolicy { stop_ids: vec![11], ..DecodePolicy::autoregressive() }.with(overrides).unwrap()
}

/// Drafters of every shape: block-causal, shifted with sub-blocks, full attention with and without a cache.
fn drafters() -> Vec<(Mock, DecodePolicy)> {
    let mock = |mask| Mock::new(96, VOCAB, &[4, 96]).masked(mask);
    vec![
        (mock(Mask::BlockCausal(4)), DecodePolicy::greedy(MASK, 4)),
        (mock(Mask::BlockCausal(8)), DecodePolicy::fast_dllm_v2(MASK, 8)),
        (mock(Mask::Full), DecodePolicy::llada(MASK)),
        (mock(Mask::Full), DecodePolicy { cache: super::super::policy::CacheMode::Dual, ..DecodePolicy::dream(MASK) }),
    ]
}

fn plan(method: Method, k: usize) -> Plan {
    let methods: &[Method] = if method == Method::Several { &[Method::Several] } else { &[Method::OnePass] };
    Plan { methods, length: Length::Fixed(k), reveal: None, verdict: Verdict::Verifier }
}

fn hybrid(
    draft: &mut (Mock, DecodePolicy),
    verify: &mut Mock,
    policy: &DecodePolicy,
    plan: &Plan,
    prompt: &[i32],
    max_new: usize,
) -> Result<Speculated, DecodeError> {
    let resolved = policy.clone().resolve(verify)?;
    let models = Models::Two { draft: &mut draft.0, policy: &draft.1, held: 0, verify };
    speculate(models, resolved, plan, &mut Controller::new(None), prompt, max_new, 0, &mut quiet())
}

fn alone(verify: &mut Mock, policy: &DecodePolicy, prompt: &[i32], max_new: usize) -> Decoded {
    let resolved = policy.clone().resolve(verify).unwrap();
    decode(verify, resolved, prompt, max_new, 0, Noise::Seeded(policy.seed), &mut quiet()).unwrap()
}

/// What a call gives: the new tokens up to the first stop, as far as they were asked for.
fn text(decoded: &Decoded, prompt: usize, max_new: usize) -> Vec<i32> {
    let new = &decoded.ids[prompt..decoded.settled.min(prompt + max_new)];
    let stop = new.iter().position(|id| *id == 11).map_or(new.len(), |stop| stop + 1);
    new[..stop].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn greedy_tokens_are_the_verifiers_own(
        prompt in proptest::collection::vec(1i32..11, 1..20),
        max_new in 1usize..40,
        k in 1usize..12,
        which in 0usize..4,
        several in any::<bool>(),
        agreed in proptest::collection::vec(any::<bool>(), 64),
        stop in 0usize..60,
        filtered in any::<bool>(),
    ) {
        let overrides = Overrides { suppress_ids: filtered.then(|| vec![3, 5]), ..Overrides::default() };
        let policy = policy(&overrides);
        let mut verify = verifier();
        verify.say(prompt.len() + stop - 1, 11);
        let wanted = alone(&mut verify, &policy, &prompt, max_new);
        // The drafter knows what the verifier will say, here and there.
        let mut drafter = drafters().remove(which);
        for (i, agrees) in agreed.iter().enumerate() {
            let position = prompt.len() + i;
            if let (Some(&token), true) = (wanted.ids.get(position).filter(|id| **id >= 0), *agrees) {
                drafter.0.say(position - drafter.1.logit_shift, token);
            }
        }
        let method = if several { Method::Several } else { Method::OnePass };
        let made = hybrid(&mut drafter, &mut verify, &policy, &plan(method, k), &prompt, max_new).unwrap();
        prop_assert_eq!(text(&made.decoded, prompt.len(), max_new), text(&wanted, prompt.len(), max_new));
        prop_assert_eq!(made.decoded.finish, wanted.finish);
        let counts = &made.counts;
        prop_assert_eq!(counts.tokens, made.decoded.ids.len() - prompt.len());
        prop_assert!(counts.accepted <= counts.drafted && counts.tokens <= counts.accepted + counts.rounds);
        prop_assert_eq!(made.decoded.stored, made.decoded.ids.len() - 1);
    }

    #[test]
    fn a_model_verifies_itself_by_rows(
        prompt in proptest::collection::vec(1i32..11, 1..20),
        max_new in 1usize..30,
        k in 1usize..9,
    ) {
        let own = DecodePolicy { stop_ids: vec![11], ..DecodePolicy::fast_dllm_v2(MASK, 8) };
        // Its causal mode is what a causal model with the same rows says.
        let mut causal = Mock::new(96, VOCAB, &[1, 4, 16]).masked(Mask::Causal);
        let suppressed = policy(&Overrides { suppress_ids: Some(vec![MASK]), ..Overrides::default() });
        let wanted = alone(&mut causal, &suppressed, &prompt, max_new);
        let mut model = Mock::new(96, VOCAB, &[1, 4, 16]).masked(Mask::BlockCausal(8));
        let resolved = own.resolve(&model).unwrap();
        let mut controller = Controller::new(None);
        let plan = plan(Method::OnePass, k);
        let made = speculate(
            Models::One(&mut model), resolved, &plan, &mut controller, &prompt, max_new, 0, &mut quiet()
        ).unwrap();
        prop_assert_eq!(text(&made.decoded, prompt.len(), max_new), text(&wanted, prompt.len(), max_new));
    }
}

/// Frequencies of the first two tokens over many seeds, and their law by the verifier alone.
fn joint(which: usize, method: Method, reveal: Option<&str>, draws: u64, overrides: &Overrides) -> f64 {
    let prompt = [4, 7, 2];
    let drawing = Overrides { temperature: Some(0.9), top_p: Some(0.95), ..overrides.clone() };
    let flat = || verifier().flat(6.0);
    let mut law: Vec<((i32, i32), f64)> = Vec::new();
    let (mut mock, mut sampler) = (flat(), Sampler::default());
    let own = DecodePolicy { suppress_ids: vec![MASK], ..policy(&drawing) };
    let mut next = |tokens: &[i32]| -> Law {
        let pos: Vec<i32> = (0..).take(tokens.len()).collect();
        mock.step(&[crate::exec::Span::new(tokens, &pos, 0)]).unwrap();
        let mut logits = vec![0.0; VOCAB];
        mock.logits(&[tokens.len() - 1], &mut logits).unwrap();
        for (id, logit) in (0..).zip(&mut logits) {
            *logit += own.logit_bias.get(&id).copied().unwrap_or(0.0);
            if tokens.contains(&id) {
                *logit *= if *logit < 0.0 { own.repetition_penalty } else { 1.0 / own.repetition_penalty };
            }
            let count = tokens[prompt.len()..].iter().filter(|token| **token == id).count() as f32;
            *logit -= count * own.frequency_penalty + count.min(1.0) * own.presence_penalty;
        }
        sampler.law(&logits, &own).unwrap()
    };
    for (a, p) in next(&prompt).iter() {
        law.extend(next(&[&prompt[..], &[a]].concat()).iter().map(|(b, q)| ((a, b), p * q)));
    }
    let mut counts = vec![0.0; law.len()];
    for seed in 0..draws {
        let (mut drafter, mut verify) = (drafters().remove(which), flat());
        drafter.0 = drafter.0.flat(6.0);
        let own = policy(&Overrides { seed: Some(seed), ..drawing.clone() });
        let plan = Plan { reveal: reveal.map(Reveal::new), ..plan(method, 3) };
        let made = hybrid(&mut drafter, &mut verify, &own, &plan, &prompt, 4).unwrap();
        // A stop token ends the text; what the law says of what follows it does not matter here.
        let new = &made.decoded.ids[prompt.len()..];
        let pair = (new[0], new.get(1).copied().unwrap_or(-1));
        let place = law.iter().position(|(tokens, _)| *tokens == pair);
        counts[place.expect("only tokens that the law has")] += 1.0;
    }
    let expected = law.iter().map(|(_, p)| p * draws as f64);
    let (mut chi, mut cells, mut rest) = (0.0, 0.0, (0.0, 0.0));
    for (count, expected) in counts.iter().zip(expected) {
        if expected >= 5.0 {
            (chi, cells) = (chi + (count - expected).powi(2) / expected, cells + 1.0);
        } else {
            rest = (rest.0 + count, rest.1 + expected);
        }
    }
    if rest.1 > 1.0 {
        (chi, cells) = (chi + f64::powi(rest.0 - rest.1, 2) / rest.1, cells + 1.0);
    }
    (chi - (cells - 1.0)) / f64::sqrt(2.0 * (cells - 1.0))
}

#[test]
fn drawn_tokens_have_the_verifiers_law() {
    for which in 0..4 {
        let z = joint(which, Method::OnePass, None, 4000, &Overrides::default());
        assert!(z.abs() < 4.0, "one pass of drafter {which}: z {z}");
    }
    for reveal in [None, Some("sequential")] {
        let z = joint(0, Method::Several, reveal, 4000, &Overrides::default());
        assert!(z.abs() < 4.0, "several passes, {reveal:?}: z {z}");
    }
}

#[test]
fn the_same_seed_repeats_itself_and_another_does_not() {
    let draw = |seed| {
        let (mut drafter, mut verify) = (drafters().remove(0), verifier().flat(6.0));
        let own = policy(&Overrides { temperature: Some(1.0), seed: Some(seed), ..Overrides::default() });
        hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, 7, 2], 30).unwrap().decoded.ids
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

#[test]
fn a_drafters_mask_never_enters_the_text() {
    let (mut drafter, mut verify) = (drafters().remove(0), verifier());
    verify.say(5, MASK);
    let own = policy(&Overrides::default());
    let made = hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, 7, 2], 12).unwrap();
    assert_eq!(made.banned, [MASK]);
    assert!(!made.decoded.ids.contains(&MASK));
    let suppressed = policy(&Overrides { suppress_ids: Some(vec![MASK]), ..Overrides::default() });
    let wanted = alone(&mut verify, &suppressed, &[4, 7, 2], 12);
    assert_eq!(text(&made.decoded, 3, 12), text(&wanted, 3, 12));
    let error = hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, MASK, 2], 12).unwrap_err();
    assert!(error.to_string().contains("token 0 at position 1"), "{error}");
}

#[test]
fn widths_of_logits_may_differ() {
    let wide = |vocab| Mock::new(96, vocab, &[4, 96]).masked(Mask::BlockCausal(4));
    let own = policy(&Overrides { temperature: Some(1.0), ..Overrides::default() });
    let mut verify = verifier().flat(6.0);
    let mut drafter = (wide(20).flat(6.0), DecodePolicy::greedy(MASK, 4));
    let made = hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, 7], 40).unwrap();
    assert!(made.decoded.ids.iter().all(|id| (1..12).contains(id)));
    let mut drafter = (wide(8).flat(6.0), DecodePolicy::greedy(MASK, 4));
    let made = hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, 7], 40).unwrap();
    assert_eq!(made.banned, [MASK, 8, 9, 10, 11]);
    assert!(made.decoded.ids.iter().all(|id| (1..8).contains(id)));
    // At temperature 0 a draft ends where the verifier does not know its token.
    let mut drafter = (wide(20), DecodePolicy::greedy(MASK, 4));
    drafter.0.say(3, 15);
    let own = policy(&Overrides::default());
    let made = hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, 7], 3).unwrap();
    assert_eq!(made.counts.drafted, 1, "of the two that were wanted");
}

#[test]
fn what_cannot_work_together_is_refused_with_advice() {
    let own = policy(&Overrides::default());
    let refused = |drafter: &mut (Mock, DecodePolicy), verify: &mut Mock, own: &DecodePolicy, k: usize| {
        hybrid(drafter, verify, own, &plan(Method::OnePass, k), &[4, 7], 12).unwrap_err().to_string()
    };
    let error = refused(&mut drafters()[0], &mut verifier(), &own, 40);
    assert!(error.contains("a draft of 40 tokens") && error.contains("15 at most"), "{error}");
    let mut causal = (verifier(), DecodePolicy::autoregressive());
    let error = refused(&mut causal, &mut verifier(), &own, 4);
    assert!(error.contains("fills in masks"), "{error}");
    let mut block = Mock::new(96, VOCAB, &[4, 16]).masked(Mask::BlockCausal(4));
    let error = refused(&mut drafters()[0], &mut block, &DecodePolicy::greedy(MASK, 4), 4);
    assert!(error.contains("predict the next token"), "{error}");
}

#[test]
fn the_requests_temperature_is_that_of_both_sides() {
    // The drafter's own policy draws, the request does not: drafts are the most likely tokens, and repeat themselves.
    let draft = |temperature| {
        let (mut drafter, mut verify) = (drafters().remove(0), verifier());
        drafter.1.temperature = temperature;
        let mut drafts = Vec::new();
        let mut observer = |moment: Moment<'_>| {
            if let Moment::Drafted { tokens, .. } = moment {
                drafts.push(tokens.to_vec());
            }
            ControlFlow::Continue(())
        };
        let resolved = policy(&Overrides::default()).resolve(&verify).unwrap();
        let models = Models::Two { draft: &mut drafter.0, policy: &drafter.1, held: 0, verify: &mut verify };
        let plan = plan(Method::OnePass, 4);
        speculate(models, resolved, &plan, &mut Controller::new(None), &[4, 7], 12, 0, &mut observer).unwrap();
        drafts
    };
    assert_eq!(draft(0.0), draft(1.5));
}

#[test]
fn a_full_drafter_leaves_the_rest_to_the_verifier() {
    let (mut drafter, mut verify) = (drafters().remove(2), verifier());
    drafter.0 = Mock::new(12, VOCAB, &[4, 12]);
    let own = policy(&Overrides::default());
    let made = hybrid(&mut drafter, &mut verify, &own, &plan(Method::OnePass, 4), &[4, 7, 2], 30).unwrap();
    assert!(made.counts.no_room > 0 && made.counts.drafted > 0);
    let wanted = alone(&mut verify, &own, &[4, 7, 2], 30);
    assert_eq!(text(&made.decoded, 3, 30), text(&wanted, 3, 30));
}

/// The verifier's most likely token behind these, but for the drafter's mask.
fn next(ids: &[i32]) -> i32 {
    let mut mock = Mock::new(96, VOCAB, &[96]).masked(Mask::Causal);
    let pos: Vec<i32> = (0..).take(ids.len()).collect();
    mock.step(&[Span::new(ids, &pos, 0)]).unwrap();
    let mut logits = vec![0.0; VOCAB];
    mock.logits(&[ids.len() - 1], &mut logits).unwrap();
    // Of equal ones, the first.
    let best = (0..VOCAB).rev().filter(|id| *id != MASK as usize).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    i32::try_from(best.unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// What each rule leaves to the verifier is the verifier's, whatever was taken without a look before.
    #[test]
    fn lossy_rules_do_as_they_say(
        prompt in proptest::collection::vec(1i32..11, 1..20),
        max_new in 1usize..60,
        k in 1usize..12,
        which in 0usize..4,
        least in 0.0f32..1.0,
        rule in 0usize..3,
    ) {
        let verdict = [Verdict::Sure(least), Verdict::Overwrite(least), Verdict::TopUp(least)][rule];
        let (mut drafter, mut verify) = (drafters().remove(which), verifier());
        let own = policy(&Overrides::default());
        let resolved = own.resolve(&verify).unwrap();
        let models = Models::Two { draft: &mut drafter.0, policy: &drafter.1, held: 0, verify: &mut verify };
        let plan = Plan { verdict, ..plan(Method::OnePass, k) };
        let mut rounds = Vec::new();
        let mut observer = |moment: Moment<'_>| {
            if let Moment::Judged { ids, drafted, tokens, .. } = moment {
                rounds.push((ids.to_vec(), drafted.to_vec(), tokens.to_vec()));
            }
            ControlFlow::Continue(())
        };
        let made =
            speculate(models, resolved, &plan, &mut Controller::new(None), &prompt, max_new, 0, &mut observer).unwrap();
        for (ids, drafted, tokens) in rounds {
            let mut replaced = false;
            for (i, token) in tokens.iter().enumerate() {
                let kept = drafted.get(i) == Some(token);
                let before: &[i32] = if rule == 1 { &drafted } else { &tokens };
                let own = next(&[&ids[..], &before[..i]].concat());
                match rule {
                    0 | 1 => prop_assert!(kept || *token == own, "{verdict:?} {i} of {tokens:?}, drafted {drafted:?}"),
                    _ if replaced => prop_assert!(kept),
                    _ => prop_assert_eq!(*token, own, "{} of {:?} behind {:?}, drafted {:?}", i, tokens, ids, drafted),
                }
                replaced |= !kept;
            }
        }
        prop_assert!(rule == 0 || made.counts.unverified == 0);
    }
}

#[test]
fn a_drafter_that_is_sure_takes_no_pass_of_the_verifier() {
    for (least, verified) in [(0.0, false), (1.1, true)] {
        let (mut drafter, mut verify) = (drafters().remove(0), verifier());
        let own = policy(&Overrides::default());
        let plan = Plan { verdict: Verdict::Sure(least), ..plan(Method::OnePass, 4) };
        let made = hybrid(&mut drafter, &mut verify, &own, &plan, &[4, 7, 2], 45).unwrap();
        // 45 tokens are nine drafts of four and a bonus, or eleven drafts and one token that needs none.
        let counts = &made.counts;
        assert_eq!((counts.unverified == 0, counts.verify_passes <= 1), (verified, !verified), "{counts:?}");
        if verified {
            let wanted = alone(&mut verify, &own, &[4, 7, 2], 45);
            assert_eq!(text(&made.decoded, 3, 45), text(&wanted, 3, 45));
        }
    }
}
