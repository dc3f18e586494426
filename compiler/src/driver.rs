//! The driver: one compile, from a checkpoint directory to an artifact; or from portable graphs to one (`graph.rs`).
//!
//! The stages are those of `Compile::run`, each a function of what the stages before it made. What differs between
//! targets, from the choice of passes to the bytes that only one executor reads, is the targets' business.

mod checks;
mod export;
mod foreign;
mod graph;
mod input;
mod memory;
mod output;
mod programs;
mod recoded;
mod settings;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dlx_ir::Error;
use dlx_passes::Report;
use dlx_runtime::manifest::Manifest;
use dlx_targets::artifact_writer::ArtifactWriter;

use crate::check::each::Checked;
use crate::options::CompileOptions;
pub use checks::with_passes;
pub use export::{EXPORTS, ExportSummary, export, is_export};
use foreign::{Foreign, is_onnx};
pub use foreign::{compile_file, is_graph, outlook};
pub use graph::{GraphEntry, GraphSummary, Graphs, compile_graphs};
use input::Input;
use memory::{Sections, certificates, check_limit};
pub use programs::find_target;
use programs::{find_targets, lower};
pub use settings::default_pipeline;
use settings::settings;

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
    /// The passes of a target are about to be checked, on what the notes say.
    fn verifying(&self, _target: &str, _notes: &[String]) {}
    /// A pass was checked.
    fn checked(&self, _target: &str, _checked: &Checked) {}
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
    in_pool(options, || Compile { model, output, options, watch, cancel }.run())
}

/// Does something on the threads that the options ask for.
fn in_pool<T: Send>(options: &CompileOptions, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build();
    pool.map_err(|e| Error::new("threads", e.to_string()))?.install(work)
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
        let mut clock = Clock::start();
        keep_input(self.model, self.output)?;
        let targets = find_targets(self.options)?;
        let foreign = is_onnx(self.model).then(|| Foreign::read(self.model, self.options)).transpose()?;
        let input = match &foreign {
            Some(foreign) => foreign.input()?,
            None => Input::read(self.model, self.options)?,
        };
        let settings = settings(self.options, &input.imported);
        clock.stage("import");

        let (lowered, mut passes, space) =
            lower(self.options, self.watch, &targets, &input.imported.module, &settings)?;
        let raised = foreign.iter().flat_map(|f| f.reports()).map(|r| ("onnx", r.clone()));
        passes.splice(0..0, raised);
        clock.stage("passes");

        let sections = Sections::of(&input)?;
        let certificates = certificates(&lowered, space.len(), &input, &sections, &settings)?;
        check_limit(&certificates, &input, &sections, &targets, self.options)?;
        clock.stage("memory");

        if self.options.verify_each {
            self.verify(&targets, &input, &settings)?;
            clock.stage("verify");
        }

        let mut writer = ArtifactWriter::create(self.output)?;
        writer.reserve_all(space);
        let programs = self.store(lowered, &*input.weights, &writer)?;
        clock.stage("weights");

        let golden = self.record(&programs, &writer)?;
        clock.stage("golden");

        let manifest = self.manifest(&input, &settings, &programs, &sections, certificates);
        let weights = output::weight_sizes(&programs);
        let file_bytes = output::write(writer, &manifest, input.text, sections, &programs, &golden)?;
        clock.stage("write");
        Ok(Summary { passes, manifest, weights, file_bytes, stages: clock.stages })
    }
}

/// Refuses an output that would replace the input: the model's file, or one in its directory that is no artifact.
///
/// # Errors
/// It would.
pub(crate) fn keep_input(input: &Path, output: &Path) -> Result<(), Error> {
    let (Ok(input), Ok(found)) = (input.canonicalize(), output.canonicalize()) else { return Ok(()) };
    let inside = input.is_dir() && found.starts_with(&input) && found.is_file();
    if found == input || (inside && dlx_runtime::artifact::Artifact::open(&found).is_err()) {
        return Err(Error::new(output.display(), "belongs to the input, and would be replaced")
            .help("name another file to write"));
    }
    Ok(())
}

/// Wall time by stage.
struct Clock {
    since: Instant,
    stages: Vec<(&'static str, Duration)>,
}

impl Clock {
    fn start() -> Self {
        Clock { since: Instant::now(), stages: Vec::new() }
    }

    /// Ends a stage.
    fn stage(&mut self, name: &'static str) {
        self.stages.push((name, std::mem::replace(&mut self.since, Instant::now()).elapsed()));
    }
}
