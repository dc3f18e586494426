//! Runs the last stage of a pipeline as an artifact would: its weights packed into a file, on a target's executor.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dlx_ir::layout::{BLOCK, QuantTile, TILE_COLUMNS, tile_bytes};
use dlx_ir::{DType, Error, Evaluator, Module, Tensor, VerifiedModule, WeightDef};
use dlx_runtime::cpu::{CpuExecutor, CpuOptions, PackedWeight, unpack_row};
use dlx_runtime::exec::{Executor, RowStats, Span};
use dlx_runtime::mapped::Mapped;
use dlx_runtime::wgpu::{WgpuExecutor, WgpuOptions};
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_targets::{Product, Settings, Target, WeightSource, emit, place};
use half::f16;
use serde::Serialize;

use super::call::{Call, Run, Seen, Sizes, role};
use super::compare::sources;
use super::probe::{Probe, argument};
use super::source::Whole;

/// A program whose weights lie in a file.
pub struct Emitted {
    /// The program.
    pub module: VerifiedModule,
    file: Arc<Mapped>,
    section: Range<usize>,
    /// The file, for as long as it is mapped.
    _writer: ArtifactWriter,
}

/// A packed number that is not what its expression says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WrongByte {
    /// The weight's line.
    pub weight: String,
    /// Tensors of the checkpoint that it is made of.
    pub sources: Vec<String>,
    /// Row and column.
    pub at: [usize; 2],
    /// The byte of the weight section, and what it holds: a number, or the code, the scale or the minimum that make one.
    pub byte: u64,
    /// See `byte`.
    pub holds: &'static str,
    /// What the expression says, and what is packed.
    pub expected: f32,
    /// See `expected`.
    pub found: f32,
}

impl Emitted {
    /// The packed weights.
    pub fn section(&self) -> &[u8] {
        &self.file.bytes()[self.section.clone()]
    }
}

/// Packs the weights of a stage that is ready for it.
///
/// # Errors
/// What emission says of a weight.
pub fn pack(module: &VerifiedModule, weights: &dyn WeightSource) -> Result<Emitted, Error> {
    let failed = |e: std::io::Error| Error::new("temporary directory", e.to_string());
    let dir = tempfile::tempdir().map_err(failed)?;
    let mut writer = ArtifactWriter::create(&dir.path().join("stage.dlxa"))?;
    let placed = place(module, &[], &mut |bytes| writer.reserve(bytes))?;
    let emission = emit(module, placed, weights, &writer, &AtomicBool::new(false), &|_, _| {})?;
    let (file, section) = writer.map_weights()?;
    Ok(Emitted { module: emission.module, file, section, _writer: writer })
}

/// Compares every number of a section of packed weights with what the stage's expression for it says. Returns how many there
/// are, and the first that is wrong.
///
/// # Errors
/// A weight that cannot be evaluated.
pub fn first_wrong(
    stage: &Module,
    weights: &dyn WeightSource,
    packed: &Module,
    section: &[u8],
) -> Result<(usize, Option<WrongByte>), Error> {
    let source = Whole { module: stage, rows: weights };
    let mut evaluator = Evaluator::new(stage, &source, 1);
    let mut count = 0;
    for (_, stored) in packed.weights.iter() {
        let WeightDef::Stored { offset, bytes, .. } = stored.def else { continue };
        let place = || Error::new(packed.weight_text(stored), "is not in the stage that was packed");
        let id = stage.weight(&stored.name).ok_or_else(place)?;
        let expected = evaluator.weight(id).map_err(|e| Error::new(stage.weight_text(&stage.weights[id]), e))?;
        let expected = expected.floats().map_err(|e| Error::new(&stored.name, e))?;
        let bytes = usize::try_from(offset).ok().and_then(|at| section.get(at..)?.get(..usize::try_from(bytes).ok()?));
        let bytes = bytes.ok_or_else(place)?;
        let wrong = match stored.ty.shape().as_deref() {
            Some(&[n, k]) => {
                let matrix = PackedWeight::new(stored.ty.dtype, n, k, bytes).ok_or_else(place)?;
                wrong_row(&matrix, bytes, expected)
            }
            _ => {
                let numbers = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                let wrong = numbers.zip(expected).position(|(a, b)| a != *b);
                wrong.map(|i| Wrong { at: [i, 0], byte: 4 * i, holds: "number", found: read_f32(bytes, 4 * i) })
            }
        };
        count += expected.len();
        if let Some(Wrong { at, byte, holds, found }) = wrong {
            let width = stored.ty.shape().and_then(|s| s.get(1).copied()).unwrap_or(1);
            let (expected, weight) = (expected[at[0] * width + at[1]], stage.weight_text(&stage.weights[id]));
            let (sources, byte) = (sources(stage, id), offset + byte as u64);
            return Ok((count, Some(WrongByte { weight, sources, at, byte, holds, expected, found })));
        }
    }
    Ok((count, None))
}

struct Wrong {
    at: [usize; 2],
    byte: usize,
    holds: &'static str,
    found: f32,
}

fn read_f32(bytes: &[u8], at: usize) -> f32 {
    bytes.get(at..at + 4).map_or(f32::NAN, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The first number of a packed matrix that is not what it should be, and the byte that is wrong.
fn wrong_row(matrix: &PackedWeight<'_>, bytes: &[u8], expected: &[f32]) -> Option<Wrong> {
    let (k, mut row) = (matrix.k(), vec![0.0; matrix.k()]);
    let (r, c) = expected.chunks(k.max(1)).enumerate().find_map(|(r, expected)| {
        unpack_row(matrix, r, &mut row);
        Some((r, row.iter().zip(expected).position(|(a, b)| a != b)?))
    })?;
    let (tile, column) = (r / TILE_COLUMNS * tile_bytes(matrix.dtype(), k)?, r % TILE_COLUMNS);
    let wrong = |holds, at: usize| Some(Wrong { at: [r, c], byte: tile + at, holds, found: row[c] });
    let DType::Quant(format) = matrix.dtype() else {
        return wrong("number", (c * TILE_COLUMNS + column) * matrix.dtype().size()?);
    };
    let layout = QuantTile::new(format, k)?;
    let group = BLOCK / layout.groups;
    let slot = c / group;
    let numbers = slot * group..((slot + 1) * group).min(k);
    let entry = |table: usize| layout.entry(table, slot, column);
    let half = |at: usize| bytes.get(tile + at..tile + at + 2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
    let (scale, min) = (half(entry(layout.scales))?, layout.mins.map_or(Some(0.0), |at| half(entry(at)))?);
    // What no code gives with this scale is the fault of the scale, and of the minimum where all are off by as much.
    let code = |e: f32| (e - min) / scale;
    let is_code = |e: f32| (code(e) - code(e).round()).abs() < 1e-3 && code(e).abs() < 256.0;
    let expected = &expected[r * k..][numbers.clone()];
    let off = || expected.iter().zip(&row[numbers.clone()]).map(|(e, found)| e - found);
    let first = off().next().unwrap_or(0.0);
    match layout.mins {
        _ if expected.iter().all(|e| is_code(*e)) => wrong("code", layout.code(format.bits, c, column)),
        Some(at) if off().all(|o| (o - first).abs() <= 1e-3 * first.abs()) => wrong("minimum", entry(at)),
        _ => wrong("scale", entry(layout.scales)),
    }
}

/// Loads a packed program on the executor of its target.
///
/// # Errors
/// The executor does not take it, or there is no device.
pub fn load(
    target: &Target,
    emitted: &Emitted,
    settings: &Settings,
    device: Option<&str>,
) -> Result<Box<dyn Executor>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("target {}", target.name), e.to_string());
    match (target.product)(&emitted.module, settings)? {
        Product::Program => {
            let options = CpuOptions { threads: 1, isa: None };
            let (file, section) = (emitted.file.clone(), emitted.section.clone());
            let executor = CpuExecutor::new(&emitted.module, file, section, options).map_err(|e| failed(&e))?;
            Ok(Box::new(executor))
        }
        Product::Planned { plan, .. } => {
            let options = WgpuOptions { device: device.map(str::to_owned) };
            let executor = WgpuExecutor::new(*plan, &emitted.file, emitted.section.clone(), &options);
            Ok(Box::new(executor.map_err(|e| failed(&e))?))
        }
    }
}

/// What an executor computes of what the evaluator is given: the values of every step, and statistics and logits after it.
///
/// # Errors
/// What the executor says.
pub fn run(probe: &Probe, module: &Module, executor: &mut dyn Executor, sizes: &Sizes) -> Result<Run, Error> {
    let failed = |e: dlx_runtime::exec::ExecError| Error::new("executor", e.to_string());
    let mut run = Run::default();
    for graph in module.graphs.iter().filter(|g| role(g).0 == "step") {
        let rows = role(graph).1.unwrap_or(probe.rows);
        for turn in 0..if executor.max_seq() >= 2 * rows { 2 } else { 1 } {
            let call = Call { role: "step".into(), rows, step: rows, turn };
            let given = |i: usize| argument(probe, module, graph, graph.params[i], &call);
            let (ids, pos) = (given(0)?, given(1)?);
            let (ids, pos) = (ids.ints().unwrap_or_default(), pos.ints().unwrap_or_default());
            let mut see = |name: &str, numbers: &[f32]| {
                let shape = graph.values.find(name).and_then(|v| graph.values[v].ty.shape());
                // What a step leaves for the head is no value of the graph.
                let Some(shape) = shape.filter(|s| s.iter().product::<usize>() == numbers.len()) else { return };
                let tensor = Rc::new(Tensor::f32(&shape, numbers.to_vec()));
                run.values.push(Seen { call: call.clone(), name: name.to_owned(), tensor });
            };
            let span = Span::new(ids, pos, turn * rows);
            if !executor.observe(&[span], &mut see).map_err(failed)? {
                return Err(Error::new("executor", "nobody can look into its steps"));
            }
            for size in sizes.get("logits").into_iter().flatten() {
                let chosen: Vec<usize> = (0..*size).map(|r| r % rows).collect();
                let mut logits = vec![0.0; size * executor.vocab()];
                executor.logits(&chosen, &mut logits).map_err(failed)?;
                let call = Call { role: "logits".into(), rows: *size, ..call.clone() };
                run.results.insert(call, vec![Rc::new(Tensor::f32(&[*size, executor.vocab()], logits))]);
            }
            for size in sizes.get("head").into_iter().flatten() {
                let chosen: Vec<usize> = (0..*size).map(|r| r % rows).collect();
                let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; *size];
                executor.head(&chosen, &mut stats).map_err(failed)?;
                let numbers = stats.iter().flat_map(|s| [s.prob, s.margin, s.entropy]).collect();
                let best = Tensor::i32(&[*size], stats.iter().map(|s| s.best).collect());
                let call = Call { role: "head".into(), rows: *size, ..call.clone() };
                run.results.insert(call, vec![Rc::new(best), Rc::new(Tensor::f32(&[*size, 3], numbers))]);
            }
        }
    }
    Ok(run)
}
