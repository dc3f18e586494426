//! A Hugging Face model directory: weights, configuration, tokenizer files.
//!
//! Invariant: once [`Checkpoint::open`] has returned, every tensor that it names is of floats, or of codes with all that says
//! what they stand for, and lies inside its file, no two overlap, each name stands for one tensor, and the index has every
//! tensor that it lists. A weight that several tensors make up has the name that it would have alone. What is in the
//! directory and not read is said in the notes. Values are not read until asked for, a few rows at a time. Which tensors a
//! model family needs is deliberately not known here.

mod bpe;
mod config;
mod convert;
mod index;
mod json;
mod kinds;
mod methods;
mod packed;
mod quantized;
mod shard;
mod special;
mod text;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dlx_ir::{DType, Error, QuantFormat};
use dlx_targets::CodeRows;

pub use config::Config;
pub use convert::first_nonfinite;
pub(crate) use kinds::{by_content, check_is_file, unreadable};
use packed::Packed;
use quantized::Declared;
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
    tensors: Tensors,
    /// Weights that are stored as codes, by the name that they would have alone.
    packed: BTreeMap<String, Packed>,
    /// Names of all tensors and weights, sorted.
    names: Vec<String>,
    /// Tensor name → file, of tensors that the index does not list.
    unlisted: BTreeMap<String, String>,
    notes: Vec<String>,
}

/// One stored tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type: f32, f16, bf16, or the quantized format that holds the codes as they are stored; f32 for codes that no
    /// format holds.
    pub dtype: DType,
    /// The format for codes that no format holds: the closest one, into which their numbers are rounded.
    pub rounded: Option<QuantFormat>,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Little-endian row-major values, or the codes as they are stored, mapped from the file; they may be unaligned.
    pub bytes: &'a [u8],
    /// The file it is in.
    pub file: &'a Path,
}

impl Checkpoint {
    /// Opens a model directory: `config.json` and `model.safetensors`, the shards of `model.safetensors.index.json`, or
    /// whatever `*.safetensors` there are.
    ///
    /// # Errors
    /// When something is missing or inconsistent, or the directory is no model but something else; the message names the
    /// file and the tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(kinds::not_a_directory(dir));
        }
        let config = Config::read_optional(&dir.join("config.json"))?.ok_or_else(|| kinds::no_config(dir))?;
        let generation_config = Config::read_optional(&dir.join("generation_config.json"))?;
        if let Some(error) = kinds::adapter(dir) {
            return Err(error);
        }
        let declared = quantized::declared(dir, &config)?;
        if let Some(declared) = declared.as_ref().filter(|d| !d.while_loading() && !kinds::has_weights(dir)) {
            return Err(quantized::without_weights(declared));
        }
        let mut checkpoint = Checkpoint {
            config,
            generation_config,
            dir: dir.into(),
            shards: Vec::new(),
            tensors: Tensors::new(),
            packed: BTreeMap::new(),
            names: Vec::new(),
            unlisted: BTreeMap::new(),
            notes: Vec::new(),
        };
        checkpoint.open_shards(declared.as_ref())?;
        if let Some(error) = kinds::by_tensors(dir, checkpoint.tensors.keys().map(String::as_str)) {
            return Err(error);
        }
        checkpoint.unpack(declared)?;
        Ok(checkpoint)
    }

    /// Reads all weights as numbers of f32, whatever they are stored as: for those who know no quantized weights.
    #[must_use]
    pub fn as_numbers(mut self) -> Self {
        self.packed.values_mut().for_each(Packed::as_numbers);
        self
    }

    /// Makes weights of the tensors of quantized ones.
    fn unpack(&mut self, declared: Option<Declared>) -> Result<(), Error> {
        if let Some((declared, method)) = declared.as_ref().and_then(|d| Some((d, methods::find(&d.method)?))) {
            let (packed, notes) = methods::unpack(method, &self.shards, declared, &mut self.tensors)?;
            self.packed = packed;
            self.notes.extend(notes);
        }
        let names = || self.tensors.keys().map(String::as_str);
        if let Some((name, (shard, entry))) = self.tensors.iter().find(|(_, (_, entry))| !entry.dtype.is_float()) {
            let path = self.shards.get(*shard).map_or(&*self.dir, Shard::path);
            return Err(quantized::refuse(path, name, entry.stored, declared.as_ref(), names()));
        }
        if let Some(error) = quantized::cast(&self.dir, names()) {
            return Err(error);
        }
        if self.packed.is_empty() {
            self.notes.extend(declared.map(quantized::plain).transpose()?);
        }
        self.names = names().chain(self.packed.keys().map(String::as_str)).map(str::to_owned).collect();
        self.names.sort_unstable();
        Ok(())
    }

    /// What was found and not read, for the user to know. Artifacts carry it, so it holds no path.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.names.iter().map(String::as_str)
    }

    /// A tensor, if the checkpoint has it.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let (shard, entry) = self.entry(name)?;
        let (bytes, file) = (shard.bytes(entry), shard.path());
        let Some(packed) = self.packed.get(name) else {
            return Some(TensorView { dtype: entry.dtype, rounded: None, shape: &entry.shape, bytes, file });
        };
        let (dtype, rounded) = packed.types();
        Some(TensorView { dtype, rounded, shape: packed.shape(), bytes, file })
    }

    /// How a weight is stored, for people, if as codes.
    pub fn stored_as(&self, name: &str) -> Option<&str> {
        self.packed.get(name).map(Packed::said)
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

    /// The ways in which weights are stored as codes, for people, and how many weights are.
    pub fn stored_kinds(&self) -> BTreeMap<&str, usize> {
        let mut kinds = BTreeMap::new();
        self.packed.values().for_each(|packed| *kinds.entry(packed.said()).or_default() += 1);
        kinds
    }

    /// Reads rows (slices along the first dimension) as f32 into `out`, which must have exactly their length.
    ///
    /// # Errors
    /// When there is no such tensor, or the rows or `out` do not fit it.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        if let Some(packed) = self.packed.get(name) {
            return packed.read_rows(&self.shards, rows, out);
        }
        let (dtype, bytes) = self.bytes_of(name, &rows, |size| out.len().checked_mul(size))?;
        convert::to_f32(dtype, bytes, out);
        Ok(())
    }

    /// Reads rows of a weight as the codes of the quantized format that holds them.
    ///
    /// # Errors
    /// When there is no such weight, it is not of that format, the rows or `out` do not fit it, or a scale is none.
    pub fn read_codes(
        &self,
        name: &str,
        format: QuantFormat,
        rows: Range<usize>,
        out: CodeRows<'_>,
    ) -> Result<(), Error> {
        match self.packed.get(name) {
            Some(packed) => packed.read_codes(&self.shards, format, rows, out),
            None => Err(self.missing(name)),
        }
    }

    /// Reads rows of a tensor as the bytes that the file has; those of a weight of codes as the bytes of f32.
    ///
    /// # Errors
    /// When there is no such tensor, or the rows or `out` do not fit it.
    pub fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        if let Some(packed) = self.packed.get(name) {
            let mut numbers = vec![0.0; out.len() / 4];
            packed.read_rows(&self.shards, rows, &mut numbers)?;
            out.chunks_exact_mut(4).zip(numbers).for_each(|(o, v)| o.copy_from_slice(&v.to_le_bytes()));
            return Ok(());
        }
        let (_, bytes) = self.bytes_of(name, &rows, |_| Some(out.len()))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    /// Element type and bytes of rows, which must be as many as `wanted` makes of the size of an element.
    fn bytes_of(
        &self,
        name: &str,
        rows: &Range<usize>,
        wanted: impl Fn(usize) -> Option<usize>,
    ) -> Result<(DType, &[u8]), Error> {
        let (shard, entry) = self.entry(name).ok_or_else(|| self.missing(name))?;
        let bytes = entry.row_bytes(rows).and_then(|r| shard.bytes(entry).get(r));
        let wanted = entry.dtype.size().and_then(wanted);
        let bytes = bytes.filter(|b| wanted == Some(b.len())).ok_or_else(|| {
            Error::new(
                format_args!("{}: `{name}`", shard.path().display()),
                format!("rows {rows:?} of shape {:?} do not fit the buffer for them", entry.shape),
            )
        })?;
        Ok((entry.dtype, bytes))
    }

    /// Asks the system to read rows ahead. Only a hint.
    pub fn prefetch_rows(&self, name: &str, rows: Range<usize>) {
        if !self.packed.contains_key(name)
            && let Some((shard, entry)) = self.entry(name)
            && let Some(range) = entry.row_bytes(&rows)
        {
            shard.prefetch(entry, range);
        }
    }

    /// Drops rows from resident memory once they have been used; they can be read again. Only a hint.
    pub fn release_rows(&self, name: &str, rows: Range<usize>) {
        if let Some(packed) = self.packed.get(name) {
            packed.release(&self.shards, &rows);
        } else if let Some((shard, entry)) = self.entry(name)
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
        let shape = self.packed.get(name).map_or(&entry.shape[..], |packed| packed.shape());
        let width = shape.iter().skip(1).product::<usize>().max(1);
        let position = match shape.len() {
            0 | 1 => format!("[{}]", first_row + i),
            _ => format!("[{}, {}]", first_row + i / width, i % width),
        };
        let value = values.get(i).copied().unwrap_or(f32::NAN);
        Err(Error::new(format_args!("{}: `{name}`", shard.path().display()), format!("{value} at {position}"))
            .help("the checkpoint is damaged: download it again"))
    }

    /// File and place of a tensor; of a weight of codes those of the codes.
    fn entry(&self, name: &str) -> Option<(&Shard, &Entry)> {
        if let Some(packed) = self.packed.get(name) {
            let codes = packed.codes();
            return Some((self.shards.get(codes.shard)?, &codes.entry));
        }
        let (shard, entry) = self.tensors.get(name)?;
        Some((self.shards.get(*shard)?, entry))
    }

    fn missing(&self, name: &str) -> Error {
        if let Some(file) = self.unlisted.get(name) {
            return Error::new(
                self.dir.join("model.safetensors.index.json").display(),
                format!("does not list tensor `{name}`, which is in {file}"),
            )
            .help("index and shards belong to different downloads: download both again");
        }
        let leaf = name.rsplit('.').nth(1).unwrap_or(name);
        let similar = self.names().find(|n| n.rsplit('.').nth(1) == Some(leaf));
        let help = match similar {
            Some(other) => format!("there is `{other}`: check that config.json belongs to these weights"),
            None => "check that the download is complete and that config.json belongs to these weights".into(),
        };
        Error::new(self.dir.display(), format!("there is no tensor `{name}`")).help(help)
    }

    /// Finds the weight files and puts their tensors into one table.
    fn open_shards(&mut self, declared: Option<&Declared>) -> Result<(), Error> {
        let index::Chosen { files, index, rival, notes } = index::choose(&self.dir)?;
        self.notes = notes;
        // Copies of tensors that the index places in another file.
        let mut elsewhere = BTreeMap::new();
        for (i, path) in files.into_iter().enumerate() {
            let (shard, entries) = Shard::open(&path, declared)?;
            let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            for (name, entry) in entries {
                match index.as_ref().map(|(_, index)| index.get(&name)) {
                    Some(None) => drop(self.unlisted.insert(name, file.clone())),
                    Some(Some(listed)) if *listed != file => drop(elsewhere.insert(name, file.clone())),
                    _ => {
                        if let Some((first, _)) = self.tensors.insert(name.clone(), (i, entry)) {
                            let first = self.shards.get(first).map_or(path.as_path(), Shard::path);
                            let message =
                                format!("tensor `{name}` is also in {}, and there is no index", first.display());
                            return Err(Error::new(path.display(), message).help(
                                "download model.safetensors.index.json; if the model's repository has none, move away the files that it does not have",
                            ));
                        }
                    }
                }
            }
            self.shards.push(shard);
        }
        if let Some((path, index)) = &index {
            index::check(path, index, &elsewhere, |name| self.tensors.contains_key(name))?;
        }
        for (tensors, why) in [(&self.unlisted, "does not list them"), (&elsewhere, "places them in another file")] {
            if !tensors.is_empty() {
                let named: Vec<_> = tensors.iter().map(|(name, file)| format!("{name} of {file}")).collect();
                let named: Vec<_> = named.iter().map(String::as_str).collect();
                self.notes.push(format!("{} left unread: the index {why}", index::some(&named)));
            }
        }
        match rival {
            Some(rival) if !self.holds_the_same(&rival)? => {
                Err(index::ambiguous(&rival, "lies beside shards and an index, and holds other weights"))
            }
            Some(_) => {
                self.notes.push("model.safetensors left unread: it holds the same as the shards of the index".into());
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether a file holds the tensors of this checkpoint, all of them and no others, to the last byte.
    fn holds_the_same(&self, path: &Path) -> Result<bool, Error> {
        let (shard, entries) = Shard::open(path, None)?;
        Ok(entries.len() == self.tensors.len()
            && entries.iter().all(|(name, entry)| {
                let same = |(own, t): (&Shard, &Entry)| {
                    t.dtype == entry.dtype && t.shape == entry.shape && own.bytes(t) == shard.bytes(entry)
                };
                self.entry(name).is_some_and(same)
            }))
    }
}

/// Tensor name → shard and entry.
type Tensors = BTreeMap<String, (usize, Entry)>;

#[cfg(test)]
mod tests;
