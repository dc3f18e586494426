//! What a compile reads: weights, texts, and what the model's family makes of them.

use std::ops::Range;
use std::path::Path;

use dlx_ir::{Error, QuantFormat};
use dlx_runtime::text::{ChatTemplate, Message, Tokenizer};
use dlx_targets::{CodeRows, WeightSource};

use crate::checkpoint::{Checkpoint, TextFiles};
use crate::hf::{self, Imported};
use crate::onnx::weights::OnnxWeights;
use crate::options::CompileOptions;

/// Weights of a model, wherever they come from.
pub(super) trait Weights: WeightSource {
    /// Fails if `values`, the rows of `name` from `first_row` on, hold a NaN or an infinity.
    fn check_finite(&self, name: &str, first_row: usize, values: &[f32]) -> Result<(), Error>;
}

/// A model, read and found sound.
pub(super) struct Input<'m> {
    pub(super) weights: Box<dyn Weights + 'm>,
    pub(super) text: TextFiles,
    pub(super) imported: Imported,
    /// The bytes of `config.json`; none if there is no such file.
    pub(super) config: Vec<u8>,
}

impl Input<'_> {
    /// Reads a model directory.
    pub(super) fn read(model: &Path, options: &CompileOptions) -> Result<Self, Error> {
        for (flag, given) in [
            ("--config", options.config.is_some()),
            ("--dim", !options.dims.is_empty()),
            ("--family", options.family.is_some()),
            ("--graph", options.graph),
            ("--pooling", options.pooling.is_some()),
            ("--tokenizer", options.tokenizer.is_some()),
        ] {
            if given {
                let message = format!("is for ONNX files, and {} is a directory", model.display());
                return Err(Error::new(flag, message).help("leave it out: the directory has its own files"));
            }
        }
        if model.join("manifest.json").is_file() && !model.join("config.json").is_file() {
            return Err(Error::new(model.display(), "is an export, which is compiled already")
                .help("`dlxc run`, `dlxc eval` and `dlxc inspect` take it; compile the model that it was made from"));
        }
        let mut checkpoint = Checkpoint::open(model)?;
        // Its profile says how weights are stored.
        let export = super::is_export(options)?;
        if export {
            checkpoint = checkpoint.as_numbers();
        }
        let text = TextFiles::read(model)?;
        let mut imported = hf::import(&checkpoint, &options.source(hf::Source::new(&checkpoint, &text)))?;
        for (kind, count) in checkpoint.stored_kinds().into_iter().filter(|_| export) {
            imported
                .facts
                .note(format!("{count} weights that came as codes ({kind}) are read as numbers and rounded anew"));
        }
        check_text(model, &text, imported.vocab)?;
        let config = std::fs::read(model.join("config.json")).unwrap_or_default();
        Ok(Input { weights: Box::new(checkpoint), text, imported, config })
    }
}

impl Weights for Checkpoint {
    fn check_finite(&self, name: &str, first_row: usize, values: &[f32]) -> Result<(), Error> {
        Checkpoint::check_finite(self, name, first_row, values)
    }
}

impl Weights for OnnxWeights<'_> {
    fn check_finite(&self, name: &str, first_row: usize, values: &[f32]) -> Result<(), Error> {
        OnnxWeights::check_finite(self, name, first_row, values)
    }
}

impl WeightSource for Checkpoint {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        Checkpoint::read_rows(self, name, rows, out)
    }

    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        Checkpoint::read_bytes(self, name, rows, out)
    }

    fn read_codes(&self, name: &str, format: QuantFormat, rows: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        Checkpoint::read_codes(self, name, format, rows, out)
    }

    fn stored_as(&self, name: &str) -> Option<&str> {
        Checkpoint::stored_as(self, name)
    }

    fn release_rows(&self, name: &str, rows: Range<usize>) {
        Checkpoint::release_rows(self, name, rows);
    }
}

/// The tokenizer and template must work, every id must be a row of the embedding, and added tokens must have the ids that
/// the file gives them.
pub(super) fn check_text(model: &Path, text: &TextFiles, vocab: usize) -> Result<(), Error> {
    let path = model.join("tokenizer.json");
    let own = "use the tokenizer that belongs to these weights";
    let tokenizer = Tokenizer::from_bytes(&text.tokenizer).map_err(|e| Error::new(path.display(), e.to_string()))?;
    if let Some(id) = text.largest_id().filter(|id| usize::try_from(*id).map_or(true, |id| id >= vocab)) {
        let message = format!("has a token {id}, but the embedding has {vocab} rows");
        return Err(Error::new(path.display(), message).help(own));
    }
    for (token, id) in text.added_tokens() {
        if let Some(other) = tokenizer.token_id(&token).filter(|other| *other != id) {
            let message =
                format!("gives the added token {token:?} the id {id}, but its place in the vocabulary is {other}");
            return Err(Error::new(path.display(), message).help(own));
        }
    }
    if let Some(template) = &text.chat_template {
        let template = ChatTemplate::new(template, text.special_tokens.clone());
        template.map_err(|e| Error::new(format_args!("{}: chat template", model.display()), e.to_string()))?;
    }
    Ok(())
}

/// What the model is asked when a user says `prompt`: through its chat template, if it has one.
pub(super) fn chat(text: &TextFiles, prompt: &str) -> Result<String, Error> {
    let failed = |e: dlx_runtime::text::TextError| Error::new("chat template", e.to_string());
    let Some(template) = &text.chat_template else { return Ok(prompt.to_owned()) };
    let template = ChatTemplate::new(template, text.special_tokens.clone()).map_err(failed)?;
    template.render(&[Message::new("user", prompt)], &serde_json::Map::new()).map_err(failed)
}
