//! Imports every golden ONNX file and compares it with what other runtimes compute of it: the graph node by node, with all
//! inputs given at run time, and, of a generator, what the raise passes make of it.
//!
//! Not a libtest harness, so that it always prints how many files ran; an argument selects files by part of their name.
#![allow(clippy::print_stdout, reason = "the report of a test program")]

use std::process::ExitCode;
use std::time::Instant;

use dlx_ir::{DType, Mask, Op};
use dlx_tests::onnx::{File, files};
use dlxc::onnx::{OnnxModel, generator};

fn main() -> ExitCode {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let files = match files() {
        Ok(files) => files,
        Err(error) => {
            println!("FAILED {error}");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for file in files.iter().filter(|f| filter.is_empty() || filter.iter().any(|part| f.name.contains(part))) {
        let begin = Instant::now();
        match check(file) {
            Ok(report) => {
                passed += 1;
                println!("ok     {} ({:.1} s): {report}", file.name, begin.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {}: {error}", file.name);
            }
        }
    }
    println!("\nonnx_import: {passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(file: &File) -> Result<String, String> {
    let model = OnnxModel::open(&file.path).map_err(|e| e.to_string())?;
    let (mut ops, mut narrow) = (0, false);
    for (n, run) in file.runs.iter().enumerate().filter(|(_, run)| !run.raised_only) {
        let import = run.portable(&model).map_err(|e| format!("case {n}, node by node: {e}"))?;
        let graph = &import.module.graphs[0];
        ops = graph.nodes.len();
        narrow = graph.results.iter().any(|r| graph.values[*r].ty.dtype != DType::F32);
    }
    let cases = file.runs.len();
    let Some(mask) = file.mask else {
        return Ok(format!("{cases} cases, {ops} nodes"));
    };
    let raised = generator(&model, mask, 4096).map_err(|e| e.to_string())?;
    if raised.mask != mask || raised.attentions != file.attentions {
        let found = (raised.attentions, raised.mask);
        return Err(format!("{} attentions under {} instead of {} under {mask}", found.0, found.1, file.attentions));
    }
    let nodes = raised.module.graphs.iter().flat_map(|g| &g.nodes);
    if let Some(left) = nodes.clone().find(|n| !is_model_op(&n.op)) {
        return Err(format!("`{}` is left unraised", left.op.name()));
    }
    let weights = raised.sources.weights(&model).map_err(|e| e.to_string())?;
    let mut worst: f64 = 0.0;
    let mut compared = 0;
    // A graph that rounds activations, to integers or to 16 bits, says other numbers than one that does not.
    let rounds = raised.notes.iter().any(|n| n.contains("left out") && n.contains("activations"));
    let least = if rounds {
        0.5
    } else if narrow {
        0.3
    } else {
        0.0
    };
    for (n, run) in file.runs.iter().enumerate() {
        if let Some(off) = run.raised(&raised.module, &weights, least).map_err(|e| format!("case {n}, raised: {e}"))? {
            worst = worst.max(off);
            compared += 1;
        }
    }
    let attentions = raised.attentions;
    Ok(format!(
        "{cases} cases, {ops} nodes; raised: {attentions} attentions, {mask}, logits of {compared} cases within {worst:.1e}"
    ))
}

/// What a checkpoint's `@forward` consists of.
fn is_model_op(op: &Op) -> bool {
    !matches!(op, Op::Attention { mask: Some(Mask::Local(_)), .. })
        && (op.level() == dlx_ir::Level::Model
            || matches!(op, Op::Silu {} | Op::Mul {} | Op::Add {} | Op::Scale { .. }))
}
