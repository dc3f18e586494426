//! Decodes again what a recording says, by itself or along the recorded canvas.
//!
//! Invariant: along a canvas, passes are fed what the recording fed, or there is an error. Nothing else is compared here.

use std::ops::ControlFlow;

use super::record::{Notes, fed};
use super::{Head, Step, Trace, TraceError};
use crate::decode::policy::Attention;
use crate::decode::reveal::Change;
use crate::decode::{Active, DecodeError, Driver, FinishReason, Moment, Noise, Sequence};
use crate::exec::{Executor, Span};
use crate::manifest::Manifest;

/// Whose tokens the canvas gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The model's own: a second decode.
    Again,
    /// The recorded ones; what the model would have revealed is noted.
    Along,
}

/// What a span of the pass that comes next feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    slot: usize,
    ids: Vec<i32>,
    pos: Vec<i32>,
    at: usize,
    visible: usize,
}

impl Next {
    fn of(span: Span<'_>) -> Self {
        let Span { slot, ids, pos, at, visible, .. } = span;
        Next { slot, ids: ids.to_vec(), pos: pos.to_vec(), at, visible }
    }

    /// As a step takes it.
    pub fn span(&self) -> Span<'_> {
        let Next { slot, ids, pos, at, visible } = self;
        Span { slot: *slot, ids, pos, at: *at, from: 0, visible: *visible }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Rerun {
    /// Passes that ran, as many as the recording has at most.
    pub steps: Vec<Step>,
    /// The spans of the pass behind them, which has not run; none at the end of the decode.
    pub next: Vec<Next>,
}

/// A recording that cannot be run again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RerunError {
    /// It does not fit the model.
    #[error("the trace cannot be run on this model: {0}")]
    Unfit(String),
    /// Decoding could not start, or the model failed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// What the model says cannot be noted.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Runs the first `upto` passes of a recording, or all. `began` is told each pass's number; breaking ends the run.
///
/// # Errors
/// A recording of another kind of model, one whose caches held rows of a call before, or a model that fails.
pub fn rerun(
    executor: &mut dyn Executor,
    manifest: &Manifest,
    trace: &Trace,
    how: How,
    upto: usize,
    began: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Rerun, RerunError> {
    suits(&trace.head, manifest)?;
    if trace.end.held > 0 {
        let held = trace.end.held;
        return Err(RerunError::Unfit(format!(
            "the caches held {held} tokens of a call before it; record a call that does not `keep`"
        )));
    }
    let policy = trace.head.policy.clone();
    let (notes, noise) = (Notes::new(policy.clone()), Noise::Seeded(policy.seed));
    let resolved = policy.resolve(executor).map_err(DecodeError::from)?;
    executor.reserve(resolved.slots()).map_err(DecodeError::from)?;
    let slots = (0..resolved.slots()).collect();
    let Head { prompt, max_new, .. } = &trace.head;
    let mut sequence = Sequence::new(resolved, executor, prompt, *max_new, 0, slots, noise)?;
    if how == How::Along {
        let decisions = trace.steps.iter().filter_map(|step| step.decision.as_ref());
        let change = |&(position, token): &(usize, i32)| Change { position, token };
        sequence.follow(decisions.map(|decision| decision.revealed.iter().map(change).collect()));
    }
    let last = upto.min(trace.steps.len());
    let mut run = Rerun { steps: Vec::new(), next: Vec::new() };
    let mut failure: Option<RerunError> = None;
    let mut take = |moment: Moment<'_>| -> Result<ControlFlow<()>, RerunError> {
        match moment {
            Moment::Forward(forward) => {
                let (number, pass) = (run.steps.len(), fed(&forward));
                if how == How::Along && trace.steps.get(number).is_some_and(|step| step.pass != pass) {
                    return Err(RerunError::Unfit(format!(
                        "its pass {} would be fed other rows; compile it with the --max-seq and --rows of the one recorded",
                        number + 1
                    )));
                }
                if number == last {
                    run.next = forward.pass.spans().map(Next::of).collect();
                    return Ok(ControlFlow::Break(()));
                }
                run.steps.push(Step { pass, decision: None, line: 0 });
                Ok(began(number))
            }
            Moment::Revealed { ids, start, end, decision } => {
                let decided = notes.decided(ids, [start, end], &decision)?;
                if let Some(step) = run.steps.last_mut() {
                    step.decision = Some(decided);
                }
                Ok(ControlFlow::Continue(()))
            }
            Moment::Settled { .. } | Moment::Committed { .. } | Moment::Drafted { .. } | Moment::Judged { .. } => {
                Ok(ControlFlow::Continue(()))
            }
        }
    };
    let mut observe = |moment: Moment<'_>| {
        let goes_on = take(moment).unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        });
        goes_on.map_break(|()| FinishReason::Cancelled)
    };
    let mut driver = Driver::new(executor);
    while driver.round(&mut [Active { sequence: &mut sequence, observer: &mut observe }]).map_err(DecodeError::from)? {}
    sequence.finish()?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(run),
    }
}

/// Whether a model reads tokens, masks and positions as the recorded one did.
fn suits(head: &Head, manifest: &Manifest) -> Result<(), RerunError> {
    let (recorded, own) = (&head.policy, &manifest.policy);
    let differs = if head.about.tokenizer != manifest.model.tokenizer_hash {
        "tokenizer"
    } else if (recorded.attention, recorded.grid) != (own.attention, own.grid) {
        "attention"
    } else if recorded.attention != Attention::Full && recorded.block != own.block {
        "block"
    } else if (recorded.mask_id, recorded.hidden_id) != (own.mask_id, own.hidden_id) {
        "mask"
    } else if (recorded.logit_shift, recorded.first_row, recorded.lead) != (own.logit_shift, own.first_row, own.lead) {
        "shift of the logits"
    } else {
        return Ok(());
    };
    let family = &manifest.model.family;
    Err(RerunError::Unfit(format!("its {differs} is not that of this {family} model; give one of the same checkpoint")))
}
