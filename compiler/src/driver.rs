//! The driver: one compile, from a checkpoint directory to an artifact.
//!
//! import → pipeline → target check → emission → golden vectors → artifact. Read [`compile`] first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dlx_ir::{DType, Error, Module, WeightDef, verify};
use dlx_passes::{Failure, Report, parse_pipeline, run_pipeline};
use dlx_runtime::cpu::{CpuExecutor, CpuOptions};
use dlx_runtime::decode::policy::{Attention, DecodePolicy};
use dlx_runtime::manifest::{Manifest, Memory, ModelInfo};
use dlx_runtime::text::{ChatTemplate, Tokenizer};
use dlx_runtime::{TextSection, artifact, selftest};
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_targets::{TARGETS, Target, WeightSource, emit};

use crate::checkpoint::{Checkpoint, TextFiles};
use crate::hf::{self, Imported};
use crate::options::{CompileOptions, QuantSpec};

/// What a compile did.
#[derive(Debug)]
pub struct Summary {
    /// Passes in order.
    pub passes: Vec<Report>,
    /// The manifest that was written.
    pub manifest: Manifest,
    /// Bytes of weights by element type.
    pub weights: BTreeMap<String, u64>,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Wall time by stage.
    pub stages: Vec<(&'static str, Duration)>,
}

/// What the caller is told while a compile runs. Every method may be called from any thread.
pub trait Watch: Sync {
    /// Bytes of weights written so far, and in all.
    fn progress(&self, done: u64, total: u64);
    /// The IR after a pass of `--print-after`.
    fn print(&self, pass: &str, ir: &str);
}

/// Compiles the checkpoint in `model` into the artifact `output`. Setting `cancel` stops it and leaves nothing.
///
/// # Errors
/// Whatever is wrong with the input, the options or the disk, naming the file, tensor or node.
pub fn compile(
    model: &Path,
    output: &Path,
    options: &CompileOptions,
    watch: &dyn Watch,
    cancel: &AtomicBool,
) -> Result<Summary, Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build();
    let pool = pool.map_err(|e| Error::new("threads", e.to_string()))?;
    pool.install(|| Compile { model, output, options, watch, cancel }.run())
}

struct Compile<'a> {
    model: &'a Path,
    output: &'a Path,
    options: &'a CompileOptions,
    watch: &'a dyn Watch,
    cancel: &'a AtomicBool,
}

impl Compile<'_> {
    fn run(&self) -> Result<Summary, Error> {
        let mut stages = Vec::new();
        let mut clock = Instant::now();
        let mut stage = |name| stages.push((name, std::mem::replace(&mut clock, Instant::now()).elapsed()));

        let target = find_target(&self.options.target)?;
        let checkpoint = Checkpoint::open(self.model)?;
        let text = TextFiles::read(self.model)?;
        let source = hf::Source {
            checkpoint: &checkpoint,
            text: &text,
            block: self.options.block,
            sampler: self.options.sampler.as_deref(),
        };
        let mut imported = hf::import(&source)?;
        check_text(self.model, &text, imported.vocab)?;
        let parameters = parameters(&imported.module);
        stage("import");

        let pipeline = match &self.options.pipeline {
            Some(text) => text.clone(),
            None => default_pipeline(target, self.options, &imported)?,
        };
        let passes = self.run_passes(&mut imported.module, &pipeline)?;
        let verified = verify(&imported.module).map_err(first)?;
        target.check(verified).map_err(first)?;
        stage("passes");

        let mut writer = ArtifactWriter::create(self.output)?;
        let source = Weights { checkpoint: &checkpoint, allow_nonfinite: self.options.allow_nonfinite };
        let emission =
            emit(verified, &source, &mut writer, self.cancel, &|done, total| self.watch.progress(done, total))?;
        stage("weights");

        let program = verify(&emission.module).map_err(first)?;
        let golden = self.golden(&writer, program)?;
        stage("golden");

        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let config = std::fs::read(self.model.join("config.json")).unwrap_or_default();
        let manifest = Manifest {
            compiler: concat!("dlxc ", env!("CARGO_PKG_VERSION")).into(),
            model: ModelInfo {
                family: imported.family.into(),
                parameters,
                vocab: imported.vocab,
                max_seq: max_seq(self.options, &imported),
                config_hash: hash(&config),
                tokenizer_hash: hash(&text.tokenizer),
            },
            options: self.manifest_options(&imported),
            pipeline,
            targets: vec![target.name.into()],
            memory: Memory { weights: emission.bytes, states: golden.states, arena: golden.arena },
            policy: imported.policy,
            notes: imported.notes,
            quality: None,
        };
        let json = |what: Result<Vec<u8>, serde_json::Error>| what.map_err(|e| Error::new("manifest", e.to_string()));
        let texts = TextSection { chat_template: text.chat_template, special_tokens: text.special_tokens };
        writer.section(artifact::MANIFEST, json(serde_json::to_vec_pretty(&manifest))?);
        writer.section(artifact::program_section(target.name), emission.module.to_string());
        writer.section(artifact::TOKENIZER, text.tokenizer);
        writer.section(artifact::TEXT, json(serde_json::to_vec(&texts))?);
        writer.section(artifact::GOLDEN, json(serde_json::to_vec(&golden.vectors))?);
        let file_bytes = writer.finish()?;
        stage("write");
        Ok(Summary { passes, manifest, weights: weight_sizes(&emission.module), file_bytes, stages })
    }

    /// Runs the pipeline with the dumps and prints asked for.
    fn run_passes(&self, module: &mut Module, pipeline: &str) -> Result<Vec<Report>, Error> {
        let steps = parse_pipeline(pipeline)?;
        for pass in &self.options.print_after {
            if !steps.iter().any(|s| s.pass.name == pass) {
                return Err(Error::new("--print-after", format!("`{pass}` is not in the pipeline"))
                    .help(format!("the pipeline is {pipeline}")));
            }
        }
        let dump = self.options.dump.as_deref();
        if let Some(dir) = dump {
            std::fs::create_dir_all(dir).map_err(|e| Error::new(dir.display(), format!("cannot be made: {e}")))?;
            write_text(&dir.join("00-import.dlx"), &module.to_string())?;
        }
        let outcome = run_pipeline(module, &steps, &mut |number, report, module| {
            let name = report.pass.split('{').next().unwrap_or_default();
            if self.options.print_after.iter().any(|p| p == name) {
                self.watch.print(name, &module.to_string());
            }
            match dump {
                Some(dir) if report.changes > 0 => {
                    write_text(&dir.join(format!("{number:02}-{name}.dlx")), &module.to_string())
                }
                _ => Ok(()),
            }
        });
        outcome.map_err(|failure| with_repro(*failure, dump))
    }

    /// Runs the probes of the self-test on the weights just written.
    fn golden(&self, writer: &ArtifactWriter, program: dlx_ir::Verified<'_>) -> Result<Golden, Error> {
        let (file, weights) = writer.map_weights()?;
        let cpu = CpuOptions { threads: self.options.threads.unwrap_or(0), isa: None };
        let executor = CpuExecutor::new(program, file, weights, cpu);
        let mut executor = executor.map_err(|e| Error::new(self.output.display(), e.to_string()))?;
        let vectors = selftest::record(&mut executor);
        let vectors = vectors.map_err(|e| Error::new(self.output.display(), e.to_string()))?;
        let (states, arena) = executor.session_bytes();
        Ok(Golden { vectors, states: states as u64, arena: arena as u64 })
    }

    fn manifest_options(&self, imported: &Imported) -> BTreeMap<String, String> {
        let keep: Vec<_> = self.options.keep.iter().map(|(name, format)| format!("{name}={format}")).collect();
        let options = [
            ("quant", self.options.quant.to_string()),
            ("keep", keep.join(",")),
            ("kv", kv_type(self.options).to_string()),
            ("max_seq", max_seq(self.options, imported).to_string()),
            ("block", self.options.block.map_or_else(String::new, |b| b.to_string())),
            ("sampler", self.options.sampler.clone().unwrap_or_default()),
        ];
        options.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

/// What a run of the finished program tells.
struct Golden {
    vectors: selftest::GoldenVectors,
    states: u64,
    arena: u64,
}

/// Rows of the KV caches when neither the user nor the checkpoint asks for fewer.
const DEFAULT_MAX_SEQ: usize = 4096;
/// Rows of the largest step: prefill is compute bound well before this many.
const LARGEST_STEP: usize = 512;

/// The target of that name.
///
/// # Errors
/// There is none.
pub fn find_target(name: &str) -> Result<&'static Target, Error> {
    TARGETS.iter().find(|t| t.name == name).ok_or_else(|| {
        let known: Vec<_> = TARGETS.iter().map(|t| t.name).collect();
        Error::new("--target", format!("there is no target `{name}`")).help(format!("use one of {}", known.join(", ")))
    })
}

/// Element type of the KV caches: as exact as the weights unless asked otherwise.
fn kv_type(options: &CompileOptions) -> DType {
    options.kv.unwrap_or(if options.quant == QuantSpec::None { DType::F32 } else { DType::F16 })
}

/// Rows of the KV caches.
fn max_seq(options: &CompileOptions, imported: &Imported) -> usize {
    options.max_seq.unwrap_or(imported.max_positions.min(DEFAULT_MAX_SEQ))
}

/// The passes of a target, in order, with everything that the model and the options decide.
///
/// # Errors
/// Sizes that do not fit each other.
pub fn default_pipeline(target: &Target, options: &CompileOptions, imported: &Imported) -> Result<String, Error> {
    let (max_seq, block) = (max_seq(options, imported), imported.policy.block);
    if max_seq < block {
        return Err(Error::new("--max-seq", format!("{max_seq} rows do not hold one block of {block}"))
            .help("use a longer --max-seq or a smaller --block"));
    }
    let steps = buckets(options, &imported.policy, max_seq)?;
    let largest = steps.iter().copied().max().unwrap_or(block);
    let heads: Vec<usize> = steps.iter().copied().filter(|s| *s <= LARGEST_HEAD.max(block)).collect();
    // A causal model has no mask token, and nothing to ban.
    let ban = if imported.policy.mask_id < 0 { String::new() } else { format!(", ban={}", imported.policy.mask_id) };
    let join = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(":");
    let mut quantize: Vec<String> = options.quant.dtype().map(|d| format!("to={d}")).into_iter().collect();
    for (name, format) in &options.keep {
        quantize.push(format!("{name}={}", format.dtype().map_or("none".into(), |d| d.to_string())));
    }
    Ok([
        "block-attention".to_owned(),
        format!("cache-kv{{max_seq={max_seq}, kv={}}}", kv_type(options)),
        "fold".into(),
        "cse".into(),
        "fuse-rope".into(),
        "fuse-linears".into(),
        "fuse-swiglu".into(),
        "fuse-residual".into(),
        format!("split-head{{rows={largest}{ban}}}"),
        "dce".into(),
        "fuse-norm".into(),
        "hoist-weights".into(),
        format!("quantize{{{}}}", quantize.join(", ")),
        format!("lower{{{}}}", target.lowering),
        "dce".into(),
        format!("specialize{{T={}, R={}}}", join(&steps), join(&heads)),
        "plan-memory".into(),
    ]
    .join(","))
}

/// Rows of the largest head entry; more rows run in several calls.
const LARGEST_HEAD: usize = 64;

/// Step sizes: those asked for, or the block and powers of four above it. Full attention sees a whole sequence at once, so
/// its largest step holds one.
fn buckets(options: &CompileOptions, policy: &DecodePolicy, max_seq: usize) -> Result<Vec<usize>, Error> {
    let block = policy.block;
    if options.buckets.is_empty() {
        let largest = if policy.attention == Attention::Full { max_seq } else { LARGEST_STEP.max(block).min(max_seq) };
        let growing = std::iter::successors(Some(block), |s| s.checked_mul(4)).take_while(|s| *s < largest);
        return Ok(growing.chain([largest]).collect());
    }
    let mut sizes = options.buckets.clone();
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.last() {
        Some(&largest) if largest < block || largest > max_seq => {
            Err(Error::new("--buckets", format!("the largest step has {largest} rows"))
                .help(format!("it must hold a block of {block} and fit --max-seq {max_seq}")))
        }
        _ => Ok(sizes),
    }
}

/// Reads rows of the checkpoint and refuses what is not finite.
struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    allow_nonfinite: bool,
}

impl WeightSource for Weights<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let first = rows.start;
        self.checkpoint.read_rows(name, rows, out)?;
        if self.allow_nonfinite { Ok(()) } else { self.checkpoint.check_finite(name, first, out) }
    }

    fn release_rows(&self, name: &str, rows: Range<usize>) {
        self.checkpoint.release_rows(name, rows);
    }
}

/// The tokenizer and template must work, and every id must be a row of the embedding.
fn check_text(model: &Path, text: &TextFiles, vocab: usize) -> Result<(), Error> {
    let path = model.join("tokenizer.json");
    Tokenizer::from_bytes(&text.tokenizer).map_err(|e| Error::new(path.display(), e.to_string()))?;
    if let Some(id) = text.largest_id().filter(|id| usize::try_from(*id).map_or(true, |id| id >= vocab)) {
        return Err(Error::new(path.display(), format!("has a token {id}, but the embedding has {vocab} rows"))
            .help("use the tokenizer that belongs to these weights"));
    }
    if let Some(template) = &text.chat_template {
        let template = ChatTemplate::new(template, text.special_tokens.clone());
        template.map_err(|e| Error::new(format_args!("{}: chat template", model.display()), e.to_string()))?;
    }
    Ok(())
}

fn parameters(module: &Module) -> u64 {
    let sources = module.weights.iter().filter(|(_, w)| w.def == WeightDef::Source);
    sources.filter_map(|(_, w)| w.ty.elements()).map(|n| n as u64).sum()
}

fn weight_sizes(module: &Module) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for (_, w) in module.weights.iter() {
        if let WeightDef::Stored { bytes, .. } = w.def {
            *sizes.entry(w.ty.dtype.to_string()).or_default() += bytes;
        }
    }
    sizes
}

/// Writes the failing pass's repro file and says where it is.
fn with_repro(failure: Failure, dump: Option<&Path>) -> Error {
    let dir = dump.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = dir.join("dlxc-repro.dlx");
    let error = failure.error;
    match std::fs::write(&path, failure.repro) {
        Ok(()) => {
            let help = format!(
                "{}\nthe failing pass and its input are in {}; its first line reproduces this with dlxc opt",
                error.help,
                path.display()
            );
            error.help(help.trim().to_owned())
        }
        Err(_) => error,
    }
}

fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|e| Error::new(path.display(), format!("cannot be written: {e}")))
}

/// The first of several errors, saying how many there are.
fn first(errors: Vec<Error>) -> Error {
    let more = errors.len().saturating_sub(1);
    let mut error = errors.into_iter().next().unwrap_or_else(|| Error::new("module", "is invalid"));
    if more > 0 {
        error.message = format!("{} (and {more} more)", error.message);
    }
    error
}
