//! Test support that several test programs share: golden data and a reference executor.
#![allow(clippy::disallowed_methods, reason = "an independent implementation takes the system's mathematics")]

pub mod compiled;
pub mod golden;
pub mod naive;
pub mod nodes;
pub mod onnx;
