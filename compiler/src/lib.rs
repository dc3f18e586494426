//! The dlxc compiler: checkpoints in, artifacts out.

pub mod checkpoint;
pub mod hf;
pub mod cli;
pub mod options;
pub mod synth;
