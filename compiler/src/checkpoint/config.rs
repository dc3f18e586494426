//! Typed reads from `config.json` and `generation_config.json`.
//!
//! Invariant: a number that a getter returned lies within the limits of its key, so products of a few of them cannot
//! overflow and nothing later allocates on a lie. A missing key is `None` only where the caller asks for an optional value;
//! a key that is there but wrong is always an error. Defaults belong to the model families, not here.

use std::path::{Path, PathBuf};

use dlx_ir::Error;
use serde_json::{Map, Value};

use super::json;

const MAX_FILE: u64 = 4 << 20;

/// Largest value of a key, alphabetical. Other keys may go up to [`MAX_OTHER`].
const LIMITS: &[(&str, usize)] = &[
    ("bd_size", 4096),
    ("block_size", 4096),
    ("d_model", 65_536),
    ("embedding_size", 1 << 22),
    ("head_dim", 1024),
    ("hidden_size", 65_536),
    ("intermediate_size", 1 << 19),
    ("max_position_embeddings", 1 << 27),
    ("max_sequence_length", 1 << 27),
    ("mlp_hidden_size", 1 << 19),
    ("mlp_ratio", 64),
    ("n_heads", 1024),
    ("n_kv_heads", 1024),
    ("n_layers", 1024),
    ("num_attention_heads", 1024),
    ("num_hidden_layers", 1024),
    ("num_key_value_heads", 1024),
    ("vocab_size", 1 << 22),
];
const MAX_OTHER: usize = 1 << 30;

/// Largest token id.
const MAX_TOKEN: i64 = (1 << 22) - 1;

/// A JSON object with typed getters whose errors name the file and the key.
#[derive(Clone, Debug)]
pub struct Config {
    file: PathBuf,
    /// Keys of the objects that this one is nested in, each followed by a dot.
    prefix: String,
    values: Map<String, Value>,
}

impl Config {
    /// Reads a file, or `None` if there is none.
    ///
    /// # Errors
    /// When it is there but not a JSON object.
    pub fn read_optional(path: &Path) -> Result<Option<Self>, Error> {
        json::read(path, MAX_FILE)?.map(|bytes| Self::from_json(path, &bytes)).transpose()
    }

    /// Parses the contents of a file; `path` is only named in errors.
    ///
    /// # Errors
    /// When it is not a JSON object.
    pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        Ok(Config { file: path.into(), prefix: String::new(), values: json::object(path, bytes)? })
    }

    /// The value of a key, `None` when it is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// All keys and values, in the file's order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All keys with the token ids that are their values.
    ///
    /// # Errors
    /// A value that is not a token id.
    pub(super) fn ids(&self) -> Result<Vec<(String, u64)>, Error> {
        let id = |v: &Value| token(v).and_then(|id| u64::try_from(id).ok());
        self.entries()
            .map(|(key, v)| Ok((key.to_owned(), id(v).ok_or_else(|| self.wrong(key, v, "a token id"))?)))
            .collect()
    }

    /// A count or size: an integer from 1 to the limit of its key.
    ///
    /// # Errors
    /// When it is missing, not an integer, or out of range.
    pub fn usize(&self, key: &str) -> Result<usize, Error> {
        self.opt_usize(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`Config::usize`], `None` when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and wrong.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let max = LIMITS.iter().find(|(k, _)| *k == key).map_or(MAX_OTHER, |(_, max)| *max);
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        number.map(Some).ok_or_else(|| self.wrong(key, value, &format!("an integer from 1 to {max}")))
    }

    /// A positive finite number.
    ///
    /// # Errors
    /// When it is missing, not a number, or not positive.
    pub fn f64(&self, key: &str) -> Result<f64, Error> {
        self.opt_f64(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`Config::f64`], `None` when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and wrong.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // The program holds it as f32, which must neither lose it nor make it infinite.
        let number = value.as_f64().filter(|n| (*n as f32).is_finite() && *n as f32 > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(key, value, "a positive number"))
    }

    /// A boolean, `None` when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and something else.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// A string.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        self.opt_str(key)?.ok_or_else(|| self.missing(key))
    }

    /// A string, `None` when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and something else.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// One token id, `None` when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and not a token id.
    pub fn opt_token(&self, key: &str) -> Result<Option<i32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        token(value).map(Some).ok_or_else(|| self.wrong(key, value, "a token id"))
    }

    /// Token ids written as one number or a list, empty when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and something else.
    pub fn tokens(&self, key: &str) -> Result<Vec<i32>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(list) => list.iter().map(token).collect(),
            one => token(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
    }

    /// A nested object such as `rope_parameters`, `None` when the key is missing or null.
    ///
    /// # Errors
    /// When it is there and something else.
    pub fn object(&self, key: &str) -> Result<Option<Config>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let values = value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))?.clone();
        Ok(Some(Config { file: self.file.clone(), prefix: format!("{}{key}.", self.prefix), values }))
    }

    /// All keys, those of null values too, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A key with its file's name, for people: `config.json rope_parameters.rope_theta`.
    pub fn path(&self, key: &str) -> String {
        let file = self.file.file_name().map_or_else(String::new, |f| f.to_string_lossy().into_owned());
        format!("{file} {}{key}", self.prefix)
    }

    /// An error about a value that was read from here, for checks that involve several keys.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::new(format_args!("{}: `{}{}`", self.file.display(), self.prefix, key.escape_debug()), message)
    }

    fn missing(&self, key: &str) -> Error {
        self.error(key, "is missing").help("use the config.json of a supported model family; see `dlxc families`")
    }

    fn wrong(&self, key: &str, value: &Value, want: &str) -> Error {
        let text = value.to_string();
        let mut found: String = text.chars().take(60).collect();
        if found.len() < text.len() {
            found.push('…');
        }
        self.error(key, format!("must be {want}, found {found}")).help("restore the file from the model's repository")
    }
}

fn token(value: &Value) -> Option<i32> {
    value.as_i64().filter(|id| (0..=MAX_TOKEN).contains(id)).and_then(|id| i32::try_from(id).ok())
}
