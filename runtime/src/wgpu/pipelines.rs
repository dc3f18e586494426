//! Pipelines of a plan on one device: for each kernel the variant in use, compiled.
//!
//! Nothing is generated here: shaders, layouts and workgroup counts are the plan's.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::device::{Device, LoadError};
use super::plan::{Access, Kernel, Plan};
use super::replaced::{Replaced, needs};

/// See the module.
pub(super) struct Pipelines {
    layouts: BTreeMap<Vec<Access>, Layout>,
    /// By shader and layout: kernels of different shapes may share code.
    compiled: BTreeMap<(usize, Vec<Access>), wgpu::ComputePipeline>,
    /// Variant in use of each kernel.
    chosen: Vec<usize>,
}

struct Layout {
    group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

impl Pipelines {
    /// Takes the first variant of each kernel that the device has the features for and its driver compiles; what that
    /// leaves out is reported.
    pub(super) fn new(device: &Device, plan: &Plan) -> Result<(Self, Vec<Replaced>), LoadError> {
        let mut layouts = BTreeMap::new();
        device.guarded("pipeline layouts", || {
            for kernel in &plan.kernels {
                layouts.entry(kernel.bindings.clone()).or_insert_with(|| layout(device, &kernel.bindings));
            }
        })?;
        let mut chosen: Vec<usize> = plan.kernels.iter().map(|k| fastest(device, k)).collect();
        let mut pipelines = Pipelines { layouts, compiled: BTreeMap::new(), chosen: vec![0; chosen.len()] };
        let mut replaced = Vec::new();
        while let Err(error) = pipelines.choose(device, plan, &chosen) {
            let Failed { kernel, error } = error;
            let variants = &plan.kernels[kernel].variants;
            let old = chosen[kernel];
            if old + 1 == variants.len() || !matches!(error, LoadError::Device(_)) {
                return Err(error);
            }
            chosen[kernel] += 1;
            let role = &plan.kernels[kernel].role;
            let (now, instead_of) = (needs(&variants[old + 1]), needs(&variants[old]));
            // The driver's first complaint about a role stands for those about its other shapes.
            if replaced.iter().all(|r: &Replaced| r.role != *role || r.instead_of != instead_of) {
                replaced.push(Replaced { role: role.clone(), now, instead_of, reason: error.to_string() });
            }
        }
        Ok((pipelines, replaced))
    }

    /// Uses these variants, one per kernel, from now on.
    ///
    /// # Errors
    /// The first kernel that the driver does not compile; the old choice stays.
    pub(super) fn choose(&mut self, device: &Device, plan: &Plan, chosen: &[usize]) -> Result<(), Failed> {
        let mut missing = BTreeMap::new();
        for (i, (kernel, variant)) in plan.kernels.iter().zip(chosen).enumerate() {
            let key = (kernel.variants[*variant].shader, kernel.bindings.clone());
            if !self.compiled.contains_key(&key) {
                missing.entry(key).or_insert((i, kernel));
            }
        }
        let missing: Vec<_> = missing.into_iter().collect();
        // Drivers compile for milliseconds to seconds each; error scopes belong to a thread, so this may run on several.
        let made = missing.into_par_iter().map(|(key, (i, kernel))| {
            let what = format!("kernel {} {}", kernel.role, kernel.shape);
            let pipeline = device.guarded(&what, || self.compile(device, plan, &key, &what));
            pipeline.map(|pipeline| (key, pipeline)).map_err(|error| Failed { kernel: i, error })
        });
        // What has been compiled is kept, whatever became of the rest.
        let mut failed: Option<Failed> = None;
        for outcome in made.collect::<Vec<_>>() {
            match outcome {
                Ok((key, pipeline)) => drop(self.compiled.insert(key, pipeline)),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
        self.chosen = chosen.to_vec();
        Ok(())
    }

    /// Variants in use.
    pub(super) fn chosen(&self) -> &[usize] {
        &self.chosen
    }

    /// Pipeline and workgroups of a kernel.
    pub(super) fn get(&self, plan: &Plan, kernel: usize) -> Option<(&wgpu::ComputePipeline, [u32; 3])> {
        let kernel_plan = plan.kernels.get(kernel)?;
        let variant = kernel_plan.variants.get(*self.chosen.get(kernel)?)?;
        let pipeline = self.compiled.get(&(variant.shader, kernel_plan.bindings.clone()))?;
        Some((pipeline, variant.groups))
    }

    /// Layout of a kernel's bind group.
    pub(super) fn group_layout(&self, bindings: &[Access]) -> Option<&wgpu::BindGroupLayout> {
        Some(&self.layouts.get(bindings)?.group)
    }

    fn compile(
        &self,
        device: &Device,
        plan: &Plan,
        (shader, bindings): &(usize, Vec<Access>),
        label: &str,
    ) -> wgpu::ComputePipeline {
        let module = device.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(plan.shaders[*shader].as_str().into()),
        });
        device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: self.layouts.get(bindings).map(|l| &l.pipeline),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    }
}

/// A kernel that the driver does not compile.
pub(super) struct Failed {
    kernel: usize,
    pub(super) error: LoadError,
}

/// The first variant that the device has the features for; the last needs none.
pub(super) fn fastest(device: &Device, kernel: &Kernel) -> usize {
    let runs = |v: &super::plan::Variant| v.needs.iter().all(|f| device.features.contains(f));
    kernel.variants.iter().position(runs).unwrap_or(kernel.variants.len() - 1)
}

fn layout(device: &Device, bindings: &[Access]) -> Layout {
    let entries = bindings.iter().zip(0..).map(|(access, binding)| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match access {
                Access::Uniform => wgpu::BufferBindingType::Uniform,
                Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
            },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    });
    let entries: Vec<_> = entries.collect();
    let group = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
    let group = device.device.create_bind_group_layout(&group);
    let pipeline = device.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&group)],
        immediate_size: 0,
    });
    Layout { group, pipeline }
}
