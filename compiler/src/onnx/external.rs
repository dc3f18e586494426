//! Values that lie in files beside the model.
//!
//! Invariant: an [`External`] holds a map of every file that the tensors it was made from name; each of these tensors lies in
//! its file with exactly the bytes that it needs, and two of them lie at the same bytes or apart. Which files may be read is
//! decided here alone: those in the folder in which the model was named, and in the one where it really is. The two differ in
//! a download cache, where a snapshot holds links into a folder of blobs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use dlx_ir::Error;
use dlx_runtime::mapped::Mapped;

use super::elem::{ElemType, Field};
use super::header::{Header, bad, place, shape};
use super::proto::TensorProto;
use super::proto::tensor_proto::DataLocation;

/// The mapped files beside a model.
#[derive(Debug, Default)]
pub(super) struct External {
    files: Vec<(PathBuf, Mapped)>,
    /// Location, as tensors spell it → its file.
    locations: BTreeMap<String, usize>,
}

/// Where a tensor says that its values are.
struct Record<'a> {
    location: &'a str,
    offset: u64,
    length: Option<u64>,
}

/// Whether a tensor's values lie in another file.
pub(super) fn is_external(t: &TensorProto) -> bool {
    t.data_location() == DataLocation::External
}

/// Fails for a tensor that has values in the model's file too.
pub(super) fn only_external(path: &Path, t: &TensorProto, filled: &[(Field, usize)]) -> Result<(), Error> {
    let inside = filled.first().map(|(field, _)| field.name());
    match inside.or(t.raw_data.as_ref().filter(|raw| !raw.is_empty()).map(|_| "raw_data")) {
        Some(field) => Err(bad(path, t, format!("has values twice: in another file and in {field}"))),
        None => Ok(()),
    }
}

impl External {
    /// Maps the files that the external ones of `tensors` name, and checks where each lies. `path` is the model's.
    ///
    /// # Errors
    /// When a location is not allowed, missing or no file, a tensor does not lie in its file, or two overlap.
    pub(super) fn open<'a>(path: &Path, tensors: impl Iterator<Item = &'a TensorProto>) -> Result<External, Error> {
        let mut external = External::default();
        let mut folders = None;
        let mut placed: Vec<(usize, Range<usize>, &TensorProto)> = Vec::new();
        for t in tensors.filter(|t| is_external(t)) {
            let record = Record::of(path, t)?;
            let file = match external.locations.get(record.location) {
                Some(file) => *file,
                None => {
                    if folders.is_none() {
                        folders = Some(own_folders(path)?);
                    }
                    external.map(path, t, record.location, folders.as_deref().unwrap_or_default())?
                }
            };
            let range = external.range(path, t, &Header::of(path, t)?, &record, file)?;
            if !range.is_empty() {
                placed.push((file, range, t));
            }
        }
        placed.sort_by_key(|(file, range, _)| (*file, range.start, range.end));
        for pair in placed.windows(2) {
            // Ranges before a pair are the same as its first or end before it, so neighbors are all there is to compare.
            let [(file_a, a, first), (file_b, b, second)] = pair else { continue };
            if file_a == file_b && a != b && b.start < a.end {
                let message = format!(
                    "lies at bytes {} to {} of {}, and tensor {:?} at {} to {}: they overlap",
                    b.start,
                    b.end,
                    external.name(*file_b),
                    first.name(),
                    a.start,
                    a.end
                );
                return Err(bad(path, second, message));
            }
        }
        Ok(external)
    }

    /// The bytes of an external tensor, which must be one of those that were given to [`External::open`].
    pub(super) fn bytes(&self, path: &Path, t: &TensorProto, header: &Header) -> Result<&[u8], Error> {
        let record = Record::of(path, t)?;
        let file = self.locations.get(record.location).copied();
        let file = file.ok_or_else(|| {
            bad(path, t, format!("lies in {:?}, which no tensor of the model names", record.location))
        })?;
        let range = self.range(path, t, header, &record, file)?;
        let bytes = self.files.get(file).and_then(|(_, map)| map.bytes().get(range));
        Ok(bytes.expect("the range has just been compared with the file's length"))
    }

    /// The mapped files and how long they are.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.files.iter().map(|(path, map)| (path.as_path(), map.bytes().len() as u64))
    }

    /// The map that some bytes of a tensor are part of, and where in it they are.
    pub(super) fn map_of(&self, bytes: &[u8]) -> Option<(&Mapped, Range<usize>)> {
        let place = |map: &[u8]| bytes.as_ptr().addr().checked_sub(map.as_ptr().addr());
        self.files.iter().find_map(|(_, map)| {
            let start = place(map.bytes())?;
            let end = start.checked_add(bytes.len())?;
            (end <= map.bytes().len()).then_some((map, start..end))
        })
    }

    fn name(&self, file: usize) -> String {
        self.files.get(file).map(|(path, _)| path.display().to_string()).unwrap_or_default()
    }

    /// Where in its file a tensor lies.
    fn range(
        &self,
        path: &Path,
        t: &TensorProto,
        header: &Header,
        record: &Record<'_>,
        file: usize,
    ) -> Result<Range<usize>, Error> {
        if header.elem == ElemType::String {
            return Err(bad(path, t, "keeps strings in another file, and ONNX has no such form".into()));
        }
        let need = header.bytes as u64;
        if let Some(length) = record.length.filter(|length| *length != need) {
            return Err(bad(path, t, format!("has a length of {length} bytes, {} need {need}", shape(header))));
        }
        let len = self.files.get(file).map_or(0, |(_, map)| map.bytes().len());
        let range = usize::try_from(record.offset).ok().and_then(|start| Some(start..start.checked_add(header.bytes)?));
        range.filter(|range| range.end <= len).ok_or_else(|| {
            let message = format!(
                "lies at byte {} of {}, which has {len} bytes: {need} are needed",
                record.offset,
                self.name(file)
            );
            Error::new(place(path, t), message)
                .help("the file was cut short or belongs to another export: download or export both files again")
        })
    }

    /// Maps the file at a location, or finds that it is mapped.
    fn map(&mut self, path: &Path, t: &TensorProto, location: &str, folders: &[PathBuf]) -> Result<usize, Error> {
        let found =
            find(location, folders).map_err(|(message, help)| Error::new(place(path, t), message).help(help))?;
        let file = match self.files.iter().position(|(known, _)| *known == found) {
            Some(file) => file,
            None => {
                let map = Mapped::open(&found).map_err(|e| {
                    Error::new(place(path, t), format!("{} cannot be read: {e}", found.display()))
                        .help("check the file and its permissions")
                })?;
                self.files.push((found, map));
                self.files.len() - 1
            }
        };
        self.locations.insert(location.to_owned(), file);
        Ok(file)
    }
}

impl<'a> Record<'a> {
    fn of(path: &Path, t: &'a TensorProto) -> Result<Record<'a>, Error> {
        let get = |key: &str| {
            let mut values = t.external_data.iter().filter(|e| e.key() == key).map(|e| e.value());
            let first = values.next();
            match values.find(|other| Some(*other) != first) {
                Some(_) => Err(bad(path, t, format!("gives more than one {key} for its values in another file"))),
                None => Ok(first),
            }
        };
        let number = |key: &str| {
            let Some(text) = get(key)? else { return Ok(None) };
            // A sign is not part of the format, though Rust would parse one.
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let parsed = text.parse::<u64>().ok().filter(|_| digits);
            parsed
                .map(Some)
                .ok_or_else(|| bad(path, t, format!("gives {text:?} as {key}, which is no number of bytes")))
        };
        let location = get("location")?.filter(|l| !l.is_empty());
        let location =
            location.ok_or_else(|| bad(path, t, "lies in another file, but does not say in which".into()))?;
        Ok(Record { location, offset: number("offset")?.unwrap_or(0), length: number("length")? })
    }
}

/// The folder in which the model was named, then the one in which it really is, if that is another; both resolved.
fn own_folders(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |e: std::io::Error| {
        Error::new(path.display(), format!("its folder cannot be read: {e}")).help("check the folder's permissions")
    };
    let named = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut folders = vec![named.canonicalize().map_err(failed)?];
    let real = path.canonicalize().map_err(failed)?;
    folders.extend(real.parent().filter(|real| !folders.iter().any(|f| f == real)).map(Path::to_owned));
    Ok(folders)
}

/// The file that a location means, resolved; or what is wrong with it, and what to do.
fn find(location: &str, folders: &[PathBuf]) -> Result<PathBuf, (String, &'static str)> {
    const BESIDE: &str = "put the file beside the model, and export or save the model with a plain file name for it";
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if location.contains('\0') || !Path::new(location).components().all(inside) {
        return Err((format!("lies in {location:?}, which leaves the folder of the model"), BESIDE));
    }
    let Some(at) = folders.iter().map(|f| f.join(location)).find(|at| at.symlink_metadata().is_ok()) else {
        let message = format!("lies in {location:?}, which is not beside the model");
        return Err((message, "download or copy that file into the folder of the model: it holds the weights"));
    };
    let real = at.canonicalize().map_err(|e| {
        let message = format!("lies in {location:?}, which cannot be followed to a file: {e}");
        (message, "download the file again: the copy that the link meant is gone, or may not be read")
    })?;
    if !folders.iter().any(|folder| real.starts_with(folder)) {
        let message =
            format!("lies in {location:?}, a link to {}: that leaves the folder of the model", real.display());
        return Err((message, "copy the file itself into the folder of the model"));
    }
    // Asked before opening: a pipe would wait for its other end.
    if !real.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err((format!("lies in {location:?}, which is no regular file"), BESIDE));
    }
    Ok(real)
}
