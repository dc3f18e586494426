//! Text on both sides of a model: tokenizer, chat template, streaming detokenizer, stop strings.
//!
//! Invariant: a tokenizer file or a template comes from outside and may be broken or hostile; every failure is a
//! [`TextError`], never a panic or an endless loop. Nothing here reads files: the caller passes bytes and strings.

mod bpe;
mod bytes;
mod compiled;
mod growth;
pub mod literal;
mod meaning;
mod size;
pub mod stop;
pub mod stream;
pub mod template;
pub mod tokenizer;

pub use literal::Controls;
pub use size::TokenizerSize;
pub use stop::StopStrings;
pub use stream::Detokenizer;
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;

/// Text could not be turned into tokens or back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// `tokenizer.json` cannot be used.
    #[error("tokenizer.json cannot be used: {0}; take it from the checkpoint's own repository and compile again")]
    Tokenizer(String),
    /// The tokenizer's tables in an artifact cannot be used.
    #[error("the compiled tokenizer cannot be used: {0}; compile the artifact again")]
    Compiled(String),
    /// The tokenizer failed on a text or on ids.
    #[error("the tokenizer failed: {0}; check the input, or pass token ids")]
    Tokenize(String),
    /// The chat template does not compile.
    #[error("the chat template cannot be used: {0}; correct it and compile again, or pass a plain prompt")]
    Template(String),
    /// The chat template failed on these messages.
    #[error("the chat template failed: {0}; check the messages' roles and order, or pass a plain prompt")]
    Render(String),
}
