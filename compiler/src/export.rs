//! Export: a generator as ONNX files whose host keeps the cache, for NPUs and other ONNX runtimes.
//!
//! An export is a directory: one graph per entry (`step_M`, `head_R`), the weights that all share, embeddings for the host, the
//! tokenizer, and a manifest that says what each input and output is (`dlx_runtime::host`, which also reads it). What the graphs
//! look like is decided by the passes
//! `externalize-kv` and `decompose`; how products with weights are stored by a [`Profile`].

mod arguments;
mod calibrate;
mod codes;
mod emulate;
mod lint;
mod profile;
mod proto;
mod run;
mod soc;
mod store;
mod tokens;
mod view;
mod writer;

pub use arguments::Embeddings;
pub use calibrate::{Product, Range, Ranges, calibrate};
pub use emulate::Emulator;
pub use lint::{Finding, Kind, RULES, Rule, lint};
pub use profile::{Profile, QNN, Weights, onnx, qnn};
pub use run::{Observe, run};
pub use soc::{SOCS, Soc, soc};
pub use store::{Store, WEIGHTS};
pub use tokens::{RATIOS, Sequence, masked, random, read};
pub use writer::{Common, OPSET, write};
