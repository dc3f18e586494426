//! What an import found out: each fact with the source that it was taken from, and what sources say differently.
//!
//! Several files of a checkpoint state the same facts. Which of them wins is decided where a fact is read, written down in
//! `docs/checkpoints.md`, and never silent: a conflict that has a reading is a note, one that has none is an error.

/// Facts and notes of one import.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Fact, value, and where it was read.
    pub rows: Vec<Fact>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fact {
    /// What it is about, such as `rope base`.
    pub name: &'static str,
    /// Its value, as text.
    pub value: String,
    /// Where it was read, such as `config.json rope_theta`.
    pub source: String,
}

impl Facts {
    /// Records a fact.
    pub(crate) fn add(&mut self, name: &'static str, value: impl ToString, source: impl Into<String>) {
        self.rows.push(Fact { name, value: value.to_string(), source: source.into() });
    }

    /// Records something that the user should know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}
