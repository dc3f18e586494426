//! What an export says of itself: `manifest.json`.

use dlx_ir::Mask;
use serde::{Deserialize, Serialize};

use crate::decode::policy::DecodePolicy;

/// What is added to the scores of rows that may not be attended: far below any score, and a number of f16.
pub const MASKED: f32 = -10000.0;

/// `manifest.json`'s `format`.
pub const FORMAT: &str = "dlxc-qnn";
/// The `version` that this crate reads.
pub const VERSION: u32 = 1;

/// Most cache rows, layers and heads, so that sizes multiply without overflow.
const MAX_SIZE: usize = 1 << 20;

/// `manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The program that wrote the export.
    pub compiler: String,
    /// Target, such as `qnn`.
    pub target: String,
    /// Profile, such as `w8a16`.
    pub profile: String,
    /// The oldest HTP generation that takes the graphs; 0 where none is meant.
    pub min_htp: u32,
    /// The SoC that was asked for, as QNN's options `soc_model` and `htp_arch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soc: Option<Soc>,
    /// The model.
    pub model: Model,
    /// How the model decodes.
    pub decode: DecodePolicy,
    /// The tokenizer's file.
    pub tokenizer: String,
    /// The file of chat template and special tokens.
    pub text: String,
    /// The embedding table.
    pub embeddings: Table,
    /// What all graphs share.
    pub weights: WeightsFile,
    /// What the ranges of codes come from.
    pub calibration: String,
    /// The graphs.
    pub entries: Vec<Entry>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A system on a chip.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Soc {
    /// Its name.
    pub name: String,
    /// `soc_model`.
    pub soc_model: u32,
    /// `htp_arch`.
    pub htp_arch: u32,
}

/// Sizes of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Model {
    /// Name of the family.
    pub family: String,
    /// Tokens.
    pub vocab: usize,
    /// Features.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Cache rows.
    pub max_seq: usize,
    /// Which rows a row may attend, as the host's mask must say.
    pub mask: String,
}

/// A table in a file of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// File beside the manifest.
    pub file: String,
    /// Element type.
    pub dtype: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// The external data of all graphs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WeightsFile {
    /// File beside the manifest.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3 hash.
    pub blake3: String,
}

/// A graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// `step_4`.
    pub name: String,
    /// What it computes.
    pub kind: EntryKind,
    /// Rows that it is for.
    pub rows: usize,
    /// File beside the manifest.
    pub file: String,
    /// What it takes, in order.
    pub inputs: Vec<Port>,
    /// What it gives, in order.
    pub outputs: Vec<Port>,
}

/// What an entry computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Hidden states, keys and values of new rows.
    Step,
    /// Logits of rows of hidden states.
    Head,
}

/// What an input or output is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Rows of the embedding table.
    Embeddings,
    /// Last hidden states, in or out.
    Hidden,
    /// Cosines of the angles.
    RopeCos,
    /// Sines, the first half negated.
    RopeSin,
    /// Added to the scores.
    Mask,
    /// Cached keys.
    KCache,
    /// Cached values.
    VCache,
    /// Keys of the new rows.
    KNew,
    /// Values of the new rows.
    VNew,
    /// Logits.
    Logits,
}

/// An input or an output.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Element type.
    pub dtype: String,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Layer of a cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// What a mask adds where a row may not be attended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked_value: Option<f32>,
    /// The cache that new rows go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// The dimension of that cache along which rows lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
}

impl Entry {
    /// The entry of a kind for some rows, as the pass `externalize-kv` makes it.
    pub fn new(kind: EntryKind, rows: usize, model: &Model) -> Entry {
        let Model { hidden, head_dim, kv_heads, layers, max_seq, vocab, .. } = *model;
        let port = |name: String, role, shape: &[usize]| Port { name, role, ..Port::plain(shape) };
        let hidden = |name: &str, role| port(name.into(), role, &[rows, hidden]);
        if kind == EntryKind::Head {
            let logits = Port { dtype: "f32".into(), ..port("logits".into(), Role::Logits, &[rows, vocab]) };
            let (inputs, outputs) = (vec![hidden("h", Role::Hidden)], vec![logits]);
            return Entry {
                name: format!("head_{rows}"),
                kind,
                rows,
                file: format!("head_{rows}.onnx"),
                inputs,
                outputs,
            };
        }
        let mut inputs = vec![
            hidden("x", Role::Embeddings),
            port("cos".into(), Role::RopeCos, &[rows, head_dim]),
            port("sin".into(), Role::RopeSin, &[rows, head_dim]),
            Port { masked_value: Some(MASKED), ..port("mask".into(), Role::Mask, &[rows, max_seq + rows]) },
        ];
        let mut outputs = vec![hidden("h", Role::Hidden)];
        for layer in 0..layers {
            let k = |rows: usize| [kv_heads, head_dim, rows];
            let v = |rows: usize| [kv_heads, rows, head_dim];
            let cache = |letter: char, role, shape: [usize; 3]| Port {
                layer: Some(layer),
                ..port(format!("{letter}{layer}"), role, &shape)
            };
            inputs.push(cache('k', Role::KCache, k(max_seq)));
            inputs.push(cache('v', Role::VCache, v(max_seq)));
            for (letter, role, shape, axis) in [('k', Role::KNew, k(rows), 2), ('v', Role::VNew, v(rows), 1)] {
                let into = format!("{letter}{layer}");
                let name = format!("{into}_new");
                outputs.push(Port { name, into: Some(into), axis: Some(axis), ..cache(letter, role, shape) });
            }
        }
        Entry { name: format!("step_{rows}"), kind, rows, file: format!("step_{rows}.onnx"), inputs, outputs }
    }
}

impl Manifest {
    /// Whether the manifest is one that this crate reads, and says the same everywhere.
    ///
    /// # Errors
    /// What is not so.
    pub fn check(&self) -> Result<(), String> {
        if (self.format.as_str(), self.version) != (FORMAT, VERSION) {
            return Err(format!("is `{}` version {}, not `{FORMAT}` version {VERSION}", self.format, self.version));
        }
        let m = &self.model;
        let sizes = [m.vocab, m.hidden, m.layers, m.kv_heads, m.head_dim, m.max_seq];
        if sizes.iter().any(|s| *s == 0 || *s > MAX_SIZE) || m.head_dim % 2 == 1 {
            return Err(format!("has a model of impossible sizes: {sizes:?}"));
        }
        let bytes = sizes[2..].iter().try_fold(4usize, |n, s| n.checked_mul(*s));
        if bytes.is_none_or(|bytes| bytes > 1 << 40) {
            return Err("has caches that nothing holds".into());
        }
        m.mask.parse::<Mask>()?;
        if (self.embeddings.rows, self.embeddings.cols) != (m.vocab, m.hidden) || self.embeddings.dtype != "f16" {
            return Err("has embeddings of another model".into());
        }
        for entry in &self.entries {
            let wanted = Entry::new(entry.kind, entry.rows, m);
            if entry.rows == 0
                || entry.rows > MAX_SIZE
                || entry.inputs != wanted.inputs
                || entry.outputs != wanted.outputs
            {
                return Err(format!("says of {} what no entry of that kind is", entry.name));
            }
        }
        let has = |kind| self.entries.iter().any(|e| e.kind == kind);
        if !has(EntryKind::Step) || !has(EntryKind::Head) {
            return Err("lacks a step or a head".into());
        }
        let plain = |file: &str| !file.is_empty() && !file.contains(['/', '\\']) && file != "..";
        let files = [&self.tokenizer, &self.text, &self.embeddings.file, &self.weights.file];
        match files.into_iter().chain(self.entries.iter().map(|e| &e.file)).find(|file| !plain(file)) {
            Some(file) => Err(format!("names `{file}`, which is no file beside it")),
            None => Ok(()),
        }
    }
}

impl Port {
    fn plain(shape: &[usize]) -> Port {
        Port {
            name: String::new(),
            role: Role::Hidden,
            dtype: "f16".into(),
            shape: shape.into(),
            layer: None,
            masked_value: None,
            into: None,
            axis: None,
        }
    }

    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.dtype == "f32" { 4 } else { 2 }
    }
}
