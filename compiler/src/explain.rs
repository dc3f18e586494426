//! Where the time of a step goes: counts of a program, limits of a machine, and what follows from both.
//!
//! Invariant: a prediction is made of counts and limits alone ([`predict`]); limits are measured without any model
//! ([`measure()`]) and kept ([`Machine`]). What a token costs is what the decoder itself asks for ([`block`]).

mod change;
mod entry;
mod limits;
mod measure;
mod predict;
mod tokens;

pub use change::{Change, TokenCost, changes, tokens};
pub use entry::{Entry, Line, seconds};
pub use limits::{Limits, Machine};
pub(crate) use measure::finite_weights;
pub use measure::measure;
pub use predict::{Bound, Call, Estimate, Program, Work, changed};
pub use tokens::{Answers, Asked, Block, Sizes, block};
