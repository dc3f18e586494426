//! Decoding: turns an [`Executor`] and a [`DecodePolicy`] into tokens.
//!
//! A decoding method is data. One state machine ([`Sequence`]) interprets it: it says which pass it wants, is given what the
//! pass says of its rows, reveals, and maybe commits. [`Driver`] runs the passes of one or more sequences on an executor.
//! What differs between methods is a field of the policy or a row of a table ([`reveal::REVEAL_RULES`],
//! [`schedule::SCHEDULES`], [`confidence::CONFIDENCES`]), never a second machine. [`hybrid`] lets one model draft and another
//! verify.
//!
//! Invariant: known prompt positions never change, the mask is never revealed, and no cache row at or above
//! [`Executor::max_seq`] is written. This module knows token ids only; text, stop strings and deadlines are the
//! session's business.
//!
//! [`Executor`]: crate::exec::Executor
//! [`Executor::max_seq`]: crate::exec::Executor::max_seq

pub mod adjust;
pub mod confidence;
mod driver;
mod error;
mod guide;
pub mod hybrid;
#[cfg(test)]
pub(crate) mod mock;
pub mod noise;
mod pass;
mod plan;
pub mod policy;
mod presets;
pub mod resolve;
pub mod reveal;
pub mod sample;
pub mod schedule;
mod sequence;
mod trace;

pub use driver::{Active, Driver, decode};
pub use error::{DecodeError, FinishReason, PolicyError};
pub use noise::{Noise, Stream};
pub use pass::{ForwardKind, Pass, Reads, Rows};
pub use policy::{DecodePolicy, Overrides, Reveal, Schedule};
pub use resolve::Resolved;
pub use sequence::{Chooser, Decoded, Observer, Sequence};
pub use trace::{Decision, Forward, Moment, Passes, Times, Why};
