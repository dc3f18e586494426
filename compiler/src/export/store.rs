//! The one file of weights that all graphs of an export share.
//!
//! Invariant: a tensor of a name is written once, 64-byte aligned, in the order in which graphs first ask for it; what follows
//! from a name is the same for every graph.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use dlx_ir::Error;

use super::proto::{Elem, small, tensor};
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{StringStringEntryProto, TensorProto};

/// Name of the file beside the graphs.
pub const WEIGHTS: &str = "weights.bin";

/// Tensors up to this many bytes stay in the graphs, where a reader without the file sees them.
const INLINE: usize = 1024;

/// Alignment of a tensor: what devices that map the file ask for.
const ALIGN: u64 = 64;

/// The file, as far as it is written.
pub struct Store {
    file: BufWriter<File>,
    place: String,
    at: u64,
    known: BTreeMap<String, TensorProto>,
}

impl Store {
    /// An empty file in `dir`.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(WEIGHTS);
        let place = path.display().to_string();
        let file = File::create(&path).map_err(|e| Error::new(&place, format!("cannot be created: {e}")))?;
        Ok(Store { file: BufWriter::with_capacity(1 << 20, file), place, at: 0, known: BTreeMap::new() })
    }

    /// The tensor of that name, whose bytes are made if it is not there yet.
    ///
    /// # Errors
    /// What making it reports, or the disk.
    pub(super) fn tensor(
        &mut self,
        name: &str,
        elem: Elem,
        dims: &[usize],
        bytes: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<TensorProto, Error> {
        if let Some(known) = self.known.get(name) {
            return Ok(known.clone());
        }
        let bytes = bytes()?;
        let made = if bytes.len() <= INLINE {
            small(name, elem, dims, bytes)
        } else {
            let padding = self.at.next_multiple_of(ALIGN) - self.at;
            self.write(&vec![0; padding as usize])?;
            let entry = |key: &str, value: u64| StringStringEntryProto {
                key: Some(key.into()),
                value: Some(value.to_string()),
            };
            let location = StringStringEntryProto { key: Some("location".into()), value: Some(WEIGHTS.into()) };
            let external_data = vec![location, entry("offset", self.at), entry("length", bytes.len() as u64)];
            self.write(&bytes)?;
            TensorProto {
                external_data,
                data_location: Some(DataLocation::External as i32),
                ..tensor(name, elem, dims)
            }
        };
        self.known.insert(name.to_owned(), made.clone());
        Ok(made)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.at
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// The disk.
    pub fn finish(mut self) -> Result<(), Error> {
        self.file.flush().map_err(|e| Error::new(&self.place, format!("cannot be written: {e}")))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|e| {
            Error::new(&self.place, format!("cannot be written: {e}")).help("make room on the disk, or write elsewhere")
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
