//! The smallest module on which a pass still does wrong, as a file test.
//!
//! Nodes become parameters, from large pieces to single ones, and then what they read, as long as the pass fails on what is
//! left; weights are seeded, so that the file needs no checkpoint.

use std::collections::BTreeSet;

use dlx_ir::{Graph, Id, Module, Node, Operand, ValueId, VerifiedModule};
use dlx_passes::{Keeps, Step, run_pipeline};
use serde::Serialize;

use super::each::Stages;
use super::source::Seeded;

/// A file test that fails.
#[derive(Clone, Debug, Serialize)]
pub struct Repro {
    /// The file: `; test: same PASS`, and the module before the pass.
    pub text: String,
    /// Nodes of its graphs.
    pub nodes: usize,
}

/// Reduces the module before a pass that breaks `value`, or fails. `None` where it does not with seeded weights.
pub fn reduce(before: &Module, step: &Step, value: Option<&str>, seed: u64) -> Option<Repro> {
    let fails = |module: &Module| fails(module, step, seed);
    if !fails(before) {
        return None;
    }
    let mut module = before.clone();
    // What fails in one graph alone needs no other.
    for g in (0..module.graphs.len()).rev() {
        let mut fewer = module.clone();
        fewer.graphs.remove(g);
        if !fewer.graphs.is_empty() && fails(&fewer) {
            module = fewer;
        }
    }
    for g in 0..module.graphs.len() {
        if let Some(v) = value.and_then(|name| module.graphs[g].values.find(name)) {
            let mut fewer = module.clone();
            fewer.graphs[g].results = vec![v];
            fewer.graphs[g] = without(&fewer.graphs[g], &BTreeSet::new());
            if fails(&fewer) {
                module = fewer;
            }
        }
        let mut size = module.graphs[g].nodes.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < module.graphs[g].nodes.len() {
                let end = (at + size).min(module.graphs[g].nodes.len());
                let mut fewer = module.clone();
                fewer.graphs[g] = without(&module.graphs[g], &(at..end).collect());
                if fewer.graphs[g].nodes.len() < module.graphs[g].nodes.len() && fails(&fewer) {
                    module = fewer;
                } else {
                    at = end;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }
    // A pass that wants a whole model takes no more parameters, but fewer nodes.
    for g in 0..module.graphs.len() {
        let mut at = module.graphs[g].nodes.len();
        while at > 0 {
            at -= 1;
            let fewer = past(&module, g, at).into_iter().find(|fewer| fails(fewer));
            if let Some(fewer) = fewer {
                module = fewer;
                at = at.min(module.graphs[g].nodes.len());
            }
        }
    }
    let mut fewer = module.clone();
    fewer.drop_unread_weights();
    fewer.drop_unused_states();
    if fails(&fewer) {
        module = fewer;
    }
    let nodes = module.graphs.iter().map(|g| g.nodes.len()).sum();
    Some(Repro { text: format!("; test: same {step}\n{module}"), nodes })
}

/// Whether a pass still does wrong: it does not keep what it says, or leaves a module that is not valid.
fn fails(module: &Module, step: &Step, seed: u64) -> bool {
    let Ok(before) = VerifiedModule::new(module.clone()) else { return false };
    match run_pipeline(before.clone(), std::slice::from_ref(step), &mut |_, _, _| Ok(())) {
        Ok((after, _)) => {
            let weights = Seeded { module, seed };
            let keeps: Keeps = (step.pass.keeps)(&step.params);
            let found = Stages::new(module, &weights, seed).compare(&before, &after, keeps);
            found.is_ok_and(|found| found.comparison.breach.is_some())
        }
        Err(failure) => failure.error.message.contains("invalid IR"),
    }
}

/// Modules in which the readers of a node read one of its operands of the same type, of which nothing more is needed then.
fn past(module: &Module, g: usize, at: usize) -> Vec<Module> {
    let graph = &module.graphs[g];
    let &[out] = &graph.nodes[at].outputs[..] else { return Vec::new() };
    let operands = graph.nodes[at].inputs.iter().filter_map(|i| i.value());
    let same = operands.filter(|v| graph.values[*v].ty == graph.values[out].ty);
    let fewer = same.map(|v| {
        let mut fewer = module.clone();
        let graph = &mut fewer.graphs[g];
        let inputs = graph.nodes.iter_mut().flat_map(|n| &mut n.inputs);
        inputs.filter(|i| i.value() == Some(out)).for_each(|i| *i = Operand::Value(v));
        graph.results.iter_mut().filter(|r| **r == out).for_each(|r| *r = v);
        fewer.graphs[g] = without(graph, &BTreeSet::new());
        fewer
    });
    fewer.collect()
}

/// The graph with the results of some nodes as parameters, and without what nothing needs then.
fn without(graph: &Graph, gone: &BTreeSet<usize>) -> Graph {
    let mut needed: BTreeSet<ValueId> = graph.results.iter().copied().collect();
    let mut keep = BTreeSet::new();
    for (i, node) in graph.nodes.iter().enumerate().rev().filter(|(i, _)| !gone.contains(i)) {
        if node.op.has_effect() || node.outputs.iter().any(|o| needed.contains(o)) {
            keep.insert(i);
            needed.extend(node.inputs.iter().filter_map(|i| i.value()));
        }
    }
    let mut small = Graph::new(graph.name.clone());
    let mut map = vec![None; graph.values.len()];
    let made: BTreeSet<ValueId> = keep.iter().flat_map(|i| &graph.nodes[*i].outputs).copied().collect();
    for (id, value) in graph.values.iter() {
        // A parameter may tell the pass what it needs even where nothing reads it.
        if graph.params.contains(&id) || (needed.contains(&id) && !made.contains(&id)) {
            map[id.index()] = Some(small.param(&value.name, value.ty.clone()));
        }
    }
    for i in keep {
        let node = &graph.nodes[i];
        let read = |input: &Operand| match input {
            Operand::Value(v) => Operand::Value(map[v.index()].expect("it is a parameter, or made before")),
            other => *other,
        };
        let inputs = node.inputs.iter().map(read).collect();
        let mut outputs = Vec::new();
        for o in &node.outputs {
            let value = &graph.values[*o];
            let copy = small.value(&value.name, value.ty.clone());
            map[o.index()] = Some(copy);
            outputs.push(copy);
        }
        small.nodes.push(Node { inputs, outputs, ..node.clone() });
    }
    small.results = graph.results.iter().filter_map(|r| map[r.index()]).collect();
    small
}
