//! `dlxc trace`: recorded decodes shown, run again, and compared; and the file that `dlxc run --trace` writes.
//!
//! Invariant: a file of recordings is whole or not there, and text from one reaches the terminal without control characters.

pub mod diff;
pub mod replay;
pub mod show;

use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use dlx_ir::{Error, Module};
use dlx_runtime::artifact;
use dlx_runtime::decode::FinishReason;
use dlx_runtime::session::{Event, Report};
use dlx_runtime::text::Tokenizer;
use dlx_runtime::trace::{About, How, Recorder, Rerun, Trace, rerun};
use dlx_runtime::{AnyExecutor, Model};
use indicatif::{ProgressBar, ProgressDrawTarget};
use tempfile::NamedTempFile;

use super::canvas::shown;
use super::{Failure, Place, terminal};
use crate::options::QuantSpec;
use crate::trace::{Inside, Parting, What, compare};

/// Show recorded decodes, run them again, and find where two part.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  dlxc run sdar.dlxa \"What is 27 + 45?\" --trace t.jsonl     record a decode
  dlxc trace show t.jsonl                                   what was revealed when
  dlxc trace replay t.jsonl --model sdar.dlxa --threads 1   the same to the bit?
  dlxc trace diff t.jsonl --model sdar.dlxa --target cpu --against-target wgpu";

#[derive(Subcommand, Debug)]
enum Command {
    Show(show::Args),
    Replay(replay::Args),
    Diff(diff::Args),
}

/// Runs the subcommand.
///
/// # Errors
/// A trace or model that cannot be read or run, or two that differ; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Show(args) => show::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Diff(args) => diff::run(args),
    }
}

/// A recording that is being made. Nothing is at its path before it is finished.
pub struct Recording {
    path: PathBuf,
    recorder: Recorder<BufWriter<NamedTempFile>>,
}

impl Recording {
    /// Begins one.
    ///
    /// # Errors
    /// Where nothing can be written, and for a model that is no artifact.
    pub fn create(path: &Path, about: Option<About>) -> Result<Self, Error> {
        let about = about.ok_or_else(|| {
            Error::new("--trace", "records artifacts, and this is an export")
                .help("give the artifact of the same model")
        })?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(parent);
        let file = file.map_err(|e| Error::new(path.display(), format!("cannot be written: {e}")))?;
        Ok(Recording { path: path.into(), recorder: Recorder::new(BufWriter::new(file), about) })
    }

    /// Writes what an event tells.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take(&mut self, event: &Event<'_>) -> Result<(), Error> {
        self.recorder.take(event).map_err(|e| Error::new(self.path.display(), e.to_string()))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self, report: &Report, tokenizer: &Tokenizer) -> Result<(), Error> {
        let Recording { path, recorder } = self;
        let failed = |e: &dyn std::fmt::Display| Error::new(path.display(), format!("cannot be written: {e}"));
        let file = recorder.finish(report, tokenizer).map_err(|e| failed(&e))?;
        let file = file.into_inner().map_err(|e| failed(&e.error()))?;
        file.as_file().sync_all().map_err(|e| failed(&e))?;
        file.persist(&path).map(drop).map_err(|e| failed(&e.error))
    }
}

fn read(path: &Path) -> Result<Trace, Error> {
    Trace::read(path).map_err(|e| Error::new("", e.to_string()))
}

/// A model that a trace is run on.
struct Side {
    model: Model,
    program: Module,
    about: About,
}

impl Side {
    fn open(path: &Path, quant: Option<QuantSpec>, place: &Place, threads: Option<u16>) -> Result<Self, Failure> {
        let artifact = super::artifact(path, quant, place)?;
        let model = super::load(&artifact, place, threads)?;
        let about = About::of(&artifact, &model.manifest, &model.executor);
        let program = artifact.text(&artifact::program_section(&about.target));
        let program = program.map_err(|e| Error::new("", e.to_string()))?;
        let program = dlx_ir::parse(program).map_err(|e| Error::new(artifact.path().display(), e.to_string()))?;
        Ok(Side { model, program, about })
    }

    /// Runs the first `upto` passes of a trace.
    fn run(&mut self, trace: &Trace, how: How, upto: usize) -> Result<Rerun, Failure> {
        let bar = ProgressBar::with_draw_target(Some(trace.steps.len().min(upto) as u64), ProgressDrawTarget::stderr());
        let mut began = |_| {
            bar.inc(1);
            if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let executor = &mut *self.model.executor;
        let done = rerun(executor, &self.model.manifest, trace, how, upto, &mut began);
        bar.finish_and_clear();
        if terminal::interrupted() {
            return Err(Failure::Interrupted);
        }
        Ok(done.map_err(|e| Error::new("", e.to_string()))?)
    }

    fn inside(&mut self) -> Inside<'_> {
        Inside { executor: &mut *self.model.executor, program: &self.program }
    }

    /// What it is, in words.
    fn name(&self) -> String {
        let kind = if matches!(self.model.executor, AnyExecutor::Cpu(_)) { "cpu: " } else { "" };
        format!("{kind}{}, artifact {}", self.about.device, short(&self.about.artifact))
    }
}

/// As much of an artifact's hash as tells it from others.
fn short(hash: &str) -> String {
    hash.chars().take(12).map(shown).collect()
}

/// A token as it stands in a line: its text, or its number where the trace does not know it.
fn token(id: i32, trace: &Trace, tokenizer: Option<&Tokenizer>) -> String {
    let text = trace.end.tokens.get(&id).cloned();
    match text.or_else(|| tokenizer?.decode(&[id], false).ok()) {
        Some(text) if !text.is_empty() => text.chars().map(shown).collect(),
        _ => format!("#{id}"),
    }
}

/// What a recording and a second run of it differ in; also where that would go on behind the end of a recording that ended by
/// itself.
fn differences(trace: &Trace, again: &Rerun, tolerance: f32) -> Vec<Parting> {
    let mut partings = compare(&trace.steps, &again.steps, tolerance);
    let by_itself =
        matches!(trace.end.finish, FinishReason::StopId | FinishReason::MaxTokens | FinishReason::ContextFull);
    if partings.is_empty() && by_itself && !again.next.is_empty() {
        partings.push(Parting { step: trace.steps.len(), position: None, what: What::Missing });
    }
    partings
}

/// A difference in words.
fn describe(parting: &Parting, trace: &Trace, tokenizer: Option<&Tokenizer>) -> String {
    let step = trace.steps.get(parting.step);
    let pass = match step {
        Some(step) => {
            let kind = serde_json::to_string(&step.pass.kind).unwrap_or_default();
            let (first, last) = (step.pass.start, step.pass.start + step.pass.rows);
            format!("pass {} ({}, {first}..{last}, line {})", parting.step + 1, kind.trim_matches('"'), step.line)
        }
        None => format!("pass {}", parting.step + 1),
    };
    let position = parting.position.map_or(String::new(), |position| format!(", position {position}"));
    let text = |id: i32| format!("{:?}", token(id, trace, tokenizer));
    let number = |x: Option<f32>| x.map_or("nothing".to_owned(), |x| x.to_string());
    let got = |token: Option<i32>| token.map_or("stays undecided".to_owned(), |id| format!("becomes {}", text(id)));
    let what = match &parting.what {
        What::Missing => "only one of the two has it".to_owned(),
        What::Pass => "feeds or reads other rows".to_owned(),
        What::Number { name, of: [a, b] } => format!("`{name}` is {} and {}", number(*a), number(*b)),
        What::Token { of: [a, b] } => format!("the token is {} and {}", text(*a), text(*b)),
        What::Revealed { of: [a, b] } => format!("it {} and {}", got(*a), got(*b)),
        What::Order => "positions are revealed in another order, or for another reason".to_owned(),
    };
    format!("{pass}{position}: {what}")
}
