//! Whether a section says what its `tokenizer.json` says, entry by entry, without keeping any: the file is read as a stream.
//!
//! Invariant: a section that passes has the file's tokens and no others, and of each merge the rank and the token that the file
//! gives it where it stands last.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::{AddedToken, Model};

use super::super::bpe::{Bpe, Options};
use super::{Merge, Settings};

/// Compares what was read of a section with the file.
pub(super) fn check(bpe: &Bpe, settings: &Settings, json: &[u8]) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let seen = reader.deserialize_map(Top { bpe, settings }).map_err(|e| e.to_string())?;
    let (tokens, merges) = (bpe.get_vocab_size(), bpe.merges());
    if seen != (tokens, merges) {
        return Err(format!(
            "it has {tokens} tokens and {merges} merges, and tokenizer.json {} and {}",
            seen.0, seen.1
        ));
    }
    Ok(())
}

/// Tokens and merges.
type Counted = (usize, usize);

/// The file: its settings are compared, and of its model tokens and merges are counted.
struct Top<'a> {
    bpe: &'a Bpe,
    settings: &'a Settings,
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Counted;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer.json")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counted, A::Error> {
        let (mut seen, mut added, mut parts) = (None, Vec::new(), [const { Value::Null }; 4]);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "added_tokens" => added = map.next_value::<Vec<AddedToken>>()?,
                "normalizer" => parts[0] = map.next_value()?,
                "pre_tokenizer" => parts[1] = map.next_value()?,
                "post_processor" => parts[2] = map.next_value()?,
                "decoder" => parts[3] = map.next_value()?,
                "model" => seen = Some(map.next_value_seed(Entries(self.bpe))?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let Settings { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, .. } = self.settings;
        let said = [normalizer, pre_tokenizer, post_processor, decoder];
        if added != *added_tokens || said != parts.each_ref() {
            return Err(A::Error::custom("its settings are not those of tokenizer.json"));
        }
        seen.ok_or_else(|| A::Error::custom("tokenizer.json has no model"))
    }
}

/// Tokens and merges of the model.
struct Entries<'a>(&'a Bpe);

/// The vocabulary.
struct Tokens<'a>(&'a Bpe);
/// The merges.
struct Merges<'a>(&'a Bpe);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Counted;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Counted, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Counted;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counted, A::Error> {
        let (mut tokens, mut merges, mut found, mut plain) = (0, 0, Options::default(), true);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let mut flag = || map.next_value::<Option<bool>>().map(Option::unwrap_or_default);
            match &*key {
                "fuse_unk" => found.fuse_unk = flag()?,
                "byte_fallback" => found.byte_fallback = flag()?,
                "ignore_merges" => found.ignore_merges = flag()?,
                "unk_token" => found.unk_token = map.next_value()?,
                "vocab" => tokens = map.next_value_seed(Tokens(self.0))?,
                "merges" => merges = map.next_value_seed(Merges(self.0))?,
                "type" => plain &= map.next_value::<Cow<'de, str>>()? == "BPE",
                "continuing_subword_prefix" | "end_of_word_suffix" => {
                    plain &= map.next_value::<Option<String>>()?.unwrap_or_default().is_empty();
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if plain && found == *self.0.options() {
            Ok((tokens, merges))
        } else {
            Err(A::Error::custom("its options are not those of tokenizer.json"))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Tokens<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tokens<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tokens")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while let Some((text, id)) = map.next_entry::<Cow<'de, str>, u32>()? {
            if self.0.token_to_id(&text) != Some(id) {
                return Err(A::Error::custom(format!("its token {text:?} is not that of tokenizer.json")));
            }
            count += 1;
        }
        Ok(count)
    }
}

impl<'de> DeserializeSeed<'de> for Merges<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Merges<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        let (mut count, mut rank) = (0, 0);
        while let Some(merge) = list.next_element::<Merge>()? {
            let known = merge.pair().and_then(|(left, right)| {
                let merged = self.0.token_to_id(&[left, right].concat())?;
                let found = self.0.merge(self.0.token_to_id(left)?, self.0.token_to_id(right)?)?;
                // A merge that stands again later counts there.
                (found.1 == merged && found.0 >= rank).then_some(found.0)
            });
            let known = known.ok_or_else(|| A::Error::custom(format!("merge {rank} is not that of tokenizer.json")))?;
            count += usize::from(known == rank);
            rank += 1;
        }
        Ok(count)
    }
}
