//! One `.safetensors` file, mapped, with its header checked.
//!
//! Layout: a little-endian `u64` header length, a JSON header `name → {dtype, shape, data_offsets}`, the data. Invariant:
//! every entry of an open shard has an element type of weights or of codes, a byte range that lies in the data and has
//! exactly the length that dtype and shape ask for, and the ranges tile the data without overlap or hole. What codes stand
//! for, and whether anything does, is not known here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dlx_ir::{DType, Error};
use dlx_runtime::mapped::Mapped;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::Value;

use super::json::{self, Pairs};
use super::kinds;
use super::quantized::{self, Declared};

/// Longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
const MAX_NAME: usize = 1024;
const MAX_RANK: usize = 8;

/// A mapped weight file.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    file: Mapped,
    /// First byte of the data.
    data: usize,
    /// What the header's `__metadata__` says: texts by name.
    metadata: BTreeMap<String, String>,
}

/// Where a tensor is in its file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) dtype: DType,
    /// The element type as the file calls it.
    pub(super) stored: Dtype,
    pub(super) shape: Vec<usize>,
    /// Byte range within the data.
    range: Range<usize>,
}

impl Shard {
    /// Maps a file and checks its header; `declared` is what the config says about quantization.
    pub(super) fn open(path: &Path, declared: Option<&Declared>) -> Result<(Self, Vec<(String, Entry)>), Error> {
        kinds::check_is_file(path)?;
        let file = Mapped::open(path).map_err(|e| kinds::unreadable(path, &e))?;
        let header = read_header(path, file.bytes(), declared);
        let Header { data, entries, metadata } =
            header.map_err(|e| kinds::by_content(path, file.bytes()).unwrap_or(e))?;
        Ok((Shard { path: path.into(), file, data, metadata }, entries))
    }

    /// What the header says of a tensor besides its entry.
    pub(super) fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of a tensor of this shard.
    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        let range = self.data + entry.range.start..self.data + entry.range.end;
        self.file.bytes().get(range).expect("opening the shard checked that every entry lies in the file")
    }

    /// Hints that a byte range of a tensor will be read.
    pub(super) fn prefetch(&self, entry: &Entry, range: Range<usize>) {
        let start = self.data + entry.range.start;
        self.file.prefetch(start + range.start..start + range.end);
    }

    /// Hints that a byte range of a tensor is not needed any more.
    pub(super) fn release(&self, entry: &Entry, range: Range<usize>) {
        let start = self.data + entry.range.start;
        self.file.release(start + range.start..start + range.end);
    }
}

impl Entry {
    /// Values per row: the product of all dimensions but the first. It divides the checked size, so it cannot overflow.
    pub(super) fn width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Byte range of rows within the tensor, if it has them. A scalar is one row.
    pub(super) fn row_bytes(&self, rows: &Range<usize>) -> Option<Range<usize>> {
        if rows.start > rows.end || rows.end > self.shape.first().copied().unwrap_or(1) {
            return None;
        }
        let row = self.width().checked_mul(self.dtype.size()?)?;
        Some(rows.start.checked_mul(row)?..rows.end.checked_mul(row)?)
    }
}

/// What a header says.
struct Header {
    /// Where the data starts.
    data: usize,
    /// Tensors in file order.
    entries: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

/// Checks the header of a whole file.
fn read_header(path: &Path, file: &[u8], declared: Option<&Declared>) -> Result<Header, Error> {
    let bad = |message: String| {
        Error::new(path.display(), message).help("the file is damaged, cut off or not safetensors: download it again")
    };
    let Some((len, rest)) = file.split_first_chunk::<8>() else {
        return Err(bad(format!("{} bytes are too few for a safetensors file", file.len())));
    };
    let len = u64::from_le_bytes(*len);
    let header = usize::try_from(len).ok().filter(|_| len <= MAX_HEADER).and_then(|n| rest.split_at_checked(n));
    let Some((header, data)) = header else {
        return Err(bad(format!("the header claims {len} bytes, {} follow", rest.len())));
    };
    let Pairs(pairs) = json::parse::<Pairs<Value>>(path, header)?;
    let names: Vec<String> = pairs.iter().map(|(name, _)| name.clone()).collect();
    let mut entries = Vec::with_capacity(pairs.len());
    let mut metadata = BTreeMap::new();
    for (name, value) in pairs {
        if name == "__metadata__" {
            let texts = value.as_object().into_iter().flatten();
            metadata.extend(texts.filter_map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned()))));
        } else {
            let refuse = |dtype| quantized::refuse(path, &name, dtype, declared, names.iter().map(String::as_str));
            let entry = read_entry(path, &name, value, data.len(), refuse)?;
            entries.push((name, entry));
        }
    }
    entries.sort_by(|(a, x), (b, y)| (x.range.start, x.range.end, a).cmp(&(y.range.start, y.range.end, b)));
    let mut end = 0;
    for (name, entry) in &entries {
        let start = entry.range.start;
        if start < end {
            return Err(bad(format!("the bytes of tensor `{name}` overlap those of another tensor")));
        }
        if start > end {
            return Err(bad(format!("{} bytes before tensor `{name}` belong to no tensor", start - end)));
        }
        end = entry.range.end;
    }
    if end != data.len() {
        return Err(bad(format!("{} bytes after the last tensor belong to no tensor", data.len() - end)));
    }
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some([name, _]) = names.array_windows().find(|[a, b]| a == b) {
        return Err(bad(format!("tensor `{name}` is in the header twice")));
    }
    Ok(Header { data: file.len() - data.len(), entries, metadata })
}

/// `refuse` makes the error for an element type that is not read.
fn read_entry(
    path: &Path,
    name: &str,
    value: Value,
    data_len: usize,
    refuse: impl Fn(Dtype) -> Error,
) -> Result<Entry, Error> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let start: String = name.chars().take(40).collect();
        return Err(Error::new(path.display(), format!("{start:?}… is not a tensor name"))
            .help("the file is damaged: download it again"));
    }
    let place = format!("{}: `{name}`", path.display());
    let bad = |message: String| Error::new(&place, message).help("the file is damaged: download it again");
    let info: TensorInfo = serde_json::from_value(value)
        .map_err(|e| bad(format!("the header entry is not valid: {}", json::brief(&e))))?;
    let (dtype, size) = match info.dtype {
        Dtype::F32 => (DType::F32, 4),
        Dtype::F16 => (DType::F16, 2),
        Dtype::BF16 => (DType::BF16, 2),
        Dtype::I64 => (DType::I64, 8),
        Dtype::I32 => (DType::I32, 4),
        Dtype::I8 => (DType::I8, 1),
        Dtype::U8 => (DType::U8, 1),
        Dtype::F8_E4M3 => (DType::F8E4M3, 1),
        Dtype::F8_E8M0 => (DType::F8E8M0, 1),
        other => return Err(refuse(other)),
    };
    if info.shape.len() > MAX_RANK {
        return Err(bad(format!("has {} dimensions, at most {MAX_RANK} make sense", info.shape.len())));
    }
    if info.shape.contains(&0) {
        return Err(bad(format!("has an empty dimension: {:?}", info.shape)));
    }
    let want = info.shape.iter().try_fold(size, |n: usize, &d| n.checked_mul(d));
    let (start, end) = info.data_offsets;
    if start > end || end > data_len {
        return Err(bad(format!("lies at bytes {start} to {end} of {data_len}")));
    }
    if want != Some(end - start) {
        return Err(bad(format!("{:?} of {:?} does not fill its {} bytes", info.shape, info.dtype, end - start)));
    }
    Ok(Entry { dtype, stored: info.dtype, shape: info.shape, range: start..end })
}
