//! Test support that several test programs share: golden data and a reference executor.

pub mod compiled;
pub mod golden;
pub mod naive;
