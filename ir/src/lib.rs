//! Typed static-graph IR of the dlxc compiler.
//!
//! A [`Module`] holds weights (expressions, not bytes), states (KV caches) and straight-line graphs. The text format
//! ([`parse()`], `Display`) round-trips; [`verify()`] states and checks every invariant; [`rewrite()`] is the one way to
//! change a graph; [`Evaluator`] says what each op means.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests expect may come from the system"))]
#![warn(missing_docs)]

mod arena;
mod attr;
mod bytes;
mod cost;
mod entry;
mod error;
mod eval;
mod float;
mod infer;
mod kinds;
pub mod layout;
mod lex;
mod literal;
mod module;
mod name;
mod op;
mod origin;
mod parse;
mod plan;
mod print;
mod prune;
pub mod quant;
mod rewrite;
mod spans;
mod types;
mod verify;
mod view;

pub use arena::{Arena, Id, Named, SideTable, StateId, ValueId, WeightId};
pub use attr::{Mask, Post};
pub use bytes::held_bytes;
pub use cost::{Cost, attended, matrices, weight_bytes};
pub use entry::{Entry, EntryKind, first_layer, hidden_state};
pub use error::Error;
pub use eval::{Contents, Data, Evaluator, Source, Tensor, compute};
pub use infer::{Arg, ArgKind, SHARD_ROWS, infer};
pub use kinds::{Binary, Compare, Norm, Reduce, Scatter, Unary};
pub use literal::MAX_LITERAL;
pub use module::{Graph, Module, Node, Operand, State, Value, Weight, WeightDef};
pub use op::{Level, OPS, Op, OpInfo};
pub use origin::{MAX_ORIGIN, Origin};
pub use parse::parse;
pub use plan::{SLOT_ALIGN, first_fit, live_ranges, plan_memory};
pub use rewrite::{Rewrite, Rewriter, Rewritten, rewrite};
pub use spans::{MAX_SPANS, SPAN_FIELDS, SpanRows, spans_type};
pub use types::{DType, Dim, Grid, QuantFormat, Type};
pub use verify::{VerifiedModule, verify};
pub use view::dataflow;
