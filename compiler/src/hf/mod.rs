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

use dlx_ir::{Error, Mask, VerifiedModule};
use dlx_runtime::decode::DecodePolicy;

use crate::checkpoint::{Checkpoint, Config, TextFiles};
pub use decoder::Decoder;
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
    /// What attends what.
    mask: fn(&Source<'_>) -> Result<Mask, Error>,
    /// The numbers of `config.json`.
    decoder: fn(&Config, Mask, &mut Facts) -> Result<Decoder, Error>,
    /// How it decodes with a vocabulary of that size.
    policy: fn(&Source<'_>, usize, &mut Facts) -> Result<DecodePolicy, Error>,
    /// Key of `config.json` that says for how many positions a model was made, and what counts without it.
    positions: (&'static str, usize),
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

/// [`Family::positions`] of the Qwen-shaped families.
const QWEN_POSITIONS: (&str, usize) = ("max_position_embeddings", 4096);

/// What is known about a model besides its weights.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// `config.json`.
    pub config: Option<&'a Config>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a Config>,
    /// Mask token asked for, instead of what the files say.
    pub mask_id: Option<i32>,
    /// Tokenizer and special tokens.
    pub text: &'a TextFiles,
    /// Block length asked for, instead of the checkpoint's.
    pub block: Option<usize>,
    /// Sampler asked for, for families whose checkpoints do not say which one they were trained for.
    pub sampler: Option<&'a str>,
}

impl<'a> Source<'a> {
    /// What the files of a checkpoint say, and nothing asked for.
    pub fn new(checkpoint: &'a Checkpoint, text: &'a TextFiles) -> Self {
        let (config, generation_config) = (Some(&checkpoint.config), checkpoint.generation_config.as_ref());
        Source { config, generation_config, ..Source::of_text(text) }
    }

    /// A model of which only the text files are there.
    pub fn of_text(text: &'a TextFiles) -> Self {
        Source { config: None, generation_config: None, mask_id: None, text, block: None, sampler: None }
    }

    /// The block length asked for, else that of a key of the config, else a family's own.
    fn block_or(&self, key: &str, own: usize) -> Result<usize, Error> {
        let configured = || self.config.map(|c| c.opt_usize(key)).transpose();
        Ok(self.block.map_or_else(configured, |b| Ok(Some(Some(b))))?.flatten().unwrap_or(own))
    }

    /// An error about a key that several sources have a say in.
    fn error(&self, key: &str, message: String) -> Error {
        match self.config.or(self.generation_config) {
            Some(config) => config.error(key, message),
            None => Error::new(key, message),
        }
    }
}

/// A model as its files describe it, without weights.
#[derive(Debug)]
pub struct Described {
    /// Name of the family.
    pub family: &'static str,
    /// Its numbers.
    pub decoder: Decoder,
    /// How the family decodes.
    pub policy: DecodePolicy,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// What was found where, and what the user should know.
    pub facts: Facts,
}

/// How a family decodes, for a model without a config.
#[derive(Debug)]
pub struct Decoding {
    /// Name of the family.
    pub family: &'static str,
    /// What attends what.
    pub mask: Mask,
    /// How the family decodes.
    pub policy: DecodePolicy,
    /// What was found where, and what the user should know.
    pub facts: Facts,
}

/// An imported model.
#[derive(Clone, Debug)]
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
pub fn import(checkpoint: &Checkpoint, source: &Source<'_>) -> Result<Imported, Error> {
    let Described { family, decoder, policy, max_positions, mut facts } = describe(source)?;
    let module = decoder.build(family, checkpoint, &mut facts)?;
    facts.notes.extend(checkpoint.notes().iter().cloned());
    for (kind, count) in checkpoint.stored_kinds() {
        facts.add("quantized", format!("{count} weights: {kind}"), "the tensors and quantization_config");
    }
    Ok(Imported { family, module, policy, vocab: decoder.vocab, max_positions, facts })
}

/// What the files beside the weights say about a model.
///
/// # Errors
/// No config, an unsupported family, or files that contradict each other; names the file and key.
pub fn describe(source: &Source<'_>) -> Result<Described, Error> {
    let Some(config) = source.config else {
        return Err(Error::new("config.json", "is missing").help("put it beside the model"));
    };
    let mut facts = Facts::default();
    let family = family_of(config, &mut facts)?;
    family.check_sampler(source)?;
    let decoder = (family.decoder)(config, (family.mask)(source)?, &mut facts)?;
    let policy = (family.policy)(source, decoder.vocab, &mut facts)?;
    let max_positions = config.opt_usize(family.positions.0)?.unwrap_or(family.positions.1);
    facts.notes.extend(source.text.notes.iter().cloned());
    Ok(Described { family: family.name, decoder, policy, max_positions, facts })
}

/// How the family of that name decodes with a vocabulary of `vocab` tokens: what there is to know about a model that has no
/// config, but a tokenizer.
///
/// # Errors
/// There is no such family, or nothing says what its mask token is.
pub fn policy_for(family: &str, source: &Source<'_>, vocab: usize) -> Result<Decoding, Error> {
    let Some(family) = FAMILIES.iter().find(|f| f.name == family) else {
        let known: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
        return Err(Error::new("--family", format!("there is no family `{family}`"))
            .help(format!("use one of {}; `dlxc families` says more", known.join(", "))));
    };
    family.check_sampler(source)?;
    let mut facts = Facts::default();
    facts.add("family", family.name, "--family");
    let policy = (family.policy)(source, vocab, &mut facts)?;
    facts.notes.extend(source.text.notes.iter().cloned());
    Ok(Decoding { family: family.name, mask: (family.mask)(source)?, policy, facts })
}

impl Family {
    /// A sampler can be chosen only where there are several.
    fn check_sampler(&self, source: &Source<'_>) -> Result<(), Error> {
        let Some(sampler) = source.sampler.filter(|_| !self.has_samplers) else { return Ok(()) };
        let message = format!("`{sampler}` cannot be chosen: {} has one way of decoding", self.name);
        Err(Error::new("--sampler", message).help("leave it out"))
    }
}

/// Whether a config names a family that is known here, or a relative that is known not to be compiled.
pub fn is_known(config: &Config) -> bool {
    let named = |key: &str| match config.get(key) {
        Some(serde_json::Value::Array(list)) => list.iter().filter_map(serde_json::Value::as_str).collect(),
        Some(serde_json::Value::String(name)) => vec![name.as_str()],
        _ => Vec::new(),
    };
    let names: Vec<&str> = named("architectures").into_iter().chain(named("model_type")).collect();
    let family = |f: &Family| names.iter().any(|n| f.architectures.contains(n) || f.model_types.contains(n));
    FAMILIES.iter().any(family) || UNSUPPORTED.iter().any(|(name, _)| names.contains(name))
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
