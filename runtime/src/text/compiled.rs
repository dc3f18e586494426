//! A tokenizer as a section of an artifact: what `tokenizer.json` says, with the tables of its byte pair encoding ready to use.
//!
//! The section is a magic number, the BLAKE3 of the `tokenizer.json` that it was made from, five counts, JSON with everything that
//! is no table, texts of tokens, and tables of 32-bit numbers; all little-endian. Normalizer, splitter, added tokens and
//! decoder stay those of the `tokenizers` crate.
//!
//! Invariant: a section is made only when it gives the ids of the library on the texts of [`corpus`], and says no when it
//! gives others than it recorded for a few of them. Reading one allocates no more than a few times its bytes; a broken one is
//! an error.

mod agree;
mod corpus;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::AddedToken;

use super::bpe::{Bpe, Options, Tables, Words};
use super::tokenizer::{Library, guarded};
use super::{TextError, Tokenizer};

const MAGIC: &[u8; 8] = b"dlxtok\x001";
/// Ids that a vocabulary may leave out, beside as many as it has.
const HOLES: u32 = 1024;
/// Texts of the corpus that a section repeats with their ids.
const RECORDED: usize = 12;

/// Everything that is no table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    added_tokens: Vec<AddedToken>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    options: Options,
    /// Texts and their ids.
    recorded: Vec<(String, Vec<i32>)>,
}

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: Option<bool>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    ignore_merges: Option<bool>,
}

/// Two texts in a list, or with a space between them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Two(String, String),
    One(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Two(left, right) => Some((left, right)),
            Merge::One(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        }
    }
}

/// How large a section is, by what takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes of everything.
    pub(super) bytes: u64,
    /// Bytes of the settings.
    pub(super) settings: u64,
    /// Tokens of the vocabulary.
    pub(super) tokens: u64,
    /// Ids up to the largest.
    pub(super) ids: u64,
}

impl Tokenizer {
    /// The section of a `tokenizer.json`, checked against the library on texts of many kinds and on `texts`.
    ///
    /// # Errors
    /// Why this tokenizer has none and is read from its file at every start.
    pub fn compile(json: &[u8], texts: &[&str]) -> Result<Vec<u8>, String> {
        let said = |e: TextError| e.to_string();
        let file: File = serde_json::from_slice(json).map_err(|e| format!("its model is of another kind: {e}"))?;
        let File { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } = file;
        let (tables, options) = tables(&model)?;
        // As large as the library's own, which takes its place.
        drop(model);
        let library = Self::from_bytes(json).map_err(said)?;
        let tokens = added_tokens.iter().map(|token| token.content.as_str());
        let mut corpus = corpus::texts();
        corpus.extend(texts.iter().map(|text| (*text).to_owned()));
        corpus.extend(tokens.flat_map(corpus::around));
        corpus.extend(corpus::tokens(&library, &tables.ids));
        let recorded = corpus.iter().take(RECORDED);
        let recorded = recorded.filter_map(|text| Some((text.clone(), library.encode(text).ok()?))).collect();
        let settings = Settings { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, options, recorded };
        let settings = serde_json::to_vec(&settings).map_err(|e| e.to_string())?;
        let section = write(json, &settings, &tables)?;
        // A file that says a thing twice is not the stream that the tables came from.
        Self::check_compiled(&section, json).map_err(said)?;
        let compiled = Self::from_compiled(&section, blake3::hash(json).as_bytes()).map_err(said)?;
        match library.difference(&compiled, &corpus) {
            Some(difference) => Err(format!("its tables give another result: {difference}")),
            None => Ok(section),
        }
    }

    /// Whether a section says what this `tokenizer.json` says, entry by entry. It reads the file, which reading the section does
    /// not.
    ///
    /// # Errors
    /// [`TextError::Compiled`] when it says something else.
    pub fn check_compiled(section: &[u8], json: &[u8]) -> Result<(), TextError> {
        let same = || {
            let (bpe, settings) = parts(section, blake3::hash(json).as_bytes())?;
            agree::check(&bpe, &settings, json)
        };
        same().map_err(TextError::Compiled)
    }

    /// Reads a section that [`Tokenizer::compile`] made of the `tokenizer.json` with this BLAKE3.
    ///
    /// # Errors
    /// [`TextError::Compiled`] when it is no such section.
    pub fn from_compiled(section: &[u8], hash: &[u8; 32]) -> Result<Self, TextError> {
        let (library, recorded) = guarded(|| Ok(read(section, hash)?)).map_err(TextError::Compiled)?;
        let tokenizer = Self::of(library)?;
        for (text, ids) in recorded {
            if tokenizer.encode(&text)? != ids {
                return Err(TextError::Compiled(format!("{text:?} has other ids than were recorded")));
            }
        }
        Ok(tokenizer)
    }
}

/// The tables of a model.
fn tables(model: &Model) -> Result<(Tables, Options), String> {
    if model.kind != "BPE" {
        return Err(format!("its model is {}, and only BPE has tables", model.kind));
    }
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
        return Err("its tokens are written differently within and at the ends of words".into());
    }
    let vocab = model.vocab.as_object().ok_or("its vocabulary is no map")?;
    let vocab: Option<BTreeMap<&str, u32>> =
        vocab.iter().map(|(text, id)| Some((text.as_str(), u32::try_from(id.as_u64()?).ok()?))).collect();
    let vocab = vocab.ok_or("its vocabulary has an id that is no number")?;
    let count = u32::try_from(vocab.len()).map_err(|_| "its vocabulary is too large")?;
    let known = vocab.values().max().map_or(0, |largest| largest.saturating_add(1));
    if known > count.saturating_mul(2).saturating_add(HOLES) {
        return Err(format!("its {count} tokens have ids up to {}", known - 1));
    }
    let mut tables = Tables::default();
    for (text, id) in &vocab {
        tables.texts.push_str(text);
        tables.ends.push(u32::try_from(tables.texts.len()).map_err(|_| "its vocabulary is too large")?);
        tables.ids.push(*id);
    }
    // What is written twice counts where it is written last.
    let mut merges = BTreeMap::new();
    let (mut joined, mut rank) = (String::new(), 0);
    for merge in &model.merges {
        let (left, right) = merge.pair().ok_or("a merge is not two texts")?;
        joined.clear();
        joined.extend([left, right]);
        let [left, right, merged] = [left, right, joined.as_str()].map(|text| vocab.get(text).copied());
        let missing = || format!("a merge makes {joined:?}, which is no token, or of what is none");
        let (left, right, merged) = left.zip(right).zip(merged).map(|((l, r), m)| (l, r, m)).ok_or_else(missing)?;
        merges.insert((left, right), (rank, merged));
        rank += 1;
    }
    let mut left = 0;
    for (place, (&(first, right), &(rank, merged))) in (0..).zip(&merges) {
        while left <= first {
            tables.starts.push(place);
            left += 1;
        }
        tables.rights.push(right);
        tables.ranks.push(rank);
        tables.merged.push(merged);
    }
    tables.starts.resize(known as usize + 1, u32::try_from(merges.len()).map_err(|_| "it has too many merges")?);
    let options = Options {
        unk_token: model.unk_token.clone(),
        fuse_unk: model.fuse_unk.unwrap_or_default(),
        byte_fallback: model.byte_fallback.unwrap_or_default(),
        ignore_merges: model.ignore_merges.unwrap_or_default(),
    };
    Ok((tables, options))
}

fn write(json: &[u8], settings: &[u8], tables: &Tables) -> Result<Vec<u8>, String> {
    let lengths = [settings.len(), tables.texts.len(), tables.ends.len(), tables.starts.len(), tables.rights.len()];
    let mut section = MAGIC.to_vec();
    section.extend(blake3::hash(json).as_bytes());
    for length in lengths {
        section.extend(u32::try_from(length).map_err(|_| "it is too large")?.to_le_bytes());
    }
    section.extend(settings);
    section.extend(tables.texts.as_bytes());
    let Tables { ends, ids, starts, rights, ranks, merged, .. } = tables;
    for numbers in [ends, ids, starts, rights, ranks, merged] {
        section.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    Ok(section)
}

/// The parts of a section.
struct Parts<'a> {
    settings: &'a [u8],
    texts: &'a [u8],
    /// Tokens, ids and one more, merges.
    lengths: [usize; 3],
    numbers: &'a [u8],
}

fn split<'a>(section: &'a [u8], hash: Option<&[u8; 32]>) -> Result<Parts<'a>, String> {
    let short = || String::from("it ends too early");
    let rest = section.strip_prefix(MAGIC).ok_or("it is of another version")?;
    let (made_of, mut rest) = rest.split_at_checked(32).ok_or_else(short)?;
    if hash.is_some_and(|hash| hash != made_of) {
        return Err("it was made from another tokenizer.json than the artifact has".into());
    }
    let mut lengths = [0; 5];
    for length in &mut lengths {
        let (bytes, behind) = rest.split_first_chunk().ok_or_else(short)?;
        *length = usize::try_from(u32::from_le_bytes(*bytes)).map_err(|_| short())?;
        rest = behind;
    }
    let [settings, texts, tokens, ids, merges] = lengths;
    let (settings, rest) = rest.split_at_checked(settings).ok_or_else(short)?;
    let (texts, numbers) = rest.split_at_checked(texts).ok_or_else(short)?;
    let count = [tokens, tokens, ids, merges, merges, merges].into_iter().try_fold(0usize, usize::checked_add);
    if count.and_then(|count| count.checked_mul(4)) != Some(numbers.len()) {
        return Err("its tables have another length than it says".into());
    }
    Ok(Parts { settings, texts, lengths: [tokens, ids, merges], numbers })
}

/// What a section holds, without checking more than its lengths.
pub(super) fn counts(section: &[u8]) -> Result<Counts, TextError> {
    let parts = split(section, None).map_err(TextError::Compiled)?;
    let [tokens, ids, _] = parts.lengths.map(|n| n as u64);
    Ok(Counts { bytes: section.len() as u64, settings: parts.settings.len() as u64, tokens, ids })
}

type Recorded = Vec<(String, Vec<i32>)>;

fn parts(section: &[u8], hash: &[u8; 32]) -> Result<(Bpe, Settings), String> {
    let Parts { settings, texts, lengths: [tokens, ids, merges], numbers } = split(section, Some(hash))?;
    let mut numbers = numbers.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let mut take = |count| numbers.by_ref().take(count).collect::<Vec<u32>>();
    let tables = Tables {
        texts: std::str::from_utf8(texts).map_err(|e| format!("its texts are not UTF-8: {e}"))?.to_owned(),
        ends: take(tokens),
        ids: take(tokens),
        starts: take(ids),
        rights: take(merges),
        ranks: take(merges),
        merged: take(merges),
    };
    let settings: Settings = serde_json::from_slice(settings).map_err(|e| format!("its settings: {e}"))?;
    let bpe = Bpe::new(tables, settings.options.clone())?;
    Ok((bpe, settings))
}

fn read(section: &[u8], hash: &[u8; 32]) -> Result<(Library, Recorded), String> {
    let (bpe, settings) = parts(section, hash)?;
    let mut library = Library::new(Words::Tables(Box::new(bpe)));
    // The order of the library's own reader: added tokens are normalized as they are added.
    let part = |e: serde_json::Error| format!("its settings: {e}");
    let failed = |e: tokenizers::Error| e.to_string();
    let normalizer: Option<tokenizers::NormalizerWrapper> =
        serde_json::from_value(settings.normalizer).map_err(part)?;
    library.with_normalizer(normalizer).map_err(failed)?;
    let splitter: Option<tokenizers::PreTokenizerWrapper> =
        serde_json::from_value(settings.pre_tokenizer).map_err(part)?;
    library.with_pre_tokenizer(splitter);
    let frame: Option<tokenizers::PostProcessorWrapper> =
        serde_json::from_value(settings.post_processor).map_err(part)?;
    library.with_post_processor(frame);
    let decoder: Option<tokenizers::DecoderWrapper> = serde_json::from_value(settings.decoder).map_err(part)?;
    library.with_decoder(decoder);
    library.add_tokens(settings.added_tokens).map_err(failed)?;
    Ok((library, settings.recorded))
}

#[cfg(test)]
mod tests;
