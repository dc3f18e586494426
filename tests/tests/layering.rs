//! Which crate may use which: the table of directories is checked against the Cargo.tomls and the lock file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Directory, crate, and the crates of this workspace that it may use.
const LAYERS: &[(&str, &str, &[&str])] = &[
    ("ir", "dlx-ir", &[]),
    ("passes", "dlx-passes", &["dlx-ir"]),
    ("runtime", "dlx-runtime", &["dlx-ir"]),
    ("targets", "dlx-targets", &["dlx-ir", "dlx-runtime"]),
    ("serve", "dlx-serve", &["dlx-runtime"]),
    ("compiler", "dlxc", &["dlx-ir", "dlx-passes", "dlx-runtime", "dlx-serve", "dlx-targets"]),
    ("tests", "dlx-tests", &["dlx-ir", "dlx-passes", "dlx-runtime", "dlx-serve", "dlx-targets", "dlxc"]),
    ("tests/oracle", "dlx-oracle", &["dlx-ir", "dlx-runtime", "dlx-tests", "dlxc"]),
    ("examples", "dlx-examples", &["dlx-runtime"]),
];

/// Crates from outside that an app which embeds the runtime must never be given, by the start of their names.
const KEPT_OUT: &[&str] =
    &["axum", "burn", "candle", "clap", "hyper", "onnx", "ort", "prost", "protobuf", "pyo3", "safetensors", "tch"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(workspace().join(path)).expect("the workspace can be read")
}

/// Names of the dependencies of any kind in a Cargo.toml.
fn dependencies(toml: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in toml.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies");
            // `[dependencies.name]`
            found.extend(section.split_once("dependencies.").map(|(_, name)| name.to_owned()));
        } else if inside && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            found.extend((!name.is_empty()).then(|| name.trim_matches('"').to_owned()));
        }
    }
    found
}

#[test]
fn the_table_names_every_member() {
    let toml = read("Cargo.toml");
    let members = toml.lines().find_map(|l| l.strip_prefix("members = [")).expect("members on one line");
    let members: BTreeSet<&str> =
        members.trim_end_matches(']').split(',').map(|m| m.trim().trim_matches('"')).collect();
    assert_eq!(members, LAYERS.iter().map(|(dir, ..)| *dir).collect());
    for (dir, name, _) in LAYERS {
        assert!(read(Path::new(dir).join("Cargo.toml")).contains(&format!("name = \"{name}\"")), "{dir} is {name}");
    }
}

#[test]
fn no_crate_uses_another_that_it_must_not() {
    let ours: BTreeSet<&str> = LAYERS.iter().map(|(_, name, _)| *name).collect();
    for (dir, name, allowed) in LAYERS {
        let used = dependencies(&read(Path::new(dir).join("Cargo.toml")));
        for dependency in used.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not use {dependency}");
        }
        assert!(used.iter().all(|d| !d.starts_with("path")), "{name} names a crate by its path");
    }
    let ir = dependencies(&read("ir/Cargo.toml"));
    assert!(ir.iter().all(|d| ["half", "libm", "petgraph", "proptest"].contains(&d.as_str())), "dlx-ir uses {ir:?}");
}

/// What each package of the lock file depends on.
fn locked() -> BTreeMap<String, Vec<String>> {
    let lock = read("Cargo.lock");
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = package
            .lines()
            .find_map(|l| l.strip_prefix("name = "))
            .expect("the workspace can be read")
            .trim_matches('"');
        let (_, list) = package.split_once("dependencies = [").unwrap_or_default();
        let list = list.split(']').next().unwrap_or_default();
        let names = list.split(',').map(|d| d.trim().trim_matches('"').split(' ').next().unwrap_or_default());
        packages.entry(name.into()).or_default().extend(names.filter(|n| !n.is_empty()).map(String::from));
    }
    packages
}

#[test]
fn the_runtime_stays_small() {
    let packages = locked();
    let mut reached = BTreeSet::new();
    let mut next = vec!["dlx-runtime"];
    while let Some(name) = next.pop() {
        if reached.insert(name) {
            next.extend(packages[name].iter().map(String::as_str));
        }
    }
    assert!(reached.contains("dlx-ir") && reached.contains("tokenizers"), "the lock file was read");
    let bad: Vec<_> = reached.iter().filter(|name| KEPT_OUT.iter().any(|k| name.starts_with(k))).collect();
    assert!(bad.is_empty(), "dlx-runtime reaches {bad:?}");
    let compiler = ["dlxc", "dlx-passes", "dlx-targets"];
    assert!(compiler.iter().all(|name| !reached.contains(name)), "dlx-runtime reaches the compiler");
}

#[test]
fn a_wrong_edge_is_seen() {
    let toml = "[dependencies]\ndlx-ir.workspace = true\nhalf = \"2\"\n[dependencies.dlxc]\npath = \"x\"\n\
                [target.'cfg(unix)'.dev-dependencies]\ndlx-passes = { path = \"..\" }\n[lints]\nworkspace = true\n";
    let found: Vec<_> = dependencies(toml).into_iter().collect();
    assert_eq!(found, ["dlx-ir", "dlx-passes", "dlxc", "half"]);
}
