//! Passes: functions from module to module, and the pipeline that runs and verifies them.
//!
//! Invariant: a pass sees neither weight bytes nor the name of a target; what it needs to know comes as a parameter.
#![warn(missing_docs)]

mod block_attention;
mod cache_kv;
mod cse;
mod dce;
mod decompose;
mod externalize_kv;
mod fold;
mod fuse_linears;
mod fuse_norm;
mod fuse_residual;
mod fuse_rope;
mod fuse_swiglu;
mod hoist_weights;
mod lower;
mod memory;
mod pipeline;
mod quantize;
mod raise;
mod shard_weights;
mod specialize;
mod split_head;

pub use pipeline::{Failure, Keeps, Note, Params, PassInfo, Report, Step, parse_pipeline, run_pipeline};

/// Every pass, alphabetically.
pub const PASSES: &[PassInfo] = &[
    block_attention::PASS,
    cache_kv::PASS,
    cse::PASS,
    dce::PASS,
    decompose::PASS,
    externalize_kv::PASS,
    fold::PASS,
    fuse_linears::PASS,
    fuse_norm::PASS,
    fuse_residual::PASS,
    fuse_rope::PASS,
    fuse_swiglu::PASS,
    hoist_weights::PASS,
    lower::PASS,
    memory::PASS,
    quantize::PASS,
    raise::activation::PASS,
    raise::attention::PASS,
    raise::norm::PASS,
    raise::rope::PASS,
    raise::rows::PASS,
    shard_weights::PASS,
    specialize::PASS,
    split_head::PASS,
];

use dlx_ir::{Error, Id, Module, Node, Operand, Rewrite, Rewriter, WeightId, rewrite};

/// Rewrites every graph of a module and adds up the changes.
fn rewrite_all(
    module: &mut Module,
    decide: &mut dyn FnMut(&mut Rewriter<'_>, &Node) -> Result<Rewrite, Error>,
) -> Result<usize, Error> {
    (0..module.graphs.len()).map(|g| Ok(rewrite(module, g, decide)?.changes)).sum()
}

/// Points every node that reads weight `i` to `map[i]`; weights beyond the map keep their readers.
fn replace_weights(module: &mut Module, map: &[WeightId]) {
    for input in module.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
        if let Operand::Weight(w) = input {
            *w = map.get(w.index()).copied().unwrap_or(*w);
        }
    }
}
