//! How much longer a tokenizer can make a text: steps that are chained a few times double it over and over, and no step
//! knows of the others.
//!
//! Invariant: a tokenizer that passes makes no text longer than [`LIMIT`] times, in either direction, and encodes the same
//! text to the same tokens each time.

use serde_json::Value;
use tokenizers::models::ModelWrapper;

use super::bpe::Words;
use super::tokenizer::Library;

/// Far above what published tokenizers do: the largest known is 1,296.
const LIMIT: u64 = 4096;

/// Refuses a tokenizer whose steps could grow a text beyond all measure, or that draws its tokens by chance.
///
/// # Errors
/// A sentence about the part that does.
pub(super) fn check(tokenizer: &Library) -> Result<(), String> {
    let json = |part: Result<Value, serde_json::Error>| part.map_err(|e| e.to_string());
    let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()))?;
    let splitter = json(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
    let decoder = json(serde_json::to_value(tokenizer.get_decoder()))?;
    let parts = [
        ("normalizer and pre_tokenizer", factor(&normalizer).saturating_mul(factor(&splitter))),
        ("decoder", factor(&decoder)),
    ];
    if let Some((part, factor)) = parts.into_iter().find(|(_, factor)| *factor > LIMIT) {
        return Err(format!("its {part} can make a text {factor} times as long; at most {LIMIT} is read"));
    }
    if let Words::Library(model) = tokenizer.get_model()
        && let ModelWrapper::BPE(bpe) = &**model
        && bpe.dropout.is_some_and(|p| p > 0.0)
    {
        return Err("its model drops merges at random (`dropout`), which is for training; set it to null".into());
    }
    Ok(())
}

/// The most bytes that a byte can become.
fn factor(step: &Value) -> u64 {
    match step.get("type").and_then(Value::as_str).unwrap_or_default() {
        "Sequence" => {
            let steps = ["normalizers", "pretokenizers", "decoders"].into_iter().filter_map(|key| step.get(key));
            let steps = steps.filter_map(Value::as_array).flatten();
            steps.map(factor).fold(1, u64::saturating_mul)
        }
        "Replace" => {
            let content = step.get("content").and_then(Value::as_str).map_or(0, str::len) as u64;
            match step.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str).map_or(0, str::len) as u64 {
                // A regular expression may match between any two bytes.
                0 => content + 1,
                len => content.div_ceil(len).max(1),
            }
        }
        "Precompiled" => 18,
        "NFKC" | "NFKD" => 12,
        "BertNormalizer" => 8,
        "NFC" | "NFD" => 4,
        // A byte that is no text becomes three.
        "ByteFallback" | "Metaspace" => 3,
        "ByteLevel" | "Lowercase" | "WordPiece" => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use crate::text::Tokenizer;
    use serde_json::{Value, json};

    fn read(change: &dyn Fn(&mut Value)) -> Result<Tokenizer, String> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/llada-tiny/tokenizer.json");
        let mut tree: Value = serde_json::from_slice(&std::fs::read(model).unwrap()).unwrap();
        change(&mut tree);
        Tokenizer::from_bytes(&serde_json::to_vec(&tree).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn chained_steps_that_double_a_text_are_refused() {
        assert!(read(&|_| {}).is_ok());
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let many = |n| json!({"type": "Sequence", "pretokenizers": vec![bytes.clone(); n]});
        assert!(read(&|t| t["pre_tokenizer"] = many(300)).err().unwrap().contains("times as long"));
        assert!(read(&|t| t["pre_tokenizer"] = many(3)).is_ok());
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let normalizers = json!({"type": "Sequence", "normalizers": vec![double.clone(); 40]});
        assert!(read(&|t| t["normalizer"] = normalizers.clone()).err().unwrap().contains("normalizer"));
        let long = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(5000)});
        assert!(read(&|t| t["normalizer"] = long.clone()).err().unwrap().contains("10002 times"));
        let decoders = json!({"type": "Sequence", "decoders": vec![double.clone(); 40]});
        assert!(read(&|t| t["decoder"] = decoders.clone()).err().unwrap().contains("decoder"));
        let metaspace = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]});
        assert!(read(&|t| t["normalizer"] = metaspace.clone()).is_ok());
    }

    #[test]
    fn tokens_are_not_drawn_by_chance() {
        assert!(read(&|t| t["model"]["dropout"] = json!(0.5)).err().unwrap().contains("dropout"));
        assert!(read(&|t| t["model"]["dropout"] = json!(0.0)).is_ok());
    }
}
