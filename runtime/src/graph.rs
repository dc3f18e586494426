//! Models that are graphs of named inputs and outputs, such as encoders: loaded, chosen by the shapes of what they are given, and run.
//!
//! ```no_run
//! use dlx_runtime::graph::{GraphModel, Tensor, Tensors};
//!
//! let model = GraphModel::open("encoder.dlxa")?;
//! for entry in model.entries() {
//!     println!("{entry}"); // encode(input_ids: i64[1, 8], attention_mask: i64[1, 8]) -> (hidden: f32[1, 8, 384])
//! }
//! let ids = Tensor::i64(&[1, 8], vec![101, 7592, 1010, 2088, 999, 102, 0, 0]);
//! let mask = Tensor::i64(&[1, 8], vec![1, 1, 1, 1, 1, 1, 0, 0]);
//! let inputs = Tensors::from([("input_ids".into(), ids), ("attention_mask".into(), mask)]);
//! let outputs = model.run(&inputs)?;
//! let hidden = outputs["hidden"].floats()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An artifact holds one graph per set of shapes. Nodes are computed one after the other by the reference implementations of
//! their ops, products of matrices by loops of their own on the threads of the current rayon pool. Results do not depend on
//! the machine or on the number of threads.
//!
//! Not done here: text. Token ids come from a tokenizer such as [`crate::text::Tokenizer`]; [`crate::embed`] has both.

mod embeds;
mod error;
mod golden;
mod manifest;
mod model;
mod plan;
mod product;

pub use dlx_ir::{DType, Data, Tensor};
pub use embeds::{Embeds, Pooling};
pub(crate) use embeds::{IDS, MASK, length};
pub use error::GraphError;
pub use golden::GraphVectors;
pub use manifest::{GraphManifest, GraphMemory, Kind, Port, Signature};
pub use model::{GraphModel, GraphOptions, Tensors, compute, read_graph_manifest};

#[cfg(test)]
mod tests;
