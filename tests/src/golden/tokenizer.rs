//! Tokenizer cases: texts, chats and ids to decode, whole and streamed.

use std::collections::BTreeMap;
use std::path::Path;

use dlx_runtime::text::{ChatTemplate, Detokenizer, Message, Tokenizer};
use serde_json::{Map, Value};

use super::Case;

/// Compares a case of kind `tokenizer`: every text, chat and list of ids in it.
///
/// # Errors
/// The first difference, or why the case cannot be checked.
pub fn run_tokenizer(case: &Case) -> Result<(), String> {
    let dir = case.model_dir();
    let tokenizer = Tokenizer::from_bytes(&read(&dir, "tokenizer.json")?).map_err(|e| e.to_string())?;
    let mut checked = 0;
    for text in list(case, "texts")?.iter().chain(list(case, "decode_only")?) {
        let ids = ids(&text["ids"])?;
        if let Some(text) = text["text"].as_str() {
            same(&format!("ids of {text:?}"), &tokenizer.encode(text).map_err(|e| e.to_string())?, &ids)?;
        }
        for (key, skip_special) in [("decoded", false), ("decoded_skip_special", true)] {
            let decoded = tokenizer.decode(&ids, skip_special).map_err(|e| e.to_string())?;
            same(&format!("{key} of {ids:?}"), decoded.as_str(), text[key].as_str().unwrap_or_default())?;
        }
        let streamed = stream(&tokenizer, &ids)?;
        same("streamed text", streamed.as_str(), text["decoded_skip_special"].as_str().unwrap_or_default())?;
        checked += 1;
    }
    let template = chat_template(&dir)?;
    for chat in list(case, "chats")? {
        let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).map_err(|e| e.to_string())?;
        let mut variables = Map::new();
        variables.insert("add_generation_prompt".to_owned(), chat["add_generation_prompt"].clone());
        let rendered = template.render(&messages, &variables).map_err(|e| e.to_string())?;
        same("chat", rendered.as_str(), chat["rendered"].as_str().unwrap_or_default())?;
        same("ids of a chat", &tokenizer.encode(&rendered).map_err(|e| e.to_string())?, &ids(&chat["ids"])?)?;
        if let Some(expected) = chat.get("rendered_enable_thinking_false").and_then(Value::as_str) {
            variables.insert("enable_thinking".to_owned(), false.into());
            let rendered = template.render(&messages, &variables).map_err(|e| e.to_string())?;
            same("chat without thinking", rendered.as_str(), expected)?;
        }
        checked += 1;
    }
    if checked == 0 { Err("no texts".to_owned()) } else { Ok(()) }
}

/// The chat template of a checkpoint directory, with its special tokens.
///
/// # Errors
/// No template, or one that cannot be used.
pub fn chat_template(dir: &Path) -> Result<ChatTemplate, String> {
    let config: Value = serde_json::from_slice(&read(dir, "tokenizer_config.json")?).map_err(|e| e.to_string())?;
    let source = match read(dir, "chat_template.jinja") {
        Ok(bytes) => String::from_utf8(bytes).map_err(|e| e.to_string())?,
        Err(_) => config["chat_template"].as_str().ok_or("no chat template")?.to_owned(),
    };
    let mut special = BTreeMap::new();
    for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
        if let Some(token) = config[name].as_str().or_else(|| config[name]["content"].as_str()) {
            special.insert(name.to_owned(), token.to_owned());
        }
    }
    ChatTemplate::new(&source, special).map_err(|e| e.to_string())
}

fn stream(tokenizer: &Tokenizer, ids: &[i32]) -> Result<String, String> {
    let mut detokenizer = Detokenizer::default();
    let mut text = String::new();
    for &id in ids {
        text += &detokenizer.push(tokenizer, id).map_err(|e| e.to_string())?;
    }
    Ok(text + &detokenizer.finish(tokenizer).map_err(|e| e.to_string())?)
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, String> {
    std::fs::read(dir.join(name)).map_err(|error| format!("{}/{name}: {error}", dir.display()))
}

fn list<'a>(case: &'a Case, key: &str) -> Result<&'a [Value], String> {
    case.json[key].as_array().map(Vec::as_slice).ok_or_else(|| format!("no list `{key}`"))
}

fn ids(value: &Value) -> Result<Vec<i32>, String> {
    serde_json::from_value(value.clone()).map_err(|error| error.to_string())
}

fn same<T: PartialEq + std::fmt::Debug + ?Sized>(what: &str, ours: &T, reference: &T) -> Result<(), String> {
    if ours == reference { Ok(()) } else { Err(format!("{what}: {ours:?} instead of {reference:?}")) }
}
