//! Model families: how a Hugging Face checkpoint becomes the plain `@forward` graph and a decoding policy.
//!
//! A family is a row of [`FAMILIES`] and a file that reads its config keys and tensor names into a [`decoder::Decoder`].
//! Nothing behind this module knows which family a model came from.

mod a2d;
mod decoder;
mod dream;
mod facts;
mod fast_dllm_v2;
mod keys;
mod llada;
mod qwen;
mod rope;
mod sdar;
mod tokens;

use dlx_ir::{Error, VerifiedModule};
use dlx_runtime::decode::DecodePolicy;

use crate::checkpoint::{Checkpoint, Config, TextFiles};
pub use facts::{Fact, Facts};

/// One model family.
pub struct Family {
    /// Name in listings and manifests.
    pub name: &'static str,
    /// Values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Values of `architectures`: classes that compute what the family computes.
    pub architectures: &'static [&'static str],
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
    ("EfficientDLM", "it decodes with full attention and a cache of its own kind, which is not compiled yet"),
    ("LLaDA2MoeModelLM", "it is a mixture of experts with a group-limited router"),
    ("LLaDAMoEModelLM", "it is a mixture of experts, and experts are not compiled yet"),
    ("Lfm2ForBlockDiffusion", "it has convolution layers and self-conditioning, which are not compiled yet"),
    (
        "NemotronLabsDiffusionModel",
        "it has YaRN rotary embeddings and a scale of the queries, which are not compiled yet",
    ),
    ("Qwen2MoeForCausalLM", "it is a mixture of experts, and experts are not compiled yet"),
    ("Qwen3MoeForCausalLM", "it is a mixture of experts, and experts are not compiled yet"),
    ("SDARMoeForCausalLM", "it is a mixture of experts, and experts are not compiled yet"),
    ("WeDLMForCausalLM", "it reorders positions while it decodes, which is not compiled yet"),
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
    pub module: VerifiedModule,
    /// How the family decodes.
    pub policy: DecodePolicy,
    /// Rows of the embedding, the width of the logits.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// What was found where, and what the user should know.
    pub facts: Facts,
}

/// Imports a checkpoint by what its config says it is.
///
/// # Errors
/// An unsupported family, or a checkpoint that does not fit its family; names the file and key or tensor.
pub fn import(source: &Source<'_>) -> Result<Imported, Error> {
    let mut facts = Facts::default();
    let family = family_of(&source.checkpoint.config, &mut facts)?;
    if let Some(sampler) = source.sampler.filter(|_| !family.has_samplers) {
        let message = format!("`{sampler}` cannot be chosen: {} has one way of decoding", family.name);
        return Err(Error::new("--sampler", message).help("leave it out"));
    }
    let mut imported = (family.import)(source)?;
    facts.rows.append(&mut imported.facts.rows);
    facts.notes.append(&mut imported.facts.notes);
    facts.notes.extend(source.checkpoint.notes().iter().chain(&source.text.notes).cloned());
    imported.facts = facts;
    Ok(imported)
}

/// The family that `architectures` and `model_type` agree on. The class decides what is computed; a checkpoint of another
/// class may well declare the `model_type` of the model that it was made from.
fn family_of(config: &Config, facts: &mut Facts) -> Result<&'static Family, Error> {
    let classes: Vec<&str> = match config.get("architectures") {
        None => Vec::new(),
        Some(serde_json::Value::Array(list)) => list.iter().filter_map(serde_json::Value::as_str).collect(),
        Some(_) => {
            return Err(config
                .error("architectures", "must be a list of class names")
                .help("restore the file from the model's repository"));
        }
    };
    let model_type = config.opt_str("model_type")?;
    // `module.Class` of the model's own code.
    let own = config.get("auto_map").and_then(serde_json::Value::as_object);
    let own = own.into_iter().flat_map(|map| map.values()).filter_map(serde_json::Value::as_str);
    let own: Vec<&str> = own.filter_map(|path| path.rsplit('.').next()).collect();
    let unsupported = |key: &str, name: &str, why: &str| {
        let message = format!("`{name}` is not supported, because {why}");
        Err(config.error(key, message).help("`dlxc families` lists what is"))
    };
    let named = classes.iter().map(|c| ("architectures", *c)).chain(own.iter().map(|c| ("auto_map", *c)));
    for (key, name) in named.chain(model_type.map(|t| ("model_type", t))) {
        if let Some((_, why)) = UNSUPPORTED.iter().find(|(known, _)| *known == name) {
            return unsupported(key, name, why);
        }
    }
    let by_type = model_type.map(|t| FAMILIES.iter().find(|f| f.model_types.contains(&t)).ok_or(t)).transpose();
    let by_type = by_type.map_err(|unknown| {
        let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        config
            .error("model_type", format!("`{unknown}` is not a supported family"))
            .help(format!("supported: {}; `dlxc families` says more", known.join(", ")))
    })?;
    let Some(class) = classes.first() else {
        let family = by_type.ok_or_else(|| {
            config
                .error("model_type", "is missing, and so is architectures")
                .help("restore the file from the model's repository")
        })?;
        facts.add("family", family.name, config.path("model_type"));
        return Ok(family);
    };
    let by_class = FAMILIES.iter().find(|f| classes.iter().all(|class| f.architectures.contains(class)));
    match (by_class, by_type) {
        (Some(family), None) => {
            facts.note(format!("config.json has no model_type: {class} of architectures makes it {}", family.name));
            facts.add("family", family.name, config.path("architectures"));
            Ok(family)
        }
        (Some(family), Some(other)) if family.name == other.name => {
            facts.add("family", family.name, format!("{} and architectures", config.path("model_type")));
            Ok(family)
        }
        (Some(family), Some(other)) => Err(config
            .error(
                "architectures",
                format!("names {class}, which is {}, and model_type says {}", family.name, other.name),
            )
            .help("restore the file from the model's repository")),
        (None, other) => {
            let known: Vec<_> = FAMILIES.iter().flat_map(|f| f.architectures).copied().collect();
            let class = classes.iter().find(|class| !known.contains(class)).unwrap_or(class);
            let like =
                other.map_or_else(String::new, |f| format!(", whatever its model_type {} suggests", f.model_types[0]));
            Err(config
                .error("architectures", format!("`{class}` is not a class that is known here{like}"))
                .help(format!("supported: {}; `dlxc families` says more", known.join(", "))))
        }
    }
}

/// A block length as an attribute of the mask; the config bounds it.
fn small(block: usize) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
}
