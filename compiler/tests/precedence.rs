//! Which source wins where several state a fact of a checkpoint: the rows of docs/checkpoints.md, one test each.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test program")]

#[path = "broken/chain.rs"]
mod chain;
#[path = "broken/model.rs"]
mod model;

use std::path::Path;
use std::process::Command;

use chain::{Chain, END, MASK, TURN_END, write};
use model::{Model, example, sdar_tiny};
use serde_json::{Value, json};

const LOWER: &str = "abcdefghijklmnopqrstuvwx";

fn dlxc(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).env("DLXC_CACHE", dir.join("cache")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    if output.status.success() { Ok(out + "\n--\n" + &err) } else { Err(err) }
}

/// The answer to a raw prompt, and what was printed besides.
fn answer(model: &Path, prompt: &str) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", model.to_str().unwrap(), "--raw", prompt, "--max-new", "24", "--quant", "none"];
    let all = dlxc(dir.path(), &args).unwrap();
    let (out, err) = all.split_once("\n--\n").unwrap();
    (out.trim_end().to_owned(), err.to_owned())
}

/// Facts and notes of a checkpoint.
fn inspect(model: &Path) -> Result<Value, String> {
    let dir = tempfile::tempdir().unwrap();
    let all = dlxc(dir.path(), &["inspect", model.to_str().unwrap(), "--json"])?;
    Ok(serde_json::from_str(all.split_once("\n--\n").unwrap().0).unwrap())
}

fn notes(model: &Path) -> String {
    inspect(model).unwrap()["notes"].to_string()
}

fn fact(model: &Path, name: &str) -> (String, String) {
    let report = inspect(model).unwrap();
    let fact = report["facts"].as_array().unwrap().iter().find(|f| f["name"] == name).unwrap_or(&Value::Null).clone();
    (fact["value"].as_str().unwrap().to_owned(), fact["source"].as_str().unwrap().to_owned())
}

/// sdar-tiny with keys of config.json changed.
fn sdar(dir: &Path, config: &Value) -> Model {
    let mut model = sdar_tiny(dir);
    for (key, value) in config.as_object().unwrap() {
        model.set(key, value.clone());
    }
    model.save();
    model
}

/// Adds a vector of zeros.
fn zeros(model: &mut Model, name: &str, len: usize) {
    let tensor = ("BF16".to_owned(), json!([len]), vec![0; 2 * len]);
    model.add_tensors("model.safetensors", [(name.to_owned(), tensor)].into());
}

#[test]
fn the_rope_base_is_the_one_that_is_no_default() {
    let dir = tempfile::tempdir().unwrap();
    let successors = LOWER.bytes().map(|c| (usize::from(c), usize::from(c) - 32)).collect();
    let chain = Chain { successors, words: Vec::new(), distance: 24, theta: 500_000.0 };
    let right = LOWER.to_uppercase();
    let nested = json!({"full_attention": {"rope_theta": 500_000.0, "rope_type": "default"},
                        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"}});
    for (config, noted) in [
        (json!({}), false),
        (json!({"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"}}), true),
        (json!({"rope_theta": null, "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}}), false),
        (json!({"rope_theta": 10_000.0, "rope_parameters": {"rope_theta": 500_000.0}}), true),
        (json!({"rope_theta": null, "rope_scaling": {"rope_theta": 500_000.0, "type": "default"}}), false),
        (json!({"rope_theta": null, "rope_parameters": nested}), false),
        (json!({"rope_parameters": {"rope_theta": 500_000.0, "factor": 1.0, "rope_type": "linear"}}), false),
    ] {
        let model = chain.save(dir.path(), config.clone());
        let (text, said) = answer(&model, LOWER);
        assert_eq!(text, right, "{config}");
        assert_eq!(said.contains("note: rope base 500000"), noted, "{config}: {said}");
        assert_eq!(fact(&model, "rope base").0, "500000");
    }
    for (config, named) in [
        (json!({"rope_parameters": {"rope_theta": 1e6}}), "500000"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "`yarn`"),
        (json!({"rope_scaling": {"factor": 4.0}}), "rope_scaling.factor"),
        (json!({"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24]}}), "mrope_section"),
        (json!({"rope_parameters": {"rope_theta": 500_000.0, "partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"partial_rotary_factor": 0.25}), "partial_rotary_factor"),
    ] {
        let error = inspect(&chain.save(dir.path(), config)).unwrap_err();
        assert!(error.contains(named), "{named}: {error}");
    }
    let model = chain.save(dir.path(), json!({"rope_theta": null}));
    assert!(notes(&model).contains("states no rope base"));
}

#[test]
fn end_tokens_are_those_of_all_sources() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::words(usize::from(b'!'), &["one", " two", " three"], &[TURN_END, usize::from(b'u'), END]);
    let model = chain.save(dir.path(), json!({}));
    assert_eq!(answer(&model, "!").0, "one two threeu", "nobody says that the turn ends");
    let mut text: Value = serde_json::from_slice(&std::fs::read(model.join("tokenizer_config.json")).unwrap()).unwrap();
    text["eos_token"] = "<|im_end|>".into();
    write(&model, "tokenizer_config.json", &text);
    let (said, err) = answer(&model, "!");
    assert_eq!(said, "one two three");
    assert!(err.contains("the tokenizer's eos_token, ends the text too"), "{err}");
    text["eos_token"] = "<|endoftext|>".into();
    text["chat_template"] = "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}".into();
    write(&model, "tokenizer_config.json", &text);
    let (said, err) = answer(&model, "!");
    assert_eq!(said, "one two three");
    assert!(err.contains("the chat template's end of a turn"), "{err}");
    let model = chain.save(dir.path(), json!({}));
    write(&model, "generation_config.json", &json!({"eos_token_id": TURN_END}));
    assert_eq!(answer(&model, "!").0, "one two three");
    let model = chain.save(dir.path(), json!({"eos_token_id": null}));
    write(&model, "tokenizer_config.json", &json!({"mask_token": "<|MASK|>"}));
    assert!(notes(&model).contains("no source names an end token"));
    let model = chain.save(dir.path(), json!({"eos_token_id": MASK}));
    assert!(inspect(&model).unwrap_err().contains("cannot end a text"));
}

#[test]
fn the_mask_token_is_one_for_all_sources() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = sdar(dir.path(), &json!({"mask_token_id": 336}));
    let error = inspect(&model.dir).unwrap_err();
    assert!(error.contains("336") && error.contains("511") && error.contains("set mask_token_id to 511"), "{error}");
    model.write("generation_config.json", b"{\"mask_token_id\": 336}");
    model.save();
    assert!(inspect(&model.dir).unwrap_err().contains("by the tokenizer's mask_token"));
    let model = sdar(dir.path(), &json!({"mask_token_id": null}));
    assert_eq!(fact(&model.dir, "mask token"), ("511".into(), "generation_config.json mask_token_id".into()));
    let chain = Chain::words(usize::from(b'!'), &["one"], &[END]).save(dir.path(), json!({"mask_token_id": 100}));
    write(&chain, "tokenizer_config.json", &json!({}));
    assert!(notes(&chain).contains("an ordinary token"));
}

#[test]
fn a_stored_head_that_differs_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::words(usize::from(b'!'), &["one", " two", " three"], &[END]);
    let (text, said) = answer(&chain.save(dir.path(), json!({"tie_word_embeddings": true})), "!");
    assert_eq!(text, "one two three");
    assert!(said.contains("lm_head.weight is used: it differs from the embedding"), "{said}");
    let mut model = example(dir.path(), "qwen2-tiny");
    model.set("tie_word_embeddings", json!(false));
    model.save();
    let error = inspect(&model.dir).unwrap_err();
    assert!(error.contains("tie_word_embeddings") && error.contains("lm_head.weight"), "{error}");
    let mut model = example(dir.path(), "qwen2-tiny");
    let embedding = model.tensors()["model.embed_tokens.weight"].clone();
    model.add_tensors("model.safetensors", [("lm_head.weight".to_owned(), embedding)].into());
    model.save();
    assert!(notes(&model.dir).contains("it equals the embedding"));
    assert_eq!(fact(&model.dir, "head").0, "model.embed_tokens.weight");
}

#[test]
fn the_tensors_say_which_biases_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let error = inspect(&sdar(dir.path(), &json!({"attention_bias": true})).dir).unwrap_err();
    assert!(error.contains("`attention_bias`") && error.contains("q_proj.bias"), "{error}");
    let mut model = sdar(dir.path(), &json!({"attention_bias": true}));
    for layer in 0..4 {
        for (name, len) in [("q", 192), ("k", 64), ("v", 64), ("o", 192)] {
            zeros(&mut model, &format!("model.layers.{layer}.self_attn.{name}_proj.bias"), len);
        }
    }
    model.save();
    assert_eq!(fact(&model.dir, "biases").0, "q_proj, k_proj, v_proj, o_proj");
    let cache = dir.path().join("cache");
    let text = dlxc(&cache, &["run", model.dir.to_str().unwrap(), "What is the capital of France?"]).unwrap();
    assert!(text.starts_with("The capital of France is Paris."), "{text}");
    model.set("attention_bias", json!(false));
    model.save();
    assert!(inspect(&model.dir).unwrap_err().contains("is false, but there is a tensor"));
}

#[test]
fn sizes_and_types_are_compared_with_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let error = inspect(&sdar(dir.path(), &json!({"num_hidden_layers": 3})).dir).unwrap_err();
    assert!(error.contains("is 3, but the files hold 4 layers"), "{error}");
    assert!(notes(&sdar(dir.path(), &json!({"torch_dtype": "float16"})).dir).contains("read as that"));
    assert!(!notes(&sdar(dir.path(), &json!({"torch_dtype": "bfloat16"})).dir).contains("read as that"));
}

#[test]
fn only_layers_that_slide_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let slides = |config: Value| inspect(&sdar(dir.path(), &config).dir).is_err();
    assert!(slides(json!({"use_sliding_window": true, "sliding_window": 128, "max_window_layers": 2})));
    assert!(!slides(json!({"use_sliding_window": true, "sliding_window": 128, "max_window_layers": 4})));
    assert!(!slides(json!({"use_sliding_window": true, "sliding_window": null})));
    assert!(!slides(json!({"use_sliding_window": false, "sliding_window": 128, "max_window_layers": 2})));
    let types = |last: &str| json!({"layer_types": ["full_attention", "full_attention", "full_attention", last]});
    assert!(slides(types("sliding_attention")) && !slides(types("full_attention")));
}

#[test]
fn a_key_that_changes_the_mathematics_is_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value) in [
        ("final_logit_softcapping", json!(30.0)),
        ("attn_logit_softcapping", json!(50.0)),
        ("query_pre_attn_scalar", json!(256)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("num_experts", json!(8)),
        ("clip_qkv", json!(8.0)),
        ("scale_embedding", json!(true)),
        ("rope_interleaved", json!(true)),
        ("mlp_gate_v9", json!("twice")),
        ("disable_qk_norm", json!(true)),
        ("alibi", json!(true)),
        ("qk_norm", json!(false)),
        ("text_config", json!({"hidden_size": 4})),
        ("rope_theta", json!(1e300)),
        ("rms_norm_eps", json!(1e300)),
        ("rms_norm_eps", json!(1e-60)),
    ] {
        let error = inspect(&sdar(dir.path(), &json!({key: value})).dir).unwrap_err();
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    }
    for (key, value) in [
        ("final_logit_softcapping", json!(null)),
        ("residual_multiplier", json!(1.0)),
        ("num_experts", json!(0)),
        ("disable_qk_norm", json!(false)),
        ("qk_norm", json!(true)),
    ] {
        let notes = notes(&sdar(dir.path(), &json!({key: value})).dir);
        assert!(!notes.contains(key), "{notes}");
    }
    assert!(notes(&sdar(dir.path(), &json!({"favorite_color": "green"})).dir).contains("favorite_color"));
}

#[test]
fn the_class_says_what_a_model_is() {
    let dir = tempfile::tempdir().unwrap();
    for (class, model_type, named) in [
        ("EfficientDLM", json!("qwen3"), "EfficientDLM"),
        ("WeDLMForCausalLM", json!("qwen2"), "WeDLMForCausalLM"),
        ("LLaDA2MoeModelLM", json!("llada"), "LLaDA2MoeModelLM"),
        ("SomethingNew", json!("qwen3"), "is not a class that is known here, whatever its model_type qwen3 suggests"),
        ("Qwen3ForCausalLM", json!("sdar"), "model_type says sdar"),
    ] {
        let error =
            inspect(&sdar(dir.path(), &json!({"architectures": [class], "model_type": model_type})).dir).unwrap_err();
        assert!(error.contains(named), "{class}: {error}");
    }
    let others = json!({"architectures": ["SDARForCausalLM", "SomethingNew"]});
    assert!(inspect(&sdar(dir.path(), &others).dir).unwrap_err().contains("is not a class that is known here"));
    let own_code = json!({"auto_map": {"AutoModelForCausalLM": "modeling.EfficientDLM"}});
    assert!(inspect(&sdar(dir.path(), &own_code).dir).unwrap_err().contains("`auto_map`: `EfficientDLM`"));
    let model = sdar(dir.path(), &json!({"model_type": null}));
    assert_eq!(fact(&model.dir, "family").0, "sdar");
    assert!(notes(&model.dir).contains("has no model_type"));
    assert_eq!(fact(&sdar(dir.path(), &json!({"architectures": null})).dir, "family").0, "sdar");
    let both = json!({"architectures": null, "model_type": null});
    assert!(inspect(&sdar(dir.path(), &both).dir).unwrap_err().contains("and so is architectures"));
    // What the tensors look like is said.
    let mut model = example(dir.path(), "sdar-tiny");
    model.set("model_type", json!("qwen2"));
    model.set("architectures", json!(["Qwen2ForCausalLM"]));
    for layer in 0..4 {
        for (name, len) in [("q", 192), ("k", 64), ("v", 64)] {
            zeros(&mut model, &format!("model.layers.{layer}.self_attn.{name}_proj.bias"), len);
        }
    }
    model.unset("attention_bias");
    model.save();
    assert!(inspect(&model.dir).unwrap_err().contains("Qwen3-shaped"));
}
