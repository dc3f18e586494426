//! `dlxc opt`: passes on IR text, for looking and for bisecting.

use std::io::Read;
use std::path::PathBuf;

use clap::Parser;
use dlx_ir::{Error, Module, VerifiedModule, parse};
use dlx_passes::{Report, parse_pipeline, run_pipeline};

use super::{Failure, terminal};

/// Run passes on IR text.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc opt model.dlx -p dce\n  dlxc opt model.dlx -p \"cse,specialize{T=4}\" > small.dlx"
)]
pub struct Args {
    /// File with IR text; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Passes in order, separated by commas, with options in braces; see `dlxc passes`.
    #[arg(short, long, value_name = "PIPELINE")]
    pub passes: String,
    /// Print to stderr what passes left alone, and why.
    #[arg(long)]
    pub why: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// Text that is not IR or not valid, or a pass that fails.
pub fn run(args: &Args) -> Result<(), Failure> {
    let place = args.file.display().to_string();
    let mut text = String::new();
    let read = if args.file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(&args.file).map(|t| text = t)
    };
    read.map_err(|e| Error::new(&place, format!("cannot be read: {e}")))?;
    let module = parse(&text).map_err(|e| Error { place: format!("{place}: {}", e.place), ..e })?;
    let steps = parse_pipeline(&args.passes)?;
    let module = VerifiedModule::new(module).map_err(|errors| {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Error::new(place, format!("is not valid IR:\n  {}", list.join("\n  ")))
    })?;
    // What a pass left alone often says why a later one fails.
    let mut observe = |_: usize, report: &Report, _: &Module| {
        let notes = report.notes.iter().filter(|_| args.why);
        notes.for_each(|note| terminal::note(&format!("{}: {note}", report.name)));
        Ok(())
    };
    let (module, _) = run_pipeline(module, &steps, &mut observe).map_err(|failure| failure.error)?;
    terminal::print(&module.to_string())
}
