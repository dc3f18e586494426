//! Typed static-graph IR of the dlxc compiler.
#![warn(missing_docs)]

mod types;

pub use types::{DType, Dim, QuantFormat, Type};
