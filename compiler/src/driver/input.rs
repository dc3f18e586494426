//! What a compile reads: weights, texts, and what the model's family makes of them.

use std::path::Path;

use dlx_ir::Error;
use dlx_runtime::text::{ChatTemplate, Tokenizer};

use crate::checkpoint::{Checkpoint, TextFiles};
use crate::hf::{self, Imported};
use crate::options::CompileOptions;

/// A model directory, read and found sound.
pub(super) struct Input {
    pub(super) checkpoint: Checkpoint,
    pub(super) text: TextFiles,
    pub(super) imported: Imported,
}

impl Input {
    pub(super) fn read(model: &Path, options: &CompileOptions) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(model)?;
        let text = TextFiles::read(model)?;
        let sampler = options.sampler.as_deref();
        let source = hf::Source { checkpoint: &checkpoint, text: &text, block: options.block, sampler };
        let imported = hf::import(&source)?;
        check_text(model, &text, imported.vocab)?;
        Ok(Input { checkpoint, text, imported })
    }
}

/// The tokenizer and template must work, every id must be a row of the embedding, and added tokens must have the ids that
/// the file gives them.
fn check_text(model: &Path, text: &TextFiles, vocab: usize) -> Result<(), Error> {
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
