//! Conversations as JSON files.
//!
//! Invariant: a file is written as a whole or not at all, readable by its owner alone, and replaces nothing but a saved
//! conversation. What is read is checked before anybody uses it: turns are pairs of texts, and no file is longer than
//! [`MAX_FILE`]. Whether the settings suit the model is not known here.

use std::io::{Read, Write};
use std::path::Path;

use dlx_ir::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest file.
const MAX_FILE: u64 = 64 << 20;

/// What the first field of a file says.
const FORMAT: &str = "dlxc conversation 1";

/// A conversation as it is written.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    format: String,
    /// The system message.
    pub system: Option<String>,
    /// Questions and answers in turn.
    pub messages: Vec<Said>,
    /// The settings that differ from the model's own.
    pub settings: Map<String, Value>,
}

/// One message.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Saved {
    /// A conversation; settings that are null are left out.
    pub fn new(system: Option<String>, messages: Vec<Said>, mut settings: Map<String, Value>) -> Self {
        settings.retain(|_, value| !value.is_null());
        Self { format: FORMAT.into(), system, messages, settings }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the path is taken by something else than a saved conversation, or the system refuses.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        if path.symlink_metadata().is_ok() && Self::read(path).is_err() {
            return Err(Error::new(path.display(), "is there already and is no saved conversation")
                .help("save under another name"));
        }
        let failed = |e: std::io::Error| Error::new(path.display(), format!("cannot be written: {e}"));
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        if text.len() as u64 > MAX_FILE {
            return Err(Error::new(path.display(), format!("would be longer than {MAX_FILE} bytes")));
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temp = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
        temp.write_all(&text).and_then(|()| temp.as_file().sync_all()).map_err(failed)?;
        temp.persist(path).map(drop).map_err(|e| failed(e.error))
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the file cannot be read, is too long or holds anything else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::new(path.display(), format!("cannot be read: {e}"));
        let wrong = |why: String| {
            Error::new(path.display(), format!("is no saved conversation: {why}")).help("name a file that /save wrote")
        };
        // Opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(wrong("it is no file".into()));
        }
        let mut text = Vec::new();
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text)).map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            return Err(wrong(format!("it is longer than {MAX_FILE} bytes")));
        }
        let saved: Self = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if saved.format != FORMAT {
            return Err(wrong(format!("its format is not \"{FORMAT}\"")));
        }
        let (pairs, rest) = saved.messages.as_chunks::<2>();
        if !rest.is_empty() || pairs.iter().any(|[q, a]| q.role != "user" || a.role != "assistant") {
            return Err(wrong("its messages are not by user and assistant in turn".into()));
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Saved {
        let said = |role: &str, content: &str| Said { role: role.into(), content: content.into() };
        let settings = serde_json::from_str(r#"{"steps": 3, "rule": null}"#).unwrap();
        Saved::new(Some("Be brief.".into()), vec![said("user", "a\n\u{1F600}"), said("assistant", "")], settings)
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let saved = one();
        assert_eq!(saved.settings.len(), 1);
        saved.write(&path).unwrap();
        assert_eq!(Saved::read(&path), Ok(one()));
        Saved::new(None, Vec::new(), Map::new()).write(&path).unwrap();
        assert_eq!(Saved::read(&path).unwrap().messages.len(), 0, "a saved conversation is replaced");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn nothing_else_is_replaced_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let good = serde_json::to_string(&one()).unwrap();
        for text in [
            String::new(),
            "[]".into(),
            "{\"format\": 1".into(),
            good.replace("conversation 1", "conversation 2"),
            good.replace("\"assistant\"", "\"system\""),
            good.replace("\"content\":\"\"", "\"content\":null"),
            good.replace("\"content\":\"\"", "\"content\":\"\",\"tool_calls\":[]"),
            good.replace(",{\"role\":\"assistant\",\"content\":\"\"}", ""),
            good.replace("\"settings\"", "\"stetings\""),
            format!("{good} x"),
        ] {
            assert_ne!(text, good);
            std::fs::write(&path, &text).unwrap();
            let error = Saved::read(&path).unwrap_err();
            assert!(error.place.ends_with("a.json") && error.message.contains("no saved conversation"), "{error}");
            assert!(one().write(&path).unwrap_err().message.contains("is there already"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(Saved::read(&path).unwrap_err().message.contains("longer than"));
        assert!(Saved::read(dir.path()).unwrap_err().message.contains("no file"));
        assert!(one().write(dir.path()).unwrap_err().message.contains("is there already"));
        assert!(Saved::read(&dir.path().join("b")).unwrap_err().message.contains("cannot be read"));
        assert!(one().write(&dir.path().join("b/c")).unwrap_err().message.contains("cannot be written"));
    }
}
