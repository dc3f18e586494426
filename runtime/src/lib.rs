//! Runs dlxc artifacts.
#![warn(missing_docs)]

pub mod cpu;
pub mod exec;
