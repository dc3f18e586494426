//! Exports: models whose graphs run in somebody else's library, such as an NPU's, while the host keeps the caches.
//!
//! `dlxc compile --target qnn` writes a directory of ONNX graphs with a manifest. An app brings a [`Backend`] that runs one of
//! them; everything else (embeddings, angles, masks, caches, decoding, text) happens here, as for any other executor.
//!
//! ```no_run
//! use dlx_runtime::host::{Backend, Entry, Export};
//! use dlx_runtime::session::{Prompt, Request};
//! use dlx_runtime::text::Message;
//!
//! struct Npu; // holds a session of the vendor's library for each entry
//!
//! impl Backend for Npu {
//!     fn run(&mut self, entry: &Entry, inputs: &[Vec<u8>], outputs: &mut [Vec<u8>]) -> Result<(), String> {
//!         # let _ = (entry, inputs, outputs);
//!         Err("hand the bytes to the library here".into())
//!     }
//! }
//!
//! let mut session = Export::open("sdar-npu")?.session(Npu)?;
//! let messages = vec![Message::new("user", "What is 2 + 2?")];
//! let request = Request::new(Prompt::Chat { messages, variables: Default::default() }, 64);
//! session.generate(&request, &mut |event| { println!("{event:?}"); std::ops::ControlFlow::Continue(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod executor;
mod manifest;

use std::path::{Path, PathBuf};

pub use executor::{Backend, HostExecutor};
pub use manifest::{Entry, EntryKind, FORMAT, MASKED, Manifest, Model, Port, Role, Soc, Table, VERSION, WeightsFile};

use crate::mapped::Mapped;
use crate::model::TextSection;
use crate::session::{Session, SessionError};
use crate::text::{ChatTemplate, TextError, Tokenizer};

/// Why an export cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A file that is not there or cannot be read.
    #[error("{}: {reason}; export the model again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer or the chat template.
    #[error("{}: {source}", path.display())]
    Text {
        /// The export.
        path: PathBuf,
        /// What is wrong.
        source: TextError,
    },
    /// A policy that the export cannot follow.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// An opened export.
pub struct Export {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text, if the model has a chat template.
    pub template: Option<ChatTemplate>,
    dir: PathBuf,
    embeddings: Mapped,
}

impl Export {
    /// Opens the directory of an export. Its graphs and their weights are not read: that is the backend's business.
    ///
    /// # Errors
    /// A missing or malformed file, or a manifest that contradicts itself.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, HostError> {
        let dir = dir.as_ref().to_path_buf();
        let wrong = |file: &str, reason: String| HostError::File { path: dir.join(file), reason };
        let read = |file: &str| std::fs::read(dir.join(file)).map_err(|e| wrong(file, e.to_string()));
        let name = "manifest.json";
        let manifest: Manifest = serde_json::from_slice(&read(name)?).map_err(|e| wrong(name, e.to_string()))?;
        manifest.check().map_err(|e| wrong(name, e))?;
        let table = &manifest.embeddings;
        let embeddings = Mapped::open(&dir.join(&table.file)).map_err(|e| wrong(&table.file, e.to_string()))?;
        let wanted = table.rows.checked_mul(table.cols).and_then(|n| n.checked_mul(2));
        if wanted != Some(embeddings.bytes().len()) {
            let (rows, cols, bytes) = (table.rows, table.cols, embeddings.bytes().len());
            return Err(wrong(&table.file, format!("has {bytes} bytes, not f16 [{rows}, {cols}]")));
        }
        let text: TextSection =
            serde_json::from_slice(&read(&manifest.text)?).map_err(|e| wrong(&manifest.text, e.to_string()))?;
        let tokenizer = Tokenizer::from_bytes(&read(&manifest.tokenizer)?);
        let texts = tokenizer.and_then(|tokenizer| text.load(tokenizer));
        let (tokenizer, template) = texts.map_err(|source| HostError::Text { path: dir.clone(), source })?;
        Ok(Export { manifest, tokenizer, template, dir, embeddings })
    }

    /// Reads the weights of the graphs once and compares their hash with the manifest's.
    ///
    /// # Errors
    /// They are not those that were written.
    pub fn verify_weights(&self) -> Result<(), HostError> {
        let wanted = &self.manifest.weights;
        let path = self.dir.join(&wanted.file);
        let wrong = |reason: String| HostError::File { path: path.clone(), reason };
        let file = Mapped::open(&path).map_err(|e| wrong(e.to_string()))?;
        let found = blake3::Hasher::new().update_rayon(file.bytes()).finalize().to_hex();
        if found.as_str() == wanted.blake3 { Ok(()) } else { Err(wrong("is damaged: its hash is another".into())) }
    }

    /// The file of an entry, for the backend.
    pub fn file(&self, entry: &Entry) -> PathBuf {
        self.dir.join(&entry.file)
    }

    /// A session that runs the graphs on `backend`.
    ///
    /// # Errors
    /// A policy that the export cannot follow.
    pub fn session(self, backend: impl Backend + Send + 'static) -> Result<Session, HostError> {
        let Export { manifest, tokenizer, template, embeddings, .. } = self;
        let policy = manifest.decode.clone();
        let executor = HostExecutor::new(manifest, embeddings, Box::new(backend));
        Ok(Session::with_executor(Box::new(executor), tokenizer, template, policy)?)
    }
}

#[cfg(test)]
mod tests;
