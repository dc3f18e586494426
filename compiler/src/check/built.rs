//! What two builds are compared by: IR files, directories of dumps, artifacts and checkpoints.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dlx_ir::{Error, Tensor, VerifiedModule, parse};
use dlx_runtime::artifact::{Artifact, program_section};
use dlx_runtime::exec::{ExecError, Executor, Span};
use dlx_runtime::manifest::Manifest;
use dlx_runtime::{LoadOptions, load_executor, read_manifest};
use serde::Serialize;

use super::diff::{Changes, Computed};
use crate::checkpoint::Checkpoint;
use crate::synth::numbers::mix;

/// Elements of a tensor that are read at a time.
const CHUNK: usize = 1 << 20;
/// Most rows of the step in which two artifacts are compared.
const ROWS: usize = 64;

/// Something that was built.
pub enum Built {
    /// IR text.
    Module(Box<VerifiedModule>),
    /// Files of `--dump`, by stage.
    Dumps(Vec<(String, PathBuf)>),
    /// An artifact of a text generator.
    Artifact(Box<Compiled>),
    /// A checkpoint.
    Checkpoint(Box<Checkpoint>),
}

/// An artifact and what it says of itself.
pub struct Compiled {
    artifact: Artifact,
    manifest: Manifest,
}

impl Built {
    /// Opens whatever lies there.
    ///
    /// # Errors
    /// It is none of these, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let said = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
        if path.extension().is_some_and(|e| e == "dlx") {
            return Ok(Built::Module(Box::new(read_ir(path)?)));
        }
        if path.join("config.json").is_file() {
            return Ok(Built::Checkpoint(Box::new(Checkpoint::open(path)?)));
        }
        if !path.is_dir() {
            let artifact = Artifact::open(path).map_err(|e| said(&e))?;
            let manifest = read_manifest(&artifact).map_err(|e| said(&e))?;
            return Ok(Built::Artifact(Box::new(Compiled { artifact, manifest })));
        }
        let mut files = Vec::new();
        dumps(path, "", &mut files)?;
        files.sort();
        if files.is_empty() {
            return Err(Error::new(path.display(), "holds neither a config.json nor files of --dump (*.dlx)")
                .help("give an IR file, a directory of --dump, an artifact or a checkpoint"));
        }
        Ok(Built::Dumps(files))
    }

    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Built::Module(_) => "an IR file",
            Built::Dumps(_) => "a directory of dumps",
            Built::Artifact(_) => "an artifact",
            Built::Checkpoint(_) => "a checkpoint",
        }
    }
}

/// Reads a module from IR text; `-` is standard input.
///
/// # Errors
/// Text that is not IR or not valid.
pub fn read_ir(file: &Path) -> Result<VerifiedModule, Error> {
    let place = file.display().to_string();
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|t| text = t)
    };
    read.map_err(|e| Error::new(&place, format!("cannot be read: {e}")))?;
    let module = parse(&text).map_err(|e| Error { place: format!("{place}: {}", e.place), ..e })?;
    VerifiedModule::new(module).map_err(|errors| {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Error::new(place, format!("is not valid IR:\n  {}", list.join("\n  ")))
    })
}

/// Files of `--dump`; several targets have a directory each.
fn dumps(dir: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::new(dir.display(), format!("cannot be read: {e}"));
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_stem().and_then(|n| n.to_str()) else { continue };
        if path.extension().is_some_and(|e| e == "dlx") {
            files.push((format!("{prefix}{name}"), path));
        } else if prefix.is_empty() && path.is_dir() {
            dumps(&path, &format!("{name}/"), files)?;
        }
    }
    Ok(())
}

/// The program of an artifact for a target.
///
/// # Errors
/// There is none, or it is not valid.
pub fn program(artifact: &Artifact, target: &str) -> Result<VerifiedModule, Error> {
    let place = || format!("{}: {}", artifact.path().display(), program_section(target));
    let text = artifact.text(&program_section(target)).map_err(|e| {
        let targets = read_manifest(artifact).map(|m| m.targets.join(", ")).unwrap_or_default();
        Error::new("", e.to_string()).help(format!("it was compiled for {targets}"))
    })?;
    let module = parse(text).map_err(|e| Error::new(place(), e.to_string()))?;
    VerifiedModule::new(module).map_err(|e| Error::new(place(), Error::first_of(e).to_string()))
}

impl Compiled {
    /// Its program for a target.
    ///
    /// # Errors
    /// There is none, or it is not valid.
    pub fn program(&self, target: &str) -> Result<VerifiedModule, Error> {
        program(&self.artifact, target)
    }

    /// What the manifests say differently: options, pipelines, policy.
    pub fn manifest_changes(&self, other: &Compiled) -> Option<Changes> {
        let lines = |m: &Manifest| -> Vec<String> {
            let said = serde_json::json!({"options": m.options, "pipelines": m.pipelines, "policy": m.policy});
            format!("{said:#}").lines().map(|l| l.trim().trim_end_matches(',').to_owned()).collect()
        };
        let (a, b) = (lines(&self.manifest), lines(&other.manifest));
        let removed: Vec<_> = a.iter().filter(|l| !b.contains(l)).map(|l| format!("- {l}")).collect();
        let added: Vec<_> = b.iter().filter(|l| !a.contains(l)).map(|l| format!("+ {l}")).collect();
        let (place, counts) = ("manifest".to_owned(), (removed.len(), added.len()));
        let lines: Vec<String> = removed.into_iter().chain(added).collect();
        (!lines.is_empty()).then_some(Changes { place, removed: counts.0, added: counts.1, lines })
    }
}

/// What an artifact computes of seeded tokens in its first step.
///
/// # Errors
/// It does not load, or no device runs it.
pub fn observe(built: &Compiled, target: &str, seed: u64) -> Result<Computed, Error> {
    let said = |e: &dyn std::fmt::Display| Error::new(built.artifact.path().display(), e.to_string());
    let options = LoadOptions { target: Some(target.to_owned()), ..LoadOptions::default() };
    let mut executor = load_executor(&built.artifact, &options).map_err(|e| said(&e))?;
    let rows = step_rows(&*executor, ROWS);
    let mut found = Computed { values: step(&mut *executor, rows, seed).map_err(|e| said(&e))?, ..Computed::default() };
    let mut logits = vec![0.0; rows * executor.vocab()];
    for (row, out) in logits.chunks_mut(executor.vocab()).enumerate() {
        executor.logits(&[row], out).map_err(|e| said(&e))?;
    }
    found.logits = Some(Rc::new(Tensor::f32(&[rows, executor.vocab()], logits)));
    Ok(found)
}

/// Rows of the largest step of at most so many, or of the smallest.
pub fn step_rows(executor: &dyn Executor, most: usize) -> usize {
    let buckets = executor.step_buckets();
    let largest = buckets.iter().copied().filter(|b| *b <= most).max().or(buckets.first().copied());
    largest.unwrap_or(1).min(executor.max_seq())
}

/// Values of a step, by name, in order.
pub type Values = Vec<(String, Rc<Tensor>)>;

/// What a step of so many seeded tokens computes.
///
/// # Errors
/// What the executor says.
pub fn step(executor: &mut dyn Executor, rows: usize, seed: u64) -> Result<Values, ExecError> {
    let vocab = executor.vocab().max(1) as u64;
    let ids: Vec<i32> = (0..rows as u64).map(|i| (mix(seed ^ mix(i + 1)) % vocab) as i32).collect();
    let pos: Vec<i32> = (0..).take(rows).collect();
    let mut values = Values::new();
    let mut see = |name: &str, x: &[f32]| {
        values.push((name.to_owned(), Rc::new(Tensor::f32(&[rows, x.len() / rows], x.to_vec()))));
    };
    executor.observe(&[Span::new(&ids, &pos, 0)], &mut see)?;
    Ok(values)
}

/// Rows whose best token reaches the policy's threshold in one build and not in the other; nothing where it has none.
pub fn decisions(built: &Compiled, a: &Computed, b: &Computed) -> Option<usize> {
    let reveal = &built.manifest.policy.reveal;
    let threshold = f64::from(reveal.params.get("threshold").copied().or((reveal.rule == "threshold").then_some(0.9))?);
    let sure = |c: &Computed| -> Option<Vec<bool>> {
        let logits = c.logits.as_ref()?;
        let row = |row: &[f32]| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|l| libm::exp(f64::from(l - max))).sum();
            1.0 / sum >= threshold
        };
        Some(logits.floats().ok()?.chunks(*logits.shape.last()?).map(row).collect())
    };
    let (a, b) = (sure(a)?, sure(b)?);
    Some(a.iter().zip(&b).filter(|(x, y)| x != y).count())
}

/// What differs between two tensors of one name.
#[derive(Clone, Debug, Serialize)]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// RMS of the difference over that of the first.
    pub error: Option<f32>,
    /// Largest difference.
    pub largest: Option<f32>,
    /// Why it was not compared.
    pub note: Option<String>,
}

impl TensorDiff {
    /// Whether it differs by more than may be.
    pub fn differs(&self, tolerance: f32) -> bool {
        self.note.is_some() || self.error.is_none_or(|e| e.is_nan() || e > tolerance)
    }
}

/// Compares two checkpoints tensor by tensor.
///
/// # Errors
/// A tensor that cannot be read.
pub fn tensors(a: &Checkpoint, b: &Checkpoint) -> Result<Vec<TensorDiff>, Error> {
    let mut all = Vec::new();
    let only = |name: &str, c: &Checkpoint| TensorDiff {
        name: name.to_owned(),
        error: None,
        largest: None,
        note: Some(format!("only in {}", c.dir().display())),
    };
    for name in a.names() {
        let (Some(x), Some(y)) = (a.tensor(name), b.tensor(name)) else {
            all.push(only(name, a));
            continue;
        };
        let mut found = TensorDiff { name: name.to_owned(), error: None, largest: None, note: None };
        if x.shape != y.shape {
            found.note = Some(format!("{:?} and {:?}", x.shape, y.shape));
            all.push(found);
            continue;
        }
        let rows = x.shape.first().copied().unwrap_or(1);
        let width = x.shape.iter().skip(1).product::<usize>().max(1);
        let step = (CHUNK / width).max(1);
        let (mut old, mut new) = (vec![0.0; step * width], vec![0.0; step * width]);
        let (mut off, mut all_of, mut largest) = (0f64, 0f64, 0f32);
        for first in (0..rows).step_by(step) {
            let range = first..(first + step).min(rows);
            let len = range.len() * width;
            a.read_rows(name, range.clone(), &mut old[..len])?;
            b.read_rows(name, range.clone(), &mut new[..len])?;
            for (x, y) in old[..len].iter().zip(&new[..len]) {
                let d = if x == y { 0.0 } else { x - y };
                off += f64::from(d) * f64::from(d);
                all_of += f64::from(*x) * f64::from(*x);
                largest = if d.is_nan() { f32::INFINITY } else { largest.max(d.abs()) };
            }
            a.release_rows(name, range.clone());
            b.release_rows(name, range);
        }
        let error = if off == 0.0 { 0.0 } else { libm::sqrt(off / all_of.max(f64::MIN_POSITIVE)) as f32 };
        (found.error, found.largest) = (Some(error), Some(largest));
        all.push(found);
    }
    all.extend(b.names().filter(|n| a.tensor(n).is_none()).map(|n| only(n, b)));
    Ok(all)
}
