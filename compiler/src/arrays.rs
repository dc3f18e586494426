//! Files of named arrays: NumPy's `.npz` and `.npy`, and safetensors. What graphs are fed from and what they give goes into.
//!
//! Invariant: opening reads names, types and shapes; what an array's header declares is allocated only as far as the file
//! really goes on, so callers refuse wrong shapes before they read. Files are written beside their destination and renamed.

mod npy;
mod tensors;

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dlx_ir::{DType, Error, Tensor, Type};
use dlx_runtime::graph::Tensors;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::files;

/// An array that has not been read.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its name; empty for the one array of an `.npy` file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// An open file of arrays.
pub struct ArrayFile {
    path: PathBuf,
    arrays: Vec<Array>,
    contents: Contents,
}

enum Contents {
    Npy(BufReader<File>),
    Npz(ZipArchive<BufReader<File>>),
    Safetensors(Vec<u8>),
}

/// Most arrays of a file, and most bytes of a safetensors file.
const MAX_ARRAYS: usize = 4096;
const MAX_FILE: u64 = 16 << 30;

impl ArrayFile {
    /// Opens a file; which of the formats it has, its first bytes say.
    ///
    /// # Errors
    /// A file that cannot be read or is none of these, or an array of a kind that no graph takes; names the array.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::new(path.display(), format!("cannot be read: {e}"));
        if path.is_dir() {
            return Err(Error::new(path.display(), "is a directory").help("give an .npz, .npy or .safetensors file"));
        }
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let mut start = Vec::new();
        file.by_ref().take(8).read_to_end(&mut start).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let wrong = |e: String| Error::new(path.display(), e);
        if start.starts_with(npy::MAGIC) {
            let (dtype, shape) = npy::header(&mut file).map_err(wrong)?;
            let arrays = vec![Array { name: String::new(), dtype, shape }];
            return Ok(ArrayFile { path: path.into(), arrays, contents: Contents::Npy(file) });
        }
        if start.starts_with(b"PK") {
            let mut zip = ZipArchive::new(file).map_err(|e| wrong(format!("is no sound zip file: {e}")))?;
            let arrays = members(&mut zip).map_err(wrong)?;
            return Ok(ArrayFile { path: path.into(), arrays, contents: Contents::Npz(zip) });
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(wrong(format!("is longer than {MAX_FILE} bytes")));
        }
        let arrays = tensors::list(&bytes).map_err(|e| {
            Error::new(path.display(), e).help("give an .npz or .npy file of NumPy, or a .safetensors file")
        })?;
        Ok(ArrayFile { path: path.into(), arrays, contents: Contents::Safetensors(bytes) })
    }

    /// What is in it.
    pub fn arrays(&self) -> &[Array] {
        &self.arrays
    }

    /// Reads the array at a place in [`ArrayFile::arrays`].
    ///
    /// # Errors
    /// A file that ends too early, or goes on after it.
    pub fn read(&mut self, index: usize) -> Result<Tensor, Error> {
        let path = self.path.display();
        let array = self.arrays.get(index).ok_or_else(|| Error::new(&path, format!("has no array {index}")))?;
        let result = match &mut self.contents {
            Contents::Npy(file) => npy::data(file, array),
            Contents::Npz(zip) => zip.by_index(index).map_err(|e| e.to_string()).and_then(|mut member| {
                npy::header(&mut member)?;
                npy::data(&mut member, array)
            }),
            Contents::Safetensors(bytes) => tensors::read(bytes, array),
        };
        result
            .map_err(|e| Error::new(format!("{path}: `{}`", array.name), e).help("the file is damaged: write it again"))
    }
}

/// The arrays of a zip file, in its order.
fn members(zip: &mut ZipArchive<BufReader<File>>) -> Result<Vec<Array>, String> {
    if zip.len() > MAX_ARRAYS {
        return Err(format!("holds {} arrays, more than {MAX_ARRAYS}", zip.len()));
    }
    let count = zip.len();
    let member = |i: usize| {
        let mut member = zip.by_index(i).map_err(|e| format!("entry {i} cannot be read: {e}"))?;
        let full = member.name().map_err(|e| format!("entry {i} has no name: {e}"))?.into_owned();
        let name = full.strip_suffix(".npy").ok_or_else(|| format!("`{full}` is no .npy array"))?.to_owned();
        let (dtype, shape) = npy::header(&mut member).map_err(|e| format!("`{name}` {e}"))?;
        Ok(Array { name, dtype, shape })
    };
    (0..count).map(member).collect()
}

/// Bytes of an array; `Err` when they are more than can be.
fn size(dtype: DType, shape: &[usize]) -> Result<usize, String> {
    let ty = Type::new(dtype, shape.iter().copied());
    ty.bytes().ok_or_else(|| format!("{ty} is larger than any file"))
}

/// What a file of arrays is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy's archive.
    Npz,
    /// One array of NumPy, for graphs with one output.
    Npy,
    /// safetensors.
    Safetensors,
}

impl Format {
    /// The format that a file name asks for.
    ///
    /// # Errors
    /// None.
    pub fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npz") => Ok(Format::Npz),
            Some("npy") => Ok(Format::Npy),
            Some("safetensors") => Ok(Format::Safetensors),
            _ => Err(Error::new(path.display(), "does not say its format")
                .help("end the name in .npz, .safetensors or, for a single output, .npy")),
        }
    }

    /// Whether elements of a type can be written; NumPy has no bf16.
    pub fn holds(self, dtype: DType) -> bool {
        self == Format::Safetensors || dtype != DType::BF16
    }
}

/// Writes arrays in the format of the name. The file is complete or not there.
///
/// # Errors
/// A name of another kind, several arrays in an `.npy` file, a type that the format does not have, or a full disk.
pub fn write(path: &Path, arrays: &Tensors) -> Result<(), Error> {
    let format = Format::of(path)?;
    if let Some((name, t)) = arrays.iter().find(|(_, t)| !format.holds(t.dtype)) {
        return Err(Error::new(path.display(), format!("cannot hold `{name}`, which is {}", t.dtype))
            .help("write a .safetensors file"));
    }
    let failed = |e: std::io::Error| {
        Error::new(path.display(), format!("cannot be written: {e}"))
            .help("check that its directory exists and has room")
    };
    let mut temp = files::beside(path).map_err(failed)?;
    let mut out = BufWriter::new(temp.as_file_mut());
    match (format, arrays.values().next()) {
        (Format::Npy, Some(t)) if arrays.len() == 1 => npy::write(&mut out, t).map_err(failed)?,
        (Format::Npy, _) => {
            return Err(Error::new(path.display(), format!("holds one array, not {}", arrays.len()))
                .help("end the name in .npz"));
        }
        (Format::Npz, _) => npz(&mut out, arrays).map_err(|e| failed(std::io::Error::other(e)))?,
        (Format::Safetensors, _) => {
            let bytes = tensors::bytes(arrays).map_err(|e| Error::new(path.display(), e))?;
            out.write_all(&bytes).map_err(failed)?;
        }
    }
    out.flush().map_err(failed)?;
    drop(out);
    temp.as_file().sync_all().map_err(failed)?;
    temp.persist(path).map(drop).map_err(|e| failed(e.error))
}

/// Arrays as NumPy's `savez` writes them, uncompressed.
fn npz(out: &mut (impl Write + Seek), arrays: &Tensors) -> Result<(), zip::result::ZipError> {
    let mut zip = ZipWriter::new(out);
    for (name, t) in arrays {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        zip.start_file(format!("{name}.npy"), options)?;
        npy::write(&mut zip, t)?;
    }
    zip.finish().map(drop)
}

#[cfg(test)]
mod tests;
