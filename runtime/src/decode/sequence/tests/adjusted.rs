//! Biases, penalties and what is told of probabilities, against decodes that are written down plainly: every pass over
//! the whole sequence, every number computed anew from the tokens that stand there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::decode::sample::Logprob;
use crate::exec::{Executor, Span};

const VOCAB: usize = 24;
const STOP: i32 = 23;

/// Token ids, and what was told of each token in the order in which they were decided.
type Told = (Vec<i32>, Vec<(usize, Logprob)>);

fn told(policy: &DecodePolicy, prompt: &[i32], max_new: usize, beside: Option<usize>) -> Told {
    let mut mock = mock();
    let resolved = policy.clone().resolve(&mock).unwrap().telling(beside, &mock).unwrap();
    let mut told = Vec::new();
    let observer: &mut Observer<'_> = &mut |moment| {
        if let Moment::Revealed { decision, .. } = moment {
            let places = decision.changes.iter().map(|change| change.position);
            told.extend(places.zip(decision.logprobs.iter().cloned()));
        }
        ControlFlow::Continue(())
    };
    let decoded = decode(&mut mock, resolved, prompt, max_new, 0, Noise::Seeded(policy.seed), observer).unwrap();
    (decoded.ids, told)
}

fn mock() -> Mock {
    let mut mock = Mock::new(64, VOCAB, &[64]).flat(3.0);
    // A stop token that would come at once, and the mask, which may be as likely as it likes.
    (0..64).for_each(|position| mock.say_with(position, STOP, 3.5));
    mock
}

/// Probabilities of what may stand at `at`, from the logits of a row and the tokens in the sequence.
fn law(policy: &DecodePolicy, prompt: &[i32], ids: &[i32], at: usize, row: &[f32]) -> Vec<f64> {
    let answer = ids[prompt.len()..].iter().filter(|id| **id != policy.mask_id && **id != STOP);
    let mut counts = BTreeMap::new();
    answer.for_each(|id| *counts.entry(*id).or_insert(0.0f64) += 1.0);
    let mut logits: Vec<f64> = row.iter().map(|logit| f64::from(*logit)).collect();
    for (id, logit) in (0..).zip(&mut logits) {
        *logit += f64::from(policy.logit_bias.get(&id).copied().unwrap_or(0.0));
        let count = counts.get(&id).copied().unwrap_or(0.0);
        if prompt.contains(&id) || count > 0.0 {
            let penalty = f64::from(policy.repetition_penalty);
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
        *logit -= count * f64::from(policy.frequency_penalty) + count.min(1.0) * f64::from(policy.presence_penalty);
        let early = id == STOP && at - prompt.len() < policy.min_tokens;
        if early || id == policy.mask_id {
            *logit = f64::NEG_INFINITY;
        }
    }
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

/// One token per pass, the surest first; a model that predicts the next token has rows one further left.
fn plainly(policy: &DecodePolicy, prompt: &[i32], max_new: usize) -> Vec<(usize, i32, Vec<f64>)> {
    let mut mock = mock();
    let causal = policy.mask_id < 0;
    let mut ids = prompt.to_vec();
    let mut decided = Vec::new();
    if !causal {
        ids.resize(prompt.len() + max_new, policy.mask_id);
    }
    while decided.len() < max_new {
        let pos: Vec<i32> = (0..).take(ids.len()).collect();
        mock.step(&[Span::new(&ids, &pos, 0)]).unwrap();
        let places: Vec<usize> =
            if causal { vec![ids.len()] } else { (0..ids.len()).filter(|&at| ids[at] == policy.mask_id).collect() };
        let laws = places.iter().map(|&at| {
            let mut row = vec![0.0; VOCAB];
            mock.logits(&[at - usize::from(causal)], &mut row).unwrap();
            let law = law(policy, prompt, &ids, at, &row);
            let best = (0..VOCAB).fold(0, |best, id| if law[id] > law[best] { id } else { best });
            (at, best, law)
        });
        let surest = laws.reduce(|a, b| if b.2[b.1] > a.2[a.1] { b } else { a });
        let (at, token, law) = surest.unwrap();
        let token = i32::try_from(token).unwrap();
        if causal {
            ids.push(token)
        } else {
            ids[at] = token
        }
        decided.push((at, token, law));
        if causal && token == STOP {
            break;
        }
    }
    decided
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn decodes_are_those_that_are_written_down_plainly(
        causal in any::<bool>(),
        prompt in proptest::collection::vec(1i32..22, 1..6),
        max_new in 1usize..14,
        bias in proptest::collection::btree_map(1i32..22, -4.0f32..4.0, 0..4),
        (repetition_penalty, frequency_penalty, presence_penalty) in (0.8f32..1.6, -0.3f32..1.0, -0.5f32..1.5),
        min_tokens in 0usize..14,
    ) {
        let base = if causal {
            DecodePolicy::autoregressive()
        } else {
            // The whole answer is one block, of one token per pass. The mask may be likely, but is kept out here, so that
            // confidences are those of the tokens.
            DecodePolicy {
                block: max_new,
                steps: max_new,
                reveal: Reveal::new("static"),
                suppress_ids: vec![0],
                ..DecodePolicy::llada(0)
            }
        };
        let policy = DecodePolicy {
            logit_bias: bias,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            min_tokens,
            stop_ids: vec![STOP],
            ..base
        };
        let (ids, told) = told(&policy, &prompt, max_new, Some(4));
        let expected = plainly(&policy, &prompt, max_new);
        prop_assert_eq!(told.len(), expected.len());
        for ((place, told), (at, token, law)) in told.iter().zip(&expected) {
            prop_assert_eq!((place, told.token, ids[*at]), (at, *token, *token));
            prop_assert!((f64::from(told.logprob) - law[*token as usize].ln()).abs() < 1e-3, "{:?}", told);
            let mut sorted: Vec<f64> = law.iter().map(|p| p.ln()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            prop_assert_eq!(told.top.len(), 4);
            prop_assert_eq!((told.top[0].0, told.top[0].1), (told.token, told.logprob));
            for (found, expected) in told.top.iter().zip(sorted) {
                prop_assert!((f64::from(found.1) - expected).abs() < 1e-3);
            }
        }
        let answer = &ids[prompt.len()..];
        prop_assert!(!answer[..min_tokens.min(answer.len())].contains(&STOP));
    }

    #[test]
    fn what_is_told_changes_nothing(
        method in 0usize..8,
        (prompt, max_new, seed) in (1usize..20, 1usize..20, any::<u64>()),
        (temperature, top_p, min_p) in (0.0f32..1.5, prop_oneof![Just(1.0f32), Just(0.9)], prop_oneof![Just(0.0f32), Just(0.1)]),
        (cfg_scale, penalty) in prop_oneof![Just((0.0f32, 0.0f32)), Just((1.5, 0.0)), Just((0.0, 0.7)), Just((1.5, 0.7))],
    ) {
        let cfg_scale = if method < 7 { cfg_scale } else { 0.0 };
        let temperature = if temperature < 0.5 { 0.0 } else { temperature };
        let base = method_of(method);
        let policy =
            DecodePolicy { temperature, top_p, min_p, seed, cfg_scale, presence_penalty: penalty, ..base };
        let prompt: Vec<i32> = (0..prompt).map(|i| 8 + ((seed as usize + i) % 12) as i32).collect();
        let decode = |beside| {
            let mut mock = Mock::new(64, VOCAB, &[8, 600]);
            let resolved = policy.clone().resolve(&mock).unwrap().telling(beside, &mock).unwrap();
            mock.reserve(resolved.slots()).unwrap();
            let mut told = Vec::new();
            let observer: &mut Observer<'_> = &mut |moment| {
                if let Moment::Revealed { decision, .. } = moment {
                    assert_eq!(decision.logprobs.len(), if beside.is_some() { decision.changes.len() } else { 0 });
                    told.extend(decision.changes.iter().copied().zip(decision.logprobs.iter().cloned()));
                }
                ControlFlow::Continue(())
            };
            let noise = Noise::Seeded(seed);
            (super::super::super::decode(&mut mock, resolved, &prompt, max_new, 0, noise, observer).unwrap().ids, told)
        };
        let ((plain, _), (ids, told)) = (decode(None), decode(Some(2)));
        prop_assert_eq!(plain, ids);
        for (change, told) in told {
            prop_assert_eq!(change.token, told.token);
            prop_assert!(told.logprob <= 0.0 && told.logprob.is_finite());
            prop_assert!(told.top.iter().map(|(_, log)| log.exp()).sum::<f32>() < 1.0001);
            prop_assert!(told.top[0].1 >= told.logprob && !told.top.iter().any(|(id, _)| *id == policy.mask_id));
        }
    }
}
