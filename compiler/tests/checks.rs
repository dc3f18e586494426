//! The commands that say which pass broke it, through the program.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlx_ir::Tensor;
use dlx_runtime::graph::Tensors;
use dlxc::arrays::write;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny")
}

/// Random models of every family.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models")
}

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().expect("the program runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn at(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

fn compile(dir: &Path, name: &str, more: &[&str]) -> String {
    let out = at(dir, name);
    let model = model();
    let args =
        [&["compile", model.to_str().unwrap(), "-o", &out, "--max-seq", "64", "--buckets", "4,16"], more].concat();
    let output = dlxc(&args);
    assert!(output.status.success(), "{}", text(&output));
    out
}

fn passes(output: &Output) -> Vec<serde_json::Value> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["verify"][0]["passes"].as_array().unwrap().clone()
}

/// The check of a pass, by how its name begins.
fn row<'p>(passes: &'p [serde_json::Value], pass: &str) -> &'p serde_json::Value {
    passes.iter().find(|p| p["pass"].as_str().unwrap().starts_with(pass)).unwrap()
}

#[test]
fn every_pass_keeps_what_it_says_in_every_family() {
    let dir = tempfile::tempdir().unwrap();
    for model in std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()) {
        let (out, model) = (at(dir.path(), "m.dlxa"), model.display().to_string());
        let output = dlxc(&["compile", &model, "-o", &out, "--verify-each", "--json"]);
        assert!(output.status.success(), "{model}: {}", text(&output));
        let passes = passes(&output);
        for pass in ["quantize", "plan-memory", "pack weights", "run on cpu"] {
            let row = row(&passes, pass);
            assert!(row["comparison"]["compared"].as_u64().unwrap() > 0, "{row}");
        }
    }
}

#[test]
fn a_tolerance_that_is_breached_fails_and_names_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let (out, model) = (at(dir.path(), "m.dlxa"), golden().join("sdar-tiny"));
    let compile = |tolerance: &str| {
        let model = model.to_str().unwrap();
        dlxc(&["compile", model, "-o", &out, "--verify-each", "--json", "--tolerance", tolerance])
    };
    for (tolerance, pass) in [("quantize=0.02", "quantize"), ("quantize=0.3,run=0.0001", "run on cpu")] {
        let output = compile(tolerance);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(!Path::new(&out).exists(), "nothing is written");
        let passes = passes(&output);
        let row = row(&passes, pass);
        assert!(row["comparison"]["breach"].is_object() && row["value"].is_object(), "{row}");
        let [after, sources] = ["after", "sources"].map(|key| row["between"][key].as_array().unwrap());
        assert!(after.last().unwrap().as_str().unwrap().contains(".q4g32") && !sources.is_empty(), "{row}");
    }
    for (wrong, why) in [
        ("quantize", "is not PASS=ERROR"),
        ("nothing=0.1", "there is no pass `nothing`"),
        ("dce=-1", "is no error from 0 to 1"),
        ("dce=nan", "is no error from 0 to 1"),
    ] {
        let output = compile(wrong);
        assert!(output.status.code() == Some(2) && text(&output).contains(why), "{wrong}: {}", text(&output));
    }
}

#[test]
fn a_sound_model_bisects_to_nothing_and_one_that_departs_to_the_pass() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let model = model.to_str().unwrap();
    let sound = dlxc(&["bisect", model]);
    assert!(sound.status.success() && text(&sound).contains("every pass keeps"), "{}", text(&sound));

    // What the unquantized model computes is where int4 departs: behind the pass that quantizes.
    let exact = compile(dir.path(), "exact.dlxa", &["--quant", "none"]);
    let found = dlxc(&["bisect", model, "--against", &exact, "--tolerance", "0.05"]);
    assert_eq!(found.status.code(), Some(1), "{}", text(&found));
    assert!(text(&found).contains("quantize{to=q4g32}, is the first"), "{}", text(&found));
    let near = dlxc(&["bisect", model, "--quant", "none", "--against", &exact, "--tolerance", "0.01"]);
    assert!(near.status.success(), "{}", text(&near));
    let tokens = dlxc(&["bisect", model, "--against", &exact, "--metric", "tokens", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&tokens.stdout).unwrap();
    assert!(said["broken"].is_null() || said["broken"]["pass"] == "quantize{to=q4g32}", "{said}");
}

#[test]
fn references_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let file = |name: &str, arrays: Vec<(&str, Tensor)>| {
        let path = dir.path().join(name);
        let arrays: Tensors = arrays.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        write(&path, &arrays).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ids = || ("input_ids", Tensor::i32(&[4], vec![1, 2, 3, 4]));
    let logits = |rows: usize, columns: usize| ("logits", Tensor::f32(&[rows, columns], vec![0.0; rows * columns]));
    let cases = [
        (file("no-ids.safetensors", vec![logits(4, 512)]), "has no tensor `input_ids`"),
        (
            file("floats.safetensors", vec![("input_ids", Tensor::f32(&[2], vec![1.0, 2.0])), logits(4, 512)]),
            "holds no tokens",
        ),
        (file("other.safetensors", vec![ids(), logits(4, 100)]), "is [4, 100], and the model gives [4, 512]"),
        (file("none.safetensors", vec![ids()]), "has no `logits`"),
        (at(dir.path(), "missing.safetensors"), "cannot be read"),
    ];
    for (path, expected) in cases {
        let output = dlxc(&["bisect", model.to_str().unwrap(), "--against", &path]);
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(text(&output).contains(expected), "{path}: {}", text(&output));
    }
    for wrong in ["-1", "nan", "inf", "much"] {
        let output = dlxc(&["bisect", model.to_str().unwrap(), "--tolerance", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", text(&output));
    }
    let output = dlxc(&["bisect", model.to_str().unwrap(), "--tolerance", "0.1"]);
    assert!(text(&output).contains("has no effect without a reference"), "{}", text(&output));
}

#[test]
fn two_builds_are_told_apart_and_equal_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let [x, y, z] = ["x", "y", "z"].map(|d| at(dir.path(), d));
    let a = compile(dir.path(), "a.dlxa", &["--dump", &x]);
    let b = compile(dir.path(), "b.dlxa", &["--dump", &y]);
    let c = compile(dir.path(), "c.dlxa", &["--dump", &z, "--quant", "int8"]);
    for (left, right) in [(&a, &b), (&x, &y)] {
        let same = dlxc(&["diff", left, right]);
        assert!(same.status.success() && text(&same).contains("nothing differs"), "{}", text(&same));
    }
    let dumps = dlxc(&["diff", &x, &z, "--markdown"]);
    assert_eq!(dumps.status.code(), Some(1));
    assert!(text(&dumps).contains("from 13-quantize on") && text(&dumps).contains("| stage |"), "{}", text(&dumps));
    let artifacts = dlxc(&["diff", &a, &c, "--json", "--tolerance", "0.01"]);
    let said: serde_json::Value = serde_json::from_slice(&artifacts.stdout).unwrap();
    let numbers = &said["stages"][0]["numbers"];
    assert!(numbers["compared"].as_u64().unwrap() > 10 && numbers["first"]["node"].is_string(), "{numbers}");
    assert!(numbers["logits"].as_f64().unwrap() > 0.01 && numbers["decisions"].is_u64(), "{numbers}");
    let mixed = dlxc(&["diff", &a, &x]);
    assert!(
        text(&mixed).contains("is an artifact, and") && text(&mixed).contains("give two of one kind"),
        "{}",
        text(&mixed)
    );
    let itself = dlxc(&["diff", model().to_str().unwrap(), model().to_str().unwrap()]);
    assert!(itself.status.success(), "{}", text(&itself));
    let empty = at(dir.path(), "empty");
    std::fs::create_dir(&empty).unwrap();
    let output = dlxc(&["diff", &x, &empty]);
    assert!(text(&output).contains("holds neither a config.json nor files of --dump"), "{}", text(&output));
}

#[test]
fn names_alone_are_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let module = |x: &str, y: &str, op: &str| {
        format!(
            "module @m {{ graph @g(%x: f32[T, 8]) -> (f32[T, 8]) {{ %{x} = silu %x: f32[T, 8] %{y} = {op} %{x}, %x: f32[T, 8] return %{y} }} }}"
        )
    };
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let a = file("a.dlx", module("a", "b", "mul"));
    let b = file("b.dlx", module("c", "d", "mul"));
    let c = file("c.dlx", module("a", "b", "add"));
    let same = dlxc(&["diff", &a, &b]);
    assert!(same.status.success(), "{}", text(&same));
    let other = dlxc(&["diff", &a, &c]);
    assert_eq!(other.status.code(), Some(1));
    assert!(
        text(&other).contains("- %b = mul %a, %x") && text(&other).contains("first value that differs: %b"),
        "{}",
        text(&other)
    );
    let broken = file("d.dlx", "module @m {".into());
    assert!(text(&dlxc(&["diff", &a, &broken])).contains("d.dlx"));
}

#[test]
fn opt_reports_every_pass_and_fails_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dlx");
    std::fs::write(&path, "module @m { graph @g(%x: f32[T, 8]) -> (f32[T, 8]) { %a = silu %x: f32[T, 8] %b = silu %x: f32[T, 8] %c = add %a, %b: f32[T, 8] return %c } }").unwrap();
    let output = dlxc(&["opt", path.to_str().unwrap(), "-p", "cse,dce", "--verify-each", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said[0]["passes"][0]["comparison"]["compared"], 1, "{said}");
}

#[test]
fn dumps_of_two_builds_part_at_the_stage_that_differs_first() {
    let dir = tempfile::tempdir().unwrap();
    let [good, bad, half] = ["good", "bad", "half"].map(|d| at(dir.path(), d));
    compile(dir.path(), "m.dlxa", &["--dump", &good]);
    std::fs::create_dir(&bad).unwrap();
    std::fs::create_dir(&half).unwrap();
    for file in std::fs::read_dir(&good).unwrap().map(|f| f.unwrap()) {
        let (name, mut text) = (file.file_name(), std::fs::read_to_string(file.path()).unwrap());
        if name.to_str().unwrap() >= "11" {
            let layer = text.find("%l1.out").expect("the second layer has a name");
            text = format!("{}{}", &text[..layer], text[layer..].replace("norm=1e-6", "norm=1e-2"));
        }
        std::fs::write(Path::new(&bad).join(name), text).unwrap();
    }
    let same = dlxc(&["bisect", &good, "--against", &good]);
    assert!(same.status.success() && text(&same).contains("computes the same"), "{}", text(&same));
    let found = dlxc(&["bisect", &good, "--against", &bad]);
    assert_eq!(found.status.code(), Some(1), "{}", text(&found));
    for part in ["from 11-fuse-norm, behind fuse-norm, on", "norm=1e-6", "norm=0.01", "is to be asked"] {
        assert!(text(&found).contains(part), "{part}: {}", text(&found));
    }
    let said = dlxc(&["bisect", &good, "--against", &bad, "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(said["broken"]["compared"].as_u64().unwrap() <= 4, "{said}");

    assert!(text(&dlxc(&["bisect", &good])).contains("give it with --against DIR"));
    let against = |what: &str| dlxc(&["bisect", &good, "--against", what]);
    assert!(text(&against(&half)).contains("holds neither"));
    std::fs::write(Path::new(&half).join("99-other.dlx"), "module @m {\n}\n").unwrap();
    assert!(text(&against(&half)).contains("no stage has the same name"));
    std::fs::write(Path::new(&bad).join("17-plan-memory.dlx"), "module @m { graph").unwrap();
    let broken = against(&bad);
    assert!(text(&broken).contains("17-plan-memory.dlx") && broken.status.code() == Some(1), "{}", text(&broken));
    assert!(text(&against(&at(dir.path(), "m.dlxa"))).contains("give the --dump of another build"));
}
