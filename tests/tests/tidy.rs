//! House rules that a machine can check: file heads and lengths, names, where `unsafe` may stand, tables in order.

use std::path::{Path, PathBuf};

use dlx_passes::PASSES;
use dlx_targets::TARGETS;
use dlxc::hf::FAMILIES;

/// Longest file in lines.
const MAX_LINES: usize = 600;

/// What a program wrote and nobody edits, whatever its length.
const GENERATED: &[&str] = &["compiler/src/onnx/proto.rs"];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] =
    &["runtime/benches/", "runtime/src/cpu/", "runtime/src/mapped.rs", "tests/tests/no_allocation.rs"];

/// Names that say nothing.
const BANNED_NAMES: &[&str] = &["base", "common", "helper", "helpers", "misc", "types2", "util", "utils"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace can be read")
}

/// Files of the workspace with one of these extensions, by their path from its root.
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    let root = workspace();
    let mut found = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("the workspace can be read") {
            let path = entry.expect("the workspace can be read").path();
            let name = path.file_name().expect("the workspace can be read").to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                let relative =
                    path.strip_prefix(&root).expect("the workspace can be read").to_string_lossy().replace('\\', "/");
                // What is not text is not ours to judge.
                found.extend(std::fs::read_to_string(&path).ok().map(|text| (relative, text)));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Fails with one line per complaint.
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let bad = files(&["rs"]).into_iter().filter(|(_, text)| !text.starts_with("//!"));
    report(bad.map(|(path, _)| format!("{path} does not open with `//!`")).collect());
}

#[test]
fn files_are_short() {
    let lengths = files(&["rs"]).into_iter().map(|(path, text)| (path, text.lines().count()));
    let long = lengths.filter(|(path, lines)| *lines > MAX_LINES && !GENERATED.contains(&path.as_str()));
    let mut bad: Vec<_> = long.map(|(path, n)| format!("{path} has {n} lines; split it by concern")).collect();
    let map = workspace().join("ARCHITECTURE.md");
    let lines = std::fs::read_to_string(map).map_or(0, |text| text.lines().count());
    bad.extend((lines > 200).then(|| format!("ARCHITECTURE.md has {lines} lines, more than 200")));
    report(bad);
}

#[test]
fn nothing_is_left_unfinished() {
    let this = file!().replace('\\', "/");
    let mut bad = Vec::new();
    for (path, text) in files(&["rs"]).iter().filter(|(path, _)| !this.ends_with(path)) {
        for (i, line) in text.lines().enumerate() {
            for word in ["todo!(", "unimplemented!(", "dbg!("] {
                bad.extend(line.contains(word).then(|| format!("{path}:{}: {word})", i + 1)));
            }
            bad.extend(line.contains("#[ignore]").then(|| format!("{path}:{}: ignored without a reason", i + 1)));
        }
    }
    report(bad);
}

#[test]
fn unsafe_stays_where_it_belongs() {
    let keyword = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        let quoted = code.find("unsafe").is_some_and(|at| code[..at].matches('"').count() % 2 == 1);
        !quoted && code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    };
    let outside = |path: &str| !UNSAFE.iter().any(|place| path.starts_with(place));
    let mut bad = Vec::new();
    for (path, text) in files(&["rs"]).iter().filter(|(path, _)| outside(path)) {
        let lines = text.lines().enumerate().filter(|(_, line)| keyword(line));
        bad.extend(lines.map(|(i, _)| format!("{path}:{}: unsafe stands here", i + 1)));
    }
    report(bad);
}

#[test]
fn names_say_something() {
    let banned = |path: &str| path.trim_end_matches(".rs").split('/').any(|part| BANNED_NAMES.contains(&part));
    let bad = files(&["rs"]).into_iter().filter(|(path, _)| banned(path));
    report(bad.map(|(path, _)| format!("{path}: the name says nothing")).collect());
}

#[test]
fn no_path_of_anyone_s_machine() {
    // Spelled in parts, so that this file does not contain them.
    let places = [["/", "work/"], ["shared", "/"], ["/", "home/"], ["/", "Users/"], ["/", "root/"]].map(|p| p.concat());
    let mut bad = Vec::new();
    for (path, text) in files(&["rs", "toml", "md", "dlx", "py", "sh", "yml", "yaml"]) {
        for (i, line) in text.lines().enumerate() {
            let starts = |place: &str| {
                let at = line.find(place)?;
                // A path below something else, such as `docs/home/x`, is no absolute path.
                line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '.').then_some(())
            };
            bad.extend(places.iter().filter(|p| starts(p).is_some()).map(|p| format!("{path}:{}: names {p}", i + 1)));
        }
    }
    report(bad);
}

#[test]
fn tables_are_alphabetical() {
    let sorted = |what: &str, names: Vec<&str>| {
        let mut wanted = names.clone();
        wanted.sort_unstable();
        wanted.dedup();
        assert_eq!(names, wanted, "{what}");
    };
    sorted("PASSES", PASSES.iter().map(|p| p.name).collect());
    sorted("TARGETS", TARGETS.iter().map(|t| t.name).collect());
    sorted("FAMILIES", FAMILIES.iter().map(|f| f.name).collect());
}
