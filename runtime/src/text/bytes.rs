//! The bytes of single tokens, which need not be whole characters.
//!
//! Invariant: the bytes of the tokens of a text, one behind the other, are the text's, for the decoders of published
//! checkpoints: byte-level ones, and those with tokens of one byte. Where a decoder treats the beginning of a text in its own
//! way, a token's bytes are those that it has further inside. Nothing here holds text back; see [`stream`](super::stream).

use super::tokenizer::Role;
use super::{TextError, Tokenizer};

impl Tokenizer {
    /// The bytes of a token, those of its name if it is a special one; nothing for an id without a token.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer's decoder fails.
    pub fn bytes_of(&self, id: i32) -> Result<Vec<u8>, TextError> {
        if let Some(name) = self.added_token(id) {
            return Ok(name.into_bytes());
        }
        let token = u32::try_from(id).ok().and_then(|id| self.inner().id_to_token(id));
        let Some(token) = token else { return Ok(Vec::new()) };
        if self.role(id) == Role::Byte && self.joins().byte_tokens {
            let byte = token.get(3..5).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            return Ok(byte.into_iter().collect());
        }
        if self.joins().byte_level
            && let Some(bytes) = token.chars().map(byte_of).collect()
        {
            return Ok(bytes);
        }
        // Behind itself it does not stand at the beginning.
        let (once, twice) = (self.decode(&[id], true)?, self.decode(&[id, id], true)?);
        let second = twice.strip_prefix(&once).filter(|second| !second.is_empty());
        Ok(second.unwrap_or(&once).as_bytes().to_vec())
    }

    /// The bytes that each token below `limit` writes, special tokens left out; `None` when what a token writes depends on
    /// those around it.
    pub(crate) fn spelled(&self, limit: usize) -> Option<Vec<(i32, Vec<u8>)>> {
        let inner = self.inner();
        let decoder = serde_json::to_value(inner.get_decoder()?).ok()?;
        if decoder["type"] != "ByteLevel" {
            return None;
        }
        let spelled = |id: i32| {
            let token = inner.id_to_token(u32::try_from(id).ok()?)?;
            if inner.get_added_vocabulary().is_special_token(&token) {
                return None;
            }
            // A token with a character that stands for no byte is written as it is.
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
            Some((id, bytes.unwrap_or_else(|| token.into_bytes())))
        };
        Some((0..i32::try_from(limit).unwrap_or(i32::MAX)).filter_map(spelled).collect())
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable ones for themselves, those from U+0100 on for the
/// others, in order.
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u8::try_from(c) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => {
            let nth = u32::from(c).checked_sub(0x100)?;
            (0..=u8::MAX).filter(|byte| !printable(*byte)).nth(usize::try_from(nth).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::text::tokenizer::tests::{bytes_tokenizer, decoding_tokenizer};

    #[test]
    fn every_byte_of_a_byte_level_tokenizer_is_found() {
        let tokenizer = bytes_tokenizer(&["<stop>"]);
        for byte in 0..=u8::MAX {
            assert_eq!(tokenizer.bytes_of(i32::from(byte)).unwrap(), [byte]);
        }
        assert_eq!(tokenizer.bytes_of(256).unwrap(), b"<stop>");
        assert!(tokenizer.bytes_of(999).unwrap().is_empty() && tokenizer.bytes_of(-1).unwrap().is_empty());
    }

    #[test]
    fn what_tokens_write_is_what_decoding_them_gives() {
        let tokenizer = bytes_tokenizer(&["<stop>"]);
        let spelled = tokenizer.spelled(300).unwrap();
        assert_eq!(spelled, (0..=u8::MAX).map(|b| (i32::from(b), vec![b])).collect::<Vec<_>>(), "no special ones");
        assert_eq!(tokenizer.spelled(3).unwrap().len(), 3);
        let words =
            decoding_tokenizer(&["[UNK]", "end"], json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
        assert!(words.spelled(2).is_none());
    }

    #[test]
    fn tokens_are_what_they_are_inside_a_text() {
        let tokens = ["[UNK]", "▁Hi", "a", "<0xE9>", "<0x41>b", "<stop>"];
        let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let bytes = json!({"type": "ByteFallback"});
        let steps = json!([space, bytes, {"type": "Fuse"}, strip]);
        let tokenizer = decoding_tokenizer(&tokens, json!({"type": "Sequence", "decoders": steps}));
        let of = |id| tokenizer.bytes_of(id).unwrap();
        assert_eq!([of(1), of(2), of(4)], [b" Hi".to_vec(), b"a".to_vec(), b"<0x41>b".to_vec()]);
        assert_eq!(of(3), [0xE9]);
        let words = decoding_tokenizer(
            &["[UNK]", "end", "##ing", "<stop>"],
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        );
        assert_eq!([words.bytes_of(1).unwrap(), words.bytes_of(2).unwrap()], [b" end".to_vec(), b"ing".to_vec()]);
    }
}
