//! Weights on their way between the file and a step: what comes next is asked for while there is computing, and what was read
//! is let go where memory counts more than time.
//!
//! Invariant: hints alone. Results do not depend on them, nothing is allocated, and a step over weights that the system holds
//! costs a look at a few pages.

use dlx_ir::Op;

use super::program::{Instr, Weights};

/// Weights of a step below which nothing is asked for: the system's own reading ahead does.
const LEAST: usize = 64 << 20;
/// Bytes that are asked for before they are read: a few layers, so that a disk has enough to do.
const WINDOW: usize = 96 << 20;

/// A walk through an entry's weights, ahead of its nodes.
pub(super) struct Ahead<'a> {
    weights: &'a Weights,
    code: &'a [Instr],
    /// The first node whose weights were not asked for.
    next: usize,
    /// Bytes that were asked for and not read yet.
    asked: usize,
    cold: bool,
}

impl<'a> Ahead<'a> {
    /// A walk through `code`, which asks for nothing where the weights are in memory.
    pub(super) fn new(weights: &'a Weights, code: &'a [Instr]) -> Self {
        let ranges = || code.iter().flat_map(|instr| read(weights, instr));
        let bytes: usize = ranges().map(|range| range.len()).sum();
        let cold = bytes >= LEAST && ranges().any(|range| weights.file.is_absent(range));
        Ahead { weights, code, next: 0, asked: 0, cold }
    }

    /// Node `at` is about to run: asks for what comes behind it.
    pub(super) fn before(&mut self, at: usize) {
        while self.cold && (self.next <= at || self.asked < WINDOW) {
            let Some(instr) = self.code.get(self.next) else { break };
            for range in read(self.weights, instr) {
                self.asked += range.len();
                self.weights.file.prefetch(range);
            }
            self.next += 1;
        }
    }

    /// Node `at` has run.
    pub(super) fn behind(&mut self, at: usize) {
        for range in self.code.get(at).into_iter().flat_map(|instr| read(self.weights, instr)) {
            self.asked = self.asked.saturating_sub(range.len());
            if self.weights.passing {
                self.weights.file.release(range);
            }
        }
    }
}

/// Where the weights are that a node reads from end to end; of a table it reads a few rows.
fn read<'a>(weights: &'a Weights, instr: &'a Instr) -> impl Iterator<Item = std::ops::Range<usize>> + 'a {
    let inputs = if matches!(instr.op, Op::Embed {}) { &[][..] } else { &instr.inputs[..] };
    inputs.iter().filter_map(|loc| weights.place(*loc))
}
