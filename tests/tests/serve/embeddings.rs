//! `/v1/embeddings`, against what ONNX Runtime computed of the same encoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dlx_ir::{Data, Tensor};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::embed::Embedder;
use dlx_runtime::graph::{GraphOptions, Pooling};
use dlx_serve::Loaded;
use dlx_tests::onnx::{File, Run, files};
use dlxc::driver::{Watch, compile_file};
use dlxc::options::CompileOptions;
use serde_json::{Value, json};

use crate::client::{Server, Setup};

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64) {}
    fn print(&self, _: &str, _: &str) {}
}

fn bert() -> File {
    files().unwrap().into_iter().find(|file| file.name == "bert.ortopt").unwrap()
}

/// A directory with a tokenizer of words `w0`, `w1`, …, whose ids are their numbers, which frames texts as BERT's does.
fn words(dir: &Path) -> PathBuf {
    let vocab: serde_json::Map<String, Value> = (0..128).map(|id| (format!("w{id}"), id.into())).collect();
    let special = |id: u32| json!({"id": format!("w{id}"), "ids": [id], "tokens": [format!("w{id}")]});
    let piece = |id: u32| json!({"SpecialToken": {"id": format!("w{id}"), "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let json = json!({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [piece(1), text, piece(2)], "pair": [text],
            "special_tokens": {"w1": special(1), "w2": special(2)},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    dir.to_path_buf()
}

fn options(dir: &Path, pooling: Pooling, normalize: bool) -> CompileOptions {
    CompileOptions {
        dims: vec![("B".into(), vec![1]), ("T".into(), vec![5, 14])],
        tokenizer: Some(words(dir)),
        pooling: Some(pooling),
        normalize,
        ..CompileOptions::default()
    }
}

fn embedder(pooling: Pooling, normalize: bool) -> Arc<Embedder> {
    let dir = tempfile::tempdir().unwrap();
    let (output, options) = (dir.path().join("bert.dlxa"), options(dir.path(), pooling, normalize));
    compile_file(&bert().path, &output, &options, &Silent, &AtomicBool::new(false)).unwrap();
    let artifact = Artifact::read(&output).unwrap();
    Arc::new(Embedder::load(&artifact, &GraphOptions::default()).unwrap())
}

fn server(pooling: Pooling, normalize: bool) -> Server {
    let more = vec![("bert".to_owned(), Loaded::Embedder(embedder(pooling, normalize)))];
    Server::start(Setup { more, ..Setup::default() })
}

/// Texts of a case, in token ids, and the hidden states that ONNX Runtime computed of their tokens.
fn expected(run: &Run) -> Vec<(Vec<i64>, Vec<Vec<f64>>)> {
    let floats = |t: &Tensor| t.floats().unwrap().iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let ints = |name: &str| match &run.inputs[name].data {
        Data::I64(values) => values.clone(),
        other => panic!("{other:?}"),
    };
    let (ids, mask) = (ints("input_ids"), ints("attention_mask"));
    let (hidden, t) = (floats(&run.outputs["last_hidden_state"].0), run.inputs["input_ids"].shape[1]);
    let rows = ids.chunks(t).zip(mask.chunks(t)).zip(hidden.chunks(t * 48));
    let text = rows.map(|((ids, mask), hidden)| {
        let kept = ids.iter().zip(mask).zip(hidden.chunks(48)).filter(|((_, mask), _)| **mask == 1);
        kept.map(|((id, _), state)| (*id, state.to_vec())).unzip()
    });
    text.collect()
}

fn embed(server: &Server, parameters: Value) -> Value {
    let mut body = json!({"model": "bert"});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    let answer = server.post("/v1/embeddings", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn vector(answer: &Value, index: usize) -> Vec<f64> {
    assert_eq!(
        (&answer["data"][index]["index"], &answer["data"][index]["object"]),
        (&json!(index), &json!("embedding"))
    );
    answer["data"][index]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn near(a: &[f64], b: &[f64]) {
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(a.len() == b.len() && worst < 1e-3, "{worst}");
}

#[test]
fn vectors_are_those_of_another_runtime_pooled_as_the_artifact_says() {
    for (pooling, normalize) in
        [(Pooling::Mean, false), (Pooling::Mean, true), (Pooling::Cls, false), (Pooling::Last, true)]
    {
        let server = server(pooling, normalize);
        for run in &bert().runs {
            let texts = expected(run);
            let ids: Vec<&Vec<i64>> = texts.iter().map(|(ids, _)| ids).collect();
            let answer = embed(&server, json!({"input": ids}));
            let tokens: usize = ids.iter().map(|ids| ids.len()).sum();
            assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
            for (index, (_, states)) in texts.iter().enumerate() {
                let mean = |i: usize| states.iter().map(|s| s[i]).sum::<f64>() / states.len() as f64;
                let pooled: Vec<f64> = match pooling {
                    Pooling::Mean => (0..48).map(mean).collect(),
                    Pooling::Cls => states[0].clone(),
                    Pooling::Last => states[states.len() - 1].clone(),
                };
                let norm = if normalize { pooled.iter().map(|v| v * v).sum::<f64>().sqrt() } else { 1.0 };
                let wanted: Vec<f64> = pooled.iter().map(|v| v / norm).collect();
                near(&vector(&answer, index), &wanted);
            }
        }
    }
}

#[test]
fn texts_are_framed_and_bytes_are_those_of_the_numbers() {
    let server = server(Pooling::Mean, true);
    let whole = embed(&server, json!({"input": ["w65 w35 w5", "w7"], "encoding_format": "float", "user": "u"}));
    assert_eq!(whole["usage"]["prompt_tokens"], 8, "the file's truncation is not obeyed");
    let by_ids = embed(&server, json!({"input": [[1, 65, 35, 5, 2], [1, 7, 2]], "dimensions": 48}));
    assert_eq!(whole["data"], by_ids["data"]);
    assert_eq!(embed(&server, json!({"input": [1, 7, 2]}))["data"][0]["embedding"], by_ids["data"][1]["embedding"]);
    let alone = embed(&server, json!({"input": "w7", "encoding_format": null}));
    assert_eq!(alone["data"][0]["embedding"], whole["data"][1]["embedding"]);
    let encoded = embed(&server, json!({"input": "w7", "encoding_format": "base64"}));
    let bytes = decoded(encoded["data"][0]["embedding"].as_str().unwrap());
    let numbers: Vec<f64> = bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    near(&numbers, &vector(&alone, 0));
    assert_eq!(numbers.len(), 48);
    let length: f64 = numbers.iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-6);
    let model = server.get("/v1/models/bert").json();
    assert_eq!((&model["object"], &model["max_model_len"]), (&json!("model"), &json!(14)));
    assert!(server.get("/metrics").body.contains("dlxc_prompt_tokens_total{model=\"bert\"}"));
}

/// Base64, by its definition.
fn decoded(text: &str) -> Vec<u8> {
    let digit =
        |c: u8| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|d| *d == c);
    let bits: Vec<usize> =
        text.bytes().filter_map(digit).flat_map(|d| (0..6).rev().map(move |bit| d >> bit & 1)).collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |n, bit| n * 2 + u8::try_from(*bit).unwrap())).collect()
}

#[test]
fn what_cannot_be_embedded_is_refused_by_name() {
    let server = server(Pooling::Mean, true);
    let long = vec!["w7"; 13].join(" ");
    for (parameters, param, code) in [
        (json!({}), "input", "invalid_value"),
        (json!({"input": null}), "input", "invalid_value"),
        (json!({"input": []}), "input", "invalid_value"),
        (json!({"input": 7}), "input", "invalid_value"),
        (json!({"input": ""}), "input[0]", "invalid_value"),
        (json!({"input": ["w1", ""]}), "input[1]", "invalid_value"),
        (json!({"input": ["w1", []]}), "input[1]", "invalid_value"),
        (json!({"input": ["w1", [0.5]]}), "input", "invalid_value"),
        (json!({"input": ["w1", [128]]}), "input[1]", "invalid_value"),
        (json!({"input": ["w1", [-1]]}), "input[1]", "invalid_value"),
        (json!({"input": vec!["w1"; 2049]}), "input", "invalid_value"),
        (json!({"input": ["w1", long]}), "input[1]", "context_length_exceeded"),
        (json!({"input": "w1", "encoding_format": "int8"}), "encoding_format", "invalid_value"),
        (json!({"input": "w1", "dimensions": 16}), "dimensions", "unsupported_parameter"),
        (json!({"input": "w1", "prompt": 1}), "prompt", "unknown_parameter"),
        (json!({"input": "w1", "model": "tiny"}), "model", "invalid_value"),
        (json!({"input": "w1", "model": null}), "model", "invalid_value"),
    ] {
        let mut body = json!({"model": "bert"});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        let refused = server.post("/v1/embeddings", &body);
        assert_eq!(refused.error(), (400, param.into(), code.into()), "{}", refused.body);
    }
    assert_eq!(server.chat(json!({"model": "bert"})).error(), (400, "model".into(), "invalid_value".into()));
    assert_eq!(server.chat(json!({})).status, 200, "others are unharmed");
}

#[test]
fn nothing_about_embeddings_is_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("bert.dlxa");
    let compile = |options: &CompileOptions| {
        compile_file(&bert().path, &output, options, &Silent, &AtomicBool::new(false)).map_err(|e| e.to_string())
    };
    let whole = options(dir.path(), Pooling::Mean, false);
    let without = compile(&CompileOptions { pooling: None, ..whole.clone() }).unwrap_err();
    assert!(without.contains("--tokenizer") && without.contains("--pooling"), "{without}");
    let bare = CompileOptions { pooling: None, tokenizer: None, ..whole.clone() };
    assert_eq!(compile(&bare).unwrap().manifest.embeds, None);
    let load = || Embedder::load(&Artifact::read(&output).unwrap(), &GraphOptions::default());
    let no = load().err().unwrap().to_string();
    assert!(no.contains("--pooling"), "{no}");
    let nowhere = CompileOptions { tokenizer: Some(dir.path().join("none")), ..whole.clone() };
    assert!(compile(&nowhere).unwrap_err().contains("tokenizer.json"));
    let embeds = compile(&whole).unwrap().manifest.embeds.unwrap();
    assert_eq!((embeds.output.as_str(), embeds.pooling, embeds.normalize), ("last_hidden_state", Pooling::Mean, false));
    assert_eq!(load().unwrap().width(), 48);
}
