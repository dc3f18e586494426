//! Biases, penalties and probabilities: those of the verifier alone, whoever drafts.

use super::*;
use crate::decode::sample::Logprob;

/// The tokens that a decode decided, with what was told of them.
fn collect<'t>(
    told: &'t mut Vec<(usize, Logprob)>,
) -> impl FnMut(Moment<'_>) -> ControlFlow<crate::decode::FinishReason> + 't {
    |moment| {
        match moment {
            Moment::Revealed { decision, .. } => {
                told.extend(
                    decision.changes.iter().map(|change| change.position).zip(decision.logprobs.iter().cloned()),
                );
            }
            Moment::Judged { ids, tokens, logprobs, .. } => {
                assert_eq!(tokens.len(), logprobs.len());
                told.extend((ids.len()..).zip(logprobs.iter().cloned()));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn greedy_tokens_and_their_probabilities_are_the_verifiers_own(
        prompt in proptest::collection::vec(1i32..11, 1..12),
        max_new in 1usize..40,
        k in 1usize..9,
        which in 0usize..4,
        several in any::<bool>(),
        bias in proptest::collection::btree_map(0i32..12, -5.0f32..5.0, 0..3),
        (repetition, frequency, presence) in (0.7f32..1.5, -0.2f32..1.0, -0.5f32..2.0),
        min_tokens in 0usize..9,
    ) {
        let overrides = Overrides {
            // The drafter's mask, which the verifier is kept from.
            suppress_ids: Some(vec![MASK]),
            logit_bias: Some(bias),
            repetition_penalty: Some(repetition),
            frequency_penalty: Some(frequency),
            presence_penalty: Some(presence),
            min_tokens: Some(min_tokens),
            ..Overrides::default()
        };
        let policy = policy(&overrides);
        let mut verify = verifier();
        verify.say(prompt.len() + 4, 11);
        let resolved = policy.resolve(&verify).unwrap().telling(Some(3), &verify).unwrap();
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        let noise = Noise::Seeded(0);
        let alone = decode(&mut verify, resolved.clone(), &prompt, max_new, 0, noise, &mut collect(&mut wanted)).unwrap();
        let mut drafter = drafters().remove(which);
        // Drafts that are right here and there.
        for (position, told) in wanted.iter().filter(|(position, _)| position % 3 > 0) {
            drafter.0.say_with(position - drafter.1.logit_shift, told.token, 15.0);
        }
        let models = Models::Two { draft: &mut drafter.0, policy: &drafter.1, held: 0, verify: &mut verify };
        let plan = plan(if several { Method::Several } else { Method::OnePass }, k);
        let mut controller = Controller::new(None);
        let made =
            speculate(models, resolved, &plan, &mut controller, &prompt, max_new, 0, &mut collect(&mut found)).unwrap();
        prop_assert_eq!(text(&made.decoded, prompt.len(), max_new), text(&alone, prompt.len(), max_new));
        prop_assert!(found.len() <= wanted.len());
        prop_assert_eq!(&found[..], &wanted[..found.len()]);
    }
}

#[test]
fn drawn_tokens_have_the_law_with_biases_and_penalties() {
    let overrides = Overrides {
        logit_bias: Some([(3, 0.8), (9, -1.5)].into()),
        repetition_penalty: Some(1.6),
        frequency_penalty: Some(0.7),
        presence_penalty: Some(0.6),
        min_p: Some(0.02),
        ..Overrides::default()
    };
    for which in 0..4 {
        let z = joint(which, Method::OnePass, None, 4000, &overrides);
        assert!(z.abs() < 4.0, "one pass of drafter {which}: z {z}");
    }
    for reveal in [None, Some("sequential")] {
        let z = joint(0, Method::Several, reveal, 4000, &overrides);
        assert!(z.abs() < 4.0, "several passes, {reveal:?}: z {z}");
    }
}

#[test]
fn a_rule_that_is_not_the_verifiers_tells_no_probabilities() {
    let (mut drafter, mut verify) = (drafters().remove(0), verifier());
    let resolved = policy(&Overrides::default()).resolve(&verify).unwrap().telling(Some(0), &verify).unwrap();
    let models = Models::Two { draft: &mut drafter.0, policy: &drafter.1, held: 0, verify: &mut verify };
    let plan = Plan { verdict: Verdict::Sure(0.5), ..plan(Method::OnePass, 4) };
    let refused = speculate(models, resolved, &plan, &mut Controller::new(None), &[4, 7], 12, 0, &mut quiet());
    assert!(refused.unwrap_err().to_string().contains("`logprobs`"));
}
