//! A byte pair encoding on tables that are ready to use: nothing is built when it is read but an index of one number per token.
//!
//! Invariant: [`Bpe::new`] proves that every number in the tables is in range, that the texts of the tokens are sorted and that
//! ids have one text each, so nothing here can fail but a token that a text needs and the vocabulary lacks. Words become the
//! tokens that the `tokenizers` crate makes of them: the pair with the lowest rank is merged first, the leftmost of equals.
//! What splits a text into words, and what makes text of tokens, is left to that crate.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{Model, Result, Token};

/// An id without a token.
const ABSENT: u32 = u32::MAX;

/// What a `tokenizer.json` says of a byte pair encoding besides its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    /// What a character becomes that is no token.
    pub(super) unk_token: Option<String>,
    /// Whether neighboring unknown characters become one token.
    pub(super) fuse_unk: bool,
    /// Whether an unknown character becomes a token for each of its bytes, where all are there.
    pub(super) byte_fallback: bool,
    /// Whether a word that is a token needs no merges.
    pub(super) ignore_merges: bool,
}

/// The tables, as they lie in the artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Texts of all tokens, sorted, one behind the other.
    pub(super) texts: String,
    /// Where the text of each ends.
    pub(super) ends: Vec<u32>,
    /// Its id.
    pub(super) ids: Vec<u32>,
    /// Where the merges begin whose left token has an id; one more than there are ids.
    pub(super) starts: Vec<u32>,
    /// Right tokens of the merges, sorted among those with the same left one.
    pub(super) rights: Vec<u32>,
    /// Which merge comes first.
    pub(super) ranks: Vec<u32>,
    /// What they become.
    pub(super) merged: Vec<u32>,
}

/// A byte pair encoding.
pub(super) struct Bpe {
    tables: Tables,
    options: Options,
    /// Where the text of an id is.
    places: Vec<u32>,
    /// Tokens of one character, sorted.
    chars: Vec<(char, u32)>,
    unk: Option<u32>,
    /// Tokens of the bytes that have one, written `<0xE9>`.
    bytes: Vec<Option<u32>>,
}

/// A part of a word; removed ones have no length.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    len: usize,
    before: Option<usize>,
    behind: Option<usize>,
}

impl Bpe {
    /// Takes tables into use.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(tables: Tables, options: Options) -> std::result::Result<Self, String> {
        let (tokens, merges) = (tables.ends.len(), tables.rights.len());
        if tables.ids.len() != tokens || tables.ranks.len() != merges || tables.merged.len() != merges {
            return Err("tables of different lengths".into());
        }
        let known = tables.starts.len().checked_sub(1).ok_or("no table of merges")?;
        let (mut places, mut chars, mut last, mut begin) = (vec![ABSENT; known], Vec::new(), None, 0);
        for (place, (&end, &id)) in tables.ends.iter().zip(&tables.ids).enumerate() {
            let text = usize::try_from(end).ok().and_then(|end| tables.texts.get(begin..end));
            let text = text.ok_or_else(|| format!("text {place} lies outside the texts"))?;
            if last.is_some_and(|last| last >= text) {
                return Err(format!("text {place} is not behind the one before it"));
            }
            let free = usize::try_from(id).ok().and_then(|id| places.get_mut(id)).filter(|place| **place == ABSENT);
            *free.ok_or_else(|| format!("the id {id} is out of range, or of two tokens"))? =
                u32::try_from(place).map_err(|_| "too many tokens")?;
            let mut letters = text.chars();
            if let (Some(letter), None) = (letters.next(), letters.next()) {
                chars.push((letter, id));
            }
            (last, begin) = (Some(text), end as usize);
        }
        if begin != tables.texts.len() {
            return Err("texts that belong to no token".into());
        }
        let is_token = |id: u32| places.get(id as usize).is_some_and(|place| *place != ABSENT);
        if tables.starts.first() != Some(&0) || tables.starts.last().map(|last| *last as usize) != Some(merges) {
            return Err("merges that belong to no token".into());
        }
        for (left, pair) in tables.starts.windows(2).enumerate() {
            let rights = tables.rights.get(pair[0] as usize..pair[1] as usize);
            let rights = rights.ok_or_else(|| format!("the merges of token {left} lie outside the table"))?;
            if !rights.is_sorted_by(|a, b| a < b) {
                return Err(format!("the merges of token {left} are not sorted"));
            }
        }
        if let Some(id) = tables.rights.iter().chain(&tables.merged).find(|id| !is_token(**id)) {
            return Err(format!("a merge names the token {id}, which is not there"));
        }
        let mut bpe = Bpe { tables, options, places, chars, unk: None, bytes: Vec::new() };
        if let Some(unk) = &bpe.options.unk_token {
            let id = bpe.token_to_id(unk).ok_or_else(|| format!("the unknown token {unk:?} is not there"))?;
            bpe.unk = Some(id);
        }
        if bpe.options.byte_fallback {
            bpe.bytes = (0..=u8::MAX).map(|byte| bpe.token_to_id(&format!("<0x{byte:02X}>"))).collect();
        }
        Ok(bpe)
    }

    fn text(&self, place: usize) -> Option<&str> {
        let end = *self.tables.ends.get(place)?;
        let begin = place.checked_sub(1).map_or(Some(0), |before| self.tables.ends.get(before).copied())?;
        self.tables.texts.get(begin as usize..end as usize)
    }

    fn text_of(&self, id: u32) -> Option<&str> {
        let place = *self.places.get(usize::try_from(id).ok()?)?;
        (place != ABSENT).then(|| self.text(place as usize)).flatten()
    }

    /// What the file says besides the tables.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// How many merges there are.
    pub(super) fn merges(&self) -> usize {
        self.tables.rights.len()
    }

    /// Rank of a merge, and what it makes.
    pub(super) fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let left = left as usize;
        let (begin, end) = (*self.tables.starts.get(left)? as usize, *self.tables.starts.get(left + 1)? as usize);
        let at = begin + self.tables.rights.get(begin..end)?.binary_search(&right).ok()?;
        Some((*self.tables.ranks.get(at)?, *self.tables.merged.get(at)?))
    }

    /// Left and right token of each merge, first the one that comes first.
    fn spelled_merges(&self) -> Vec<[&str; 2]> {
        let lefts =
            self.tables.starts.windows(2).zip(0u32..).flat_map(|(pair, left)| (pair[0]..pair[1]).map(move |_| left));
        let mut merges: Vec<_> = self.tables.ranks.iter().zip(lefts.zip(&self.tables.rights)).collect();
        merges.sort_unstable();
        let text = |id| self.text_of(id).unwrap_or_default();
        merges.into_iter().map(|(_, (left, right))| [text(left), text(*right)]).collect()
    }

    /// A word's characters as tokens.
    fn letters(&self, word: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        let mut add = |id, len| {
            let at = symbols.len();
            if let Some(last) = symbols.last_mut() {
                last.behind = Some(at);
            }
            symbols.push(Symbol { id, len, before: at.checked_sub(1), behind: None });
        };
        // Unknown bytes that became no token yet: a byte fallback overtakes them, as it does in the library.
        let mut unknown = 0;
        let mut buffer = [0; 4];
        for letter in word.chars() {
            if let Ok(at) = self.chars.binary_search_by_key(&letter, |(letter, _)| *letter) {
                if let Some(unk) = self.unk.filter(|_| unknown > 0) {
                    add(unk, unknown);
                    unknown = 0;
                }
                add(self.chars[at].1, letter.len_utf8());
                continue;
            }
            if self.options.byte_fallback {
                let bytes = letter.encode_utf8(&mut buffer).bytes();
                let tokens: Option<Vec<u32>> = bytes.map(|b| self.bytes.get(usize::from(b)).copied()?).collect();
                if let Some(tokens) = tokens {
                    tokens.into_iter().for_each(|id| add(id, 1));
                    continue;
                }
            }
            if let Some(unk) = self.unk {
                if unknown > 0 && !self.options.fuse_unk {
                    add(unk, unknown);
                    unknown = 0;
                }
                unknown += letter.len_utf8();
            }
        }
        if let Some(unk) = self.unk.filter(|_| unknown > 0) {
            add(unk, unknown);
        }
        symbols
    }

    /// Merges what can be merged.
    fn merge_all(&self, symbols: &mut [Symbol]) {
        let pair = |symbols: &[Symbol], at: usize| {
            let Symbol { id, behind, .. } = symbols[at];
            let (rank, merged) = self.merge(id, symbols[behind?].id)?;
            Some(Reverse((rank, at, merged)))
        };
        let mut queue: BinaryHeap<_> = (0..symbols.len()).filter_map(|at| pair(symbols, at)).collect();
        while let Some(Reverse((_, at, merged))) = queue.pop() {
            // What was queued may have become part of something else.
            if symbols[at].len == 0 || pair(symbols, at).is_none_or(|Reverse((_, _, now))| now != merged) {
                continue;
            }
            let Some(right) = symbols[at].behind else { continue };
            let Symbol { len, behind, .. } = symbols[right];
            symbols[right].len = 0;
            symbols[at] = Symbol { id: merged, len: symbols[at].len + len, behind, ..symbols[at] };
            if let Some(behind) = behind {
                symbols[behind].before = Some(at);
            }
            queue.extend(symbols[at].before.and_then(|before| pair(symbols, before)));
            queue.extend(pair(symbols, at));
        }
    }
}

impl Model for Bpe {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        if let Some(id) = self.token_to_id(word).filter(|_| self.options.ignore_merges && !word.is_empty()) {
            return Ok(vec![Token::new(id, word.to_owned(), (0, word.len()))]);
        }
        let mut symbols = self.letters(word);
        self.merge_all(&mut symbols);
        let mut begin = 0;
        let tokens = symbols.iter().filter(|symbol| symbol.len > 0).map(|&Symbol { id, len, .. }| {
            let text = self.text_of(id).ok_or_else(|| format!("there is no token {id}"))?;
            begin += len;
            Ok(Token::new(id, text.to_owned(), (begin - len, begin)))
        });
        tokens.collect()
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        let (mut low, mut high) = (0, self.tables.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.text(middle)?.cmp(token) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return self.tables.ids.get(middle).copied(),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.text_of(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let texts = (0..self.tables.ids.len()).filter_map(|place| self.text(place));
        texts.map(str::to_owned).zip(self.tables.ids.iter().copied()).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.tables.ids.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("tables are not written as files; the artifact has its tokenizer.json".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        BpeTrainer::default().into()
    }
}

/// What makes tokens of words.
pub(super) enum Words {
    /// Tables of the artifact.
    Tables(Box<Bpe>),
    /// The library's own.
    Library(Box<ModelWrapper>),
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        ModelWrapper::deserialize(from).map(|model| Words::Library(Box::new(model)))
    }
}

impl Words {
    fn model(&self) -> &dyn Model<Trainer = TrainerWrapper> {
        match self {
            Words::Tables(bpe) => &**bpe,
            Words::Library(model) => &**model,
        }
    }
}

impl Words {
    /// Whether both have the same tables and options, by id.
    pub(super) fn merges_like(&self, other: &Words) -> bool {
        let (Words::Tables(a), Words::Tables(b)) = (self, other) else { return false };
        let (x, y) = (&a.tables, &b.tables);
        a.options == b.options
            && (&x.starts, &x.rights, &x.ranks, &x.merged) == (&y.starts, &y.rights, &y.ranks, &y.merged)
    }

    /// What a `tokenizer.json` says of it but for the vocabulary and what is not set.
    pub(super) fn meaning(&self) -> serde_json::Result<Value> {
        let mut model = match self {
            Words::Library(model) => serde_json::to_value(model)?,
            Words::Tables(bpe) => {
                let mut model = serde_json::to_value(&bpe.options)?;
                model["type"] = "BPE".into();
                model["merges"] = serde_json::to_value(bpe.spelled_merges())?;
                model
            }
        };
        if let Some(model) = model.as_object_mut() {
            model.remove("vocab");
            model.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
        }
        Ok(model)
    }
}

impl Model for Words {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        self.model().tokenize(word)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.model().token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.model().id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.model().get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.model().get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        self.model().save(folder, prefix)
    }

    fn get_trainer(&self) -> TrainerWrapper {
        self.model().get_trainer()
    }
}
