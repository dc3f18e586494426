//! wgpu: plans that are compiled ahead of time, and the executor that runs them on Vulkan, Metal and DirectX 12.
//!
//! The executor is behind the cargo feature `wgpu`; the types of a plan are always there, since the compiler writes them.

mod check;
#[cfg(feature = "wgpu")]
mod device;
#[cfg(feature = "wgpu")]
mod executor;
#[cfg(feature = "wgpu")]
mod fallback;
#[cfg(feature = "wgpu")]
mod pipelines;
pub mod plan;
#[cfg(feature = "wgpu")]
mod probes;
#[cfg(feature = "wgpu")]
mod replaced;
#[cfg(feature = "wgpu")]
mod weights;

#[cfg(feature = "wgpu")]
pub use device::{Adapter, LoadError, adapters};
#[cfg(feature = "wgpu")]
pub use executor::{Counters, WgpuExecutor, WgpuOptions};
#[cfg(feature = "wgpu")]
pub use replaced::Replaced;
