//! Model families: how a Hugging Face checkpoint becomes the plain `@forward` graph and a decoding policy.
//!
//! A family is a row of [`FAMILIES`] and a file that reads its config keys and tensor names into a [`decoder::Decoder`].
//! Nothing behind this module knows which family a model came from.

mod a2d;
mod decoder;
mod dream;
mod fast_dllm_v2;
mod llada;
mod qwen;
mod sdar;

use dlx_ir::{Error, Module};
use dlx_runtime::decode::DecodePolicy;

use crate::checkpoint::{Checkpoint, TextFiles};

/// One model family.
pub struct Family {
    /// Name in listings and manifests.
    pub name: &'static str,
    /// Values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// What it is and how it decodes.
    pub doc: &'static str,
    /// Whether `--sampler` chooses among several ways of decoding.
    has_samplers: bool,
    import: fn(&Source<'_>) -> Result<Imported, Error>,
}

/// Every family, alphabetically.
pub const FAMILIES: &[Family] = &[
    a2d::QWEN2,
    a2d::QWEN3,
    dream::FAMILY,
    fast_dllm_v2::FAMILY,
    llada::FAMILY,
    qwen::QWEN2,
    qwen::QWEN3,
    sdar::FAMILY,
];

/// Relatives that are known and cannot be compiled, with the reason.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("a2d-llama", "its attention and tensor names were never checked against a reference"),
    ("llada2_moe", "it is a mixture of experts with a group-limited router"),
    ("llada_moe", "it is a mixture of experts, and experts are not compiled yet"),
    ("qwen3_moe", "it is a mixture of experts, and experts are not compiled yet"),
    ("sdar_moe", "it is a mixture of experts, and experts are not compiled yet"),
];

/// What a family reads.
pub struct Source<'a> {
    /// Weights and configuration.
    pub checkpoint: &'a Checkpoint,
    /// Tokenizer and special tokens.
    pub text: &'a TextFiles,
    /// Block length asked for, instead of the checkpoint's.
    pub block: Option<usize>,
    /// Sampler asked for, for families whose checkpoints do not say which one they were trained for.
    pub sampler: Option<&'a str>,
}

/// An imported model.
#[derive(Debug)]
pub struct Imported {
    /// Name of the family.
    pub family: &'static str,
    /// `@forward(ids, pos) -> logits`.
    pub module: Module,
    /// How the family decodes.
    pub policy: DecodePolicy,
    /// Rows of the embedding, the width of the logits.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// Things the user should know, such as tensors that were left out for a reason.
    pub notes: Vec<String>,
}

/// Imports a checkpoint by the `model_type` of its config.
///
/// # Errors
/// An unsupported family, or a checkpoint that does not fit its family; names the file and key or tensor.
pub fn import(source: &Source<'_>) -> Result<Imported, Error> {
    let config = &source.checkpoint.config;
    let model_type = config.str("model_type")?;
    if let Some((_, why)) = UNSUPPORTED.iter().find(|(name, _)| *name == model_type) {
        let message = format!("`{model_type}` is not supported, because {why}");
        return Err(config.error("model_type", message).help("`dlxc families` lists what is"));
    }
    let family = FAMILIES.iter().find(|f| f.model_types.contains(&model_type)).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        config
            .error("model_type", format!("`{model_type}` is not a supported family"))
            .help(format!("supported: {}; `dlxc families` says more", known.join(", ")))
    })?;
    if let Some(sampler) = source.sampler.filter(|_| !family.has_samplers) {
        let message = format!("`{sampler}` cannot be chosen: {} has one way of decoding", family.name);
        return Err(Error::new("--sampler", message).help("leave it out"));
    }
    let mut imported = (family.import)(source)?;
    imported.notes.extend(source.checkpoint.notes().iter().chain(&source.text.notes).cloned());
    Ok(imported)
}

/// The mask token's id: the config's, the generation config's, or that of the tokenizer's `mask_token`.
fn mask_id(source: &Source<'_>, vocab: usize) -> Result<i32, Error> {
    let configs = [Some(&source.checkpoint.config), source.checkpoint.generation_config.as_ref()];
    for config in configs.into_iter().flatten() {
        if let Some(id) = config.opt_token("mask_token_id")? {
            return in_vocabulary(config, "mask_token_id", id, vocab);
        }
    }
    let config = &source.checkpoint.config;
    let id = source.text.special_token_id("mask_token").ok_or_else(|| {
        config
            .error("mask_token_id", "is missing, and the tokenizer names no mask_token")
            .help("add mask_token_id to config.json; the model card states it")
    })?;
    in_vocabulary(config, "mask_token_id", id, vocab)
}

/// The ids that end a text: the generation config's and the config's `eos_token_id`.
fn stop_ids(source: &Source<'_>, vocab: usize) -> Result<Vec<i32>, Error> {
    let configs = [source.checkpoint.generation_config.as_ref(), Some(&source.checkpoint.config)];
    let mut ids = Vec::new();
    for config in configs.into_iter().flatten() {
        for id in config.tokens("eos_token_id")? {
            let id = in_vocabulary(config, "eos_token_id", id, vocab)?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

fn in_vocabulary(config: &crate::checkpoint::Config, key: &str, id: i32, vocab: usize) -> Result<i32, Error> {
    if usize::try_from(id).is_ok_and(|id| id < vocab) {
        return Ok(id);
    }
    Err(config.error(key, format!("{id} is outside the vocabulary of {vocab}")).help("use the checkpoint's own config"))
}

/// A block length as an attribute of the mask; the config bounds it.
fn small(block: usize) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
}
