//! What a user sees when something is wrong: for each of a table of broken artifacts and requests, the one error that
//! `dlxc` prints, its exit code, that it does not panic, and that it leaves no file behind. Broken checkpoints are in
//! `remedies.rs`.
//!
//! `cargo test -p dlxc --test broken_inputs -- --nocapture` prints the table.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test program")]

#[path = "broken/model.rs"]
mod model;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use model::sdar_tiny;

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
        ("an output that is a directory", &["compile", model, "-o", path(dir.path())], 1, "is a directory"),
        ("an output that is the model", &["compile", model, "-o", model], 1, "belongs to the input"),
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
        ("a step larger than the caches", &["compile", model, "-o", out, "--buckets", "4,65536"], 1, "--buckets"),
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
