//! Checkpoints as people really have them: what is accepted, with what is said about it, and that the answer is right.
//!
//! Each row changes the files of a trained example in a way that other programs read without a word. What must be refused
//! is in `remedies.rs`.
#![allow(clippy::unwrap_used, reason = "test program")]

#[path = "broken/layouts.rs"]
mod layouts;
#[path = "broken/model.rs"]
mod model;

use std::path::Path;
use std::process::{Command, Output};

use layouts::{added_alone, auto_map, dream, fast_class, windows};
use model::{INDEX, Model, example};
use serde_json::json;

/// What is special, the example, the change, and a part of a note (or nothing) that must be printed.
type Row = (&'static str, &'static str, fn(&mut Model), &'static str);

const ACCEPTED: &[Row] = &[
    ("a byte order mark in config.json", "sdar-tiny", |m| mark(m, "config.json"), ""),
    ("byte order marks everywhere", "sdar-tiny", mark_all, ""),
    ("NaN in a key that nobody reads", "sdar-tiny", |m| nan(m), ""),
    ("a key said twice alike", "sdar-tiny", |m| repeat(m, "\"hidden_act\": \"silu\", "), ""),
    ("Dream's own layout", "dream-tiny", dream, "as DreamTokenizer reads them"),
    ("Dream's own layout with line ends of Windows", "dream-tiny", windows, "as DreamTokenizer reads them"),
    ("a class by auto_map alone", "dream-tiny", auto_map, "as DreamTokenizer reads them"),
    ("a fast class without its file", "qwen2-tiny", fast_class, "as Qwen2Tokenizer reads them"),
    ("added_tokens.json alone", "sdar-tiny", added_alone, "as Qwen2Tokenizer reads them"),
    ("shards and their index", "sdar-tiny", |m| drop(m.split()), ""),
    ("shards without an index", "sdar-tiny", |m| unindexed(m), "there is no index"),
    (
        "a superseded copy in another shard",
        "sdar-tiny",
        duplicate,
        "left unread: the index places them in another file",
    ),
    ("a tensor that the index does not list", "sdar-tiny", unlisted, "model.old.weight of model-00002-of-00002"),
    ("a single file that holds the same", "sdar-tiny", same_single, "holds the same as the shards"),
    ("an index of files that are gone", "sdar-tiny", stale_index, "lists 2 files that are not here"),
    (
        "an index of the single file",
        "sdar-tiny",
        |m| {
            let w = m.bytes(WEIGHTS).to_vec();
            m.index(WEIGHTS);
            m.write(WEIGHTS, &w);
        },
        "",
    ),
    (
        "Mistral's file beside the model",
        "sdar-tiny",
        |m| beside(m, "consolidated.safetensors"),
        "consolidated.safetensors left unread",
    ),
    (
        "a variant beside the model",
        "sdar-tiny",
        |m| beside(m, "model.fp16.safetensors"),
        "model.fp16.safetensors left unread",
    ),
    (
        "a file beside the shards",
        "sdar-tiny",
        |m| {
            m.split();
            beside(m, "old.safetensors")
        },
        "old.safetensors left unread",
    ),
    ("a single file of another name", "sdar-tiny", renamed, "the weights are those of weights.safetensors"),
    ("optimizer state beside the model", "sdar-tiny", |m| m.write("optimizer.pt", b"PK\x03\x04"), ""),
    ("a quantization_config that says nothing", "sdar-tiny", |m| m.set("quantization_config", json!({})), ""),
    (
        "plain weights and a request to quantize while loading",
        "sdar-tiny",
        bitsandbytes,
        "the plain weights are compiled",
    ),
];

const WEIGHTS: &str = "model.safetensors";

#[test]
fn what_others_read_is_read() {
    for (what, name, change, note) in ACCEPTED {
        let dir = tempfile::tempdir().unwrap();
        let mut model = example(dir.path(), name);
        change(&mut model);
        model.save();
        let out = dir.path().join("out.dlxa");
        let report = success(what, &dlxc(dir.path(), &["compile", path(&model.dir), "-o", path(&out)]));
        assert!(report.contains(note), "{what}: no `{note}` in {report}");
        assert_eq!(report.contains("\nnote: "), !note.is_empty(), "{what}: {report}");
        let places = report.lines().filter(|l| l.starts_with("note: ") && l.contains(path(dir.path())));
        assert_eq!(places.count(), 0, "{what}: an artifact must not depend on where the checkpoint was: {report}");
        let inspected = success(what, &dlxc(dir.path(), &["inspect", path(&model.dir)]));
        assert!(inspected.contains(note), "{what}: {inspected}");
        let answer = success(what, &dlxc(dir.path(), &["run", path(&out), "What is the capital of France?"]));
        assert_eq!(answer.trim_end(), "The capital of France is Paris.", "{what}");
    }
}

/// A link to nothing beside the model is nobody's business; one in place of a file that is needed is named.
#[cfg(unix)]
#[test]
fn dangling_links() {
    let dir = tempfile::tempdir().unwrap();
    let model = example(dir.path(), "sdar-tiny");
    std::os::unix::fs::symlink("../../blobs/0123", model.dir.join("README.md")).unwrap();
    let answer = dlxc(dir.path(), &["run", path(&model.dir), "What is the capital of France?"]);
    assert_eq!(success("a link", &answer).trim_end(), "The capital of France is Paris.");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, INDEX] {
        model.save();
        let _ = std::fs::remove_file(model.dir.join(file));
        std::os::unix::fs::symlink("../../blobs/0123", model.dir.join(file)).unwrap();
        let output = dlxc(dir.path(), &["compile", path(&model.dir), "-o", path(&dir.path().join("out.dlxa"))]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            error.contains(&format!("{file}: is a link to ../../blobs/0123, which is not there")),
            "{file}: {error}"
        );
    }
    std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
    let output = dlxc(dir.path(), &["compile", path(&dir.path().join("link")), "-o", "x.dlxa"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("link: is a link to nowhere"), "{output:?}");
}

/// A pipe has no end: it is refused, not waited for.
#[cfg(unix)]
#[test]
fn pipes_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = example(dir.path(), "sdar-tiny");
    for file in ["config.json", "tokenizer.json", WEIGHTS, "chat_template.jinja"] {
        model.save();
        let _ = std::fs::remove_file(model.dir.join(file));
        assert!(Command::new("mkfifo").arg(model.dir.join(file)).status().unwrap().success());
        let output = dlxc(dir.path(), &["compile", path(&model.dir), "-o", path(&dir.path().join("out.dlxa"))]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(&format!("{file}: cannot be read: not a regular file")), "{file}: {error}");
    }
}

/// What is given in place of a directory is named, and the way on leads there.
#[test]
fn files_in_place_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let model = example(dir.path(), "sdar-tiny");
    let out = dir.path().join("out.dlxa");
    success("compile", &dlxc(dir.path(), &["compile", path(&model.dir), "-o", path(&out)]));
    std::fs::write(dir.path().join("model.zip"), b"PK\x03\x04").unwrap();
    std::fs::write(dir.path().join("download"), b"GGUF\x03\0\0\0\0").unwrap();
    std::fs::write(dir.path().join("model.gguf"), b"GGUF\x03\0\0\0\0").unwrap();
    let within = format!("give the directory that it is in: {}\n", path(&model.dir));
    let run = format!("is compiled already\nhelp: run it: dlxc run {}\n", path(&out));
    for (file, expected) in [
        ("model/model.safetensors", within.as_str()),
        ("model/config.json", &within),
        ("out.dlxa", &run),
        ("model.zip", "an archive must be unpacked first"),
        ("download", "is a GGUF file for llama.cpp"),
        ("model.gguf", "GGUF files for llama.cpp"),
        ("nowhere", "no such directory\nhelp: download the checkpoint"),
    ] {
        let output = dlxc(dir.path(), &["compile", path(&dir.path().join(file)), "-o", "x.dlxa"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(expected), "{file}: {error}");
    }
}

/// A shard that is a link to nothing is no missing shard.
#[cfg(unix)]
#[test]
fn a_dangling_shard() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = example(dir.path(), "sdar-tiny");
    let shards = model.split();
    model.save();
    std::fs::remove_file(model.dir.join(&shards[1])).unwrap();
    std::os::unix::fs::symlink("gone", model.dir.join(&shards[1])).unwrap();
    let output = dlxc(dir.path(), &["compile", path(&model.dir), "-o", path(&dir.path().join("out.dlxa"))]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("00002.safetensors: is a link to gone"), "{output:?}");
}

/// What is not finite is compiled when asked for, and an artifact that was written loads.
#[test]
fn an_artifact_that_was_written_loads() {
    let dir = tempfile::tempdir().unwrap();
    for bits in [0x7fc0, 0x7f80, 0xff80] {
        for tensor in
            ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
        {
            let mut model = example(dir.path(), "sdar-tiny");
            model.poke(tensor, 7, bits);
            model.save();
            let out = dir.path().join("out.dlxa");
            for quant in ["none", "f16", "int8", "int4"] {
                let _ = std::fs::remove_file(&out);
                let args = ["compile", path(&model.dir), "-o", path(&out), "--quant", quant, "--allow-nonfinite"];
                let compiled = dlxc(dir.path(), &args);
                if !compiled.status.success() {
                    let error = String::from_utf8_lossy(&compiled.stderr);
                    assert!(
                        quant.starts_with("int") && error.contains("does not fit f16"),
                        "{tensor} {quant}: {error}"
                    );
                    continue;
                }
                let ran = dlxc(dir.path(), &["run", path(&out), "--raw", "a", "--max-new", "4"]);
                let error = String::from_utf8_lossy(&ran.stderr);
                assert!(
                    !error.contains("golden") && !error.contains("self-test:"),
                    "{tensor} {bits:#x} {quant}: {error}"
                );
            }
        }
    }
}

/// Numbers beyond f16 or bf16 are refused where they would become infinite, and the advice gives the right answer.
#[test]
fn numbers_that_a_format_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = example(dir.path(), "qwen2-tiny");
    let mut tensors = model.tensors();
    // Rows of up times 2^24 and the columns of down by as much less: the same function.
    for (name, factor, rows) in [("up_proj", 1u8, true), ("down_proj", 0, false)] {
        let (_, shape, bytes) = tensors.get_mut(&format!("model.layers.0.mlp.{name}.weight")).unwrap();
        let width = usize::try_from(shape[1].as_u64().unwrap()).unwrap();
        for (i, v) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let at = if rows { i / width } else { i % width };
            let bits = u16::from_le_bytes(*v);
            let exponent = bits >> 7 & 0xff;
            if (10..14).contains(&at) && exponent > 24 {
                *v = if factor == 1 { bits + (24 << 7) } else { bits - (24 << 7) }.to_le_bytes();
            }
        }
    }
    model.write_tensors(WEIGHTS, &tensors);
    model.save();
    let out = dir.path().join("out.dlxa");
    let source = model.dir.clone();
    let compile = |more: &[&str]| {
        let _ = std::fs::remove_file(&out);
        dlxc(dir.path(), &[&["compile", path(&source), "-o", path(&out)], more].concat())
    };
    for format in ["f16", "int4", "int4:64:min"] {
        let refused = String::from_utf8_lossy(&compile(&["--quant", format]).stderr).into_owned();
        assert!(refused.contains("model.layers.0.mlp.up_proj.weight: "), "{format}: {refused}");
        assert!(refused.contains(" at [1") && refused.contains("fit f16"), "{format}: {refused}");
        assert!(refused.contains("--quant bf16"), "{format}: {refused}");
    }
    let refused = String::from_utf8_lossy(&compile(&["--quant", "bf16", "--keep", "up_proj=f16"]).stderr).into_owned();
    assert!(refused.contains("does not fit f16") && refused.contains("--keep up_proj=bf16"), "{refused}");
    for advice in [&["--quant", "bf16"][..], &["--quant", "bf16", "--keep", "up_proj=bf16"]] {
        success("bf16", &compile(advice));
        let answer = success("bf16", &dlxc(dir.path(), &["run", path(&out), "What is the capital of France?"]));
        assert_eq!(answer.trim_end(), "The capital of France is Paris.");
    }

    // The largest f32 rounds to infinity in bf16.
    let (dtype, _, bytes) = tensors.get_mut("model.layers.1.mlp.gate_proj.weight").unwrap();
    let wide = bytes.as_chunks::<2>().0.iter().flat_map(|v| [0, 0, v[0], v[1]]);
    let mut wide: Vec<u8> = wide.collect();
    wide[4 * 5..4 * 6].copy_from_slice(&f32::MAX.to_le_bytes());
    (*dtype, *bytes) = ("F32".into(), wide);
    model.write_tensors(WEIGHTS, &tensors);
    model.save();
    let refused = String::from_utf8_lossy(&compile(&["--quant", "bf16"]).stderr).into_owned();
    assert!(
        refused.contains("model.layers.1.mlp.gate_proj.weight: 3.4028235e38 at [0, 5] does not fit bf16"),
        "{refused}"
    );
    success("none", &compile(&["--quant", "bf16", "--keep", "gate_proj=none"]));
}

fn mark(m: &mut Model, file: &str) {
    let bytes = [b"\xef\xbb\xbf", m.bytes(file)].concat();
    m.write(file, &bytes);
}

fn mark_all(m: &mut Model) {
    m.split();
    let files: Vec<_> = m.names().filter(|n| n.ends_with(".json")).map(str::to_owned).collect();
    m.write("chat_template.jinja", "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n\n".as_bytes());
    files.iter().map(String::as_str).chain(["chat_template.jinja"]).for_each(|file| mark(m, file));
}

fn nan(m: &mut Model) {
    m.set("initializer_range", json!("HERE"));
    let text = String::from_utf8(m.bytes("config.json").to_vec()).unwrap().replace("\"HERE\"", "NaN");
    m.write("config.json", text.as_bytes());
}

/// Puts text behind the opening brace of config.json.
fn repeat(m: &mut Model, text: &str) {
    let config = String::from_utf8(m.bytes("config.json").to_vec()).unwrap();
    m.write("config.json", config.replacen('{', &format!("{{{text}"), 1).as_bytes());
}

fn unindexed(m: &mut Model) {
    m.split();
    m.remove(INDEX);
}

/// A spoiled copy of the first tensor lies in the second shard.
fn duplicate(m: &mut Model) {
    let mut first = m.tensors();
    let name = first.keys().next().unwrap().clone();
    let (dtype, shape, bytes) = first.remove(&name).unwrap();
    let zeros = vec![0; bytes.len()];
    let [_, second] = m.split();
    m.add_tensors(&second, [(name, (dtype, shape, zeros))].into());
}

fn unlisted(m: &mut Model) {
    let tensor = m.tensors().remove("model.norm.weight").unwrap();
    let [_, second] = m.split();
    m.add_tensors(&second, [("model.old.weight".to_owned(), tensor)].into());
}

fn same_single(m: &mut Model) {
    let single = m.bytes(WEIGHTS).to_vec();
    m.split();
    m.write(WEIGHTS, &single);
}

fn stale_index(m: &mut Model) {
    same_single(m);
    ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().for_each(|f| m.remove(f));
}

fn beside(m: &mut Model, name: &str) {
    m.write(name, b"whatever it is");
}

fn renamed(m: &mut Model) {
    let bytes = m.bytes(WEIGHTS).to_vec();
    m.remove(WEIGHTS);
    m.write("weights.safetensors", &bytes);
}

fn bitsandbytes(m: &mut Model) {
    m.set("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_4bit": true}));
}

fn dlxc(cache: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).env("DLXC_CACHE", cache.join("cache")).output().unwrap()
}

fn success(what: &str, output: &Output) -> String {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}
