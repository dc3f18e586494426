//! A `tokenizer.json` made from the files of a byte-level BPE tokenizer that was saved without one: `vocab.json`,
//! `merges.txt` and the added tokens.
//!
//! Invariant: the result is what the class's fast form saves for the same files (transformers' converters), so the ids are
//! the same, and its bytes depend on the files alone. How text is cut into words follows from the tokenizer's class; a
//! class that is not known is refused, since another cut gives other ids without any error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dlx_ir::Error;
use serde_json::{Map, Value, json};

use super::special::{TOKEN_KEYS, token_text};
use super::{Config, json as read_json};

const MAX_FILE: u64 = 64 << 20;
const MAX_ID: u64 = 1 << 22;

/// How Qwen2 cuts text into words.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer classes that are known, alphabetically, without the `Fast` of their fast forms.
const CLASSES: &[(&str, Words)] =
    &[("DreamTokenizer", Words::Qwen2), ("GPT2Tokenizer", Words::Gpt2), ("Qwen2Tokenizer", Words::Qwen2)];

/// Classes whose sentencepiece model transformers converts, alphabetically.
const SENTENCEPIECE: &[&str] =
    &["CodeLlamaTokenizer", "GemmaTokenizer", "LlamaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"];
const FROM_SENTENCEPIECE: &str = "download it from the model's repository; where that has none, make it in this directory \
    (pip install transformers sentencepiece protobuf): python3 -c \"from transformers import AutoTokenizer as A; \
    A.from_pretrained('.', use_fast=True).save_pretrained('.')\"";

#[derive(Clone, Copy)]
enum Words {
    Gpt2,
    Qwen2,
}

/// A token beside the vocabulary.
struct Added {
    id: u64,
    content: String,
    special: bool,
    /// The flags `single_word`, `lstrip`, `rstrip`, `normalized`.
    flags: [bool; 4],
}

const FLAGS: [&str; 4] = ["single_word", "lstrip", "rstrip", "normalized"];

/// Builds the tokenizer of a directory that has no `tokenizer.json`; with it, what there is to say about it.
pub(super) fn build(
    dir: &Path,
    config: Option<&Config>,
    special_map: Option<&Config>,
) -> Result<(Vec<u8>, Vec<String>), Error> {
    let missing = dir.join("tokenizer.json");
    let download = "download it from the model's repository into the same directory";
    if !dir.join("vocab.json").exists() && !dir.join("merges.txt").exists() {
        let pieces = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
        let Some(pieces) = pieces.into_iter().find(|f| dir.join(f).exists()) else {
            return Err(Error::new(missing.display(), "the file is missing").help(download));
        };
        let class = config.map(|c| c.opt_str("tokenizer_class")).transpose()?.flatten().unwrap_or_default();
        let converts = SENTENCEPIECE.contains(&class.strip_suffix("Fast").unwrap_or(class));
        return Err(Error::new(missing.display(), format!("the file is missing; {pieces} alone is not read"))
            .help(if converts { FROM_SENTENCEPIECE } else { download }));
    }
    let (class, words) = class(dir, config)?;
    let vocab = vocabulary(&dir.join("vocab.json"))?;
    let merges = merges(&dir.join("merges.txt"), &vocab)?;
    let mut notes =
        vec![format!("there is no tokenizer.json: it is made from vocab.json and merges.txt as {class} reads them")];
    let added = added(dir, config, special_map, &vocab, &mut notes)?;

    let flag = |key: &str| config.map_or(Ok(None), |c| c.opt_bool(key)).map(|v| v == Some(true));
    if let (Some(config), true) = (config, flag("split_special_tokens")?) {
        return Err(config
            .error("split_special_tokens", "special tokens would have to be cut up, which is not supported")
            .help(publisher(&class)));
    }
    let bytes = |prefix: bool, trim: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex});
    let (normalizer, pre_tokenizer) = match words {
        Words::Qwen2 => {
            let split =
                json!({"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false});
            (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, bytes(false, true, false)]}))
        }
        Words::Gpt2 => {
            if let (Some(config), true) = (config, flag("add_bos_token")?) {
                return Err(config
                    .error("add_bos_token", format!("is not supported for {class} without a tokenizer.json"))
                    .help(publisher(&class)));
            }
            (Value::Null, bytes(flag("add_prefix_space")?, true, true))
        }
    };
    // The library numbers added tokens in order, after the vocabulary; a token of the vocabulary keeps its own number.
    let mut model_vocab = vocab.clone();
    let next = vocab.values().max().map_or(0, |id| id + 1);
    let in_order = added.iter().filter(|t| !vocab.contains_key(&t.content)).zip(next..).all(|(t, id)| t.id == id);
    if !in_order {
        model_vocab.extend(added.iter().map(|t| (t.content.clone(), t.id)));
    }
    let mut by_id: Vec<_> = model_vocab.into_iter().collect();
    by_id.sort_by_key(|(_, id)| *id);
    let by_id: Map<String, Value> = by_id.into_iter().map(|(token, id)| (token, id.into())).collect();
    let added: Vec<Value> = added.iter().map(added_json).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bytes(true, false, true),
        "decoder": bytes(true, true, true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": by_id,
            "merges": merges,
        },
    });
    Ok((tokenizer.to_string().into_bytes(), notes))
}

/// The class that says how words are cut: the tokenizer config's `tokenizer_class`, else its `auto_map`, else what
/// `config.json` says or is known by.
fn class(dir: &Path, config: Option<&Config>) -> Result<(String, Words), Error> {
    let place = dir.join("tokenizer_config.json");
    let model = Config::read_optional(&dir.join("config.json"))?;
    let mut named = None;
    for config in [config, model.as_ref()].into_iter().flatten() {
        if named.is_none() {
            named = config.opt_str("tokenizer_class")?.map(str::to_owned).or_else(|| auto_class(config));
        }
    }
    let model_type = model.as_ref().map(|m| m.opt_str("model_type")).transpose()?.flatten();
    if named.is_none() && matches!(model_type, Some("qwen2" | "qwen3")) {
        named = Some("Qwen2Tokenizer".to_owned());
    }
    let Some(named) = named else {
        return Err(Error::new(
            place.display(),
            "there is no tokenizer.json, and nothing names the class of the tokenizer",
        )
        .help("download tokenizer_config.json, or better tokenizer.json, from the model's repository"));
    };
    let class = named.strip_suffix("Fast").unwrap_or(&named).to_owned();
    match CLASSES.iter().find(|(name, _)| *name == class) {
        Some((_, words)) => Ok((class, *words)),
        None => Err(Error::new(
            format!("{}: `tokenizer_class`", place.display()),
            format!("there is no tokenizer.json, and `{named}` is not a class that one can be made for"),
        )
        .help(publisher(&named))),
    }
}

fn auto_class(config: &Config) -> Option<String> {
    let value = config.get("auto_map")?.get("AutoTokenizer")?;
    let name = value.as_str().or_else(|| value.as_array()?.iter().find_map(Value::as_str))?;
    name.rsplit('.').next().map(str::to_owned)
}

fn publisher(class: &str) -> String {
    format!(
        "download tokenizer.json from the model's repository; if it has none, only the publisher of `{class}` can make one that is right"
    )
}

fn vocabulary(path: &Path) -> Result<BTreeMap<String, u64>, Error> {
    let bad = |message: String| Error::new(path.display(), message).help("download it again, with merges.txt");
    let bytes = read_json::read(path, MAX_FILE)?.ok_or_else(|| bad("the file is missing".into()))?;
    let mut vocab = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (token, value) in read_json::object(path, &bytes)? {
        let id = value.as_u64().filter(|id| *id < MAX_ID);
        let id = id.ok_or_else(|| bad(format!("the id of {token:?} is not one: {value}")))?;
        if !ids.insert(id) {
            return Err(bad(format!("the id {id} of {token:?} is another token's, too")));
        }
        vocab.insert(token, id);
    }
    Ok(vocab)
}

fn merges(path: &Path, vocab: &BTreeMap<String, u64>) -> Result<Vec<[String; 2]>, Error> {
    let bad = |message: String| Error::new(path.display(), message).help("download it again, with vocab.json");
    let bytes = read_json::read(path, MAX_FILE)?.ok_or_else(|| bad("the file is missing".into()))?;
    let text = match super::kinds::by_content(path, &bytes) {
        Some(error) => return Err(error),
        None => String::from_utf8(bytes).map_err(|e| bad(format!("is not UTF-8: {e}")))?,
    };
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || i == 0 && line.starts_with("#version:") {
            continue;
        }
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [left, right] = parts.as_slice() else {
            return Err(bad(format!("line {} is not a pair of tokens", i + 1)));
        };
        let known = |token: &str| vocab.contains_key(token);
        if !(known(left) && known(right) && known(&format!("{left}{right}"))) {
            return Err(bad(format!("line {} joins tokens that vocab.json does not have", i + 1)));
        }
        merges.push([(*left).to_owned(), (*right).to_owned()]);
    }
    Ok(merges)
}

/// The added tokens by id: those of `added_tokens_decoder`, else of `added_tokens.json`, and special tokens that are
/// ordinary words of the vocabulary.
fn added(
    dir: &Path,
    config: Option<&Config>,
    special_map: Option<&Config>,
    vocab: &BTreeMap<String, u64>,
    notes: &mut Vec<String>,
) -> Result<Vec<Added>, Error> {
    let path = dir.join("added_tokens.json");
    let plain = Config::read_optional(&path)?.map(|c| c.ids()).transpose()?;
    let special = special_tokens(config, special_map);
    let mut tokens: BTreeMap<u64, Added> = BTreeMap::new();
    if let Some(decoder) = config.map(|c| c.object("added_tokens_decoder")).transpose()?.flatten() {
        for (key, value) in decoder.entries() {
            let wrong = || {
                decoder
                    .error(key, "is not the id and description of a token")
                    .help("restore the file from the model's repository")
            };
            let id = key.parse().ok().filter(|id| *id < MAX_ID).ok_or_else(wrong)?;
            let content = token_text(value).ok_or_else(wrong)?.to_owned();
            let flag = |key: &str| value.get(key).and_then(Value::as_bool);
            let own = flag("special") == Some(true);
            // Left unsaid, a token is looked for in the normalized text unless it is special.
            let flags = FLAGS.map(|key| flag(key).unwrap_or(key == "normalized" && !own));
            let special = own || special.contains(content.as_str());
            tokens.insert(id, Added { id, content, special, flags });
        }
        let known: BTreeMap<&str, u64> = tokens.values().map(|t| (t.content.as_str(), t.id)).collect();
        for (content, id) in plain.iter().flatten() {
            match known.get(content.as_str()) {
                Some(other) if other == id => {}
                Some(other) => {
                    let message = format!("gives {content:?} the id {id}, tokenizer_config.json the id {other}");
                    return Err(Error::new(path.display(), message)
                        .help("the files belong to different tokenizers: download both again"));
                }
                None => notes.push(format!(
                    "added_tokens.json has {content:?}, which tokenizer_config.json does not add: it is left out"
                )),
            }
        }
    } else {
        for (content, id) in plain.into_iter().flatten() {
            let special = special.contains(content.as_str());
            tokens.insert(id, Added { id, content, special, flags: [false, false, false, !special] });
        }
    }
    let known: BTreeSet<String> = tokens.values().map(|t| t.content.clone()).collect();
    for content in special.into_iter().filter(|content| !known.contains(*content)) {
        match vocab.get(content) {
            Some(&id) => {
                drop(tokens.insert(id, Added { id, content: content.to_owned(), special: true, flags: [false; 4] }));
            }
            None => notes.push(format!("the special token {content:?} has no id in these files: it is left out")),
        }
    }
    let owners: BTreeMap<u64, &String> = vocab.iter().map(|(token, id)| (*id, token)).collect();
    for token in tokens.values() {
        let other = owners.get(&token.id).filter(|owner| **owner != &token.content);
        let moved = vocab.get(&token.content).filter(|id| **id != token.id);
        if other.is_some() || moved.is_some() {
            return Err(Error::new(
                dir.join("vocab.json").display(),
                format!("contradicts the added token {:?} with id {}", token.content, token.id),
            )
            .help("the files belong to different tokenizers: download vocab.json and tokenizer_config.json again"));
        }
    }
    Ok(tokens.into_values().collect())
}

/// The texts of the tokens that the config names for a purpose.
fn special_tokens<'a>(config: Option<&'a Config>, special_map: Option<&'a Config>) -> BTreeSet<&'a str> {
    let configs = || [config, special_map].into_iter().flatten();
    let named = configs().flat_map(|c| TOKEN_KEYS.iter().filter_map(|key| token_text(c.get(key)?)));
    let more = configs().filter_map(|c| c.get("additional_special_tokens")?.as_array()).flatten();
    named.chain(more.filter_map(token_text)).collect()
}

fn added_json(token: &Added) -> Value {
    let [single_word, lstrip, rstrip, normalized] = token.flags;
    json!({
        "id": token.id, "content": token.content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
        "normalized": normalized, "special": token.special,
    })
}
