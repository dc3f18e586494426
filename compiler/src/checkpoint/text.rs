//! The text side of a model directory: tokenizer, chat template, special tokens.
//!
//! Invariant: `tokenizer` is valid JSON; whether it is a tokenizer that the runtime can use is decided by the runtime's own
//! reader. Files that only some publishers write are optional and read tolerantly: what they add may be absent, but a file
//! that is there must be readable JSON.

use std::collections::BTreeMap;
use std::path::Path;

use dlx_ir::Error;
use dlx_runtime::text::Tokenizer;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::special::{TOKEN_KEYS, token_text};
use super::{Config, bpe, json, kinds};

const MAX_TOKENIZER: u64 = 256 << 20;
const MAX_TEMPLATE: u64 = 4 << 20;

/// What a runtime needs to turn text into ids and back.
#[derive(Clone, Debug)]
pub struct TextFiles {
    /// The bytes of `tokenizer.json`, or of one made from the files of a byte-level BPE tokenizer without it.
    pub tokenizer: Vec<u8>,
    /// Jinja source of the chat template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (its
    /// `default` entry when it is a list).
    pub chat_template: Option<String>,
    /// `mask_token` and the like → the token's text; `tokenizer_config.json` wins over `special_tokens_map.json`.
    pub special_tokens: BTreeMap<String, String>,
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<Config>,
    /// What the user should know about these files.
    pub notes: Vec<String>,
}

impl TextFiles {
    /// Reads the text files of a model directory.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing and cannot be made, or a file is not what it should be.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("tokenizer.json");
        let tokenizer_config = Config::read_optional(&dir.join("tokenizer_config.json"))?;
        let special_map = Config::read_optional(&dir.join("special_tokens_map.json"))?;
        let (tokenizer, notes) = match json::read(&path, MAX_TOKENIZER)? {
            Some(bytes) => (bytes, Vec::new()),
            None => bpe::build(dir, tokenizer_config.as_ref(), special_map.as_ref())?,
        };
        json::parse::<BTreeMap<String, IgnoredAny>>(&path, &tokenizer)?;

        let mut special_tokens = BTreeMap::new();
        for config in [&special_map, &tokenizer_config].into_iter().flatten() {
            for key in TOKEN_KEYS {
                if let Some(text) = config.get(key).and_then(token_text) {
                    special_tokens.insert((*key).to_owned(), text.to_owned());
                }
            }
        }
        let chat_template = match read_template(&dir.join("chat_template.jinja"))? {
            Some(template) => Some(template),
            None => tokenizer_config.as_ref().map(configured_template).transpose()?.flatten(),
        };
        Ok(TextFiles { tokenizer, chat_template, special_tokens, tokenizer_config, notes })
    }

    /// Id of a special token by its key, such as `mask_token`.
    pub fn special_token_id(&self, key: &str) -> Option<i32> {
        self.token_id(self.special_tokens.get(key)?)
    }

    /// What `add_bos_token` says beyond `tokenizer.json`: true where its post-processor adds nothing, false where it adds
    /// something.
    ///
    /// # Errors
    /// When it is no flag, or names a token that the tokenizer does not have.
    pub fn add_bos_token(&self) -> Result<Option<bool>, Error> {
        let Some(config) = &self.tokenizer_config else { return Ok(None) };
        let added = Tokenizer::from_bytes(&self.tokenizer).is_ok_and(|tokenizer| !tokenizer.prefix().is_empty());
        match config.opt_bool("add_bos_token")? {
            Some(true) if !added && self.special_token_id("bos_token").is_none() => {
                Err(config.error("add_bos_token", "is set, but there is no bos_token that the tokenizer knows"))
            }
            flag => Ok(flag.filter(|flag| *flag != added)),
        }
    }

    /// Id of a token by its text.
    pub fn token_id(&self, text: &str) -> Option<i32> {
        self.ids().find(|(token, _)| token == text).map(|(_, id)| id)
    }

    /// Text of a token by its id.
    pub fn token(&self, id: i32) -> Option<String> {
        self.ids().find(|(_, other)| *other == id).map(|(token, _)| token)
    }

    /// Largest token id that the tokenizer can produce.
    pub fn largest_id(&self) -> Option<i32> {
        self.ids().map(|(_, id)| id).max()
    }

    /// The added tokens and their ids, as the file lists them.
    pub fn added_tokens(&self) -> Vec<(String, i32)> {
        let [added, _] = self.listed();
        added
    }

    /// Tokens and ids of the vocabulary and the added tokens, as far as the file lists them in the usual places.
    fn ids(&self) -> impl Iterator<Item = (String, i32)> {
        self.listed().into_iter().flatten()
    }

    /// Added tokens and vocabulary.
    fn listed(&self) -> [Vec<(String, i32)>; 2] {
        let json: Value = serde_json::from_slice(&self.tokenizer).unwrap_or_default();
        let id = |v: &Value| v.as_i64().and_then(|id| i32::try_from(id).ok());
        let added = json["added_tokens"].as_array().into_iter().flatten();
        let added = added.filter_map(|t| Some((t["content"].as_str()?.to_owned(), id(&t["id"])?)));
        let vocab = json["model"]["vocab"].as_object().into_iter().flatten();
        let vocab = vocab.filter_map(|(token, v)| Some((token.clone(), id(v)?)));
        [added.collect(), vocab.collect()]
    }
}

fn read_template(path: &Path) -> Result<Option<String>, Error> {
    let Some(bytes) = json::read(path, MAX_TEMPLATE)? else { return Ok(None) };
    if let Some(error) = kinds::by_content(path, &bytes).filter(|_| !bytes.is_empty()) {
        return Err(error);
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| Error::new(path.display(), format!("is not UTF-8: {e}")).help("download the file again"))?;
    Ok(Some(text))
}

fn configured_template(config: &Config) -> Result<Option<String>, Error> {
    match config.get("chat_template") {
        None => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            Ok(default.and_then(|t| t.get("template")?.as_str()).map(str::to_owned))
        }
        Some(_) => Err(config
            .error("chat_template", "must be a string or a list of named templates")
            .help("restore the file from the model's repository")),
    }
}
