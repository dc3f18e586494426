//! `dlxc opt`: what can be typed.

use std::path::PathBuf;

use clap::Parser;

/// Run passes on IR text.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc opt model.dlx -p dce\n  dlxc opt model.dlx -p \"cse,specialize{rows=4}\" > small.dlx"
)]
pub struct Args {
    /// File with IR text; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Passes in order, separated by commas, with options in braces; see `dlxc passes`.
    #[arg(short, long, value_name = "PIPELINE")]
    pub passes: String,
}
