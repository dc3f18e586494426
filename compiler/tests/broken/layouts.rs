//! The layouts in which tokenizers are published without a `tokenizer.json`.
#![allow(dead_code, reason = "each test program uses some of them")]

use serde_json::json;

use super::model::Model;

pub(crate) fn dream(m: &mut Model) {
    added_json(m);
    m.json("tokenizer_config.json", |c| {
        c["tokenizer_class"] = json!("DreamTokenizer");
        c["auto_map"] = json!({"AutoTokenizer": ["tokenization_dream.DreamTokenizer", null]});
    });
}

/// `added_tokens.json` in place of `tokenizer.json`.
fn added_json(m: &mut Model) {
    let tokenizer: serde_json::Value = serde_json::from_slice(m.bytes("tokenizer.json")).unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let map: serde_json::Map<_, _> =
        added.iter().map(|t| (t["content"].as_str().unwrap().into(), t["id"].clone())).collect();
    m.write("added_tokens.json", json!(map).to_string().as_bytes());
    m.remove("tokenizer.json");
}

pub(crate) fn windows(m: &mut Model) {
    dream(m);
    let merges = String::from_utf8(m.bytes("merges.txt").to_vec()).unwrap().replace('\n', "\r\n");
    m.write("merges.txt", format!("\u{feff}{merges}").as_bytes());
}

pub(crate) fn auto_map(m: &mut Model) {
    dream(m);
    m.json("tokenizer_config.json", |c| drop(c.as_object_mut().unwrap().remove("tokenizer_class")));
}

pub(crate) fn fast_class(m: &mut Model) {
    m.remove("tokenizer.json");
    m.json("tokenizer_config.json", |c| c["tokenizer_class"] = json!("Qwen2TokenizerFast"));
}

pub(crate) fn added_alone(m: &mut Model) {
    added_json(m);
    m.json("tokenizer_config.json", |c| {
        c["tokenizer_class"] = json!("Qwen2Tokenizer");
        c.as_object_mut().unwrap().remove("added_tokens_decoder");
    });
}
