//! Which calls a token costs under a decoding policy: the decoder itself is run on an executor without a model, which
//! notes every call and answers either with certainty (fewest passes) or without any (most passes).
//!
//! Nothing is assumed of a policy here. What the model would really answer lies between the two, and is not known.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use dlx_ir::{Error, SpanRows};
use dlx_runtime::decode::{DecodePolicy, ForwardKind, Moment, Noise, decode};
use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};

/// A call that the decoder made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A step over these spans.
    Step(Vec<SpanRows>),
    /// Statistics of that many rows.
    Head(usize),
    /// Logits of that many rows.
    Logits(usize),
}

/// How sure the made-up model is of its answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answers {
    /// One token has all probability.
    Certain,
    /// All tokens are about as likely.
    Uncertain,
}

/// Sizes that the decoder asks an executor for.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    /// Cache rows.
    pub max_seq: usize,
    /// Tokens.
    pub vocab: usize,
    /// Rows of the compiled steps, ascending.
    pub buckets: &'a [usize],
}

/// The calls of one block of new tokens behind about `depth` others, whose own passes are left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Tokens before it: whole blocks, at least one.
    pub behind: usize,
    /// Tokens that it makes.
    pub tokens: usize,
    /// Its calls, in order.
    pub calls: Vec<Asked>,
}

impl Block {
    /// Forward passes.
    pub fn forwards(&self) -> usize {
        self.calls.iter().filter(|c| matches!(c, Asked::Step(_))).count()
    }
}

/// Runs the decoder for a block.
///
/// # Errors
/// When the policy cannot run with these sizes, or no block fits behind so many tokens.
pub fn block(policy: &DecodePolicy, sizes: Sizes<'_>, depth: usize, answers: Answers) -> Result<Block, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new("decode policy", e.to_string());
    // A stop token would end the block early.
    let policy = DecodePolicy { stop_ids: Vec::new(), stop_strings: Vec::new(), ..policy.clone() };
    let behind = (depth / policy.block.max(1)).max(1).saturating_mul(policy.block);
    // A block that another follows is committed; passes over a whole sequence end with the block.
    let blocks = if policy.commits() { 2 } else { 1 };
    let new = policy.block.saturating_mul(blocks);
    if behind.saturating_add(new) > sizes.max_seq {
        let message = format!("{new} new tokens behind {behind} others do not fit caches of {} rows", sizes.max_seq);
        return Err(Error::new("--depth", message).help("use a smaller --depth, or compile with a longer --max-seq"));
    }
    let special =
        |t: &i32| [policy.mask_id].iter().chain(&policy.hidden_id).chain(&policy.suppress_ids).any(|s| s == t);
    let unsure = |t: &i32| policy.unsure_ids.contains(t);
    let token = (0..i32::try_from(sizes.vocab).unwrap_or(i32::MAX)).find(|t| !special(t) && !unsure(t));
    let token = token.ok_or_else(|| failed(&"it leaves no token to choose"))?;
    let (counts, calls) = (Cell::new(false), RefCell::new(Vec::new()));
    let mut recorder = Recorder { sizes, answers, token, slots: 1, rows: 0, counts: &counts, calls: &calls };
    let resolved = policy.clone().resolve(&recorder).map_err(|e| failed(&e))?;
    let end = behind + policy.block;
    let mut observer = |moment: Moment<'_>| {
        if let Moment::Forward(pass) = moment {
            counts.set(pass.kind != ForwardKind::Prefill && pass.q_start < end);
        }
        ControlFlow::Continue(())
    };
    let (prompt, noise) = (vec![token; behind], Noise::Seeded(policy.seed));
    decode(&mut recorder, resolved, &prompt, new, 0, noise, &mut observer).map_err(|e| failed(&e))?;
    Ok(Block { behind, tokens: policy.block, calls: calls.into_inner() })
}

/// An executor without a model.
struct Recorder<'a> {
    sizes: Sizes<'a>,
    answers: Answers,
    token: i32,
    slots: usize,
    /// Rows of the last step.
    rows: usize,
    /// Whether the pass that runs belongs to the block.
    counts: &'a Cell<bool>,
    calls: &'a RefCell<Vec<Asked>>,
}

impl Recorder<'_> {
    fn note(&self, call: Asked) {
        if self.counts.get() {
            self.calls.borrow_mut().push(call);
        }
    }
}

impl Executor for Recorder<'_> {
    fn max_seq(&self) -> usize {
        self.sizes.max_seq
    }

    fn vocab(&self) -> usize {
        self.sizes.vocab
    }

    fn step_buckets(&self) -> &[usize] {
        self.sizes.buckets
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        self.slots = self.slots.max(slots);
        Ok(())
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        let mut first = 0;
        let rows = spans.iter().map(|&Span { slot, ids, at, from, visible, .. }| {
            let rows = first..first + ids.len();
            first = rows.end;
            SpanRows { rows, slot, at, from, visible }
        });
        let rows = rows.collect();
        self.rows = first;
        self.note(Asked::Step(rows));
        Ok(())
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        let likely = 1.0 / self.sizes.vocab as f32;
        let (prob, margin, entropy) = match self.answers {
            Answers::Certain => (1.0, 1.0, 0.0),
            Answers::Uncertain => (likely, 0.0, -libm::logf(likely)),
        };
        out.fill(RowStats { best: self.token, prob, margin, entropy });
        self.note(Asked::Head(rows.len()));
        Ok(())
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        out.fill(0.0);
        if self.answers == Answers::Certain {
            let token = usize::try_from(self.token).unwrap_or(0);
            out.chunks_exact_mut(self.sizes.vocab).for_each(|row| row[token] = 80.0);
        }
        self.note(Asked::Logits(rows.len()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dlx_runtime::decode::Reveal;
    use dlx_runtime::decode::policy::CacheMode;

    use super::*;

    const SIZES: Sizes<'_> = Sizes { max_seq: 64, vocab: 16, buckets: &[4, 16, 64] };

    fn step(at: usize, rows: usize, visible: usize) -> Asked {
        Asked::Step(vec![SpanRows { rows: 0..rows, slot: 0, at, from: 0, visible }])
    }

    fn threshold(policy: DecodePolicy) -> DecodePolicy {
        DecodePolicy { reveal: Reveal::new("threshold"), ..policy }
    }

    #[test]
    fn a_block_of_four_takes_one_to_four_passes_and_a_commit() {
        let policy = threshold(DecodePolicy::greedy(15, 4));
        let best = block(&policy, SIZES, 10, Answers::Certain).unwrap();
        // Ten tokens are two whole blocks and a part, which is left out.
        assert_eq!((best.behind, best.tokens, best.forwards()), (8, 4, 2));
        assert_eq!(best.calls, [step(8, 4, 12), Asked::Head(4), step(8, 4, 12)]);
        let worst = block(&policy, SIZES, 10, Answers::Uncertain).unwrap();
        assert_eq!(worst.forwards(), 5);
        let heads: Vec<_> = worst.calls.iter().filter(|c| matches!(c, Asked::Head(_))).collect();
        assert_eq!(heads, [&Asked::Head(4), &Asked::Head(3), &Asked::Head(2), &Asked::Head(1)]);
        // One token per pass, however sure it is.
        let fixed = block(&DecodePolicy::greedy(15, 4), SIZES, 8, Answers::Certain).unwrap();
        assert_eq!(fixed.calls, worst.calls);
    }

    #[test]
    fn a_method_without_a_cache_feeds_everything_every_time() {
        let policy = DecodePolicy { block: 8, steps: 8, ..DecodePolicy::llada(15) };
        let best = block(&policy, SIZES, 16, Answers::Certain).unwrap();
        assert_eq!(best.calls, [step(0, 24, 24), Asked::Head(8)]);
        let dual = DecodePolicy { cache: CacheMode::Dual, ..policy };
        let worst = block(&dual, SIZES, 16, Answers::Uncertain).unwrap();
        assert_eq!((worst.forwards(), &worst.calls[2]), (8, &step(16, 8, 24)));
    }

    #[test]
    fn an_autoregressive_model_costs_a_pass_for_a_token() {
        let found = block(&DecodePolicy::autoregressive(), SIZES, 9, Answers::Certain).unwrap();
        assert_eq!((found.tokens, found.forwards()), (1, 1));
    }

    #[test]
    fn guidance_is_two_spans_and_drawing_reads_logits() {
        let policy = DecodePolicy { cfg_scale: 1.0, ..DecodePolicy::greedy(15, 4) };
        let Asked::Step(spans) = &block(&policy, SIZES, 8, Answers::Certain).unwrap().calls[0] else { panic!() };
        assert_eq!(spans.iter().map(|s| (s.slot, s.rows.clone())).collect::<Vec<_>>(), [(0, 0..4), (1, 4..8)]);
        let drawn = DecodePolicy { temperature: 1.0, ..DecodePolicy::greedy(15, 4) };
        assert!(block(&drawn, SIZES, 8, Answers::Certain).unwrap().calls.contains(&Asked::Logits(4)));
    }

    #[test]
    fn a_block_that_does_not_fit_is_refused() {
        let error = block(&DecodePolicy::greedy(15, 4), SIZES, 60, Answers::Certain).unwrap_err().to_string();
        assert!(error.contains("8 new tokens behind 60 others do not fit caches of 64 rows"), "{error}");
        let policy = DecodePolicy { reveal: Reveal::new("no such rule"), ..DecodePolicy::greedy(15, 4) };
        assert!(block(&policy, SIZES, 8, Answers::Certain).unwrap_err().to_string().contains("no such rule"));
    }
}
