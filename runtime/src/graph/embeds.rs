//! How the graphs of an encoder become embeddings of texts, as a manifest says it.
//!
//! Invariant: nothing is guessed. Pooling and normalization are stated by whoever compiled the model. It runs nothing.

use dlx_ir::DType;
use serde::{Deserialize, Serialize};

use super::manifest::{Port, Signature};

/// Token ids of texts, `i64[1, T]`.
pub(crate) const IDS: &str = "input_ids";
/// Ones for tokens and zeros for padding, `i64[1, T]`.
pub(crate) const MASK: &str = "attention_mask";
/// Which of two texts a token belongs to, `i64[1, T]`: always the first.
const TYPES: &str = "token_type_ids";

/// How a text's vector is made of the hidden states of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
}

/// What makes a graph artifact an embedder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embeds {
    /// The output that has the hidden states, `f32[1, T, H]`.
    pub output: String,
    /// How they become one vector.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub normalize: bool,
}

impl Embeds {
    /// The width of vectors, if these graphs can be asked for them.
    ///
    /// # Errors
    /// The first graph that takes or gives something else than an encoder of one text does.
    pub fn width(&self, entries: &[Signature]) -> Result<usize, String> {
        let mut widths = entries.iter().map(|entry| {
            let t = length(entry);
            let has = |name: &str| entry.inputs.iter().any(|input| input.name == name);
            if !has(IDS) || !has(MASK) {
                return Err(format!("@{} does not take both `{IDS}` and `{MASK}`", entry.name));
            }
            for input in &entry.inputs {
                if ![IDS, MASK, TYPES].contains(&input.name.as_str()) || !input.takes(DType::I64, &[1, t]) {
                    return Err(format!("@{} takes `{input}`, which is nothing that a text has", entry.name));
                }
            }
            let output = entry.outputs.iter().find(|output| output.name == self.output);
            let shape = output.filter(|o| o.dtype == "f32").map(|o| o.shape.as_slice());
            match shape {
                Some(&[1, rows, width]) if rows == t && width > 0 => Ok(width),
                _ => Err(format!("@{} has no output `{}` that is f32[1, {t}, …]", entry.name, self.output)),
            }
        });
        let width = widths.next().unwrap_or_else(|| Err("there is no graph".into()))?;
        match widths.find(|other| *other != Ok(width)) {
            Some(Err(error)) => Err(error),
            Some(Ok(other)) => Err(format!("vectors are {width} wide in one graph and {other} in another")),
            None => Ok(width),
        }
    }
}

/// The length of the texts that a graph takes, in tokens.
pub(crate) fn length(entry: &Signature) -> usize {
    let of = |port: &Port| port.shape.last().copied();
    entry.inputs.iter().find(|input| input.name == IDS).and_then(of).unwrap_or(0)
}
