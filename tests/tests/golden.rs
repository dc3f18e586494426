//! Runs the golden cases of every model family: on the compiled f32 artifact on the CPU and on a graphics device (where
//! there is one), on the reference evaluator, and on an independent f64 implementation.
//!
//! Not a libtest harness, so that it always prints how many cases ran; an argument selects checks by part of their name.
#![allow(clippy::print_stdout, reason = "the report of a test program")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dlx_ir::Mask;
use dlx_runtime::cpu::CpuExecutor;
use dlx_runtime::wgpu::adapters;
use dlx_runtime::{AnyExecutor, LoadOptions};
use dlx_tests::compiled::{self, Interpreted};
use dlx_tests::golden::{self, Case, check_family, run_case, run_hidden, run_tokenizer, run_unit};
use dlx_tests::naive::Naive;
use dlxc::options::{CompileOptions, QuantSpec};

/// Families of cases, alphabetically.
const FAMILIES: &[&str] =
    &["a2d", "a2d-qwen2", "dream", "fast-dllm-v2", "llada", "llada-gqa", "qwen2", "qwen3", "sdar"];
/// Rows of the caches; no case is longer.
const MAX_SEQ: usize = 160;

/// What a check found, or what is wrong.
type Check = Box<dyn Fn() -> Result<String, String>>;

fn main() -> ExitCode {
    // Parts of names; those behind `--skip` are left out.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let skips = |at: usize| at > 0 && args[at - 1] == "--skip";
    let (skip, filter): (Vec<_>, Vec<_>) =
        args.iter().enumerate().filter(|(_, a)| !a.starts_with('-')).partition(|(at, _)| skips(*at));
    let any = |parts: &[(usize, &String)], name: &str| parts.iter().any(|(_, part)| name.contains(part.as_str()));
    let mut checks: Vec<(String, Check)> = Vec::new();
    for &family in FAMILIES {
        let mut add = |what: &str, run: Check| checks.push((format!("{family} {what}"), run));
        add("artifact", Box::new(move || cases(family, &artifact)));
        if !family.starts_with("a2d") {
            add("artifact-unfused", Box::new(move || hidden(family)));
        }
        add("evaluator", Box::new(move || cases(family, &evaluator)));
        add("naive", Box::new(move || cases(family, &naive)));
        add("wgpu", Box::new(move || on_device(&|| cases(family, &wgpu))));
        add("artifact side by side", Box::new(move || beside(family, "cpu")));
        add("wgpu side by side", Box::new(move || on_device(&|| beside(family, "wgpu"))));
        if !family.starts_with("a2d") {
            let tokenizer = move || summary(check_family(family, |c| c.kind() == "tokenizer", run_tokenizer));
            add("tokenizer", Box::new(tokenizer));
        }
    }
    let unit = |case: &Case| is_unit(case);
    for family in ["a2d", "units"] {
        let check = move || summary(check_family(family, unit, run_unit));
        checks.push((format!("{family} units"), Box::new(check)));
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in checks.iter().filter(|(n, _)| (filter.is_empty() || any(&filter, n)) && !any(&skip, n)) {
        let begin = Instant::now();
        match check() {
            Ok(report) => {
                passed += 1;
                println!("ok     {name} ({:.1} s): {report}", begin.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error}");
            }
        }
    }
    println!("\ngolden: {passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn summary(outcome: Result<dlx_tests::golden::Summary, String>) -> Result<String, String> {
    outcome.map(|s| s.to_string())
}

fn cases(family: &str, check: &dyn Fn(&Case) -> Result<(), String>) -> Result<String, String> {
    let on_executor = |case: &Case| case.exact() && case.kind() != "tokenizer" && !is_unit(case);
    summary(check_family(family, on_executor, check))
}

fn is_unit(case: &Case) -> bool {
    matches!(case.kind(), "unit" | "units")
}

/// Options of an exact artifact whose attention mask is the case's.
fn options(case: &Case) -> CompileOptions {
    CompileOptions { quant: QuantSpec::None, block: case.block(), max_seq: Some(MAX_SEQ), ..CompileOptions::default() }
}

fn on_cpu(case: &Case, pipeline: Option<String>) -> Result<CpuExecutor, String> {
    let options = CompileOptions { pipeline, ..options(case) };
    match compiled::load(&case.model_dir(), &options, &LoadOptions::default())?.executor {
        AnyExecutor::Cpu(cpu) => Ok(*cpu),
        AnyExecutor::Wgpu(_) => Err("was not compiled for the CPU".into()),
    }
}

/// Runs a check where there is a graphics device.
fn on_device(check: &dyn Fn() -> Result<String, String>) -> Result<String, String> {
    match adapters().is_empty() {
        false => check(),
        true if std::env::var_os("DLX_REQUIRE_WGPU").is_some() => {
            Err("no wgpu adapter, although DLX_REQUIRE_WGPU is set".into())
        }
        true => Ok("skipped: no wgpu adapter".into()),
    }
}

/// All generations of a family on each of its models, alone, in twos and in eights; on a graphics device those with
/// different caches, unless `DLX_GOLDEN_ALL` is set.
fn beside(family: &str, target: &str) -> Result<String, String> {
    let cases = golden::family(family)?;
    let mut models: BTreeMap<(PathBuf, Option<usize>), Vec<&Case>> = BTreeMap::new();
    for case in cases.iter().filter(|c| c.exact() && c.kind() == "generate") {
        models.entry((case.model_dir(), case.block())).or_default().push(case);
    }
    let (mut sequences, mut shared) = (0, 0);
    for cases in models.values() {
        // Steps that hold several of the longest sequences.
        let buckets = vec![cases[0].block().unwrap_or(32), 4 * MAX_SEQ];
        let options = CompileOptions { targets: vec![target.into()], buckets, ..options(cases[0]) };
        let load = LoadOptions { device: Some("0".into()), ..LoadOptions::default() };
        let mut executor = compiled::load(&cases[0].model_dir(), &options, &load)?.executor;
        let mut calls = Vec::new();
        for case in cases {
            calls.extend(golden::calls(case)?);
        }
        // A software device takes minutes for all of them.
        if target == "wgpu" && std::env::var_os("DLX_GOLDEN_ALL").is_none() {
            calls = golden::one_of_each(calls);
        }
        shared += golden::side_by_side(&mut *executor, &calls, &[2, 8])?;
        sequences += calls.len();
    }
    if shared == 0 && sequences > 0 {
        return Err("no step served several sequences".into());
    }
    Ok(format!("{sequences} sequences in twos and eights, {shared} shared steps"))
}

/// An artifact for graphics devices alone, on the first of them, with the variants that its self-test leaves.
fn wgpu(case: &Case) -> Result<(), String> {
    let options = CompileOptions { targets: vec!["wgpu".into()], ..options(case) };
    let load = LoadOptions { device: Some("0".into()), ..LoadOptions::default() };
    let mut executor = compiled::load(&case.model_dir(), &options, &load)?.executor;
    // A slow variant may give way, a wrong one there is not.
    match executor.replaced().iter().find(|r| !r.contains("which takes")) {
        None => run_case(&mut *executor, case),
        Some(wrong) => Err(format!("a kernel was replaced: {wrong}")),
    }
}

fn artifact(case: &Case) -> Result<(), String> {
    let mut executor = on_cpu(case, None)?;
    if case.kind() == "hidden_states" {
        run_hidden(&mut executor, case, false)?;
    }
    run_case(&mut executor, case)
}

/// Without fusions every recorded value is computed somewhere.
fn hidden(family: &str) -> Result<String, String> {
    let check = |case: &Case| {
        let plain = compiled::pipeline(&case.model_dir(), &options(case), "fuse-").map_err(|e| e.to_string())?;
        run_hidden(&mut on_cpu(case, Some(plain))?, case, true)
    };
    summary(check_family(family, |case| case.exact() && case.kind() == "hidden_states", check))
}

fn evaluator(case: &Case) -> Result<(), String> {
    run_case(&mut Interpreted::load(&case.model_dir(), &options(case)).map_err(|e| e.to_string())?, case)
}

fn naive(case: &Case) -> Result<(), String> {
    let mask = case.mask()?;
    // Where the mask keeps blocks apart, a small step shows whether a prefill in chunks is right.
    let largest = if mask == Mask::Full { MAX_SEQ } else { 64 };
    run_case(&mut Naive::load(&case.model_dir(), mask, MAX_SEQ, &[largest])?, case)
}
