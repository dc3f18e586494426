//! What the compiler knows about devices: which ops each runs, which layouts it reads, and how weights become bytes.
//!
//! Packing itself lives in the runtime beside the kernels that read it; this crate streams weights through it.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests expect may come from the system"))]
#![warn(missing_docs)]

pub mod artifact_writer;
mod cpu;
mod emit;
pub mod wgpu;

use dlx_ir::{DType, Error, Op, Verified};
use dlx_runtime::wgpu::plan::{Plan, Profile};

pub use emit::{Emission, WeightSource, emit};

/// A device that artifacts are compiled for.
pub struct Target {
    /// Name in `--target` and in the program's section name.
    pub name: &'static str,
    /// What it runs on and how.
    pub doc: &'static str,
    /// Parameters of the `lower` pass: the layouts that the kernels read.
    pub lowering: &'static str,
    /// Whether the executor runs an op.
    pub supports: fn(&Op) -> bool,
    /// Whether kernels read matrices of an element type.
    pub stores: fn(DType) -> bool,
    /// Makes the plan that its executor runs, for targets that have one.
    pub plan: Option<MakePlan>,
}

/// Plans a program whose weights are stored, for devices with at least some limits.
pub type MakePlan = fn(Verified<'_>, &Profile) -> Result<Plan, Error>;

/// Every target, alphabetically.
pub const TARGETS: &[Target] = &[cpu::TARGET, wgpu::TARGET];

impl Target {
    /// Checks that every node and every matrix can run on the target.
    ///
    /// # Errors
    /// One error per node that cannot; the place is the node's text.
    pub fn check(&self, module: Verified<'_>) -> Result<(), Vec<Error>> {
        let module = module.module();
        let mut errors = Vec::new();
        for graph in &module.graphs {
            for node in &graph.nodes {
                let dtypes = node.inputs.iter().filter_map(|i| i.weight()).map(|w| module.weights[w].ty.dtype);
                let refused = dtypes.into_iter().find(|d| !(self.stores)(*d));
                let message = match refused {
                    _ if !(self.supports)(&node.op) => {
                        format!("target {} does not run `{}`", self.name, node.op.name())
                    }
                    Some(dtype) => format!("target {} does not read weights of type {dtype}", self.name),
                    None => continue,
                };
                let help = "a pass that should have replaced it did not apply; look at --dump DIR";
                errors.push(Error::new(module.node_text(graph, node), message).help(help));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}
