//! The dlxc compiler: checkpoints in, artifacts out.
//!
//! [`driver::compile`] is one compile from start to end; [`cli`] is the command line over it.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests expect may come from the system"))]

pub mod arrays;
pub mod cache;
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod driver;
pub mod explain;
pub mod export;
mod files;
pub mod hf;
pub mod onnx;
pub mod options;
pub mod quality;
pub mod report;
mod rewrite;
pub mod synth;
pub mod trace;
pub mod tune;
