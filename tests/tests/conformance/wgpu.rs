//! Conformance files on the wgpu executor, where there is a graphics device.
//!
//! A device shows results, and the last f32 value of a step's first layer. To look at a value in the middle, each step is
//! compiled a second time, in a larger bucket, and that copy is cut off behind the value. A value inside a logits entry is
//! judged by the logits that follow from it.

use dlx_ir::{Module, Node, Op, Operand, Rewrite, Tensor, rewrite};
use dlx_runtime::exec::{Executor, RowStats};
use dlx_runtime::wgpu::{WgpuExecutor, WgpuOptions};
use dlx_targets::{TARGETS, wgpu};

use crate::cpu::{BUCKET, emitted, is_entry, program};
use crate::format::{Call, File, SLOTS, compare, tensors};

/// Rows of the copies that are cut off.
const CUT: usize = BUCKET + 1;

/// Runs the file's calls of entries on the first device and checks what comes out.
pub(crate) fn run(file: &File) -> Result<(), String> {
    let calls: Vec<&Call> = file.calls.iter().filter(|c| is_entry(&c.graph) && c.error.is_none()).collect();
    let mut looked_at: Vec<Option<&str>> = vec![None];
    let steps = calls.iter().filter(|c| c.graph.starts_with("step"));
    looked_at.extend(steps.flat_map(|c| &c.checks).map(|c| c.name.as_deref()));
    looked_at.sort_unstable();
    looked_at.dedup();
    for value in looked_at {
        let mut executor = load(file, value)?;
        for call in &calls {
            check(&mut executor, call, value).map_err(|e| format!("@{}\n{e}", call.line))?;
        }
    }
    Ok(())
}

/// The file's entries on the device, the larger copies cut off behind `value`.
fn load(file: &File, value: Option<&str>) -> Result<WgpuExecutor, String> {
    let target = TARGETS.iter().find(|t| t.name == "wgpu").ok_or("there is no wgpu target")?;
    let mut module = program(&file.module, target, &[BUCKET, CUT]).map_err(|e| e.to_string())?;
    if let (Some(value), Some(index)) = (value, module.graphs.iter().position(|g| g.name == format!("step_{CUT}"))) {
        cut(&mut module, index, value)?;
    }
    let (stored, mapped, section) = emitted(file, module, target)?;
    let profile = wgpu::profile("plain").map_err(|e| e.to_string())?;
    let plan = wgpu::plan(&stored, &profile).map_err(|e| e.to_string())?;
    let options = WgpuOptions { device: Some("0".into()) };
    let mut executor = WgpuExecutor::new(plan, &mapped, section, &options).map_err(|e| e.to_string())?;
    executor.reserve(SLOTS).map_err(|e| e.to_string())?;
    Ok(executor)
}

/// Drops the nodes of a graph behind the one that computes a value, and makes that its last.
fn cut(module: &mut Module, index: usize, value: &str) -> Result<(), String> {
    let old = &module.graphs[index];
    let computes = |n: &Node| n.outputs.iter().any(|o| old.values[*o].name == value);
    let last = old.nodes.iter().position(computes).ok_or_else(|| format!("@{} has no %{value}", old.name))?;
    let cut = rewrite(module, index, &mut |rw, _| Ok(if rw.index > last { Rewrite::Drop } else { Rewrite::Keep }));
    cut.map_err(|e| e.to_string())?;
    let mut graph = std::mem::take(&mut module.graphs[index]);
    let (id, _) = graph.values.iter().find(|(_, v)| v.name == value).ok_or("the value is gone")?;
    if graph.nodes.last().is_some_and(|n| n.outputs.first() != Some(&id)) {
        // One of several results: a copy of it stands alone.
        graph.emit(module, Op::Scale { by: 1.0 }, vec![Operand::Value(id)], &["copy"]).map_err(|e| e.to_string())?;
    }
    module.graphs[index] = graph;
    Ok(())
}

fn check(executor: &mut WgpuExecutor, call: &Call, value: Option<&str>) -> Result<(), String> {
    let mut results = Vec::new();
    let mut seen = None;
    if call.graph.starts_with("step") {
        let step = call.step()?;
        if value.is_some() {
            seen = Some(executor.probe_step(CUT, &step).map_err(|e| e.to_string())?);
        }
        executor.step(&step).map_err(|e| e.to_string())?;
    } else {
        let rows = call.rows()?;
        if call.graph.starts_with("head") {
            let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows.len()];
            executor.head(&rows, &mut stats).map_err(|e| e.to_string())?;
            results.extend(tensors(&stats));
        } else {
            let vocab = executor.vocab();
            let mut logits = vec![0.0; rows.len() * vocab];
            executor.logits(&rows, &mut logits).map_err(|e| e.to_string())?;
            results.push(Tensor::f32(&[rows.len(), vocab], logits));
        }
    }
    let mut results = results.into_iter();
    for check in &call.checks {
        let found = match (&check.name, &seen) {
            (None, _) => results.next().ok_or("there is no such result")?,
            (Some(name), Some(seen)) if value == Some(name) => Tensor::f32(&check.expected.shape, seen.clone()),
            (Some(_), _) => continue,
        };
        let what = check.name.as_deref().unwrap_or("result");
        compare(&check.expected, &found, check.cpu_tolerance).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}
