//! Constraints: which texts an answer may be, as an automaton over a model's tokens.
//!
//! A [`Grammar`] becomes an automaton over bytes (`writer`, `bytes`), and with a model's [`Vocabulary`] one over tokens
//! ([`Automaton`]), which decoding asks what may stand where. Invariant: grammars come from anybody: time and memory of making an
//! automaton are bounded, and what cannot be done exactly is an error that names it. Decoding is not known here.

mod bytes;
mod expression;
mod json;
mod schema;
mod tokens;
mod trie;
mod vocabulary;
mod writer;

use std::sync::Arc;

use serde_json::Value;

pub use tokens::{Automaton, Edge};
pub use vocabulary::Vocabulary;

use bytes::ByteAutomaton;
use writer::{State, Writer, many};

/// How deep grammars are nested.
const NESTING: usize = 16;

/// Which texts are allowed.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// This text.
    Text(String),
    /// What a regular expression in the syntax of Rust's `regex` crate matches as a whole.
    Regex(String),
    /// JSON values that a JSON Schema allows.
    Schema(Value),
    /// Any text in which this one, of ASCII, does not appear.
    Without(String),
    /// One behind the other.
    Sequence(Vec<Grammar>),
    /// Any of them.
    AnyOf(Vec<Grammar>),
    /// Once or more often.
    Repeated(Box<Grammar>),
}

impl Grammar {
    /// Writes a text of this grammar before `next`.
    fn write(&self, writer: &mut Writer, depth: usize, next: State) -> Result<State, ConstraintError> {
        if depth == NESTING {
            return Err(ConstraintError::TooLarge("it is nested too deeply"));
        }
        match self {
            Self::Text(text) => writer.bytes(text.as_bytes(), next),
            Self::Regex(regex) => expression::regex(writer, regex, next),
            Self::Schema(schema) => schema::write(writer, schema, next),
            Self::Without(text) => without(writer, text, next),
            Self::Sequence(parts) => {
                parts.iter().rev().try_fold(next, |next, part| part.write(writer, depth + 1, next))
            }
            Self::AnyOf(ways) => {
                let ways: Result<_, _> = ways.iter().map(|way| way.write(writer, depth + 1, next)).collect();
                writer.one_of(ways?)
            }
            Self::Repeated(grammar) => {
                let more = many(writer, next, |writer, next| grammar.write(writer, depth + 1, next))?;
                grammar.write(writer, depth + 1, more)
            }
        }
    }
}

/// Any text in which `text` does not appear.
fn without(writer: &mut Writer, text: &str, next: State) -> Result<State, ConstraintError> {
    let text = text.as_bytes();
    if text.is_empty() || !text.is_ascii() {
        return Err(ConstraintError::Regex("what must not appear is some text of ASCII".into()));
    }
    // One state for every beginning of the text that was just read.
    let states: Vec<State> = text.iter().map(|_| writer.ahead()).collect::<Result<_, _>>()?;
    let mut letters = text.to_vec();
    letters.sort_unstable();
    letters.dedup();
    let others = |first: u8, last: u8| (first <= last).then_some((char::from(first), char::from(last)));
    let mut from = 0;
    let mut rest = Vec::new();
    for &letter in &letters {
        rest.extend(letter.checked_sub(1).and_then(|last| others(from, last)));
        from = letter + 1;
    }
    rest.push((char::from(from), char::MAX));
    for (read, &state) in states.iter().enumerate() {
        let mut ways = vec![next, writer.char_in(&rest, states[0])?];
        for &letter in &letters {
            let seen = [&text[..read], &[letter]].concat();
            // The longest beginning of the text that what was read ends with.
            let kept = (0..=seen.len()).find(|&skipped| text.starts_with(&seen[skipped..])).unwrap_or(seen.len());
            if let Some(&to) = states.get(seen.len() - kept) {
                ways.push(writer.bytes(&[letter], to)?);
            }
        }
        let leads = writer.one_of(ways)?;
        writer.lead(state, leads)?;
    }
    Ok(states[0])
}

/// A grammar in the tokens of a model.
#[derive(Debug)]
pub struct Constraint {
    automaton: Automaton,
    vocabulary: Arc<Vocabulary>,
}

impl Constraint {
    /// Makes an automaton of a grammar.
    ///
    /// # Errors
    /// What of the grammar is wrong, not supported, or too much; [`ConstraintError::Empty`] when no text fits it.
    pub fn new(grammar: &Grammar, vocabulary: &Arc<Vocabulary>) -> Result<Self, ConstraintError> {
        let mut writer = Writer::new()?;
        let end = writer.end();
        let start = grammar.write(&mut writer, 0, end)?;
        let bytes = ByteAutomaton::new(&writer.finish(start)?)?;
        Ok(Self { automaton: Automaton::new(&bytes, vocabulary)?, vocabulary: Arc::clone(vocabulary) })
    }

    /// The automaton.
    pub fn automaton(&self) -> &Automaton {
        &self.automaton
    }

    /// The tokens that it is made of.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// How much memory it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.automaton.bytes()
    }

    /// Whether these tokens are an answer that nothing can be added to.
    pub fn is_finished_by(&self, ids: &[i32]) -> bool {
        let state = ids.iter().try_fold(0, |state, &id| self.automaton.step(state, id));
        state.is_some_and(|state| self.automaton.is_complete(state) && self.automaton.edges(state).is_empty())
    }
}

/// A grammar that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// A regular expression cannot be read, or is none.
    #[error("the regular expression cannot be used: {0}")]
    Regex(String),
    /// A schema is no schema.
    #[error("the schema is wrong at {place}: {what}")]
    Schema {
        /// Where, as a JSON pointer.
        place: String,
        /// What it should be.
        what: String,
    },
    /// A keyword of a schema is not understood, or not where it stands.
    #[error("the schema's `{keyword}` at {place} is not supported{why}")]
    Unsupported {
        /// Where, as a JSON pointer.
        place: String,
        /// The keyword.
        keyword: String,
        /// Beside what, or which part of it.
        why: String,
    },
    /// No text fits.
    #[error(
        "no answer fits: what is asked for contradicts itself, or a schema refers to itself and never ends within five levels"
    )]
    Empty,
    /// It would take too much time or memory.
    #[error("the grammar is too large: {0}; ask for something simpler")]
    TooLarge(&'static str),
    /// The tokenizer writes its tokens in a way that automata cannot follow.
    #[error("answers of this model cannot be constrained: {0}")]
    Tokenizer(&'static str),
}

#[cfg(test)]
mod tests;
