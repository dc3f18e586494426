//! Whether two tokenizers mean the same: what lets one model draft for another.
//!
//! Files that differ may mean the same – the families name their mask token differently – and a hash would refuse them.
//! Compared is what decides ids and texts: the string of every id that either model can emit, merges, normalizer, splitter
//! and decoder.
//!
//! Invariant: a difference is named by the first id, or part, in which both differ, with what each has there.

use serde_json::Value;

use super::Tokenizer;

impl Tokenizer {
    /// Compares the meaning of ids `0..vocab` but for `except`.
    ///
    /// # Errors
    /// The first difference.
    pub fn means_the_same(&self, other: &Tokenizer, vocab: usize, except: Option<i32>) -> Result<(), String> {
        let (a, b) = (self.inner(), other.inner());
        let spelled = |token: Option<String>| token.map_or("no token".to_owned(), |token| format!("{token:?}"));
        for id in (0..vocab).filter_map(|id| u32::try_from(id).ok()) {
            let (mine, theirs) = (a.id_to_token(id), b.id_to_token(id));
            if mine != theirs && i32::try_from(id).ok() != except {
                return Err(format!(
                    "id {id} is {} to the verifier and {} to the drafter",
                    spelled(mine),
                    spelled(theirs)
                ));
            }
        }
        let json = |part: serde_json::Result<Value>| part.map_err(|e| format!("a tokenizer cannot be compared: {e}"));
        // Strings of ids are compared above; one of them is free to differ.
        if !a.get_model().merges_like(b.get_model()) {
            differ("model", &json(a.get_model().meaning())?, &json(b.get_model().meaning())?)?;
        }
        for (name, mine, theirs) in [
            ("normalizer", serde_json::to_value(a.get_normalizer()), serde_json::to_value(b.get_normalizer())),
            ("pre_tokenizer", serde_json::to_value(a.get_pre_tokenizer()), serde_json::to_value(b.get_pre_tokenizer())),
            ("decoder", serde_json::to_value(a.get_decoder()), serde_json::to_value(b.get_decoder())),
        ] {
            differ(name, &json(mine)?, &json(theirs)?)?;
        }
        Ok(())
    }
}

/// Names the first place in which two values differ.
fn differ(place: &str, mine: &Value, theirs: &Value) -> Result<(), String> {
    match (mine, theirs) {
        _ if mine == theirs => Ok(()),
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                let at = |list: &[Value]| list.get(i).cloned().unwrap_or(Value::Null);
                differ(&format!("{place}[{i}]"), &at(a), &at(b))?;
            }
            Ok(())
        }
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let at = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or(Value::Null);
                differ(&format!("{place}.{name}"), &at(a), &at(b))?;
            }
            Ok(())
        }
        _ => Err(format!("the tokenizers' {place} is {mine} to the verifier and {theirs} to the drafter")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{bytes_tokenizer, bytes_tokenizer_json};
    use super::*;

    fn changed(old: &str, new: &str) -> Tokenizer {
        let json = bytes_tokenizer_json(&["<stop>", "<mask>"]);
        assert!(json.contains(old), "{old}");
        Tokenizer::from_bytes(json.replace(old, new).as_bytes()).unwrap()
    }

    #[test]
    fn the_first_difference_is_named() {
        let own = bytes_tokenizer(&["<stop>", "<mask>"]);
        let same = |other: &Tokenizer, except| own.means_the_same(other, 300, except);
        assert_eq!(same(&bytes_tokenizer(&["<stop>", "<mask>"]), None), Ok(()));
        let other = bytes_tokenizer(&["<stop>", "<MASK>"]);
        assert_eq!(same(&other, Some(257)), Ok(()));
        let error = same(&other, None).unwrap_err();
        assert_eq!(error, r#"id 257 is "<mask>" to the verifier and "<MASK>" to the drafter"#);
        let error = same(&bytes_tokenizer(&["<stop>"]), None).unwrap_err();
        assert_eq!(error, r#"id 257 is "<mask>" to the verifier and no token to the drafter"#);
        assert_eq!(own.means_the_same(&bytes_tokenizer(&["<stop>"]), 257, None), Ok(()), "nobody can emit it");
    }

    #[test]
    fn what_decides_ids_is_compared() {
        let own = bytes_tokenizer(&["<stop>", "<mask>"]);
        let error = |other: Tokenizer| own.means_the_same(&other, 258, None).unwrap_err();
        let model = error(changed(r#""byte_fallback":false"#, r#""byte_fallback":true"#));
        assert!(model.contains("model.byte_fallback is false to the verifier and true"), "{model}");
        let normalized = error(changed(r#""normalizer":null"#, r#""normalizer":{"type":"NFC"}"#));
        assert!(normalized.contains("normalizer"), "{normalized}");
        let split = error(changed(r#""use_regex":false"#, r#""use_regex":true"#));
        assert!(split.contains("pre_tokenizer.use_regex"), "{split}");
    }
}
