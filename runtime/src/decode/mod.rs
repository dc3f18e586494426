//! Decoding: turns an [`Executor`] and a [`DecodePolicy`] into tokens.
//!
//! A decoding method is data. One loop ([`decode`]) interprets it: schedule rows → step → head → reveal → maybe commit.
//! What differs between methods is a field of the policy or a row of a table ([`reveal::REVEAL_RULES`],
//! [`schedule::SCHEDULES`], [`confidence::CONFIDENCES`]), never a second loop.
//!
//! Invariant: known prompt positions never change, the mask is never revealed, and no cache row at or above
//! [`Executor::max_seq`] is written. This module knows token ids only; text, stop strings and deadlines are the
//! session's business.
//!
//! [`Executor`]: crate::exec::Executor
//! [`Executor::max_seq`]: crate::exec::Executor::max_seq

pub mod confidence;
mod decoder;
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
mod trace;

pub use decoder::{Decoded, decode};
pub use noise::Noise;
pub use policy::{DecodePolicy, Overrides, Reveal, Schedule};
pub use resolve::PolicyError;
pub use trace::{Forward, ForwardKind, Moment, Passes, Times};

use crate::exec::ExecError;

/// Why decoding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinishReason {
    /// A stop token.
    StopId,
    /// A stop string.
    StopString,
    /// The requested number of tokens.
    MaxTokens,
    /// The next block does not fit into the caches.
    ContextFull,
    /// The caller said so.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

/// Decoding could not start, or the model failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Block diffusion needs something to condition on.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Nothing was asked for.
    #[error("max_new is 0: ask for at least one token")]
    ZeroMaxNew,
    /// The prompt leaves no room for a block.
    #[error(
        "the prompt has {prompt} tokens but the model holds {max_seq}, of which the last block needs some: shorten the \
         prompt to at most {longest} tokens or compile with a larger context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Cache rows of the model.
        max_seq: usize,
        /// Longest prompt that leaves room for one new token.
        longest: usize,
    },
    /// A prompt token that is no token of the model.
    #[error("prompt token {id} at position {position} is outside the vocabulary: use the model's own tokenizer")]
    TokenId {
        /// Where it stands.
        position: usize,
        /// The id.
        id: i32,
    },
    /// A method that runs the whole sequence at once needs steps that large.
    #[error(
        "this method runs all {positions} positions in one pass, but the largest compiled step has {largest} rows: \
         shorten the prompt, ask for fewer tokens, or compile with a larger step"
    )]
    PassTooLarge {
        /// Prompt and new tokens together.
        positions: usize,
        /// Rows of the largest compiled step.
        largest: usize,
    },
    /// The policy cannot be run on this model.
    #[error("decode policy: {0}")]
    Policy(#[from] PolicyError),
    /// The model failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A number was too large, or the weights hold something that is no number.
    #[error(
        "the model computed infinity or no number at all for position {position}, first in {place}: a weight is broken or \
         too large; check the checkpoint, and if it was compiled to another format, compile it with --quant none"
    )]
    NotFinite {
        /// The position.
        position: usize,
        /// The first value of the pass that is not finite, as far as the executor can tell.
        place: String,
    },
    /// Guidance made numbers too large.
    #[error("cfg_scale {scale} is too large: with it the logits are no longer finite; use a smaller one")]
    Guidance {
        /// The scale.
        scale: f32,
    },
    /// The head reported something that is no distribution over tokens.
    #[error(
        "the model gave no usable token for position {position} (not a number, or the mask): the weights or the device \
         driver are broken; run the artifact's self-test"
    )]
    BadRow {
        /// The position.
        position: usize,
    },
}
