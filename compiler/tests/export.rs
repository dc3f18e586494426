//! Exports for NPUs: the same text as the CPU artifact, the same bytes on any number of threads, and what is refused.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Model, and cache rows that its questions fit.
const MODELS: &[(&str, &str)] = &[
    ("sdar-tiny", "96"),
    ("fast-dllm-v2-tiny", "96"),
    ("qwen2-tiny", "96"),
    ("dream-tiny", "64"),
    ("llada-tiny", "64"),
];

const PROFILES: &[(&str, &str)] = &[
    ("qnn", "f16"),
    ("qnn", "w8a16"),
    ("qnn", "w4a16"),
    ("qnn", "mnb4"),
    ("qnn", "mnb8"),
    ("onnx", "none"),
    ("onnx", "f16"),
    ("onnx", "int8"),
    ("onnx", "int4"),
];

const QUESTIONS: &[&str] = &["What is the capital of France?", "What is 21 + 76?"];

#[test]
fn an_export_answers_like_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, PROMPTS).unwrap();
    for (model, max_seq) in MODELS {
        let artifact = dir.path().join(format!("{model}.dlxa"));
        text(&dlxc(&["compile", &source(model), "--quant", "none", "--max-seq", max_seq, "-o", path(&artifact)]));
        let answers = |from: &Path| -> Vec<String> {
            QUESTIONS.iter().map(|q| text(&dlxc(&["run", path(from), q, "--max-new", "16"]))).collect()
        };
        let wanted = answers(&artifact);
        for (target, profile) in PROFILES {
            let out = dir.path().join(format!("{model}-{target}-{profile}"));
            let source = source(model);
            let codes = profile.ends_with("a16");
            let how: &[&str] = match (*target, codes) {
                ("qnn", true) => &["--profile", profile, "--calibrate", path(&prompts)],
                ("qnn", false) => &["--profile", profile],
                _ => &["--quant", profile],
            };
            let args = ["compile", &source, "--target", target, "--max-seq", max_seq, "-o", path(&out)];
            text(&dlxc(&[&args[..], how].concat()));
            let found = answers(&out);
            // Four bits are fewer than these models were trained for: they answer, and tests of their own say how well.
            if !profile.contains('4') {
                assert_eq!(found, wanted, "{model} {target} {profile}");
            }
            if *target == "qnn" {
                assert_eq!(text(&dlxc(&["lint", path(&out)])), "");
            }
            let manifest: serde_json::Value =
                serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
            let calibration = manifest["calibration"].as_str().unwrap();
            assert_eq!(calibration == "6 of 6 sequences of prompts.jsonl", codes, "{calibration}");
        }
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let make = |threads: &str| {
        let out = dir.path().join(threads);
        let model = source("sdar-tiny");
        let args = ["compile", &model, "--target", "qnn", "--max-seq", "64", "--threads", threads];
        let report = text(&dlxc(&[&args[..], &["-o", path(&out)]].concat()));
        assert!(report.contains("calibration: tokens drawn by chance"), "{report}");
        let files = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path());
        files.map(|f| (f.file_name().unwrap().to_owned(), std::fs::read(&f).unwrap())).collect::<BTreeMap<_, _>>()
    };
    assert!(make("1") == make("2"));
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let long = format!("{{\"text\": \"{}\"}}", "word ".repeat(200));
    let cases: &[(&[&str], &str, &str)] = &[
        (&["--calibrate", &file("empty.jsonl", "\n")], "empty.jsonl: has no line to calibrate on", "`prompt`"),
        (&["--calibrate", &file("other.jsonl", "{\"prompt\": 1}")], "other.jsonl:1: is no JSON object", "`prompt`"),
        (&["--calibrate", &file("text.jsonl", "hello")], "text.jsonl:1: is no JSON object", "`prompt`"),
        (&["--calibrate", &file("none.jsonl", "{}")], "none.jsonl:1: has neither `prompt` nor `text`", "`prompt`"),
        (&["--calibrate", &file("long.jsonl", &long)], "and --max-seq is 64", "raise --max-seq"),
        (&["--calibrate", "nowhere.jsonl"], "nowhere.jsonl: cannot be read", "JSONL"),
        (&["--profile", "w2a2"], "`w2a2` is no profile of the target qnn", "w8a16, w4a16, mnb4, mnb8, f16"),
        (&["--soc", "SM1"], "--soc: `SM1` is not known", "SM8650 (57, v75)"),
        (&["--soc", "30"], "--soc: SM8350 has HTP v68, and this profile needs v69", "SM8450 (36, v69)"),
        (&["--target", "onnx", "--soc", "57"], "--soc: has no effect for the target onnx", "leave it out"),
        (&["--rows", "128"], "--rows: the steps have [128] rows", "no more than --max-seq"),
        (&["--rows", "2"], "--rows: the steps have [2] rows", "must hold a block"),
        (&["--target", "qnn,cpu"], "an export is a directory", "a run of its own"),
        (&["--quant", "int8"], "--quant: has no effect for the target qnn", "--profile"),
        (&["--target", "onnx", "--quant", "bf16"], "the target onnx has no weights of bf16", "f16"),
        (&["--target", "onnx", "--profile", "w8a16"], "--profile: has no effect for the target onnx", "--quant"),
        (&["--passes", "dce"], "graph @forward: takes or gives what no entry", "leave --passes out"),
    ];
    for (args, message, help) in cases {
        let out = dir.path().join("out");
        let target = if args.contains(&"--target") { &[][..] } else { &["--target", "qnn"][..] };
        let model = source("sdar-tiny");
        let all = [&["compile", &model, "--max-seq", "64", "-o", path(&out)][..], target, args].concat();
        let error = refused(&all);
        assert!(error.contains(message) && error.contains(help), "{args:?}: {error}");
        assert!(!out.exists(), "{args:?} left something");
    }
    for wrong in [&["--rows", "0"], &["--max-seq", "0"]] {
        let out = dir.path().join("out");
        let output =
            dlxc(&[&["compile", &source("sdar-tiny"), "--target", "qnn", "-o", path(&out)][..], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_directory_with_files_is_replaced_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let args =
        ["compile", &source("sdar-tiny"), "--target", "qnn", "--profile", "f16", "--max-seq", "64", "-o", path(&out)];
    text(&dlxc(&args));
    let before = std::fs::read(out.join("manifest.json")).unwrap();
    std::fs::write(out.join("step_4.onnx"), "kept").unwrap();
    let error = refused(&args);
    assert!(error.contains("holds an export") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read(out.join("step_4.onnx")).unwrap(), b"kept");
    text(&dlxc(&[&args[..], &["--force"]].concat()));
    assert_ne!(std::fs::read(out.join("step_4.onnx")).unwrap(), b"kept");
    assert_eq!(std::fs::read(out.join("manifest.json")).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn nothing_but_an_export_is_ever_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("models/sdar");
    std::fs::create_dir_all(&model).unwrap();
    for entry in std::fs::read_dir(source("sdar-tiny")).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("mine"), "kept").unwrap();
    let all = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
    let before = (all(&model), all(&other), all(dir.path()));
    let file = model.join("config.json");
    let weights = model.join("model.safetensors");
    let inner = model.join("inner");
    std::fs::create_dir(&inner).unwrap();
    let cases: &[(&Path, &str, &str)] = &[
        (&model, "qnn", "holds the model, or lies in it"),
        (&dir.path().join("models"), "qnn", "holds the model, or lies in it"),
        (&inner, "qnn", "holds the model, or lies in it"),
        (&other, "qnn", "holds files that are no export"),
        (&file, "qnn", "is no directory"),
        (&weights, "cpu", "belongs to the input"),
    ];
    for (out, target, wanted) in cases {
        let force: &[&str] = if *target == "qnn" { &["--force"] } else { &[] };
        let args = ["compile", path(&model), "--target", target, "--max-seq", "64", "-o", path(out)];
        let error = refused(&[&args[..], force].concat());
        assert!(error.contains(wanted), "{}: {error}", out.display());
    }
    std::fs::remove_dir(&inner).unwrap();
    assert_eq!((all(&model), all(&other), all(dir.path())), before);
}

#[test]
fn an_export_that_was_damaged_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    text(&dlxc(&[
        "compile",
        &source("sdar-tiny"),
        "--target",
        "qnn",
        "--profile",
        "f16",
        "--max-seq",
        "64",
        "-o",
        path(&out),
    ]));
    let run = || String::from_utf8_lossy(&dlxc(&["run", path(&out), "Hello", "--max-new", "4"]).stderr).into_owned();
    let edit = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, wanted: &str| {
        let path = out.join(file);
        let old = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(old.clone())).unwrap();
        let error = run();
        assert!(error.contains("error:") && error.contains(wanted), "{file}: {error}");
        std::fs::write(&path, old).unwrap();
    };
    let replace = |from: &'static str, to: &'static str| {
        move |old: Vec<u8>| String::from_utf8(old).unwrap().replacen(from, to, 1).into_bytes()
    };
    edit("manifest.json", &replace("\"max_seq\": 64", "\"max_seq\": 65"), "says of step_4");
    edit("manifest.json", &|old| old[..old.len() / 2].to_vec(), "manifest.json");
    edit("embeddings.bin", &|old| old[..100].to_vec(), "embeddings.bin: has 100 bytes");
    edit("weights.bin", &|old| old[..1000].to_vec(), "weights.bin: is damaged");
    edit("weights.bin", &|old| [&old[..5000], b"x", &old[5001..]].concat(), "weights.bin: is damaged");
    edit("step_4.onnx", &|_| Vec::new(), "step_4.onnx");
    assert!(!run().contains("error:"));
    let shown = text(&dlxc(&["inspect", path(&out)]));
    assert!(shown.contains("an export for qnn, profile f16") && shown.contains("step_32.onnx"), "{shown}");
    let error = refused(&["compile", path(&out), "-o", path(&dir.path().join("again.dlxa"))]);
    assert!(error.contains("is an export, which is compiled already"), "{error}");
}

/// What the tiny models were trained on looks like this.
const PROMPTS: &str = r#"{"prompt": "What is 17 + 8?", "answer": "25"}
{"prompt": "Sort these numbers: 9 3 5", "answer": "3 5 9"}
{"prompt": "What is the capital of Spain?", "answer": "The capital of Spain is Madrid."}
{"prompt": "Count from 4 to 9.", "answer": "4 5 6 7 8 9"}
{"prompt": "What is 60 - 12?"}
{"text": "Reverse the word: tree"}
"#;

fn source(model: &str) -> String {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model);
    dir.to_str().unwrap().to_owned()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(args: &[&str]) -> String {
    let output = dlxc(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap()
}
