//! What a batch tells of one choice, on its way to the task that writes the answer.
//!
//! Invariant: it never waits. A client that has not read for a whole buffer is let go; snapshots of the canvas take no more
//! than half of it, and are left out beyond that.

use std::ops::ControlFlow;

use dlx_runtime::batch::Update;
use dlx_runtime::session::{Event, Filled, Filling, SessionError, Told};
use dlx_runtime::text::TextError;

use crate::canvas::Canvas;
use crate::choices::{Made, Note, Teller};

/// Listens for choice `index`.
pub(crate) struct Listener {
    pub(crate) index: usize,
    pub(crate) teller: Teller,
    /// Whether the client sees the block between passes.
    pub(crate) canvas: Option<Canvas>,
    /// What reads the gaps, where a text with gaps is filled in.
    pub(crate) filling: Option<Filling>,
    /// How likely tokens are whose text is yet to come.
    pub(crate) waiting: Vec<Told>,
    /// Why the gaps cannot be read.
    pub(crate) failed: Option<TextError>,
}

impl Listener {
    /// Takes an update.
    pub(crate) fn hear(&mut self, update: Update<'_>) -> ControlFlow<()> {
        match update {
            Update::Waiting => self.tell(Note::Waiting),
            Update::Event { event, tokens } => self.event(&event, tokens),
            Update::End(result) => {
                let gaps = self.filling.as_ref().map_or_else(Vec::new, |filling| filling.filled().to_vec());
                let result = match self.failed.take() {
                    Some(error) => Err(SessionError::from(error)),
                    None => result.map(|report| Made { report, gaps }),
                };
                let told = std::mem::take(&mut self.waiting);
                self.tell(Note::End(Box::new(result), told))
            }
        }
    }

    fn event(&mut self, event: &Event<'_>, tokens: usize) -> ControlFlow<()> {
        match event {
            Event::Begin { prompt, policy, .. } => {
                if let Some(canvas) = &mut self.canvas {
                    canvas.begin = prompt.iter().position(|id| *id == policy.mask_id).unwrap_or(prompt.len());
                }
                self.tell(Note::Begin { prompt_tokens: prompt.len() })
            }
            Event::Logprobs(told) => {
                self.waiting.extend_from_slice(told);
                self.stay()
            }
            Event::Text(piece) if self.filling.is_none() => {
                let told = std::mem::take(&mut self.waiting);
                self.tell(Note::Text { gap: 0, piece: (*piece).to_owned(), tokens, told })
            }
            Event::Settled { ids } => self.settled(ids),
            Event::Canvas { ids, masked, block, decision } => {
                let spare = self.teller.capacity() > self.teller.max_capacity() / 2;
                let canvas = self.canvas.as_mut();
                match canvas.map(|canvas| canvas.see(ids, masked, block.clone(), *decision)) {
                    Some(snapshot) if spare => self.tell(Note::Canvas(snapshot)),
                    _ => self.stay(),
                }
            }
            _ => self.stay(),
        }
    }

    fn settled(&mut self, ids: &[i32]) -> ControlFlow<()> {
        let Some(filling) = &mut self.filling else { return self.stay() };
        match filling.settle(ids) {
            Ok(pieces) => {
                let tokens = filling.filled().iter().map(|filled: &Filled| filled.tokens).sum();
                for (gap, piece) in pieces {
                    self.tell(Note::Text { gap, piece, tokens, told: Vec::new() })?;
                }
                self.stay()
            }
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn stay(&self) -> ControlFlow<()> {
        if self.teller.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn tell(&self, note: Note) -> ControlFlow<()> {
        if self.teller.try_send((self.index, note)).is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}
