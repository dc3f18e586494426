//! Runs dlxc artifacts: executors, decoding, text and sessions.
#![warn(missing_docs)]

pub mod decode;
pub mod exec;
pub mod session;
pub mod text;
