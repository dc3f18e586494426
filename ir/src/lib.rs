//! Typed static-graph IR of the dlxc compiler.
//!
//! A [`Module`] holds weights (expressions, not bytes), states (KV caches) and straight-line graphs. The text format
//! ([`parse()`], `Display`) round-trips; [`verify()`] states and checks every invariant; [`rewrite()`] is the one way to
//! change a graph; [`Evaluator`] says what each op means.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests expect may come from the system"))]
#![warn(missing_docs)]

mod arena;
mod attr;
mod error;
mod eval;
mod infer;
mod lex;
mod module;
mod op;
mod parse;
mod plan;
mod print;
pub mod quant;
mod rewrite;
mod types;
mod verify;
mod view;

pub use arena::{Arena, Id, Named, SideTable, StateId, ValueId, WeightId};
pub use attr::{Mask, Post};
pub use error::Error;
pub use eval::{Data, Evaluator, Source, Tensor};
pub use infer::{Arg, ArgKind, SHARD_ROWS, infer};
pub use module::{Graph, Module, Node, Operand, State, Value, Weight, WeightDef};
pub use op::{OPS, Op, OpInfo};
pub use parse::parse;
pub use plan::{SLOT_ALIGN, first_fit, plan_memory};
pub use rewrite::{Rewrite, Rewriter, rewrite};
pub use types::{DType, Dim, QuantFormat, Type};
pub use verify::{Verified, verify};
pub use view::dataflow;
