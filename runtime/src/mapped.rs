//! The bytes of a file, mapped read-only and never copied, or read into memory once.
//!
//! The contract: whoever maps a file promises not to change it while it is in use. Everything in this workspace replaces files by
//! renaming a finished one over them, which leaves an existing mapping intact. A file that is overwritten in place gives other
//! results; one that is cut short makes the next access to the missing pages fail (`SIGBUS` on Unix), which no library can
//! catch for its host. [`Mapped::intact`] finds that out first, for the price of one system call, and executors ask it before
//! every step; only a cut during a step is left. Where even that matters, [`Mapped::read`] copies the file and depends on
//! nothing afterwards.
//!
//! Invariant: the bytes are exactly those that the file had when it was opened and are never writable. All `unsafe` of file
//! access is here.
#![allow(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

/// Size of a huge page on the common machines, the most that one fault maps.
#[cfg(unix)]
const HUGE: usize = 2 << 20;

/// Size of the smallest page.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// A file's bytes, page-aligned. Share it with `Arc<Mapped>`.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    /// The file behind the map; none when its bytes were read.
    file: Option<File>,
}

impl Mapped {
    /// Maps the whole file.
    ///
    /// # Errors
    /// When the path is not a readable regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = regular(path)?;
        // SAFETY: the map is read-only and every reader treats its bytes as untrusted plain data (`u8`), so a file that
        // changes under us can change results but breaks no invariant of a Rust type. Truncation in place is the one
        // remaining hazard; it ends the process by a signal (see the top of this file) and cannot corrupt memory.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Mapped { map, file: Some(file) })
    }

    /// Reads the whole file into memory, so that nothing that happens to it later matters. Into huge pages where Linux
    /// has them for those who ask: fewer address translations when all weights are read for a few rows.
    ///
    /// # Errors
    /// When the path is not a readable regular file, or memory does not hold it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = regular(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut map = MmapMut::map_anon(len)?;
        // A hint: a system that has none, or none left, gives common pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        file.read_exact(&mut map)?;
        Ok(Mapped { map: map.make_read_only()?, file: None })
    }

    /// Whether the file still has all bytes that were mapped; always true when they were read.
    ///
    /// # Errors
    /// When it was cut short, or cannot be asked any more.
    pub fn intact(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (len, now) = (self.map.len() as u64, file.metadata()?.len());
        if now >= len {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the file was cut from {len} to {now} bytes while it was in use; load it again"),
        ))
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that `range` will be read soon. A hint: failures are ignored, bytes outside the file too.
    pub fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(range) = self.clamp(range) {
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Whether the system does not hold the page in the middle of `range`, so that reading it waits for the disk. Where the
    /// system does not tell, or the bytes were read, nothing is absent.
    pub fn is_absent(&self, range: Range<usize>) -> bool {
        #[cfg(target_os = "linux")]
        {
            unsafe extern "C" {
                fn mincore(at: *mut std::ffi::c_void, len: usize, held: *mut u8) -> std::ffi::c_int;
            }
            let Some(range) = self.clamp(range).filter(|_| self.file.is_some()) else { return false };
            let mut held = 1u8;
            let page = self.map.as_ptr().wrapping_add(range.start.midpoint(range.end) & !(PAGE - 1));
            // SAFETY: the page is one of the map, whose start is the start of a page, and what is told of one page fills one
            // byte. Where pages are larger the call may fail, and `held` stays as it is.
            let failed = unsafe { mincore(page.cast_mut().cast(), 1, &raw mut held) };
            failed == 0 && held & 1 == 0
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = range;
            false
        }
    }

    /// Drops the pages of `range`, and a few around it, from this process's resident memory; reading them again reads the
    /// file again. A hint: failures are ignored, bytes outside the file too.
    pub fn release(&self, range: Range<usize>) {
        // A fault maps whatever the page cache holds around it, up to a huge page; that has to go too, or a file read in
        // pieces stays resident at their seams.
        #[cfg(unix)]
        if self.file.is_some()
            && let Some(range) =
                self.clamp(range.start & !(HUGE - 1)..range.end.checked_next_multiple_of(HUGE).unwrap_or(usize::MAX))
        {
            // SAFETY: `MADV_DONTNEED` is only unsafe where it discards the sole copy of the data. These pages are a
            // shared read-only view of a file and were never written, so a later read finds the same bytes.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    #[cfg(unix)]
    fn clamp(&self, range: Range<usize>) -> Option<Range<usize>> {
        let end = range.end.min(self.map.len());
        (range.start < end).then_some(range.start..end)
    }
}

fn regular(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::Mapped;
    use std::path::Path;

    #[test]
    fn released_bytes_read_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        mapped.prefetch(0..usize::MAX);
        assert_eq!(mapped.bytes(), bytes);
        mapped.release(5..70_000);
        mapped.release(99_999..1 << 40);
        mapped.release(1 << 40..1 << 41);
        assert_eq!(mapped.bytes(), bytes);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn reading_in_released_pieces_stays_small() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        let before = resident();
        let mut start = 0;
        for piece in mapped.bytes().chunks((1 << 20) - 999) {
            assert!(piece.iter().all(|b| *b == 0));
            mapped.release(start..start + piece.len());
            start += piece.len();
        }
        assert!(resident() < before + 16, "{} MiB, {before} before", resident());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_read_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        assert!(mapped.bytes().iter().all(|b| *b == 7));
        assert!(!mapped.is_absent(5..usize::MAX) && !mapped.is_absent(1 << 20..1 << 21));
        assert!(!Mapped::read(&path).unwrap().is_absent(0..1 << 20));
        // A hole of a file that nobody has read is in no memory.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();
        assert!(Mapped::open(&path).unwrap().is_absent(32 << 20..64 << 20));
    }

    #[test]
    fn a_file_that_was_cut_is_noticed_unless_it_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7u8; 10_000]).unwrap();
        let (mapped, read) = (Mapped::open(&path).unwrap(), Mapped::read(&path).unwrap());
        assert!(mapped.intact().is_ok() && read.bytes() == mapped.bytes());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
        assert!(mapped.intact().unwrap_err().to_string().contains("from 10000 to 5000"));
        assert!(read.intact().is_ok() && read.bytes() == [7; 10_000]);
        assert!(Mapped::read(dir.path()).is_err());
    }

    #[test]
    fn an_empty_file_maps_and_a_directory_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Mapped::open(&path).unwrap().bytes(), b"");
        assert_eq!(Mapped::read(&path).unwrap().bytes(), b"");
        assert!(Mapped::open(dir.path()).is_err());
        assert!(Mapped::open(Path::new("no such file")).is_err());
    }
}
