//! Typed static-graph IR of the dlxc compiler.
#![warn(missing_docs)]

mod error;
mod types;

pub use error::Error;
pub use types::{DType, Dim, QuantFormat, Type};
