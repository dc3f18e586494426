//! A tokenizer made from `vocab.json` and `merges.txt` is the one that the checkpoint's own `tokenizer.json` holds.
#![allow(clippy::unwrap_used, reason = "test program")]

#[path = "broken/layouts.rs"]
mod layouts;
#[path = "broken/model.rs"]
mod model;

use dlxc::checkpoint::TextFiles;
use layouts::{added_alone, dream, fast_class};
use model::{Model, example};
use serde_json::json;

/// The tokenizer that is made gives the ids of the one that the example has, and so does one without special tokens in
/// its config.
#[test]
fn a_made_tokenizer_gives_the_same_ids() {
    let dir = tempfile::tempdir().unwrap();
    for (name, change) in
        [("dream-tiny", dream as fn(&mut Model)), ("qwen2-tiny", fast_class), ("sdar-tiny", added_alone)]
    {
        let mut model = example(dir.path(), name);
        let own = tokenizers::Tokenizer::from_bytes(model.bytes("tokenizer.json")).unwrap();
        change(&mut model);
        model.save();
        let text = TextFiles::read(&model.dir).unwrap();
        assert_eq!(text.tokenizer, TextFiles::read(&model.dir).unwrap().tokenizer, "{name}: the same bytes");
        let made = tokenizers::Tokenizer::from_bytes(&text.tokenizer).unwrap();
        assert_eq!(made.get_vocab(true), own.get_vocab(true), "{name}");
        let mut compared = 0;
        for text in texts() {
            let (a, b) =
                (own.encode_fast(text.as_str(), false).unwrap(), made.encode_fast(text.as_str(), false).unwrap());
            assert_eq!(a.get_ids(), b.get_ids(), "{name}: {text:?}");
            for skip in [true, false] {
                assert_eq!(own.decode(a.get_ids(), skip).unwrap(), made.decode(b.get_ids(), skip).unwrap(), "{text:?}");
            }
            compared += 1;
        }
        assert!(compared > 4000, "{compared}");
    }
}

/// The questions of the examples, and mixtures of everything that a splitter or normalizer treats apart.
fn texts() -> Vec<String> {
    let questions = include_str!("../../examples/data/questions.jsonl").lines().map(str::to_owned);
    let parts = [
        "a",
        "The",
        " capital",
        "'s",
        "'LL",
        "'",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        "1",
        "42",
        "½",
        "é",
        "e\u{301}",
        "한",
        "\u{1112}\u{1161}\u{11ab}",
        "中文",
        "😀",
        "\u{200d}",
        "!",
        "?!",
        "...",
        "\u{a0}",
        "\u{85}",
        "\u{2028}",
        "ſ",
        "K",
        "İ",
        "<|im_end|>",
        "<|mask|>",
        "<|MASK|>",
        "<|endoftext|>",
        "<|",
        "|>",
        "\u{0}",
        "\u{fffd}",
        "x_y",
        "ǅ",
        "٣",
        "ﬁ",
        "Å",
    ];
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    let mixed = (0..4000).map(move |_| (0..1 + next() % 12).map(|_| parts[next() % parts.len()]).collect());
    questions.chain(mixed).collect()
}

/// GPT-2's class cuts in its own way; ids with a gap stay what the files say.
#[test]
fn other_classes_and_other_ids() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = example(dir.path(), "qwen2-tiny");
    model.remove("tokenizer.json");
    model.json("tokenizer_config.json", |c| {
        c["tokenizer_class"] = json!("GPT2TokenizerFast");
        c["add_prefix_space"] = json!(true);
    });
    model.save();
    let made = tokenizers::Tokenizer::from_bytes(TextFiles::read(&model.dir).unwrap().tokenizer).unwrap();
    let json: serde_json::Value = serde_json::from_str(&made.to_string(false).unwrap()).unwrap();
    assert_eq!(json["normalizer"], json!(null));
    assert_eq!(
        json["pre_tokenizer"],
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
    );

    let config = model.bytes("tokenizer_config.json").to_vec();
    model.remove("tokenizer_config.json");
    model.save();
    let text = TextFiles::read(&model.dir).unwrap();
    assert!(text.notes[0].ends_with("as Qwen2Tokenizer reads them"), "by the model type: {:?}", text.notes);
    model.write("tokenizer_config.json", &config);
    model.json("tokenizer_config.json", |c| {
        c["tokenizer_class"] = json!("Qwen2Tokenizer");
        c["added_tokens_decoder"].as_object_mut().unwrap().remove("509");
    });
    model.save();
    let text = TextFiles::read(&model.dir).unwrap();
    let made = tokenizers::Tokenizer::from_bytes(&text.tokenizer).unwrap();
    assert_eq!(made.token_to_id("<|im_end|>"), Some(510));
    assert_eq!(made.encode_fast("a<|im_end|>", false).unwrap().get_ids().last(), Some(&510));
    assert!(text.notes.iter().any(|n| n.contains("\"<|im_start|>\" has no id")), "{:?}", text.notes);
}

/// Whatever the files hold: an error, or a tokenizer that loads.
#[test]
fn damaged_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = example(dir.path(), "dream-tiny");
    dream(&mut model);
    model.save();
    let mut state = 7u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % n
    };
    let (mut made, mut refused) = (0, 0);
    for file in ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"] {
        let good = model.bytes(file).to_vec();
        for _ in 0..100 {
            let mut bytes = good.clone();
            match next(4) {
                0 => bytes.truncate(next(good.len())),
                1 => drop(bytes.splice(next(good.len())..good.len(), good[next(good.len())..].iter().copied())),
                2 => bytes[next(good.len())] ^= 1 << next(8),
                _ => bytes[next(good.len())] = b"0129\"{}[],: \n"[next(13)],
            }
            std::fs::write(model.dir.join(file), &bytes).unwrap();
            match TextFiles::read(&model.dir) {
                Ok(text) => {
                    dlx_runtime::text::Tokenizer::from_bytes(&text.tokenizer).unwrap();
                    made += 1;
                }
                Err(e) => {
                    assert!(e.place.starts_with(model.dir.to_str().unwrap()), "{e}");
                    refused += 1;
                }
            }
        }
        std::fs::write(model.dir.join(file), &good).unwrap();
    }
    assert!(made > 50 && refused > 50, "{made} made, {refused} refused");
}
