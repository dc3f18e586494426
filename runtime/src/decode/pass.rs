//! One forward pass: from positions of the sequence to calls of the executor, and back to a token per position.
//!
//! Invariant: a pass looks at exactly the rows that were asked for, and at none when it only writes cache rows. Positions
//! become cache rows here and nowhere else: hidden tokens have none, and with guidance every pass runs twice, on two
//! sequences that lie one after the other in the same caches.

use std::ops::Range;
use std::time::Instant;

use super::DecodeError;
use super::decoder::{Halt, Run};
use super::noise::NoiseRow;
use super::policy::{ConfidenceStage, DecodePolicy, FirstRow, Lead};
use super::sample::{self, Drawn};
use super::trace::{Forward, ForwardKind, Moment};
use crate::exec::{RowStats, StepCall};

/// A pass over consecutive positions.
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

/// A step as it was called.
#[derive(Debug, Default)]
pub(super) struct Last {
    ids: Vec<i32>,
    pos: Vec<i32>,
    at: usize,
    from: usize,
    visible: usize,
}

impl Last {
    fn call(&self) -> StepCall<'_> {
        StepCall { ids: &self.ids, pos: &self.pos, at: self.at, from: self.from, visible: self.visible }
    }
}

impl Window {
    /// The whole sequence.
    pub(super) fn full(end: usize) -> Self {
        Self { kind: ForwardKind::Full, cells: 0..end, past_len: 0, visible: end }
    }
}

impl Run<'_, '_> {
    /// Runs `window` and returns what it says about `positions`, ascending.
    pub(super) fn pass(&mut self, window: &Window, positions: &[usize]) -> Result<Vec<Drawn>, Halt> {
        // The first position has no row before it in this pass. At the beginning of the sequence there is none at all.
        let borrows_first = positions.first() == Some(&window.cells.start) && !self.before.is_empty();
        let rows: Vec<usize> = positions[usize::from(borrows_first)..]
            .iter()
            .map(|position| (position - window.cells.start).saturating_sub(self.policy.logit_shift))
            .collect();
        self.run(window, &rows)?;
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        if borrows_first {
            self.logits.splice(0..0, self.before.iter().copied());
        }
        self.choose(positions, &rows, self.policy)
    }

    /// Runs a pass that fills the caches with `cells`, and lets its last row decide position `led`, if the policy has a
    /// lead and the position is undecided.
    pub(super) fn store(&mut self, kind: ForwardKind, cells: Range<usize>, led: Option<usize>) -> Result<(), Halt> {
        let fed = self.fed(&cells).len();
        let window = Window { kind, past_len: cells.start, visible: cells.end, cells };
        let led = led.filter(|&led| self.policy.lead != Lead::None && self.ids.get(led) == Some(&self.policy.mask_id));
        let keeps_last = self.policy.first_row == FirstRow::Before;
        let rows = if led.is_some() || keeps_last { fed.checked_sub(1).into_iter().collect() } else { Vec::new() };
        if fed > 0 {
            self.run(&window, &rows)?;
            if keeps_last {
                self.before.clone_from(&self.logits);
            }
            if let Some(led) = led {
                self.lead(led, &rows)?;
            }
        }
        self.hidden += window.cells.len() - fed;
        Ok(())
    }

    /// Gives the first position of a block the token that the row before it decides, in the pass that just ran.
    pub(super) fn lead(&mut self, position: usize, rows: &[usize]) -> Result<(), Halt> {
        let token = if self.policy.lead == Lead::MostLikely {
            self.choose(&[position], rows, &DecodePolicy { temperature: 0.0, ..self.policy.clone() })?
        } else {
            self.choose(&[position], rows, self.policy)?
        };
        self.change(position, token[0].stats.best);
        self.tell(|ids| Moment::Revealed { ids, start: position, end: position + 1 })
    }

    /// The positions that a pass which fills the caches feeds.
    fn fed(&self, cells: &Range<usize>) -> Vec<usize> {
        cells.clone().filter(|&position| Some(self.ids[position]) != self.policy.hidden_id).collect()
    }

    /// Runs `window` on every sequence. Leaves the logits of `rows` in `self.logits` where they are needed; the head can
    /// be asked for them otherwise.
    pub(super) fn run(&mut self, window: &Window, rows: &[usize]) -> Result<(), Halt> {
        let plan = self.plan;
        let mut guided = Vec::new();
        for (index, &base) in plan.lanes.iter().enumerate() {
            self.forward(window, base, index > 0)?;
            if self.resolved.needs_logits && !rows.is_empty() {
                let begin = Instant::now();
                self.logits.clear();
                self.logits.resize(rows.len() * self.executor.vocab(), 0.0);
                self.executor.logits(rows, &mut self.logits)?;
                self.times.head += begin.elapsed();
                let broken = |row: &[f32]| row.iter().any(|logit| !logit.is_finite());
                if let Some(row) = self.logits.chunks_exact(self.executor.vocab()).position(broken) {
                    return Err(self.not_finite(window.cells.start + rows[row]));
                }
                if index == 0 && plan.lanes.len() > 1 {
                    guided.clone_from(&self.logits);
                }
            }
        }
        let weight = self.policy.cfg_scale + 1.0;
        for (unconditional, conditional) in self.logits.iter_mut().zip(guided) {
            *unconditional += weight * (conditional - *unconditional);
            if !unconditional.is_finite() {
                return Err(DecodeError::Guidance { scale: self.policy.cfg_scale }.into());
            }
        }
        Ok(())
    }

    /// One call of the executor for the sequence whose rows begin at `base`.
    fn forward(&mut self, window: &Window, base: usize, unconditional: bool) -> Result<(), Halt> {
        let Window { kind, ref cells, past_len, visible } = *window;
        self.tell(|ids| Moment::Forward(Forward { kind, q_start: cells.start, q_len: cells.len(), past_len, ids }))?;
        let stores = matches!(kind, ForwardKind::Prefill | ForwardKind::Commit);
        let fed = if stores { self.fed(cells) } else { cells.clone().collect() };
        let hidden_prompt = |position: usize| unconditional && position < self.prompt.len();
        let ids: Vec<i32> = fed
            .iter()
            .map(|&position| if hidden_prompt(position) { self.policy.mask_id } else { self.ids[position] })
            .collect();
        let first = cells.start - self.hidden;
        let pos: Vec<i32> = (0..).skip(first).take(fed.len()).collect();
        // A pass that stores sees what it feeds; others see further positions, none of which is hidden.
        let seen = if stores { first + fed.len() } else { visible - self.hidden };
        let begin = Instant::now();
        self.last = Last { ids, pos, at: base + first, from: base, visible: base + seen };
        self.executor.step(self.last.call())?;
        let (count, time) = match kind {
            ForwardKind::Prefill => (&mut self.passes.prefill, &mut self.times.prefill),
            ForwardKind::Commit => (&mut self.passes.commit, &mut self.times.commit),
            _ => (&mut self.passes.denoise, &mut self.times.step),
        };
        *count += 1;
        *time += begin.elapsed();
        Ok(())
    }

    /// Chooses a token for every one of `positions` from `rows` of the pass that just ran.
    fn choose(&mut self, positions: &[usize], rows: &[usize], policy: &DecodePolicy) -> Result<Vec<Drawn>, Halt> {
        let begin = Instant::now();
        let vocab = self.executor.vocab();
        let mut chosen = Vec::with_capacity(positions.len());
        if self.resolved.needs_logits {
            for (row, &position) in self.logits.chunks_exact(vocab).zip(positions) {
                let at = NoiseRow { pass: self.passes.head, position };
                chosen.push(sample::choose(row, policy, self.noise, at).ok_or(DecodeError::BadRow { position })?);
            }
        } else {
            let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows.len()];
            self.executor.head(rows, &mut stats)?;
            let broken = |stats: &RowStats| ![stats.prob, stats.margin, stats.entropy].iter().all(|x| x.is_finite());
            if let Some(row) = stats.iter().position(broken) {
                return Err(self.not_finite(positions[row]));
            }
            let certain = policy.top_k == 1 && policy.confidence_stage == ConfidenceStage::AfterFilters;
            chosen.extend(stats.into_iter().map(|stats| {
                let entropy = stats.entropy;
                let stats = if certain { RowStats { prob: 1.0, margin: 1.0, entropy: 0.0, ..stats } } else { stats };
                Drawn { stats, entropy }
            }));
        }
        self.passes.head += 1;
        self.times.head += begin.elapsed();
        for (drawn, &position) in chosen.iter().zip(positions) {
            let token = drawn.stats.best;
            if usize::try_from(token).map_or(true, |token| token >= vocab) || token == policy.mask_id {
                return Err(DecodeError::BadRow { position }.into());
            }
        }
        Ok(chosen)
    }

    /// The error for a position whose row is not finite, with the place where that began.
    fn not_finite(&mut self, position: usize) -> Halt {
        let place = self.executor.first_nonfinite(self.last.call());
        DecodeError::NotFinite { position, place: place.unwrap_or_else(|| "the logits".to_owned()) }.into()
    }

    /// The random number of a position in the pass that came `pass`th.
    pub(super) fn position_noise(&self, pass: usize, position: usize) -> Option<f32> {
        self.noise.of_position(NoiseRow { pass, position })
    }
}
