//! What a decode tells its observer while it runs, and counts for its report.
//!
//! Plain data: nothing here decides anything.

use std::ops::AddAssign;
use std::time::Duration;

use super::pass::{ForwardKind, Pass};
use super::reveal::{Candidate, Change};
use super::sample::{Drawn, Logprob};

/// A forward pass that is about to run.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// What it is for.
    pub kind: ForwardKind,
    /// Position of the first token that it feeds.
    pub q_start: usize,
    /// Number of tokens that it feeds.
    pub q_len: usize,
    /// Positions whose cache rows it finds: those before its block, or all when it runs a block inside a full cache.
    pub past_len: usize,
    /// The whole sequence, undecided positions included.
    pub ids: &'a [i32],
    /// What a step feeds for it, and what is read of its rows.
    pub pass: &'a Pass,
}

/// Why positions got their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The row before a block decided its first token.
    Lead,
    /// The policy's reveal rule took them.
    Rule,
    /// The rule had not finished the block in time: everything was taken.
    Overruled,
}

/// What a pass said of the rows that were read, and what was made of it.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// Why.
    pub why: Why,
    /// Passes that chose tokens before this one: what random numbers are drawn for, see
    /// [`NoiseRow`](super::noise::NoiseRow).
    pub turn: usize,
    /// Positions that were looked at.
    pub positions: &'a [usize],
    /// The token chosen for each of them.
    pub drawn: &'a [Drawn],
    /// What the rule saw of each of them; nothing for a lead.
    pub candidates: &'a [Candidate],
    /// How many positions the schedule gave to this step, with what earlier steps left.
    pub quota: usize,
    /// The same as a part of the masked positions, before rounding.
    pub part: f32,
    /// What it changes, in the order in which the rule took it.
    pub changes: &'a [Change],
    /// How likely each of these tokens was in the law that it was chosen from; nothing unless asked for.
    pub logprobs: &'a [Logprob],
}

/// What the observer of [`decode`](super::decode) is told, in order.
#[derive(Clone, Copy, Debug)]
pub enum Moment<'a> {
    /// A forward pass is about to run.
    Forward(Forward<'a>),
    /// A denoising pass changed positions of the block `start..end`.
    Revealed {
        /// The whole sequence.
        ids: &'a [i32],
        /// First position of the block.
        start: usize,
        /// Position after the block.
        end: usize,
        /// Why they were changed.
        decision: Decision<'a>,
    },
    /// A drafter has proposed tokens.
    Drafted {
        /// The sequence before them.
        ids: &'a [i32],
        /// The tokens that will be verified.
        tokens: &'a [i32],
    },
    /// A verifier has decided.
    Judged {
        /// The sequence before what it decided.
        ids: &'a [i32],
        /// What was proposed.
        drafted: &'a [i32],
        /// How many of those, from the first, are part of the text.
        accepted: usize,
        /// All tokens that it decided.
        tokens: &'a [i32],
        /// How likely each of them was in the verifier's law; nothing unless asked for.
        logprobs: &'a [Logprob],
    },
    /// No position before `end` will change any more.
    Settled {
        /// The whole sequence.
        ids: &'a [i32],
        /// Position after the block.
        end: usize,
    },
    /// The block `start..end` is in the caches for good.
    Committed {
        /// First position of the block.
        start: usize,
        /// Position after the block.
        end: usize,
    },
}

/// Number of passes by kind. A guided pass over two sequences is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Passes {
    /// Forward passes over the prompt.
    pub prefill: usize,
    /// Forward passes over positions that hold masks.
    pub denoise: usize,
    /// Forward passes over finished blocks.
    pub commit: usize,
    /// Runs of the LM head, which are no forward passes.
    pub head: usize,
}

impl Passes {
    /// All forward passes.
    pub fn forward(&self) -> usize {
        self.prefill + self.denoise + self.commit
    }

    /// New tokens per forward pass, prefill left out; 0 when nothing was decoded.
    pub fn tokens_per_forward(&self, tokens: usize) -> f64 {
        match self.denoise + self.commit {
            0 => 0.0,
            passes => tokens as f64 / passes as f64,
        }
    }
}

impl AddAssign for Passes {
    fn add_assign(&mut self, other: Self) {
        self.prefill += other.prefill;
        self.denoise += other.denoise;
        self.commit += other.commit;
        self.head += other.head;
    }
}

/// Time spent in the executor by kind of call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Times {
    /// Prefill passes.
    pub prefill: Duration,
    /// Denoising passes, without the head.
    pub step: Duration,
    /// Head statistics or logits, and choosing tokens.
    pub head: Duration,
    /// Commit passes.
    pub commit: Duration,
}
