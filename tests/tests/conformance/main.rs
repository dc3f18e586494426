//! Conformance: what every op computes, on the reference evaluator and on every target that supports it.
//!
//! `tests/conformance/<op>.dlx` holds a module, calls and the numbers that must come out; they were worked out apart from
//! this code base. See [`format`] for the text. A target is tested on graphs that are shaped like its entries.

mod cpu;
mod format;
mod graph;
mod wgpu;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dlx_ir::{Evaluator, OPS, verify};
use dlx_runtime::cpu::Isa;
use dlx_targets::TARGETS;

use format::{File, compare};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")
}

/// Every file with the op that it is named after.
fn files() -> Vec<(String, File)> {
    let mut paths: Vec<_> = std::fs::read_dir(root())
        .expect("the workspace can be read")
        .map(|e| e.expect("the workspace can be read").path())
        .collect();
    paths.sort();
    paths.retain(|p| p.extension().is_some_and(|e| e == "dlx"));
    assert!(!paths.is_empty(), "there are no conformance files in {}", root().display());
    let read = |path: PathBuf| {
        let name = path.file_stem().expect("the workspace can be read").to_string_lossy().into_owned();
        let file = format::read(&std::fs::read_to_string(&path).expect("the workspace can be read"));
        let file = file.unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, file)
    };
    paths.into_iter().map(read).collect()
}

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
}

#[test]
fn reference() {
    let run = |file: &File| -> Result<(), String> {
        verify(&file.module).map_err(|e| e[0].to_string())?;
        let source = |name: &str| file.weights.get(name).cloned().ok_or(format!("@{name} has no contents"));
        let mut evaluator = Evaluator::new(&file.module, &source, format::SLOTS);
        for call in &file.calls {
            let mut seen = Vec::new();
            let outcome =
                evaluator.run(&call.graph, &call.args, &mut |name, v| seen.push((name.to_owned(), v.clone())));
            let results = match (outcome, &call.error) {
                (Ok(results), None) => results,
                (Err(e), Some(message)) if e.message.contains(message) => continue,
                (Err(e), _) => return Err(format!("@{}: {e}", call.line)),
                (Ok(_), Some(message)) => return Err(format!("@{}: no error: {message}", call.line)),
            };
            let mut results = results.into_iter();
            for check in &call.checks {
                let found = match &check.name {
                    Some(name) => seen.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()),
                    None => results.next(),
                };
                let what = check.name.as_deref().unwrap_or("result");
                let found = found.ok_or_else(|| format!("@{}: there is no {what}", call.line))?;
                compare(&check.expected, &found, check.tolerance)
                    .map_err(|e| format!("@{}\n{what}: {e}", call.line))?;
            }
        }
        Ok(())
    };
    report(files().iter().filter_map(|(name, file)| Some(format!("{name}: {}", run(file).err()?))).collect());
}

#[test]
fn pure_graphs_on_the_graph_executor() {
    let (mut failures, mut calls) = (Vec::new(), 0);
    for (name, file) in files() {
        match graph::run(&file) {
            Ok(done) => calls += done,
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    report(failures);
    assert!(calls > 20, "only {calls} calls ran");
}

#[test]
fn cpu_on_every_instruction_set() {
    let mut failures = Vec::new();
    for isa in Isa::ALL.iter().copied().filter(|isa| isa.available()) {
        for (name, file) in files().iter().filter(|(_, f)| f.calls.iter().any(|c| cpu::is_entry(&c.graph))) {
            failures.extend(cpu::run(file, isa).err().map(|e| format!("{name} on {isa:?}: {e}")));
        }
    }
    report(failures);
}

#[test]
#[allow(clippy::print_stderr, reason = "says that nothing was tested")]
fn wgpu_on_the_first_device() {
    if dlx_runtime::wgpu::adapters().is_empty() {
        assert!(std::env::var_os("DLX_REQUIRE_WGPU").is_none(), "no wgpu adapter, although DLX_REQUIRE_WGPU is set");
        eprintln!("skipped: no wgpu adapter");
        return;
    }
    let mut failures = Vec::new();
    for (name, file) in files().iter().filter(|(_, f)| f.calls.iter().any(|c| cpu::is_entry(&c.graph))) {
        // Caches of int8 are the CPU's alone.
        if !name.ends_with("-int8") {
            failures.extend(wgpu::run(file).err().map(|e| format!("{name}: {e}")));
        }
    }
    report(failures);
}

#[test]
fn every_op_has_a_file() {
    let files = files();
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let missing: Vec<_> = OPS.iter().map(|op| op.name).filter(|name| !names.contains(name)).collect();
    assert!(missing.is_empty(), "no conformance file for {missing:?}");
    for (name, file) in &files {
        // `kv_write-int8.dlx` is about `kv_write`, too.
        let name = name.split('-').next().expect("split gives a part");
        let graphs = file.module.graphs.iter().flat_map(|g| g.nodes.iter().map(move |n| (g, &n.op)));
        let in_graphs: Vec<_> = graphs.filter(|(_, op)| op.name() == name).collect();
        let weights = file.module.weights.iter();
        let in_weights = weights.filter(|(_, w)| matches!(&w.def, dlx_ir::WeightDef::Expr(op, _) if op.name() == name));
        assert!(in_graphs.len() + in_weights.count() > 0, "{name}.dlx has no {name}");
        for target in TARGETS {
            let supported = in_graphs.iter().any(|(_, op)| (target.supports)(op));
            let called = |g: &dlx_ir::Graph| cpu::is_entry(&g.name) && file.calls.iter().any(|c| c.graph == g.name);
            // What an op on a state did may show in a later call.
            let checked = file.calls.iter().any(|c| cpu::is_entry(&c.graph) && !c.checks.is_empty());
            let tested = checked && in_graphs.iter().any(|(g, _)| called(g));
            assert!(
                tested || !supported,
                "{name}.dlx does not run {name} in an entry, but {} supports it",
                target.name
            );
        }
    }
}
