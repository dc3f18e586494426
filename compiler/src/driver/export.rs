//! Exports: a generator becomes a directory of ONNX files whose host keeps the cache.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dlx_ir::{Error, Graph, Mask, Op, VerifiedModule};
use dlx_runtime::host::{Entry, EntryKind, FORMAT, Manifest, Model, Port, Soc, Table, VERSION, WeightsFile};
use dlx_runtime::text::Tokenizer;
use half::f16;
use prost::Message;

use super::foreign::{Foreign, is_onnx};
use super::input::Input;
use super::programs::{Checked, run_passes};
use super::settings::settings;
use super::{Clock, Watch, in_pool};
use crate::export::{self, Common, Embeddings, Finding, Kind, Profile, RATIOS, Ranges, Sequence, Store, WEIGHTS};
use crate::onnx::OnnxModel;
use crate::options::{CompileOptions, QuantSpec};

/// What a host has to do, in words.
const CONTRACT: &str = include_str!("../export/contract.md");
/// Cache rows unless asked otherwise: what NPUs have memory for.
const MAX_SEQ: usize = 512;
/// Rows of the head entry.
const HEAD_ROWS: usize = 8;
/// Rows of the larger step.
const PREFILL_ROWS: usize = 32;
/// Sequences drawn by chance, and their length, where no text was given.
const RANDOM: (usize, usize) = (4, 48);
/// Most sequences that are calibrated on.
const MAX_SEQUENCES: usize = 32;

/// Targets that are directories: name, and what they run on.
pub const EXPORTS: &[(&str, &str)] = &[
    (
        "onnx",
        "a directory of plain ONNX graphs with the cache outside, for ONNX Runtime on any device; weights by --quant",
    ),
    ("qnn", "the same for Qualcomm's NPUs (HTP), with static shapes and 16-bit activations; weights by --profile"),
];

/// What an export did.
#[derive(Debug)]
pub struct ExportSummary {
    /// The manifest that was written.
    pub manifest: Manifest,
    /// Bytes of all files.
    pub bytes: u64,
    /// Wall time by stage.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Whether the options ask for an export.
///
/// # Errors
/// An export beside another target.
pub fn is_export(options: &CompileOptions) -> Result<bool, Error> {
    let asked = options.targets.iter().any(|t| EXPORTS.iter().any(|(name, _)| name == t));
    if asked && options.targets.len() > 1 {
        return Err(Error::new("--target", "an export is a directory, and other targets make one file")
            .help("compile for each in a run of its own"));
    }
    Ok(asked)
}

/// Exports the model into the directory `output`, which must not exist or be empty unless `force`. Setting `cancel` stops it and
/// leaves nothing.
///
/// # Errors
/// Whatever is wrong with the input, the options or the disk, naming the file, tensor or node.
pub fn export(
    model: &Path,
    output: &Path,
    options: &CompileOptions,
    force: bool,
    watch: &dyn Watch,
    cancel: &AtomicBool,
) -> Result<ExportSummary, Error> {
    in_pool(options, || {
        check_output(model, output, force)?;
        let mut clock = Clock::start();
        let profile = profile(options)?;
        let soc = options.soc.as_deref().map(|name| export::soc(name, profile.least)).transpose()?;
        let foreign = is_onnx(model).then(|| Foreign::read(model, options)).transpose()?;
        let input = match &foreign {
            Some(foreign) => foreign.input()?,
            None => Input::read(model, options)?,
        };
        let sizes = Sizes::of(options, &input)?;
        clock.stage("import");

        let forward = &input.imported.module;
        let module = sizes.passes(options, watch, forward, sizes.max_seq, &sizes.rows, HEAD_ROWS)?;
        let source = Checked { weights: &*input.weights, allow_nonfinite: options.allow_nonfinite };
        let embeddings = Embeddings::of(forward, &source)?;
        let model = sizes_of(&module, &input, &sizes, &embeddings);
        clock.stage("passes");

        let calibration = if profile.codes { Some(sequences(options, &input, sizes.max_seq)?) } else { None };
        let (ranges, calibrated) = match &calibration {
            Some((sequences, from)) => {
                let ranges = calibrated(&input, options, watch, &sizes, &embeddings, sequences, cancel)?;
                (ranges, from.clone())
            }
            None => (Ranges::new(), String::from("none")),
        };
        clock.stage("calibrate");

        let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = tempfile::Builder::new().prefix(".dlxc-").tempdir_in(parent).map_err(|e| failed(parent, e))?;
        let dir = made.path();
        let mut store = Store::create(dir)?;
        let mut entries = Vec::new();
        let total = profile.bytes(&module);
        let progress = |done: u64| {
            watch.progress(done.min(total), total);
            if cancel.load(Ordering::Relaxed) { Err(Error::new("compile", "was interrupted")) } else { Ok(()) }
        };
        for graph in &module.graphs {
            let mut common = Common {
                module: &module,
                source: &source,
                profile,
                ranges: &ranges,
                store: &mut store,
                progress: &progress,
            };
            let entry = entry(graph, &model)?;
            let results: Vec<String> = entry.outputs.iter().map(|o| o.name.clone()).collect();
            let file = export::write(&mut common, graph, &results)?;
            let path = dir.join(&entry.file);
            std::fs::write(&path, file.encode_to_vec()).map_err(|e| failed(&path, e))?;
            entries.push(entry);
        }
        store.finish()?;
        let mut notes = input.imported.facts.notes.clone();
        if options.targets[0] == "qnn" {
            notes.extend(linted(dir, &entries, options.allow_fallback)?);
        }
        let table = dir.join("embeddings.bin");
        write_embeddings(&embeddings, &table)?;
        std::fs::write(dir.join("README.md"), CONTRACT).map_err(|e| failed(dir, e))?;
        std::fs::write(dir.join("tokenizer.json"), &input.text.tokenizer).map_err(|e| failed(dir, e))?;
        let text = super::output::text_section(input.text.clone())?;
        let text = serde_json::to_vec_pretty(&text).map_err(|e| Error::new("text.json", e.to_string()))?;
        std::fs::write(dir.join("text.json"), text).map_err(|e| failed(dir, e))?;
        clock.stage("write");

        let manifest = manifest(&input, &options.targets[0], profile, model, entries, calibrated, dir)?;
        let soc = soc.map(|s| Soc { name: s.name.into(), soc_model: s.model, htp_arch: s.arch });
        let manifest = Manifest { notes, soc, ..manifest };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::new("manifest.json", e.to_string()))?;
        std::fs::write(dir.join("manifest.json"), text).map_err(|e| failed(dir, e))?;
        let bytes = bytes_in(dir)?;
        place(made, output, force)?;
        clock.stage("finish");
        Ok(ExportSummary { manifest, bytes, stages: clock.stages })
    })
}

/// What the lint finds in the entries and is allowed, as notes.
fn linted(dir: &Path, entries: &[Entry], allow_fallback: bool) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    for entry in entries {
        for found in export::lint(&OnnxModel::open(&dir.join(&entry.file))?) {
            let Finding { rule, kind, node, what, fix } = found;
            let message = format!("{rule}: {what}");
            if kind != Kind::Elsewhere || !allow_fallback {
                return Err(Error::new(node, message).help(fix));
            }
            notes.push(format!("{node}: {message}"));
        }
    }
    Ok(notes)
}

/// The profile that the options name. What would have no effect is refused.
fn profile(options: &CompileOptions) -> Result<Profile, Error> {
    let usual = [QuantSpec::None, "int4".parse().unwrap_or_default()];
    let qnn = options.targets[0] == "qnn";
    let asked = [
        ("--quant", qnn && !usual.contains(&options.quant), "name a --profile"),
        ("--profile", !qnn && options.profile.is_some(), "name a format with --quant"),
        ("--calibrate", !qnn && options.calibrate.is_some(), "leave it out: nothing has ranges there"),
        ("--soc", !qnn && options.soc.is_some(), "leave it out: plain ONNX is for any device"),
        ("--allow-fallback", !qnn && options.allow_fallback, "leave it out: plain ONNX is for any device"),
        ("--keep", !options.keep.is_empty(), "leave it out: all matrices have one format"),
        ("--kv", options.kv.is_some(), "leave it out: caches are f16"),
    ];
    if let Some((flag, _, help)) = asked.iter().find(|(_, asked, _)| *asked) {
        return Err(Error::new(*flag, format!("has no effect for the target {}", options.targets[0])).help(*help));
    }
    if qnn { export::qnn(options.profile.as_deref()) } else { export::onnx(options.quant) }
}

/// Sizes of an export.
struct Sizes {
    max_seq: usize,
    rows: Vec<usize>,
    mask: Mask,
}

impl Sizes {
    fn of(options: &CompileOptions, input: &Input<'_>) -> Result<Self, Error> {
        let wanted = settings(options, &input.imported);
        let max_seq = options.max_seq.unwrap_or(MAX_SEQ.min(input.imported.max_positions));
        let mut rows = wanted.buckets.clone();
        if rows.is_empty() {
            rows =
                if wanted.whole_sequence { vec![max_seq] } else { vec![wanted.block, PREFILL_ROWS.max(wanted.block)] };
        }
        rows.sort_unstable();
        rows.dedup();
        let largest = rows.last().copied().unwrap_or(0);
        if rows.first() == Some(&0) || largest < wanted.block.min(max_seq) || largest > max_seq {
            let message =
                format!("the steps have {rows:?} rows, with a block of {} and --max-seq {max_seq}", wanted.block);
            return Err(Error::new("--rows", message).help("the largest must hold a block, and no more than --max-seq"));
        }
        let mask = input.imported.module.graphs.iter().flat_map(|g| &g.nodes).find_map(|n| match n.op {
            Op::Mask { rule } => Some(rule),
            _ => None,
        });
        let mask = mask.ok_or_else(|| Error::new("graph @forward", "has no mask"))?;
        Ok(Sizes { max_seq, rows, mask })
    }

    /// The entries for some sizes.
    fn passes(
        &self,
        options: &CompileOptions,
        watch: &dyn Watch,
        forward: &VerifiedModule,
        max_seq: usize,
        rows: &[usize],
        head: usize,
    ) -> Result<VerifiedModule, Error> {
        let rows: Vec<String> = rows.iter().map(usize::to_string).collect();
        let rows = rows.join(":");
        let pipeline = format!(
            "block-attention,fold,cse,dce,externalize-kv{{max_seq={max_seq}, rows={rows}, heads={head}, edge=f16}},\
             decompose,hoist-weights,fold,cse,dce"
        );
        let pipeline = options.pipeline.as_deref().unwrap_or(&pipeline);
        Ok(run_passes(options, watch, forward.clone(), pipeline, options.dump.as_deref())?.0)
    }
}

/// What to calibrate on, and where it comes from.
fn sequences(options: &CompileOptions, input: &Input<'_>, max_seq: usize) -> Result<(Vec<Sequence>, String), Error> {
    let Some(path) = &options.calibrate else {
        let (count, len) = RANDOM;
        let made = export::random(input.imported.vocab, count, len.min(max_seq));
        return Ok((made, "tokens drawn by chance: give --calibrate PROMPTS.jsonl for ranges of real text".into()));
    };
    let tokenizer = Tokenizer::from_bytes(&input.text.tokenizer);
    let tokenizer = tokenizer.map_err(|e| Error::new("tokenizer.json", e.to_string()))?;
    let render = |prompt: &str| super::input::chat(&input.text, prompt);
    let read = export::read(path, &tokenizer, &render, max_seq)?;
    // Spread over the file, which is often sorted by kind.
    let (all, taken) = (read.len(), read.len().min(MAX_SEQUENCES));
    let chosen = (0..taken).map(|i| read[i * all / taken].clone()).collect();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((chosen, format!("{taken} of {all} sequences of {name}")))
}

/// Ranges of all products, seen on the sequences at every mask ratio.
fn calibrated(
    input: &Input<'_>,
    options: &CompileOptions,
    watch: &dyn Watch,
    sizes: &Sizes,
    embeddings: &Embeddings<'_>,
    sequences: &[Sequence],
    cancel: &AtomicBool,
) -> Result<Ranges, Error> {
    let rows = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(1);
    let quiet = CompileOptions { dump: None, print_after: Vec::new(), pipeline: None, ..options.clone() };
    let module = sizes.passes(&quiet, watch, &input.imported.module, 0, &[rows], rows)?;
    let [step, head] = &module.graphs[..] else {
        return Err(Error::new("module", "has no step and head to calibrate"));
    };
    let mask_id = input.imported.policy.mask_id;
    // A causal model has no mask token.
    let ratios = if mask_id < 0 { &RATIOS[..1] } else { RATIOS };
    let mut samples = Vec::new();
    for (n, sequence) in sequences.iter().enumerate() {
        for (r, ratio) in ratios.iter().enumerate() {
            let ids = export::masked(sequence, *ratio, mask_id, (n * ratios.len() + r) as u64);
            samples.push(embeddings.sequence(&ids, sizes.mask, rows)?);
        }
    }
    export::calibrate(&module, [step, head], embeddings.source, samples, cancel)
}

/// What the manifest says of a graph, which must be what the graph takes and gives.
fn entry(graph: &Graph, model: &Model) -> Result<Entry, Error> {
    let (kind, rows) = graph.name.split_once('_').unwrap_or((&graph.name, ""));
    let kind = if kind == "step" { EntryKind::Step } else { EntryKind::Head };
    let entry = Entry::new(kind, rows.parse().unwrap_or(0), model);
    let given = |v: &dlx_ir::ValueId| (graph.values[*v].ty.dtype.to_string(), graph.values[*v].ty.shape());
    let said = |port: &Port| (port.dtype.clone(), Some(port.shape.clone()));
    let named = graph.params.iter().map(|v| &graph.values[*v].name).eq(entry.inputs.iter().map(|p| &p.name));
    let takes = graph.params.iter().map(given).eq(entry.inputs.iter().map(said));
    let gives = graph.results.iter().map(given).eq(entry.outputs.iter().map(said));
    if named && takes && gives {
        return Ok(entry);
    }
    Err(Error::new(format!("graph @{}", graph.name), "takes or gives what no entry of an export does")
        .help("leave --passes out: the entries are those of externalize-kv"))
}

/// Sizes of the model, as the entries show them.
fn sizes_of(module: &VerifiedModule, input: &Input<'_>, sizes: &Sizes, embeddings: &Embeddings<'_>) -> Model {
    let caches = |g: &Graph| g.params.iter().map(|v| &g.values[*v]).filter(|v| v.name.starts_with('k')).count();
    let kv = |g: &Graph| g.params.iter().map(|v| &g.values[*v]).find(|v| v.name == "k0").and_then(|v| v.ty.shape());
    let step = module.graphs.first();
    Model {
        family: input.imported.family.into(),
        vocab: embeddings.rows,
        hidden: embeddings.columns,
        layers: step.map_or(0, caches),
        kv_heads: step.and_then(kv).map_or(0, |shape| shape[0]),
        head_dim: embeddings.head_dim as usize,
        rope_theta: embeddings.theta,
        max_seq: sizes.max_seq,
        mask: sizes.mask.to_string(),
    }
}

fn write_embeddings(table: &Embeddings<'_>, path: &Path) -> Result<(), Error> {
    use std::io::Write;
    let failed = |e| failed(path, e);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(failed)?);
    for first in (0..table.rows).step_by(1024) {
        let rows = table.read(first..(first + 1024).min(table.rows))?;
        let bytes: Vec<u8> = rows.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        file.write_all(&bytes).map_err(failed)?;
    }
    file.flush().map_err(failed)
}

fn manifest(
    input: &Input<'_>,
    target: &str,
    profile: Profile,
    model: Model,
    entries: Vec<Entry>,
    calibration: String,
    dir: &Path,
) -> Result<Manifest, Error> {
    let weights = dir.join(WEIGHTS);
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(&weights).map_err(|e| Error::new(weights.display(), e.to_string()))?;
    let bytes = std::io::copy(&mut file, &mut hasher);
    let bytes = bytes.map_err(|e| Error::new(weights.display(), e.to_string()))?;
    let imported = &input.imported;
    let table = Table { file: "embeddings.bin".into(), dtype: "f16".into(), rows: model.vocab, cols: model.hidden };
    Ok(Manifest {
        format: FORMAT.into(),
        version: VERSION,
        compiler: concat!("dlxc ", env!("CARGO_PKG_VERSION")).into(),
        target: target.into(),
        profile: profile.name.into(),
        min_htp: profile.least,
        soc: None,
        model,
        decode: imported.policy.clone(),
        tokenizer: "tokenizer.json".into(),
        text: "text.json".into(),
        embeddings: table,
        weights: WeightsFile { file: WEIGHTS.into(), bytes, blake3: hasher.finalize().to_hex().to_string() },
        calibration,
        entries,
        notes: Vec::new(),
    })
}

fn failed(what: &Path, e: std::io::Error) -> Error {
    let help = "make room on the disk, or write elsewhere";
    Error::new(what.display(), format!("cannot be written: {e}")).help(help)
}

/// Refuses whatever is no place for an export: a file, a link to nothing, the model's own directory or one around it, and a
/// directory with files, unless they are an export that `force` allows to replace.
fn check_output(model: &Path, output: &Path, force: bool) -> Result<(), Error> {
    let refuse = |what: &str, help: &str| Err(Error::new(output.display(), what).help(help));
    let other = "an export is a directory: name one that is not there yet";
    if let Ok(found) = output.symlink_metadata() {
        if !output.is_dir() {
            return refuse(if found.is_symlink() { "is a link to no directory" } else { "is no directory" }, other);
        }
        let (model, output) = (model.canonicalize(), output.canonicalize());
        if let (Ok(model), Ok(output)) = (model, output)
            && (model.starts_with(&output) || output.starts_with(&model))
        {
            return refuse("holds the model, or lies in it", other);
        }
    }
    if std::fs::read_dir(output).is_ok_and(|mut d| d.next().is_some()) {
        let manifest = std::fs::read(output.join("manifest.json")).unwrap_or_default();
        if serde_json::from_slice::<Manifest>(&manifest).is_err() {
            return refuse("holds files that are no export", "name another directory");
        }
        if !force {
            return refuse("holds an export", "name another directory, or replace it with --force");
        }
    }
    Ok(())
}

fn bytes_in(dir: &Path) -> Result<u64, Error> {
    let failed = |e: std::io::Error| Error::new(dir.display(), e.to_string());
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        bytes += entry.and_then(|e| e.metadata()).map_err(failed)?.len();
    }
    Ok(bytes)
}

/// Puts the finished directory in its place.
fn place(made: tempfile::TempDir, output: &Path, force: bool) -> Result<(), Error> {
    let failed = |e| failed(output, e);
    let old: Option<PathBuf> = if output.exists() {
        if force {
            let old = made.path().with_extension("old");
            std::fs::rename(output, &old).map_err(failed)?;
            Some(old)
        } else {
            std::fs::remove_dir(output).map_err(failed)?;
            None
        }
    } else {
        None
    };
    std::fs::rename(made.path(), output).map_err(failed)?;
    let _ = made.keep();
    old.map_or(Ok(()), |old| std::fs::remove_dir_all(old).map_err(failed))
}
