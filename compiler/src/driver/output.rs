//! What a compile writes: the manifest, and the sections in their order.

use std::collections::{BTreeMap, BTreeSet};

use dlx_ir::{Error, Module, WeightDef};
use dlx_runtime::manifest::{Manifest, ModelInfo};
use dlx_runtime::memory::Certificate;
use dlx_runtime::memory::count::OTHERS;
use dlx_runtime::{TextSection, artifact};
use dlx_targets::Settings;
use dlx_targets::artifact_writer::ArtifactWriter;

use super::input::Input;
use super::memory::Sections;
use super::programs::{Golden, Program};
use super::{Compile, recoded};
use crate::checkpoint::TextFiles;

impl Compile<'_> {
    /// Everything about the artifact but its bytes.
    pub(super) fn manifest(
        &self,
        input: &Input<'_>,
        settings: &Settings,
        programs: &[Program],
        sections: &Sections,
        memory: Vec<Certificate>,
    ) -> Manifest {
        let imported = &input.imported;
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let stored = || programs.iter().map(|p| &p.stored);
        let again = stored().skip(1).filter(|s| s.bytes > 0).map(|s| {
            let (name, bytes) = (s.target.name, s.bytes);
            format!("target {name} lays {bytes} bytes of weights out in its own way; they are stored once more")
        });
        let recoded = stored().flat_map(|s| &s.recoded);
        let asked = self.options.requantize || !self.options.keep.is_empty();
        let recoded = recoded::notes(recoded, |name| input.weights.stored_as(name), asked);
        Manifest {
            compiler: concat!("dlxc ", env!("CARGO_PKG_VERSION")).into(),
            model: ModelInfo {
                family: imported.family.into(),
                parameters: parameters(&imported.module),
                vocab: imported.vocab,
                max_seq: settings.max_seq,
                config_hash: hash(&input.config),
                tokenizer_hash: hash(&input.text.tokenizer),
            },
            options: self.manifest_options(settings, programs),
            pipelines: stored().map(|s| (s.target.name.to_owned(), s.pipeline.clone())).collect(),
            targets: stored().map(|s| s.target.name.into()).collect(),
            memory,
            policy: imported.policy.clone(),
            notes: imported
                .facts
                .notes
                .iter()
                .chain(&sections.without_tables)
                .cloned()
                .chain(again)
                .chain(recoded)
                .collect(),
            quality: None,
        }
    }

    fn manifest_options(&self, settings: &Settings, programs: &[Program]) -> BTreeMap<String, String> {
        let keep: Vec<_> = self.options.keep.iter().map(|(name, format)| format!("{name}={format}")).collect();
        let planned = programs.iter().any(|p| p.product.plan_bytes().is_some());
        let options = [
            ("quant", self.options.quant.to_string()),
            ("keep", keep.join(",")),
            ("kv", settings.kv.to_string()),
            ("max_seq", settings.max_seq.to_string()),
            ("block", self.options.block.map_or_else(String::new, |b| b.to_string())),
            ("sampler", self.options.sampler.clone().unwrap_or_default()),
            ("family", self.options.family.clone().unwrap_or_default()),
            ("mask_id", self.options.mask_id.map_or_else(String::new, |id| id.to_string())),
            ("profile", if planned { settings.profile.clone() } else { String::new() }),
        ];
        options.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

/// What is known of a model's texts besides its tokenizer.
pub(super) fn text_section(text: TextFiles) -> Result<TextSection, Error> {
    let add_bos_token = text.add_bos_token()?;
    Ok(TextSection { chat_template: text.chat_template, special_tokens: text.special_tokens, add_bos_token })
}

/// Adds the sections to the weights and finishes the file. Returns its length.
pub(super) fn write(
    mut writer: ArtifactWriter,
    manifest: &Manifest,
    text: TextFiles,
    sections: Sections,
    programs: &[Program],
    golden: &Golden,
) -> Result<u64, Error> {
    let json = |what: Result<Vec<u8>, serde_json::Error>| what.map_err(|e| Error::new("manifest", e.to_string()));
    let tokenizer = text.tokenizer.clone();
    let texts = text_section(text)?;
    writer.section(artifact::MANIFEST, json(serde_json::to_vec_pretty(manifest))?);
    for program in programs {
        let stored = &program.stored;
        writer.section(artifact::program_section(stored.target.name), stored.module.to_string());
    }
    for program in programs {
        if let Some(plan) = program.product.plan_bytes() {
            writer.section(artifact::plan_section(program.stored.target.name), plan);
        }
    }
    writer.section(artifact::TOKENIZER, tokenizer);
    if let Some(tables) = sections.tables {
        writer.section(artifact::TOKENIZER_TABLES, tables);
    }
    writer.section(artifact::TEXT, json(serde_json::to_vec(&texts))?);
    writer.section(artifact::GOLDEN, json(serde_json::to_vec(&golden.vectors))?);
    let (others, certified) = (writer.others(), manifest.memory.iter().map(|c| c.part(OTHERS)).min());
    if certified.is_some_and(|certified| others > certified) {
        let message = format!("its sections take {others} bytes beside the weights, and fewer were certified");
        return Err(
            Error::new("memory certificate", message).help("report this with the model's files but its weights")
        );
    }
    writer.finish()
}

fn parameters(module: &Module) -> u64 {
    let sources = module.weights.iter().filter(|(_, w)| w.def == WeightDef::Source);
    sources.filter_map(|(_, w)| w.ty.elements()).map(|n| n as u64).sum()
}

/// Bytes of weights by element type.
pub(super) fn weight_sizes(programs: &[Program]) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (_, w) in programs.iter().flat_map(|p| p.stored.module.weights.iter()) {
        match w.def {
            WeightDef::Stored { offset, bytes, .. } if seen.insert(offset) => {
                *sizes.entry(w.ty.dtype.to_string()).or_default() += bytes;
            }
            _ => {}
        }
    }
    sizes
}
