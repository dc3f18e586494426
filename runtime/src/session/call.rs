//! One request while it is decoded: what the decode tells becomes events, and in the end a report.
//!
//! Invariant: what a call tells and reports does not depend on who runs its passes: a session alone, or a batch beside
//! others. It knows no executor.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::stream::Stream;
use super::told::Telling;
use super::{Event, Report, Request, SessionError, TextSide};
use crate::constrain::Constraint;
use crate::decode::{DecodePolicy, Decoded, FinishReason, Moment, Passes, Times};
use crate::text::{Detokenizer, StopStrings, TextError};

/// Is told an event and how many tokens the answer has by then; breaking ends the call.
pub(crate) type Events<'e> = dyn FnMut(Event<'_>, usize) -> ControlFlow<()> + 'e;

/// See the module.
pub(crate) struct Call {
    stream: Stream,
    policy: DecodePolicy,
    prefix: Vec<i32>,
    max_new: usize,
    constraint: Option<Arc<Constraint>>,
    deadline: Option<Instant>,
    cancel: Option<Arc<AtomicBool>>,
    begin: Instant,
    failure: Option<TextError>,
    hung_up: bool,
}

impl Call {
    /// A call that began at `begin` and is decoded with `policy`.
    ///
    /// # Errors
    /// As [`TextSide::encode`]; a constraint that the request cannot have.
    pub(crate) fn new(
        text: &TextSide,
        request: &Request,
        policy: DecodePolicy,
        begin: Instant,
    ) -> Result<Self, SessionError> {
        text.check_constraint(request)?;
        let prefix = text.prefix(request)?;
        let prompt: Arc<[i32]> = text.encode(request)?.into();
        let stream = Stream {
            tokenizer: text.tokenizer(),
            detokenizer: Detokenizer::default(),
            stops: StopStrings::new(policy.stop_strings.iter().cloned()),
            next: prompt.iter().position(|&id| id == policy.mask_id).unwrap_or(prompt.len()),
            mask_id: policy.mask_id,
            end: prompt.len().saturating_add(request.max_new),
            prompt,
            min_tokens: policy.min_tokens,
            ids: Vec::new(),
            text: String::new(),
            telling: request.logprobs.map(|_| Telling::default()),
            stopped: None,
        };
        let (deadline, cancel) = (request.deadline, request.cancel.clone());
        let (max_new, constraint) = (request.max_new, request.constraint.clone());
        Ok(Self { stream, policy, prefix, max_new, constraint, deadline, cancel, begin, failure: None, hung_up: false })
    }

    /// The prompt in tokens.
    pub(crate) fn prompt(&self) -> &Arc<[i32]> {
        &self.stream.prompt
    }

    /// What the answer must be.
    pub(crate) fn constraint(&self) -> Option<Arc<Constraint>> {
        self.constraint.clone()
    }

    /// Ends it by then instead of by the request's deadline.
    pub(crate) fn end_by(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Why it should end now, if it should.
    pub(crate) fn overdue(&self) -> Option<FinishReason> {
        if self.hung_up || self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Some(FinishReason::Cancelled);
        }
        self.deadline.filter(|deadline| Instant::now() >= *deadline).map(|_| FinishReason::Deadline)
    }

    /// Tells that the call begins.
    pub(crate) fn begin(&mut self, events: &mut Events<'_>) {
        let begin = Event::Begin { prompt: &self.stream.prompt, policy: &self.policy, max_new: self.max_new };
        self.hung_up |= events(begin, 0).is_break();
    }

    /// Passes on what the decode tells.
    pub(crate) fn observe(&mut self, moment: Moment<'_>, events: &mut Events<'_>) -> ControlFlow<FinishReason> {
        let overdue = self.overdue();
        let hung_up = &mut self.hung_up;
        let mut tell = |event: Event<'_>, tokens: usize| {
            *hung_up = *hung_up || events(event, tokens).is_break();
            if *hung_up { ControlFlow::Break(FinishReason::Cancelled) } else { ControlFlow::Continue(()) }
        };
        let tokens = self.stream.ids.len();
        match moment {
            Moment::Forward(forward) => {
                if let Some(reason) = overdue {
                    return ControlFlow::Break(reason);
                }
                tell(Event::Forward(forward), tokens)
            }
            Moment::Revealed { ids, start, end, decision } => {
                if let Some(telling) = &mut self.stream.telling {
                    let changes = decision.changes.iter().zip(decision.logprobs);
                    changes.for_each(|(change, logprob)| telling.decide(change.position, logprob.clone()));
                }
                let masked: Vec<usize> = (start..end).filter(|&at| ids[at] == self.policy.mask_id).collect();
                tell(Event::Canvas { ids, masked: &masked, block: start..end, decision }, tokens)
            }
            Moment::Settled { ids, end } => {
                let piece = match self.stream.settle(&ids[..end], &self.policy.stop_ids) {
                    Ok(piece) => piece,
                    Err(error) => {
                        self.failure = Some(error);
                        return ControlFlow::Break(FinishReason::Cancelled);
                    }
                };
                let shown = self.stream.text.len();
                let told = self.stream.telling.as_mut().map_or(&[][..], |telling| telling.with_text(shown));
                if !told.is_empty() {
                    tell(Event::Logprobs(told), tokens)?;
                }
                tell(Event::Settled { ids: &ids[..end] }, self.stream.ids.len())?;
                if !piece.is_empty() {
                    tell(Event::Text(&piece), self.stream.ids.len())?;
                }
                match self.stream.stopped {
                    Some(FinishReason::StopString) => ControlFlow::Break(FinishReason::StopString),
                    _ => ControlFlow::Continue(()),
                }
            }
            Moment::Committed { start, end } => tell(Event::Committed { block: start..end }, tokens),
            Moment::Drafted { tokens: drafted, .. } => tell(Event::Drafted { tokens: drafted }, tokens),
            Moment::Judged { ids, drafted, accepted, tokens: settled, logprobs } => {
                if let Some(telling) = &mut self.stream.telling {
                    let places = (ids.len()..).zip(logprobs);
                    places.for_each(|(position, logprob)| telling.decide(position, logprob.clone()));
                }
                tell(Event::Judged { drafted, accepted, tokens: settled }, tokens)
            }
        }
    }

    /// What became of it, but for what only a session adds.
    ///
    /// # Errors
    /// Tokens that could not be decoded.
    pub(crate) fn finish(mut self, decoded: Decoded, events: &mut Events<'_>) -> Result<Report, SessionError> {
        if let Some(error) = self.failure {
            return Err(error.into());
        }
        if !self.hung_up {
            let tail = self.stream.finish()?;
            let told = self.stream.telling.as_mut().map_or(&[][..], Telling::rest);
            if !told.is_empty() {
                let _ = events(Event::Logprobs(told), self.stream.ids.len());
            }
            if !tail.is_empty() {
                // The call is over: there is nothing left to cancel.
                let _ = events(Event::Text(&tail), self.stream.ids.len());
            }
        }
        let finish = match (self.stream.stopped, decoded.finish) {
            (Some(reason), _) => reason,
            // The stop token stands beyond the tokens that were asked for.
            (None, FinishReason::StopId) => FinishReason::MaxTokens,
            (None, reason) => reason,
        };
        let complete = || self.constraint.as_ref().is_some_and(|c| c.is_finished_by(&self.stream.ids));
        let finish = match finish {
            FinishReason::MaxTokens | FinishReason::ContextFull if complete() => FinishReason::Complete,
            other => other,
        };
        Ok(Report {
            text: self.stream.text,
            ids: self.stream.ids,
            logprobs: self.stream.telling.map(Telling::finish),
            prefix: self.prefix,
            prompt_tokens: self.stream.prompt.len(),
            held_tokens: decoded.held,
            finish,
            passes: decoded.passes,
            times: decoded.times,
            total: self.begin.elapsed(),
            chosen: None,
            speculation: None,
        })
    }

    /// What became of it when it ended before anything was decoded.
    ///
    /// # Errors
    /// As [`Call::finish`].
    pub(crate) fn unanswered(self, finish: FinishReason, events: &mut Events<'_>) -> Result<Report, SessionError> {
        let (ids, passes, times) = (self.stream.prompt.to_vec(), Passes::default(), Times::default());
        self.finish(Decoded { ids, settled: 0, stored: 0, held: 0, finish, passes, times }, events)
    }
}
