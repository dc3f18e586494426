//! Test support that several test programs share: golden data and a reference executor.

pub mod golden;
pub mod naive;
