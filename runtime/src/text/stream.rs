//! A streaming detokenizer.
//!
//! Invariant: what was returned never changes: the pieces returned so far, plus what [`Detokenizer::finish`] returns, are
//! the text that decoding all ids at once gives, special tokens skipped. An incomplete UTF-8 sequence at the end is held
//! back until the tokens that complete or break it. It knows nothing about blocks or stop strings.

use super::{TextError, Tokenizer};

/// Ids that the window keeps as context when it is cut.
const CONTEXT: usize = 8;

/// Length in ids at which the window is cut, so that a long text costs linear time.
const WINDOW: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The last ids, enough of them to decode the next one in its context.
    window: Vec<i32>,
    /// Bytes of the window's text that were returned.
    returned: usize,
}

impl Detokenizer {
    /// Adds one token and returns the text that became certain, possibly none.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer's decoder fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: i32) -> Result<String, TextError> {
        self.window.push(id);
        let text = tokenizer.decode(&self.window, true)?;
        // A lossy decoder writes one replacement character for an incomplete sequence at the end; an invalid one looks
        // the same and is held back, too, until the next token.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        let new = certain.get(self.returned..).unwrap_or_default().to_owned();
        self.returned = self.returned.max(certain.len());
        if self.window.len() >= WINDOW && certain.len() == text.len() {
            let tail = tokenizer.decode(&self.window[self.window.len() - CONTEXT..], true)?;
            // Not so if the cut splits a character.
            if text.ends_with(&tail) {
                self.window.drain(..self.window.len() - CONTEXT);
                self.returned = tail.len();
            }
        }
        Ok(new)
    }

    /// The text that was held back, incomplete sequences replaced.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer's decoder fails.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let text = tokenizer.decode(&self.window, true)?;
        Ok(text.get(self.returned..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tokenizer::tests::bytes_tokenizer;

    fn pieces(tokenizer: &Tokenizer, ids: &[i32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(tokenizer, id).unwrap()).collect();
        pieces.push(detokenizer.finish(tokenizer).unwrap());
        pieces
    }

    #[test]
    fn a_character_comes_out_whole() {
        let tokenizer = bytes_tokenizer(&["<stop>"]);
        let ids: Vec<i32> = "a€b".bytes().map(i32::from).collect();
        assert_eq!(pieces(&tokenizer, &ids), ["a", "", "", "€", "b", ""]);
    }

    #[test]
    fn broken_sequences_are_replaced_when_they_are_known_to_be_broken() {
        let tokenizer = bytes_tokenizer(&["<stop>"]);
        assert_eq!(pieces(&tokenizer, &[0xE2, 0x82, 0x61]), ["", "", "\u{FFFD}a", ""]);
        assert_eq!(pieces(&tokenizer, &[0xFF, 0xFF, 0x61]), ["", "\u{FFFD}", "\u{FFFD}a", ""]);
        assert_eq!(pieces(&tokenizer, &[0x61, 0xE2, 0x82]), ["a", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn special_tokens_are_skipped_and_do_not_split_characters() {
        let tokenizer = bytes_tokenizer(&["<stop>"]);
        assert_eq!(pieces(&tokenizer, &[0x61, 256, 0x62]).concat(), "ab");
        assert_eq!(pieces(&tokenizer, &[0xC3, 256, 0xA9]).concat(), "é");
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_whole_text(
            ids in proptest::collection::vec(prop_oneof![0i32..257, Just(0xE2), Just(0x82), Just(0xAC), Just(0xF0)], 0..300),
        ) {
            let tokenizer = bytes_tokenizer(&["<stop>"]);
            prop_assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids, true).unwrap());
        }
    }
}
