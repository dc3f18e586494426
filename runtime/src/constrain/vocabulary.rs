//! What each token of a model writes.
//!
//! Invariant: the text of tokens that write bytes is those bytes, one behind the other. Tokens of nothing but plain characters
//! of JSON strings, which are most of them, are told apart by how many they have: wherever an automaton treats all such
//! characters alike, it need not read the tokens.

use std::sync::Arc;

use super::ConstraintError;
use super::json::PLAIN;
use super::trie::{LONGEST, Trie};
use crate::text::Tokenizer;

/// Most plain characters of a token by which it is told apart.
pub(super) const LENGTHS: usize = 32;

/// See the module.
#[derive(Debug)]
pub struct Vocabulary {
    /// Tokens of 1, 2, … plain characters, by id.
    lengths: Vec<Arc<[i32]>>,
    /// All of those.
    all_plain: Arc<[i32]>,
    plain: Trie,
    /// All other tokens.
    other: Trie,
    /// Which ids are in it.
    known: Vec<bool>,
}

impl Vocabulary {
    /// The tokens below `limit` that write something, without `excluded` ones.
    ///
    /// # Errors
    /// [`ConstraintError::Tokenizer`] when what a token writes depends on the tokens around it.
    pub fn new(tokenizer: &Tokenizer, limit: usize, excluded: &[i32]) -> Result<Self, ConstraintError> {
        let spelled = tokenizer.spelled(limit).ok_or(ConstraintError::Tokenizer(
            "its tokenizer is not byte-level, so what a token writes depends on those around it",
        ))?;
        let tokens = spelled.iter().filter(|(id, _)| !excluded.contains(id));
        Ok(Self::of(tokens.map(|(id, bytes)| (*id, &bytes[..]))))
    }

    /// Tokens by id, and what they write.
    pub(crate) fn of<'t>(tokens: impl Iterator<Item = (i32, &'t [u8])>) -> Self {
        let (mut plain, mut other, mut known) = (Vec::new(), Vec::new(), Vec::new());
        let mut lengths: Vec<Vec<i32>> = vec![Vec::new(); LENGTHS];
        for (id, bytes) in tokens {
            let Some(index) = usize::try_from(id).ok().filter(|_| (1..=LONGEST).contains(&bytes.len())) else {
                continue;
            };
            if known.len() <= index {
                known.resize(index + 1, false);
            }
            known[index] = true;
            match plain_chars(bytes).and_then(|count| lengths.get_mut(count - 1)) {
                Some(same) => {
                    same.push(id);
                    plain.push((bytes, id));
                }
                None => other.push((bytes, id)),
            }
        }
        lengths.iter_mut().for_each(|same| same.sort_unstable());
        let mut all: Vec<i32> = lengths.concat();
        all.sort_unstable();
        let lengths = lengths.into_iter().map(Arc::from).collect();
        Self { lengths, all_plain: all.into(), plain: Trie::new(plain), other: Trie::new(other), known }
    }

    /// Whether a token writes something.
    pub fn writes(&self, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| self.known.get(id).copied().unwrap_or(false))
    }

    /// One more than the largest id in it.
    pub fn limit(&self) -> usize {
        self.known.len()
    }

    pub(super) fn lengths(&self) -> &[Arc<[i32]>] {
        &self.lengths
    }

    pub(super) fn all_plain(&self) -> &Arc<[i32]> {
        &self.all_plain
    }

    pub(super) fn plain(&self) -> &Trie {
        &self.plain
    }

    pub(super) fn other(&self) -> &Trie {
        &self.other
    }
}

/// How many characters a token has, if all are plain.
fn plain_chars(bytes: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(bytes).ok()?;
    let plain = |c: char| PLAIN.iter().any(|(first, last)| (*first..=*last).contains(&c));
    text.chars().all(plain).then(|| text.chars().count())
}
