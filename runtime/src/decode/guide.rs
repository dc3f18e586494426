//! Keeps a sequence within a constraint: chooses the tokens of a pass together, so that what is revealed, in whatever order, can
//! always be completed in time.
//!
//! All undecided positions that a pass looks at are filled at once, between what is decided before and behind them. Greedily,
//! with the tokens whose logits have the largest sum of all fillings that the constraint allows and that can be completed
//! within the positions left. Drawing, with tokens drawn from the left, each from the policy's law of its row times the weight of all
//! fillings that begin so; without filters that is the law of independent positions, given that the filling is allowed.
//! What the policy reads of a token is read from its position's law in all these fillings. Invariant: every position that is
//! revealed holds the token of such a filling, so the next pass finds one, too.

mod language;
mod lattice;

use std::ops::Range;
use std::sync::Arc;

use super::error::DecodeError;
use super::noise::{Noise, NoiseRow};
use super::policy::DecodePolicy;
use super::sample::{Choice, Drawn, Needs, Sampler};
use crate::constrain::Constraint;
use crate::exec::RowStats;
use language::Language;
use lattice::{Cell, Lattice, Room};

/// See the module.
#[derive(Debug)]
pub(super) struct Guide {
    language: Language,
    /// Position after the last one that was asked for: the text is complete there.
    end: usize,
    /// The state before a position before which everything is decided.
    at: usize,
    state: u32,
    room: Room,
    row: Vec<f32>,
    /// Logits of the laws that the tokens of the last choice come from, `[positions, vocab]`, if they were asked for.
    laws: Vec<f32>,
}

/// How a pass chooses.
pub(super) struct Choosing<'c> {
    pub(super) policy: &'c DecodePolicy,
    pub(super) choice: Choice,
    pub(super) needs: Needs,
    pub(super) noise: &'c Noise,
    /// Passes before it that chose tokens.
    pub(super) pass: usize,
    /// Whether [`Guide::laws`] are asked for.
    pub(super) tells: bool,
}

impl Guide {
    /// A guide of what is decoded in this range of positions, which has room for an answer, by a model of `vocab` tokens.
    pub(super) fn new(
        constraint: Arc<Constraint>,
        policy: &DecodePolicy,
        vocab: usize,
        Range { start: begin, end }: Range<usize>,
    ) -> Self {
        let known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocab);
        let stops = policy.stop_ids.iter().copied().filter(|id| known(id) && !policy.suppress_ids.contains(id));
        let language = Language::new(constraint, stops.collect(), policy.hidden_id.filter(known));
        Self { language, end, at: begin, state: 0, room: Room::default(), row: Vec::new(), laws: Vec::new() }
    }

    /// How many of these positions, from the first, were asked for.
    pub(super) fn within(&self, positions: &[usize]) -> usize {
        positions.partition_point(|position| *position < self.end)
    }

    /// Chooses tokens for undecided `positions` of `ids` from their rows of logits. The positions are ascending, and all before
    /// them are decided.
    ///
    /// # Errors
    /// [`DecodeError::BadRow`] where nothing can be chosen.
    pub(super) fn choose<'r>(
        &mut self,
        sampler: &mut Sampler,
        ids: &[i32],
        positions: &[usize],
        rows: impl Iterator<Item = &'r [f32]>,
        how: &Choosing<'_>,
    ) -> Result<Vec<Drawn>, DecodeError> {
        let (Some(&first), Some(&last)) = (positions.first(), positions.last()) else { return Ok(Vec::new()) };
        let bad = |position: usize| DecodeError::BadRow { position };
        for position in self.at..first {
            let edge = ids.get(position).and_then(|&id| self.language.step(self.state, id));
            self.state = edge.ok_or(bad(position))?.to;
        }
        self.at = first;
        // What is decided behind the last of them counts as much.
        let mask = how.policy.mask_id;
        let decided = ids.iter().take(self.end).skip(last + 1).take_while(|id| **id != mask).count();
        let end = last + 1 + decided;
        let mut cells: Vec<Cell<'_>> =
            (first..end).map(|at| ids.get(at).map_or(Cell::Token(mask), |id| Cell::Token(*id))).collect();
        for (position, row) in positions.iter().zip(rows) {
            cells[position - first] = Cell::Row(row);
        }
        let greedy = how.choice == Choice::MostLikely || how.policy.is_greedy();
        let Needs { prob, margin, entropy, row_entropy } = how.needs;
        let reads = prob || margin || entropy || row_entropy || (how.tells && greedy);
        let temperature = if greedy { 1.0 } else { how.policy.temperature };
        let sums = (reads || !greedy).then_some(temperature);
        let Self { language, room, row, laws, .. } = self;
        laws.clear();
        let lattice = Lattice::new(language, self.state, &cells, self.end - end, sums, room, sampler.kernels());
        let lattice = lattice.ok_or(bad(first))?;
        let mut read = |row: &[f32], choice: Choice, needs: Needs, position: usize| {
            let at = NoiseRow { pass: how.pass, position };
            sampler.choose(row, how.policy, choice, needs, how.noise, at)
        };
        let tokens = if greedy {
            lattice.best()
        } else {
            let mut choose = |at: usize, row: &[f32]| {
                laws.extend_from_slice(if how.tells { row } else { &[] });
                read(row, Choice::AsPolicy, Needs::NOTHING, first + at)
            };
            lattice.chosen(row, |at, row| choose(at, row).map(|drawn| drawn.stats.best)).ok_or(bad(first))?
        };
        let nothing = |best: i32| Drawn {
            stats: RowStats { best, prob: f32::NAN, margin: f32::NAN, entropy: f32::NAN },
            entropy: f32::NAN,
        };
        positions
            .iter()
            .map(|&position| {
                let at = position - first;
                let token = *tokens.get(at).ok_or(bad(position))?;
                if !reads {
                    return Ok(nothing(token));
                }
                lattice.law(at, row);
                laws.extend_from_slice(if how.tells && greedy { row } else { &[] });
                read(row, Choice::Given(token), how.needs, position).ok_or(bad(position))
            })
            .collect()
    }

    /// Logits of the laws that the tokens of the last choice come from, row after row, if they were asked for: of a token that
    /// was drawn, those that it was drawn from, given the tokens before it; where the largest sum was taken, those of the
    /// position in all fillings.
    pub(super) fn laws(&self) -> &[f32] {
        &self.laws
    }
}

#[cfg(test)]
mod tests;
