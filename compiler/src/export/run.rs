//! Runs a graph of an export on our own ops: what its files are compared with, and what calibration watches.

use dlx_ir::{Error, Graph, Id, Module, Node, Operand, Tensor, Type, ValueId};
use dlx_runtime::graph::compute;
use dlx_targets::{WeightSource, weight};

/// Sees a node with its operands and results; an error stops the run.
pub type Observe<'o> = dyn FnMut(&Node, &[&Tensor], &[Tensor]) -> Result<(), Error> + 'o;

/// Runs a graph of static shapes on several sets of arguments, node by node for all of them, so that a weight is held only
/// while its node is computed. `observe` sees each node with its operands and results.
///
/// # Errors
/// A weight that cannot be read, or arguments that do not fit; the place is the node's text. Whatever `observe` reports.
pub fn run(
    module: &Module,
    graph: &Graph,
    source: &dyn WeightSource,
    samples: Vec<Vec<Tensor>>,
    observe: &mut Observe<'_>,
) -> Result<Vec<Vec<Tensor>>, Error> {
    let mut last = graph.values.side_table(0);
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().filter_map(|o| o.value()).for_each(|v| last[v] = i);
    }
    graph.results.iter().for_each(|v| last[*v] = usize::MAX);
    let mut values: Vec<Vec<Option<Tensor>>> = Vec::new();
    for sample in samples {
        let mut held = vec![None; graph.values.len()];
        if sample.len() != graph.params.len() {
            let message = format!("takes {} arguments, not {}", graph.params.len(), sample.len());
            return Err(Error::new(format!("graph @{}", graph.name), message));
        }
        for (p, argument) in graph.params.iter().zip(sample) {
            held[p.index()] = Some(argument);
        }
        values.push(held);
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let failed = |e: String| Error::new(module.node_text(graph, node), e);
        let read = |o: &Operand| o.weight().map(|w| weight(module, w, source)).transpose();
        let weights: Vec<Option<Tensor>> = node.inputs.iter().map(read).collect::<Result<_, _>>()?;
        let types: Vec<&Type> = node.outputs.iter().map(|v| &graph.values[*v].ty).collect();
        for held in &mut values {
            let of = |(o, w)| -> Option<&Tensor> {
                let o: &Operand = o;
                match w {
                    Some(w) => Some(w),
                    None => held[o.value()?.index()].as_ref(),
                }
            };
            let args: Option<Vec<&Tensor>> =
                node.inputs.iter().zip(weights.iter().map(Option::as_ref)).map(of).collect();
            let args = args.ok_or_else(|| failed("reads what was not computed".into()))?;
            let outs = compute(&node.op, &args, &types).map_err(failed)?;
            observe(node, &args, &outs)?;
            for (v, out) in node.outputs.iter().zip(outs) {
                held[v.index()] = Some(out);
            }
            let dead = |v: &ValueId| last[*v] == i;
            for v in node.inputs.iter().filter_map(|o| o.value()).filter(dead) {
                held[v.index()] = None;
            }
        }
    }
    let result = |held: &Vec<Option<Tensor>>| graph.results.iter().map(|v| held[v.index()].clone()).collect();
    let results: Option<Vec<Vec<Tensor>>> = values.iter().map(result).collect();
    results.ok_or_else(|| Error::new(format!("graph @{}", graph.name), "returns what was not computed"))
}
