//! The driver: one compile, from a checkpoint directory to an artifact.
//!
//! import → pipeline → target check → emission → golden vectors → plan → artifact; all but the import once per target. Read [`compile`] first.

mod pipeline;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dlx_ir::{Error, Module, WeightDef, verify};
use dlx_passes::{Failure, Report, parse_pipeline, run_pipeline};
use dlx_runtime::cpu::{CpuExecutor, CpuOptions};
use dlx_runtime::manifest::{Manifest, Memory, ModelInfo};
use dlx_runtime::text::{ChatTemplate, Tokenizer};
use dlx_runtime::{TextSection, artifact, selftest};
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_targets::{Emission, TARGETS, Target, WeightSource, emit};

use crate::checkpoint::{Checkpoint, TextFiles};
use crate::hf::{self, Imported};
use crate::options::CompileOptions;
pub use pipeline::{default_pipeline, find_profile};
use pipeline::{kv_type, max_seq};

/// What a compile did.
#[derive(Debug)]
pub struct Summary {
    /// Passes in order, with the target that they ran for.
    pub passes: Vec<(&'static str, Report)>,
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

/// One target's program on its way.
struct Program {
    target: &'static Target,
    pipeline: String,
    module: Module,
}

impl Compile<'_> {
    fn run(&self) -> Result<Summary, Error> {
        let mut stages = Vec::new();
        let mut clock = Instant::now();
        let mut stage = |name| stages.push((name, std::mem::replace(&mut clock, Instant::now()).elapsed()));

        let targets = find_targets(self.options)?;
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

        let mut passes = Vec::new();
        let mut programs = Vec::new();
        for target in &targets {
            let (program, reports) = self.lower(target, &imported, &targets)?;
            passes.extend(reports.into_iter().map(|r| (target.name, r)));
            programs.push(program);
        }
        stage("passes");

        let mut writer = ArtifactWriter::create(self.output)?;
        let source = Weights { checkpoint: &checkpoint, allow_nonfinite: self.options.allow_nonfinite };
        let mut stored: Vec<Module> = Vec::new();
        let mut weights = 0;
        for program in &programs {
            let emission = self.emit(program, &source, &mut writer, &stored)?;
            if !stored.is_empty() && emission.bytes > 0 {
                imported.facts.note(format!(
                    "target {} lays {} bytes of weights out in its own way; they are stored once more",
                    program.target.name, emission.bytes
                ));
            }
            weights += emission.bytes;
            stored.push(emission.module);
        }
        stage("weights");

        let golden = match programs.iter().position(|p| p.target.name == RECORDER) {
            Some(cpu) => self.golden(&writer, verify(&stored[cpu]).map_err(first)?)?,
            None => {
                // The artifact has no program for the CPU, which records the vectors nonetheless.
                let (program, _) = self.lower(find_target(RECORDER)?, &imported, &targets)?;
                let emission = self.emit(&program, &source, &mut writer, &stored)?;
                weights += emission.bytes;
                self.golden(&writer, verify(&emission.module).map_err(first)?)?
            }
        };
        stage("golden");

        let mut plans = Vec::new();
        for (program, module) in programs.iter().zip(&stored) {
            let Some(plan) = program.target.plan else { continue };
            let profile = pipeline::find_profile(&self.options.profile)?;
            plans.push((program.target.name, plan(verify(module).map_err(first)?, &profile)?));
        }
        stage("plan");

        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let config = std::fs::read(self.model.join("config.json")).unwrap_or_default();
        let memory = match plans.first().filter(|(name, _)| *name == targets[0].name) {
            Some((_, plan)) => {
                let states = plan.states.iter().map(|s| s.bytes).sum();
                Memory { weights, states, arena: plan.inputs + plan.arena + 2 * plan.outputs }
            }
            None => Memory { weights, states: golden.states, arena: golden.arena },
        };
        let pipelines = programs.iter().map(|p| (p.target.name.to_owned(), p.pipeline.clone()));
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
            options: self.manifest_options(&imported, !plans.is_empty()),
            pipelines: pipelines.collect(),
            targets: targets.iter().map(|t| t.name.into()).collect(),
            memory,
            policy: imported.policy,
            notes: imported.facts.notes,
            quality: None,
        };
        let json = |what: Result<Vec<u8>, serde_json::Error>| what.map_err(|e| Error::new("manifest", e.to_string()));
        let add_bos_token = text.add_bos_token()?;
        let texts =
            TextSection { chat_template: text.chat_template, special_tokens: text.special_tokens, add_bos_token };
        writer.section(artifact::MANIFEST, json(serde_json::to_vec_pretty(&manifest))?);
        for (program, module) in programs.iter().zip(&stored) {
            writer.section(artifact::program_section(program.target.name), module.to_string());
        }
        for (name, plan) in &plans {
            writer.section(artifact::plan_section(name), json(serde_json::to_vec(plan))?);
        }
        writer.section(artifact::TOKENIZER, text.tokenizer);
        writer.section(artifact::TEXT, json(serde_json::to_vec(&texts))?);
        writer.section(artifact::GOLDEN, json(serde_json::to_vec(&golden.vectors))?);
        let file_bytes = writer.finish()?;
        stage("write");
        Ok(Summary { passes, manifest, weights: weight_sizes(&stored), file_bytes, stages })
    }

    /// Runs a target's pipeline on a copy of the imported module.
    fn lower(
        &self,
        target: &'static Target,
        imported: &Imported,
        targets: &[&'static Target],
    ) -> Result<(Program, Vec<Report>), Error> {
        let own = targets.iter().any(|t| t.name == target.name);
        let pipeline = match self.options.pipeline.as_ref().filter(|_| own) {
            Some(text) => text.clone(),
            None => pipeline::default_pipeline(target, self.options, imported)?,
        };
        let mut module = imported.module.clone();
        // One directory per target as soon as there are several.
        let dump = self.options.dump.as_ref().filter(|_| own);
        let dump = dump.map(|d| if targets.len() > 1 { d.join(target.name) } else { d.clone() });
        let passes = self.run_passes(&mut module, &pipeline, dump.as_deref())?;
        target.check(verify(&module).map_err(first)?).map_err(first)?;
        Ok((Program { target, pipeline, module }, passes))
    }

    fn emit(
        &self,
        program: &Program,
        source: &Weights<'_>,
        writer: &mut ArtifactWriter,
        stored: &[Module],
    ) -> Result<Emission, Error> {
        let verified = verify(&program.module).map_err(first)?;
        emit(verified, source, writer, stored, self.cancel, &|done, total| self.watch.progress(done, total))
    }

    /// Runs the pipeline with the dumps and prints asked for.
    fn run_passes(&self, module: &mut Module, pipeline: &str, dump: Option<&Path>) -> Result<Vec<Report>, Error> {
        let steps = parse_pipeline(pipeline)?;
        for pass in &self.options.print_after {
            if !steps.iter().any(|s| s.pass.name == pass) {
                return Err(Error::new("--print-after", format!("`{pass}` is not in the pipeline"))
                    .help(format!("the pipeline is {pipeline}")));
            }
        }
        if let Some(dir) = dump {
            std::fs::create_dir_all(dir).map_err(|e| Error::new(dir.display(), format!("cannot be made: {e}")))?;
            write_text(&dir.join("00-import.dlx"), &module.to_string())?;
        }
        let outcome = run_pipeline(module, &steps, &mut |number, report, module| {
            let name = report.name;
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

    fn manifest_options(&self, imported: &Imported, planned: bool) -> BTreeMap<String, String> {
        let keep: Vec<_> = self.options.keep.iter().map(|(name, format)| format!("{name}={format}")).collect();
        let options = [
            ("quant", self.options.quant.to_string()),
            ("keep", keep.join(",")),
            ("kv", kv_type(self.options).to_string()),
            ("max_seq", max_seq(self.options, imported).to_string()),
            ("block", self.options.block.map_or_else(String::new, |b| b.to_string())),
            ("sampler", self.options.sampler.clone().unwrap_or_default()),
            ("profile", if planned { self.options.profile.clone() } else { String::new() }),
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

/// The target whose executor records the golden vectors of every artifact.
const RECORDER: &str = "cpu";

/// The targets asked for, in that order.
fn find_targets(options: &CompileOptions) -> Result<Vec<&'static Target>, Error> {
    let targets = options.targets.iter().map(|t| find_target(t)).collect::<Result<Vec<_>, _>>()?;
    let distinct: BTreeSet<_> = targets.iter().map(|t| t.name).collect();
    if targets.is_empty() || distinct.len() != targets.len() {
        return Err(Error::new("--target", "names no target, or one twice").help("give each once, such as cpu,wgpu"));
    }
    if targets.len() > 1 && options.pipeline.is_some() {
        return Err(Error::new("--passes", "is the pipeline of one target").help("compile for one --target at a time"));
    }
    Ok(targets)
}

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

/// The tokenizer and template must work, every id must be a row of the embedding, and added tokens must have the ids that
/// the file gives them.
fn check_text(model: &Path, text: &TextFiles, vocab: usize) -> Result<(), Error> {
    let path = model.join("tokenizer.json");
    let own = "use the tokenizer that belongs to these weights";
    let tokenizer = Tokenizer::from_bytes(&text.tokenizer).map_err(|e| Error::new(path.display(), e.to_string()))?;
    if let Some(id) = text.largest_id().filter(|id| usize::try_from(*id).map_or(true, |id| id >= vocab)) {
        let message = format!("has a token {id}, but the embedding has {vocab} rows");
        return Err(Error::new(path.display(), message).help(own));
    }
    for (token, id) in text.added_tokens() {
        if let Some(other) = tokenizer.token_id(&token).filter(|other| *other != id) {
            let message =
                format!("gives the added token {token:?} the id {id}, but its place in the vocabulary is {other}");
            return Err(Error::new(path.display(), message).help(own));
        }
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

fn weight_sizes(modules: &[Module]) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (_, w) in modules.iter().flat_map(|m| m.weights.iter()) {
        match w.def {
            WeightDef::Stored { offset, bytes, .. } if seen.insert(offset) => {
                *sizes.entry(w.ty.dtype.to_string()).or_default() += bytes;
            }
            _ => {}
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
