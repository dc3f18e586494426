//! Reading JSON files that may be anything: bounded size, an error that names the file, duplicate keys seen.
//!
//! Invariant: nothing here allocates more than a small multiple of the file's size. Meaning is deliberately left to the
//! callers.

use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use dlx_ir::Error;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Reads a file of at most `max` bytes; `None` if there is no such file.
pub(super) fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, Error> {
    let failed = |e: std::io::Error| {
        Error::new(path.display(), format!("cannot be read: {e}")).help("check the file and its permissions")
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(Error::new(path.display(), format!("is larger than {max} bytes"))
            .help("this is not the file that belongs here: download it again"));
    }
    Ok(Some(bytes))
}

/// Parses JSON, naming the file on failure.
pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| {
        let what = if bytes.is_empty() {
            "the file is empty".into()
        } else {
            format!("is not the JSON expected: {}", brief(&e))
        };
        Error::new(path.display(), what).help("download the file again")
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
