//! Memory certificates through the binary: parts add up, limits are kept, and what a refusal suggests fits.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::path::Path;
use std::process::{Command, Output};

use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::CpuOptions;
use dlx_runtime::exec::ExecError;
use dlx_runtime::{LoadOptions, Model, ModelError, certify};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/sdar-tiny");
const LLADA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/llada-tiny");

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = dlxc(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The message of a run that fails with status 1.
fn refused(args: &[&str]) -> String {
    let output = dlxc(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

fn compiled(dir: &Path, more: &[&str]) -> (String, Value) {
    let path = dir.join("model.dlxa").to_str().unwrap().to_owned();
    let report = json(&[&["compile", MODEL, "-o", &path, "--json"], more].concat());
    (path, report)
}

fn bytes(part: &Value) -> u64 {
    part["bytes"].as_u64().unwrap()
}

#[test]
fn parts_add_up_and_are_what_inspect_shows() {
    let dir = tempfile::tempdir().unwrap();
    let (path, report) = compiled(dir.path(), &["--target", "cpu,wgpu", "--max-seq", "256"]);
    let memory = &report["manifest"]["memory"];
    for (certificate, target) in memory.as_array().unwrap().iter().zip(["cpu", "wgpu"]) {
        assert_eq!(certificate["target"], target);
        let parts = certificate["parts"].as_array().unwrap();
        let sum = |when: &str| parts.iter().filter(|p| p["when"] == when).map(bytes).sum::<u64>();
        let total = sum("always") + sum("loading").max(sum("running"));
        assert_eq!(certificate["total"].as_u64(), Some(total), "{certificate}");
    }
    assert_eq!(&json(&["inspect", &path, "--json"])["manifest"]["memory"], memory);
    let shown = text(&dlxc(&["inspect", &path]).stdout);
    for certificate in memory.as_array().unwrap() {
        assert!(shown.contains(&certificate["total"].to_string()), "{shown}");
    }
    // Fewer threads take less; what the artifact itself says of 16 bounds what is computed from it.
    let artifact = Artifact::open(&path).unwrap();
    for target in ["cpu", "wgpu"] {
        let total = |threads| certify(&artifact, target, threads).unwrap().total;
        let said = memory.as_array().unwrap().iter().find(|c| c["target"] == target).unwrap()["total"].as_u64();
        let said = said.unwrap();
        let loaders = rayon::current_num_threads().saturating_sub(16) as u64 * (128 << 10);
        assert!(total(1) <= total(2) && total(16) <= said + loaders, "{target}");
        assert!(total(16) > said / 2, "{target}: {} of {said}", total(16));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn running_takes_no_more_than_is_certified() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = compiled(dir.path(), &["--max-seq", "512", "--kv", "f32"]);
    let artifact = Artifact::open(&path).unwrap();
    let prompt = "Tell me a story about a fox and a river. ".repeat(8);
    for (threads, more) in [("1", &[][..]), ("2", &["--no-mmap"]), ("2", &["--temperature", "1", "--top-p", "0.9"])] {
        let args = ["run", &path, "--raw", "--ignore-eos", "--max-new", "512", "--json", "--threads", threads, &prompt];
        let report = json(&[&args, more].concat());
        let filled = report["prompt_tokens"].as_u64().unwrap() + report["tokens"].as_u64().unwrap();
        assert!(filled >= 500, "the caches are full: {filled}");
        let certified = certify(&artifact, "cpu", threads.parse().unwrap()).unwrap().total;
        let peak = report["peak_resident_bytes"].as_u64().unwrap();
        assert!(peak <= certified, "{threads} {more:?}: {peak} of {certified}");
    }
}

#[test]
fn what_a_refusal_suggests_fits() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.dlxa");
    let out = out.to_str().unwrap();
    for (model, options, part) in [
        (MODEL, &["--quant", "none"][..], 0.9),
        (MODEL, &["--quant", "none", "--kv", "f32", "--max-seq", "2048"], 0.75),
        (MODEL, &["--quant", "int8", "--max-seq", "4096"], 0.8),
        (LLADA, &["--quant", "none", "--max-seq", "512"], 0.9),
    ] {
        let compile = |more: &[&'static str]| [&["compile", model, "-o", out], options, more].concat();
        let limited = |limit: &str| dlxc(&[&compile(&["--json", "--max-memory"])[..], &[limit]].concat());
        let total = json(&compile(&["--json"]))["manifest"]["memory"][0]["total"].as_u64().unwrap();
        std::fs::remove_file(out).unwrap();
        let limit = ((total as f64 * part) as u64).to_string();
        let refusal = limited(&limit);
        assert_eq!(refusal.status.code(), Some(1), "{}", text(&refusal.stdout));
        let message = text(&refusal.stderr);
        assert!(!Path::new(out).exists(), "nothing is written");
        let (_, suggested) = message.split_once("what fits: ").unwrap_or_else(|| panic!("{message}"));
        let suggestions: Vec<&str> = suggested.trim().split("; or ").collect();
        assert!(!suggestions.is_empty(), "{message}");
        for suggestion in suggestions {
            let (flags, promised) = suggestion.split_once(" (").unwrap();
            let promised: u64 = promised.split(' ').next().unwrap().parse().unwrap();
            let flags: Vec<&str> = flags.split(' ').collect();
            let named = |flag: &str| flags.contains(&flag);
            let own = options.chunks(2).filter(|pair| !named(pair[0])).flatten().copied();
            let mut args = vec!["compile", model, "-o", out, "--json", "--max-memory", &limit];
            args.extend(own.chain(flags.iter().copied()));
            let report = json(&args);
            let found = report["manifest"]["memory"][0]["total"].as_u64();
            assert_eq!(found, Some(promised), "{suggestion}");
            std::fs::remove_file(out).unwrap();
        }
        // What fits exactly is compiled.
        assert!(limited(&total.to_string()).status.success());
        std::fs::remove_file(out).unwrap();
    }
    let message = refused(&["compile", MODEL, "-o", out, "--max-memory", "1MB"]);
    assert!(message.contains("nothing of --max-seq, --kv, --quant and --buckets fits"), "{message}");
    assert_eq!(dlxc(&["compile", MODEL, "-o", out, "--max-memory", "lots"]).status.code(), Some(2));
    assert!(!Path::new(out).exists());
}

#[test]
fn a_limit_is_kept_at_load_and_when_slots_are_added() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = compiled(dir.path(), &["--max-seq", "4096", "--kv", "f32"]);
    let artifact = Artifact::open(&path).unwrap();
    let cpu = CpuOptions { threads: 2, isa: None };
    let certificate = certify(&artifact, "cpu", 2).unwrap();
    let load = |max_memory| Model::load(&artifact, &LoadOptions { cpu, max_memory, ..LoadOptions::default() });
    let Err(error) = load(Some(certificate.total - 1)) else { panic!("it loads") };
    assert!(matches!(error, ModelError::Memory { .. }), "{error}");
    let message = error.to_string();
    let caches = certificate.part("caches");
    for part in ["the limit is", &format!("caches {caches}"), "raise the limit", &path] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let mut model = load(Some(certificate.with_slots(3).total)).unwrap();
    model.executor.reserve(3).unwrap();
    let error = model.executor.reserve(4).unwrap_err();
    assert!(matches!(error, ExecError::Limit(_)) && error.to_string().contains("with 4 sequences"), "{error}");
    assert_eq!(model.executor.slots(), 3);
    // It computes the same as without a limit, and more than one needs no more rows of logits at a time.
    load(None).unwrap().executor.reserve(8).unwrap();

    let limit = (certificate.total - 1).to_string();
    let run = ["run", &path, "Hi", "--threads", "2"];
    assert!(refused(&[&run[..], &["--max-memory", &limit]].concat()).contains("takes up to"));
    let limit = certificate.total.to_string();
    let limited = [&run[..], &["--max-memory", &limit]].concat();
    assert_eq!(text(&dlxc(&limited).stdout), text(&dlxc(&run).stdout));
    let guided = refused(&[&limited[..], &["--cfg", "1"]].concat());
    assert!(guided.contains("limit"), "guidance needs a second sequence: {guided}");
    assert!(refused(&["bench", &path, "--max-memory", "1MiB", "--seconds", "0.01"]).contains("takes up to"));
}

#[test]
fn graphs_and_exports_say_where_their_limits_are() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let message = refused(&["compile", MODEL, "-o", out.to_str().unwrap(), "--target", "onnx", "--max-memory", "1G"]);
    assert!(message.contains("artifacts that generate text"), "{message}");
}
