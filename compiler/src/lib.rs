//! The dlxc compiler: checkpoints in, artifacts out.

pub mod checkpoint;
pub mod synth;
