//! A byte-level tokenizer for random models, with the special tokens at their public ids.
//!
//! Invariant: every id below the last special token decodes to something, and every text can be encoded: bytes are the
//! first 256 tokens and nothing merges. The rest of the vocabulary is filled with numbered words, so that a random model
//! writes readable noise. No public vocabulary is reproduced here.

use serde_json::{Map, Value, json};

use super::shapes::{Family, Shape};

const QWEN_BASE: usize = 151_643;
const LLADA_BASE: usize = 126_080;

/// Consecutive ids from [`QWEN_BASE`], common to the Qwen-derived families.
const QWEN: &[&str] = &[
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];
const QWEN3: &[&str] = &["<tool_response>", "</tool_response>", "<think>", "</think>"];

const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
    '<|im_end|>' + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
const LLADA_TEMPLATE: &str = "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + \
    '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";

/// `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.
pub(super) fn json_files(shape: &Shape) -> Vec<(&'static str, Value)> {
    let base = if shape.family == Family::Llada { LLADA_BASE } else { QWEN_BASE };
    let added: Vec<Value> = added_tokens(shape.family)
        .into_iter()
        .enumerate()
        .map(|(i, content)| {
            let special = content.contains('|');
            json!({
                "id": base + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": base_vocab(base), "merges": [],
        },
    });
    let mut special = special_tokens(shape.family);
    let map = special.clone();
    special.insert("clean_up_tokenization_spaces".into(), false.into());
    special.insert("model_max_length".into(), 131_072.into());
    special.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    let template = if shape.family == Family::Llada { LLADA_TEMPLATE } else { CHATML };
    special.insert("chat_template".into(), template.into());
    vec![
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", Value::Object(special)),
        ("special_tokens_map.json", Value::Object(map)),
    ]
}

/// Added tokens from the base vocabulary on, without a gap.
fn added_tokens(family: Family) -> Vec<String> {
    if family == Family::Llada {
        return (0..=268)
            .map(|i| match i {
                0 => "<|startoftext|>".into(),
                1 => "<|endoftext|>".into(),
                256 => "<|mdm_mask|>".into(),
                266 => "<|start_header_id|>".into(),
                267 => "<|end_header_id|>".into(),
                268 => "<|eot_id|>".into(),
                _ => format!("<|reserved_token_{i}|>"),
            })
            .collect();
    }
    let own: &[&str] = match family {
        Family::Dream => &["<|beginoftext|>", "<|mask|>"],
        Family::FastDllmV2 => &["|<MASK>|"],
        Family::Sdar => &["<|MASK|>"],
        Family::Qwen2 | Family::Qwen3 | Family::Llada => &[],
    };
    let thinking = if matches!(family, Family::Qwen3 | Family::Sdar) { QWEN3 } else { &[] };
    QWEN.iter().chain(thinking).chain(own).map(|s| (*s).to_owned()).collect()
}

/// Which token plays which part.
fn special_tokens(family: Family) -> Map<String, Value> {
    let tokens: &[(&str, &str)] = match family {
        Family::Dream => &[
            ("bos_token", "<|beginoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("mask_token", "<|mask|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        Family::FastDllmV2 => {
            &[("eos_token", "<|im_end|>"), ("mask_token", "|<MASK>|"), ("pad_token", "<|endoftext|>")]
        }
        Family::Llada => &[
            ("bos_token", "<|startoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("mask_token", "<|mdm_mask|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        Family::Qwen2 | Family::Qwen3 => &[("eos_token", "<|im_end|>"), ("pad_token", "<|endoftext|>")],
        Family::Sdar => &[("eos_token", "<|endoftext|>"), ("mask_token", "<|MASK|>"), ("pad_token", "<|endoftext|>")],
    };
    tokens.iter().map(|(key, text)| ((*key).to_owned(), Value::from(*text))).collect()
}

/// The 256 bytes as byte-level tokens, then numbered words (each with a leading space).
fn base_vocab(size: usize) -> Map<String, Value> {
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let plain = (0..256).filter(printable);
    let moved = (256..).take((0..256).filter(|b| !printable(b)).count());
    let bytes =
        plain.chain(moved).map(|c| char::from_u32(c).expect("code points below 512 are characters").to_string());
    let words = (256..size).map(|id| format!("Ġw{id}"));
    bytes.chain(words).zip(0..size).map(|(token, id)| (token, Value::from(id))).collect()
}
