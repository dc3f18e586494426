//! `dlxc report`: one HTML page about a compile and an answer.

use std::path::{Path, PathBuf};

use clap::Parser;
use dlx_ir::Error;

use super::{Failure, inspect, table, terminal};
use crate::driver;
use crate::explain;
use crate::files;
use crate::report::{self, Inputs, Machine};

/// Write a page to look at: what the passes did, what is in an artifact, and how an answer came about.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc compile models/sdar -o sdar.dlxa --dump stages\n  dlxc report stages -o report.html                         what each pass changed\n  dlxc report sdar.dlxa -o report.html                      sizes, memory, time, graphs\n  dlxc report stages sdar.dlxa answer.trace -o report.html  all of it on one page\n  dlxc report sdar.dlxa --machine server.json -o report.html\n\nThe page is one file that loads nothing from anywhere."
)]
pub struct Args {
    /// A directory of stages (compile --dump), a .dlxa file, a recording of a decode; one of each at most.
    #[arg(value_name = "DIR|ARTIFACT|TRACE", required = true)]
    pub inputs: Vec<PathBuf>,
    /// The page to write.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Limits of a machine to predict times for, instead of those that `dlxc explain` keeps for this one.
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Number of threads to predict times for, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// Runs the subcommand.
///
/// # Errors
/// When an input is damaged or of an unknown kind, or the page cannot be written or would replace an input.
pub fn run(args: &Args) -> Result<(), Failure> {
    for input in &args.inputs {
        driver::keep_input(input, &args.output)?;
    }
    let inputs = Inputs::read(&args.inputs)?;
    let facts = inputs.artifact().map(inspect::facts).transpose()?.unwrap_or_default();
    let machine = machine(args)?;
    if machine.is_none() && inputs.artifact().is_some() {
        terminal::note(
            "note: no limits of this machine are kept, so no times are predicted; `dlxc explain ARTIFACT` measures them",
        );
    }
    let page = report::page(&inputs, &facts, machine.as_ref())?;
    write(&args.output, &page)?;
    terminal::print(&format!("{}: {}\n", args.output.display(), table::bytes(page.len() as u64)))
}

/// The limits of the file that is named, or those kept for this machine, if any are.
fn machine(args: &Args) -> Result<Option<Machine>, Error> {
    let here = explain::Machine::here()?;
    let threads = args.threads.map_or(here.cores, usize::from);
    let path = match &args.machine {
        Some(path) => path.clone(),
        None => match here.path() {
            Ok(path) if path.exists() => path,
            _ => return Ok(None),
        },
    };
    let machine = explain::Machine::read(&path)?;
    let threads = if args.threads.is_none() && args.machine.is_some() { machine.cores } else { threads };
    let Some(limits) = machine.of(threads).cloned() else {
        if args.machine.is_none() && args.threads.is_none() {
            return Ok(None);
        }
        let have: Vec<_> = machine.limits.iter().map(|l| l.threads.to_string()).collect();
        let message = format!("has no limits of {threads} threads, only of {}", have.join(", "));
        return Err(Error::new(path.display(), message).help("choose one of them with --threads N"));
    };
    let path = path.file_name().map(PathBuf::from).unwrap_or(path);
    Ok(Some(Machine { path, name: format!("{}, {}", machine.cpu, machine.isa), limits }))
}

/// Writes it beside its place and renames it.
fn write(path: &Path, page: &str) -> Result<(), Error> {
    let failed = |e: std::io::Error| {
        Error::new(path.display(), format!("cannot be written: {e}"))
            .help("choose a directory that exists and can be written")
    };
    if path.is_dir() {
        return Err(Error::new(path.display(), "is a directory").help("give the name of a file, such as report.html"));
    }
    files::write(path, page.as_bytes()).map_err(failed)
}
