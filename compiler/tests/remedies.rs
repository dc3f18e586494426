//! Broken checkpoints: for each, the one error that `dlxc` prints, and what its advice leads to when it is followed to the
//! letter: the right answer. A checkpoint that answers nonsense is the one outcome that must not be.
//!
//! `cargo test -p dlxc --test remedies -- --nocapture` prints the table. An error of the checkpoint reader whose advice no
//! row follows is a failure too.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test program")]

#[path = "broken/configs.rs"]
mod configs;
#[path = "broken/model.rs"]
mod model;
#[path = "broken/others.rs"]
mod others;
#[path = "broken/packs.rs"]
mod packs;
#[path = "broken/quantized.rs"]
mod quantized;
#[path = "broken/weights.rs"]
mod weights;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use model::{Model, sdar_tiny};
use rayon::prelude::*;

/// What is broken, how, a part of the message that names the place, a part of the advice, and the advice as an action.
pub(crate) type Row = (&'static str, fn(&mut Model), &'static str, &'static str, Remedy);

/// Advice, followed.
#[derive(Clone, Copy)]
pub(crate) enum Remedy {
    /// Files as they were published.
    Fetch(&'static [&'static str]),
    /// Another checkpoint: the one that this was made from, or belongs to.
    Original,
    /// A change of the directory.
    Do(fn(&mut Model)),
    /// Another path, below the one that was given.
    Elsewhere(&'static str),
    /// It only says what is supported.
    Informs,
}

const ANSWER: &str = "The capital of France is Paris.";

#[test]
fn advice_leads_to_the_right_answer() {
    let rows = [configs::CONFIGS, configs::TEXTS, weights::FILES, weights::SETS, others::OTHERS, quantized::QUANTIZED]
        .concat();
    let tried: Vec<_> = rows.par_iter().map(try_row).collect();
    let mut advice = BTreeSet::new();
    let (mut table, mut failures) = (String::new(), Vec::new());
    for (row, (error, outcome)) in rows.iter().zip(tried) {
        match outcome {
            Ok(outcome) => {
                table.push_str(&format!("{}\n    {}\n    → {outcome}\n", row.0, error.replace('\n', "\n    ")))
            }
            Err(why) => failures.push(format!("{}: {why}\n{error}", row.0)),
        }
        advice.insert(row.3);
    }
    println!("{table}{} errors, {} different pieces of advice, all followed", rows.len(), advice.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let untried = untried(&table);
    assert!(untried.is_empty(), "advice that no row follows: {untried:#?}");
}

/// The error of a row, without the directory's name, and what its advice leads to.
fn try_row((what, damage, message, advice, remedy): &Row) -> (String, Result<&'static str, String>) {
    let dir = tempfile::tempdir().unwrap();
    let mut model = sdar_tiny(dir.path());
    damage(&mut model);
    model.save();
    let error = refused(what, dir.path(), &model.dir);
    let (said, help) = error.split_once("\nhelp: ").unwrap_or((&error, &error));
    let outcome = if said.contains(message) && help.contains(advice) {
        follow(what, dir.path(), &mut model, remedy, help)
    } else {
        Err(format!("expected `{message}`, then `{advice}`"))
    };
    (error.trim_end().replace(path(dir.path()), ""), outcome)
}

/// Follows advice and says what came of it.
fn follow(what: &str, dir: &Path, model: &mut Model, remedy: &Remedy, help: &str) -> Result<&'static str, String> {
    let mut place = model.dir.clone();
    match remedy {
        Remedy::Informs => return Ok("nothing to follow"),
        Remedy::Fetch(files) => model.fetch(files),
        Remedy::Original => model.restart(),
        Remedy::Do(change) => change(model),
        Remedy::Elsewhere(below) => {
            place = place.join(below);
            assert!(help.trim_end().ends_with(path(&place)), "{what}: {help}");
        }
    }
    model.save();
    let out = dir.join("out.dlxa");
    let compiled = dlxc(&["compile", path(&place), "-o", path(&out)]);
    if !compiled.status.success() {
        return Err(format!("refused again: {}", String::from_utf8_lossy(&compiled.stderr)));
    }
    let ran = dlxc(&["run", path(&out), "What is the capital of France?"]);
    match String::from_utf8_lossy(&ran.stdout).trim_end() {
        ANSWER => Ok("right"),
        other => Err(format!("answers {other:?}")),
    }
}

/// The one error of a compile, which leaves nothing behind.
fn refused(what: &str, dir: &Path, model: &Path) -> String {
    let output = dlxc(&["compile", path(model), "-o", path(&dir.join("out.dlxa"))]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
    assert!(!stderr.contains("panicked") && stderr.matches("error:").count() == 1, "{what}: {stderr}");
    assert!(output.stdout.is_empty(), "{what}: wrote to stdout");
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["model"], "{what}: files left behind");
    stderr
}

/// Where the advice of the checkpoint reader is written.
const SOURCES: &[(&str, &str)] = &[
    ("hf/decoder.rs", include_str!("../src/hf/decoder.rs")),
    ("hf/keys.rs", include_str!("../src/hf/keys.rs")),
    ("hf/mod.rs", include_str!("../src/hf/mod.rs")),
    ("hf/rope.rs", include_str!("../src/hf/rope.rs")),
    ("hf/tokens.rs", include_str!("../src/hf/tokens.rs")),
    ("bpe.rs", include_str!("../src/checkpoint/bpe.rs")),
    ("checkpoint.rs", include_str!("../src/checkpoint.rs")),
    ("config.rs", include_str!("../src/checkpoint/config.rs")),
    ("index.rs", include_str!("../src/checkpoint/index.rs")),
    ("json.rs", include_str!("../src/checkpoint/json.rs")),
    ("kinds.rs", include_str!("../src/checkpoint/kinds.rs")),
    ("methods.rs", include_str!("../src/checkpoint/methods.rs")),
    ("methods/awq_gptq.rs", include_str!("../src/checkpoint/methods/awq_gptq.rs")),
    ("methods/bitsandbytes.rs", include_str!("../src/checkpoint/methods/bitsandbytes.rs")),
    ("methods/compressed.rs", include_str!("../src/checkpoint/methods/compressed.rs")),
    ("methods/float8.rs", include_str!("../src/checkpoint/methods/float8.rs")),
    ("methods/torchao.rs", include_str!("../src/checkpoint/methods/torchao.rs")),
    ("packed.rs", include_str!("../src/checkpoint/packed.rs")),
    ("quantized.rs", include_str!("../src/checkpoint/quantized.rs")),
    ("shard.rs", include_str!("../src/checkpoint/shard.rs")),
    ("text.rs", include_str!("../src/checkpoint/text.rs")),
];

/// Advice that is followed elsewhere, or cannot be here.
const ELSEWHERE: &[&str] = &[
    "leave it out",            // of an option
    "put it beside the model", // `onnx.rs`, as the next two
    "use one of ",
    "give the id of the mask token",
    "check its permissions",                                 // root lists everything
    "check the file and its permissions",                    // root reads everything
    "download the file again: the copy that the link meant", // `reports.rs` makes the links
];

/// The advice in the sources that is not in `printed`.
fn untried(printed: &str) -> Vec<String> {
    let mut untried = Vec::new();
    for (file, source) in SOURCES {
        let source = source.split("#[cfg(test)]").next().unwrap();
        for rest in source.split(".help(").skip(1) {
            let rest = rest.trim_start().trim_start_matches("format!(").trim_start();
            let Some(text) = rest.strip_prefix('"') else { continue };
            let text = text.split(['"', '{']).next().unwrap();
            if !printed.contains(text) && !ELSEWHERE.iter().any(|e| text.starts_with(e)) {
                untried.push(format!("{file}: {text}"));
            }
        }
    }
    untried
}

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}
