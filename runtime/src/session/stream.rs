//! Settled tokens of a call, turned into text as they come.
//!
//! Invariant: text only grows, and nothing is added after what ended it: a stop token, which is left out, or a stop
//! string. It does not know blocks or passes.

use std::sync::Arc;

use super::told::Telling;
use crate::decode::FinishReason;
use crate::text::{Detokenizer, StopStrings, TextError, Tokenizer};

/// Turns settled tokens into text.
pub(super) struct Stream {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) detokenizer: Detokenizer,
    pub(super) stops: StopStrings,
    pub(super) prompt: Arc<[i32]>,
    pub(super) mask_id: i32,
    /// First position that is not yet text.
    pub(super) next: usize,
    /// Position after the last token that was asked for.
    pub(super) end: usize,
    /// Tokens whose text ends nothing.
    pub(super) min_tokens: usize,
    pub(super) ids: Vec<i32>,
    pub(super) text: String,
    /// How likely the tokens were, if that is to be told.
    pub(super) telling: Option<Telling>,
    pub(super) stopped: Option<FinishReason>,
}

impl Stream {
    /// Adds the settled sequence and returns the text that became certain.
    pub(super) fn settle(&mut self, ids: &[i32], stop_ids: &[i32]) -> Result<String, TextError> {
        let from = self.text.len();
        while self.stopped.is_none() && self.next < ids.len().min(self.end) {
            let id = ids[self.next];
            let given = self.prompt.get(self.next).is_some_and(|&id| id != self.mask_id);
            self.next += 1;
            if !given && stop_ids.contains(&id) {
                self.stopped = Some(FinishReason::StopId);
                break;
            }
            self.ids.push(id);
            let piece = self.detokenizer.push(&self.tokenizer, id)?;
            if let Some(telling) = &mut self.telling {
                telling.push(self.next - 1, id, &piece);
            }
            self.show(&piece);
        }
        Ok(self.text[from..].to_owned())
    }

    /// Returns the text that was held back.
    pub(super) fn finish(&mut self) -> Result<String, TextError> {
        let from = self.text.len();
        if self.stopped != Some(FinishReason::StopString) {
            let piece = std::mem::take(&mut self.detokenizer).finish(&self.tokenizer)?;
            self.show(&piece);
        }
        if self.stopped != Some(FinishReason::StopString) {
            self.text += &self.stops.finish();
        }
        Ok(self.text[from..].to_owned())
    }

    fn show(&mut self, piece: &str) {
        if self.ids.len() <= self.min_tokens {
            self.text += piece;
            return;
        }
        let checked = self.stops.push(piece);
        self.text += &checked.text;
        if checked.stopped {
            self.stopped = Some(FinishReason::StopString);
        }
    }
}
