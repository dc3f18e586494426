//! The loop that interprets a decode policy.
//!
//! Invariant: the sequence is one vector of ids in which a position is undecided exactly when it holds the mask id, so a
//! change may reveal, replace or mask a position again. Every forward pass is announced before it runs and can be
//! refused by the observer, which is how cancellation, deadlines, traces and streaming attach. The loop does not know
//! text, and it ends: a rule that has not finished a block within its schedule and one more pass per position is overruled.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use super::noise::{Noise, NoiseRow};
use super::policy::{BlockGrid, CacheMode, ConfidenceStage, DecodePolicy, Resolved};
use super::reveal::{Candidate, Change, Pass, even_schedule};
use super::trace::{Forward, ForwardKind, Moment, Passes, Times};
use super::{DecodeError, FinishReason, sample};
use crate::exec::{Executor, RowStats, StepCall};

/// What [`decode`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The whole sequence, prompt included, up to the end of the last planned block. After an early end the blocks that
    /// were not reached hold the mask id; a block that holds a stop token is kept whole.
    pub ids: Vec<i32>,
    /// Positions before this one are decided.
    pub settled: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of passes.
    pub passes: Passes,
    /// Time in the executor.
    pub times: Times,
}

/// Tells the caller what happens; breaking ends the decode with the given reason.
type Observer<'o> = dyn FnMut(Moment<'_>) -> ControlFlow<FinishReason> + 'o;

/// Decodes at least `max_new` tokens after `prompt`, in whole blocks: the number of new tokens is rounded up to the end
/// of a block, or down to the last block that fits into the caches. With an absolute grid, the first decoded block may
/// begin with the end of the prompt.
///
/// Follows SDAR's `block_diffusion_generate`: one commit pass after every block, the last one included, and an end after
/// the block that holds a stop token.
///
/// # Errors
/// An unusable prompt or policy before anything runs; whatever the executor reports later.
pub fn decode(
    executor: &mut dyn Executor,
    policy: &DecodePolicy,
    prompt: &[i32],
    max_new: usize,
    noise: &Noise,
    observer: &mut Observer<'_>,
) -> Result<Decoded, DecodeError> {
    let resolved = policy.resolve(executor)?;
    check_prompt(executor, policy, prompt, max_new)?;
    let blocks = Blocks::plan(policy, prompt.len(), max_new, executor.max_seq());
    let mut ids = prompt.to_vec();
    ids.resize(blocks.end, policy.mask_id);

    let schedule = even_schedule(policy.block, policy.steps);
    let mut run = Run {
        executor,
        policy,
        resolved,
        noise,
        observer,
        ids,
        prompt: prompt.len(),
        passes: Passes::default(),
        times: Times::default(),
        logits: Vec::new(),
    };
    let mut settled = prompt.len();
    let finish = match run.prefill(blocks.first) {
        Err(halt) => halt.reason()?,
        Ok(()) => loop {
            let start = settled / policy.block * policy.block;
            if start == blocks.end {
                break if blocks.cut_short { FinishReason::ContextFull } else { FinishReason::MaxTokens };
            }
            let block = start..start + policy.block;
            if let Err(halt) = run.block(block.clone(), &schedule, &mut settled) {
                break halt.reason()?;
            }
            if run.ids[block.start.max(prompt.len())..block.end].iter().any(|id| policy.stop_ids.contains(id)) {
                break FinishReason::StopId;
            }
        },
    };
    Ok(Decoded { ids: run.ids, settled, finish, passes: run.passes, times: run.times })
}

fn check_prompt(
    executor: &dyn Executor,
    policy: &DecodePolicy,
    prompt: &[i32],
    max_new: usize,
) -> Result<(), DecodeError> {
    if prompt.is_empty() {
        return Err(DecodeError::EmptyPrompt);
    }
    if max_new == 0 {
        return Err(DecodeError::ZeroMaxNew);
    }
    for (position, &id) in prompt.iter().enumerate() {
        if usize::try_from(id).map_or(true, |id| id >= executor.vocab()) {
            return Err(DecodeError::TokenId { position, id });
        }
        if id == policy.mask_id {
            return Err(DecodeError::MaskInPrompt { position });
        }
    }
    let max_seq = executor.max_seq();
    let longest = match policy.grid {
        BlockGrid::Absolute => max_seq / policy.block * policy.block - 1,
    };
    if prompt.len() > longest {
        return Err(DecodeError::PromptTooLong { prompt: prompt.len(), max_seq, longest });
    }
    Ok(())
}

/// The blocks of a call: `first..end` is a whole number of them.
struct Blocks {
    /// First position of the first decoded block; everything below it is prefilled.
    first: usize,
    /// Position after the last block.
    end: usize,
    /// Whether the caches hold fewer blocks than were asked for.
    cut_short: bool,
}

impl Blocks {
    fn plan(policy: &DecodePolicy, prompt: usize, max_new: usize, max_seq: usize) -> Self {
        match policy.grid {
            BlockGrid::Absolute => {
                let wanted = prompt.saturating_add(max_new);
                let room = max_seq / policy.block * policy.block;
                let first = prompt / policy.block * policy.block;
                if wanted > room {
                    Self { first, end: room, cut_short: true }
                } else {
                    Self { first, end: wanted.next_multiple_of(policy.block), cut_short: false }
                }
            }
        }
    }
}

/// Why a part of the loop did not run to its end.
enum Halt {
    Finish(FinishReason),
    Error(DecodeError),
}

impl Halt {
    fn reason(self) -> Result<FinishReason, DecodeError> {
        match self {
            Halt::Finish(reason) => Ok(reason),
            Halt::Error(error) => Err(error),
        }
    }
}

impl<E: Into<DecodeError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Error(error.into())
    }
}

struct Run<'a, 'o> {
    executor: &'a mut dyn Executor,
    policy: &'a DecodePolicy,
    resolved: Resolved,
    noise: &'a Noise,
    observer: &'a mut Observer<'o>,
    ids: Vec<i32>,
    prompt: usize,
    passes: Passes,
    times: Times,
    /// Logits of the masked rows of a pass, `[rows, vocab]`.
    logits: Vec<f32>,
}

impl Run<'_, '_> {
    /// Writes the cache rows below `end`, which is a multiple of the block length, in chunks that are.
    fn prefill(&mut self, end: usize) -> Result<(), Halt> {
        let largest = self.executor.step_buckets().last().copied().unwrap_or(self.policy.block);
        let chunk = largest / self.policy.block * self.policy.block;
        for start in (0..end).step_by(chunk) {
            self.forward(ForwardKind::Prefill, start..end.min(start + chunk))?;
        }
        Ok(())
    }

    /// Decodes one block and writes its permanent cache rows.
    fn block(&mut self, block: Range<usize>, schedule: &[usize], settled: &mut usize) -> Result<(), Halt> {
        for step in 0.. {
            let masked: Vec<usize> =
                block.clone().filter(|&position| self.ids[position] == self.policy.mask_id).collect();
            if masked.is_empty() {
                break;
            }
            self.forward(ForwardKind::Block, block.clone())?;
            let candidates = self.candidates(&block, &masked)?;
            let quota = schedule.get(step).copied().unwrap_or(masked.len());
            let mut changes = Vec::new();
            let pass = Pass { candidates: &candidates, quota, params: &self.resolved.params };
            if step < schedule.len() + block.len() {
                (self.resolved.rule.reveal)(&pass, &mut changes);
            } else {
                changes.extend(candidates.iter().map(|c| Change { offset: c.offset, token: c.token }));
            }
            for Change { offset, token } in changes {
                let position = block.start + offset;
                if position >= self.prompt {
                    self.ids[position] = token;
                }
            }
            self.tell(|ids| Moment::Revealed { ids, start: block.start, end: block.end })?;
        }
        *settled = block.end;
        self.tell(|ids| Moment::Settled { ids, end: block.end })?;
        match self.policy.cache {
            CacheMode::CommitBlock => self.forward(ForwardKind::Commit, block.clone())?,
        }
        self.tell(|_| Moment::Committed { start: block.start, end: block.end })
    }

    fn tell<'s>(&'s mut self, moment: impl FnOnce(&'s [i32]) -> Moment<'s>) -> Result<(), Halt> {
        match (self.observer)(moment(&self.ids)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(reason) => Err(Halt::Finish(reason)),
        }
    }

    /// One forward pass over `window`, which sees everything below its end that the artifact's mask lets it see.
    fn forward(&mut self, kind: ForwardKind, window: Range<usize>) -> Result<(), Halt> {
        let (q_start, q_len, past_len) = (window.start, window.len(), window.start);
        self.tell(|ids| Moment::Forward(Forward { kind, q_start, q_len, past_len, ids }))?;
        let pos: Vec<i32> = (0..).skip(window.start).take(window.len()).collect();
        let begin = Instant::now();
        self.executor.step(StepCall {
            ids: &self.ids[window.clone()],
            pos: &pos,
            at: window.start,
            from: 0,
            visible: window.end,
        })?;
        let (count, time) = match kind {
            ForwardKind::Prefill => (&mut self.passes.prefill, &mut self.times.prefill),
            ForwardKind::Block => (&mut self.passes.denoise, &mut self.times.step),
            ForwardKind::Commit => (&mut self.passes.commit, &mut self.times.commit),
        };
        *count += 1;
        *time += begin.elapsed();
        Ok(())
    }

    /// What the model proposes for the masked positions of the block that was just run.
    fn candidates(&mut self, block: &Range<usize>, masked: &[usize]) -> Result<Vec<Candidate>, Halt> {
        let begin = Instant::now();
        let rows: Vec<usize> =
            masked.iter().map(|position| (position - block.start).saturating_sub(self.policy.logit_shift)).collect();
        let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows.len()];
        let mut entropies = Vec::with_capacity(rows.len());
        if self.needs_logits() {
            let vocab = self.executor.vocab();
            self.logits.resize(rows.len() * vocab, 0.0);
            self.executor.logits(&rows, &mut self.logits)?;
            for ((row, stats), &position) in self.logits.chunks_exact(vocab).zip(&mut stats).zip(masked) {
                let at = NoiseRow {
                    pass: u32::try_from(self.passes.head).unwrap_or(u32::MAX),
                    position: u32::try_from(position).unwrap_or(u32::MAX),
                    row: position - block.start,
                };
                let drawn = sample::choose(row, self.policy, self.noise, at).ok_or(DecodeError::BadRow { position })?;
                *stats = drawn.stats;
                entropies.push(drawn.entropy);
            }
        } else {
            self.executor.head(&rows, &mut stats)?;
            entropies.extend(stats.iter().map(|stats| stats.entropy));
            if self.policy.top_k == 1 && self.policy.confidence_stage == ConfidenceStage::AfterFilters {
                for stats in &mut stats {
                    *stats = RowStats { prob: 1.0, margin: 1.0, entropy: 0.0, ..*stats };
                }
            }
        }
        self.passes.head += 1;
        self.times.head += begin.elapsed();

        let of = self.resolved.confidence.of;
        let rows = masked.iter().zip(&stats).zip(&entropies);
        rows.map(|((&position, stats), &entropy)| {
            let confidence = of(stats);
            let token = stats.best;
            let known = usize::try_from(token).is_ok_and(|token| token < self.executor.vocab());
            if confidence.is_nan() || entropy.is_nan() || !known || token == self.policy.mask_id {
                return Err(DecodeError::BadRow { position }.into());
            }
            Ok(Candidate { offset: position - block.start, token, confidence, entropy })
        })
        .collect()
    }

    /// Whether the head's statistics do not say enough. With `top_k` 1 the filtered distribution is known to be one
    /// certain token.
    fn needs_logits(&self) -> bool {
        let policy = self.policy;
        let filtered = policy.top_k != 1 && (policy.top_k != 0 || policy.top_p < 1.0);
        !policy.is_greedy() || (filtered && policy.confidence_stage == ConfidenceStage::AfterFilters)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::mock::{Call, Mock};
    use crate::decode::policy::Reveal;
    use crate::decode::reveal::RevealRule;
    use crate::exec::ExecError;

    fn run(mock: &mut Mock, policy: &DecodePolicy, prompt: &[i32], max_new: usize) -> Result<Decoded, DecodeError> {
        decode(mock, policy, prompt, max_new, &Noise::Seeded(policy.seed), &mut |_| ControlFlow::Continue(()))
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
        assert_eq!(mock.calls[0], Call::Step { at: 0, len: 8, visible: 8 });
        assert_eq!(mock.calls[1], Call::Step { at: 8, len: 4, visible: 12 });
        assert_eq!(mock.calls[2], Call::Head(vec![3]), "only the masked row of the shared block");
        assert_eq!(mock.calls[3], Call::Step { at: 8, len: 4, visible: 12 }, "the commit has no head");
        assert_eq!(mock.calls[5], Call::Head(vec![0, 1, 2, 3]));
    }

    #[test]
    fn long_prompts_are_prefilled_in_chunks_of_whole_blocks() {
        let mut mock = Mock::new(64, 32, &[4, 10]);
        let decoded = run(&mut mock, &greedy(), &[5; 21], 3).unwrap();
        let steps: Vec<_> = mock.calls.iter().take(3).cloned().collect();
        assert_eq!(steps[0], Call::Step { at: 0, len: 8, visible: 8 });
        assert_eq!(steps[1], Call::Step { at: 8, len: 8, visible: 16 });
        assert_eq!(steps[2], Call::Step { at: 16, len: 4, visible: 20 });
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
        assert!(matches!(run(&mut mock, &greedy(), &[1, 0], 4), Err(DecodeError::MaskInPrompt { position: 1 })));
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
        assert!(matches!(run(&mut mock, &greedy(), &[1], 8), Err(DecodeError::BadRow { position: 3 })));
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
    fn a_rule_that_never_reveals_is_overruled() {
        static IDLE: RevealRule = RevealRule { name: "idle", doc: "", params: &[], reveal: |_, _| {} };
        let (mut mock, policy) = (Mock::new(16, 32, &[8]), greedy());
        let resolved = Resolved { rule: &IDLE, ..policy.resolve(&mock).unwrap() };
        let mut run = Run {
            executor: &mut mock,
            policy: &policy,
            resolved,
            noise: &Noise::Seeded(0),
            observer: &mut |_| ControlFlow::Continue(()),
            ids: vec![5, 0, 0, 0],
            prompt: 1,
            passes: Passes::default(),
            times: Times::default(),
            logits: Vec::new(),
        };
        let mut settled = 1;
        assert!(run.block(0..4, &[2, 2], &mut settled).is_ok());
        assert_eq!((settled, run.passes.denoise), (4, 2 + 4 + 1));
        assert!(!run.ids.contains(&0));
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
        let mut observe = |moment: Moment<'_>| {
            all.push(format!("{moment:?}"));
            ControlFlow::Continue(())
        };
        decode(&mut mock, &greedy(), &prompt, 6, &Noise::Seeded(0), &mut observe).unwrap();
        for stop_at in 0..all.len() {
            let mut seen = Vec::new();
            let mut observe = |moment: Moment<'_>| {
                seen.push(format!("{moment:?}"));
                if seen.len() > stop_at {
                    ControlFlow::Break(FinishReason::Cancelled)
                } else {
                    ControlFlow::Continue(())
                }
            };
            let mut mock = Mock::new(64, 32, &[8]);
            let decoded = decode(&mut mock, &greedy(), &prompt, 6, &Noise::Seeded(0), &mut observe).unwrap();
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
    }
}
