//! `dlxc lint`: what a device would compute wrongly of ONNX files, or not take.

use std::path::{Path, PathBuf};

use clap::Parser;
use dlx_ir::Error;
use serde_json::json;

use super::table::{Align, table};
use super::{Failure, terminal};
use crate::export::{Finding, RULES, lint};
use crate::onnx::OnnxModel;

/// Find what Qualcomm's HTP backend accepts of ONNX files and computes wrongly, or does not take.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc lint sdar-npu\n  dlxc lint model.onnx --json\n  dlxc lint --rules\n\nExit status: 0 nothing found, 1 something found."
)]
pub struct Args {
    /// ONNX files, or directories with some, such as an export.
    #[arg(value_name = "FILE.onnx|DIR", required_unless_present = "rules")]
    pub paths: Vec<PathBuf>,
    /// List the rules.
    #[arg(long)]
    pub rules: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// A file that cannot be read, or in which something is found.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.rules {
        let row =
            |r: &crate::export::Rule| vec![r.name.to_owned(), format!("{:?}", r.kind), r.what.into(), r.fix.into()];
        let rows: Vec<_> = RULES.iter().map(row).collect();
        let columns =
            [("rule", Align::Left), ("", Align::Left), ("what happens", Align::Left), ("remedy", Align::Left)];
        return terminal::print(&table(&columns, &rows));
    }
    let mut findings: Vec<Finding> = Vec::new();
    for path in &args.paths {
        for file in files(path)? {
            findings.extend(lint(&OnnxModel::open(&file)?));
        }
    }
    if args.json {
        terminal::print(&format!("{:#}\n", json!(findings)))?;
    } else {
        let shown: String = findings.iter().map(|f| format!("{f}\n")).collect();
        terminal::print(&shown)?;
    }
    match findings.len() {
        0 => Ok(()),
        n => Err(Error::new("lint", format!("found {n} problems")).help("`dlxc lint --rules` lists all rules").into()),
    }
}

/// A file, or the ONNX files of a directory in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let failed = |e: std::io::Error| Error::new(path.display(), format!("cannot be read: {e}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|e| e == "onnx") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(
            Error::new(path.display(), "holds no ONNX files").help("name a file, or the directory of an export")
        );
    }
    Ok(files)
}
