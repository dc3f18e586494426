//! The IR's ops and the model families a second time, as burn tensor operations: an oracle that shares no arithmetic
//! with the evaluator, the kernels or the importer that it checks.
//!
//! Invariant: an oracle is written from the op table's text and from the families' definition. Floats are burn's f64, so
//! what differs is the rounding of the side under test, and tolerances can be tight. What burn does not promise (the
//! order of equals in a sort, indices that are scattered to twice) is not asked of it, but composed of what it does.

pub mod cases;
pub mod compare;
pub mod decoder;
pub mod ops;
pub mod states;
pub mod value;
pub mod weights;
