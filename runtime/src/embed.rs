//! Embeddings of texts: a graph artifact that holds its tokenizer, and says how hidden states become one vector.
//!
//! Invariant: nothing is guessed. Pooling and normalization stand in the manifest, put there by whoever compiled the model;
//! an artifact without them is no embedder. Padding is masked and never pooled. A text that no graph holds is refused, not
//! cut.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::artifact::{self, Artifact};
use crate::graph::{
    Embeds, GraphError, GraphModel, GraphOptions, IDS, MASK, Pooling, Tensor, Tensors, length, read_graph_manifest,
};
use crate::text::{TextError, Tokenizer};

/// A text without an embedding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The graphs cannot be loaded or run.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The artifact does not say how, or says what its graphs do not fit.
    #[error("{path}: makes no embeddings: {why}; compile it with --pooling")]
    NoEmbedder {
        /// The file.
        path: Box<Path>,
        /// Why.
        why: String,
    },
    /// A text that no graph holds.
    #[error("the text has {tokens} tokens, but the model takes at most {longest}")]
    TooLong {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of the longest one that can be embedded.
        longest: usize,
    },
    /// Nothing to embed.
    #[error("the text has no tokens")]
    Empty,
    /// A token that is none of the tokenizer's.
    #[error("there is no token {0}")]
    NoToken(i32),
}

/// Makes embeddings. Share it between threads as you like: a run changes nothing.
pub struct Embedder {
    model: GraphModel,
    tokenizer: Tokenizer,
    embeds: Embeds,
    width: usize,
}

impl Embedder {
    /// Loads an artifact.
    ///
    /// # Errors
    /// As [`GraphModel::load`], and [`EmbedError::NoEmbedder`] or a damaged tokenizer.
    pub fn load(artifact: &Artifact, options: &GraphOptions) -> Result<Self, EmbedError> {
        let no = |why: String| EmbedError::NoEmbedder { path: artifact.path().into(), why };
        let manifest = read_graph_manifest(artifact)?;
        let embeds = manifest.embeds.ok_or_else(|| no("the artifact does not say how".into()))?;
        let width = embeds.width(&manifest.entries).map_err(no)?;
        let text = artifact.text(artifact::TOKENIZER).map_err(GraphError::from)?;
        let tokenizer = Tokenizer::from_bytes(text.as_bytes())?;
        Ok(Self { model: GraphModel::load(artifact, options)?, tokenizer, embeds, width })
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How vectors are made.
    pub fn embeds(&self) -> &Embeds {
        &self.embeds
    }

    /// Tokens of the longest text that can be embedded, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.model.entries().iter().map(length).max().unwrap_or(0)
    }

    /// Token ids of a text, with the special tokens that the tokenizer frames it with.
    ///
    /// # Errors
    /// [`EmbedError::Text`].
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, EmbedError> {
        Ok(self.tokenizer.encode_framed(text)?)
    }

    /// The embedding of a text in token ids, [`Embedder::width`] numbers. Setting `cancel` stops it.
    ///
    /// # Errors
    /// A text that no graph holds, or one without tokens; whatever the graph reports.
    pub fn embed(&self, ids: &[i32], cancel: &AtomicBool) -> Result<Vec<f32>, EmbedError> {
        self.check(ids)?;
        // The shortest graph that holds the text; what it is longer is padding.
        let fits = self.model.entries().iter().filter(|entry| length(entry) >= ids.len());
        let entry = fits.min_by_key(|entry| length(entry)).ok_or_else(|| self.too_long(ids))?;
        let t = length(entry);
        let padded = |values: &mut dyn Iterator<Item = i64>| {
            let mut row: Vec<i64> = values.collect();
            row.resize(t, 0);
            Tensor::i64(&[1, t], row)
        };
        let inputs: Tensors = entry
            .inputs
            .iter()
            .map(|input| {
                let tensor = match input.name.as_str() {
                    IDS => padded(&mut ids.iter().map(|id| i64::from(*id))),
                    MASK => padded(&mut ids.iter().map(|_| 1)),
                    _ => padded(&mut std::iter::empty()),
                };
                (input.name.clone(), tensor)
            })
            .collect();
        let outputs = self.model.run_until(&inputs, cancel)?;
        let hidden = outputs.get(&self.embeds.output).and_then(|states| states.floats().ok()).unwrap_or_default();
        Ok(self.pooled(hidden, ids.len()))
    }

    /// Whether a text in token ids can be embedded.
    ///
    /// # Errors
    /// [`EmbedError::Empty`], [`EmbedError::NoToken`] or [`EmbedError::TooLong`].
    pub fn check(&self, ids: &[i32]) -> Result<(), EmbedError> {
        let vocab = self.tokenizer.vocab_size();
        let unknown = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab));
        match unknown {
            _ if ids.is_empty() => Err(EmbedError::Empty),
            Some(&id) => Err(EmbedError::NoToken(id)),
            None if ids.len() > self.max_tokens() => Err(self.too_long(ids)),
            None => Ok(()),
        }
    }

    fn too_long(&self, ids: &[i32]) -> EmbedError {
        EmbedError::TooLong { tokens: ids.len(), longest: self.max_tokens() }
    }

    /// The vector of a text of `tokens` tokens. Sums run in double precision, in order.
    fn pooled(&self, hidden: &[f32], tokens: usize) -> Vec<f32> {
        let states = || hidden.chunks_exact(self.width).take(tokens);
        let mut vector: Vec<f64> = vec![0.0; self.width];
        let chosen: Vec<&[f32]> = match self.embeds.pooling {
            Pooling::Mean => states().collect(),
            Pooling::Cls => states().next().into_iter().collect(),
            Pooling::Last => states().next_back().into_iter().collect(),
        };
        for state in &chosen {
            vector.iter_mut().zip(*state).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let norm = vector.iter().map(|v| v * v).sum::<f64>();
        let scale = if self.embeds.normalize { norm.sqrt().max(1e-12) } else { chosen.len().max(1) as f64 };
        #[allow(clippy::cast_possible_truncation, reason = "hidden states are in single precision")]
        vector.into_iter().map(|v| (v / scale) as f32).collect()
    }
}
