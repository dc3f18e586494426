//! Conformance files on the graph executor: every pure graph of a file, one by one, at the shapes of each of its calls.

use std::collections::BTreeMap;

use dlx_ir::{DType, Dim, Evaluator, Graph, Level, Module, VerifiedModule, WeightDef};
use dlx_runtime::graph::{GraphModel, GraphOptions, Signature, Tensors};

use crate::format::{Call, File, SLOTS, compare};

/// Runs the file's calls of pure graphs, and checks what comes out. Returns how many there were.
pub(crate) fn run(file: &File) -> Result<usize, String> {
    let mut done = 0;
    for call in &file.calls {
        let Some(graph) = file.module.graph(&call.graph) else { continue };
        let pure = graph.nodes.iter().all(|n| matches!(n.op.level(), Level::Tensor | Level::Model));
        let Some(model) = pure.then(|| load(file, graph, call)).transpose()?.flatten() else { continue };
        check(&model, call).map_err(|e| format!("@{}\n{e}", call.line))?;
        done += 1;
    }
    Ok(done)
}

/// The graph at the shapes of a call, with its weights in the text; nothing if some of them are quantized or the call's
/// arguments are of other types.
fn load(file: &File, graph: &Graph, call: &Call) -> Result<Option<GraphModel>, String> {
    let source = |name: &str| file.weights.get(name).cloned().ok_or(format!("@{name} has no contents"));
    let mut evaluator = Evaluator::new(&file.module, &source, SLOTS);
    let mut module = Module { graphs: vec![graph.clone()], ..file.module.clone() };
    module.states = dlx_ir::Arena::default();
    let mut weights = dlx_ir::Arena::default();
    for (id, w) in file.module.weights.iter() {
        let mut w = w.clone();
        let read = graph.nodes.iter().flat_map(|n| &n.inputs).any(|i| i.weight() == Some(id));
        if read && (matches!(w.ty.dtype, DType::Quant(_)) || w.ty.layout.is_some()) {
            return Ok(None);
        }
        if read {
            w.def = WeightDef::Literal(evaluator.weight(id)?.data.clone());
            weights.push(w);
        } else {
            // Keeps the numbers of those behind it.
            let ty = dlx_ir::Type::new(DType::Bool, [1usize]);
            weights.push(dlx_ir::Weight::new(w.name, ty, WeightDef::Literal(dlx_ir::Data::Bool(vec![false]))));
        }
    }
    module.weights = weights;
    let Some(graph) = module.graphs.first_mut() else { return Ok(None) };
    let mut sizes: BTreeMap<Box<str>, usize> = BTreeMap::new();
    for (p, arg) in graph.params.iter().zip(&call.args) {
        let dims = graph.values[*p].ty.dims.iter().zip(&arg.shape);
        sizes.extend(dims.filter_map(|(d, n)| if let Dim::Named(name) = d { Some((name.clone(), *n)) } else { None }));
    }
    let ids: Vec<_> = graph.values.iter().map(|(id, _)| id).collect();
    for dim in ids
        .into_iter()
        .flat_map(|id| std::mem::take(&mut graph.values[id].ty.dims).into_iter().map(move |d| (id, d)))
        .collect::<Vec<_>>()
    {
        let (id, dim) = dim;
        let fixed = match dim {
            Dim::Named(name) => sizes.get(&name).copied().map_or(Dim::Named(name), Dim::Fixed),
            fixed => fixed,
        };
        graph.values[id].ty.dims.push(fixed);
    }
    let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
    let signature = Signature::of(graph, &names("in", graph.params.len()), &names("out", graph.results.len()))?;
    // A call that is wrong by its shapes fits no static graph.
    let Ok(module) = VerifiedModule::new(module) else { return Ok(None) };
    GraphModel::new(module, vec![signature], &[], &GraphOptions::default()).map(Some).map_err(|e| e.to_string())
}

fn check(model: &GraphModel, call: &Call) -> Result<(), String> {
    let inputs: Tensors = call.args.iter().enumerate().map(|(i, t)| (format!("in{i}"), t.clone())).collect();
    let outputs = match (model.run(&inputs), &call.error) {
        (Ok(outputs), None) => outputs,
        (Err(_), Some(_)) => return Ok(()),
        (Err(e), None) => return Err(e.to_string()),
        (Ok(_), Some(message)) => return Err(format!("no error: {message}")),
    };
    for (i, check) in call.checks.iter().filter(|c| c.name.is_none()).enumerate() {
        let found = outputs.get(&format!("out{i}")).ok_or_else(|| format!("there is no result {i}"))?;
        compare(&check.expected, found, check.tolerance).map_err(|e| format!("result {i}: {e}"))?;
    }
    Ok(())
}
