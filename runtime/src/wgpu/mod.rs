//! Running on a GPU through wgpu: Vulkan, Metal and DX12.

pub mod plan;
