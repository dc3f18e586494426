//! The `.dlxa` container: one file with everything a compiled model needs.
//!
//! Sections have string names: `manifest` (JSON), `program:<target>` (IR text), `plan:<target>` (JSON), `weights`, `tokenizer`
//! (`tokenizer.json`), `tokenizer:tables` (the same, ready to use), `text` (JSON: chat template, special tokens), `golden`,
//! `policies` (JSON: measured settings). What a section means is not decided here.
//!
//! Invariant: once [`Artifact::open`] has returned, every byte of the file but those of `weights` has been checked, and
//! `weights` has its place and length checked; [`Artifact::verify_weights`] checks the rest. No byte of a file can cause a
//! panic or an allocation that grows with a number read from it. Weights are mapped, so opening costs nothing per weight.

mod header;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::mapped::Mapped;
pub use header::{
    ALIGN, MAX_NAME, MAX_SECTIONS, PAGE, Section, VERSION, WEIGHTS, check_layout, encode, place, valid_name,
};
use header::{BadPage, Header};

/// Name of the section that holds the JSON manifest.
pub const MANIFEST: &str = "manifest";
/// Name of the section that holds `tokenizer.json`.
pub const TOKENIZER: &str = "tokenizer";
/// Name of the section with that tokenizer's tables, ready to use; artifacts without it read `tokenizer.json`.
pub const TOKENIZER_TABLES: &str = "tokenizer:tables";
/// Name of the JSON section with the chat template and the special tokens.
pub const TEXT: &str = "text";
/// Name of the section with example inputs and outputs for the self-test.
pub const GOLDEN: &str = "golden";
/// Name of the JSON section with measured settings, if the artifact has been tuned.
pub const POLICIES: &str = "policies";

/// Name of the section that holds the program for `target`.
pub fn program_section(target: &str) -> String {
    format!("program:{target}")
}

/// Name of the section that holds the plan for `target`, where that runs one.
pub fn plan_section(target: &str) -> String {
    format!("plan:{target}")
}

/// Why a file could not be used as an artifact. Every message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The file could not be opened or mapped.
    #[error("{}: {source}; check that the file exists and can be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: not a dlxc artifact; give a .dlxa file made by `dlxc compile`", path.display())]
    NotAnArtifact {
        /// The file.
        path: PathBuf,
    },
    /// The file has a format that this build does not read.
    #[error(
        "{}: artifact format {found}, this build reads format {VERSION}; compile it again or use the matching version",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// The file ends too early.
    #[error("{}: truncated: {expected} bytes expected, {found} found; copy or compile it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The file goes on after its last section.
    #[error("{}: {extra} bytes after the end of the artifact; copy or compile it again", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// How many.
        extra: u64,
    },
    /// Bytes differ from what was written.
    #[error("{}: damaged: {what}; copy or compile it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part, and how that was noticed.
        what: String,
    },
    /// A section that the caller needs is not there.
    #[error("{}: no `{name}` section, only {found}; compile it again with what you need", path.display())]
    MissingSection {
        /// The file.
        path: PathBuf,
        /// The section asked for.
        name: String,
        /// The sections that are there.
        found: String,
    },
}

/// An open artifact.
#[derive(Debug)]
pub struct Artifact {
    path: PathBuf,
    file: Arc<Mapped>,
    sections: Vec<Section>,
}

impl Artifact {
    /// Maps and checks a file; everything but the bytes of the weights is read.
    ///
    /// # Errors
    /// When the file cannot be read, is not an artifact of this format version, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArtifactError> {
        Self::of(path.as_ref(), Mapped::open)
    }

    /// Reads a file into memory and checks it, as [`Artifact::open`]; what happens to the file afterwards does not matter (see
    /// [`Mapped`]). It costs the time and the memory of all weights.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ArtifactError> {
        Self::of(path.as_ref(), Mapped::read)
    }

    fn of(path: &Path, file: fn(&Path) -> io::Result<Mapped>) -> Result<Self, ArtifactError> {
        let file = file(path).map_err(|source| ArtifactError::Io { path: path.into(), source })?;
        let sections = check(file.bytes(), path)?;
        Ok(Artifact { path: path.into(), file: Arc::new(file), sections })
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    #[allow(clippy::len_without_is_empty, reason = "an artifact is never empty")]
    pub fn len(&self) -> u64 {
        self.file.bytes().len() as u64
    }

    /// BLAKE3 of the header page in hexadecimal: it holds the checksum of every section, so two files with the same one
    /// hold the same bytes, the weights' once [`Artifact::verify_weights`] has seen them.
    pub fn identity(&self) -> String {
        blake3::hash(&self.file.bytes()[..PAGE]).to_hex().to_string()
    }

    /// The section table, in file order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The bytes of a section. Those of `weights` are unchecked until [`Artifact::verify_weights`].
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        let section = self.sections.iter().find(|s| s.name == name)?;
        Some(slice(self.file.bytes(), section).expect("opening checked that every section lies in the file"))
    }

    /// The BLAKE3 of a section, which opening has compared for all but `weights`.
    pub fn hash(&self, name: &str) -> Option<&[u8; 32]> {
        self.sections.iter().find(|s| s.name == name).map(|s| &s.hash)
    }

    /// A section that must be there and hold text.
    ///
    /// # Errors
    /// [`ArtifactError::MissingSection`], or [`ArtifactError::Damaged`] when it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<&str, ArtifactError> {
        let bytes = self.section(name).ok_or_else(|| ArtifactError::MissingSection {
            path: self.path.clone(),
            name: name.into(),
            found: self.sections.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        std::str::from_utf8(bytes).map_err(|e| damaged(&self.path, format!("section `{name}` is not UTF-8: {e}")))
    }

    /// The mapped weights, page-aligned; empty when the artifact has none.
    pub fn weights(&self) -> &[u8] {
        self.section(WEIGHTS).unwrap_or_default()
    }

    /// The mapping behind [`Artifact::weights`] and where in it they start, for an executor that outlives the artifact.
    pub fn mapped_weights(&self) -> (Arc<Mapped>, std::ops::Range<usize>) {
        let section = self.sections.iter().find(|s| s.name == WEIGHTS);
        let range = section.and_then(range).unwrap_or_default();
        (Arc::clone(&self.file), range)
    }

    /// Reads all weights, on all threads, and compares their checksum.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] when it does not match.
    pub fn verify_weights(&self) -> Result<(), ArtifactError> {
        match self.sections.iter().find(|s| s.name == WEIGHTS) {
            Some(section) => check_hash(self.weights(), section, &self.path),
            None => Ok(()),
        }
    }
}

/// Checks a whole file, apart from the bytes of the weights.
fn check(bytes: &[u8], path: &Path) -> Result<Vec<Section>, ArtifactError> {
    let found = bytes.len() as u64;
    let Some(page) = bytes.first_chunk::<PAGE>() else {
        let common = bytes.len().min(header::MAGIC.len());
        return Err(if bytes.get(..common) == header::MAGIC.get(..common) {
            ArtifactError::Truncated { path: path.into(), expected: PAGE as u64, found }
        } else {
            ArtifactError::NotAnArtifact { path: path.into() }
        });
    };
    let Header { file_len, sections } = header::decode(page).map_err(|bad| match bad {
        BadPage::Magic => ArtifactError::NotAnArtifact { path: path.into() },
        BadPage::Version(found) => ArtifactError::Version { path: path.into(), found },
        BadPage::Damaged(what) => damaged(path, what),
    })?;
    if found < file_len {
        return Err(ArtifactError::Truncated { path: path.into(), expected: file_len, found });
    }
    if found > file_len {
        return Err(ArtifactError::TrailingBytes { path: path.into(), extra: found - file_len });
    }
    let mut end = PAGE;
    for section in &sections {
        let outside = || damaged(path, format!("section `{}` lies outside the file", section.name));
        let range = range(section).ok_or_else(outside)?;
        let gap = bytes.get(end..range.start).ok_or_else(outside)?;
        if gap.iter().any(|&b| b != 0) {
            return Err(damaged(path, format!("the bytes before section `{}` are not zero", section.name)));
        }
        if section.name != WEIGHTS {
            check_hash(bytes.get(range.clone()).ok_or_else(outside)?, section, path)?;
        }
        end = range.end;
    }
    Ok(sections)
}

fn check_hash(bytes: &[u8], section: &Section, path: &Path) -> Result<(), ArtifactError> {
    let hash = blake3::Hasher::new().update_rayon(bytes).finalize();
    if *hash.as_bytes() == section.hash {
        return Ok(());
    }
    Err(damaged(path, format!("the checksum of section `{}` does not match", section.name)))
}

fn range(section: &Section) -> Option<std::ops::Range<usize>> {
    Some(usize::try_from(section.offset).ok()?..usize::try_from(section.end()?).ok()?)
}

fn slice<'a>(bytes: &'a [u8], section: &Section) -> Option<&'a [u8]> {
    bytes.get(range(section)?)
}

fn damaged(path: &Path, what: String) -> ArtifactError {
    ArtifactError::Damaged { path: path.into(), what }
}

#[cfg(test)]
mod tests;
