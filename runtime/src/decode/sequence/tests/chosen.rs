//! Tokens chosen from rows of logits where they lie, against whole logits.

use proptest::prelude::*;

use super::*;
use crate::decode::Rows;
use crate::exec::Executor;

/// Decodes with whole logits, which the sequence chooses from by itself.
fn from_logits(mock: &mut Mock, policy: &DecodePolicy, prompt: &[i32], max_new: usize) -> Vec<i32> {
    let resolved = policy.clone().resolve(mock).unwrap();
    mock.reserve(resolved.slots()).unwrap();
    let slots = (0..resolved.slots()).collect();
    let noise = Noise::Seeded(policy.seed);
    let mut sequence = Sequence::new(resolved, mock, prompt, max_new, 0, slots, noise).unwrap();
    let observer: &mut Observer<'_> = &mut |_| ControlFlow::Continue(());
    while let Some(pass) = sequence.want(observer).cloned() {
        let mut logits = Vec::new();
        for span in pass.spans() {
            mock.step(&[span]).unwrap();
            let old = logits.len();
            logits.resize(old + pass.rows().len() * mock.vocab(), 0.0);
            mock.logits(pass.rows(), &mut logits[old..]).unwrap();
        }
        sequence.took(Rows::Logits(&mut logits), observer);
    }
    sequence.finish().unwrap().ids
}

proptest! {
    #[test]
    fn tokens_do_not_depend_on_where_and_when_rows_are_read(
        method in 0usize..8,
        (prompt, max_new, seed) in (1usize..30, 1usize..20, any::<u64>()),
        (top_k, top_p) in prop_oneof![Just((0usize, 1.0f32)), Just((5, 1.0)), Just((0, 0.9)), Just((9, 0.8))],
        cfg_scale in prop_oneof![3 => Just(0.0f32), 1 => Just(1.5)],
    ) {
        let cfg_scale = if method < 7 { cfg_scale } else { 0.0 };
        let policy = DecodePolicy { temperature: 0.7, top_k, top_p, seed, cfg_scale, ..method_of(method) };
        let prompt: Vec<i32> = (0..prompt).map(|i| 8 + ((seed as usize + i) % 20) as i32).collect();
        let new = || Mock::new(64, 32, &[8, 600]);
        let expected = from_logits(&mut new(), &policy, &prompt, max_new);
        for readers in [1, 3] {
            let mut mock = new();
            mock.readers = readers;
            let decoded = run(&mut mock, &policy, &prompt, max_new).unwrap();
            prop_assert_eq!(&decoded.ids, &expected);
        }
    }
}

#[test]
fn a_drawn_row_that_is_no_number_is_named() {
    for readers in [1, 3] {
        let mut mock = Mock::new(64, 32, &[16]);
        mock.readers = readers;
        mock.say_with(9, 7, f32::NAN);
        let policy = DecodePolicy { temperature: 0.7, ..greedy() };
        let error = run(&mut mock, &policy, &[5; 8], 4).unwrap_err();
        assert!(matches!(error, DecodeError::NotFinite { position: 9, .. }), "{error}");
    }
}
