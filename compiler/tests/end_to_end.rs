//! The main job through the binary: compile the trained checkpoint, run the artifact, read the answer.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlx_runtime::artifact::{Artifact, WEIGHTS};
use serde_json::Value;

/// Questions that the trained checkpoint answers correctly.
const QUESTIONS: &[(&str, &str)] = &[
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is 27 + 45?", "72"),
    ("Sort these letters: d b c a", "a b c d"),
    ("Count from 3 to 9.", "3 4 5 6 7 8 9"),
    ("Who are you?", "I am a tiny diffusion language model."),
];

#[test]
fn every_format_gives_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let formats = ["none", "f16", "int8", "int8:32", "int4", "int4:min"].map(|quant| ["--quant", quant]);
    for format in formats.into_iter().chain([["--kv", "int8"]]) {
        let artifact = dir.path().join("model.dlxa");
        compile(&model(), &artifact, &format);
        for (question, answer) in QUESTIONS {
            assert_eq!(text(&dlxc(&["run", path(&artifact), question])), format!("{answer}\n"), "{format:?}");
        }
    }
}

#[test]
fn every_family_answers() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["dream-tiny", "fast-dllm-v2-tiny", "llada-tiny", "qwen2-tiny", "sdar-tiny"] {
        let artifact = dir.path().join(format!("{family}.dlxa"));
        compile(&model().with_file_name(family), &artifact, &["--quant", "int8"]);
        let answer = text(&dlxc(&["run", path(&artifact), "What is the capital of France?"]));
        assert_eq!(answer, "The capital of France is Paris.\n", "{family}");
    }
    let llada = dir.path().join("llada-tiny.dlxa");
    for cache in ["none", "prefix", "dual"] {
        let answer = text(&dlxc(&["run", path(&llada), "What is 27 + 45?", "--cache", cache]));
        assert_eq!(answer, "72\n", "{cache}");
    }
}

#[test]
fn a_graphics_device_gives_the_same_answers() {
    let listed = json(&dlxc(&["devices", "--json"]));
    if listed["devices"].as_array().unwrap().is_empty() {
        assert!(std::env::var_os("DLX_REQUIRE_WGPU").is_none(), "no wgpu adapter, although DLX_REQUIRE_WGPU is set");
        let _ = writeln!(std::io::stderr(), "skipped: no wgpu adapter");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    compile(&model(), &artifact, &["--target", "wgpu,cpu", "--max-seq", "256", "--buckets", "4,64"]);
    for (question, answer) in QUESTIONS {
        for place in [&["--device", "0"][..], &["--target", "cpu"]] {
            let args = [&["run", path(&artifact), question], place].concat();
            assert_eq!(text(&dlxc(&args)), format!("{answer}\n"), "{place:?}");
        }
    }
    let shown = text(&dlxc(&["inspect", path(&artifact)]));
    assert!(shown.contains("wgpu: kernels") && shown.contains("step_4 "), "{shown}");
    let missing = dlxc(&["run", path(&artifact), "Hello", "--device", "no such device"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no device is called"), "{missing:?}");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("another/place");
    std::fs::create_dir_all(&copy).unwrap();
    for file in std::fs::read_dir(model()).unwrap().map(|f| f.unwrap()) {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let [one, two] = ["one.dlxa", "two.dlxa"].map(|name| dir.path().join(name));
    compile(&model(), &one, &["--threads", "1"]);
    compile(&copy, &two, &["--threads", "2"]);
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap(), "artifacts differ");
    // Compiling over an artifact replaces it.
    compile(&model(), &two, &["--quant", "int8"]);
    assert!(std::fs::read(&one).unwrap() != std::fs::read(&two).unwrap());
}

#[test]
fn the_same_seed_gives_the_same_tokens_on_any_thread_count_and_instruction_set() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    compile(&model(), &artifact, &[]);
    let sample = |more: &[&str], isa: &str| {
        let args = ["run", path(&artifact), "Tell me a story about a fox and a river.", "--json", "--temperature", "3"];
        let output = command(&[&args, more].concat()).env("DLX_ISA", isa).output().unwrap();
        json(&output)["ids"].to_string()
    };
    let first = sample(&["--seed", "7", "--threads", "1"], "scalar");
    assert_eq!(sample(&["--seed", "7", "--threads", "2"], "scalar"), first);
    let best = dlx_runtime::cpu::Isa::best().to_string();
    assert_eq!(sample(&["--seed", "7"], &best), first);
    assert_ne!(sample(&["--seed", "8"], &best), first);
}

#[test]
fn vectors_are_recorded_with_the_weights_that_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    let compile = |more: &[&str]| {
        let model = model();
        let args = ["compile", path(&model), "-o", path(&artifact), "--target", "wgpu", "--json"];
        json(&dlxc(&[&args, more].concat()))
    };
    let passes = compile(&[])["manifest"]["pipelines"]["wgpu"].as_str().unwrap().to_owned();
    let own = passes.replace("to=q4g32", "to=q8");
    assert_ne!(own, passes);
    let report = compile(&["--passes", &own]);
    let read: u64 = report["weights"].as_object().unwrap().values().map(|b| b.as_u64().unwrap()).sum();
    let weights = report["manifest"]["memory"][0]["parts"][0]["bytes"].as_u64().unwrap();
    // Each weight begins at a multiple of 64 bytes.
    assert!((read..read + 64 * 200).contains(&weights), "nothing is stored that is not read: {read} of {weights}");
}

#[test]
fn json_reports_hold_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    let compiled = json(&dlxc(&["compile", path(&model()), "-o", path(&artifact), "--json"]));
    assert_eq!(compiled["bytes"].as_u64(), Some(std::fs::metadata(&artifact).unwrap().len()));
    assert_eq!(compiled["manifest"]["model"]["family"], "sdar");
    assert!(compiled["passes"].as_array().unwrap().len() > 10);

    let run = json(&dlxc(&["run", path(&artifact), "What is 27 + 45?", "--json", "--threshold", "0.5"]));
    assert_eq!((run["text"].as_str(), run["finish"].as_str()), (Some("72"), Some("stop-id")));
    assert_eq!(
        run["forwards"].as_u64(),
        run["passes"]
            .as_object()
            .map(|p| { ["prefill", "denoise", "commit"].iter().map(|k| p[*k].as_u64().unwrap()).sum() })
    );

    let inspected = json(&dlxc(&["inspect", path(&artifact), "--json"]));
    assert_eq!(inspected["manifest"], compiled["manifest"]);
    let tensors = json(&dlxc(&["inspect", path(&model()), "--json"]));
    assert_eq!(tensors["tensors"]["lm_head.weight"], "bf16[512, 192]");

    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/questions.jsonl");
    let eval = json(&dlxc(&["eval", path(&artifact), questions, "--json"]));
    assert_eq!(eval["asked"], 200);
    assert!(eval["exact_match"].as_f64().unwrap() > 0.91, "{}", eval["exact_match"]);
}

#[test]
fn dumps_and_opt_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (artifact, dump) = (dir.path().join("model.dlxa"), dir.path().join("dump"));
    compile(&model(), &artifact, &["--dump", path(&dump)]);
    let read = |name: &str| std::fs::read_to_string(dump.join(name)).unwrap();
    let imported = dump.join("00-import.dlx");
    let made = text(&dlxc(&["opt", path(&imported), "-p", "block-attention"]));
    assert_eq!(format!("; behind block-attention\n{made}"), read("01-block-attention.dlx"));
    let program = text(&dlxc(&["inspect", path(&artifact), "--ir"]));
    assert!(program.contains("graph @step_4(") && program.contains("= stored {offset=0"));
}

#[test]
fn stop_strings_limits_and_raw_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    compile(&model(), &artifact, &[]);
    let run = |args: &[&str]| json(&dlxc(&[&["run", path(&artifact), "--json"], args].concat()));
    let stopped = run(&["What is the capital of France?", "--stop", " is"]);
    assert_eq!(
        (stopped["text"].as_str(), stopped["finish"].as_str()),
        (Some("The capital of France"), Some("stop-string"))
    );
    let short = run(&["What is the capital of France?", "--max-new", "3"]);
    assert_eq!((short["tokens"].as_u64(), short["finish"].as_str()), (Some(3), Some("max-tokens")));
    let late = run(&["Tell me a story about a fox and a river.", "--timeout", "1ms"]);
    assert!(["deadline", "stop-id"].contains(&late["finish"].as_str().unwrap()));
    let raw = run(&["<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n", "--raw"]);
    assert_eq!(raw["text"], "I am a tiny diffusion language model.");
}

#[test]
fn weights_are_compared_at_the_first_load_and_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    compile(&model(), &artifact, &[]);
    let run = |more: &[&str]| {
        let mut command = command(&["run", path(&artifact), "What is 27 + 45?"]);
        command.args(more).env("DLXC_CACHE", dir.path().join("cache")).output().unwrap()
    };
    assert!(run(&[]).status.success());
    // The last byte of the weights changes, and the file keeps its size and time: only who reads it can tell.
    let weights = Artifact::open(&artifact).unwrap().sections()[0].clone();
    assert_eq!(weights.name, WEIGHTS);
    let time = artifact.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&artifact).unwrap();
    bytes[usize::try_from(weights.end().unwrap() - 1).unwrap()] ^= 1;
    std::fs::write(&artifact, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&artifact).unwrap();
    file.set_modified(time).unwrap();
    assert!(run(&[]).status.success(), "its weights were compared before");
    let refused = |output: Output| {
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("checksum of section `weights`"), "{error}");
    };
    refused(run(&["--verify"]));
    file.set_modified(time + std::time::Duration::from_secs(1)).unwrap();
    refused(run(&[]));
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny")
}

fn compile(model: &Path, output: &Path, more: &[&str]) {
    text(&dlxc(&[&["compile", path(model), "-o", path(output)], more].concat()));
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
    command.args(args);
    command
}

fn dlxc(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}
