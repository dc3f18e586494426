//! Conformance files on the CPU executor: the `@step`, `@head` and `@logits` graphs of a file become an artifact's.
//!
//! What a runnable program needs and a file does not have (caches, a logits entry) is added under the name `spare`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dlx_ir::{DType, Dim, EntryKind, Error, Graph, Module, Op, Operand, Post, Tensor, Type, VerifiedModule, WeightDef};
use dlx_passes::{parse_pipeline, run_pipeline};
use dlx_runtime::cpu::{CpuExecutor, CpuOptions, Isa, Seen};
use dlx_runtime::exec::{Executor, RowStats};
use dlx_runtime::mapped::Mapped;
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_targets::{TARGETS, Target, WeightSource, emit, place};

use crate::format::{Call, File, SLOTS, compare, tensors};

/// Rows of every entry; a call may have fewer.
pub(crate) const BUCKET: usize = 4;

struct Contents<'f>(&'f BTreeMap<String, Vec<f32>>);

impl WeightSource for Contents<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        if name.starts_with("spare") {
            return Ok(());
        }
        let all = self.0.get(name).ok_or_else(|| Error::new(format!("@{name}"), "has no contents"))?;
        let width = out.len() / rows.len().max(1);
        out.copy_from_slice(&all[rows.start * width..rows.end * width]);
        Ok(())
    }

    fn read_bytes(&self, name: &str, _: Range<usize>, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::new(format!("@{name}"), "is read as numbers"))
    }

    fn release_rows(&self, _: &str, _: Range<usize>) {}
}

/// Whether the CPU runs a graph of this name.
pub(crate) fn is_entry(graph: &str) -> bool {
    EntryKind::of_name(graph).is_some()
}

/// A program with its weights stored, and the mapping that holds them.
pub(crate) fn emitted(
    file: &File,
    module: Module,
    target: &Target,
) -> Result<(VerifiedModule, Arc<Mapped>, Range<usize>), String> {
    let module = VerifiedModule::new(module).map_err(|e| e[0].to_string())?;
    target.check(&module).map_err(|e| e[0].to_string())?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut writer = ArtifactWriter::create(&dir.path().join("file.dlxa")).map_err(|e| e.to_string())?;
    let contents = Contents(&file.weights);
    let placed = place(&module, &[], &mut |len| writer.reserve(len));
    let emission = placed.and_then(|p| emit(&module, p, &contents, &writer, &AtomicBool::new(false), &|_, _| {}));
    let emission = emission.map_err(|e| e.to_string())?;
    let (mapped, section) = writer.map_weights().map_err(|e| e.to_string())?;
    Ok((emission.module, mapped, section))
}

/// Runs the file's calls of entries with one instruction set, and checks what comes out.
pub(crate) fn run(file: &File, isa: Isa) -> Result<(), String> {
    let target = TARGETS.iter().find(|t| t.name == "cpu").expect("there is a CPU target");
    let module = program(&file.module, target, &[BUCKET]).map_err(|e| e.to_string())?;
    let (stored, mapped, section) = emitted(file, module, target)?;
    let options = CpuOptions { threads: 2, isa: Some(isa) };
    let mut executor = CpuExecutor::new(&stored, mapped, section, options).map_err(|e| e.to_string())?;
    executor.reserve(SLOTS).map_err(|e| e.to_string())?;
    for call in file.calls.iter().filter(|c| is_entry(&c.graph) && c.error.is_none()) {
        check(&mut executor, call).map_err(|e| format!("@{}\n{e}", call.line))?;
    }
    Ok(())
}

/// The entries of a module as a target compiles them, in buckets of these sizes, smallest first.
pub(crate) fn program(module: &Module, target: &Target, buckets: &[usize]) -> Result<Module, Error> {
    let mut module = module.clone();
    module.graphs.retain(|g| is_entry(&g.name));
    drop_unread_states(&mut module);
    // Hidden states of a file have as many rows as its steps; a larger bucket needs more.
    let largest = buckets.iter().copied().max().unwrap_or(BUCKET);
    let mut states = std::mem::take(&mut module.states);
    for (_, state) in states.iter_mut().filter(|(_, s)| s.ty.dims.len() == 2) {
        state.ty.dims[0] = state.ty.dims[0].fixed().map_or(largest, |rows| rows.max(largest)).into();
    }
    module.states = states;
    if module.graphs.iter().all(|g| !g.name.starts_with("logits")) {
        add_logits(&mut module)?;
    }
    let dims = module.graphs.iter().flat_map(|g| g.values.iter()).flat_map(|(_, v)| &v.ty.dims);
    let names: BTreeSet<String> = dims.filter(|d| d.fixed().is_none()).map(Dim::to_string).collect();
    let sizes = buckets.iter().map(usize::to_string).collect::<Vec<_>>().join(":");
    let sizes: Vec<String> = names.iter().map(|n| format!("{n}={sizes}")).collect();
    let pipeline = format!("lower{{{}}},specialize{{{}}},plan-memory", target.lowering, sizes.join(", "));
    let module = VerifiedModule::new(module).map_err(Error::first_of)?;
    let outcome = run_pipeline(module, &parse_pipeline(&pipeline)?, &mut |_, _, _| Ok(()));
    let mut module = outcome.map_err(|f| f.error)?.0.into_inner();
    if module.states.iter().all(|(_, s)| s.ty.dims.len() != 3) {
        let layouts = if target.name == "cpu" { ["cpu.k16", "cpu.v"] } else { ["wgpu.rows"; 2] };
        for (name, layout) in ["spare.k", "spare.v"].into_iter().zip(layouts) {
            let ty = Type { layout: Some(layout.into()), ..Type::new(DType::F32, [16usize, 1, 16]) };
            module.add_state(name, ty);
        }
    }
    Ok(module)
}

/// States that only other graphs use need not have a form that the CPU keeps.
fn drop_unread_states(module: &mut Module) {
    let inputs = module.graphs.iter().flat_map(|g| &g.nodes).flat_map(|n| &n.inputs);
    let read: BTreeSet<_> = inputs.filter_map(|i| i.state()).collect();
    let old = std::mem::take(&mut module.states);
    let kept = old.iter().filter(|(id, _)| read.contains(id));
    let map: BTreeMap<_, _> = kept.map(|(id, state)| (id, module.states.push(state.clone()))).collect();
    for input in module.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
        if let Operand::State(s) = input {
            *s = map[s];
        }
    }
}

/// An entry that says how many tokens there are: as many as the smallest embedding has.
fn add_logits(module: &mut Module) -> Result<(), Error> {
    let nodes = module.graphs.iter().flat_map(|g| &g.nodes);
    let tables = nodes.filter(|n| matches!(n.op, Op::Embed {})).filter_map(|n| n.inputs[1].weight());
    let vocab = tables.filter_map(|w| module.weights[w].ty.dims[0].fixed()).min().unwrap_or(16);
    let head = module.add_weight("spare.head", Type::new(DType::F32, [vocab, 1]), WeightDef::Source);
    let state = module.add_state("spare.rows", Type::new(DType::F32, [BUCKET, 1]));
    let mut graph = Graph::new("logits");
    let rows = graph.param("rows", Type::new(DType::I32, [BUCKET]));
    let x = graph.emit(module, Op::TakeRows {}, vec![Operand::State(state), Operand::Value(rows)], &["x"])?[0];
    let op = Op::Linear { n: 1, bias: false, norm: None, post: Post::None };
    graph.results = graph.emit(module, op, vec![Operand::Value(x), Operand::Weight(head)], &["logits"])?;
    module.graphs.push(graph);
    Ok(())
}

fn check(executor: &mut CpuExecutor, call: &Call) -> Result<(), String> {
    let mut seen: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut observe = |node: Seen<'_>| drop(seen.insert(node.name.into(), node.value.to_vec()));
    let mut results = Vec::new();
    if call.graph.starts_with("step") {
        let step = call.step()?;
        executor.step_observed(&step, usize::MAX, &mut observe).map_err(|e| e.to_string())?;
    } else {
        let rows = call.rows()?;
        if call.graph.starts_with("head") {
            let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows.len()];
            executor.head(&rows, &mut stats).map_err(|e| e.to_string())?;
            results.extend(tensors(&stats));
        } else {
            let vocab = executor.vocab();
            let mut logits = vec![0.0; rows.len() * vocab];
            executor.logits_observed(&rows, &mut logits, &mut observe).map_err(|e| e.to_string())?;
            results.push(Tensor::f32(&[rows.len(), vocab], logits));
        }
    }
    let mut results = results.into_iter();
    for check in &call.checks {
        let found = match &check.name {
            Some(name) => seen.get(name).map(|v| Tensor::f32(&check.expected.shape, v.clone())),
            None => results.next(),
        };
        let what = check.name.as_deref().unwrap_or("result");
        let found = found.ok_or_else(|| format!("the CPU shows no {what}"))?;
        compare(&check.expected, &found, check.cpu_tolerance).map_err(|e| format!("{what}: {e}"))?;
    }
    Ok(())
}
