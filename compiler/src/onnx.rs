//! ONNX files: read and checked, imported as portable graphs, and raised to generators.
//!
//! [`OnnxModel::open`] reads and checks without knowing what any operator means; [`import()`] knows that, and [`generator()`]
//! what a generator's graph is. Invariant: no byte of a file can cause a panic, or an allocation that the file does not
//! justify; what is wrong is said with the name of the file, tensor or node.

mod bind;
mod budget;
mod build;
mod call;
mod convert;
mod elem;
mod external;
mod file;
mod generator;
mod graph;
mod header;
mod import;
mod inline;
mod ops;
mod outlook;
#[rustfmt::skip]
pub mod proto;
mod scope;
mod spec;
mod stored;
mod summary;
mod tensor;
mod value;
pub mod weights;

pub use bind::shapes;
pub use elem::ElemType;
pub use file::OnnxModel;
pub use generator::{Generator, Plain, RAISE, RAISE_GRAPHS, generator, plain};
pub use graph::{DimText, Graph, Node, ValueInfo};
pub use import::{Binding, Import, fold, import};
pub use ops::supported;
pub use outlook::Outlook;
pub use stored::{Sources, Stored};
pub use summary::Summary;
pub use tensor::RawTensor;
pub use value::Value;

#[cfg(test)]
mod tests;
