//! Full-size checkpoints with random weights, in the layout of the public models: what benchmarks and memory tests compile
//! when the real weights are not at hand.
//!
//! Invariant: the bytes depend on shape, seed and layer count alone, not on threads; memory stays at a few MiB whatever the
//! size; a directory appears only when it is complete. The weights look like those of a freshly initialized model (normal,
//! standard deviation 0.02; norms 1), so the text that such a model writes is noise.

mod graph;
pub(crate) mod numbers;
mod onnx;
mod shapes;
mod tokenizer;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use dlx_ir::Error;
use dlx_targets::artifact_writer::write_all_at;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use numbers::{BATCH, CHUNK, Numbers};
use shapes::Tensor;
pub use shapes::{SHAPES, Shape};

/// Largest shard, as the public repositories cut them.
const MAX_SHARD: u64 = 5_000_000_000;
/// What weights are written as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// bf16, as the public repositories have them.
    Safetensors,
    /// A graph with the same numbers as f32 in a file beside it, as PyTorch exports them.
    Onnx,
}

/// Writes the checkpoint `shape` into the new directory `dir`.
///
/// `layers` replaces the number of layers; `progress` is told the bytes written and the total, and stops the work by
/// returning [`ControlFlow::Break`], in which case nothing is left behind.
///
/// # Errors
/// When there is no such shape, `dir` is not new or empty, writing fails, or `progress` stopped the work.
pub fn generate(
    shape: &str,
    dir: &Path,
    seed: u64,
    layers: Option<usize>,
    form: Form,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let Some(found) = SHAPES.iter().find(|s| s.name == shape) else {
        let names = SHAPES.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
        return Err(Error::new(shape, "there is no such shape").help(format!("use one of {names}")));
    };
    let layers = layers.unwrap_or(found.layers);
    if !(1..=1024).contains(&layers) {
        return Err(Error::new(shape, format!("{layers} layers cannot be made")).help("use 1 to 1024"));
    }
    let shape = Shape { layers, ..*found };
    write_directory(&shape, dir, &mut |dir| match form {
        Form::Safetensors => write_weights(&shape, dir, seed, MAX_SHARD, progress),
        Form::Onnx => onnx::write(&shape, dir, seed, progress),
    })
}

/// Writes the texts of a shape and what `weights` writes into a new directory.
fn write_directory(shape: &Shape, dir: &Path, weights: &mut dyn FnMut(&Path) -> io::Result<()>) -> Result<(), Error> {
    let failed = |e: io::Error| {
        let error = Error::new(dir.display(), format!("cannot write the checkpoint: {e}"));
        match e.kind() {
            io::ErrorKind::StorageFull => error.help("free some space, choose another disk, or use fewer layers"),
            io::ErrorKind::Interrupted => error,
            _ => error.help("choose a new directory in a place that can be written"),
        }
    };
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(Error::new(dir.display(), "exists and is not an empty directory")
            .help("remove it or choose another directory"));
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".dlxc-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let temp = builder.tempdir_in(parent).map_err(failed)?;

    for (name, value) in shape.json_files().into_iter().chain(tokenizer::json_files(shape)) {
        let text = serde_json::to_vec_pretty(&value).expect("values made here can always be written");
        std::fs::write(temp.path().join(name), text).map_err(failed)?;
    }
    weights(temp.path()).map_err(failed)?;
    // An empty directory in the way does not stop a rename on Unix; elsewhere it has to go first.
    if dir.is_dir() {
        std::fs::remove_dir(dir).map_err(failed)?;
    }
    std::fs::rename(temp.path(), dir).map_err(failed)
}

fn write_weights(
    shape: &Shape,
    dir: &Path,
    seed: u64,
    max_shard: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> io::Result<()> {
    let shards = split(shape.tensors(), max_shard);
    let total: u64 = shards.iter().flatten().map(Tensor::bytes).sum();
    let mut done = 0;
    let mut weight_map = Map::new();
    for (i, tensors) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        write_shard(&dir.join(&name), tensors, seed, &mut |bytes| {
            done += bytes;
            progress(done, total)
        })?;
        weight_map.extend(tensors.iter().map(|t| (t.name.clone(), Value::from(name.as_str()))));
    }
    if shards.len() > 1 {
        weight_map.sort_keys();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let text = serde_json::to_vec_pretty(&index).expect("values made here can always be written");
        std::fs::write(dir.join("model.safetensors.index.json"), text)?;
    }
    Ok(())
}

/// Cuts the tensors, in order, into groups of at most `max` bytes; a larger tensor is a group of its own.
fn split(tensors: Vec<Tensor>, max: u64) -> Vec<Vec<Tensor>> {
    let mut shards: Vec<Vec<Tensor>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                shard.push(tensor);
                room -= bytes;
            }
            _ => {
                shards.push(vec![tensor]);
                room = max.saturating_sub(bytes);
            }
        }
    }
    shards
}

/// Part of a tensor: which, its first element, its length, its place in the file.
struct Chunk<'a> {
    tensor: &'a Tensor,
    first: usize,
    len: usize,
    offset: u64,
}

fn write_shard(
    path: &Path,
    tensors: &[Tensor],
    seed: u64,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end] }),
        );
    }
    let mut header = serde_json::to_vec(&header).expect("values made here can always be written");
    header.resize(header.len().next_multiple_of(8), b' ');

    let file = File::create(path)?;
    let mut offset = 8 + header.len() as u64;
    file.set_len(offset + end)?;
    write_all_at(&file, &(header.len() as u64).to_le_bytes(), 0)?;
    write_all_at(&file, &header, 8)?;

    let mut chunks = Vec::new();
    for tensor in tensors {
        let elements = tensor.elements();
        for first in (0..elements).step_by(CHUNK) {
            let len = CHUNK.min(elements - first);
            chunks.push(Chunk { tensor, first, len, offset });
            offset += 2 * len as u64;
        }
    }
    for batch in chunks.chunks(BATCH) {
        batch.par_iter().try_for_each_init(Vec::new, |buffer, chunk| {
            fill(chunk, seed, buffer);
            write_all_at(&file, buffer, chunk.offset)
        })?;
        if progress(batch.iter().map(|c| 2 * c.len as u64).sum()).is_break() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
        }
    }
    Ok(())
}

/// The bf16 values of a chunk, little-endian.
fn fill(chunk: &Chunk<'_>, seed: u64, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(2 * chunk.len, 0);
    let numbers = Numbers::new(chunk.tensor, seed);
    let mut counter = chunk.first / 4;
    let (whole, rest) = buffer.as_chunks_mut::<8>();
    for out in whole {
        *out = numbers.four(counter);
        counter += 1;
    }
    rest.copy_from_slice(&numbers.four(counter)[..rest.len()]);
}

#[cfg(test)]
mod tests;
