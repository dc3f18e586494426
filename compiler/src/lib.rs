//! The dlxc compiler: checkpoints in, artifacts out.

pub mod checkpoint;
pub mod cli;
pub mod driver;
pub mod hf;
pub mod options;
pub mod synth;
