//! Checks of what a compile does to a module's meaning: run it at any stage, compare two stages, find the pass that broke it.
//!
//! Everything stands on one thing: a module at any stage runs on seeded inputs, and the values that it computes have
//! names that passes keep ([`probe`]). Two stages are compared value by value ([`compare`]), within what a pass says that
//! it keeps. [`each`] does so after every pass of a pipeline, [`bisect`] finds the first pass that broke something, and
//! [`reduce`] the smallest module on which it still does. [`host`] feeds steps whose caches are outside.
//!
//! Two builds are compared by their dumps ([`builds`]), or by anything else that they made ([`built`], [`diff`]); kernels
//! by what the variants of each compute on this machine ([`variants`]).

pub mod against;
pub mod bisect;
pub mod builds;
pub mod built;
pub mod call;
pub mod compare;
pub mod cut;
pub mod device;
pub mod diff;
pub mod each;
pub mod host;
pub mod probe;
pub mod reduce;
pub mod source;
pub mod variants;
