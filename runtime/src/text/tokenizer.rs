//! A tokenizer read from the bytes of a `tokenizer.json`.
//!
//! Invariant: encoding adds nothing (no special tokens, no truncation, no padding, whatever the file asks for), because
//! prompts of these models are complete texts; the file's own normalizer, splitter and added tokens are obeyed. The
//! `tokenizers` crate asserts some things about its input (a damaged decoder is one), so its panics are caught here and
//! become errors; a program built with `panic = "abort"` loses that.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{TextError, growth};

/// A tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] when they are no such file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(TextError::Tokenizer)?;
        inner.with_truncation(None).map_err(|error| TextError::Tokenizer(error.to_string()))?;
        inner.with_padding(None);
        growth::check(&inner).map_err(TextError::Tokenizer)?;
        Ok(Self { inner })
    }

    /// Token ids of a text. Added tokens in the text become their ids, special ones too.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer fails, for example on a text that its model cannot express.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, TextError> {
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(TextError::Tokenize)?;
        encoding
            .get_ids()
            .iter()
            .map(|&id| i32::try_from(id).map_err(|_| TextError::Tokenize(format!("token id {id} is too large"))))
            .collect()
    }

    /// Text of token ids, invalid UTF-8 replaced. Ids without a token are left out, and with `skip_special` so are
    /// special tokens.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String, TextError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        guarded(|| self.inner.decode(&ids, skip_special)).map_err(TextError::Tokenize)
    }

    /// Id of a token, given exactly as the file spells it.
    pub fn token_id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    /// Number of tokens, added ones included. The model's vocabulary is often padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("an assertion of the tokenizer library failed on it".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A byte-level tokenizer without merges: ids 0–255 are the bytes, then `extra` added tokens, all special.
    pub(crate) fn bytes_tokenizer(extra: &[&str]) -> Tokenizer {
        Tokenizer::from_bytes(bytes_tokenizer_json(extra).as_bytes()).unwrap()
    }

    fn bytes_tokenizer_json(extra: &[&str]) -> String {
        // GPT-2's byte alphabet: printable bytes stand for themselves, the others follow from U+0100.
        let mut shifted = 0;
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { u32::from(byte) } else { 256 + shifted };
            shifted += u32::from(!printable);
            vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
        }
        let added: Vec<_> = extra
            .iter()
            .enumerate()
            .map(|(index, token)| {
                serde_json::json!({
                    "id": 256 + index, "content": token, "special": true,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect();
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
            },
        })
        .to_string()
    }

    #[test]
    fn special_tokens_are_recognized_and_skipped() {
        let tokenizer = bytes_tokenizer(&["<stop>", "<mask>"]);
        let ids = tokenizer.encode("a<stop>b").unwrap();
        assert_eq!(ids, [97, 256, 98]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<stop>b");
        assert_eq!(tokenizer.token_id("<mask>"), Some(257));
        assert_eq!(tokenizer.token_id("<nothing>"), None);
        assert_eq!(tokenizer.vocab_size(), 258);
        assert_eq!(tokenizer.decode(&[97, 4000, -1], true).unwrap(), "a", "ids without a token");
    }

    #[test]
    fn what_the_file_says_about_truncation_and_padding_is_ignored() {
        let json = bytes_tokenizer_json(&[])
            .replace(
                r#""truncation":null"#,
                r#""truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}"#,
            )
            .replace(
                r#""padding":null"#,
                r#""padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,
                   "pad_type_id":0,"pad_token":"!"}"#,
            );
        assert_eq!(Tokenizer::from_bytes(json.as_bytes()).unwrap().encode("abcd").unwrap().len(), 4);
    }

    #[test]
    fn broken_files_are_errors_that_say_what_to_do() {
        for bytes in ["", "{}", "null", "{\"model\":{\"type\":\"BPE\"}}", "\u{0}"] {
            let error = Tokenizer::from_bytes(bytes.as_bytes()).err().expect("no tokenizer");
            assert!(error.to_string().contains("compile again"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(position in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut json = bytes_tokenizer_json(&["<stop>"]).into_bytes();
            let position = position.index(json.len());
            if cut {
                json.truncate(position);
            } else {
                json[position] = byte;
            }
            if let Ok(tokenizer) = Tokenizer::from_bytes(&json) {
                let ids = tokenizer.encode("some text <stop> é\u{1F600}").unwrap_or_default();
                let _ = tokenizer.decode(&ids, true);
            }
        }

        #[test]
        fn text_round_trips(text in "\\PC{0,40}") {
            let tokenizer = bytes_tokenizer(&["<stop>"]);
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
}
