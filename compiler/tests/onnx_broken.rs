//! Broken and odd ONNX files through the binary: each broken one is one error that names what is wrong, within two seconds of
//! computing and four gigabytes of addresses, and leaves no artifact; each odd one compiles as it should.
//!
//! `cargo test -p dlxc --test onnx_broken -- --nocapture` prints what each says.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test program")]

#[path = "onnx_broken/files.rs"]
mod files;
#[allow(dead_code, reason = "the library's own tests use the rest")]
#[path = "../src/onnx/tests/made.rs"]
mod made;
#[path = "onnx_broken/nodes.rs"]
mod nodes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlxc::onnx;
use made::{floats, many, node, opset, with};
use prost::Message;

/// What a program may take: seconds of computing, and KiB of addresses.
const LIMITS: &str = "ulimit -t 2; ulimit -v 4194304; exec \"$0\" \"$@\"";

/// A broken file.
struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    /// Further arguments of the compile.
    args: &'static [&'static str],
    /// What the error must name.
    says: &'static [&'static str],
}

fn case(what: &'static str, model: &onnx::proto::ModelProto, says: &'static [&'static str]) -> Case {
    Case { what, bytes: model.encode_to_vec(), args: &[], says }
}

fn limited(args: &[&str]) -> Output {
    Command::new("sh").args(["-c", LIMITS, env!("CARGO_BIN_EXE_dlxc")]).args(args).output().unwrap()
}

fn compile(file: &Path, args: &[&str]) -> (Output, PathBuf) {
    let out = file.with_extension("dlxa");
    let all = [&["compile", file.to_str().unwrap(), "-o", out.to_str().unwrap(), "--graph"], args].concat();
    (limited(&all), out)
}

/// What a failed compile says, or why that is not as it should be.
fn error(output: &Output, artifact: &Path) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let (errors, helps) = (text.matches("error: ").count(), text.matches("help: ").count());
    let sound = matches!(output.status.code(), Some(1 | 2)) && errors == 1 && helps <= 1 && !text.contains("panicked");
    if sound && !artifact.exists() && output.stdout.is_empty() {
        Ok(text)
    } else {
        Err(format!("{}, {errors} errors, {helps} helps, artifact: {}\n{text}", output.status, artifact.exists()))
    }
}

fn all_say(cases: &[Case]) {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (n, Case { what, bytes, args, says }) in cases.iter().enumerate() {
        let file = dir.path().join(format!("case{n}.onnx"));
        std::fs::write(&file, bytes).unwrap();
        let (output, out) = compile(&file, args);
        match error(&output, &out) {
            Ok(text) => {
                println!("{what}\n    {}", text.trim_end().replace('\n', "\n    "));
                let missing: Vec<_> = says.iter().filter(|part| !text.contains(**part)).collect();
                let named = text.contains("case") || text.contains("--");
                if !missing.is_empty() || !named {
                    wrong.push(format!("{what}: {missing:?} is not in: {text}"));
                }
            }
            Err(why) => wrong.push(format!("{what}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn broken_files() {
    all_say(&files::cases());
}

#[test]
fn broken_nodes() {
    all_say(&nodes::cases());
}

/// Compiles a model that is valid, and gives the report and what `inspect` says of the artifact.
fn accepted(model: &onnx::proto::ModelProto) -> String {
    let file = made::write(&model.encode_to_vec());
    let (output, out) = compile(&file.path, &[]);
    let report = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{report}");
    let inspected = limited(&["inspect", out.to_str().unwrap()]);
    assert!(inspected.status.success(), "{report}");
    report + &String::from_utf8_lossy(&inspected.stdout)
}

#[test]
fn further_outputs_are_made() {
    let image = || made::input("x", 1, &[1, 2, 4, 4]);
    let pool = || with(node("MaxPool", "x", "y z"), [nodes::ints_attr("kernel_shape", &[2, 2])]);
    let norm = vec![floats("s", &[3], &[1.0; 3]), floats("b", &[3], &[0.0; 3])];
    for (what, mut m, shape) in [
        ("a mask of dropout", many(vec![node("Dropout", "x", "y z")], vec![]), "bool[2, 3]"),
        ("a mean", many(vec![node("LayerNormalization", "x s b", "y z")], norm.clone()), "f32[2, 1]"),
        ("a deviation", many(vec![node("LayerNormalization", "x s b", "y _ z")], norm), "f32[2, 1]"),
        ("places of a pool", many(vec![pool()], vec![]), "i64[1, 2, 3, 3]"),
    ] {
        let g = m.graph.as_mut().unwrap();
        if shape.starts_with("i64") {
            g.input = vec![image()];
        }
        g.output.push(made::value("z"));
        let text = accepted(&m);
        assert!(text.lines().any(|l| l.contains("output z") && l.contains(shape)), "{what}: {text}");
    }
}

#[test]
fn odd_files_compile() {
    let sum = |tensors| many(vec![node("Add", "x v", "a"), node("Add", "a w", "y")], tensors);
    let mut declared = sum(vec![floats("v", &[3], &[1.0; 3]), floats("w", &[3], &[1.0; 3])]);
    declared.graph.as_mut().unwrap().output = vec![made::input("y", 7, &[5, 5])];
    let text = accepted(&declared);
    assert!(text.lines().any(|l| l.contains("output y") && l.contains("f32[2, 3]")), "{text}");
    assert!(text.contains("output `y` is f32, which the file says is INT64"), "{text}");
    // Both read bytes of one file; they may not be the same.
    let part = |name, offset| made::external(name, &[3], &[("location", "w.bin"), ("offset", offset)]);
    for (offset, sound) in [("12", true), ("8", false)] {
        let file = made::write(&sum(vec![part("v", "0"), part("w", offset)]).encode_to_vec());
        std::fs::write(file.path.with_file_name("w.bin"), [0; 24]).unwrap();
        let (output, out) = compile(&file.path, &[]);
        assert_eq!(output.status.success(), sound, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(sound || error(&output, &out).unwrap().contains("they overlap"));
    }
    // What nobody reads may be missing.
    accepted(&many(vec![node("Dropout", "x", "y mask more")], vec![]));
}

#[test]
fn newer_operator_sets_are_noted() {
    let mut m = many(vec![node("Neg", "x", "a"), node("com.microsoft:QuickGelu", "a", "y")], vec![]);
    m.opset_import = vec![opset("", 99), opset("com.microsoft", 7)];
    let notes = ["opset 99 of ai.onnx is newer than what this was written for", "opset 7 of com.microsoft is newer"];
    let report = accepted(&m);
    let file = made::write(&m.encode_to_vec());
    let inspected = limited(&["inspect", file.path.to_str().unwrap()]);
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for note in notes {
        assert!(plain(&report).contains(note) && plain(&inspected).contains(note), "{report}\n{inspected}");
    }
}

#[test]
fn a_file_that_is_cut_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(golden("cond.dynamo.onnx")).unwrap();
    let mut refused = 0;
    for n in 0..200 {
        let file = dir.path().join("case.onnx");
        std::fs::write(&file, &bytes[..bytes.len() * n / 200]).unwrap();
        let (output, out) = compile(&file, &[]);
        if output.status.success() {
            std::fs::remove_file(out).unwrap();
            continue;
        }
        let text = error(&output, &out).unwrap_or_else(|why| panic!("cut at {n} of 200: {why}"));
        assert!(text.contains("case.onnx"), "{text}");
        refused += 1;
    }
    assert!(refused >= 195, "{refused}");
}

#[test]
fn changed_bytes_are_an_error_or_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let (mut valid, mut refused) = (0, 0);
    for (name, args) in [
        ("cond.dynamo.onnx", &[][..]),
        ("convnet.ort-static-qoperator.onnx", &["--dim", "B=1"]),
        ("lstm.ts17.onnx", &["--dim", "B=1", "--dim", "T=3"]),
    ] {
        let bytes = std::fs::read(golden(name)).unwrap();
        let file = dir.path().join(name);
        for n in 0..100 {
            let mut changed = bytes.clone();
            for _ in 0..1 + next() % 4 {
                let (at, with) = (next() % changed.len(), next());
                changed[at] = if with & 256 == 0 { with as u8 } else { changed[at] ^ 1 << (with % 8) };
            }
            std::fs::write(&file, &changed).unwrap();
            let (output, out) = compile(&file, args);
            if output.status.success() {
                std::fs::remove_file(out).unwrap();
                valid += 1;
            } else {
                error(&output, &out).unwrap_or_else(|why| panic!("{name}, mutant {n}: {why}"));
                refused += 1;
            }
        }
    }
    assert!(valid > 20 && refused > 50, "{valid} valid, {refused} refused");
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/onnx2").join(name)
}
