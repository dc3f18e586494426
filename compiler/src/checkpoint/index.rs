//! Which files hold the weights: `model.safetensors`, those of `model.safetensors.index.json`, or a directory listing.
//!
//! Invariant: a file name from an index is a plain name in the index's own directory; nothing outside it is ever opened
//! on an index's word. What is passed over is said in a note; where two sources could both be meant, neither is taken.
//! The files themselves are read by the shard reader.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use dlx_ir::Error;
use serde::Deserialize;

use super::json::{self, Pairs};
use super::kinds;

const MAX_INDEX: u64 = 64 << 20;

const SINGLE: &str = "model.safetensors";

/// Tensor name → file name.
pub(super) type Index = BTreeMap<String, String>;

#[derive(Deserialize)]
struct IndexFile {
    weight_map: Pairs<String>,
}

/// Reads an index; every file name in it is safe to join to its directory.
fn read(path: &Path) -> Result<Index, Error> {
    let bytes = json::read(path, MAX_INDEX)?.unwrap_or_default();
    let Pairs(pairs) = json::parse::<IndexFile>(path, &bytes)?.weight_map;
    let mut index = Index::new();
    for (tensor, file) in pairs {
        if !is_plain_name(&file) {
            return Err(Error::new(path.display(), format!("tensor `{tensor}` is said to be in {file:?}"))
                .help("shards must be .safetensors files in the same directory: download the index again"));
        }
        if index.contains_key(&tensor) {
            return Err(Error::new(path.display(), format!("tensor `{tensor}` is listed twice"))
                .help("download the index again"));
        }
        index.insert(tensor, file);
    }
    Ok(index)
}

/// The weight files of a directory.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// In the order in which they are read.
    pub(super) files: Vec<PathBuf>,
    /// The index that counts, if one does.
    pub(super) index: Option<(PathBuf, Index)>,
    /// A whole model beside the shards, which must hold the same.
    pub(super) rival: Option<PathBuf>,
    /// What was passed over.
    pub(super) notes: Vec<String>,
}

/// Chooses the weight files of a directory. What is there, and what counts:
///
/// | index | `model.safetensors` | counts |
/// |---|---|---|
/// | – | yes | `model.safetensors` alone, as with other readers |
/// | – | – | the one complete set of `NAME-i-of-n.safetensors`, else every weight file, of which no two may have a name in common |
/// | all its shards are here | – | the shards; of two copies of a tensor the one that the index names |
/// | all its shards are here | yes | the shards, if the single file holds the same; else neither, since readers differ: transformers takes the single file, vLLM the index |
/// | none of its shards is here | yes | `model.safetensors` |
/// | some of its shards are here | yes | neither |
pub(super) fn choose(dir: &Path) -> Result<Chosen, Error> {
    let (single, path) = (dir.join(SINGLE), dir.join("model.safetensors.index.json"));
    let index = if is_there(&path) { Some(read(&path)?) } else { None };
    let all = weight_files(dir)?;
    let Some(index) = index else {
        return match all.as_slice() {
            [] => Err(kinds::no_weights(dir)),
            _ if is_there(&single) => Ok(only(single, &all)),
            _ => listed(dir, all),
        };
    };
    if index.is_empty() {
        return Err(Error::new(path.display(), "lists no tensors").help("download the index again"));
    }
    let names: BTreeSet<&str> = index.values().map(String::as_str).collect();
    let (there, missing): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| is_there(&dir.join(name)));
    let rival = is_there(&single) && !names.contains(SINGLE);
    if !missing.is_empty() {
        if rival && there.is_empty() {
            let mut chosen = only(single, &all);
            chosen.notes.push(format!(
                "model.safetensors.index.json lists {} files that are not here: it is not read",
                missing.len()
            ));
            return Ok(chosen);
        }
        if rival {
            return Err(ambiguous(&path, &format!("lists {} files that are not here, and {SINGLE} is", missing.len())));
        }
        let message = format!("{} of {} shards are missing: {}", missing.len(), names.len(), some(&missing));
        return Err(Error::new(path.display(), message).help("download the missing files into the same directory"));
    }
    let files: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
    let mut notes = Vec::new();
    let others = all.iter().filter(|f| !(files.contains(f) || rival && **f == single));
    passed_over(&mut notes, others, "model.safetensors.index.json");
    let rival = rival.then_some(single);
    Ok(Chosen { files, rival, notes, index: Some((path, index)) })
}

/// The error for a directory in which two sets of weights lie.
pub(super) fn ambiguous(place: &Path, what: &str) -> Error {
    Error::new(place.display(), format!("{what}: which of them is the model cannot be told"))
        .help("compare with the file list of the model's repository, and move away the files that it does not have")
}

/// Where an index and the tensors of its shards meet.
pub(super) fn check(
    path: &Path,
    index: &Index,
    elsewhere: &BTreeMap<String, String>,
    has: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let Some((tensor, file)) = index.iter().find(|(tensor, _)| !has(tensor)) else { return Ok(()) };
    let message = match elsewhere.get(tensor) {
        Some(found) => format!("tensor `{tensor}` should be in {file}, but is in {found}"),
        None => format!("tensor `{tensor}` should be in {file}, but is not"),
    };
    Err(Error::new(path.display(), message).help("index and shards belong to different downloads: download both again"))
}

/// A single file; all others are passed over.
fn only(single: PathBuf, all: &[PathBuf]) -> Chosen {
    let mut notes = Vec::new();
    passed_over(&mut notes, all.iter().filter(|f| **f != single), SINGLE);
    Chosen { files: vec![single], notes, ..Chosen::default() }
}

/// The files of a directory that has neither the usual single file nor an index.
fn listed(dir: &Path, all: Vec<PathBuf>) -> Result<Chosen, Error> {
    let beside = |p: &PathBuf| ["adapter_", "optimizer"].iter().any(|s| file_name(p).starts_with(s));
    let (beside, models): (Vec<_>, Vec<_>) = all.into_iter().partition(beside);
    let (models, beside) = if models.is_empty() { (beside, models) } else { (models, beside) };
    let mut sets: BTreeMap<(String, u64), BTreeMap<u64, PathBuf>> = BTreeMap::new();
    for path in &models {
        if let Some((name, i, n)) = numbered(file_name(path)) {
            sets.entry((name.to_owned(), n)).or_default().insert(i, path.clone());
        }
    }
    let mut notes = Vec::new();
    match sets.len() {
        0 => {
            passed_over(&mut notes, beside.iter(), "the model's own file");
            let names: Vec<_> = models.iter().map(|p| file_name(p)).collect();
            notes.push(format!("there is no index: the weights are those of {}", some(&names)));
            Ok(Chosen { files: models, notes, ..Chosen::default() })
        }
        1 => {
            let ((name, n), found) = sets.into_iter().next().expect("there is one");
            if found.len() as u64 != n {
                let missing: Vec<_> = (1..=n).filter(|i| !found.contains_key(i)).take(5).collect();
                let missing: Vec<_> = missing.iter().map(|i| format!("{name}-{i:05}-of-{n:05}.safetensors")).collect();
                let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
                let message =
                    format!("{} of {n} shards are missing: {}", n.saturating_sub(found.len() as u64), some(&missing));
                return Err(
                    Error::new(dir.display(), message).help("download the missing files into the same directory")
                );
            }
            let files: Vec<PathBuf> = found.into_values().collect();
            passed_over(&mut notes, models.iter().chain(&beside).filter(|p| !files.contains(p)), "the set of shards");
            notes.push(format!("there is no index: the weights are those of the {n} shards {name}-…"));
            Ok(Chosen { files, notes, ..Chosen::default() })
        }
        n => Err(ambiguous(dir, &format!("{n} sets of shards lie here without an index"))),
    }
}

/// `NAME-00001-of-00003.safetensors` as its three parts.
fn numbered(file: &str) -> Option<(&str, u64, u64)> {
    let (rest, n) = file.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (name, i) = rest.rsplit_once('-')?;
    Some((name, i.parse().ok()?, n.parse().ok()?))
}

/// Every `*.safetensors` of a directory, sorted.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable =
        |e: std::io::Error| Error::new(dir.display(), format!("cannot be listed: {e}")).help("check its permissions");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn passed_over<'a>(notes: &mut Vec<String>, files: impl Iterator<Item = &'a PathBuf>, counts: &str) {
    let names: Vec<_> = files.map(|p| file_name(p)).collect();
    if !names.is_empty() {
        notes.push(format!("{} left unread: {counts} says which weights count", some(&names)));
    }
}

/// The first few of some names.
pub(super) fn some(names: &[&str]) -> String {
    let shown = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 4 { format!("{shown}, …") } else { shown }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// Whether a name is in its directory, be it a link to nothing.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    name.ends_with(".safetensors")
        && !name.contains(|c: char| matches!(c, '\\' | ':') || c.is_control())
        && matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
}
