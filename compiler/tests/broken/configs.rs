//! Checkpoints with something wrong in their JSON and text files, the error, and its advice as an action.

use serde_json::json;

use super::model::Model;
use super::{Remedy, Row};
use Remedy::{Do, Fetch, Informs, Original};

const RESTORE: &str = "restore the file from the model's repository";
const AGAIN: &str = "download the file again";
const CONFIG: Remedy = Fetch(&["config.json"]);

/// config.json and generation_config.json.
pub(crate) const CONFIGS: &[Row] = &[
    ("no config.json", |m| m.remove("config.json"), "config.json: the file is missing", "download it from", CONFIG),
    ("an empty config.json", |m| m.write("config.json", b""), "is empty", AGAIN, CONFIG),
    ("config.json is not JSON", |m| m.write("config.json", b"{\"model_type\": "), "config.json", AGAIN, CONFIG),
    ("config.json is a list", |m| m.write("config.json", b"[1, 2]"), "a list in place of an object", AGAIN, CONFIG),
    (
        "config.json is huge",
        |m| m.write("config.json", &vec![b' '; 5 << 20]),
        "is larger than",
        "download it again",
        CONFIG,
    ),
    ("config.json in UTF-16", utf16, "byte order mark of UTF-16", "save the file as UTF-8", Do(utf8)),
    ("a key with two values", two_values, "`hidden_size` is there twice", "keep the last one", CONFIG),
    (
        "config.json is a directory",
        directory,
        "is a directory",
        "put the file of that name in its place",
        Do(no_directory),
    ),
    (
        "a trillion layers",
        |m| m.set("num_hidden_layers", json!(1_000_000_000_000u64)),
        "`num_hidden_layers`",
        RESTORE,
        CONFIG,
    ),
    ("a negative size", |m| m.set("hidden_size", json!(-192)), "`hidden_size`", RESTORE, CONFIG),
    ("a size in words", |m| m.set("intermediate_size", json!("many")), "`intermediate_size`", RESTORE, CONFIG),
    ("a fractional head count", |m| m.set("num_attention_heads", json!(2.5)), "`num_attention_heads`", RESTORE, CONFIG),
    ("a size that is NaN", |m| bare(m, "rms_norm_eps", "NaN"), "found \"NaN\"", RESTORE, CONFIG),
    (
        "a size that is missing",
        |m| m.unset("vocab_size"),
        "`vocab_size`",
        "use the config.json of a supported model family",
        CONFIG,
    ),
    (
        "an unknown family",
        |m| m.set("model_type", json!("mamba")),
        "`mamba` is not a supported family",
        "supported: ",
        Informs,
    ),
    (
        "a mixture of experts",
        |m| m.set("model_type", json!("sdar_moe")),
        "`sdar_moe` is not supported, because it is a mixture",
        "`dlxc families` lists what is",
        Informs,
    ),
    (
        "sizes that contradict the tensors",
        |m| m.set("intermediate_size", json!(256)),
        "mlp.gate_proj.weight`: has shape",
        "use the config.json that belongs to these weights",
        CONFIG,
    ),
    (
        "heads that do not divide",
        |m| m.set("num_key_value_heads", json!(2)),
        "2 key heads do not divide 3 heads",
        "",
        CONFIG,
    ),
    ("an odd head size", |m| m.set("head_dim", json!(63)), "63 cannot be rotated", "", CONFIG),
    (
        "scaled rotary embeddings",
        |m| m.set("rope_scaling", json!({"factor": 2.0})),
        "`rope_scaling.factor`",
        "this model cannot be compiled yet; a checkpoint without rotary scaling can",
        Original,
    ),
    (
        "two rope bases",
        |m| {
            m.set("rope_theta", json!(20_000.0));
            m.set("rope_parameters", json!({"rope_theta": 30_000.0}));
        },
        "config.json rope_theta is 20000 and config.json rope_parameters.rope_theta is 30000",
        "give both the base that the model was trained with",
        Do(|m| {
            m.set("rope_theta", json!(10_000.0));
            m.set("rope_parameters", json!({"rope_theta": 10_000.0}));
        }),
    ),
    (
        "a rotation of a part",
        |m| m.set("partial_rotary_factor", json!(0.5)),
        "`partial_rotary_factor`",
        "this model cannot be compiled yet",
        Original,
    ),
    (
        "a key that changes the mathematics",
        |m| m.set("final_logit_softcapping", json!(30.0)),
        "`final_logit_softcapping`",
        "if the model's own code does not use the key, set it to null",
        Do(|m| m.set("final_logit_softcapping", json!(null))),
    ),
    (
        "a key of another class",
        |m| m.set("use_qk_norm", json!(false)),
        "`use_qk_norm`: is false",
        "use the model_type of the model whose code has this key",
        CONFIG,
    ),
    (
        "layers that slide",
        |m| m.set("layer_types", json!(["full_attention", "full_attention", "full_attention", "sliding_attention"])),
        "`layer_types`",
        "this model cannot be compiled yet",
        Original,
    ),
    (
        "biases that are not there",
        |m| m.set("attention_bias", json!(true)),
        "`attention_bias`: is true, but there is no tensor",
        "download the config and the weights of one commit of the model's repository",
        CONFIG,
    ),
    (
        "another mask token than the tokenizer's",
        |m| m.set("mask_token_id", json!(336)),
        "is 336",
        "set mask_token_id to 511 in config.json and generation_config.json",
        Do(|m| m.set("mask_token_id", json!(511))),
    ),
    (
        "a class that is not known",
        |m| m.set("architectures", json!(["SDARForSomethingElse"])),
        "`SDARForSomethingElse` is not a class that is known here",
        "supported: ",
        Informs,
    ),
    (
        "fewer layers than tensors",
        |m| m.set("num_hidden_layers", json!(3)),
        "is 3, but the files hold 4 layers",
        "download the config and all weight files of one commit",
        CONFIG,
    ),
    (
        "no mask id",
        no_mask_id,
        "`mask_token_id`: is missing",
        "add mask_token_id to config.json",
        Do(|m| m.set("mask_token_id", json!(511))),
    ),
    (
        "more layers than tensors",
        |m| m.set("num_hidden_layers", json!(5)),
        "is 5, but the files hold 4 layers",
        "download the config and all weight files of one commit",
        CONFIG,
    ),
    (
        "a mask id outside the vocabulary",
        |m| m.set("mask_token_id", json!(512)),
        "512 is outside the vocabulary of 512",
        "use the checkpoint's own config",
        CONFIG,
    ),
    (
        "a method that is declared over plain weights",
        |m| m.set("quantization_config", json!({"quant_method": "fp8"})),
        "quantized with fp8, but no tensor is",
        "use the unquantized checkpoint",
        Original,
    ),
    (
        "a web page as config.json",
        |m| m.write("config.json", b"<!DOCTYPE html><p>Sign in</p>"),
        "is a web page",
        "download it again",
        CONFIG,
    ),
    (
        "a server's answer as config.json",
        |m| m.write("config.json", b"Entry not found"),
        "server's message",
        "download it again",
        CONFIG,
    ),
    ("a pointer as config.json", |m| m.write("config.json", POINTER), "is a Git LFS pointer", "git lfs pull", CONFIG),
    (
        "a broken generation_config.json",
        |m| m.write("generation_config.json", b"{"),
        "generation_config.json",
        AGAIN,
        Fetch(&["generation_config.json"]),
    ),
];

/// Tokenizer and chat template.
pub(crate) const TEXTS: &[Row] = &[
    (
        "no tokenizer",
        no_tokenizer,
        "tokenizer.json: the file is missing",
        "download it from",
        Fetch(&["tokenizer.json"]),
    ),
    ("an empty tokenizer", |m| m.write("tokenizer.json", b""), "is empty", AGAIN, Fetch(&["tokenizer.json"])),
    (
        "a pointer as tokenizer",
        |m| m.write("tokenizer.json", POINTER),
        "is a Git LFS pointer",
        "git lfs pull",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "a tokenizer that is not JSON",
        |m| m.write("tokenizer.json", b"hello"),
        "tokenizer.json",
        AGAIN,
        Fetch(&["tokenizer.json"]),
    ),
    (
        "a tokenizer that is something else",
        |m| m.write("tokenizer.json", b"{\"a\": 1}"),
        "tokenizer.json",
        "take it from the checkpoint's own repository",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "a tokenizer larger than the embedding",
        |m| m.tokenizer_id("<|MASK|>", 600),
        "has a token 600, but the embedding has 512 rows",
        "use the tokenizer that belongs to these weights",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "an added token in another place",
        |m| m.tokenizer_id("<|im_end|>", 300),
        "the added token \"<|im_end|>\" the id 300",
        "use the tokenizer that belongs to these weights",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "sentencepiece alone",
        sentencepiece,
        "tokenizer.model alone is not read",
        "download it from the model's repository into the same directory",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "sentencepiece that can be converted",
        |m| {
            sentencepiece(m);
            m.json("tokenizer_config.json", |c| c["tokenizer_class"] = json!("LlamaTokenizerFast"));
        },
        "tokenizer.model alone is not read",
        "A.from_pretrained('.', use_fast=True).save_pretrained('.')",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "a class of its own",
        |m| class(m, "OrcaTokenizer"),
        "`OrcaTokenizer` is not a class",
        "download tokenizer.json",
        Fetch(&["tokenizer.json"]),
    ),
    (
        "no class",
        no_class,
        "nothing names the class",
        "tokenizer_config.json, or better tokenizer.json",
        Fetch(&["tokenizer_config.json"]),
    ),
    (
        "GPT-2 with a first token",
        |m| {
            class(m, "GPT2Tokenizer");
            m.json("tokenizer_config.json", |c| c["add_bos_token"] = json!(true));
        },
        "`add_bos_token`",
        "download tokenizer.json",
        Fetch(&["tokenizer.json", "tokenizer_config.json"]),
    ),
    (
        "special tokens that are cut",
        |m| {
            class(m, "Qwen2Tokenizer");
            m.json("tokenizer_config.json", |c| c["split_special_tokens"] = json!(true));
        },
        "`split_special_tokens`",
        "download tokenizer.json",
        Fetch(&["tokenizer.json", "tokenizer_config.json"]),
    ),
    ("no merges", |m| pieces(m, "merges.txt", None), "merges.txt: the file is missing", "with vocab.json", PIECES),
    (
        "merges of another vocabulary",
        |m| pieces(m, "merges.txt", Some(b"x y\nq zz\n")),
        "vocab.json does not have",
        "with vocab.json",
        PIECES,
    ),
    (
        "merges that are no pairs",
        |m| pieces(m, "merges.txt", Some(b"a b c\n")),
        "line 1 is not a pair",
        "with vocab.json",
        PIECES,
    ),
    (
        "merges that are a pointer",
        |m| pieces(m, "merges.txt", Some(POINTER)),
        "is a Git LFS pointer",
        "git lfs pull",
        PIECES,
    ),
    (
        "merges that are not UTF-8",
        |m| pieces(m, "merges.txt", Some(b"\xff a\n")),
        "is not UTF-8",
        "with vocab.json",
        PIECES,
    ),
    ("no vocabulary", |m| pieces(m, "vocab.json", None), "vocab.json: the file is missing", "with merges.txt", PIECES),
    (
        "an id that is none",
        |m| pieces(m, "vocab.json", Some(b"{\"a\": -1}")),
        "the id of \"a\"",
        "with merges.txt",
        PIECES,
    ),
    (
        "an id twice",
        |m| pieces(m, "vocab.json", Some(b"{\"a\": 1, \"b\": 1}")),
        "another token's, too",
        "with merges.txt",
        PIECES,
    ),
    (
        "added tokens that contradict",
        contradict,
        "added_tokens.json: gives",
        "download both again",
        Fetch(&["added_tokens.json", "tokenizer_config.json"]),
    ),
    (
        "an added token over another",
        over_another,
        "contradicts the added token",
        "download vocab.json and tokenizer_config.json again",
        Fetch(&["tokenizer_config.json"]),
    ),
    (
        "an added token without a text",
        no_text,
        "`added_tokens_decoder.509`",
        RESTORE,
        Fetch(&["tokenizer_config.json"]),
    ),
    (
        "a broken special_tokens_map.json",
        |m| m.write("special_tokens_map.json", b"[]"),
        "special_tokens_map.json",
        AGAIN,
        Fetch(&["special_tokens_map.json"]),
    ),
    (
        "a chat template that is a number",
        |m| m.json("tokenizer_config.json", |c| c["chat_template"] = json!(7)),
        "`chat_template`",
        RESTORE,
        Fetch(&["tokenizer_config.json"]),
    ),
    (
        "a chat template that is not text",
        |m| m.write("chat_template.jinja", b"\xff\xfe\0"),
        "chat_template.jinja",
        "save the file as UTF-8",
        Fetch(&["chat_template.jinja"]),
    ),
    (
        "a chat template with stray bytes",
        |m| m.write("chat_template.jinja", b"{{ \xc3\x28 }}"),
        "is not UTF-8",
        AGAIN,
        Fetch(&["chat_template.jinja"]),
    ),
    (
        "a chat template with a syntax error",
        |m| m.write("chat_template.jinja", b"{% for m in %}"),
        "chat template",
        "correct it and compile again",
        Fetch(&["chat_template.jinja"]),
    ),
];

/// What `git clone` leaves without git-lfs.
pub(crate) const POINTER: &[u8] =
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

const PIECES: Remedy = Fetch(&["vocab.json", "merges.txt"]);

fn no_mask_id(m: &mut Model) {
    m.unset("mask_token_id");
    for file in ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"] {
        m.json(file, |c| {
            ["mask_token_id", "mask_token"].iter().for_each(|k| drop(c.as_object_mut().unwrap().remove(*k)))
        });
    }
}

fn utf16(m: &mut Model) {
    let text = String::from_utf8(m.bytes("config.json").to_vec()).unwrap();
    let bytes: Vec<u8> = std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    m.write("config.json", &bytes);
}

fn utf8(m: &mut Model) {
    let units: Vec<u16> = m.bytes("config.json").as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    m.write("config.json", String::from_utf16(&units).unwrap().as_bytes());
}

fn two_values(m: &mut Model) {
    let config = String::from_utf8(m.bytes("config.json").to_vec()).unwrap();
    m.write("config.json", config.replacen('{', "{\"hidden_size\": 64, ", 1).as_bytes());
}

fn bare(m: &mut Model, key: &str, word: &str) {
    m.set(key, json!("HERE"));
    let text = String::from_utf8(m.bytes("config.json").to_vec()).unwrap().replace("\"HERE\"", word);
    m.write("config.json", text.as_bytes());
}

fn directory(m: &mut Model) {
    let config = m.bytes("config.json").to_vec();
    m.remove("config.json");
    m.write("config.json/config.json", &config);
}

fn no_directory(m: &mut Model) {
    let config = m.bytes("config.json/config.json").to_vec();
    m.remove("config.json/config.json");
    m.write("config.json", &config);
}

fn no_tokenizer(m: &mut Model) {
    ["tokenizer.json", "vocab.json", "merges.txt"].iter().for_each(|f| m.remove(f));
}

fn sentencepiece(m: &mut Model) {
    no_tokenizer(m);
    m.write("tokenizer.model", b"\n\x0e\n\x05<unk>");
}

fn class(m: &mut Model, class: &str) {
    m.remove("tokenizer.json");
    m.json("tokenizer_config.json", |c| c["tokenizer_class"] = json!(class));
}

fn no_class(m: &mut Model) {
    m.remove("tokenizer.json");
    m.remove("tokenizer_config.json");
}

/// No tokenizer.json, and one of the files that it could be made from is another or none.
fn pieces(m: &mut Model, file: &str, bytes: Option<&[u8]>) {
    m.remove("tokenizer.json");
    match bytes {
        Some(bytes) => m.write(file, bytes),
        None => m.remove(file),
    }
}

fn contradict(m: &mut Model) {
    m.remove("tokenizer.json");
    m.write("added_tokens.json", b"{\"<|im_end|>\": 400}");
}

fn over_another(m: &mut Model) {
    m.remove("tokenizer.json");
    m.json("tokenizer_config.json", |c| {
        let token = c["added_tokens_decoder"].as_object_mut().unwrap().remove("510").unwrap();
        c["added_tokens_decoder"]["17"] = token;
    });
}

fn no_text(m: &mut Model) {
    m.remove("tokenizer.json");
    m.json("tokenizer_config.json", |c| c["added_tokens_decoder"]["509"] = json!({"special": true}));
}
