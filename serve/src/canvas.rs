//! The block that is being denoised, for clients that ask to see it.
//!
//! Invariant: a snapshot is whole by itself, so one may be left out where a client reads slowly. Positions are counted from
//! the first token of the answer; what of the prompt shares its block is left out.

use std::collections::BTreeMap;
use std::ops::Range;

use dlx_runtime::decode::Decision;
use dlx_runtime::text::Tokenizer;
use serde_json::{Value, json};

/// What is remembered of the block between two passes.
#[derive(Default)]
pub(crate) struct Canvas {
    /// Position of the first token of the answer.
    pub(crate) begin: usize,
    block: Range<usize>,
    /// How sure the model was of each position when it last looked at it.
    sure: BTreeMap<usize, f32>,
}

/// A position of the block after a pass.
struct Cell {
    position: usize,
    /// The token there, or the one that the model would put there; nothing where it did not look.
    token: Option<i32>,
    masked: bool,
    /// As [`Canvas::sure`].
    sure: Option<f32>,
}

/// A block after a pass.
pub(crate) struct Snapshot {
    /// Passes before this one that chose tokens.
    pass: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    /// Takes in what a pass said of the block; positions that are `masked` are undecided in `ids`.
    pub(crate) fn see(
        &mut self,
        ids: &[i32],
        masked: &[usize],
        block: Range<usize>,
        decision: Decision<'_>,
    ) -> Snapshot {
        if block != self.block {
            self.sure.clear();
            self.block = block.clone();
        }
        let mut proposed = BTreeMap::new();
        for (&position, drawn) in decision.positions.iter().zip(decision.drawn) {
            proposed.insert(position, drawn.stats.best);
            let measured = decision.candidates.iter().find(|c| c.position == position).map(|c| c.confidence);
            match measured.unwrap_or(drawn.stats.prob) {
                sure if sure.is_finite() => self.sure.insert(position, sure),
                _ => self.sure.remove(&position),
            };
        }
        let cell = |position: usize| {
            let undecided = masked.contains(&position);
            let token = if undecided { proposed.get(&position) } else { ids.get(position) };
            Cell {
                position: position - self.begin,
                token: token.copied(),
                masked: undecided,
                sure: self.sure.get(&position).copied(),
            }
        };
        Snapshot { pass: decision.turn, cells: (block.start.max(self.begin)..block.end).map(cell).collect() }
    }
}

impl Snapshot {
    /// As clients see it, in choice `index`.
    pub(crate) fn json(&self, index: usize, tokenizer: &Tokenizer) -> Value {
        // Part of a character, or a token without a text, is shown as well as it can be.
        let text = |id: i32| tokenizer.decode(&[id], false).unwrap_or_default();
        let each = |of: &dyn Fn(&Cell) -> Value| self.cells.iter().map(of).collect::<Vec<_>>();
        json!({
            "index": index,
            "pass": self.pass,
            "positions": each(&|cell| cell.position.into()),
            "tokens": each(&|cell| cell.token.map(text).into()),
            "masked": each(&|cell| cell.masked.into()),
            // Four digits are as many as anybody can see.
            "confidence": each(&|cell| cell.sure.map(|sure| (f64::from(sure) * 1e4).round() / 1e4).into()),
        })
    }
}
