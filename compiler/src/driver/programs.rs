//! One program per target, on its way from the imported module to what the target's executor is given.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dlx_ir::{Error, Module, QuantFormat, VerifiedModule};
use dlx_passes::{Failure, Report, parse_pipeline, run_pipeline};
use dlx_runtime::cpu::{CpuExecutor, CpuOptions};
use dlx_runtime::selftest::{self, GoldenVectors};
use dlx_targets::artifact_writer::{ArtifactWriter, Space};
use dlx_targets::{CodeRows, Emission, Placed, Product, Recoded, Settings, TARGETS, Target, WeightSource, emit, place};

use super::input::Weights;
use super::{Compile, Watch};
use crate::check::builds::BEHIND;
use crate::options::CompileOptions;

/// Passes in order, with the target that they ran for.
type Passes = Vec<(&'static str, Report)>;

/// A program behind its target's passes, and where its weights will lie.
pub(super) struct Lowered {
    target: &'static Target,
    pipeline: String,
    module: VerifiedModule,
    pub(super) placed: Placed,
    pub(super) product: Product,
}

impl Lowered {
    /// Bytes of its program and of its plan in the artifact.
    pub(super) fn text_bytes(&self) -> (u64, u64) {
        let plan = self.product.plan_bytes().map_or(0, |plan| plan.len() as u64);
        (self.placed.module.to_string().len() as u64, plan)
    }
}

/// A program whose weights are in the artifact.
pub(super) struct Stored {
    pub(super) target: &'static Target,
    pub(super) pipeline: String,
    pub(super) module: VerifiedModule,
    /// Bytes of weights that no program before it has.
    pub(super) bytes: u64,
    /// What became of those that came as codes.
    pub(super) recoded: Vec<Recoded>,
}

/// A finished program.
pub(super) struct Program {
    pub(super) stored: Stored,
    pub(super) product: Product,
}

/// What a run of the stored weights tells.
pub(super) struct Golden {
    pub(super) vectors: GoldenVectors,
}

/// The target whose executor records the golden vectors of every artifact.
const RECORDER: &str = "cpu";

/// Runs each target's pipeline on a copy of the imported module, and decides where weights go: the space that they take. Nothing is
/// read or written.
pub(super) fn lower(
    options: &CompileOptions,
    watch: &dyn Watch,
    targets: &[&'static Target],
    imported: &VerifiedModule,
    settings: &Settings,
) -> Result<(Vec<Lowered>, Passes, Space), Error> {
    let mut lowered: Vec<Lowered> = Vec::new();
    let mut passes = Vec::new();
    let mut space = Space::default();
    for &target in targets {
        let pipeline = options.pipeline.clone().map_or_else(|| (target.pipeline)(settings), Ok)?;
        // One directory per target as soon as there are several.
        let dump = options.dump.as_ref();
        let dump = dump.map(|d| if targets.len() > 1 { d.join(target.name) } else { d.clone() });
        let (module, reports) = run_passes(options, watch, imported.clone(), &pipeline, dump.as_deref())?;
        target.check(&module).map_err(Error::first_of)?;
        passes.extend(reports.into_iter().map(|r| (target.name, r)));
        let before: Vec<&Module> = lowered.iter().map(|l| &*l.placed.module).collect();
        let placed = place(&module, &before, &mut |len| space.reserve(len))?;
        let product = (target.product)(&placed.module, settings)?;
        lowered.push(Lowered { target, pipeline, module, placed, product });
    }
    Ok((lowered, passes, space))
}

impl Compile<'_> {
    /// Writes the weights of each program where they were placed.
    pub(super) fn store(
        &self,
        lowered: Vec<Lowered>,
        weights: &dyn Weights,
        writer: &ArtifactWriter,
    ) -> Result<Vec<Program>, Error> {
        let source = Checked { weights, allow_nonfinite: self.options.allow_nonfinite };
        let progress = |done, total| self.watch.progress(done, total);
        let mut programs = Vec::new();
        for Lowered { target, pipeline, module, placed, product } in lowered {
            let emission = emit(&module, placed, &source, writer, self.cancel, &progress)?;
            let Emission { module, bytes, recoded } = emission;
            programs.push(Program { stored: Stored { target, pipeline, module, bytes, recoded }, product });
        }
        Ok(programs)
    }

    /// Runs the probes of the self-test on the weights just written. The CPU's executor records them for every target. A
    /// program of another target becomes its own by taking the layouts of its caches: every target reads the weights
    /// that the CPU reads, so nothing is written for it.
    pub(super) fn record(&self, programs: &[Program], writer: &ArtifactWriter) -> Result<Golden, Error> {
        let recorder = find_target(RECORDER)?;
        let stored = || programs.iter().map(|p| &p.stored);
        let program = stored().find(|s| s.target.name == RECORDER).or(stored().next());
        let program = program.ok_or_else(|| Error::new("--target", "names no target"))?;
        let passes = if program.target.name == RECORDER { String::new() } else { recorder.lower_pass() };
        let outcome = run_pipeline(program.module.clone(), &parse_pipeline(&passes)?, &mut |_, _, _| Ok(()));
        let (module, _) = outcome.map_err(|failure| failure.error)?;

        let (file, weights) = writer.map_weights()?;
        let cpu = CpuOptions { threads: self.options.threads.unwrap_or(0), isa: None };
        let failed = |e: String| Error::new(self.output.display(), e);
        let mut executor = CpuExecutor::new(&module, file, weights, cpu).map_err(|e| failed(e.to_string()))?;
        executor.pass_weights();
        let vectors = selftest::record(&mut executor).map_err(|e| failed(e.to_string()))?;
        Ok(Golden { vectors })
    }
}

/// Runs a pipeline with the dumps and prints asked for.
pub(super) fn run_passes(
    options: &CompileOptions,
    watch: &dyn Watch,
    module: VerifiedModule,
    pipeline: &str,
    dump: Option<&Path>,
) -> Result<(VerifiedModule, Vec<Report>), Error> {
    let steps = parse_pipeline(pipeline)?;
    for pass in &options.print_after {
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
        if options.print_after.iter().any(|p| p == name) {
            watch.print(name, &module.to_string());
        }
        match dump {
            Some(dir) if report.changes > 0 => write_text(
                &dir.join(format!("{number:02}-{name}.dlx")),
                &format!("{BEHIND}{}\n{module}", steps[number - 1]),
            ),
            _ => Ok(()),
        }
    });
    outcome.map_err(|failure| with_repro(*failure, dump))
}

/// The targets asked for, in that order.
pub(super) fn find_targets(options: &CompileOptions) -> Result<Vec<&'static Target>, Error> {
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
        let exports = super::EXPORTS.iter().map(|(name, _)| *name);
        let known: Vec<_> = TARGETS.iter().map(|t| t.name).chain(exports).collect();
        Error::new("--target", format!("there is no target `{name}`")).help(format!("use one of {}", known.join(", ")))
    })
}

/// Reads rows of a model and refuses what is not finite.
pub(super) struct Checked<'a> {
    pub(super) weights: &'a dyn Weights,
    pub(super) allow_nonfinite: bool,
}

impl WeightSource for Checked<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let first = rows.start;
        self.weights.read_rows(name, rows, out)?;
        if self.allow_nonfinite { Ok(()) } else { self.weights.check_finite(name, first, out) }
    }

    /// Scales that are not finite do not pass emission, whatever is allowed.
    fn read_codes(&self, name: &str, format: QuantFormat, rows: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        self.weights.read_codes(name, format, rows, out)
    }

    fn stored_as(&self, name: &str) -> Option<&str> {
        self.weights.stored_as(name)
    }

    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        self.weights.read_bytes(name, rows, out)
    }

    fn release_rows(&self, name: &str, rows: Range<usize>) {
        self.weights.release_rows(name, rows);
    }
}

/// Writes the failing pass's repro file and says where it is.
fn with_repro(failure: Failure, dump: Option<&Path>) -> Error {
    let dir = dump.map_or_else(std::env::temp_dir, PathBuf::from);
    let error = failure.error;
    // A file of its own: others may have made one of any name in a shared directory.
    let file = tempfile::Builder::new().prefix("dlxc-repro-").suffix(".dlx").tempfile_in(dir);
    let written = file.and_then(|mut file| {
        file.write_all(failure.repro.as_bytes())?;
        Ok(file.keep()?.1)
    });
    match written {
        Ok(path) => {
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
