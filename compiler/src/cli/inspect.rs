//! `dlxc inspect`: what can be typed.

use std::path::PathBuf;

use clap::Parser;

/// Show what is in an artifact or a model directory.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc inspect sdar.dlxa\n  dlxc inspect sdar.dlxa --ir | less\n  dlxc inspect models/sdar"
)]
pub struct Args {
    /// A .dlxa file or a model directory.
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: PathBuf,
    /// Print the program.
    #[arg(long)]
    pub ir: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}
