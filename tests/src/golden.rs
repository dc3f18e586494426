//! Golden data: cases computed by the model families' original reference code, and their comparison with an executor.
//!
//! Layout, below [`dir`]: `models/<name>/` holds tiny checkpoints, `cases/<family>/<case>.json` a case with its tensors
//! beside it in `<case>.safetensors`. A case names its model and its kind. Invariant: a kind, family or reference that
//! nothing here can check is an error, never a pass, and so is a family without cases.

mod beside;
mod generate;
mod hidden;
mod logits;
mod policies;
mod tokenizer;
mod trace;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use dlx_ir::Mask;
use dlx_runtime::exec::Executor;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

pub use beside::{Call, calls, one_of_each, side_by_side};
pub use hidden::run_hidden;
pub use policies::policy;
pub use tokenizer::{chat_template, run_tokenizer};
pub use units::run_unit;

/// Largest difference of a logit from the reference, which computed in f32.
pub const LOGIT_TOLERANCE: f32 = 1e-3;

/// The directory with the golden data: `DLX_GOLDEN_DIR`, or `tests/golden` of this repository.
pub fn dir() -> PathBuf {
    match std::env::var_os("DLX_GOLDEN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"),
    }
}

/// A tensor of a case.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Data,
}

/// Elements of a tensor, integers and booleans as `i32`.
#[derive(Clone, Debug)]
pub enum Data {
    /// Floating-point elements.
    Float(Vec<f32>),
    /// Floating-point elements that need their full precision.
    Double(Vec<f64>),
    /// Integer elements.
    Int(Vec<i32>),
}

/// A golden case.
#[derive(Clone, Debug)]
pub struct Case {
    /// File name without its extension.
    pub name: String,
    /// The whole JSON file.
    pub json: Value,
    /// The tensors beside it; empty when there are none.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Case {
    /// What the case checks: `generate`, `kv`, `verify`, `forward`, `hidden_states`, `unit`, `units` or `tokenizer`.
    pub fn kind(&self) -> &str {
        self.text("kind")
    }

    /// Whether an implementation is meant to reproduce it; the others document defects of the reference.
    pub fn exact(&self) -> bool {
        self.json["exact_match_expected"] != Value::Bool(false)
    }

    /// Directory of the checkpoint that it was computed with.
    pub fn model_dir(&self) -> PathBuf {
        dir().join("models").join(self.text("model"))
    }

    /// The attention mask that the model must be compiled with.
    ///
    /// # Errors
    /// A family that nothing here knows, or no block length where one is needed.
    pub fn mask(&self) -> Result<Mask, String> {
        let block = |key| {
            let block = self.count(key)?;
            u32::try_from(block).map(Mask::BlockCausal).map_err(|error| error.to_string())
        };
        match self.text("family") {
            "a2d" | "a2d-qwen2" | "dream" | "llada" | "llada-gqa" => Ok(Mask::Full),
            "fast-dllm-v2" => block("block_size").or(Ok(Mask::BlockCausal(32))),
            "qwen2" | "qwen3" => Ok(Mask::Causal),
            "sdar" => block("block_length"),
            other => Err(format!("no attention mask for family `{other}`")),
        }
    }

    /// Block length of [`Case::mask`], if it has one.
    pub fn block(&self) -> Option<usize> {
        match self.mask() {
            Ok(Mask::BlockCausal(block)) => usize::try_from(block).ok(),
            _ => None,
        }
    }

    /// Rows of the caches that are enough for it; with full attention also rows of the largest step.
    pub fn rows(&self) -> usize {
        let ids = self.tensors.iter().filter(|(name, _)| name.ends_with("_ids") && *name != "position_ids");
        let sequences: usize = ids.map(|(_, tensor)| tensor.shape.last().copied().unwrap_or(0)).sum();
        let states = self.tensors.get("states").and_then(|tensor| tensor.shape.last().copied()).unwrap_or(0);
        // A block-causal canvas is rounded up to whole blocks.
        sequences.max(states).next_multiple_of(self.block().unwrap_or(1))
    }

    fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap_or_default()
    }

    fn param(&self, key: &str) -> Result<&Value, String> {
        self.json["params"].get(key).ok_or_else(|| format!("no parameter `{key}`"))
    }

    fn number(&self, key: &str) -> Result<f64, String> {
        self.param(key)?.as_f64().ok_or_else(|| format!("parameter `{key}` is no number"))
    }

    fn count(&self, key: &str) -> Result<usize, String> {
        let value = self.param(key)?.as_u64().ok_or_else(|| format!("parameter `{key}` is no count"))?;
        usize::try_from(value).map_err(|_| format!("parameter `{key}` is too large"))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.tensors.get(name).ok_or_else(|| format!("no tensor `{name}`"))
    }

    fn ints(&self, name: &str) -> Result<&[i32], String> {
        match &self.tensor(name)?.data {
            Data::Int(ints) => Ok(ints),
            _ => Err(format!("tensor `{name}` holds no integers")),
        }
    }

    fn floats(&self, name: &str) -> Result<&[f32], String> {
        match &self.tensor(name)?.data {
            Data::Float(floats) => Ok(floats),
            _ => Err(format!("tensor `{name}` holds no floats of 32 bits")),
        }
    }
}

/// All cases of a family, by name.
///
/// # Errors
/// A missing directory or a file that cannot be read; no case at all.
pub fn family(name: &str) -> Result<Vec<Case>, String> {
    let folder = dir().join("cases").join(name);
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    if paths.is_empty() {
        return Err(format!("{}: no cases", folder.display()));
    }
    paths.iter().map(|path| load_case(path)).collect()
}

/// How the cases of a family went, when none failed.
#[derive(Debug)]
pub struct Summary {
    family: String,
    passed: BTreeMap<String, usize>,
    not_run: Vec<String>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: passed", self.family)?;
        for (kind, count) in &self.passed {
            write!(f, " {count} {kind}")?;
        }
        match self.not_run.len() {
            0 => Ok(()),
            1..=3 => write!(f, "; not run: {}", self.not_run.join(", ")),
            more => write!(f, "; not run: {more} others"),
        }
    }
}

/// Runs `check` on the cases of a family that `wanted` selects.
///
/// # Errors
/// What differs, case by case; cases that cannot be read; no wanted case at all.
pub fn check_family(
    name: &str,
    wanted: impl Fn(&Case) -> bool,
    check: impl Fn(&Case) -> Result<(), String>,
) -> Result<Summary, String> {
    let mut summary = Summary { family: name.to_owned(), passed: BTreeMap::new(), not_run: Vec::new() };
    let mut failed = Vec::new();
    for case in family(name)? {
        if !wanted(&case) {
            summary.not_run.push(case.name);
        } else if let Err(error) = check(&case) {
            failed.push(format!("{name}/{}: {error}", case.name));
        } else {
            *summary.passed.entry(case.kind().to_owned()).or_insert(0) += 1;
        }
    }
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    if summary.passed.is_empty() {
        return Err(format!("{name}: no case was run"));
    }
    Ok(summary)
}

/// Reads a case from its JSON file.
///
/// # Errors
/// A file that cannot be read, with its path.
pub fn load_case(path: &Path) -> Result<Case, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let json = serde_json::from_slice(&std::fs::read(path).map_err(|e| at(&e))?).map_err(|e| at(&e))?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
    let beside = path.with_extension("safetensors");
    let tensors = if beside.exists() {
        read_tensors(&std::fs::read(&beside).map_err(|e| at(&e))?).map_err(|e| at(&e))?
    } else {
        BTreeMap::new()
    };
    Ok(Case { name, json, tensors })
}

/// Compares what `executor` computes with a case of kind `generate`, `kv`, `verify`, `forward` or `hidden_states` (of
/// which only the logits). The executor must have been built from [`Case::model_dir`] with [`Case::mask`] and hold
/// [`Case::rows`].
///
/// # Errors
/// The first difference, or why the case cannot be checked.
pub fn run_case(executor: &mut dyn Executor, case: &Case) -> Result<(), String> {
    match case.kind() {
        "forward" | "hidden_states" => logits::forward(executor, case),
        "kv" => logits::kv(executor, case),
        "verify" => logits::verify(executor, case),
        "generate" => generate::run(executor, case),
        other => Err(format!("no check for kind `{other}` on an executor")),
    }
}

fn read_tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    file.iter().map(|(name, view)| Ok((name.to_owned(), read_tensor(&view)?))).collect()
}

fn read_tensor(view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor, String> {
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => Data::Float(words(bytes).map(f32::from_le_bytes).collect()),
        Dtype::F64 => Data::Double(words(bytes).map(f64::from_le_bytes).collect()),
        Dtype::I32 => Data::Int(words(bytes).map(i32::from_le_bytes).collect()),
        Dtype::I64 => Data::Int(
            words(bytes)
                .map(|word| i32::try_from(i64::from_le_bytes(word)))
                .collect::<Result<_, _>>()
                .map_err(|error| error.to_string())?,
        ),
        Dtype::BOOL | Dtype::U8 => Data::Int(bytes.iter().map(|&byte| i32::from(byte)).collect()),
        other => return Err(format!("unexpected dtype {other:?}")),
    };
    Ok(Tensor { shape: view.shape().to_vec(), data })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks_exact yields N bytes"))
}
