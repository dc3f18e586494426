//! The command line: one file per subcommand, each of which calls one function of this crate.
//!
//! Invariant: results go to stdout, everything else to stderr; exit codes are 0 for success, 1 for failure, 2 for wrong
//! usage, 130 for Ctrl-C. A reader that closes stdout early (`| head`) is not a failure. Subcommands return, they never
//! exit, so that temporary files are always removed.

pub mod bench;
pub mod bisect;
pub mod canvas;
pub mod chat;
mod checks;
pub mod compile;
pub mod devices;
pub mod diff;
mod diff_view;
pub mod eval;
pub mod explain;
mod export;
pub mod hybrid;
pub mod inspect;
pub mod lint;
pub mod lists;
pub mod memory;
pub mod opt;
mod questions;
pub mod report;
pub mod run;
pub mod run_graph;
pub mod serve;
pub mod synth;
pub mod table;
pub mod terminal;
pub mod trace;
pub mod tune;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use dlx_ir::Error;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::CpuOptions;
use dlx_runtime::graph::read_graph_manifest;
use dlx_runtime::host::Export;
use dlx_runtime::selftest::SelfTest;
use dlx_runtime::session::Session;
use dlx_runtime::trace::About;
use dlx_runtime::{AnyExecutor, LoadOptions, Model, ModelError, read_manifest};

use crate::cache::Checked;
use crate::export::Emulator;
use crate::options::{CompileOptions, QuantSpec, memory_size};
use crate::{cache, driver};

/// Why a subcommand stopped.
#[derive(Debug)]
pub enum Failure {
    /// Something went wrong and is worth a message.
    Error(Error),
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads stdout any more.
    ClosedPipe,
    /// What was compared differs, as has been told.
    Differs,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if terminal::interrupted() { Failure::Interrupted } else { Failure::Error(error) }
    }
}

#[derive(Parser)]
#[command(name = "dlxc", version, about, long_about = LONG, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const LONG: &str = "Compiles diffusion language models ahead of time, and runs them.";

const EXAMPLES: &str = "\
Examples:
  dlxc run examples/models/sdar-tiny \"What is the capital of France?\"
  dlxc compile models/sdar --quant int4 -o sdar.dlxa    one file for every CPU
  dlxc run sdar.dlxa --chat                             talk to it
  dlxc inspect sdar.dlxa                                what is inside
  dlxc synth sdar-1.7b -o models/sdar                   a full-size model with random weights

Exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.";

#[derive(Subcommand)]
enum Command {
    Compile(compile::Args),
    Run(run::Args),
    RunGraph(run_graph::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
    Eval(eval::Args),
    Explain(explain::Args),
    Opt(opt::Args),
    Bisect(bisect::Args),
    Diff(diff::Args),
    Lint(lint::Args),
    Report(report::Args),
    Serve(serve::Args),
    Synth(synth::Args),
    Trace(trace::Args),
    Tune(tune::Args),
    /// List the passes that pipelines are made of
    Passes,
    /// List the operations of the IR, or the ONNX operators that become them
    Ops {
        /// List ONNX operators.
        #[arg(long)]
        onnx: bool,
    },
    Devices(devices::Args),
    /// List what models can be compiled for
    Targets,
    /// List the model families that can be compiled
    Families,
}

/// Runs the command line `args`, program name included.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help or version on a closed pipe: there is nobody left to tell.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    terminal::catch_interrupts();
    let result = match cli.command {
        Command::Compile(args) => compile::run(&args),
        Command::Run(args) => chat::run(&args),
        Command::RunGraph(args) => run_graph::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Opt(args) => opt::run(&args),
        Command::Bisect(args) => bisect::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Passes => lists::run(lists::List::Passes),
        Command::Ops { onnx } => lists::run(if onnx { lists::List::OnnxOps } else { lists::List::Ops }),
        Command::Targets => lists::run(lists::List::Targets),
        Command::Families => lists::run(lists::List::Families),
    };
    match result {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Differs) => ExitCode::FAILURE,
        Err(Failure::Interrupted) => {
            let _ = writeln!(std::io::stderr(), "interrupted");
            ExitCode::from(130)
        }
        Err(Failure::Error(error)) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where a model runs.
#[derive(clap::Args, Clone, Debug)]
pub struct Place {
    /// Program of the artifact to run, cpu or wgpu; its first one if not given.
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Graphics device, by number or a part of its name; see `dlxc devices`.
    #[arg(long, value_name = "N|NAME")]
    pub device: Option<String>,
    /// Read the artifact into memory instead of mapping it, so that nothing that happens to the file matters. On Linux into
    /// huge pages, where it has some to give, from which few rows are computed faster.
    #[arg(long)]
    pub no_mmap: bool,
    /// Most memory that the process may take for the model, such as 2GiB, 1500MB or bytes; a model that could take more is not
    /// loaded. See docs/memory.md.
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub max_memory: Option<u64>,
    /// Compare the checksum of the weights and run every golden vector, which reads all weights. Else that happens when an
    /// artifact is loaded here for the first time, and again when the file, the device or dlxc has changed.
    #[arg(long)]
    pub verify: bool,
}

impl Place {
    /// Whether it means the wgpu program of an artifact.
    fn is_wgpu(&self, artifact: &Artifact) -> Result<bool, Error> {
        let manifest = read_manifest(artifact).map_err(|e| Error::new("", e.to_string()))?;
        Ok(self.target.as_ref().or(manifest.targets.first()).is_some_and(|t| t == "wgpu"))
    }

    /// How to load a model there.
    pub fn options(&self, threads: Option<u16>) -> LoadOptions {
        let cpu = CpuOptions { threads: threads.map_or(0, usize::from), isa: None };
        LoadOptions {
            target: self.target.clone(),
            device: self.device.clone(),
            cpu,
            max_memory: self.max_memory,
            ..LoadOptions::default()
        }
    }
}

/// Opens an artifact, or compiles a model directory into the cache and opens that, and says what its manifest notes.
fn artifact(model: &Path, quant: Option<QuantSpec>, place: &Place) -> Result<Artifact, Failure> {
    opened(artifact_of(model, quant, place)?, place)
}

/// The artifact itself, or that of a model directory.
fn artifact_of(model: &Path, quant: Option<QuantSpec>, place: &Place) -> Result<PathBuf, Failure> {
    if model.is_dir() { compiled(model, quant, place.target.as_deref()) } else { Ok(model.to_path_buf()) }
}

fn opened(path: PathBuf, place: &Place) -> Result<Artifact, Failure> {
    let failed = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    let artifact = if place.no_mmap { Artifact::read(path) } else { Artifact::open(path) };
    let artifact = artifact.map_err(|e| failed(&e))?;
    let notes = match read_manifest(&artifact) {
        Err(ModelError::Graph { .. }) => read_graph_manifest(&artifact).map_err(|e| failed(&e))?.notes,
        manifest => manifest.map_err(|e| failed(&e))?.notes,
    };
    for note in notes {
        terminal::note(&format!("note: {note}"));
    }
    Ok(artifact)
}

/// Loads an artifact, or a model directory that is compiled first.
fn model(model: &Path, quant: Option<QuantSpec>, place: &Place, threads: Option<u16>) -> Result<Model, Failure> {
    load(&artifact(model, quant, place)?, place, threads)
}

/// Loads an artifact, and says where it runs if that was not asked for.
fn load(artifact: &Artifact, place: &Place, threads: Option<u16>) -> Result<Model, Failure> {
    load_with(artifact, place, place.options(threads))
}

/// Loads an artifact as `options` say, which are those of `place` but for what it does not know. What was checked as a whole
/// before is not checked again unless that is asked for.
fn load_with(artifact: &Artifact, place: &Place, mut options: LoadOptions) -> Result<Model, Failure> {
    let place_of = [place.target.as_deref(), place.device.as_deref()].map(Option::unwrap_or_default).join(" ");
    let checked = Checked::of(artifact, &place_of);
    if !place.verify && checked.as_ref().is_some_and(Checked::before) {
        options = LoadOptions { verify_weights: false, self_test: SelfTest::Kernels, ..options };
    }
    let loaded = Model::load(artifact, &options).map_err(|e| Error::new("", e.to_string()))?;
    if options.verify_weights
        && let Some(checked) = checked
    {
        checked.record();
    }
    if matches!(loaded.executor, AnyExecutor::Wgpu(_)) && place.device.is_none() {
        terminal::note(&format!("running on {}", loaded.executor.device()));
    }
    for replaced in loaded.executor.replaced() {
        terminal::note(&format!("note: {replaced}"));
    }
    Ok(loaded)
}

/// A model that answers, and what is known of where it runs.
struct Opened {
    session: Session,
    device: String,
    /// Kernels that the self-test replaced.
    replaced: Vec<String>,
    /// What its manifest notes.
    notes: Vec<String>,
    /// How long opening took, compiling left out.
    opened: Duration,
    /// What a trace says of it; nothing of an export.
    about: Option<About>,
}

/// Opens whatever answers: an artifact, a model directory that is compiled first, or an export, which is emulated.
fn open(path: &Path, quant: Option<QuantSpec>, place: &Place, threads: Option<u16>) -> Result<Opened, Failure> {
    let failed = |e: &dyn std::fmt::Display| Error::new(path.display(), e.to_string());
    if path.join("manifest.json").is_file() {
        for (flag, given) in [
            ("--target", place.target.is_some()),
            ("--device", place.device.is_some()),
            ("--max-memory", place.max_memory.is_some()),
        ] {
            if given {
                let error = Error::new(flag, format!("has no effect: {} is an export", path.display()));
                return Err(error.help(format!("leave {flag} out: dlxc runs exports on the CPU")).into());
            }
        }
        let start = Instant::now();
        let export = Export::open(path).map_err(|e| Error::new("", e.to_string()))?;
        export.verify_weights().map_err(|e| Error::new("", e.to_string()))?;
        let m = &export.manifest;
        let (device, notes) = (format!("emulation of {} {}", m.target, m.profile), m.notes.clone());
        terminal::note(&format!("running the export {} on the CPU, as its operators are defined", path.display()));
        let emulator = Emulator::of(&export)?;
        let session = export.session(emulator).map_err(|e| failed(&e))?;
        return Ok(Opened { session, device, replaced: Vec::new(), notes, opened: start.elapsed(), about: None });
    }
    let path = artifact_of(path, quant, place)?;
    let start = Instant::now();
    let artifact = opened(path, place)?;
    let loaded = load(&artifact, place, threads)?;
    let about = Some(About::of(&artifact, &loaded.manifest, &loaded.executor));
    let (device, replaced) = (loaded.executor.device(), loaded.executor.replaced());
    let notes = loaded.manifest.notes.clone();
    let session = Session::new(loaded).map_err(|e| failed(&e))?;
    Ok(Opened { session, device, replaced, notes, opened: start.elapsed(), about })
}

/// The cached artifact of a model directory; compiled first unless nothing in the directory has changed since.
fn compiled(model: &Path, quant: Option<QuantSpec>, target: Option<&str>) -> Result<PathBuf, Failure> {
    let targets = vec![target.unwrap_or("cpu").to_owned()];
    let options = CompileOptions { targets, ..CompileOptions::asked(quant) };
    let path = cache::path(model, &options)?;
    if !path.exists() {
        terminal::note(&format!("compiling {} ({}) into {}", model.display(), options.quant, path.display()));
        let view = compile::View::new("compile");
        let outcome = driver::compile(model, &path, &options, &view, terminal::interrupt_flag());
        view.bar.finish_and_clear();
        outcome?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
