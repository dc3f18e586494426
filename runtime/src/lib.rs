//! Runs dlxc artifacts: executors, decoding, text and sessions.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests expect may come from the system"))]
#![warn(missing_docs)]

mod agree;
pub mod artifact;
pub mod batch;
pub mod constrain;
pub mod cpu;
pub mod decode;
pub mod embed;
pub mod exec;
pub mod graph;
pub mod host;
pub mod manifest;
pub mod mapped;
pub mod memory;
mod model;
pub mod policies;
mod probe;
pub mod selftest;
pub mod session;
pub mod text;
pub mod trace;
pub mod wgpu;

#[cfg(feature = "wgpu")]
pub use model::load_wgpu;
pub use model::{
    AnyExecutor, LoadOptions, Model, ModelError, TextSection, certify, load_cpu, load_executor, read_manifest,
    read_policies,
};
