//! Where `dlxc run MODEL` keeps what it compiled.
//!
//! A cached artifact is named by everything that it depends on: the compiler, the options, and name, size and time of
//! change of every file in the model directory. A changed model gets a new name; nothing is ever trusted by its age.

use std::path::{Path, PathBuf};

use dlx_ir::Error;

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
