//! Compiled tokenizers beside the library's, on every tokenizer of the examples and on variants of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::text::tokenizer::tests::{bytes_tokenizer_json, decoding_tokenizer};

fn file(name: &str) -> Value {
    let path = format!("{}/../examples/models/{name}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn compile(tree: &Value) -> Result<(Tokenizer, Tokenizer), String> {
    let json = serde_json::to_vec(tree).unwrap();
    let section = Tokenizer::compile(&json, &["a text of the caller"])?;
    let compiled = Tokenizer::from_compiled(&section, blake3::hash(&json).as_bytes()).unwrap();
    Ok((Tokenizer::from_bytes(&json).unwrap(), compiled))
}

/// A tokenizer in the style of SentencePiece: no splitter, so a text is one word, and bytes for what has no token.
fn pieces(change: &dyn Fn(&mut Value)) -> Value {
    let mut vocab = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    vocab.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend("▁abcdefghijklmnopqrstuvwxyz.,é漢".chars().map(String::from));
    let mut merges = Vec::new();
    for (left, right) in [
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("a", "n"),
        ("an", "d"),
        ("▁", "and"),
        ("a", "a"),
        ("aa", "a"),
        ("aa", "aa"),
        ("▁", "▁"),
        ("▁▁", "▁▁"),
        ("r", "e"),
        ("e", "r"),
        ("▁", "a"),
        ("i", "n"),
        ("in", "g"),
        ("n", "g"),
    ] {
        if !vocab.contains(&format!("{left}{right}")) {
            vocab.push(format!("{left}{right}"));
        }
        merges.push(json!(format!("{left} {right}")));
    }
    let vocab: serde_json::Map<_, _> = vocab.into_iter().zip((0..).map(Value::from)).collect();
    let added = |id: u32, text: &str| {
        json!({
            "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": true, "normalized": true,
        })
    };
    let mut tree = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(400, "<mask>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    });
    change(&mut tree);
    tree
}

/// Tokenizers of several styles.
fn styles() -> Vec<Value> {
    let mut all: Vec<Value> =
        ["dream-tiny", "fast-dllm-v2-tiny", "llada-tiny", "qwen2-tiny", "sdar-tiny"].map(file).into();
    all.push(pieces(&|_| {}));
    let no_bytes = |t: &mut Value| t["model"]["byte_fallback"] = json!(false);
    all.push(pieces(&no_bytes));
    all.push(pieces(&|t| {
        no_bytes(t);
        t["model"]["fuse_unk"] = json!(false);
    }));
    // Some bytes have no token, so a fallback meets unknown characters that wait.
    all.push(pieces(&|t| {
        t["model"]["vocab"].as_object_mut().unwrap().shift_remove("<0xE6>");
    }));
    all.push(pieces(&|t| {
        no_bytes(t);
        t["model"]["unk_token"] = Value::Null;
    }));
    let mut words = file("llada-tiny");
    words["model"]["ignore_merges"] = json!(true);
    // A word that no merges make.
    words["model"]["vocab"]["fox"] = json!(600);
    all.push(words);
    let mut twice = file("sdar-tiny");
    let merges = twice["model"]["merges"].as_array_mut().unwrap();
    let first = merges[0].clone();
    merges.push(first);
    all.push(twice);
    all.push(serde_json::from_str(&bytes_tokenizer_json(&["<stop>", "ab", "<|mask|>"])).unwrap());
    all
}

#[test]
fn every_style_gives_the_ids_of_the_library() {
    for (style, tree) in styles().iter().enumerate() {
        let (library, compiled) = compile(tree).unwrap_or_else(|e| panic!("style {style}: {e}"));
        let data = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/questions.jsonl"));
        let mut texts: Vec<String> = data.unwrap().lines().map(str::to_owned).collect();
        texts.push(include_str!("../bpe.rs").to_owned());
        assert_eq!(library.difference(&compiled, &texts), None, "style {style}");
        assert_eq!(library.special_tokens(), compiled.special_tokens());
        assert_eq!(library.prefix(), compiled.prefix());
    }
}

#[test]
fn a_comparison_sees_one_merge_that_changes_places() {
    let json = serde_json::to_vec(&file("sdar-tiny")).unwrap();
    let mut other = file("sdar-tiny");
    other["model"]["merges"].as_array_mut().unwrap().swap(0, 200);
    let [a, b] = [json, serde_json::to_vec(&other).unwrap()].map(|json| Tokenizer::from_bytes(&json).unwrap());
    assert!(a.difference(&b, &corpus::texts()).unwrap().starts_with("ids of"));
}

#[test]
fn what_has_no_tables_says_why() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut tree = file("sdar-tiny");
        change(&mut tree);
        compile(&tree).err().unwrap()
    };
    assert!(refused(&|t| t["model"]["end_of_word_suffix"] = json!("</w>")).contains("ends of words"));
    assert!(refused(&|t| t["model"]["vocab"]["fox"] = json!(4_000_000)).contains("ids up to 4000000"));
    assert!(refused(&|t| t["model"]["vocab"]["fox"] = json!(5)).contains("of two tokens"));
    assert!(refused(&|t| t["model"]["unk_token"] = json!("<none>")).contains("is not there"));
    let words = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"});
    assert!(refused(&|t| t["model"] = words.clone()).contains("WordLevel"));
    assert!(decoding_tokenizer(&["a", "b"], Value::Null).encode("a").is_ok());
}

#[test]
fn a_section_belongs_to_its_file() {
    let json = serde_json::to_vec(&file("sdar-tiny")).unwrap();
    let section = Tokenizer::compile(&json, &[]).unwrap();
    let error = Tokenizer::from_compiled(&section, &[0; 32]).err().unwrap().to_string();
    assert!(error.contains("another tokenizer.json"), "{error}");
    assert_eq!(section, Tokenizer::compile(&json, &[]).unwrap(), "the same bytes each time");
}

#[test]
fn a_section_says_what_its_file_says() {
    let json = serde_json::to_vec(&pieces(&|_| {})).unwrap();
    let section = Tokenizer::compile(&json, &[]).unwrap();
    Tokenizer::check_compiled(&section, &json).unwrap();
    let said = |change: &dyn Fn(&mut Value)| {
        let other = serde_json::to_vec(&pieces(change)).unwrap();
        // The section names the other file as its own.
        let mut section = section.clone();
        section[MAGIC.len()..MAGIC.len() + 32].copy_from_slice(blake3::hash(&other).as_bytes());
        let error = Tokenizer::check_compiled(&section, &other).err().unwrap();
        error.to_string()
    };
    assert!(said(&|t| t["normalizer"] = Value::Null).contains("settings"));
    assert!(said(&|t| t["model"]["fuse_unk"] = json!(false)).contains("options"));
    assert!(said(&|t| t["model"]["merges"].as_array_mut().unwrap().swap(3, 4)).contains("merge 4 is not"));
    assert!(said(&|t| drop(t["model"]["merges"].as_array_mut().unwrap().pop())).contains("16"));
    assert!(said(&|t| t["model"]["vocab"]["q"] = json!(700)).contains("token \"q\""));
    // A merge that stands twice counts where it stands last.
    let twice = serde_json::to_vec(&pieces(&|t| {
        let merges = t["model"]["merges"].as_array_mut().unwrap();
        merges.push(merges[0].clone());
    }));
    let twice = twice.unwrap();
    Tokenizer::check_compiled(&Tokenizer::compile(&twice, &[]).unwrap(), &twice).unwrap();
}

#[test]
fn recorded_ids_are_compared_when_a_section_is_read() {
    let json = serde_json::to_vec(&file("sdar-tiny")).unwrap();
    let section = Tokenizer::compile(&json, &[]).unwrap();
    // The ranks of two merges change places.
    let mut edited = section.clone();
    let parts = split(&section, None).unwrap();
    let merges = parts.lengths[2];
    let ranks = section.len() - 8 * merges;
    let found = |rank: u32| (0..merges).map(|i| ranks + 4 * i).find(|at| section[*at..at + 4] == rank.to_le_bytes());
    let (first, other) = (found(0).unwrap(), found(200).unwrap());
    edited[first..first + 4].copy_from_slice(&200u32.to_le_bytes());
    edited[other..other + 4].copy_from_slice(&0u32.to_le_bytes());
    let error = Tokenizer::from_compiled(&edited, blake3::hash(&json).as_bytes()).err().unwrap().to_string();
    assert!(error.contains("other ids than were recorded"), "{error}");
}

proptest! {
    // A case is eight texts for each of a dozen tokenizers.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_text_has_the_ids_of_the_library(texts in prop::collection::vec("(\\PC|<s>|</s>|<mask>|the|and| |\n|a){0,60}", 8)) {
        thread_local! {
            static PAIRS: Vec<(Tokenizer, Tokenizer)> = styles().iter().map(|tree| compile(tree).unwrap()).collect();
        }
        PAIRS.with(|pairs| {
            for (library, compiled) in pairs {
                assert_eq!(library.difference(compiled, &texts), None);
            }
        });
    }
}

proptest! {
    #[test]
    fn damaged_sections_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        thread_local! {
            static SECTION: (Vec<u8>, [u8; 32]) = {
                let json = serde_json::to_vec(&pieces(&|_| {})).unwrap();
                (Tokenizer::compile(&json, &[]).unwrap(), *blake3::hash(&json).as_bytes())
            };
        }
        let (mut section, hash) = SECTION.with(Clone::clone);
        let at = at.index(section.len());
        if cut {
            section.truncate(at);
        } else {
            section[at] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_compiled(&section, &hash) {
            let ids = tokenizer.encode("some text <s> é\u{1F600} thethe").unwrap_or_default();
            let _ = tokenizer.decode(&ids, true);
        }
    }
}
