//! Directories with something wrong about their weights or the index; the error, and its advice as an action.

use serde_json::json;

use super::configs::POINTER;
use super::model::{INDEX, Model};
use super::{Remedy, Row};
use Remedy::{Do, Fetch, Original};

const WEIGHTS: &str = "model.safetensors";
const AGAIN: &str = "download it again";
const WHOLE: Remedy = Fetch(&[WEIGHTS]);
const BOTH: Remedy = Fetch(&[INDEX, FIRST, SECOND]);
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

/// One weight file.
pub(crate) const FILES: &[Row] = &[
    ("no weights", |m| m.remove(WEIGHTS), "there are no *.safetensors files", "download the weights", WHOLE),
    ("an empty weight file", |m| m.write(WEIGHTS, b""), "is empty", "download the file again", WHOLE),
    ("a pointer", |m| m.write(WEIGHTS, POINTER), "is a Git LFS pointer", "git lfs pull", WHOLE),
    ("a web page", |m| m.write(WEIGHTS, b"<html>Access denied"), "is a web page", AGAIN, WHOLE),
    ("zeros", |m| m.write(WEIGHTS, &[0; 4096]), "begins with zeros", AGAIN, WHOLE),
    (
        "a pickle under the name",
        |m| m.write(WEIGHTS, b"PK\x03\x04archive/data.pkl"),
        "a zip archive or a PyTorch pickle",
        "safetensors files",
        WHOLE,
    ),
    (
        "a compressed file",
        |m| m.write(WEIGHTS, b"\x1f\x8b\x08\0\0\0\0\0\0\0"),
        "is a compressed file",
        "unpack it",
        WHOLE,
    ),
    (
        "GGUF under the name",
        |m| m.write(WEIGHTS, b"GGUF\x03\0\0\0\0\0"),
        "is a GGUF file",
        "use the safetensors checkpoint",
        Original,
    ),
    ("a header cut short", |m| m.cut(1000), "the header claims", AGAIN, WHOLE),
    ("data cut short", |m| m.cut(3_000_000), "lies at bytes", AGAIN, WHOLE),
    ("a header length of 2^64 - 1", |m| m.header_len(u64::MAX), "the header claims", AGAIN, WHOLE),
    ("a header longer than the file", |m| m.header_len(1 << 40), "the header claims", AGAIN, WHOLE),
    (
        "a header that is not JSON",
        |m| m.header_text("{nonsense"),
        "is not the JSON expected",
        "download the file again",
        WHOLE,
    ),
    (
        "overlapping tensors",
        |m| m.entry("model.embed_tokens.weight", "data_offsets", json!([0, 196_608])),
        "overlap",
        AGAIN,
        WHOLE,
    ),
    (
        "offsets beyond the file",
        |m| m.entry("lm_head.weight", "data_offsets", json!([1u64 << 50, (1u64 << 50) + 196_608])),
        "`lm_head.weight`",
        AGAIN,
        WHOLE,
    ),
    (
        "offsets that run backwards",
        |m| m.entry("lm_head.weight", "data_offsets", json!([196_608, 0])),
        "`lm_head.weight`",
        AGAIN,
        WHOLE,
    ),
    (
        "a shape that does not fit its bytes",
        |m| m.entry("lm_head.weight", "shape", json!([512, 191])),
        "does not fill",
        AGAIN,
        WHOLE,
    ),
    (
        "a shape that overflows",
        |m| m.entry("lm_head.weight", "shape", json!([1u64 << 40, 1u64 << 40])),
        "does not fill",
        AGAIN,
        WHOLE,
    ),
    (
        "an element type of the future",
        |m| m.entry("lm_head.weight", "dtype", json!("X9")),
        "is not valid",
        AGAIN,
        WHOLE,
    ),
    (
        "a name with control characters",
        |m| m.rename("lm_head.weight", "lm\u{1b}head"),
        "is not a tensor name",
        AGAIN,
        WHOLE,
    ),
    (
        "a missing tensor",
        |m| m.rename("lm_head.weight", "lm_head.weights"),
        "there is no tensor `lm_head.weight`, and config.json tie_word_embeddings is not true",
        "download the file that holds it",
        WHOLE,
    ),
    (
        "a missing tensor of a layer",
        |m| m.rename("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weights"),
        "there is no tensor `model.layers.1.mlp.up_proj.weight`",
        "check that config.json belongs",
        WHOLE,
    ),
    (
        "a missing tensor without a like",
        |m| m.rename("model.norm.weight", "model.last.weight"),
        "there is no tensor `model.norm.weight`",
        "check that the download is complete",
        WHOLE,
    ),
    (
        "a NaN",
        |m| m.poke("model.layers.2.mlp.up_proj.weight", 7, 0x7fc0),
        "up_proj.weight`: NaN at [0, 7]",
        AGAIN,
        WHOLE,
    ),
    ("an infinity", |m| m.poke("lm_head.weight", 200, 0xff80), "`lm_head.weight`: -inf at [1, 8]", AGAIN, WHOLE),
];

/// Shards, indexes and files beside each other.
pub(crate) const SETS: &[Row] = &[
    (
        "an index without its shards",
        |m| {
            m.split();
            m.remove(FIRST);
            m.remove(SECOND)
        },
        "2 of 2 shards are missing: model-00001-of-00002",
        "download the missing files",
        Fetch(&[FIRST, SECOND]),
    ),
    (
        "a missing shard",
        |m| {
            m.split();
            m.remove(SECOND)
        },
        "1 of 2 shards are missing: model-00002",
        "download the missing files",
        Fetch(&[SECOND]),
    ),
    (
        "a missing shard without an index",
        |m| {
            m.split();
            m.remove(INDEX);
            m.remove(SECOND)
        },
        "1 of 2 shards are missing: model-00002",
        "download the missing files",
        Fetch(&[SECOND]),
    ),
    ("an index that points elsewhere", elsewhere, "../model.safetensors", "download the index again", Fetch(&[INDEX])),
    (
        "an index that is a pointer",
        |m| {
            m.split();
            m.write(INDEX, POINTER)
        },
        "is a Git LFS pointer",
        "git lfs pull",
        Fetch(&[INDEX]),
    ),
    (
        "an index that is not JSON",
        |m| {
            m.split();
            m.write(INDEX, b"{")
        },
        INDEX,
        "download the file again",
        Fetch(&[INDEX]),
    ),
    (
        "an index that lists nothing",
        |m| {
            m.split();
            m.write(INDEX, b"{\"weight_map\": {}}");
        },
        "lists no tensors",
        "download the index again",
        Fetch(&[INDEX]),
    ),
    ("an index that lists a name twice", twice, "is listed twice", "download the index again", Fetch(&[INDEX])),
    (
        "a tensor that no shard has",
        listed_only,
        "`model.more.weight` should be in model-00002-of-00002.safetensors, but is not",
        "download both again",
        BOTH,
    ),
    ("a tensor in the wrong shard", swapped, "but is in model-00001-of-00002.safetensors", "download both again", BOTH),
    (
        "a tensor that the index does not list",
        not_listed,
        "does not list tensor `model.norm.weight`, which is in",
        "download both again",
        BOTH,
    ),
    (
        "an old single file beside the shards",
        |m| {
            m.split();
            old(m, WEIGHTS)
        },
        "holds other weights",
        "move away the files that it does not have",
        Do(|m| m.remove(WEIGHTS)),
    ),
    (
        "an old single file beside half the shards",
        |m| {
            m.split();
            m.remove(SECOND);
            old(m, WEIGHTS)
        },
        "lists 1 files that are not here",
        "move away the files that it does not have",
        Do(|m| {
            m.remove(WEIGHTS);
            m.fetch(&[SECOND])
        }),
    ),
    (
        "two models without an index",
        |m| {
            m.take(WEIGHTS, "a.safetensors");
            old(m, "b.safetensors")
        },
        "is also in",
        "move away the files that it does not have",
        Do(|m| m.remove("b.safetensors")),
    ),
    (
        "a copy in another shard and no index",
        |m| {
            m.split();
            let mut spoiled = m.original();
            spoiled.retain(|name, _| name == "lm_head.weight");
            spoiled.values_mut().for_each(|(_, _, bytes)| bytes.fill(0));
            m.add_tensors(SECOND, spoiled);
            m.remove(INDEX);
        },
        "tensor `lm_head.weight` is also in",
        "download model.safetensors.index.json",
        Fetch(&[INDEX]),
    ),
    (
        "two sets of shards without an index",
        two_sets,
        "2 sets of shards",
        "move away the files that it does not have",
        Do(|m| m.remove("old-00001-of-00001.safetensors")),
    ),
];

fn elsewhere(m: &mut Model) {
    m.split();
    m.json(INDEX, |i| i["weight_map"]["lm_head.weight"] = json!("../model.safetensors"));
}

fn twice(m: &mut Model) {
    m.split();
    let index = String::from_utf8(m.bytes(INDEX).to_vec()).unwrap();
    let again = format!("\"weight_map\":{{\"lm_head.weight\":\"{SECOND}\",");
    m.write(INDEX, index.replacen("\"weight_map\":{", &again, 1).as_bytes());
}

fn listed_only(m: &mut Model) {
    m.split();
    m.json(INDEX, |i| i["weight_map"]["model.more.weight"] = json!(SECOND));
}

fn swapped(m: &mut Model) {
    m.split();
    m.json(INDEX, |i| i["weight_map"]["lm_head.weight"] = json!(SECOND));
}

fn not_listed(m: &mut Model) {
    m.split();
    m.json(INDEX, |i| drop(i["weight_map"].as_object_mut().unwrap().remove("model.norm.weight")));
}

/// The model with the down projections spoiled, as an old version would be.
fn old(m: &mut Model, file: &str) {
    let mut tensors = m.original();
    tensors.iter_mut().filter(|(name, _)| name.contains("down_proj")).for_each(|(_, (_, _, bytes))| bytes.fill(0));
    m.write_tensors(file, &tensors);
}

fn two_sets(m: &mut Model) {
    m.split();
    m.remove(INDEX);
    old(m, "old-00001-of-00001.safetensors");
}
