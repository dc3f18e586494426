//! Small models in every dialect load, agree with their configuration, and are the same whatever the thread count.

use super::shapes::Family;
use super::*;
use crate::checkpoint::{Checkpoint, TextFiles};
use crate::onnx::OnnxModel;
use crate::onnx::proto::TensorProto;
use crate::onnx::weights::Recipe;
use half::bf16;
use std::path::PathBuf;
use std::sync::Arc;

/// A shape of the same family, a thousandth of the size. The vocabulary is too small for its special tokens, which no
/// reader of weights minds.
fn small(shape: &Shape) -> Shape {
    Shape { layers: 2, hidden: 64, mlp: 96, heads: 4, kv_heads: 2, head_dim: 32, vocab: 1000, ..*shape }
}

fn write_checkpoint(
    shape: &Shape,
    dir: &Path,
    seed: u64,
    max_shard: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), Error> {
    write_directory(shape, dir, &mut |dir| write_weights(shape, dir, seed, max_shard, progress))
}

fn write(shape: &Shape, dir: &Path, seed: u64, max_shard: u64) {
    write_checkpoint(shape, dir, seed, max_shard, &mut |_, _| ControlFlow::Continue(())).unwrap();
}

/// Every file of a directory with its bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().into(), std::fs::read(p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn public_sizes_are_right() {
    let billions = |name: &str| {
        let shape = SHAPES.iter().find(|s| s.name == name).unwrap();
        shape.parameters() as f64 / 1e9
    };
    for (name, want) in [
        ("dream-7b", 7.62),
        ("fast-dllm-v2-1.5b", 1.54),
        ("llada-8b", 8.02),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.54),
        ("qwen3-0.6b", 0.596),
        ("sdar-1.7b", 1.72),
        ("sdar-4b", 4.41),
    ] {
        assert!((billions(name) / want - 1.0).abs() < 0.005, "{name}: {}", billions(name));
    }
    assert!(SHAPES.is_sorted_by_key(|s| s.name));
}

#[test]
fn every_family_loads_from_one_file_and_from_shards() {
    let root = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let shape = small(shape);
        let (one, many) = (root.path().join(format!("{}-one", shape.name)), root.path().join(shape.name));
        write(&shape, &one, 7, MAX_SHARD);
        write(&shape, &many, 7, 200_000);
        assert!(many.join("model.safetensors.index.json").exists() && !many.join("model.safetensors").exists());
        let (a, b) = (Checkpoint::open(&one).unwrap(), Checkpoint::open(&many).unwrap());
        assert!(a.names().eq(b.names()));
        for tensor in shape.tensors() {
            let view = a.require(&tensor.name, &tensor.shape).unwrap();
            assert!(view.bytes == b.tensor(&tensor.name).unwrap().bytes, "{}", tensor.name);
            let mut values = vec![0.0; tensor.elements()];
            a.read_rows(&tensor.name, 0..tensor.shape[0], &mut values).unwrap();
            a.check_finite(&tensor.name, 0, &values).unwrap();
            assert_eq!(tensor.ones, values.iter().all(|v| *v == 1.0), "{}", tensor.name);
        }
        let (layers, hidden) =
            if shape.family == Family::Llada { ("n_layers", "d_model") } else { ("num_hidden_layers", "hidden_size") };
        assert_eq!((a.config.usize(layers).unwrap(), a.config.usize(hidden).unwrap()), (2, 64));
        assert!(a.generation_config.unwrap().tokens("eos_token_id").unwrap().iter().all(|id| *id > 100_000));
    }
}

#[test]
fn same_seed_same_bytes_on_any_number_of_threads() {
    let root = tempfile::tempdir().unwrap();
    let shape = Shape { vocab: 40_000, ..small(&SHAPES[0]) };
    let dir = |name: &str| root.path().join(name);
    write(&shape, &dir("a"), 1, MAX_SHARD);
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| write(&shape, &dir("b"), 1, MAX_SHARD));
    write(&shape, &dir("c"), 2, MAX_SHARD);
    assert!(contents(&dir("a")) == contents(&dir("b")));
    assert!(contents(&dir("a")) != contents(&dir("c")));
}

#[test]
fn values_are_spread_like_an_initialized_model() {
    let tensor = Tensor { name: "t".into(), shape: vec![CHUNK], ones: false };
    let mut bytes = Vec::new();
    fill(&Chunk { tensor: &tensor, first: 0, len: CHUNK - 3, offset: 0 }, 5, &mut bytes);
    let values: Vec<f64> = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!(mean.abs() < 1e-4 && (std - 0.02).abs() < 2e-4, "{mean} {std}");
    let within = |k: f64| values.iter().filter(|v| v.abs() < k * 0.02).count() as f64 / n;
    assert!((within(1.0) - 0.68).abs() < 0.02 && (within(2.0) - 0.955).abs() < 0.02, "{} {}", within(1.0), within(2.0));
}

#[test]
fn tokenizers_have_their_special_tokens_at_the_public_ids() {
    let root = tempfile::tempdir().unwrap();
    for (name, ids) in [
        (
            "sdar-1.7b",
            &[(151_643, "<|endoftext|>"), (151_645, "<|im_end|>"), (151_667, "<think>"), (151_669, "<|MASK|>")][..],
        ),
        ("dream-7b", &[(151_664, "<|file_sep|>"), (151_665, "<|beginoftext|>"), (151_666, "<|mask|>")]),
        ("fast-dllm-v2-1.5b", &[(151_657, "<tool_call>"), (151_665, "|<MASK>|")]),
        ("llada-8b", &[(126_081, "<|endoftext|>"), (126_336, "<|mdm_mask|>"), (126_348, "<|eot_id|>")]),
    ] {
        let shape = small(SHAPES.iter().find(|s| s.name == name).unwrap());
        let dir = root.path().join(name);
        write(&shape, &dir, 0, MAX_SHARD);
        let text = TextFiles::read(&dir).unwrap();
        assert!(text.chat_template.is_some() && text.special_tokens.contains_key("mask_token"));
        let tokenizer = tokenizers::Tokenizer::from_bytes(&text.tokenizer).unwrap();
        for (id, token) in ids {
            assert_eq!(tokenizer.id_to_token(*id).as_deref(), Some(*token), "{name}");
            assert_eq!(tokenizer.encode(*token, false).unwrap().get_ids(), [*id], "{name}");
        }
        let said = "Grüße, 世界!\n\t☃ 1+1 e\u{301}";
        let ids = tokenizer.encode(said, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), said.replace("e\u{301}", "é"));
        assert_eq!(tokenizer.decode(&[70_000], true).unwrap(), " w70000");
    }
}

#[test]
fn stopping_and_refusing_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("m");
    let mut calls = Vec::new();
    let shape = small(&SHAPES[0]);
    let e = write_checkpoint(&shape, &dir, 0, MAX_SHARD, &mut |done, total| {
        calls.push((done, total));
        ControlFlow::Break(())
    });
    assert!(e.unwrap_err().message.contains("stopped"));
    assert_eq!(calls.len(), 1);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);

    let go = &mut |_, _| ControlFlow::Continue(());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("precious"), "").unwrap();
    assert!(write_checkpoint(&shape, &dir, 0, MAX_SHARD, go).unwrap_err().message.contains("not an empty directory"));
    std::fs::remove_file(dir.join("precious")).unwrap();
    write_checkpoint(&shape, &dir, 0, MAX_SHARD, go).unwrap();
    assert!(dir.join("config.json").exists());
    assert!(generate("sdar-9t", &dir, 0, None, Form::Safetensors, go).unwrap_err().help.contains("sdar-1.7b"));
    assert!(generate("sdar-4b", &dir, 0, Some(0), Form::Safetensors, go).unwrap_err().help.contains("1 to 1024"));
    let missing = root.path().join("no/such/m");
    assert!(write_checkpoint(&shape, &missing, 0, MAX_SHARD, go).unwrap_err().place.contains("no/such/m"));
}

#[test]
fn an_onnx_file_has_the_same_numbers() {
    let root = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let shape = small(shape);
        let (plain, foreign) = (root.path().join(format!("{}-plain", shape.name)), root.path().join(shape.name));
        write(&shape, &plain, 7, MAX_SHARD);
        write_directory(&shape, &foreign, &mut |dir| {
            onnx::write(&shape, dir, 7, &mut |_, _| ControlFlow::Continue(()))
        })
        .unwrap();
        let checkpoint = Checkpoint::open(&plain).unwrap();
        let model = OnnxModel::open(&foreign.join("model.onnx")).unwrap();
        let (_, weights) = graph::model(&shape, shape.attends(), 1e6, 1e-6);
        let offset = |t: &TensorProto| {
            let entry = t.external_data.iter().find(|e| e.key() == "offset")?;
            entry.value().parse::<u64>().ok()
        };
        let mut stored = model.graph().tensors();
        stored.retain(|t| offset(t).is_some());
        stored.sort_by_key(|t| offset(t));
        assert_eq!(stored.len(), weights.len());
        for (proto, weight) in stored.into_iter().zip(&weights) {
            let (tensor, name) = (Arc::new(model.tensor(proto).unwrap()), &weight.tensor.name);
            let recipe = Recipe::plain(name, tensor).unwrap();
            let recipe = if weight.turned { recipe.transposed().unwrap() } else { recipe };
            assert_eq!(recipe.dims(), weight.tensor.shape, "{name}");
            let mut got = vec![0.0; weight.tensor.elements()];
            let mut want = got.clone();
            recipe.read(0..recipe.len(), &mut got).unwrap();
            checkpoint.read_rows(name, 0..weight.tensor.shape[0], &mut want).unwrap();
            assert_eq!(got, want, "{name}");
        }
        assert_eq!(weights.len(), checkpoint.names().len());
    }
}
