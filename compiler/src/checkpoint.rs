//! A Hugging Face model directory: weights, configuration, tokenizer files.
//!
//! Invariant: once [`Checkpoint::open`] has returned, every tensor that it names has a supported element type and lies
//! inside its file, no two overlap, no name is in two files, and index and files agree. Values are not read until asked
//! for, a few rows at a time. Which tensors a model family needs is deliberately not known here.

mod config;
mod convert;
mod index;
mod json;
mod shard;
mod text;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dlx_ir::{DType, Error};

pub use config::Config;
pub use convert::first_nonfinite;
use shard::{Entry, Shard};
pub use text::TextFiles;

/// An open model directory.
#[derive(Debug)]
pub struct Checkpoint {
    /// `config.json`.
    pub config: Config,
    /// `generation_config.json`, if there is one.
    pub generation_config: Option<Config>,
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name → shard and entry.
    tensors: BTreeMap<String, (usize, Entry)>,
}

/// One stored tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type: f32, f16 or bf16.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Little-endian row-major values, mapped from the file; they may be unaligned.
    pub bytes: &'a [u8],
    /// The file it is in.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Opens a model directory: `config.json` and `model.safetensors`, the shards of `model.safetensors.index.json`, or
    /// whatever `*.safetensors` there are.
    ///
    /// # Errors
    /// When something is missing or inconsistent; the message names the file and the tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            let message = if dir.exists() { "is not a directory" } else { "no such directory" };
            return Err(Error::new(dir.display(), message)
                .help("give the directory of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json"));
        }
        let config = Config::read(&dir.join("config.json"))?;
        let generation_config = Config::read_optional(&dir.join("generation_config.json"))?;
        let (shards, tensors) = open_shards(dir)?;
        Ok(Checkpoint { config, generation_config, dir: dir.into(), shards, tensors })
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor, if the checkpoint has it.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (shard, entry) = self.entry(name)?;
        Some(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes: shard.bytes(entry), file: shard.path() })
    }

    /// A tensor that must be there with this shape.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, Error> {
        let tensor = self.tensor(name).ok_or_else(|| self.missing(name))?;
        if tensor.shape != shape {
            return Err(Error::new(
                format_args!("{}: `{name}`", tensor.file.display()),
                format!("has shape {:?}, config.json asks for {shape:?}", tensor.shape),
            )
            .help("use the config.json that belongs to these weights"));
        }
        Ok(tensor)
    }

    /// Reads rows (slices along the first dimension) as f32 into `out`, which must have exactly their length.
    ///
    /// # Errors
    /// When there is no such tensor, or the rows or `out` do not fit it.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let (shard, entry) = self.entry(name).ok_or_else(|| self.missing(name))?;
        let bytes = entry.row_bytes(&rows).and_then(|r| shard.bytes(entry).get(r));
        let fits = |b: &&[u8]| entry.dtype.size().and_then(|s| out.len().checked_mul(s)) == Some(b.len());
        let bytes = bytes.filter(fits).ok_or_else(|| {
            Error::new(
                format_args!("{}: `{name}`", shard.path().display()),
                format!("rows {rows:?} of shape {:?} do not fit a buffer of {} values", entry.shape, out.len()),
            )
        })?;
        convert::to_f32(entry.dtype, bytes, out);
        Ok(())
    }

    /// Asks the system to read rows ahead. Only a hint.
    pub fn prefetch_rows(&self, name: &str, rows: Range<usize>) {
        if let Some((shard, entry)) = self.entry(name)
            && let Some(range) = entry.row_bytes(&rows)
        {
            shard.prefetch(entry, range);
        }
    }

    /// Drops rows from resident memory once they have been used; they can be read again. Only a hint.
    pub fn release_rows(&self, name: &str, rows: Range<usize>) {
        if let Some((shard, entry)) = self.entry(name)
            && let Some(range) = entry.row_bytes(&rows)
        {
            shard.release(entry, range);
        }
    }

    /// Fails if `values`, the rows of `name` from `first_row` on, hold a NaN or an infinity.
    ///
    /// # Errors
    /// Names the tensor, the position and the value.
    pub fn check_finite(&self, name: &str, first_row: usize, values: &[f32]) -> Result<(), Error> {
        let Some(i) = first_nonfinite(values) else { return Ok(()) };
        let (shard, entry) = self.entry(name).ok_or_else(|| self.missing(name))?;
        let width = entry.width().max(1);
        let position = match entry.shape.len() {
            0 | 1 => format!("[{}]", first_row + i),
            _ => format!("[{}, {}]", first_row + i / width, i % width),
        };
        let value = values.get(i).copied().unwrap_or(f32::NAN);
        Err(Error::new(format_args!("{}: `{name}`", shard.path().display()), format!("{value} at {position}"))
            .help("the checkpoint is damaged: download it again, or pass --allow-nonfinite to compile it anyway"))
    }

    fn entry(&self, name: &str) -> Option<(&Shard, &Entry)> {
        let (shard, entry) = self.tensors.get(name)?;
        Some((self.shards.get(*shard)?, entry))
    }

    fn missing(&self, name: &str) -> Error {
        let leaf = name.rsplit('.').nth(1).unwrap_or(name);
        let similar = self.names().find(|n| n.rsplit('.').nth(1) == Some(leaf));
        let help = match similar {
            Some(other) => format!("there is `{other}`: check that config.json belongs to these weights"),
            None => "check that the download is complete and that config.json belongs to these weights".into(),
        };
        Error::new(self.dir.display(), format!("there is no tensor `{name}`")).help(help)
    }
}

type Tensors = BTreeMap<String, (usize, Entry)>;

/// Finds the weight files of `dir` and puts their tensors into one table.
fn open_shards(dir: &Path) -> Result<(Vec<Shard>, Tensors), Error> {
    let single = dir.join("model.safetensors");
    let index_path = dir.join("model.safetensors.index.json");
    let mut index = None;
    let files = if single.exists() {
        vec![single]
    } else if index_path.exists() {
        let read = index::read(&index_path)?;
        let files = index::files(&index_path, &read)?;
        index = Some(read);
        files
    } else {
        index::weight_files(dir)?
    };

    let mut shards: Vec<Shard> = Vec::with_capacity(files.len());
    let mut tensors = Tensors::new();
    for (i, path) in files.into_iter().enumerate() {
        let (shard, entries) = Shard::open(&path)?;
        for (name, entry) in entries {
            if let Some((first, _)) = tensors.get(&name) {
                let first = shards.get(*first).map_or(path.as_path(), Shard::path);
                return Err(Error::new(path.display(), format!("tensor `{name}` is also in {}", first.display()))
                    .help("remove the file that does not belong to this checkpoint"));
            }
            tensors.insert(name, (i, entry));
        }
        shards.push(shard);
    }
    if let Some(index) = index {
        let found = tensors.iter().map(|(name, (i, _))| (name.as_str(), shards.get(*i).map(Shard::path)));
        index::check(&index_path, &index, found)?;
    }
    Ok((shards, tensors))
}

#[cfg(test)]
mod tests;
