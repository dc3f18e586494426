//! Runs dlxc artifacts: executors, decoding, text and sessions.
#![warn(missing_docs)]

pub mod artifact;
pub mod cpu;
pub mod decode;
pub mod exec;
pub mod manifest;
pub mod mapped;
mod model;
pub mod selftest;
pub mod session;
pub mod text;
pub mod wgpu;

pub use model::{LoadOptions, Model, ModelError, TextSection, load_executor, read_manifest};
