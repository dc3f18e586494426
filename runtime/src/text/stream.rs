//! A streaming detokenizer.
//!
//! Invariant: what was returned never changes: the pieces returned so far, plus what [`Detokenizer::finish`] returns, are
//! the text that decoding all ids at once gives, special tokens skipped. What later tokens can change is held back: an
//! incomplete UTF-8 sequence at the end; a run of byte tokens, until another token ends it; and everything, where the
//! decoder replaces strings in the joined text. It knows nothing about blocks or stop strings.

use super::tokenizer::Role;
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
        let role = tokenizer.role(id);
        if role == Role::Skipped {
            return Ok(String::new());
        }
        self.window.push(id);
        let joins = tokenizer.joins();
        if joins.everything || (joins.byte_runs && role == Role::Byte) {
            return Ok(String::new());
        }
        let text = tokenizer.decode(&self.window, true)?;
        let certain = certain(&text);
        let new = certain.get(self.returned..).unwrap_or_default().to_owned();
        self.returned = self.returned.max(certain.len());
        if self.window.len() >= WINDOW {
            let tail = tokenizer.decode(&self.window[self.window.len() - CONTEXT..], true)?;
            // Not so if the cut splits a character. Decoders treat the beginning of a text in their own way, so some
            // text has to remain that the next token follows.
            if text.ends_with(&tail) && !self::certain(&tail).is_empty() {
                self.window.drain(..self.window.len() - CONTEXT);
                self.returned = self::certain(&tail).len();
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

/// The text that an incomplete sequence at its end may not change. A lossy decoder writes one replacement character for
/// such a sequence; an invalid one looks the same and is held back, too, until the next token.
fn certain(text: &str) -> &str {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tokenizer::tests::{bytes_tokenizer, decoding_tokenizer};
    use serde_json::{Value, json};

    /// Token texts for any decoder: words, pieces of words, spaces, bytes of `é`, `中`, `😀` and stray ones, and a special
    /// token.
    const TOKENS: [&str; 29] = [
        "[UNK]", "▁Hi", "▁", "▁▁", "end", "##ing", "##", "a</w>", "b</w>", "</w>", ".", "n't", " ", "é", "|",
        "<0xE9>a", "<0xC3>", "<0xA9>", "<0xE4>", "<0xB8>", "<0xAD>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x20>",
        "ĠÃ", "©", "<stop>",
    ];

    /// The decoders of public tokenizers.
    fn decoders() -> Vec<Value> {
        let replace = |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
        let strip = |start: u8, stop: u8| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let (bytes, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
        let space = replace(json!({"String": "▁"}), " ");
        let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
        let word_piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        vec![
            sequence(&[&space, &bytes, &fuse, &strip(1, 0)]),
            sequence(&[&space, &bytes, &fuse]),
            sequence(&[&bytes, &fuse, &metaspace]),
            sequence(&[&bytes, &metaspace]),
            sequence(&[&fuse, &space, &strip(2, 0)]),
            sequence(&[&fuse, &replace(json!({"Regex": "▁+"}), " ")]),
            sequence(&[&fuse, &replace(json!({"String": "end."}), "fin")]),
            sequence(&[&fuse, &word_piece]),
            metaspace,
            word_piece,
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "CTC", "pad_token": "[UNK]", "word_delimiter_token": "|", "cleanup": true}),
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}),
            Value::Null,
        ]
    }

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

    #[test]
    fn byte_tokens_become_characters() {
        let tokenizer = decoding_tokenizer(&TOKENS, decoders().swap_remove(0));
        let id = |token: &&str| TOKENS.iter().position(|t| t == token).unwrap() as i32;
        let hi = [
            "▁Hi", "<0xE4>", "<0xB8>", "<0xAD>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xC3>", "<0xA9>", "▁", "end",
        ];
        let ids: Vec<i32> = hi.iter().map(id).collect();
        let shown = pieces(&tokenizer, &ids);
        assert_eq!(shown.concat(), "Hi中😀é end");
        assert_eq!((shown[0].as_str(), shown[10].as_str()), ("Hi", "中😀é "), "streamed when the run ends");
        let broken: Vec<i32> = ["▁Hi", "<0xE4>", "<0xB8>", "<0xAD>", "<0xC3>", "end"].iter().map(id).collect();
        assert_eq!(pieces(&tokenizer, &broken).concat(), "Hi\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}end");
    }

    #[test]
    fn long_texts_cost_linear_time() {
        for (decoder, token) in [(0, 17), (0, 4), (12, 27), (0, 28)] {
            let tokenizer = decoding_tokenizer(&TOKENS, decoders().swap_remove(decoder));
            let mut detokenizer = Detokenizer::default();
            for _ in 0..10_000 {
                detokenizer.push(&tokenizer, token).unwrap();
            }
            let bytes = tokenizer.role(token) == Role::Byte;
            assert!(bytes || detokenizer.window.len() < WINDOW, "{token}: {}", detokenizer.window.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_add_up_for_every_decoder(
            ids in proptest::collection::vec(prop_oneof![0i32..29, 16i32..26, Just(2), Just(4), Just(400)], 0..300),
            repeated in 0i32..29,
        ) {
            for decoder in decoders() {
                let tokenizer = decoding_tokenizer(&TOKENS, decoder.clone());
                for ids in [&ids[..], &[&[repeated; 70][..], &ids].concat()] {
                    prop_assert_eq!(pieces(&tokenizer, ids).concat(), tokenizer.decode(ids, true).unwrap(), "{}", decoder);
                }
            }
        }

        #[test]
        fn pieces_add_up_to_the_whole_text(
            ids in proptest::collection::vec(prop_oneof![0i32..257, Just(0xE2), Just(0x82), Just(0xAC), Just(0xF0)], 0..300),
        ) {
            let tokenizer = bytes_tokenizer(&["<stop>"]);
            prop_assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids, true).unwrap());
        }
    }
}
