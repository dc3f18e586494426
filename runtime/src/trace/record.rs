//! From the events of a call to the lines of a recording.
//!
//! Invariant: what is written depends on the events alone, and a [`Recorder`] that has written the end has written all.

use std::collections::BTreeSet;
use std::io::Write;

use super::{About, Decided, End, FORMAT, Fed, Head, Line, Row, TraceError, VERSION};
use crate::decode::noise::NoiseRow;
use crate::decode::policy::Lead;
use crate::decode::{Decision, DecodePolicy, Forward, Noise, Why, confidence, reveal};
use crate::session::{Event, Report};
use crate::text::Tokenizer;
use serde::Serialize;

/// Writes the events of one call as a recording.
#[derive(Debug)]
pub struct Recorder<W> {
    out: W,
    about: About,
    notes: Option<Notes>,
    /// Every token that occurs.
    tokens: BTreeSet<i32>,
}

impl<W: Write> Recorder<W> {
    /// A recorder of a call of the model that `about` tells of.
    pub fn new(out: W, about: About) -> Self {
        Recorder { out, about, notes: None, tokens: BTreeSet::new() }
    }

    /// Writes what an event tells.
    ///
    /// # Errors
    /// When it cannot be written, or events are missing.
    pub fn take(&mut self, event: &Event<'_>) -> Result<(), TraceError> {
        match event {
            Event::Begin { prompt, policy, max_new } => {
                self.tokens.extend(*prompt);
                let head = Head {
                    format: FORMAT.into(),
                    version: VERSION,
                    runtime: env!("CARGO_PKG_VERSION").into(),
                    about: self.about.clone(),
                    policy: (*policy).clone(),
                    prompt: prompt.to_vec(),
                    max_new: *max_new,
                };
                self.notes = Some(Notes::new((*policy).clone()));
                self.write(&head)
            }
            Event::Forward(forward) => self.write(&Line::Pass(fed(forward))),
            Event::Canvas { ids, block, decision, .. } => {
                let notes = self.notes.as_ref().ok_or(TraceError::NotBegun)?;
                let decided = notes.decided(ids, [block.start, block.end], decision)?;
                self.tokens.extend(decided.canvas.iter().chain(decided.rows.iter().map(|row| &row.token)));
                self.write(&Line::Decision(decided))
            }
            Event::Text(_) | Event::Logprobs(_) | Event::Settled { .. } | Event::Committed { .. } => Ok(()),
            Event::Drafted { .. } | Event::Judged { .. } => Err(TraceError::Speculative),
        }
    }

    /// Writes the end, and gives back where it was written.
    ///
    /// # Errors
    /// When it cannot be written, or nothing was recorded.
    pub fn finish(mut self, report: &Report, tokenizer: &Tokenizer) -> Result<W, TraceError> {
        if self.notes.is_none() {
            return Err(TraceError::NotBegun);
        }
        self.tokens.extend(&report.ids);
        // A token that has no text has none in an answer either.
        let text = |id: &i32| (*id, tokenizer.decode(&[*id], false).unwrap_or_default());
        let tokens = self.tokens.iter().map(text).collect();
        let end = End { finish: report.finish, held: report.held_tokens, ids: report.ids.clone(), tokens };
        self.write(&Line::End(end))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), TraceError> {
        let mut text = serde_json::to_vec(line).map_err(std::io::Error::from)?;
        text.push(b'\n');
        Ok(self.out.write_all(&text)?)
    }
}

/// A pass as a recording has it.
pub(super) fn fed(forward: &Forward<'_>) -> Fed {
    let Forward { kind, q_start, past_len, pass, .. } = *forward;
    let mut spans = pass.spans();
    let count = spans.len();
    let first = spans.next().expect("a pass has a span");
    let (rows, at, visible) = (first.ids.len(), first.at, first.visible);
    let looks = pass.rows().to_vec();
    Fed { kind, start: q_start, rows, past: past_len, at, visible, spans: count, reads: pass.reads(), looks }
}

/// What is known of a call when its decisions are noted.
#[derive(Debug)]
pub(super) struct Notes {
    policy: DecodePolicy,
    noise: Noise,
    /// Whether positions have random numbers of their own.
    random: bool,
}

impl Notes {
    pub(super) fn new(policy: DecodePolicy) -> Self {
        let random = reveal::find(&policy.reveal.rule).is_some_and(|rule| rule.random)
            || confidence::find(&policy.confidence).is_some_and(|confidence| confidence.random);
        Notes { noise: Noise::Seeded(policy.seed), random, policy }
    }

    /// A decision as a recording has it; `ids` is the sequence after it.
    ///
    /// # Errors
    /// [`TraceError::NotFinite`].
    pub(super) fn decided(
        &self,
        ids: &[i32],
        block: [usize; 2],
        decision: &Decision<'_>,
    ) -> Result<Decided, TraceError> {
        let Decision { why, turn, positions, drawn, candidates, quota, part, changes, logprobs: _ } = *decision;
        let draws = !self.policy.is_greedy() && (why != Why::Lead || self.policy.lead == Lead::Chosen);
        let mut rows = Vec::with_capacity(positions.len());
        for (i, (&position, drawn)) in positions.iter().zip(drawn).enumerate() {
            // What is no number was not asked for.
            let number = |name, x: Option<f32>| match x.filter(|x| !x.is_nan()) {
                Some(x) if x.is_infinite() => Err(TraceError::NotFinite { name, position }),
                x => Ok(x),
            };
            let (stats, candidate) = (drawn.stats, candidates.get(i));
            let draw = || self.noise.exponential(NoiseRow { pass: turn, position })(stats.best);
            rows.push(Row {
                position,
                token: stats.best,
                prob: number("prob", Some(stats.prob))?,
                margin: number("margin", Some(stats.margin))?,
                entropy: number("entropy", Some(stats.entropy))?,
                row_entropy: number("row_entropy", Some(drawn.entropy))?,
                confidence: number("confidence", candidate.map(|c| c.confidence))?,
                noise: number("noise", candidate.map(|c| c.noise).filter(|_| self.random))?,
                draw: number("draw", if draws { draw() } else { None })?,
            });
        }
        let revealed = changes.iter().map(|change| (change.position, change.token)).collect();
        let [start, end] = block;
        Ok(Decided { why, quota, part, block, rows, revealed, canvas: ids[start..end].to_vec() })
    }
}
