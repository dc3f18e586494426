//! Where `dlxc run MODEL` keeps what it compiled, and what it remembers of files.
//!
//! A cached artifact is named by everything that it depends on: the compiler, the options, and name, size and time of
//! change of every file in the model directory. A changed model gets a new name; nothing is ever trusted by its age.
//!
//! Beside them is a list of the artifacts whose weights and golden vectors were checked as a whole: by path, size and time of
//! change, checksums of sections, device and program. Without the list, or a directory for it, everything is checked each time.

use std::path::{Path, PathBuf};

use dlx_ir::Error;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::Isa;

use crate::files;
use crate::options::CompileOptions;

/// Path of the cached artifact for a model directory; its directory exists afterwards.
///
/// # Errors
/// When the model cannot be listed or no cache directory can be made.
pub fn path(model: &Path, options: &CompileOptions) -> Result<PathBuf, Error> {
    let unreadable =
        |e: std::io::Error| Error::new(model.display(), format!("cannot be listed: {e}")).help("check its permissions");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(model).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        files.push(format!("{:?} {}", entry.file_name(), stamp(&entry.path()).map_err(unreadable)?));
    }
    files.sort_unstable();
    let absolute = model.canonicalize().map_err(unreadable)?;
    // Another build of the compiler may pack weights differently.
    let compiler = std::env::current_exe().and_then(|exe| stamp(&exe)).unwrap_or_default();
    let key = format!("{compiler} {options:?} {} {}", absolute.display(), files.join("\n"));
    let key = blake3::hash(key.as_bytes()).to_hex();
    let dir = directory();
    std::fs::create_dir_all(&dir).map_err(|e| {
        Error::new(dir.display(), format!("cannot be made: {e}"))
            .help("set DLXC_CACHE to a directory that can be written")
    })?;
    let name = absolute.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    Ok(dir.join(format!("{name}-{}.dlxa", &key[..16])))
}

/// Size and time of change of a file, or of a link without a target.
fn stamp(path: &Path) -> std::io::Result<String> {
    let meta = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path))?;
    let changed = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{} {changed:?}", meta.len()))
}

/// The directory of [`own`], or one in the temporary directory.
fn directory() -> PathBuf {
    own().unwrap_or_else(|| std::env::temp_dir().join("dlxc"))
}

/// `DLXC_CACHE`, or `dlxc` in the user's cache directory; nothing when there is neither.
pub fn own() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("DLXC_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("dlxc")))
        .or_else(|| Some(set("LOCALAPPDATA")?.join("dlxc")))
        .or_else(|| Some(set("HOME")?.join(".cache/dlxc")))
}

/// Name of the list of checked artifacts.
const CHECKED: &str = "checked";
/// Lines that it has at most; the oldest go first.
const MOST_CHECKED: usize = 1000;

/// An artifact in the list of those that were checked.
pub struct Checked {
    list: PathBuf,
    line: String,
}

impl Checked {
    /// Its line, for a load on `place`; none where there is no directory of our own, or the file cannot be asked.
    pub fn of(artifact: &Artifact, place: &str) -> Option<Self> {
        let path = artifact.path().canonicalize().ok()?;
        let (file, program) = (stamp(&path).ok()?, stamp(&std::env::current_exe().ok()?).ok()?);
        let isa = Isa::from_env().ok()?;
        let key = format!("{} {file} {} {program} {isa} {place}", path.display(), artifact.identity());
        Some(Checked { list: own()?.join(CHECKED), line: blake3::hash(key.as_bytes()).to_hex().to_string() })
    }

    /// Whether it was checked before.
    pub fn before(&self) -> bool {
        self.lines().contains(&self.line)
    }

    /// Writes down that it was checked. Where that fails it is checked again the next time.
    pub fn record(self) {
        let mut lines = self.lines();
        lines.retain(|line| *line != self.line);
        lines.drain(..(lines.len() + 1).saturating_sub(MOST_CHECKED));
        let text: String = lines.iter().chain([&self.line]).map(|line| format!("{line}\n")).collect();
        let made = self.list.parent().map_or(Ok(()), std::fs::create_dir_all);
        let _ = made.and_then(|()| files::write(&self.list, text.as_bytes()));
    }

    fn lines(&self) -> Vec<String> {
        // A line and its end are 65 bytes.
        let small = std::fs::metadata(&self.list).is_ok_and(|meta| meta.len() <= 65 * MOST_CHECKED as u64);
        let text = if small { std::fs::read_to_string(&self.list).unwrap_or_default() } else { String::new() };
        text.lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_remembers_and_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: usize| Checked { list: dir.path().join("made/checked"), line: format!("{name:064}") };
        assert!(!of(0).before());
        for name in 0..=MOST_CHECKED {
            of(name).record();
            assert!(of(name).before());
        }
        of(MOST_CHECKED).record();
        assert!(!of(0).before() && of(1).before());
        assert_eq!(of(1).lines().len(), MOST_CHECKED);
    }
}
