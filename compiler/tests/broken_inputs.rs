//! What a user sees when something is wrong: for each of a table of broken inputs, the one error that `dlxc` prints, its
//! exit code, that it does not panic, and that it leaves no file behind.
//!
//! `cargo test -p dlxc --test broken_inputs -- --nocapture` prints the table.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test program")]

#[path = "broken/model.rs"]
mod model;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use model::{Model, sdar_tiny};
use serde_json::json;

/// A row of the table: what is broken, how, and a part of the message that names the place.
type Row = (&'static str, fn(&mut Model), &'static str);

/// Checkpoints that cannot be compiled.
const CHECKPOINTS: &[Row] = &[
    ("no config.json", |m| m.remove("config.json"), "config.json: the file is missing"),
    ("config.json is not JSON", |m| m.write("config.json", b"{\"model_type\": "), "config.json"),
    ("config.json is a list", |m| m.write("config.json", b"[1, 2]"), "config.json"),
    ("a trillion layers", |m| m.set("num_hidden_layers", json!(1_000_000_000_000u64)), "`num_hidden_layers`"),
    ("a negative size", |m| m.set("hidden_size", json!(-192)), "`hidden_size`"),
    ("a size in words", |m| m.set("intermediate_size", json!("many")), "`intermediate_size`"),
    ("a fractional head count", |m| m.set("num_attention_heads", json!(2.5)), "`num_attention_heads`"),
    ("a size that is missing", |m| m.unset("vocab_size"), "`vocab_size`"),
    ("an unknown family", |m| m.set("model_type", json!("mamba")), "`mamba` is not a supported family"),
    (
        "a mixture of experts",
        |m| m.set("model_type", json!("sdar_moe")),
        "`sdar_moe` is not supported, because it is a mixture",
    ),
    ("heads that do not divide", |m| m.set("num_key_value_heads", json!(2)), "2 key heads do not divide 3 heads"),
    ("an odd head size", |m| m.set("head_dim", json!(63)), "63 cannot be rotated"),
    ("scaled rotary embeddings", |m| m.set("rope_scaling", json!({"factor": 2.0})), "`rope_scaling`"),
    (
        "sizes that contradict the tensors",
        |m| m.set("intermediate_size", json!(256)),
        "mlp.gate_proj.weight`: has shape",
    ),
    ("more layers than tensors", |m| m.set("num_hidden_layers", json!(5)), "model.layers.4.input_layernorm.weight"),
    ("fewer layers than tensors", |m| m.set("num_hidden_layers", json!(3)), "is not a tensor of this family"),
    (
        "a mask id outside the vocabulary",
        |m| m.set("mask_token_id", json!(512)),
        "512 is outside the vocabulary of 512",
    ),
    ("no weights", |m| m.remove("model.safetensors"), "safetensors"),
    ("an empty weight file", |m| m.write("model.safetensors", b""), "model.safetensors"),
    ("a header cut short", |m| m.cut(1000), "model.safetensors"),
    ("data cut short", |m| m.cut(3_000_000), "model.safetensors"),
    ("a header length of 2^64 - 1", |m| m.header_len(u64::MAX), "model.safetensors"),
    ("a header longer than the file", |m| m.header_len(1 << 40), "model.safetensors"),
    ("a header that is not JSON", |m| m.header_text("{nonsense"), "model.safetensors"),
    (
        "overlapping tensors",
        |m| m.entry("model.embed_tokens.weight", "data_offsets", json!([0, 196_608])),
        "model.safetensors",
    ),
    (
        "offsets beyond the file",
        |m| m.entry("lm_head.weight", "data_offsets", json!([1u64 << 50, (1u64 << 50) + 196_608])),
        "lm_head.weight",
    ),
    (
        "offsets that run backwards",
        |m| m.entry("lm_head.weight", "data_offsets", json!([196_608, 0])),
        "lm_head.weight",
    ),
    (
        "a shape that does not fit its bytes",
        |m| m.entry("lm_head.weight", "shape", json!([512, 191])),
        "lm_head.weight",
    ),
    (
        "a shape that overflows",
        |m| m.entry("lm_head.weight", "shape", json!([1u64 << 40, 1u64 << 40])),
        "lm_head.weight",
    ),
    ("an integer tensor", |m| m.entry("lm_head.weight", "dtype", json!("I16")), "lm_head.weight"),
    ("a missing tensor", |m| m.rename("lm_head.weight", "lm_head.weights"), "lm_head.weight"),
    ("a NaN", |m| m.poke("model.layers.2.mlp.up_proj.weight", 7, 0x7fc0), "up_proj.weight`: NaN at [0, 7]"),
    ("an infinity", |m| m.poke("lm_head.weight", 200, 0xff80), "`lm_head.weight`: -inf at [1, 8]"),
    (
        "an index with a missing shard",
        |m| m.index("model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors",
    ),
    ("an index that points elsewhere", |m| m.index("../model.safetensors"), "../model.safetensors"),
    ("no tokenizer", |m| m.remove("tokenizer.json"), "tokenizer.json: the file is missing"),
    ("a tokenizer that is not JSON", |m| m.write("tokenizer.json", b"hello"), "tokenizer.json"),
    ("a tokenizer that is something else", |m| m.write("tokenizer.json", b"{\"a\": 1}"), "tokenizer.json"),
    (
        "a tokenizer larger than the embedding",
        |m| m.tokenizer_id("<|MASK|>", 600),
        "has a token 600, but the embedding has 512 rows",
    ),
    ("a chat template with a syntax error", |m| m.write("chat_template.jinja", b"{% for m in %}"), "chat template"),
];

#[test]
fn broken_checkpoints() {
    for (what, damage, expected) in CHECKPOINTS {
        let dir = tempfile::tempdir().unwrap();
        let mut model = sdar_tiny(dir.path());
        damage(&mut model);
        model.save();
        let out = dir.path().join("out.dlxa");
        let output = dlxc(&["compile", path(&model.dir), "-o", path(&out)], None);
        check(what, &output, 1, expected);
        assert_only(dir.path(), &["model"], what);
    }
}

#[test]
fn broken_artifacts() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(artifact(dir.path(), &[])).unwrap();
    let flip = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let find = |text: &[u8]| good.windows(text.len()).position(|w| w == text).unwrap();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an empty artifact", Vec::new(), "bad.dlxa"),
        ("something else", b"PK\x03\x04 not an artifact at all".repeat(400), "not a dlxc artifact"),
        ("cut in the header", good[..100].to_vec(), "bad.dlxa"),
        ("cut in the weights", good[..good.len() / 2].to_vec(), "truncated"),
        ("cut by one byte", good[..good.len() - 1].to_vec(), "truncated"),
        ("bytes at the end", [&good[..], b"x"].concat(), "after the end"),
        ("a bit flipped in the magic", flip(0), "not a dlxc artifact"),
        ("a bit flipped in the version", flip(8), "bad.dlxa"),
        ("a bit flipped in the section table", flip(64), "damaged"),
        ("a bit flipped in the first weight", flip(4096), "damaged"),
        ("a bit flipped in the middle of the weights", flip(500_000), "damaged"),
        ("a bit flipped in the manifest", flip(find(b"\"compiler\"")), "damaged"),
        ("a bit flipped in the program", flip(find(b"graph @step_4")), "damaged"),
        ("a bit flipped in the tokenizer", flip(find(b"\"added_tokens\"")), "damaged"),
    ];
    let bad = dir.path().join("bad.dlxa");
    for (what, bytes, expected) in cases {
        std::fs::write(&bad, bytes).unwrap();
        check(what, &dlxc(&["run", path(&bad), "hello"], None), 1, expected);
    }
    let output = dlxc(&["run", path(&dir.path().join("nowhere.dlxa")), "hello"], None);
    check("an artifact that is not there", &output, 1, "nowhere.dlxa");
}

#[test]
fn broken_requests() {
    let dir = tempfile::tempdir().unwrap();
    let good = artifact(dir.path(), &["--max-seq", "64"]);
    let good = path(&good);
    let long = "many words ".repeat(60);
    let (model, out) = (dir.path().join("model"), dir.path().join("out.dlxa"));
    let (model, out) = (path(&model), path(&out));
    let nowhere = dir.path().join("no/such/directory/out.dlxa");
    let under_a_file = dir.path().join("model/config.json/out.dlxa");
    let cases: &[(&str, &[&str], i32, &str)] = &[
        ("a prompt longer than the caches", &["run", good, &long], 1, "shorten the prompt"),
        ("an unknown reveal rule", &["run", good, "hi", "--rule", "guess"], 1, "there is no reveal rule `guess`"),
        ("a cache that the family cannot use", &["run", good, "hi", "--cache", "dual"], 1, "it needs full attention"),
        (
            "a sampler for a family that has one",
            &["compile", model, "-o", out, "--sampler", "mdlm"],
            1,
            "cannot be chosen",
        ),
        ("a directory that is no model", &["run", path(dir.path()), "hi"], 1, "config.json"),
        ("a model that is not there", &["compile", "/no/such/model", "-o", out], 1, "no such directory"),
        ("an output directory that is not there", &["compile", model, "-o", path(&nowhere)], 1, "cannot write into"),
        ("an output below a file", &["compile", model, "-o", path(&under_a_file)], 1, "cannot write into"),
        ("an output that is a directory", &["compile", model, "-o", model], 1, "is a directory"),
        ("an unknown target", &["compile", model, "-o", out, "--target", "abacus"], 1, "there is no target `abacus`"),
        ("an unknown pass", &["compile", model, "-o", out, "--passes", "dce,magic"], 1, "there is no pass `magic`"),
        ("passes that leave work undone", &["compile", model, "-o", out, "--passes", "dce"], 1, "does not run"),
        ("an override without a weight", &["compile", model, "-o", out, "--keep", "ghost=int8"], 1, "override `ghost`"),
        (
            "caches shorter than a block",
            &["compile", model, "-o", out, "--max-seq", "3"],
            1,
            "do not hold one block of 4",
        ),
        ("a step larger than the caches", &["compile", model, "-o", out, "--buckets", "4,4096"], 1, "--buckets"),
        (
            "a format that does not exist",
            &["compile", model, "-o", out, "--quant", "int3"],
            2,
            "is not a weight format",
        ),
        ("no arguments", &[], 2, "Usage"),
        ("an unknown command", &["frobnicate"], 2, "frobnicate"),
        (
            "a file that is not IR",
            &["opt", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "-p", "dce"],
            1,
            "line 1",
        ),
    ];
    for (what, args, code, expected) in cases {
        check(what, &dlxc(args, Some("")), *code, expected);
    }
    check("an empty prompt", &dlxc(&["run", good], Some("")), 1, "is empty");
    assert_only(dir.path(), &["good.dlxa", "model"], "broken requests");
}

/// Needs the right to mount a file system, which only root has.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let model = sdar_tiny(dir.path());
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs", path(&disk)]).output();
    if !mount.is_ok_and(|m| m.status.success()) {
        println!("skipped: no right to mount a small file system");
        return;
    }
    let output = dlxc(&["compile", path(&model.dir), "-o", path(&disk.join("out.dlxa"))], None);
    let left = std::fs::read_dir(&disk).unwrap().count();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    check("a full disk", &output, 1, "free some space");
    assert_eq!(left, 0, "a file was left on the full disk");
}

fn artifact(dir: &Path, more: &[&str]) -> PathBuf {
    let model = sdar_tiny(dir);
    let out = dir.join("good.dlxa");
    let args = [&["compile", path(&model.dir), "-o", path(&out)], more].concat();
    assert!(dlxc(&args, None).status.success());
    out
}

fn dlxc(args: &[&str], stdin: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
    command.args(args).stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        // A command that does not read its input closes the pipe early.
        let _ = std::io::Write::write_all(&mut pipe, text.as_bytes());
    }
    child.wait_with_output().unwrap()
}

fn check(what: &str, output: &Output, code: i32, expected: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    println!("{what}\n    {}", stderr.trim_end().replace('\n', "\n    "));
    assert_eq!(output.status.code(), Some(code), "{what}: {stderr}");
    assert!(stderr.contains(expected), "{what}: no `{expected}` in: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    assert!(output.stdout.is_empty(), "{what}: wrote to stdout");
    if code == 1 {
        assert_eq!(stderr.matches("error:").count(), 1, "{what}: {stderr}");
    }
}

fn assert_only(dir: &Path, names: &[&str], what: &str) {
    let mut found: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, names, "{what}: files left behind");
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}
