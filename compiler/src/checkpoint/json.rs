//! Reading JSON and text files that may be anything: bounded size, an error that names the file, repeated keys seen.
//!
//! Invariant: nothing here allocates more than a small multiple of the file's size. What other tools read without a word
//! is read here too: a byte order mark is dropped, and the bare words `NaN` and `Infinity`, which Python's `json` writes,
//! become strings, so that only a reader of that key minds. Meaning is deliberately left to the callers.

use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use dlx_ir::Error;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::kinds;

/// Reads a file of at most `max` bytes, without a byte order mark; `None` if there is no such file.
pub(super) fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, Error> {
    let failed = |e: std::io::Error| kinds::unreadable(path, &e);
    // A link without a target is there, and somebody meant it.
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
        Ok(_) => kinds::check_is_file(path)?,
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(Error::new(path.display(), format!("is larger than {max} bytes"))
            .help("this is not the file that belongs here: download it again"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(Error::new(path.display(), "begins with the byte order mark of UTF-16")
            .help("save the file as UTF-8, or download it again"));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(Some(bytes))
}

/// Parses JSON, naming the file on failure.
pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| not_json(path, bytes, &e))
}

/// Parses a JSON object in which no key has two values.
pub(super) fn object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    let parsed = serde_json::from_slice(bytes).or_else(|e| match words_as_strings(bytes) {
        Some(strict) => serde_json::from_slice(&strict),
        None => Err(e),
    });
    let parsed = parsed.map_err(|e| match e.is_data() {
        true => Error::new(path.display(), brief(&e)).help("keep the last one, which is what Python's json reads"),
        false => not_json(path, bytes, &e),
    });
    match parsed? {
        Unique(Value::Object(map)) => Ok(map),
        Unique(other) => {
            let what = if other.is_array() { "a list" } else { "a single value" };
            Err(Error::new(path.display(), format!("is not the JSON expected: {what} in place of an object"))
                .help("download the file again"))
        }
    }
}

fn not_json(path: &Path, bytes: &[u8], e: &serde_json::Error) -> Error {
    kinds::by_content(path, bytes).unwrap_or_else(|| {
        Error::new(path.display(), format!("is not the JSON expected: {}", brief(e))).help("download the file again")
    })
}

/// A parser's message without the long values that a broken file can put into it.
pub(super) fn brief(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The text with the bare words that are no JSON put into quotes; `None` when it has none.
fn words_as_strings(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    let (mut quoted, mut found, mut rest) = (false, false, bytes);
    while let Some((&byte, after)) = rest.split_first() {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|w| !quoted && rest.starts_with(w.as_bytes()));
        if let Some(word) = word {
            out.extend_from_slice(format!("\"{word}\"").as_bytes());
            (found, rest) = (true, rest.get(word.len()..)?);
            continue;
        }
        out.push(byte);
        rest = after;
        if quoted && byte == b'\\' {
            let (&escaped, after) = rest.split_first()?;
            out.push(escaped);
            rest = after;
        } else if byte == b'"' {
            quoted = !quoted;
        }
    }
    found.then_some(out)
}

/// A JSON object as the pairs it is written with, so that a repeated key can be seen.
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// Any JSON value in which no object gives one key two different values, at any depth.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AnyValue.deserialize(deserializer).map(Unique)
    }
}

struct AnyValue;

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(AnyValue)? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(AnyValue)?;
            if object.get(&key).is_some_and(|first| *first != value) {
                let key: String = key.escape_debug().take(60).collect();
                return Err(de::Error::custom(format!("the key `{key}` is there twice, with different values")));
            }
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_python_writes_become_strings() {
        let path = Path::new("c.json");
        let map = object(path, br#"{"a": NaN, "b": [-Infinity, "NaN \" Infinity"], "c\\": Infinity}"#).unwrap();
        assert_eq!(
            Value::Object(map).to_string(),
            r#"{"a":"NaN","b":["-Infinity","NaN \" Infinity"],"c\\":"Infinity"}"#
        );
        assert!(object(path, b"{\"a\": NaNs}").is_err());
        assert!(object(path, b"{\"a\": Infinity").is_err());
    }

    #[test]
    fn a_key_with_two_values_is_named() {
        let path = Path::new("c.json");
        assert!(object(path, br#"{"a": 1, "b": {"c": [1]}, "a": 1}"#).is_ok(), "said twice alike");
        for text in [r#"{"a": 1, "a": 2}"#, r#"{"x": [{"b": 1, "a": 1, "a": null}]}"#] {
            let e = object(path, text.as_bytes()).unwrap_err();
            assert!(e.message.contains("`a` is there twice"), "{e}");
        }
        assert!(object(path, b"[1]").unwrap_err().message.contains("a list in place of an object"));
    }
}
