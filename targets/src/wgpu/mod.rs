//! The wgpu target: a plan of WGSL kernels with every size a constant, for Vulkan, Metal and DirectX 12.
//!
//! [`plan`] turns a program whose weights are stored into a [`dlx_runtime::wgpu::plan::Plan`]; the runtime generates
//! nothing. `lower` says which kernels an op becomes, `product`, `attention` and `kernels` describe them, `source`
//! writes them from the templates in `shaders/`, `memory` places what they compute. Every shader is validated here, with
//! exactly the features of its variant.

mod attention;
mod kernels;
mod lower;
mod memory;
mod plan;
mod product;
mod source;
#[cfg(test)]
mod tests;

use dlx_ir::{DType, Error, VerifiedModule};
use dlx_runtime::wgpu::plan::{Access, Profile};

use crate::{Product, Settings, Target, pipeline};
use source::{Features, Source};

pub use plan::plan;

const LOWERING: &str = "pack=n16, keys=wgpu.rows, values=wgpu.rows";

pub(crate) const TARGET: Target = Target {
    name: "wgpu",
    doc: "WGSL kernels for GPUs (Vulkan, Metal, DirectX 12), generated at compile time; int8 activations against int4/int8 weights",
    lowering: LOWERING,
    pipeline: |settings| pipeline::entries(settings, LOWERING, Some(profile(&settings.profile)?.max_binding)),
    supports: |op| (crate::cpu::TARGET.supports)(op),
    stores: |dtype: DType| (crate::cpu::TARGET.stores)(dtype),
    product,
};

fn product(program: &VerifiedModule, settings: &Settings) -> Result<Product, Error> {
    let plan = Box::new(plan(program, &profile(&settings.profile)?)?);
    let bytes = serde_json::to_vec(&*plan).map_err(|e| Error::new("wgpu plan", e.to_string()))?;
    Ok(Product::Planned { plan, bytes })
}

/// The limits of that name, or `NAME:BYTES` for devices whose bindings hold fewer bytes.
///
/// # Errors
/// There are none.
pub fn profile(name: &str) -> Result<Profile, Error> {
    let profiles = profiles();
    if let Some(profile) = profiles.iter().find(|p| p.name == name) {
        return Ok(profile.clone());
    }
    if let Some((base, bytes)) = name.split_once(':') {
        let base = profiles.iter().find(|p| p.name == base);
        let bytes = bytes.parse().ok().filter(|b| *b >= 4096 && *b % 256 == 0);
        if let (Some(base), Some(max_binding)) = (base, bytes) {
            return Ok(Profile { name: name.into(), max_binding, ..base.clone() });
        }
    }
    let known: Vec<_> = profiles.iter().map(|p| p.name.as_str()).collect();
    let help = format!("use one of {}, or NAME:BYTES for bindings of at most that many bytes", known.join(", "));
    Err(Error::new("--profile", format!("there is no profile `{name}`")).help(help))
}

/// Limits that a program can be compiled for, alphabetically.
fn profiles() -> Vec<Profile> {
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
    variants: Vec<(Features, Source)>,
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
        let variants: Vec<_> = tiers.iter().map(|&features| (features, source(features))).collect();
        let bindings = variants.last().map(|(_, source)| source.bindings()).unwrap_or_default();
        Job { role, shape, groups, bindings, variants }
    }
}
