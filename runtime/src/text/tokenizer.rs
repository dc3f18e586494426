//! A tokenizer read from the bytes of a `tokenizer.json`.
//!
//! Invariant: encoding adds nothing (no special tokens, no truncation, no padding, whatever the file asks for), but where it
//! is asked to frame a text: a rendered conversation is complete, and what belongs before other texts is told by
//! [`Tokenizer::prefix`]; the file's own normalizer, splitter and added tokens are obeyed. The
//! `tokenizers` crate asserts some things about its input (a damaged decoder is one), so its panics are caught here and
//! become errors; a program built with `panic = "abort"` loses that.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use serde_json::Value;

use super::bpe::Words;
use super::{Controls, TextError, growth};

/// The library's tokenizer, with its own model or tables of the artifact.
pub(super) type Library = tokenizers::TokenizerImpl<
    Words,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// A tokenizer.
pub struct Tokenizer {
    /// Written only to encode a text in which special tokens are ordinary text.
    inner: RwLock<Library>,
    joins: Joins,
    prefix: Vec<i32>,
}

/// What the decoder does with tokens, and across their borders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Joins {
    /// A run of byte tokens is decoded as a whole: one byte that does not fit turns all of them into replacement
    /// characters.
    pub(super) byte_runs: bool,
    /// A token may change the text of any token before it.
    pub(super) everything: bool,
    /// Tokens like `<0xE9>` are bytes.
    pub(super) byte_tokens: bool,
    /// Tokens are spelled in GPT-2's alphabet of bytes.
    pub(super) byte_level: bool,
}

/// What a token is to the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Left out: no token, or a special one.
    Skipped,
    /// A byte, written `<0xE9>`.
    Byte,
    /// Anything else.
    Text,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] when they are no such file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        Self::of(guarded(|| Library::from_bytes(bytes)).map_err(TextError::Tokenizer)?)
    }

    pub(super) fn of(mut inner: Library) -> Result<Self, TextError> {
        inner.with_truncation(None).map_err(|error| TextError::Tokenizer(error.to_string()))?;
        inner.with_padding(None);
        growth::check(&inner).map_err(TextError::Tokenizer)?;
        let decoder = inner.get_decoder().map(serde_json::to_value).transpose();
        let decoder = decoder.map_err(|error| TextError::Tokenizer(error.to_string()))?;
        let mut joins = Joins::default();
        decoder.iter().for_each(|decoder| joins.add(decoder, &mut false));
        // One letter shows what a post-processor puts before a text: special tokens, up to the first other one.
        let framed = guarded(|| inner.encode_fast("a", true)).ok();
        let framed = framed.iter().flat_map(|e| e.get_ids().iter().zip(e.get_special_tokens_mask()));
        let prefix = framed.take_while(|(_, special)| **special == 1).filter_map(|(id, _)| i32::try_from(*id).ok());
        let prefix = prefix.collect();
        Ok(Self { inner: RwLock::new(inner), joins, prefix })
    }

    /// Adds a token before texts, or nothing, instead of what the file says.
    pub fn set_prefix(&mut self, prefix: Option<i32>) {
        self.prefix = prefix.into_iter().collect();
    }

    /// What the tokenizer puts before a text that is not a rendered conversation.
    pub fn prefix(&self) -> &[i32] {
        &self.prefix
    }

    pub(super) fn inner(&self) -> RwLockReadGuard<'_, Library> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Token ids of a text. Added tokens in the text become their ids, special ones too.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer fails, for example on a text that its model cannot express.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, TextError> {
        let encoding = guarded(|| self.inner().encode_fast(text, false)).map_err(TextError::Tokenize)?;
        ids(&encoding)
    }

    /// Token ids of a text with the special tokens that the file's post-processor puts around it, as an encoder is trained.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_framed(&self, text: &str) -> Result<Vec<i32>, TextError> {
        ids(&guarded(|| self.inner().encode_fast(text, true)).map_err(TextError::Tokenize)?)
    }

    /// Token ids of a text in which a `mark` says where control tokens are ordinary text; the marks are left out.
    pub(super) fn encode_marked(&self, text: &str, mark: char, controls: &Controls) -> Result<Vec<i32>, TextError> {
        let encoding = guarded(|| self.inner().encode(text, false)).map_err(TextError::Tokenize)?;
        let all = ids(&encoding)?;
        // Control tokens cut the text into parts that the tokenizer treats one by one.
        let (mut encoded, mut from, mut begin) = (Vec::with_capacity(all.len()), 0, 0);
        let tokens = all.iter().zip(encoding.get_offsets()).enumerate();
        let cuts = tokens.filter(|(_, (id, _))| controls.contains(**id)).map(|(at, (_, span))| (at, *span));
        for (at, (start, end)) in cuts.chain([(all.len(), (text.len(), text.len()))]) {
            let part = text.get(begin..start).unwrap_or_default();
            if part.contains(mark) {
                encoded.extend(self.encode_literally(part, mark, controls)?);
            } else {
                encoded.extend_from_slice(&all[from..at]);
            }
            encoded.extend(all.get(at));
            (from, begin) = (at + 1, end);
        }
        Ok(encoded)
    }

    fn encode_literally(&self, text: &str, mark: char, controls: &Controls) -> Result<Vec<i32>, TextError> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.set_encode_special_tokens(true);
        let encode = |text: &str| guarded(|| inner.encode_fast(text, false)).map_err(TextError::Tokenize);
        let encoded = encode(&text.replace(mark, "")).and_then(|encoding| ids(&encoding)).and_then(|whole| {
            if !whole.iter().any(|id| controls.contains(*id)) {
                return Ok(whole);
            }
            // The file does not call it special: only the cut keeps it text.
            let parts: Result<Vec<_>, _> = text.split(mark).map(|part| ids(&encode(part)?)).collect();
            Ok(parts?.concat())
        });
        inner.set_encode_special_tokens(false);
        encoded
    }

    /// Where control tokens stand in a text that the tokenizer rewrites before it looks for them. Empty where it does
    /// not.
    pub(super) fn control_spans(&self, text: &str, controls: &Controls) -> Result<Vec<(usize, usize)>, TextError> {
        let inner = self.inner();
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        if inner.get_normalizer().is_none() || !added.values().any(|token| token.special && token.normalized) {
            return Ok(Vec::new());
        }
        let encoding = guarded(|| inner.encode(text, false)).map_err(TextError::Tokenize)?;
        let spans = ids(&encoding)?.into_iter().zip(encoding.get_offsets().to_vec());
        Ok(spans.filter(|(id, _)| controls.contains(*id)).map(|(_, span)| span).collect())
    }

    /// The special tokens that are found in texts, by id.
    pub fn special_tokens(&self) -> BTreeMap<i32, String> {
        let inner = self.inner();
        let added = inner.get_added_vocabulary().get_added_tokens_decoder().iter();
        let special = added.filter(|(_, token)| token.special && !token.content.is_empty());
        special.filter_map(|(id, token)| Some((i32::try_from(*id).ok()?, token.content.clone()))).collect()
    }

    /// The text of a token that is found in texts as a whole, special or not.
    pub fn added_token(&self, id: i32) -> Option<String> {
        let id = u32::try_from(id).ok()?;
        let inner = self.inner();
        let token = inner.get_added_vocabulary().get_added_tokens_decoder().get(&id)?;
        (!token.content.is_empty()).then(|| token.content.clone())
    }

    /// Text of token ids, invalid UTF-8 replaced. Ids without a token are left out, and with `skip_special` so are
    /// special tokens.
    ///
    /// # Errors
    /// [`TextError::Tokenize`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<String, TextError> {
        let inner = self.inner();
        let known = |id: u32| match inner.id_to_token(id) {
            Some(token) => !skip_special || !inner.get_added_vocabulary().is_special_token(&token),
            None => false,
        };
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        // Some decoders assert that there is something to decode.
        if !ids.iter().any(|&id| known(id)) {
            return Ok(String::new());
        }
        guarded(|| inner.decode(&ids, skip_special)).map_err(TextError::Tokenize)
    }

    /// What the decoder does with tokens, and across their borders.
    pub(super) fn joins(&self) -> Joins {
        self.joins
    }

    /// What a token is to the decoder when special tokens are skipped.
    pub(super) fn role(&self, id: i32) -> Role {
        let Some(token) = u32::try_from(id).ok().and_then(|id| self.inner().id_to_token(id)) else {
            return Role::Skipped;
        };
        let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if self.inner().get_added_vocabulary().is_special_token(&token) {
            Role::Skipped
        } else if digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok()) {
            Role::Byte
        } else {
            Role::Text
        }
    }

    /// Id of a token, given exactly as the file spells it.
    pub fn token_id(&self, token: &str) -> Option<i32> {
        self.inner().token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    /// The first thing in which `other` differs, on texts and on every id.
    pub(super) fn difference(&self, other: &Self, texts: &[String]) -> Option<String> {
        let (ours, theirs) = (self.inner(), other.inner());
        let encoded = |library: &Library, text: &str| {
            let encoding = guarded(|| library.encode(text, false)).ok()?;
            Some((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
        };
        let differs = |text: &&String| encoded(&ours, text) != encoded(&theirs, text);
        if let Some(text) = texts.iter().find(differs) {
            return Some(format!("ids of {text:?}"));
        }
        let vocab = ours.get_vocab(true);
        if vocab != theirs.get_vocab(true) {
            return Some("its tokens".into());
        }
        let ids = 0..=vocab.values().max().copied().unwrap_or(0).saturating_add(1);
        let token = ids.into_iter().find(|id| ours.id_to_token(*id) != theirs.id_to_token(*id));
        let token = token.map(|id| format!("the text of token {id}"));
        let rest = (self.joins, &self.prefix) != (other.joins, &other.prefix);
        token.or_else(|| rest.then(|| "what it puts before and between texts".into()))
    }

    /// Number of tokens, added ones included. The model's vocabulary is often padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.inner().get_vocab_size(true)
    }
}

impl Joins {
    /// Takes a step of a decoder into account; `fused` says whether the steps before it made one text of all tokens.
    fn add(&mut self, step: &Value, fused: &mut bool) {
        match step["type"].as_str().unwrap_or_default() {
            "Sequence" => {
                for step in step["decoders"].as_array().into_iter().flatten() {
                    self.add(step, fused);
                }
            }
            "ByteFallback" => {
                self.byte_tokens = true;
                self.byte_runs |= !*fused;
            }
            "Fuse" => *fused = true,
            "ByteLevel" => (*fused, self.byte_level) = (true, true),
            // Neither looks further than one character, or than the two ends of the text.
            "Metaspace" | "Strip" => {}
            "Replace" => {
                let one = step["pattern"]["String"].as_str().is_some_and(|text| text.chars().count() == 1);
                self.everything |= *fused && !one;
            }
            // The others replace longer strings. Within one token that is harmless.
            _ => self.everything |= *fused,
        }
    }
}

fn ids(encoding: &tokenizers::Encoding) -> Result<Vec<i32>, TextError> {
    let id = |&id: &u32| i32::try_from(id).map_err(|_| TextError::Tokenize(format!("token id {id} is too large")));
    encoding.get_ids().iter().map(id).collect()
}

pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
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

    /// A tokenizer that knows `tokens` by their place, the last of them special, and has this decoder.
    pub(crate) fn decoding_tokenizer(tokens: &[&str], decoder: serde_json::Value) -> Tokenizer {
        let vocab: serde_json::Map<_, _> =
            (0..).zip(tokens).map(|(id, token)| ((*token).to_owned(), Value::from(id))).collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": [{
                "id": tokens.len() - 1, "content": tokens[tokens.len() - 1], "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }],
            "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]},
        });
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    pub(crate) fn bytes_tokenizer_json(extra: &[&str]) -> String {
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
