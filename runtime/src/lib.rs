//! Runs dlxc artifacts.
#![warn(missing_docs)]

pub mod artifact;
pub mod exec;
pub mod mapped;
