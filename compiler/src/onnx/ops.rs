//! The ONNX ops that are imported: a table of their names, and a file per group.
//!
//! A handler turns one node into ops of the portable level; what it does not mention of an older or newer version of the op
//! is the same in all of them.

mod attention;
mod choose;
mod contrib;
mod control;
mod conv;
mod elementwise;
mod flex;
mod grid;
mod index;
mod linear_attention;
mod lone;
mod loss;
mod ml;
mod norm;
mod pad;
mod pool;
mod product;
mod qlinear;
mod quant;
mod reduce;
mod refused;
mod resize;
mod rnn;
mod roi;
mod sample;
mod shape;
mod signal;
mod train;
mod window;

use super::call::Call;
use super::import::{Importer, Scope};
use super::value::Val;

/// Imports one node.
pub(super) type Handler = fn(&mut Importer<'_>, &Call<'_>, &Scope<'_>) -> Result<Vec<Val>, String>;

/// One row: domain, name, handler.
pub(super) type Row = (&'static str, &'static str, Handler);

/// ONNX Runtime's own operator set.
pub(super) const MS: &str = "com.microsoft";

/// The groups of ops.
const GROUPS: &[&[&[Row]]] = &[
    attention::ROWS,
    choose::ROWS,
    contrib::ROWS,
    control::ROWS,
    conv::ROWS,
    elementwise::ROWS,
    flex::ROWS,
    grid::ROWS,
    index::ROWS,
    linear_attention::ROWS,
    loss::ROWS,
    lone::ROWS,
    ml::ROWS,
    norm::ROWS,
    pool::ROWS,
    product::ROWS,
    qlinear::ROWS,
    quant::ROWS,
    reduce::ROWS,
    resize::ROWS,
    rnn::ROWS,
    roi::ROWS,
    shape::ROWS,
    signal::ROWS,
    train::ROWS,
];

/// The handler of an op.
pub(super) fn find(domain: &str, name: &str) -> Option<Handler> {
    rows().find(|(d, n, _)| *d == domain && *n == name).map(|(_, _, run)| *run)
}

/// Why an op without a handler is refused, where more can be said than that it is not supported.
pub(super) fn refusal(domain: &str, name: &str) -> Option<&'static str> {
    refused::reason(domain, name)
}

/// Every op that is imported, as domain and name.
pub fn supported() -> impl Iterator<Item = (&'static str, &'static str)> {
    rows().map(|(domain, name, _)| (*domain, *name))
}

fn rows() -> impl Iterator<Item = &'static Row> {
    GROUPS.iter().flat_map(|group| group.iter()).flat_map(|rows| rows.iter())
}

/// A result of one value.
fn one(value: Result<Val, String>) -> Result<Vec<Val>, String> {
    value.map(|v| vec![v])
}
