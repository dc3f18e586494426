//! Which variant of which kernel is wrong on this machine: an artifact's step runs in every variant that runs here.
//!
//! On a CPU all instruction sets give the same bits, so each is held to the scalar kernels, value by value. Variants for a
//! graphics device add in other orders; the fastest are compared with the plain ones (those that need no feature), or with the
//! CPU if the artifact has a program for it. Of the first value that differs, each kernel role is then tried alone.

use std::path::Path;

use dlx_ir::{Error, VerifiedModule};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::{CpuOptions, Isa};
use dlx_runtime::exec::Executor;
use dlx_runtime::selftest::SelfTest;
use dlx_runtime::wgpu::WgpuExecutor;
use dlx_runtime::{LoadOptions, load_cpu, load_wgpu};
use serde::Serialize;

use super::built::{self, Values, program, step_rows};
use super::compare::distance;
use crate::trace::sources;

/// Error that variants for a graphics device may differ by, as RMS over RMS: what rounding to other int8 codes adds up to.
pub const VARIANTS: f32 = 0.1;
/// Most rows of the step that runs.
const ROWS: usize = 16;

/// The first value that a kernel computes wrongly.
#[derive(Clone, Debug, Serialize)]
pub struct Wrong {
    /// Its name.
    pub value: String,
    /// The CPU or the graphics device.
    pub device: String,
    /// The node that computes it.
    pub node: String,
    /// The checkpoint's tensors that it reads.
    pub sources: Vec<String>,
    /// What was tried.
    pub variants: Vec<Tried>,
}

/// A variant of a kernel role.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// The role, such as `linear`; on a CPU the op.
    pub role: String,
    /// What it needs, or its instruction set.
    pub variant: String,
    /// RMS of the difference over RMS of the value.
    pub error: f32,
    /// Whether that is no more than may be.
    pub right: bool,
}

/// Runs a step of the artifact in all variants; nothing where they agree.
///
/// # Errors
/// An artifact that does not load, or a device that is not there.
pub fn wrong(
    path: &Path,
    target: &str,
    device: Option<&str>,
    tolerance: f32,
    seed: u64,
) -> Result<Option<Wrong>, Error> {
    let said = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    let artifact = Artifact::open(path).map_err(|e| said(&e))?;
    let module = program(&artifact, target)?;
    // The self-test would replace or refuse what is to be found.
    let options = |isa| LoadOptions {
        self_test: SelfTest::Skip,
        device: device.map(str::to_owned),
        cpu: CpuOptions { threads: 0, isa },
        ..LoadOptions::default()
    };
    let scalar = || load_cpu(&artifact, &options(Some(Isa::Scalar))).map_err(|e| said(&e));
    match target {
        "cpu" => {
            let expected = step(&mut scalar()?, seed)?;
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let mut executor = load_cpu(&artifact, &options(Some(isa))).map_err(|e| said(&e))?;
                let found = step(&mut executor, seed)?;
                if let Some((value, error)) = first(&expected, &found, 0.0) {
                    let (node, sources, role) = computed(&module, &value);
                    let variants = vec![
                        Tried { role: role.clone(), variant: isa.to_string(), error, right: false },
                        Tried { role, variant: Isa::Scalar.to_string(), error: 0.0, right: true },
                    ];
                    return Ok(Some(Wrong { value, device: "this CPU".into(), node, sources, variants }));
                }
            }
            Ok(None)
        }
        "wgpu" => {
            let mut executor = load_wgpu(&artifact, &options(None)).map_err(|e| said(&e))?;
            let reference = program(&artifact, "cpu").is_ok().then(|| step(&mut scalar()?, seed)).transpose()?;
            on_device(&mut executor, &module, reference, tolerance, seed)
        }
        other => Err(Error::new("--target", format!("kernels for {other} do not run here")).help("use cpu or wgpu")),
    }
}

fn on_device(
    executor: &mut WgpuExecutor,
    module: &VerifiedModule,
    reference: Option<Values>,
    tolerance: f32,
    seed: u64,
) -> Result<Option<Wrong>, Error> {
    let failed = |e: dlx_runtime::exec::ExecError| Error::new("device", e.to_string());
    let expected = match reference {
        Some(values) => values,
        None => {
            executor.slow_down(&|_| usize::MAX).map_err(failed)?;
            step(executor, seed)?
        }
    };
    executor.slow_down(&|_| 0).map_err(failed)?;
    let found = step(executor, seed)?;
    let Some((value, _)) = first(&expected, &found, tolerance) else { return Ok(None) };
    let rows = step_rows(executor, ROWS);
    let mut variants: Vec<Tried> = Vec::new();
    for role in executor.roles_of(rows, &value) {
        for slower in 0.. {
            let of = |other: &str| if other == role { slower } else { usize::MAX };
            let in_use = executor.slow_down(&of).map_err(failed)?;
            let variant = in_use.get(&role).cloned().unwrap_or_default();
            if variants.last().is_some_and(|v| v.role == role && v.variant == variant) {
                break;
            }
            let found = step(executor, seed)?;
            let error = off(&expected, &found, &value);
            variants.push(Tried { role: role.clone(), variant, error, right: error <= tolerance });
        }
    }
    let (node, sources, _) = computed(module, &value);
    Ok(Some(Wrong { value, device: executor.adapter().name.clone(), node, sources, variants }))
}

fn step(executor: &mut dyn Executor, seed: u64) -> Result<Values, Error> {
    let rows = step_rows(executor, ROWS);
    built::step(executor, rows, seed).map_err(|e| Error::new("executor", e.to_string()))
}

/// The first value that both have and that differs by more than may be, and by how much.
fn first(expected: &Values, found: &Values, tolerance: f32) -> Option<(String, f32)> {
    let mut errors = found.iter().map(|(name, _)| (name.clone(), off(expected, found, name)));
    errors.find(|(_, error)| error.is_nan() || *error > tolerance)
}

/// How far a value is from what was expected; 0 where nothing was.
fn off(expected: &Values, found: &Values, name: &str) -> f32 {
    let of = |values: &Values| values.iter().find(|(n, _)| n == name).map(|(_, x)| x.clone());
    of(expected).zip(of(found)).map_or(0.0, |(a, b)| distance(&a, &b).map_or(f32::INFINITY, |d| d.rms))
}

/// The node that computes a value in a step, its sources and its op.
fn computed(module: &VerifiedModule, value: &str) -> (String, Vec<String>, String) {
    let found = module.graphs.iter().find_map(|g| Some((g, g.values.find(value)?)));
    let node = found.and_then(|(g, v)| Some((g, g.nodes.iter().find(|n| n.outputs.contains(&v))?)));
    let Some((graph, node)) = node else { return (format!("%{value}"), vec![], "step".into()) };
    (module.node_text(graph, node), sources(module, node), node.op.name().to_owned())
}
