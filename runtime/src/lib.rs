//! Runs dlxc artifacts: executors, decoding, text and sessions.
#![warn(missing_docs)]

pub mod artifact;
pub mod decode;
pub mod cpu;
pub mod exec;
pub mod mapped;
pub mod text;
