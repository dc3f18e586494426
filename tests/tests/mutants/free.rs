//! Which edits may change an answer: those of what an artifact's author alone decides and says in one place.
//!
//! Everything else is said twice, or is shown by the golden vectors, and must be refused or make no difference.

use serde_json::{Map, Value};

use crate::container::Sections;

/// Places that are free, and why.
const FREE: &[(&str, &str)] = &[
    ("text", "what a conversation looks like: the template and its tokens are the author's words"),
    ("tokenizer with its hash", "edited together they are another tokenizer"),
    ("manifest policy", "another method of decoding the same weights, apart from what the program says too"),
];

/// Fields of the policy that the program repeats.
const REPEATED: &[&str] = &["attention", "mask_id"];

/// Keys of the manifest and its model that nothing reads but people: they explain no difference, and forbid none.
const FOR_PEOPLE: &[&str] =
    &["compiler", "options", "pipelines", "memory", "notes", "quality", "family", "parameters", "config_hash"];

/// Whether all differences are free.
pub(crate) fn explained(base: &Sections, mutant: &Sections) -> bool {
    let of = |sections: &Sections, name: &str| sections.iter().find(|(n, _)| n == name).map(|(_, b)| b.clone());
    let names = base.iter().chain(mutant).map(|(n, _)| n.as_str());
    let changed: Vec<&str> = names.filter(|n| of(base, n) != of(mutant, n)).collect();
    !changed.is_empty()
        && changed.iter().all(|name| match *name {
            "text" => is_free("text"),
            "tokenizer" => changed.contains(&"manifest") && is_free("tokenizer with its hash"),
            "manifest" => manifest(&of(base, name), &of(mutant, name), changed.contains(&"tokenizer")),
            _ => false,
        })
}

fn is_free(place: &str) -> bool {
    FREE.iter().any(|(name, _)| *name == place)
}

/// Whether two manifests differ in their policies, and beside these only in what is for people.
fn manifest(base: &Option<Vec<u8>>, mutant: &Option<Vec<u8>>, hash: bool) -> bool {
    let read =
        |bytes: &Option<Vec<u8>>| serde_json::from_slice::<Map<String, Value>>(bytes.as_deref().unwrap_or_default());
    let (Ok(base), Ok(mutant)) = (read(base), read(mutant)) else { return false };
    if base.get("policy") == mutant.get("policy") && !hash {
        return false;
    }
    let full = base["policy"]["attention"] == "full";
    let changed = |a: &Map<String, Value>, b: &Map<String, Value>| -> Vec<String> {
        a.keys().chain(b.keys()).filter(|k| a.get(*k) != b.get(*k)).cloned().collect()
    };
    changed(&base, &mutant).iter().all(|key| match key.as_str() {
        "policy" => {
            let (Some(a), Some(b)) = (base[key].as_object(), mutant[key].as_object()) else { return false };
            let repeated = |k: &String| REPEATED.contains(&k.as_str()) || (k == "block" && !full);
            is_free("manifest policy") && !changed(a, b).iter().any(repeated)
        }
        "model" => {
            let (Some(a), Some(b)) = (base[key].as_object(), mutant[key].as_object()) else { return false };
            changed(a, b).iter().all(|k| FOR_PEOPLE.contains(&k.as_str()) || (hash && k == "tokenizer_hash"))
        }
        _ => FOR_PEOPLE.contains(&key.as_str()),
    })
}
