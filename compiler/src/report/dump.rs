//! Reads what `dlxc compile --dump DIR` wrote: the module before the passes, and after each that changed something.
//!
//! Invariant: stages are in the order of the passes and begin with the import, every error names the file, and no more is
//! read than [`MAX_FILE`] bytes of a file and [`MAX_STAGES`] files.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use dlx_ir::{Error, Module};

/// Most bytes of a stage; those of an 8 B model have less than a million.
const MAX_FILE: u64 = 64 << 20;
/// Most stages of a target, and most targets.
const MAX_STAGES: usize = 100;
const MAX_TARGETS: usize = 16;
/// What to do about a directory that cannot be used.
const AGAIN: &str = "write it again with `dlxc compile MODEL -o OUT.dlxa --dump DIR`, into an empty directory";

/// A module as a file has it.
#[derive(Debug)]
pub(super) struct Stage {
    /// Place of the pass in its pipeline; 0 is the import.
    pub(super) number: usize,
    /// The pass.
    pub(super) pass: String,
    /// Name of the file.
    pub(super) file: String,
    /// What it holds.
    pub(super) module: Module,
}

/// The stages of one target.
#[derive(Debug)]
pub(super) struct Dump {
    /// Name of the target's own directory; empty when the dump is of one target.
    pub(super) target: String,
    /// In order.
    pub(super) stages: Vec<Stage>,
}

/// Reads a directory of stages, or one of such directories.
///
/// # Errors
/// When there are none, the first is missing, or one is no IR.
pub(super) fn read(dir: &Path) -> Result<Vec<Dump>, Error> {
    let (files, subdirs) = list(dir)?;
    if !files.is_empty() {
        return Ok(vec![Dump { target: String::new(), stages: stages(dir, files)? }]);
    }
    let mut dumps = Vec::new();
    for sub in subdirs {
        let (files, _) = list(&sub)?;
        if !files.is_empty() {
            let target = sub.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            dumps.push(Dump { target, stages: stages(&sub, files)? });
        }
        if dumps.len() > MAX_TARGETS {
            return Err(Error::new(dir.display(), format!("has dumps of more than {MAX_TARGETS} targets")).help(AGAIN));
        }
    }
    if dumps.is_empty() {
        let message = "holds no stages of a compile, which are files such as 00-import.dlx";
        return Err(Error::new(dir.display(), message).help(AGAIN));
    }
    Ok(dumps)
}

/// A file's place among the passes, and its pass.
type Named = (usize, String, PathBuf);

/// Files whose names are those of stages, and directories; both in order.
fn list(dir: &Path) -> Result<(Vec<Named>, Vec<PathBuf>), Error> {
    let failed = |e: std::io::Error| Error::new(dir.display(), format!("cannot be read: {e}"));
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            dirs.push(path);
        } else if let Some((number, pass)) = stage_name(&name) {
            files.push((number, pass.to_owned(), path));
        }
        if files.len() > MAX_STAGES || dirs.len() > 1000 {
            return Err(Error::new(dir.display(), "holds more than the stages of one compile").help(AGAIN));
        }
    }
    files.sort();
    dirs.sort();
    Ok((files, dirs))
}

/// Number and pass of `07-fuse-qkv.dlx`.
fn stage_name(name: &str) -> Option<(usize, &str)> {
    let (number, pass) = name.strip_suffix(".dlx")?.split_once('-')?;
    let digits = number.len() >= 2 && number.bytes().all(|b| b.is_ascii_digit());
    Some((number.parse().ok().filter(|_| digits)?, pass))
}

fn stages(dir: &Path, files: Vec<Named>) -> Result<Vec<Stage>, Error> {
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let message = format!("both {} and {} are stage {}", pair[0].2.display(), pair[1].2.display(), pair[0].0);
        return Err(Error::new(dir.display(), message).help(AGAIN));
    }
    if files.first().is_none_or(|(number, ..)| *number != 0) {
        let message = "the first stage, 00-import.dlx, is missing: this is a part of a dump";
        return Err(Error::new(dir.display(), message).help(AGAIN));
    }
    files.into_iter().map(|(number, pass, path)| stage(number, pass, &path)).collect()
}

fn stage(number: usize, pass: String, path: &Path) -> Result<Stage, Error> {
    let failed = |e: std::io::Error| Error::new(path.display(), format!("cannot be read: {e}")).help(AGAIN);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)? as u64 > MAX_FILE {
        return Err(Error::new(path.display(), format!("has more than {MAX_FILE} bytes, and a stage has far less")));
    }
    let module = dlx_ir::parse(&text).map_err(|e| {
        let message = format!("is no IR that this dlxc reads: {}", e);
        Error::new(path.display(), message).help(format!("{AGAIN}, with this version"))
    })?;
    let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Stage { number, pass, file, module })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "module @m {\n  graph @g(%x: f32[2]) -> (f32[2]) {\n    return %x\n  }\n}\n";

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn fails(files: &[(&str, &str)]) -> String {
        read(dir(files).path()).unwrap_err().to_string()
    }

    #[test]
    fn stages_are_read_in_order_and_other_files_are_not() {
        let one =
            dir(&[("02-dce.dlx", MODULE), ("00-import.dlx", MODULE), ("dlxc-repro-x.dlx", "no"), ("1-a.dlx", "")]);
        let dumps = read(one.path()).unwrap();
        let found: Vec<_> = dumps[0].stages.iter().map(|s| (s.number, s.pass.as_str(), s.file.as_str())).collect();
        assert_eq!(found, [(0, "import", "00-import.dlx"), (2, "dce", "02-dce.dlx")]);
        let two = dir(&[("wgpu/00-import.dlx", MODULE), ("cpu/00-import.dlx", MODULE), ("empty/x", "")]);
        let targets: Vec<_> = read(two.path()).unwrap().into_iter().map(|d| d.target).collect();
        assert_eq!(targets, ["cpu", "wgpu"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        let none = fails(&[("readme.txt", "x")]);
        assert!(none.contains("no stages of a compile") && none.contains("--dump DIR"), "{none}");
        let half = fails(&[("03-dce.dlx", MODULE)]);
        assert!(half.contains("00-import.dlx, is missing"), "{half}");
        let twice = fails(&[("00-import.dlx", MODULE), ("01-a.dlx", MODULE), ("01-b.dlx", MODULE)]);
        assert!(twice.contains("01-a.dlx") && twice.contains("are stage 1"), "{twice}");
        let cut = fails(&[("00-import.dlx", MODULE), ("01-a.dlx", &MODULE[..60])]);
        assert!(cut.contains("01-a.dlx: is no IR") && cut.contains("line 3"), "{cut}");
        let binary = dir(&[]);
        std::fs::write(binary.path().join("00-import.dlx"), [0xff, 0xfe]).unwrap();
        let binary = read(binary.path()).unwrap_err().to_string();
        assert!(binary.contains("00-import.dlx: cannot be read"), "{binary}");
    }
}
