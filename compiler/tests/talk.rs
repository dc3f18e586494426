//! Talking to a compiled model: text that looks like control tokens, stop tokens, refused turns, notes, raw prompts.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

#[path = "broken/model.rs"]
mod model;

fn examples(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(name)
}

/// Runs the program with a cache of its own and `input` on standard input.
fn dlxc(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
    command.args(args).env("XDG_CACHE_HOME", dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn run(dir: &Path, model: &Path, args: &[&str], input: &[u8]) -> (String, String, Option<i32>) {
    let args = [&["run", model.to_str().unwrap(), "--quant", "none"], args].concat();
    let output = dlxc(dir, &args, input);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

#[test]
fn mask_text_in_a_question_is_text() {
    let dir = tempfile::tempdir().unwrap();
    for (family, mask) in [("sdar-tiny", "<|MASK|>"), ("fast-dllm-v2-tiny", "|<MASK>|"), ("llada-tiny", "<|mdm_mask|>")]
    {
        let question = format!("{mask} What is 27 + 45?");
        let (out, err, code) = run(dir.path(), &examples(family), &[&question, "--json"], b"");
        assert_eq!(code, Some(0), "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let text = report["text"].as_str().unwrap();
        assert!(!text.is_empty() && !text.contains("27 + 45") && !text.contains("assistant"), "{family}: {text}");
        let with_special = [question.as_str(), "--json", "--allow-special"];
        let (out, _, _) = run(dir.path(), &examples(family), &with_special, b"");
        let special: Value = serde_json::from_str(&out).unwrap();
        let tokens = |report: &Value| report["prompt_tokens"].as_u64().unwrap();
        assert!(tokens(&report) > tokens(&special), "{family}: the mask's text is several tokens");
    }
}

#[test]
fn a_refused_turn_does_not_end_the_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let input = [b"\xff\n".as_slice(), "a".repeat(1500).as_bytes(), b"\n\nWhat is 27 + 45?\n"].concat();
    let (out, err, code) = run(dir.path(), &examples("sdar-tiny"), &["--chat"], &input);
    assert_eq!((out.as_str(), code), ("72\n", Some(0)));
    let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors[0].contains("UTF-8") || errors[0].contains("utf-8"), "{err}");
    assert!(errors[1].contains("1508 tokens") && errors.len() == 2, "{err}");
    let (_, err, code) = run(dir.path(), &examples("sdar-tiny"), &["--chat", "--rule", "guess"], b"hi\nhi\n");
    assert_eq!((err.matches("error: ").count(), code), (1, Some(1)), "a wrong option is no matter of one turn: {err}");
}

#[test]
fn a_turn_that_the_template_rejects_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model::sdar_tiny(dir.path());
    let config: Value =
        serde_json::from_slice(&std::fs::read(model.dir.join("tokenizer_config.json")).unwrap()).unwrap();
    let template = config["chat_template"].as_str().unwrap();
    let refusing =
        format!("{{% if 'no' in messages[-1].content %}}{{{{ raise_exception('not that') }}}}{{% endif %}}{template}");
    model.write("chat_template.jinja", refusing.as_bytes());
    model.save();
    let (out, err, code) = run(dir.path(), &model.dir, &["--chat"], b"no\nWhat is 27 + 45?\n");
    assert_eq!((out.as_str(), code), ("72\n", Some(0)), "{err}");
    assert_eq!(err.matches("not that").count(), 1, "{err}");
}

#[test]
fn end_tokens_as_stop_strings_and_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let question = "What is 27 + 45?";
    let args = [question, "--ignore-eos", "--max-new", "12", "--json"];
    let (out, err, _) = run(dir.path(), &examples("sdar-tiny"), &args, b"");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["finish"].as_str(), report["tokens"].as_u64()), (Some("max-tokens"), Some(12)), "{err}");
    let stopped = [&args[..], &["--stop", "<|im_end|>"]].concat();
    let (out, _, _) = run(dir.path(), &examples("sdar-tiny"), &stopped, b"");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["finish"].as_str(), report["text"].as_str()), (Some("stop-id"), Some("72")));
    let (out, err, code) = run(dir.path(), &examples("sdar-tiny"), &[question, "--stop", "x<|im_end|>"], b"");
    assert_eq!((out.as_str(), code), ("", Some(1)));
    assert!(err.contains("stop at \"<|im_end|>\" alone"), "{err}");
}

#[test]
fn notes_are_said_whenever_a_model_runs() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    let path = artifact.to_str().unwrap();
    let compiled = dlxc(dir.path(), &["compile", examples("sdar-tiny").to_str().unwrap(), "-o", path], b"");
    assert!(compiled.status.success(), "{compiled:?}");
    add_note(&artifact, "one for the reader");
    let data = dir.path().join("data.jsonl");
    std::fs::write(&data, r#"{"prompt": "What is 27 + 45?", "answer": "72"}"#).unwrap();
    let eval = ["eval", path, data.to_str().unwrap(), "--json"];
    let bench = ["bench", path, "--rows", "4", "--threads", "1", "--seconds", "0.01", "--json"];
    for args in [&["run", path, "What is 27 + 45?", "--json"][..], &eval, &bench] {
        let output = dlxc(dir.path(), args, b"");
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(err.matches("note: one for the reader\n").count(), 1, "{args:?}: {err}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["notes"], json!(["one for the reader"]), "{args:?}");
    }
}

/// Writes an artifact again with one more note in its manifest.
fn add_note(path: &Path, note: &str) {
    let artifact = dlx_runtime::artifact::Artifact::open(path).unwrap();
    let mut manifest = dlx_runtime::read_manifest(&artifact).unwrap();
    manifest.notes = vec![note.to_owned()];
    let json = serde_json::to_vec_pretty(&manifest).unwrap();
    let mut writer = dlx_targets::artifact_writer::ArtifactWriter::create(path).unwrap();
    writer.append(artifact.weights()).unwrap();
    for section in artifact.sections().iter().filter(|s| s.name != "weights") {
        let bytes = artifact.section(&section.name).unwrap();
        writer.section(section.name.clone(), if section.name == "manifest" { json.as_slice() } else { bytes });
    }
    writer.finish().unwrap();
}

#[test]
fn raw_prompts_begin_as_the_tokenizer_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model::sdar_tiny(dir.path());
    let ids = |model: &Path, more: &[&str]| {
        let (out, err, code) =
            run(dir.path(), model, &[&["--raw", "hi", "--max-new", "4", "--json"], more].concat(), b"");
        assert_eq!(code, Some(0), "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        (report["prefix"].clone(), report["prompt_tokens"].as_u64().unwrap(), err.contains("--no-bos leaves it out"))
    };
    let (prefix, bare, said) = ids(&model.dir, &[]);
    assert_eq!((prefix, said), (json!([]), false));

    let mut config: Value =
        serde_json::from_slice(&std::fs::read(model.dir.join("tokenizer_config.json")).unwrap()).unwrap();
    config["add_bos_token"] = json!(true);
    config["bos_token"] = json!("<|endoftext|>");
    model.write("tokenizer_config.json", config.to_string().as_bytes());
    model.save();
    let (prefix, tokens, said) = ids(&model.dir, &[]);
    assert_eq!((prefix.as_array().unwrap().len(), tokens, said), (1, bare + 1, true));
    assert_eq!(ids(&model.dir, &["--no-bos"]), (json!([]), bare, false));
    let (out, _, _) = run(dir.path(), &model.dir, &["What is 27 + 45?", "--json"], b"");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["prompt_tokens"], 18, "a conversation is complete");

    config["bos_token"] = json!("<|nothing|>");
    model.write("tokenizer_config.json", config.to_string().as_bytes());
    model.save();
    let (_, err, code) = run(dir.path(), &model.dir, &["--raw", "hi"], b"");
    assert!(code == Some(1) && err.contains("add_bos_token"), "{err}");
}

/// The bits of a large bf16 number.
const HUGE: u16 = 0x7F60;

#[test]
fn numbers_that_overflow_are_an_error_that_names_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let mlp = "model.layers.1.post_attention_layernorm.weight";
    let llada = "model.transformer.blocks.1.ff_norm.weight";
    for (family, tensor) in [("sdar-tiny", mlp), ("qwen2-tiny", mlp), ("dream-tiny", mlp), ("llada-tiny", llada)] {
        let mut model = model::example(dir.path(), family);
        (0..16).for_each(|element| model.poke(tensor, element, HUGE));
        model.save();
        for more in [&["--temperature", "0"][..], &["--temperature", "1"], &["--temperature", "1", "--top-k", "1"]] {
            for raw in [&["hi"][..], &["--raw", "hi there, you"]] {
                let args = [raw, &["--max-new", "8"], more].concat();
                let (out, err, code) = run(dir.path(), &model.dir, &args, b"");
                assert_eq!((out.as_str(), code), ("", Some(1)), "{family}: {err}");
                assert!(err.contains("no number at all") && err.contains("first in `l1."), "{family}: {err}");
            }
        }
    }
}

#[test]
fn the_smallest_temperatures_answer_as_zero_does() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["sdar-tiny", "llada-tiny", "qwen2-tiny"] {
        for temperature in ["1e-30", "1e-45"] {
            let args = ["What is 27 + 45?", "--temperature", temperature];
            let (out, err, code) = run(dir.path(), &examples(family), &args, b"");
            assert_eq!((out.as_str(), code), ("72\n", Some(0)), "{family}: {err}");
        }
    }
}

#[test]
fn what_lies_behind_the_tokens_asked_for_changes_nothing_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let ids = |max_new: usize, buckets: &str| {
        let artifact = dir.path().join(format!("{}.dlxa", buckets.replace(',', "-")));
        let path = artifact.to_str().unwrap();
        if !artifact.exists() {
            let source = examples("sdar-tiny");
            let compiled =
                dlxc(dir.path(), &["compile", source.to_str().unwrap(), "-o", path, "--buckets", buckets], b"");
            assert!(compiled.status.success(), "{compiled:?}");
        }
        let max_new = max_new.to_string();
        let args = ["run", path, "What is the capital of France?", "--ignore-eos", "--json", "--max-new", &max_new];
        let report: Value = serde_json::from_slice(&dlxc(dir.path(), &args, b"").stdout).unwrap();
        report["ids"].as_array().unwrap().clone()
    };
    let long = ids(24, "4,64");
    for max_new in [1, 3, 4, 5, 10, 15] {
        assert_eq!(ids(max_new, "4,64"), long[..max_new], "a cut-off tail is seen by nobody");
    }
    // A larger bucket pads the step: rows of padding enter no cache.
    assert_eq!(ids(24, "16,64"), long);
}

/// What is not there any more is an error at the next step and no signal; what was read into memory is all there.
#[test]
#[cfg(unix)]
fn an_artifact_that_is_cut_short_between_two_turns() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.dlxa");
    for (flags, goes_on) in [(&["--no-mmap"][..], true), (&[], false)] {
        let compiled =
            dlxc(dir.path(), &["compile", examples("sdar-tiny").to_str().unwrap(), "-o", path.to_str().unwrap()], b"");
        assert!(compiled.status.success());
        let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
        command.args(["run", path.to_str().unwrap(), "--chat"]).args(flags);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        input.write_all(b"What is 27 + 45?\n").unwrap();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "72\n");
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
        input.write_all(b"What is 27 + 45?\n").unwrap();
        drop(input);
        let rest = child.wait_with_output().unwrap();
        let error = String::from_utf8(rest.stderr).unwrap();
        if goes_on {
            assert!(rest.status.success(), "{error}");
        } else {
            assert_eq!(rest.status.code(), Some(1), "{error}");
            assert!(error.contains("was cut from"), "{error}");
        }
    }
}
