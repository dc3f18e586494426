//! Which positions a call decodes, block by block, and where they lie in the caches.
//!
//! Invariant: the blocks of a plan cover the positions from the first undecided one to the end, in order, without gaps;
//! every pass that the loop will ask for fits the compiled steps and the caches.

use std::ops::Range;

use super::error::{DecodeError, FinishReason};
use super::policy::{Attention, BlockGrid, DecodePolicy, Lead, PromptTail};
use super::resolve::Resolved;
use crate::exec::Executor;

/// What a call will do, known before anything runs.
#[derive(Debug)]
pub(super) struct Plan {
    /// The blocks to decode, in order.
    pub(super) blocks: Vec<Block>,
    /// Position after the last one.
    pub(super) end: usize,
    /// Cut points of the prefill: each pass feeds what lies between two neighbors.
    pub(super) prefill: Vec<usize>,
    /// Why decoding ends when every block was decoded.
    pub(super) finish: FinishReason,
}

/// One block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Its positions.
    pub(super) cells: Range<usize>,
    /// First position that its passes feed; later than its first position when the prefill has fed that already.
    pub(super) fed_from: usize,
}

impl Plan {
    /// Plans a call. The rows of the first `held` positions of `prompt` are in the sequence's slots already.
    pub(super) fn new(
        resolved: &Resolved,
        executor: &dyn Executor,
        prompt: &[i32],
        max_new: usize,
        held: usize,
    ) -> Result<Self, DecodeError> {
        let policy = &resolved.policy;
        let undecided = check_prompt(executor, policy, prompt, max_new)?;
        let largest = executor.step_buckets().last().copied().unwrap_or(0);
        let rows = executor.max_seq();
        let whole_blocks = policy.attention != Attention::Full;
        let room = if whole_blocks { rows / policy.block * policy.block } else { rows };
        if prompt.len() + usize::from(max_new > 0) > room {
            let (prompt, longest) = (prompt.len(), room.saturating_sub(1));
            return Err(DecodeError::PromptTooLong { prompt, max_seq: rows, longest });
        }
        let wanted = prompt.len().saturating_add(max_new);
        let finish = if wanted > room { FinishReason::ContextFull } else { FinishReason::MaxTokens };
        let end = match wanted.min(room) {
            end if !whole_blocks => end,
            // The block before decides the one token that is wanted of the next.
            end if policy.lead != Lead::None && end % policy.block == 1 && end > prompt.len().max(1) => end,
            end => end.next_multiple_of(policy.block),
        };
        if !policy.commits() && end > largest {
            return Err(DecodeError::PassTooLarge { positions: end, largest });
        }
        let grid = Grid::new(policy, prompt.len());
        let mut blocks = Vec::new();
        let mut next = undecided;
        while next < end {
            let cells = grid.block_of(next);
            let cells = cells.start..cells.end.min(end);
            let tail_is_prefilled = policy.prompt_tail == PromptTail::Prefilled && undecided == prompt.len();
            let fed_from = if tail_is_prefilled { cells.start.max(prompt.len()) } else { cells.start };
            next = cells.end;
            blocks.push(Block { cells, fed_from });
        }
        let prefilled = blocks.first().map_or(0, |block| if policy.commits() { block.fed_from } else { 0 });
        let kept = resolved.reusable(held, prefilled);
        let prefill = prefill_cuts(policy, &grid, kept..prefilled, largest.min(resolved.prefill_rows));
        Ok(Self { blocks, end, prefill, finish })
    }
}

/// The blocks of the sequence, before they are cut at its end.
struct Grid {
    /// Where the first whole block begins; what lies below is a short block of its own.
    origin: usize,
    block: usize,
}

impl Grid {
    fn new(policy: &DecodePolicy, prompt: usize) -> Self {
        let origin = match policy.grid {
            BlockGrid::Absolute => 0,
            BlockGrid::PromptEnd => prompt % policy.block,
        };
        Self { origin, block: policy.block }
    }

    fn block_of(&self, position: usize) -> Range<usize> {
        match position.checked_sub(self.origin) {
            None => 0..self.origin,
            Some(offset) => {
                let start = self.origin + offset / self.block * self.block;
                start..start.saturating_add(self.block)
            }
        }
    }
}

/// A pass may hold several blocks only when the attention mask keeps them apart.
fn prefill_cuts(policy: &DecodePolicy, grid: &Grid, cells: Range<usize>, largest: usize) -> Vec<usize> {
    let end = cells.end;
    let next = |start: usize| match policy.attention {
        Attention::Full => grid.block_of(start).end,
        Attention::BlockCausal => start + (largest / policy.block * policy.block).max(policy.block),
        Attention::Causal => start + largest.max(1),
    };
    std::iter::successors(Some(cells.start), |&start| (start < end).then(|| next(start).min(end))).collect()
}

/// Returns the first undecided position.
fn check_prompt(
    executor: &dyn Executor,
    policy: &DecodePolicy,
    prompt: &[i32],
    max_new: usize,
) -> Result<usize, DecodeError> {
    if prompt.is_empty() {
        return Err(DecodeError::EmptyPrompt);
    }
    let bad = |&(_, &id): &(usize, &i32)| usize::try_from(id).map_or(true, |id| id >= executor.vocab());
    if let Some((position, &id)) = prompt.iter().enumerate().find(bad) {
        return Err(DecodeError::TokenId { position, id });
    }
    match prompt.iter().position(|&id| id == policy.mask_id) {
        None if max_new == 0 => Err(DecodeError::ZeroMaxNew),
        None => Ok(prompt.len()),
        Some(position) => Ok(position),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::mock::Mock;

    fn try_plan(policy: &DecodePolicy, buckets: &[usize], prompt: &[i32], max_new: usize) -> Result<Plan, DecodeError> {
        let mock = Mock::new(64, 32, buckets);
        Plan::new(&policy.clone().resolve(&mock).unwrap(), &mock, prompt, max_new, 0)
    }

    fn plan(policy: &DecodePolicy, prompt: usize, max_new: usize) -> Plan {
        try_plan(policy, &[8, 40], &vec![5; prompt], max_new).unwrap()
    }

    fn cells(plan: &Plan) -> Vec<Range<usize>> {
        plan.blocks.iter().map(|block| block.cells.clone()).collect()
    }

    #[test]
    fn absolute_blocks_are_whole_and_share_the_first_with_the_prompt() {
        let plan = plan(&DecodePolicy::greedy(0, 8), 11, 10);
        assert_eq!(cells(&plan), [8..16, 16..24]);
        assert_eq!((plan.prefill, plan.end), (vec![0, 8], 24));
    }

    #[test]
    fn blocks_from_the_prompt_end_may_be_short_at_both_ends() {
        let policy = DecodePolicy { block: 8, ..DecodePolicy::llada(0) };
        assert_eq!(cells(&plan(&policy, 11, 10)), [11..19, 19..21]);
        let bd3lm = plan(&DecodePolicy::bd3lm(0, None, 8), 11, 10);
        assert_eq!(cells(&bd3lm), [11..19, 19..21]);
        assert_eq!(bd3lm.prefill, [0, 3, 11], "full attention prefills block by block");
    }

    #[test]
    fn a_prefilled_tail_is_not_fed_again() {
        let policy = DecodePolicy {
            grid: BlockGrid::Absolute,
            prompt_tail: PromptTail::Prefilled,
            ..DecodePolicy::bd3lm(0, None, 8)
        };
        let plan = plan(&policy, 13, 8);
        assert_eq!(plan.blocks[0], Block { cells: 8..16, fed_from: 13 });
        assert_eq!(plan.blocks[1], Block { cells: 16..21, fed_from: 16 });
        assert_eq!(plan.prefill, [0, 8, 13]);
    }

    #[test]
    fn a_led_token_needs_no_block_of_its_own() {
        let policy = DecodePolicy::fast_dllm_v2(0, 8);
        assert_eq!(cells(&plan(&policy, 5, 12)), [0..8, 8..16, 16..17]);
        assert_eq!(plan(&policy, 16, 1).end, 17);
        assert_eq!(plan(&policy, 16, 2).end, 24);
        assert_eq!(plan(&DecodePolicy::autoregressive(), 50, 3).prefill, [0, 40, 50]);
    }

    #[test]
    fn infilling_begins_at_the_first_mask() {
        let policy = DecodePolicy { block: 8, grid: BlockGrid::Absolute, ..DecodePolicy::mdlm(0) };
        let mut prompt = vec![5; 30];
        (prompt[11], prompt[25]) = (0, 0);
        let plan = try_plan(&policy, &[40], &prompt, 0).unwrap();
        assert_eq!(cells(&plan), [8..16, 16..24, 24..30]);
    }

    #[test]
    fn what_the_caches_hold_is_not_prefilled_again() {
        let cuts = |policy: &DecodePolicy, held: usize| {
            let mock = Mock::new(64, 32, &[8]);
            let resolved = policy.clone().resolve(&mock).unwrap();
            Plan::new(&resolved, &mock, &[5; 30], 4, held).unwrap().prefill
        };
        let block = DecodePolicy::greedy(0, 4);
        assert_eq!(cuts(&block, 0), [0, 8, 16, 24, 28]);
        assert_eq!(cuts(&block, 19), [16, 24, 28], "whole blocks only");
        assert_eq!(cuts(&block, 30), [28], "nothing is left to prefill");
        assert_eq!(cuts(&DecodePolicy::fast_dllm_v2(0, 4), 30), [24, 28], "the last block leads");
        assert_eq!(cuts(&DecodePolicy::autoregressive(), 30), [29, 30], "the last row leads");
        assert_eq!(cuts(&DecodePolicy::bd3lm(0, None, 4), 30)[0], 0, "with full attention every row sees what follows");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_advice() {
        let error = try_plan(&DecodePolicy::llada(0), &[8, 40], &[5; 20], 21).unwrap_err();
        assert!(error.to_string().contains("41 positions"), "{error}");
        let error = try_plan(&DecodePolicy::bd3lm(0, None, 8), &[8, 40], &[5; 64], 1).unwrap_err();
        assert!(error.to_string().contains("at most 63 tokens"), "{error}");
    }
}
