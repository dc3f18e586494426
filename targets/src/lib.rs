//! What the compiler knows about devices: which passes make a program for each, which ops it runs, and what it is given.
//!
//! Invariant: how a module is rewritten is the passes' business, which passes run is a target's, and so are the bytes that
//! only its executor reads. Packing itself lives in the runtime beside the kernels that read it; this crate streams
//! weights through it.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "what tests expect may come from the system"))]
#![warn(missing_docs)]

pub mod artifact_writer;
mod cpu;
mod emit;
mod emit_plain;
mod pipeline;
pub mod wgpu;

use dlx_ir::{DType, Error, Op, VerifiedModule};
use dlx_runtime::memory::Certificate;
use dlx_runtime::memory::count::{Held, Usage};
use dlx_runtime::wgpu::plan::Plan;

pub use emit::{CodeRows, Emission, Placed, Recoded, WeightSource, emit, place};
pub use emit_plain::{LITERAL_IN_TEXT, emit_plain, weight};
pub use pipeline::Settings;

/// A device that artifacts are compiled for.
pub struct Target {
    /// Name in `--target` and in the program's section name.
    pub name: &'static str,
    /// What it runs on and how.
    pub doc: &'static str,
    /// Parameters of the `lower` pass: the layouts that the kernels read.
    pub lowering: &'static str,
    /// Its passes, from an imported module to one that can be emitted.
    pub pipeline: fn(&Settings) -> Result<String, Error>,
    /// Whether the executor runs an op.
    pub supports: fn(&Op) -> bool,
    /// Whether kernels read matrices of an element type.
    pub stores: fn(DType) -> bool,
    /// What it is given, from a program whose weights are stored.
    pub product: fn(&VerifiedModule, &Settings) -> Result<Product, Error>,
}

/// What an executor is given besides the weights.
#[derive(Debug)]
pub enum Product {
    /// The program, and nothing else; loading decides what it needs.
    Program,
    /// The program and a plan.
    Planned {
        /// The plan.
        plan: Box<Plan>,
        /// Contents of the plan's section.
        bytes: Vec<u8>,
    },
}

impl Product {
    /// Contents of the plan's section; none if there is no plan.
    pub fn plan_bytes(&self) -> Option<&[u8]> {
        if let Product::Planned { bytes, .. } = self { Some(bytes) } else { None }
    }

    /// What running it takes at most.
    ///
    /// # Errors
    /// A program that the executor does not run.
    pub fn certificate(&self, program: &VerifiedModule, held: &Held, usage: &Usage) -> Result<Certificate, Error> {
        match self {
            Product::Program => {
                Certificate::of_cpu(program, held, usage).map_err(|e| Error::new(&program.name, e.to_string()))
            }
            Product::Planned { plan, .. } => Ok(Certificate::of_wgpu(plan, held, usage)),
        }
    }
}

/// Every target, alphabetically.
pub const TARGETS: &[Target] = &[cpu::TARGET, wgpu::TARGET];

impl Target {
    /// The pass that lays weights and caches out for this target. Weights that have its layout already stay what they
    /// are, so a stored program of another target that reads the same weights becomes one of this target.
    pub fn lower_pass(&self) -> String {
        format!("lower{{{}}}", self.lowering)
    }

    /// Checks that every node and every matrix can run on the target.
    ///
    /// # Errors
    /// One error per node that cannot; the place is the node's text.
    pub fn check(&self, module: &VerifiedModule) -> Result<(), Vec<Error>> {
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
