//! Golden ONNX files: what a foreign runtime computes of an exported graph, against what is made of the graph here.
//!
//! `onnx2/cases/NAME.json` describes a file and `NAME.safetensors` holds inputs and outputs, `I.in.INPUT`, `I.out.OUTPUT` and,
//! where the foreign runtime rounds what the graph does not, `I.exact.OUTPUT`. Files of `onnx/` belong to the `forward` cases of
//! their family.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dlx_ir::{DType, Data, Evaluator, Mask, Tensor};
use dlxc::onnx::weights::OnnxWeights;
use dlxc::onnx::{Binding, Import, OnnxModel, import};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::golden;

/// Largest difference of an f32 output.
pub const TOLERANCE: f64 = 1e-3;

/// Inputs, and what is expected of each output with the largest difference allowed.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// By name.
    pub inputs: BTreeMap<String, Tensor>,
    /// By name: the numbers, and how far off they may be.
    pub outputs: BTreeMap<String, (Tensor, f64)>,
    /// Whether the file is for other sizes, so that only what was raised from it can run.
    pub raised_only: bool,
}

/// A golden file.
#[derive(Clone, Debug)]
pub struct File {
    /// Short name.
    pub name: String,
    /// The ONNX file.
    pub path: PathBuf,
    /// Family of the checkpoint, as the case says.
    pub family: String,
    /// The rule of a generator's attention; `None` for other models.
    pub mask: Option<Mask>,
    /// Attention layers.
    pub attentions: usize,
    /// Cases.
    pub runs: Vec<Run>,
}

/// Every golden file, by name.
///
/// # Errors
/// A case that cannot be read.
pub fn files() -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    let dir = golden::dir();
    for path in entries(&dir.join("onnx2/cases"), "json")? {
        files.push(second(&dir.join("onnx2"), &path).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    for path in entries(&dir.join("onnx"), "onnx")? {
        files.push(first(&path).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    if files.is_empty() { Err(format!("{}: no ONNX cases", dir.display())) } else { Ok(files) }
}

fn entries(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, String> {
    let list = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths: Vec<_> = list.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == ending));
    paths.sort();
    Ok(paths)
}

/// A file of the second set, which brings its cases.
fn second(dir: &Path, path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let json: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let said = json["mask"].as_str().unwrap_or_default();
    let generator = json["generator"] != Value::Bool(false) && json["family"].is_string();
    let mask = match said.split([' ', '&']).next().unwrap_or_default() {
        _ if !generator => None,
        "causal" => Some(Mask::Causal),
        "full" => Some(Mask::Full),
        "block_causal" => {
            let block = said.rsplit(' ').next().and_then(|n| n.parse().ok());
            Some(Mask::BlockCausal(block.ok_or("no block length")?))
        }
        _ => None,
    };
    let bytes = std::fs::read(path.with_extension("safetensors")).map_err(|e| e.to_string())?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
    let atol = json["atol"].as_f64().unwrap_or(TOLERANCE);
    let mut runs: BTreeMap<String, Run> = BTreeMap::new();
    for (key, view) in tensors.tensors() {
        let mut parts = key.splitn(3, '.');
        let (Some(index), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let run = runs.entry(index.to_owned()).or_default();
        let t = tensor(&view)?;
        // What is exact, and f32, is held to one measure; 16-bit results to their own.
        let strict = if t.dtype == DType::F32 && !said.is_empty() { TOLERANCE } else { atol };
        match kind {
            "in" => drop(run.inputs.insert(name.to_owned(), t)),
            "exact" => drop(run.outputs.insert(name.to_owned(), (t, strict))),
            // Where an exact output is given as well, it counts.
            _ => drop(
                run.outputs
                    .entry(name.to_owned())
                    .or_insert((t, atol.max(if atol > TOLERANCE { atol } else { strict }))),
            ),
        }
    }
    // An `out` that came before its `exact` was overwritten by it.
    Ok(File {
        name: json["name"].as_str().unwrap_or_default().to_owned(),
        path: dir.join(json["file"].as_str().ok_or("no file")?),
        family: json["family"].as_str().unwrap_or_default().to_owned(),
        mask,
        attentions: json["attention_layers"].as_u64().unwrap_or(0) as usize,
        runs: runs.into_values().collect(),
    })
}

/// A file of the first set: `FAMILY-tiny.EXPORTER.onnx`.
fn first(path: &Path) -> Result<File, String> {
    let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let family = name.split("-tiny").next().unwrap_or_default().to_owned();
    let mut runs = Vec::new();
    let mut mask = None;
    for case in golden::family(&family)? {
        let plain =
            case.kind() == "forward" && case.tensors.contains_key("input_ids") && case.tensors.contains_key("logits");
        // Exported with blocks of 32; a staircase is another mask.
        let staircase = case.name.contains("staircase") || case.name.contains("leftpad");
        if !plain || staircase {
            continue;
        }
        let rule = case.mask()?;
        if family == "fast-dllm-v2" && rule != Mask::BlockCausal(32) {
            continue;
        }
        let (golden::Data::Int(ids), golden::Data::Float(logits)) =
            (&case.tensors["input_ids"].data, &case.tensors["logits"].data)
        else {
            return Err(format!("{}: ids or logits of a strange type", case.name));
        };
        let n = ids.len();
        let wide = |values: Vec<i64>, shape: Vec<usize>| Tensor { dtype: DType::I64, shape, data: Data::I64(values) };
        let mut run = Run { raised_only: name.ends_with(".static") && n != 40, ..Run::default() };
        run.inputs.insert("input_ids".into(), wide(ids.iter().map(|i| i64::from(*i)).collect(), vec![1, n]));
        if family == "sdar" {
            let sees = (0..n * n).map(|i| rule.sees(i / n, i % n)).collect();
            run.inputs.insert(
                "attention_mask".into(),
                Tensor { dtype: DType::Bool, shape: vec![1, n, n], data: Data::Bool(sees) },
            );
            run.inputs.insert("position_ids".into(), wide((0..n as i64).collect(), vec![1, n]));
        }
        let shape = vec![1, n, logits.len() / n.max(1)];
        run.outputs
            .insert("logits".into(), (Tensor { dtype: DType::F32, shape, data: Data::F32(logits.clone()) }, TOLERANCE));
        // One length of blocks per file: sdar's are an input.
        mask = mask.or(Some(rule));
        if mask == Some(rule) {
            runs.push(run);
        }
    }
    let config =
        std::fs::read_to_string(golden::dir().join("models").join(format!("{}-tiny", family)).join("config.json"));
    let config: Value = serde_json::from_str(&config.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    let layers = config["num_hidden_layers"].as_u64().or(config["n_layers"].as_u64()).unwrap_or(0);
    Ok(File { name, path: path.into(), family, mask, attentions: layers as usize, runs })
}

fn tensor(view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor, String> {
    let bytes = view.data();
    let half = |bits: u16| half::f16::from_bits(bits).to_f32();
    let brain = |bits: u16| half::bf16::from_bits(bits).to_f32();
    let (dtype, data) = match view.dtype() {
        Dtype::F32 => (DType::F32, Data::F32(words(bytes, f32::from_le_bytes))),
        Dtype::F16 => (DType::F16, Data::F32(words(bytes, |b| half(u16::from_le_bytes(b))))),
        Dtype::BF16 => (DType::BF16, Data::F32(words(bytes, |b| brain(u16::from_le_bytes(b))))),
        Dtype::I64 => (DType::I64, Data::I64(words(bytes, i64::from_le_bytes))),
        Dtype::I32 => (DType::I32, Data::I32(words(bytes, i32::from_le_bytes))),
        Dtype::BOOL => (DType::Bool, Data::Bool(bytes.iter().map(|b| *b != 0).collect())),
        other => return Err(format!("unexpected dtype {other:?}")),
    };
    Ok(Tensor { dtype, shape: view.shape().to_vec(), data })
}

fn words<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|c| f(c.try_into().expect("chunks have N bytes"))).collect()
}

impl Run {
    /// Imports the graph for exactly these inputs, all of them known only at run time but the empty ones, and compares
    /// what it computes, to the integer rounding of activations.
    ///
    /// # Errors
    /// The import fails, or an output differs.
    pub fn portable(&self, model: &OnnxModel) -> Result<Import, String> {
        let mut binding = Binding { exact: true, ..Binding::default() };
        for (name, t) in &self.inputs {
            if t.shape.contains(&0) {
                binding.values.insert(name.clone(), t.clone());
            } else {
                binding.shapes.insert(name.clone(), t.shape.clone());
            }
        }
        let import = import(model, "portable", &binding).map_err(|e| e.to_string())?;
        dlx_ir::verify(&import.module).map_err(|e| e[0].to_string())?;
        let graph = &import.module.graphs[0];
        let args: Result<Vec<_>, _> = graph
            .params
            .iter()
            .map(|p| {
                self.inputs.get(&graph.values[*p].name).cloned().ok_or_else(|| format!("no {}", graph.values[*p].name))
            })
            .collect();
        let weights = import.sources.weights(model).map_err(|e| e.to_string())?;
        let found = evaluate(&import.module, &weights, &args?)?;
        for (name, found) in import.outputs.iter().zip(&found) {
            if let Some((expected, tolerance)) = self.outputs.get(name) {
                // Node by node everything is rounded to 16 bits; other runtimes keep sums and neighboring nodes in f32.
                let factor = if found.dtype == DType::F32 { 1.0 } else { 3.0 };
                compare(expected, found, tolerance * factor).map_err(|e| format!("{name}: {e}"))?;
            }
        }
        Ok(import)
    }

    /// Compares the logits of a raised generator, which may be off by the case's tolerance or by `least`; `None` where the
    /// case has a cache.
    ///
    /// # Errors
    /// The logits differ.
    pub fn raised(
        &self,
        module: &dlx_ir::Module,
        weights: &OnnxWeights<'_>,
        least: f64,
    ) -> Result<Option<f64>, String> {
        let cached = self.inputs.iter().any(|(name, t)| name.contains("past") && !t.shape.contains(&0));
        if cached {
            return Ok(None);
        }
        let Some(ids) = self.inputs.get("input_ids") else { return Err("no input_ids".into()) };
        let Data::I64(ids) = &ids.data else { return Err("ids of a strange type".into()) };
        let (ids, n): (Vec<i32>, usize) = (ids.iter().map(|i| *i as i32).collect(), ids.len());
        let args = [Tensor::i32(&[n], ids), Tensor::i32(&[n], (0..n as i32).collect())];
        let found = evaluate(module, weights, &args)?;
        let (expected, tolerance) = self.outputs.get("logits").ok_or("no logits")?;
        let mut found = found[0].clone();
        found.shape.insert(0, 1);
        found.dtype = expected.dtype;
        compare(expected, &found, tolerance.max(least)).map(Some)
    }
}

/// Runs a module's first graph on the reference evaluator.
///
/// # Errors
/// As the evaluator.
pub fn evaluate(module: &dlx_ir::Module, weights: &OnnxWeights<'_>, args: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let mut evaluator = Evaluator::new(module, weights, 1);
    evaluator.run(&module.graphs[0].name, args, &mut |_, _| {}).map_err(|e| e.to_string())
}

/// The largest difference, if it is within the tolerance.
///
/// # Errors
/// Shapes or numbers that differ.
pub fn compare(expected: &Tensor, found: &Tensor, tolerance: f64) -> Result<f64, String> {
    if expected.shape != found.shape {
        return Err(format!("shape {:?} instead of {:?}", found.shape, expected.shape));
    }
    let (Data::F32(a), Data::F32(b)) = (&expected.data, &found.data) else {
        return if expected.data == found.data { Ok(0.0) } else { Err("other elements".into()) };
    };
    let worst = a.iter().zip(b).enumerate().map(|(i, (a, b))| (i, f64::from((a - b).abs())));
    let worst = worst.max_by(|x, y| x.1.total_cmp(&y.1)).unwrap_or((0, 0.0));
    if worst.1 <= tolerance {
        Ok(worst.1)
    } else {
        Err(format!("differs by {:e} at {}: {} instead of {}", worst.1, worst.0, b[worst.0], a[worst.0]))
    }
}
