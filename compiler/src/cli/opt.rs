//! `dlxc opt`: passes on IR text, for looking and for bisecting.

use std::path::PathBuf;

use clap::Parser;
use dlx_ir::{Module, VerifiedModule};
use dlx_passes::{Report, Step, parse_pipeline, run_pipeline};

use super::checks::Checks;
use super::{Failure, terminal};
use crate::check::built::read_ir;
use crate::check::each::{Checked, Tolerances, verify_each};
use crate::check::source::Seeded;

/// Run passes on IR text.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc opt model.dlx -p dce\n  dlxc opt model.dlx -p \"cse,specialize{T=4}\" > small.dlx\n  dlxc opt model.dlx -p fuse-norm --verify-each"
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
    /// Run the module before and after every pass on made up weights and inputs, and report instead of printing the result.
    #[arg(long)]
    pub verify_each: bool,
    /// Error that --verify-each allows a pass, as RMS over that of each node, instead of what the pass says.
    #[arg(long, value_name = "PASS=ERROR,…", requires = "verify_each")]
    pub tolerance: Option<Tolerances>,
    /// Seed of weights and inputs that are made up.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "verify_each")]
    pub seed: u64,
    /// Report as JSON.
    #[arg(long, requires = "verify_each")]
    pub json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// Text that is not IR or not valid, a pass that fails, or one that does not keep what it says.
pub fn run(args: &Args) -> Result<(), Failure> {
    let module = read_ir(&args.file)?;
    let steps = parse_pipeline(&args.passes)?;
    if args.verify_each {
        return verify(args, &module, &steps);
    }
    // What a pass left alone often says why a later one fails.
    let mut observe = |_: usize, report: &Report, _: &Module| {
        let notes = report.notes.iter().filter(|_| args.why);
        notes.for_each(|note| terminal::note(&format!("{}: {note}", report.name)));
        Ok(())
    };
    let (module, _) = run_pipeline(module, &steps, &mut observe).map_err(|failure| failure.error)?;
    terminal::print(&module.to_string())
}

/// Runs the module before and after every pass, with made up weights and inputs.
fn verify(args: &Args, module: &VerifiedModule, steps: &[Step]) -> Result<(), Failure> {
    let mut checks = Checks::default();
    checks.begin("", &[]);
    let weights = Seeded { module, seed: args.seed };
    let tolerances = args.tolerance.clone().unwrap_or_default();
    let (all, _) = verify_each(module, steps, &weights, args.seed, &tolerances, &mut |c| checks.add(c))?;
    terminal::print(&if args.json { format!("{:#}\n", checks.json()) } else { checks.text() })?;
    match all.iter().find_map(Checked::error) {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}
