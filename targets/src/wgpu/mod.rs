//! The wgpu target: a plan of WGSL kernels with every size a constant, for Vulkan, Metal and DirectX 12.
//!
//! [`plan`] turns a program whose weights are stored into a [`dlx_runtime::wgpu::plan::Plan`]; the runtime generates
//! nothing. `lower` says which kernels an op becomes, `product`, `attention` and `kernels` write them, `memory` places
//! what they compute. Every shader is validated here, with exactly the features of its variant.

mod attention;
mod kernels;
mod lower;
mod memory;
mod plan;
mod product;
mod source;
#[cfg(test)]
mod tests;

use dlx_ir::DType;
use dlx_runtime::wgpu::plan::{Access, Profile};

use crate::Target;
use source::{Features, Source};

pub use plan::plan;

pub(crate) const TARGET: Target = Target {
    name: "wgpu",
    doc: "WGSL kernels for GPUs (Vulkan, Metal, DirectX 12), generated at compile time; int8 activations against int4/int8 weights",
    lowering: "pack=n16, keys=wgpu.rows, values=wgpu.rows",
    supports: |op| (crate::cpu::TARGET.supports)(op),
    stores: |dtype: DType| (crate::cpu::TARGET.stores)(dtype),
    plan: Some(plan),
};

/// Limits that a program can be compiled for, alphabetically.
#[must_use]
pub fn profiles() -> Vec<Profile> {
    let plain = Profile::plain();
    let desktop = Profile {
        name: "desktop".into(),
        max_binding: 1 << 30,
        max_buffer: 1 << 30,
        max_invocations: 1024,
        max_workgroup_storage: 32 << 10,
        ..plain.clone()
    };
    vec![desktop, plain]
}

/// A kernel as generated: its variants, fastest first, all with the same bindings.
struct Job {
    role: &'static str,
    shape: String,
    /// Workgroups per dimension.
    groups: [usize; 3],
    bindings: Vec<Access>,
    variants: Vec<(Features, String)>,
}

impl Job {
    /// One variant per tier; `tiers` ends with the one that needs nothing.
    fn new(
        role: &'static str,
        shape: String,
        groups: [usize; 3],
        tiers: &[Features],
        source: impl Fn(Features) -> Source,
    ) -> Self {
        let mut bindings = Vec::new();
        let mut variants = Vec::new();
        for &features in tiers {
            let (text, accesses) = source(features).finish();
            bindings = accesses;
            variants.push((features, text));
        }
        Job { role, shape, groups, bindings, variants }
    }
}
