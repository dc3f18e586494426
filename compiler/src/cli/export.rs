//! `dlxc compile --target qnn`: what it reports.

use std::time::Instant;

use serde_json::json;

use super::compile::{Args, View};
use super::{Failure, table, terminal};
use crate::driver;

/// Exports and reports.
pub(super) fn run(args: &Args, view: &View, started: Instant) -> Result<(), Failure> {
    let (options, flag) = (args.options(), terminal::interrupt_flag());
    let summary = driver::export(&args.model, &args.output, &options, args.force, view, flag);
    view.bar.finish_and_clear();
    let (summary, took) = (summary?, started.elapsed());
    let m = &summary.manifest;
    if args.json {
        let report = json!({
            "output": args.output, "bytes": summary.bytes, "seconds": took.as_secs_f64(), "manifest": m,
        });
        return terminal::print(&format!("{report:#}\n"));
    }
    let mut out = format!("target {}, profile {}\n", m.target, m.profile);
    for entry in &m.entries {
        let (inputs, outputs) = (entry.inputs.len(), entry.outputs.len());
        out.push_str(&format!("  {}: {} rows, {inputs} inputs, {outputs} outputs\n", entry.file, entry.rows));
    }
    out.push_str(&format!("  {}: {}\n", m.weights.file, table::bytes(m.weights.bytes)));
    out.push_str(&format!("calibration: {}\n", m.calibration));
    for note in &m.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    let (size, took) = (table::bytes(summary.bytes), table::duration(took));
    terminal::print(&format!("{out}\n{}: {size} in {took}\n", args.output.display()))
}
