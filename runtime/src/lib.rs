//! Runs dlxc artifacts.
#![warn(missing_docs)]

pub mod exec;
