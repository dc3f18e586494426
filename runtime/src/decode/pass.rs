//! A forward pass as a sequence wants it: which positions it feeds, as spans of a step, and which rows it looks at.
//!
//! Plain data between a [`Sequence`](super::Sequence) and whatever runs it. Invariant: a pass looks at exactly the rows that
//! were asked for, and at none when it only writes cache rows.

use std::ops::Range;

use super::sample::Drawn;
use crate::exec::{RowStats, Span};

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardKind {
    /// Writes cache rows of the prompt.
    Prefill,
    /// Runs the whole sequence.
    Full,
    /// Runs a block and everything after it, against the cached rows before it.
    Suffix,
    /// Runs a block against the cached rows before and after it.
    DualBlock,
    /// Runs a block that holds masks; what it writes to the caches is scratch.
    Block,
    /// Runs a block whose rows are then kept for its sub-blocks.
    BlockRefresh,
    /// Runs a sub-block against the rows before it and those of its block.
    SubBlock,
    /// Writes the permanent cache rows of a finished block.
    Commit,
    /// Runs a drafter over masks behind a sequence.
    Draft,
    /// Runs a verifier over the last token and a draft.
    Verify,
}

/// The positions of a pass: consecutive ones.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) kind: ForwardKind,
    /// What it feeds.
    pub(super) cells: Range<usize>,
    /// For the trace: positions whose rows it finds.
    pub(super) past_len: usize,
    /// Position after the last one that it may attend.
    pub(super) visible: usize,
}

impl Window {
    /// The whole sequence.
    pub(super) fn full(end: usize) -> Self {
        Self { kind: ForwardKind::Full, cells: 0..end, past_len: 0, visible: end }
    }

    /// A pass that fills the caches with `cells`.
    pub(super) fn stores(kind: ForwardKind, cells: Range<usize>) -> Self {
        Self { kind, past_len: cells.start, visible: cells.end, cells }
    }
}

/// What is read of a row that a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// The head's statistics.
    Stats,
    /// The full logits.
    Logits,
}

/// What one span of a pass feeds, and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Fed {
    pub(super) slot: usize,
    pub(super) ids: Vec<i32>,
    pub(super) pos: Vec<i32>,
    pub(super) at: usize,
    pub(super) visible: usize,
}

/// A pass that a sequence wants.
#[derive(Clone, Debug)]
pub struct Pass {
    pub(super) window: Window,
    /// One span, with guidance two over the same positions, or one for every position.
    pub(super) fed: Vec<Fed>,
    /// Rows of each span that are looked at.
    pub(super) rows: Vec<usize>,
    pub(super) reads: Reads,
    /// Positions that are decided, ascending.
    pub(super) positions: Vec<usize>,
}

impl Pass {
    /// What it is for.
    pub fn kind(&self) -> ForwardKind {
        self.window.kind
    }

    /// What a step feeds for it. All spans may be part of one step, also of one that serves other sequences, or each of a
    /// step of its own, in order.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = Span<'_>> {
        self.fed.iter().map(|fed| Span {
            slot: fed.slot,
            ids: &fed.ids,
            pos: &fed.pos,
            at: fed.at,
            from: 0,
            visible: fed.visible,
        })
    }

    /// Rows of each span, counted from its first, whose results the sequence wants to see.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// What it wants to see of them.
    pub fn reads(&self) -> Reads {
        self.reads
    }

    /// The position that row `row` of span `span` stands at, if no token before it in the window is hidden.
    pub fn position(&self, span: usize, row: usize) -> usize {
        let before = self.fed.get(span).zip(self.fed.first()).map_or(0, |(fed, first)| fed.at - first.at);
        self.window.cells.start + before + row
    }
}

/// What a pass said of its rows: span after span, in each the rows asked for, in order.
#[derive(Debug)]
pub enum Rows<'a> {
    /// Statistics, one per row.
    Stats(&'a [RowStats]),
    /// Logits, `[spans * rows, vocab]`; they may be overwritten.
    Logits(&'a mut [f32]),
    /// In the place of logits, what the sequence's [`Chooser`](super::Chooser) chose of each row.
    Chosen(&'a [Option<Drawn>]),
}
