//! Writes `.dlxa` files: weights streamed to the disk first, the small sections and the header at the end.
//!
//! Invariant: the destination either keeps what it held or holds a complete artifact. Everything goes to a temporary file
//! beside it, which is synced and renamed by [`ArtifactWriter::finish`] and removed when the writer is dropped before that.
//! The bytes depend on the calls alone: no time, no path, no thread count. The layout itself is
//! [`dlx_runtime::artifact`]'s; this file deliberately knows nothing about what a section means.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dlx_ir::Error;
use dlx_runtime::artifact::{ALIGN, PAGE, Section, WEIGHTS, encode, place};
use dlx_runtime::mapped::Mapped;
use tempfile::NamedTempFile;

/// Places in a weights section, handed out one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space(u64);

impl Space {
    /// Sets `len` bytes aside and returns where they start, at a multiple of [`ALIGN`].
    pub fn reserve(&mut self, len: u64) -> u64 {
        let offset = self.0.next_multiple_of(ALIGN as u64);
        self.0 = offset.saturating_add(len);
        offset
    }

    /// Bytes up to the end of what was set aside.
    pub fn len(&self) -> u64 {
        self.0
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }
}

/// An artifact being written.
#[derive(Debug)]
pub struct ArtifactWriter {
    path: PathBuf,
    temp: NamedTempFile,
    weights: Space,
    weights_hash: Option<[u8; 32]>,
    sections: Vec<(String, Vec<u8>)>,
}

impl ArtifactWriter {
    /// Starts an artifact that will be at `path`; nothing is visible there before [`ArtifactWriter::finish`].
    ///
    /// # Errors
    /// When no file can be made in the directory of `path`.
    pub fn create(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Err(
                Error::new(path.display(), "is a directory").help("give the name of a file, such as model.dlxa")
            );
        }
        let dir = parent(path);
        let mut builder = tempfile::Builder::new();
        builder.prefix(".dlxc-").suffix(".tmp");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temp = builder.tempfile_in(dir).map_err(|e| {
            Error::new(path.display(), format!("cannot write into {}: {e}", dir.display()))
                .help("choose an output directory that exists and can be written")
        })?;
        Ok(ArtifactWriter {
            path: path.into(),
            temp,
            weights: Space::default(),
            weights_hash: None,
            sections: Vec::new(),
        })
    }

    /// Sets `len` bytes of the weights section aside and returns where they start in it, at a multiple of
    /// [`ALIGN`]. Bytes that are never written are zero.
    pub fn reserve(&mut self, len: u64) -> u64 {
        self.weights.reserve(len)
    }

    /// Sets as much aside as `space` has handed out, from the start of the section on.
    pub fn reserve_all(&mut self, space: Space) {
        self.weights = space;
    }

    /// Writes into space that [`ArtifactWriter::reserve`] returned. Threads may write different parts at the same time.
    ///
    /// # Errors
    /// When the system refuses (a full disk), or the bytes lie outside what was reserved.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.weights.len()) {
            let message = format!("{} bytes at {offset} lie outside the reserved weights", bytes.len());
            return Err(Error::new(self.path.display(), message));
        }
        write_all_at(self.temp.as_file(), bytes, PAGE as u64 + offset).map_err(|e| self.failed(&e))
    }

    /// Reserves space, writes one weight into it and returns where it starts in the weights section.
    ///
    /// # Errors
    /// As [`ArtifactWriter::write_at`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let offset = self.reserve(bytes.len() as u64);
        self.write_at(offset, bytes)?;
        Ok(offset)
    }

    /// Maps the weights written so far and says where in the mapping they are.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn map_weights(&self) -> Result<(Arc<Mapped>, Range<usize>), Error> {
        let end = PAGE as u64 + self.weights.len();
        self.temp.as_file().set_len(end).map_err(|e| self.failed(&e))?;
        let mapped = Mapped::open(self.temp.path()).map_err(|e| self.failed(&e))?;
        Ok((Arc::new(mapped), PAGE..usize::try_from(end).unwrap_or(usize::MAX)))
    }

    /// Says which checksum the weights must have: they are copied from a file that has it.
    pub fn expect_weights(&mut self, hash: [u8; 32]) {
        self.weights_hash = Some(hash);
    }

    /// Adds a section. Sections lie in the file in the order of these calls, after the weights.
    pub fn section(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.sections.push((name.into(), bytes.into()));
    }

    /// Bytes that the file has besides its weights, at most: sections may begin on pages of their own.
    pub fn others(&self) -> u64 {
        let page = PAGE as u64;
        page + self.sections.iter().map(|(_, bytes)| (bytes.len() as u64).next_multiple_of(page)).sum::<u64>()
    }

    /// Writes the sections and the header, syncs, and renames the file to its destination. Returns its length.
    ///
    /// # Errors
    /// When the system refuses, or the sections cannot stand in one table (count, names).
    pub fn finish(mut self) -> Result<u64, Error> {
        let sections = self.table().map_err(|e| self.failed(&e))?;
        let header = encode(&sections).map_err(|e| Error::new(self.path.display(), e))?;
        let contents = self.sections.iter().map(|(_, bytes)| bytes);
        for (section, bytes) in sections.iter().skip(1).zip(contents) {
            write_all_at(self.temp.as_file(), bytes, section.offset).map_err(|e| self.failed(&e))?;
        }
        let len = sections.last().and_then(Section::end).expect("the table has at least the weights");
        let file = self.temp.as_file();
        // An empty last section or an unwritten end of the weights leaves the file shorter than its layout.
        file.set_len(len)
            .and_then(|()| write_all_at(file, &header, 0))
            .and_then(|()| file.sync_all())
            .map_err(|e| self.failed(&e))?;
        let path = self.path;
        self.temp.persist(&path).map_err(|e| failed(&path, &e.error))?;
        sync_dir(parent(&path)).map_err(|e| failed(&path, &e))?;
        Ok(len)
    }

    /// The section table: the weights, hashed from the file, then the buffered sections.
    fn table(&mut self) -> io::Result<Vec<Section>> {
        let too_long = || io::Error::new(io::ErrorKind::FileTooLarge, "the artifact is longer than a file can be");
        self.temp.as_file().set_len((PAGE as u64).checked_add(self.weights.len()).ok_or_else(too_long)?)?;
        let hash = hash_from(self.temp.as_file_mut(), PAGE as u64)?;
        if self.weights_hash.is_some_and(|expected| expected != hash) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the weights do not have the checksum of their source",
            ));
        }
        let mut table = vec![Section { name: WEIGHTS.into(), offset: PAGE as u64, len: self.weights.len(), hash }];
        let mut end = PAGE as u64 + self.weights.len();
        for (name, bytes) in &self.sections {
            let offset = place(name, end).ok_or_else(too_long)?;
            let len = bytes.len() as u64;
            end = offset.checked_add(len).ok_or_else(too_long)?;
            table.push(Section { name: name.clone(), offset, len, hash: *blake3::hash(bytes).as_bytes() });
        }
        Ok(table)
    }

    fn failed(&self, e: &io::Error) -> Error {
        failed(&self.path, e)
    }
}

fn failed(path: &Path, e: &io::Error) -> Error {
    let error = Error::new(path.display(), format!("cannot write the artifact: {e}"));
    match e.kind() {
        io::ErrorKind::InvalidData => error.help("the file that is being copied is damaged: copy or compile it again"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            error.help("free some space or choose another disk")
        }
        _ => error.help("check that the directory can be written and the disk is healthy"),
    }
}

/// The directory that holds `path`; a bare file name is in the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// blake3 of the file from `start` to its end, on all threads, a few MiB in memory.
fn hash_from(file: &mut File, start: u64) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 8 << 20];
    file.seek(SeekFrom::Start(start))?;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        hasher.update_rayon(&buffer[..filled]);
        if filled < buffer.len() {
            return Ok(*hasher.finalize().as_bytes());
        }
    }
}

/// Writes all bytes at an offset without moving the file's position, so that threads can share the file.
///
/// # Errors
/// When the system refuses.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all bytes at an offset, so that threads can share the file.
///
/// # Errors
/// When the system refuses.
#[cfg(windows)]
pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Makes a rename in `dir` survive a power cut, where directories can be synced.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlx_runtime::artifact::{Artifact, GOLDEN, MANIFEST};
    use rayon::prelude::*;

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(path: &Path) -> u64 {
        let mut w = ArtifactWriter::create(path).unwrap();
        assert_eq!(w.append(&[1; 100]).unwrap(), 0);
        let at = w.reserve(1 << 20);
        assert_eq!(at, 128);
        (0..16u64).into_par_iter().for_each(|i| {
            let part = vec![u8::try_from(i).unwrap(); 1 << 16];
            w.write_at(at + (i << 16), &part).unwrap();
        });
        assert_eq!(w.reserve(10), 128 + (1 << 20));
        w.section(MANIFEST, "{}");
        w.section("program:cpu", "module @m {\n}\n");
        w.section(GOLDEN, Vec::new());
        w.finish().unwrap()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dlxa");
        std::fs::write(&path, "an older file").unwrap();
        let len = write(&path);
        assert_eq!(len, std::fs::metadata(&path).unwrap().len());
        let a = Artifact::open(&path).unwrap();
        a.verify_weights().unwrap();
        assert_eq!(a.weights().len(), 128 + (1 << 20) + 10);
        assert_eq!(a.weights()[..100], [1; 100]);
        assert_eq!(a.weights()[100..128], [0; 28]);
        assert_eq!(a.weights()[128 + (3 << 16)], 3);
        assert_eq!(a.text(MANIFEST).unwrap(), "{}");
        assert_eq!(a.section(GOLDEN), Some(&b""[..]));
        assert_eq!(files(dir.path()), ["m.dlxa"]);
    }

    #[test]
    fn same_calls_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.dlxa"), dir.path().join("b.dlxa"));
        write(&a);
        rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| write(&b));
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
    }

    #[test]
    fn an_artifact_without_weights_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dlxa");
        assert_eq!(ArtifactWriter::create(&path).unwrap().finish().unwrap(), PAGE as u64);
        assert!(Artifact::open(&path).unwrap().weights().is_empty());
    }

    #[test]
    fn dropping_the_writer_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dlxa");
        let mut w = ArtifactWriter::create(&path).unwrap();
        w.append(&[1; 1000]).unwrap();
        assert_eq!(files(dir.path()).len(), 1);
        drop(w);
        assert_eq!(files(dir.path()), [""; 0]);
    }

    #[test]
    fn a_refused_table_leaves_the_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.dlxa");
        std::fs::write(&path, "older").unwrap();
        let mut w = ArtifactWriter::create(&path).unwrap();
        w.section("a", "1");
        w.section("a", "2");
        let error = w.finish().unwrap_err();
        assert!(error.to_string().contains("two sections are called `a`"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"older");
        assert_eq!(files(dir.path()), ["m.dlxa"]);
    }

    #[test]
    fn bad_destinations_are_errors_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/m.dlxa");
        let error = ArtifactWriter::create(&missing).unwrap_err().to_string();
        assert!(error.contains("no/such/m.dlxa") && error.contains("help: "), "{error}");
        assert!(ArtifactWriter::create(dir.path()).unwrap_err().to_string().contains("is a directory"));
    }

    #[test]
    fn writing_outside_the_reserved_space_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = ArtifactWriter::create(&dir.path().join("m.dlxa")).unwrap();
        let at = w.reserve(64);
        assert!(w.write_at(at + 1, &[0; 64]).is_err());
        assert!(w.write_at(u64::MAX, &[0; 64]).is_err());
        assert!(w.write_at(at, &[0; 64]).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn the_file_has_ordinary_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, plain) = (dir.path().join("m.dlxa"), dir.path().join("plain"));
        ArtifactWriter::create(&path).unwrap().finish().unwrap();
        std::fs::write(&plain, "").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}
