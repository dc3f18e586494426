//! How a decode ends: why it is finished, or what went wrong.

use crate::exec::ExecError;

/// Why decoding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// The requested number of tokens, or no further room, where a constraint allows nothing more to be added.
    Complete,
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
    /// A prompt token that a drafter takes for something else.
    #[error(
        "prompt token {id} at position {position} is no token to the drafter (its mask, or beyond its vocabulary): take it out \
         of the prompt, or decode without a drafter"
    )]
    NotForDrafter {
        /// Where it stands.
        position: usize,
        /// The id.
        id: i32,
    },
    /// No pass can hold a draft that long.
    #[error(
        "a draft of {draft} tokens does not fit the steps of both models, which take {longest} at most: use a shorter one, \
         or compile with larger --buckets"
    )]
    DraftTooLong {
        /// Tokens of the draft.
        draft: usize,
        /// The longest draft that fits.
        longest: usize,
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
    /// Nothing that the constraint allows is that short.
    #[error(
        "the shortest answer that the constraint allows has {shortest} tokens, but there is room for {room}: ask for more tokens, \
         or shorten the prompt"
    )]
    NoRoom {
        /// Tokens of the shortest answer.
        shortest: usize,
        /// Tokens that were asked for and fit behind the prompt.
        room: usize,
        /// Tokens that were asked for.
        asked: usize,
    },
    /// A constraint says what is written from the prompt's end on.
    #[error("the prompt holds the mask token, and what is filled in cannot be constrained: leave out one of them")]
    ConstrainedInfill,
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

/// A policy that cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The block length does not fit the compiled steps.
    #[error("a block of {block} tokens does not fit the model: use 1 to {largest}, or compile with a larger step")]
    Block {
        /// Block length of the policy.
        block: usize,
        /// Largest block that the executor can run.
        largest: usize,
    },
    /// Memory is limited, and was counted for less.
    #[error(
        "{rows} rows of logits at a time do not fit the memory limit, which has room for {counted}: raise the limit, or use a smaller block, no guidance or temperature 0"
    )]
    LogitsRows {
        /// Rows that it asks for at a time.
        rows: usize,
        /// Rows that memory was counted for.
        counted: usize,
    },
    /// The attention mask fixes the block length.
    #[error("this model decodes in blocks of {block}, which its attention mask fixes: leave the block length alone")]
    FixedBlock {
        /// Block length of the model.
        block: usize,
    },
    /// The mask id is no token of the model.
    #[error("mask id {mask_id} is outside the vocabulary of {vocab}: set the mask id of this checkpoint")]
    MaskId {
        /// Mask id of the policy.
        mask_id: i32,
        /// Vocabulary size of the model.
        vocab: usize,
    },
    /// A number is out of range.
    #[error("`{field}` is out of range: it must be {range}")]
    Range {
        /// Field of the policy.
        field: &'static str,
        /// What it must be.
        range: &'static str,
    },
    /// Two fields contradict each other.
    #[error("`{field}` cannot be {value} here: {why}")]
    Conflict {
        /// Field of the policy.
        field: &'static str,
        /// Its value.
        value: &'static str,
        /// What it needs.
        why: &'static str,
    },
    /// A table has no row of that name.
    #[error("there is no {what} `{name}`: use one of {known}")]
    Unknown {
        /// What was looked up.
        what: &'static str,
        /// The name in the policy.
        name: String,
        /// The names that exist.
        known: String,
    },
}
