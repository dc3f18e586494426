//! What a policy changes of a row of logits before anything else happens to it: biases, penalties for tokens that are there
//! already, and stop tokens that would come too early.
//!
//! Invariant: what a row becomes depends on the policy, on the row's position and on which tokens the sequence holds, not on
//! where they stand or when they were decided. A diffusion model's penalties thus count what is decided on both sides of a
//! position. Masks are no tokens here, and the answer's own stop tokens do not count: an answer has none, what stands
//! behind the first is no part of it. Nothing here knows rows of other positions, or chooses.
//!
//! The order is that of vLLM, and of Hugging Face as far as it has the same: the bias is added; the repetition penalty
//! divides or multiplies; frequency and presence penalties are taken off; stop tokens are banned.

use std::collections::BTreeMap;

use super::policy::DecodePolicy;

/// The tokens of a sequence, as far as penalties ask for them.
#[derive(Clone, Debug)]
pub struct Adjust {
    /// Position of the answer's first token.
    begin: usize,
    held: BTreeMap<i32, Held>,
}

/// How often a token is there.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    prompt: usize,
    answer: usize,
}

impl Adjust {
    /// Of a prompt, whose masks are part of the answer; nothing where the policy leaves logits as they are.
    pub fn new(policy: &DecodePolicy, prompt: &[i32]) -> Option<Self> {
        let begin = prompt.iter().position(|&id| id == policy.mask_id).unwrap_or(prompt.len());
        let mut held: BTreeMap<i32, Held> = BTreeMap::new();
        // Nothing else asks for what the prompt has.
        let asked = |id: &&i32| policy.repetition_penalty != 1.0 && **id != policy.mask_id;
        for &id in prompt.iter().filter(asked) {
            held.entry(id).or_default().prompt += 1;
        }
        policy.adjusts().then_some(Self { begin, held })
    }

    /// The answer has one token more.
    pub fn add(&mut self, policy: &DecodePolicy, token: i32) {
        if counts(policy, token) {
            self.held.entry(token).or_default().answer += 1;
        }
    }

    /// The answer has lost a token.
    pub fn remove(&mut self, policy: &DecodePolicy, token: i32) {
        if let Some(held) = self.held.get_mut(&token).filter(|_| counts(policy, token)) {
            held.answer = held.answer.saturating_sub(1);
        }
    }

    /// Changes the logits of the row that says what stands at `position`, `[vocab]`.
    pub fn apply(&self, policy: &DecodePolicy, position: usize, row: &mut [f32]) {
        for (&token, bias) in &policy.logit_bias {
            logit(row, token).into_iter().for_each(|logit| *logit += bias);
        }
        let repetition = policy.repetition_penalty;
        for (&token, held) in self.held.iter().filter(|(_, held)| held.prompt + held.answer > 0) {
            let Some(logit) = logit(row, token) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            let present = if held.answer > 0 { policy.presence_penalty } else { 0.0 };
            *logit -= policy.frequency_penalty * held.answer as f32 + present;
        }
        if position < self.begin.saturating_add(policy.min_tokens) {
            for &stop in &policy.stop_ids {
                logit(row, stop).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
            }
        }
    }
}

/// The logit of a token in a row.
fn logit(row: &mut [f32], token: i32) -> Option<&mut f32> {
    usize::try_from(token).ok().and_then(|index| row.get_mut(index))
}

/// Whether a token of the answer counts.
fn counts(policy: &DecodePolicy, token: i32) -> bool {
    token != policy.mask_id && !policy.stop_ids.contains(&token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, written down from the documents of OpenAI, vLLM and Hugging Face, for one token of a plain sequence.
    fn expected(policy: &DecodePolicy, prompt: &[i32], answer: &[i32], token: i32, logit: f32) -> f32 {
        let count = answer.iter().filter(|id| **id == token).count();
        let mut logit = logit + policy.logit_bias.get(&token).copied().unwrap_or(0.0);
        if prompt.contains(&token) || count > 0 {
            logit = if logit < 0.0 { logit * policy.repetition_penalty } else { logit / policy.repetition_penalty };
        }
        logit -= count as f32 * policy.frequency_penalty;
        logit -= f32::from(u8::from(count > 0)) * policy.presence_penalty;
        if policy.stop_ids.contains(&token) && answer.len() < policy.min_tokens { f32::NEG_INFINITY } else { logit }
    }

    proptest! {
        #[test]
        fn rows_are_what_the_documents_say(
            prompt in proptest::collection::vec(1i32..12, 0..9),
            answer in proptest::collection::vec(2i32..11, 0..9),
            logits in proptest::collection::vec(-9.0f32..9.0, 12),
            bias in proptest::collection::btree_map(0i32..14, -100.0f32..100.0, 0..4),
            (repetition_penalty, frequency_penalty, presence_penalty) in (0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0),
            min_tokens in 0usize..6,
        ) {
            let policy = DecodePolicy {
                logit_bias: bias,
                repetition_penalty,
                frequency_penalty,
                presence_penalty,
                min_tokens,
                stop_ids: vec![1, 11],
                ..DecodePolicy::greedy(0, 4)
            };
            let mut adjust = Adjust::new(&policy, &prompt).unwrap();
            // Masks and stop tokens come and go without a trace, and so does what was put back.
            for token in [0, 1, 11, 5] {
                adjust.add(&policy, token);
                adjust.remove(&policy, token);
            }
            adjust.add(&policy, 11);
            answer.iter().for_each(|&token| adjust.add(&policy, token));
            let mut row = logits.clone();
            adjust.apply(&policy, prompt.len() + answer.len(), &mut row);
            for (token, (found, logit)) in (0..).zip(row.into_iter().zip(logits)) {
                let expected = expected(&policy, &prompt, &answer, token, logit);
                prop_assert!(found == expected || (found - expected).abs() < 1e-4, "{token}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn a_policy_that_changes_nothing_has_none() {
        assert!(Adjust::new(&DecodePolicy::greedy(0, 4), &[1, 2]).is_none());
        let biased = DecodePolicy { logit_bias: BTreeMap::from([(3, 1.0)]), ..DecodePolicy::greedy(0, 4) };
        assert!(Adjust::new(&biased, &[1, 2]).is_some());
    }

    #[test]
    fn an_answer_that_fills_in_begins_at_the_first_mask() {
        let policy = DecodePolicy { min_tokens: 2, stop_ids: vec![1], ..DecodePolicy::greedy(0, 4) };
        let adjust = Adjust::new(&policy, &[5, 0, 6, 0]).unwrap();
        let stop = |position| {
            let mut row = [0.0; 8];
            adjust.apply(&policy, position, &mut row);
            row[1]
        };
        assert_eq!([1, 2, 3].map(stop), [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]);
    }
}
