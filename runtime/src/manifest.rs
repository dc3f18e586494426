//! The artifact's manifest: what it is, from what, made how, and what it needs. JSON, so that anybody can read it.
//!
//! Nothing in it is trusted. What the program or another section says too must agree (`agree.rs`), the policy is checked when
//! it is resolved, and the rest is for people: no size in here is ever allocated.

use crate::decode::DecodePolicy;
use crate::memory::Certificate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a manifest says that its artifact holds; a text generator's says nothing.
pub(crate) fn kind_of(manifest: &str) -> Result<Option<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Peek {
        kind: Option<String>,
    }
    serde_json::from_str::<Peek>(manifest).map(|peek| peek.kind)
}

/// Everything about a text generator's artifact but its bytes. Others have a manifest of their own kind, such as
/// [`GraphManifest`](crate::graph::GraphManifest).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Compiler and version.
    pub compiler: String,
    /// The model.
    pub model: ModelInfo,
    /// Compile options that shaped it, by name.
    pub options: BTreeMap<String, String>,
    /// The pass pipeline of each target, as it can be given to `dlxc opt`.
    pub pipelines: BTreeMap<String, String>,
    /// Programs in the artifact, by target; the first runs unless another is asked for.
    pub targets: Vec<String>,
    /// What running it takes at most, for each target in the order of `targets`, on [`THREADS`](crate::memory::count::THREADS) threads.
    pub memory: Vec<Certificate>,
    /// How to decode.
    pub policy: DecodePolicy,
    /// What the user should know, such as tensors left out for a reason.
    pub notes: Vec<String>,
    /// How it compares with a less compressed artifact, if that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
}

/// Distance from a baseline on the baseline's own trajectories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// Questions answered.
    pub questions: usize,
    /// Masked rows compared.
    pub rows: u64,
    /// Mean KL divergence of the distributions of a masked row from the baseline's, in nats.
    pub mean_kl: f64,
    /// Largest KL divergence.
    pub max_kl: f64,
    /// Share of masked rows whose most likely token differs.
    pub flip_rate: f64,
    /// Forward passes for all questions.
    pub forwards: usize,
    /// Forward passes of the baseline for all questions.
    pub baseline_forwards: usize,
}

/// Where a model comes from and its sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Family name.
    pub family: String,
    /// Number of weights.
    pub parameters: u64,
    /// Width of the logits.
    pub vocab: usize,
    /// Rows of the KV caches: prompt and answer together.
    pub max_seq: usize,
    /// BLAKE3 of the checkpoint's `config.json`.
    pub config_hash: String,
    /// BLAKE3 of `tokenizer.json`.
    pub tokenizer_hash: String,
}
