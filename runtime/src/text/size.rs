//! How much memory a tokenizer takes, from what its file holds: entries are counted, nothing is kept of them.
//!
//! Invariant: a bound for a general-purpose allocator whose blocks are at least 32 bytes, with the tables of the `tokenizers`
//! crate: two maps of the vocabulary with a text each, one map of the merges; for Unigram a trie of all bytes. While the
//! file is read, that crate holds its model three times over as parsed JSON.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::TextError;
use super::compiled::{Counts, counts};

/// What a `tokenizer.json` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct TokenizerSize {
    #[serde(default)]
    model: Model,
    #[serde(default, rename = "added_tokens")]
    added: Count,
    #[serde(default)]
    normalizer: Text,
    #[serde(default)]
    pre_tokenizer: Text,
    #[serde(default)]
    post_processor: Text,
    #[serde(default)]
    decoder: Text,
    /// Of a compiled tokenizer, whose tables are held as they lie in their section.
    #[serde(skip)]
    compiled: Option<Counts>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Count,
    #[serde(default)]
    merges: Count,
}

/// Entries of a map or a list, the bytes of their texts, and whether they were a list of lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    entries: u64,
    bytes: u64,
    /// Items of entries that are lists.
    items: u64,
}

/// Smallest block of an allocator, and what it adds to one.
const BLOCK: u64 = 32;
/// Bytes of an added token: its record, two maps, and the automata that find it.
const ADDED: u64 = 4096;
/// Bytes of everything that is no table, automata of a splitter among them, and bytes per byte of other settings, such as a
/// table of characters.
const REST: (u64, u64) = (1 << 20, 64);
/// Bytes per byte of a compiled tokenizer's settings: added tokens with their automata, tables of characters.
const SETTING: u64 = 64;
/// Texts that are remembered with their tokens, and bytes of such a text of common length.
const CACHED: u64 = 10_000 * 320;

impl TokenizerSize {
    /// Counts what a `tokenizer.json` holds.
    ///
    /// # Errors
    /// Something else, or a file that says a thing twice.
    pub fn of(json: &[u8]) -> Result<Self, TextError> {
        serde_json::from_slice(json).map_err(|e| TextError::Tokenizer(e.to_string()))
    }

    /// Counts what a section with a compiled tokenizer holds.
    ///
    /// # Errors
    /// A section that is none.
    pub fn of_compiled(section: &[u8]) -> Result<Self, TextError> {
        Ok(TokenizerSize { compiled: Some(counts(section)?), ..Self::default() })
    }

    /// Bytes that the tokenizer holds once it is read and its memory is given back. Blocks that stay lie among blocks that went,
    /// and pin their pages: more of them where merges were lists.
    pub fn held(&self) -> u64 {
        if let Some(compiled) = self.compiled {
            return compiled.held();
        }
        let pinned = self.texts() / 10 * if self.model.merges.items > 0 { 13 } else { 11 };
        [self.live(), pinned, CACHED].into_iter().fold(0, u64::saturating_add)
    }

    /// Bytes that reading it takes at most, what stays included.
    pub fn reading(&self) -> u64 {
        if let Some(compiled) = self.compiled {
            // The section is read once more where it is compared with its file, before the library makes its parts.
            return compiled.held().saturating_add(SETTING * compiled.settings);
        }
        let Model { vocab, merges } = self.model;
        // As a list of pairs and as an ordered map, whose nodes may be half empty.
        let words = vocab.entries * (2 * 64 + 2 * 64 + 2 * BLOCK) + 2 * vocab.bytes + vocab.items * 128;
        // Each pair as a list, twice, with its texts; as one text or two, and as a pair of texts at last.
        let pairs = merges.entries * (2 * 32 + 48 + 4 * BLOCK) + 3 * merges.bytes + merges.items * 232;
        self.live().saturating_add(words).saturating_add(pairs)
    }

    /// Bytes of the vocabulary's texts, which two maps hold.
    fn texts(&self) -> u64 {
        2 * (self.model.vocab.entries * BLOCK + self.model.vocab.bytes)
    }

    /// Bytes of what stays.
    fn live(&self) -> u64 {
        let Model { vocab, merges } = self.model;
        let tables = if vocab.items > 0 {
            // A list of scores, and a trie with a small table per byte.
            table(vocab.entries, 32) + vocab.bytes * 272 + vocab.entries * 80
        } else {
            2 * table(vocab.entries, 32)
        };
        let settings = [self.normalizer, self.pre_tokenizer, self.post_processor, self.decoder];
        let rest = REST.0 + REST.1 * settings.iter().map(|text| text.0).sum::<u64>();
        self.texts() + tables + table(merges.entries, 16) + self.added.entries * ADDED + rest
    }
}

impl Counts {
    /// The tables, an index of the ids, tokens of one character, and what the library makes of the settings.
    fn held(&self) -> u64 {
        let index = self.ids * 4 + self.tokens * 24;
        [self.bytes, index, REST.0, SETTING * self.settings].into_iter().fold(0, u64::saturating_add)
    }
}

/// Bytes of a hash table of `entries` entries of `size` bytes: a power of two of places, an eighth free.
fn table(entries: u64, size: u64) -> u64 {
    (entries * 8).div_ceil(7).next_power_of_two() * (size + 1)
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Counter)
    }
}

/// Counts entries and adds up their texts.
struct Counter;

impl<'de> Visitor<'de> for Counter {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
        let mut count = Count::default();
        while let Some(key) = map.next_key::<Text>()? {
            map.next_value::<IgnoredAny>()?;
            count.entries += 1;
            count.bytes += key.0;
        }
        Ok(count)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Count, A::Error> {
        let mut count = Count::default();
        while let Some(item) = list.next_element::<Text>()? {
            count.entries += 1;
            count.bytes += item.0;
            count.items += item.1;
        }
        Ok(count)
    }

    fn visit_unit<E>(self) -> Result<Count, E> {
        Ok(Count::default())
    }
}

/// Bytes of all texts in a value, and the length of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Text(u64, u64);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Measure)
    }
}

struct Measure;

impl<'de> Visitor<'de> for Measure {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.len() as u64, 0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text, A::Error> {
        let mut sum = Text(0, 0);
        while let Some(item) = list.next_element::<Text>()? {
            sum = Text(sum.0 + item.0, sum.1 + 1);
        }
        Ok(sum)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
        let mut sum = Text(0, 0);
        while let Some((key, value)) = map.next_entry::<Text, Text>()? {
            sum.0 += key.0 + value.0;
        }
        Ok(sum)
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text(0, 0))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text(0, 0))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text(0, 0))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Text(0, 0))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text(0, 0))
    }
}
