//! A shape as an ONNX file with its weights beside it, f32.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use dlx_targets::artifact_writer::write_all_at;
use prost::Message;
use rayon::prelude::*;

use super::graph::{self, Stored};
use super::numbers::{BATCH, CHUNK, Numbers};
use super::shapes::Shape;

/// Part of a weight: which, its first element, its length, its place in the file.
struct Chunk<'a> {
    weight: &'a Stored,
    first: usize,
    len: usize,
    offset: u64,
}

/// Writes `model.onnx` and its data file.
pub(super) fn write(
    shape: &Shape,
    dir: &Path,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> io::Result<()> {
    let (theta, eps) = shape.constants();
    let (model, weights) = graph::model(shape, shape.attends(), theta, eps);
    std::fs::write(dir.join("model.onnx"), model.encode_to_vec())?;

    let mut chunks = Vec::new();
    let mut offset = 0;
    for weight in &weights {
        let elements = weight.tensor.elements();
        for first in (0..elements).step_by(CHUNK) {
            let len = CHUNK.min(elements - first);
            chunks.push(Chunk { weight, first, len, offset });
            offset += 4 * len as u64;
        }
    }
    let file = File::create(dir.join(graph::DATA))?;
    file.set_len(offset)?;
    let mut done = 0;
    for batch in chunks.chunks(BATCH) {
        batch.par_iter().try_for_each_init(Vec::new, |buffer, chunk| {
            fill(chunk, seed, buffer);
            write_all_at(&file, buffer, chunk.offset)
        })?;
        done += batch.iter().map(|c| 4 * c.len as u64).sum::<u64>();
        if progress(done, offset).is_break() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
        }
    }
    Ok(())
}

/// The f32 values of a chunk, little-endian: those of the same shape as safetensors.
fn fill(chunk: &Chunk<'_>, seed: u64, buffer: &mut Vec<u8>) {
    let Stored { tensor, turned } = chunk.weight;
    let numbers = Numbers::new(tensor, seed);
    buffer.clear();
    let mut put = |index: usize| {
        // A bf16 number is the upper half of an f32.
        let [low, high] = numbers.get(index);
        buffer.extend([0, 0, low, high]);
    };
    let &[n, k] = tensor.shape.as_slice() else {
        return (chunk.first..chunk.first + chunk.len).for_each(put);
    };
    if !turned {
        return (chunk.first..chunk.first + chunk.len).for_each(put);
    }
    for at in chunk.first..chunk.first + chunk.len {
        put(at % n * k + at / n);
    }
}
