//! Which files hold the weights: `model.safetensors.index.json`, or a directory listing.
//!
//! Invariant: a file name from an index is a plain name in the index's own directory; nothing outside it is ever opened
//! on an index's word. The files themselves are read by the shard reader.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use dlx_ir::Error;
use serde::Deserialize;

use super::json::{self, Pairs};

const MAX_INDEX: u64 = 64 << 20;

/// Tensor name → file name.
pub(super) type Index = BTreeMap<String, String>;

#[derive(Deserialize)]
struct IndexFile {
    weight_map: Pairs<String>,
}

/// Reads an index; every file name in it is safe to join to its directory.
pub(super) fn read(path: &Path) -> Result<Index, Error> {
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

/// The shards that an index names, sorted, all of which must exist.
pub(super) fn files(path: &Path, index: &Index) -> Result<Vec<PathBuf>, Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let names: BTreeSet<&str> = index.values().map(String::as_str).collect();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !dir.join(name).is_file()).collect();
    if !missing.is_empty() {
        let shown = missing.iter().take(4).copied().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > 4 { ", …" } else { "" };
        return Err(Error::new(
            path.display(),
            format!("{} of {} shards are missing: {shown}{more}", missing.len(), names.len()),
        )
        .help("download the missing files into the same directory"));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Compares an index with what the shards really hold.
pub(super) fn check<'a>(
    path: &Path,
    index: &Index,
    found: impl Iterator<Item = (&'a str, Option<&'a Path>)>,
) -> Result<(), Error> {
    let bad = |message: String| {
        Error::new(path.display(), message).help("index and shards belong to different downloads: download both again")
    };
    let mut seen = BTreeSet::new();
    for (tensor, file) in found {
        let file = file.and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or_default();
        match index.get(tensor) {
            Some(listed) if listed == file => {}
            Some(listed) => {
                return Err(bad(format!("tensor `{tensor}` should be in {listed}, but is in {file}")));
            }
            None => return Err(bad(format!("tensor `{tensor}` of {file} is not listed"))),
        }
        seen.insert(tensor);
    }
    match index.iter().find(|(tensor, _)| !seen.contains(tensor.as_str())) {
        Some((tensor, file)) => Err(bad(format!("tensor `{tensor}` should be in {file}, but is not"))),
        None => Ok(()),
    }
}

/// Every `*.safetensors` of a directory without an index, sorted.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |e: std::io::Error| Error::new(dir.display(), format!("cannot be listed: {e}"));
    let mut files = Vec::new();
    let mut pickled = false;
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => files.push(path),
            Some("bin" | "pt" | "pth") => pickled = true,
            _ => {}
        }
    }
    files.sort();
    if files.is_empty() {
        let error = Error::new(dir.display(), "there are no *.safetensors files");
        return Err(error.help(if pickled {
            "PyTorch pickles are not read: load the model with transformers and save it with safe_serialization=True"
        } else {
            "download the weights (model.safetensors, or all shards and model.safetensors.index.json)"
        }));
    }
    Ok(files)
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    name.ends_with(".safetensors")
        && !name.contains(['\\', '\0', ':'])
        && matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
}
