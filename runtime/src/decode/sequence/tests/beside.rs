//! Sequences side by side: each is what it is alone.

use proptest::prelude::*;

use super::*;
use crate::decode::{Active, Driver};

/// A moment, and of a pass everything that it feeds and reads; not the slots, which each sequence has of its own.
fn text(moment: &Moment<'_>) -> String {
    let Moment::Forward(Forward { kind, q_start, q_len, past_len, ids, pass }) = moment else {
        return format!("{moment:?}");
    };
    let spans: Vec<_> = pass.spans().map(|s| (s.ids, s.pos, s.at, s.from, s.visible)).collect();
    format!("{:?}", (kind, q_start, q_len, past_len, ids, spans, pass.rows(), pass.reads()))
}

/// What happens to sequences that are decoded side by side, each with its own policy, and the ids that come out.
fn together(mock: &mut Mock, calls: &[(DecodePolicy, Vec<i32>, usize)]) -> Vec<(Vec<i32>, Vec<String>)> {
    mock.reserve(calls.len() * 2).unwrap();
    let mut next = 0;
    let sequences = calls.iter().map(|(policy, prompt, max_new)| {
        let resolved = policy.clone().resolve(mock).unwrap();
        let slots = (next..next + resolved.slots()).collect();
        next += resolved.slots();
        Sequence::new(resolved, mock, prompt, *max_new, 0, slots, Noise::Seeded(policy.seed)).unwrap()
    });
    let mut sequences: Vec<Sequence> = sequences.collect();
    let mut told: Vec<Vec<String>> = vec![Vec::new(); calls.len()];
    let mut observers: Vec<_> = told
        .iter_mut()
        .map(|told| {
            |moment: Moment<'_>| {
                told.push(text(&moment));
                ControlFlow::Continue(())
            }
        })
        .collect();
    let mut driver = Driver::new(mock);
    loop {
        let actives = sequences.iter_mut().zip(&mut observers);
        let mut actives: Vec<_> = actives.map(|(sequence, observer)| Active { sequence, observer }).collect();
        if !driver.round(&mut actives).unwrap() {
            break;
        }
    }
    sequences.into_iter().zip(told).map(|(s, told)| (s.finish().unwrap().ids, told)).collect()
}

proptest! {
    #[test]
    fn sequences_side_by_side_are_what_each_is_alone(
        calls in proptest::collection::vec((0usize..8, 1usize..30, 1usize..20, any::<bool>(), any::<bool>(), any::<u64>()), 2..9),
        largest in prop_oneof![Just(64usize), Just(100), Just(600)],
    ) {
        let calls: Vec<_> = calls.into_iter().map(|(method, prompt, max_new, guided, drawn, seed)| {
            let policy = DecodePolicy {
                cfg_scale: if guided && method < 7 { 1.5 } else { 0.0 },
                temperature: if drawn { 0.7 } else { 0.0 },
                seed,
                ..method_of(method)
            };
            (policy, (0..prompt).map(|i| 8 + ((seed as usize + i) % 20) as i32).collect::<Vec<_>>(), max_new)
        }).collect();
        let mut mock = Mock::new(64, 32, &[8, largest]);
        let beside = together(&mut mock, &calls);
        for (call, beside) in calls.iter().zip(beside) {
            let alone = together(&mut Mock::new(64, 32, &[8, largest]), std::slice::from_ref(call));
            prop_assert_eq!(&alone[0], &beside);
        }
    }
}

#[test]
fn sequences_share_a_step_as_far_as_they_fit() {
    let call = |prompt: usize| (greedy(), vec![5; prompt], 4);
    let mut mock = Mock::new(64, 32, &[8, 12]);
    together(&mut mock, &[call(4), call(8), call(4)]);
    let heads = mock.calls.iter().filter(|c| matches!(c, Call::Head(_)));
    // Prefills of 4, 8 and 4 rows take two steps, then all three blocks are one step of 12 rows with one head.
    assert_eq!(heads.clone().count(), 4);
    assert!(heads.clone().all(|c| matches!(c, Call::Head(rows) if rows.last() >= Some(&8))));
}

#[test]
fn a_sequence_that_fails_ends_alone() {
    let mut mock = Mock::new(64, 32, &[16]);
    mock.say_with(9, 7, f32::NAN);
    mock.reserve(2).unwrap();
    let new = |prompt: &[i32], slot| {
        let resolved = greedy().resolve(&mock).unwrap();
        Sequence::new(resolved, &mock, prompt, 4, 0, vec![slot], Noise::Seeded(0)).unwrap()
    };
    let (mut good, mut bad) = (new(&[5; 4], 0), new(&[5; 8], 1));
    let mut driver = Driver::new(&mut mock);
    let (mut a, mut b) = (|_: Moment<'_>| ControlFlow::Continue(()), |_: Moment<'_>| ControlFlow::Continue(()));
    while driver
        .round(&mut [Active { sequence: &mut good, observer: &mut a }, Active { sequence: &mut bad, observer: &mut b }])
        .unwrap()
    {}
    assert_eq!(good.finish().unwrap().settled, 8);
    assert!(matches!(bad.finish(), Err(DecodeError::NotFinite { position: 9, .. })));
}
