//! How publishers write special tokens in the files beside a tokenizer.

use serde_json::Value;

/// Keys under which they are named, alphabetical.
pub(super) const TOKEN_KEYS: &[&str] = &["bos_token", "eos_token", "mask_token", "pad_token", "unk_token"];

/// A token is written as its text or as an object with a `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
