//! A read-only memory-mapped file: the bytes of weights, never copied.
//!
//! Invariant: the mapping covers exactly the bytes that the file had when it was opened and is never writable. All
//! `unsafe` of file access is here. It deliberately does not lock the file: whoever truncates a mapped file in place makes
//! the next access to the missing pages fail (`SIGBUS` on Unix). Everything in this workspace replaces files by renaming
//! a finished one over them, which leaves an existing mapping intact.
#![allow(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

/// Size of a huge page on the common machines, the most that one fault maps.
#[cfg(unix)]
const HUGE: usize = 2 << 20;

/// A file mapped read-only. Share it with `Arc<Mapped>`.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
}

impl Mapped {
    /// Maps the whole file.
    ///
    /// # Errors
    /// When the path is not a readable regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is read-only and every reader treats its bytes as untrusted plain data (`u8`), so a file that
        // changes under us can change results but breaks no invariant of a Rust type. Truncation in place is the one
        // remaining hazard; it ends the process by a signal (see the top of this file) and cannot corrupt memory.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Mapped { map })
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

    /// Drops the pages of `range`, and a few around it, from this process's resident memory; reading them again reads the
    /// file again. A hint: failures are ignored, bytes outside the file too.
    pub fn release(&self, range: Range<usize>) {
        // A fault maps whatever the page cache holds around it, up to a huge page; that has to go too, or a file read in
        // pieces stays resident at their seams.
        #[cfg(unix)]
        if let Some(range) =
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

    #[test]
    fn an_empty_file_maps_and_a_directory_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Mapped::open(&path).unwrap().bytes(), b"");
        assert!(Mapped::open(dir.path()).is_err());
        assert!(Mapped::open(Path::new("no such file")).is_err());
    }
}
