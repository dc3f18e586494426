//! `split-head`: the LM head leaves `@step`. The step keeps its last hidden states in `@hidden`; `@head` computes the
//! statistics of chosen rows, `@logits` their logits. The final norm moves with the head, so it too runs only on rows
//! that somebody looks at. `dce` removes what is left of the head in `@step`.
//!
//! Parameters: `rows` (rows of `@hidden`: the largest step), `ban` (token that is never the best one: the mask id).

use crate::{Keeps, Params, PassInfo};
use dlx_ir::{DType, Error, Graph, Module, Node, Op, Operand, Post, Type};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "split-head",
    doc: "the LM head of @step → @head (statistics) and @logits over rows of @hidden {rows, ban}",
    params: &["rows", "ban"],
    keeps: |_| Keeps::Rounding,
    run,
};

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let rows: usize = params.require("rows")?;
    let ban: Option<u32> = params.optional("ban")?;
    let missing = || Error::new("module", "there is no graph @step").help("run cache-kv first");
    let index = module.graphs.iter().position(|g| g.name == "step").ok_or_else(missing)?;
    let step = &module.graphs[index];
    let tail = row_wise_tail(step)?;
    let inputs = &tail[0].inputs;
    let head = tail.iter().find(|n| matches!(n.op, Op::Linear { .. })).expect("a tail has a head");
    let hidden = inputs[0];
    let head_weight = head.inputs[1];
    let shape = |v| step.values[v].ty.dims.get(1).cloned();
    let features =
        hidden.value().and_then(shape).ok_or_else(|| Error::new("graph @step", "hidden states are not rows"))?;

    // Before the head a node keeps its name; a factor behind it is no longer what it was called.
    let before = tail.iter().take_while(|n| !matches!(n.op, Op::Linear { .. }));
    let names = before.map(|n| step.values[n.outputs[0]].name.clone()).chain(std::iter::repeat("scaled".into()));
    let names: Vec<String> = names.take(tail.len()).collect();
    let ty = Type::new(DType::F32, [rows.into(), features]);
    let state = Operand::State(module.add_state("hidden", ty));
    let step = &mut module.graphs[index];
    step.nodes.push(Node::new(Op::StoreRows {}, vec![hidden, state], vec![]));
    step.results.clear();
    for (name, stats) in [("head", true), ("logits", false)] {
        let mut graph = Graph::new(name);
        let rows = Operand::Value(graph.param("rows", Type::new(DType::I32, ["R"])));
        let mut x = graph.emit(module, Op::TakeRows {}, vec![state, rows], &["x"])?[0];
        // A factor on the logits commutes with the head; it is applied to the few features instead.
        for (node, name) in tail.iter().zip(&names).filter(|(n, _)| !matches!(n.op, Op::Linear { .. })) {
            let inputs = std::iter::once(Operand::Value(x)).chain(node.inputs[1..].iter().copied()).collect();
            x = graph.emit(module, node.op.clone(), inputs, &[name])?[0];
            graph.nodes.last_mut().expect("just emitted").origin.join(&node.origin);
        }
        let (op, outputs): (_, &[&str]) = if stats {
            (Op::HeadStats { norm: None, ban }, &["best", "stats"])
        } else {
            (Op::Linear { n: 1, bias: false, norm: None, post: Post::None }, &["logits"])
        };
        graph.results = graph.emit(module, op, vec![Operand::Value(x), head_weight], outputs)?;
        graph.nodes.last_mut().expect("just emitted").origin.join(&head.origin);
        module.graphs.push(graph);
    }
    Ok(tail.len() + 3)
}

/// The norm, head and scale at the end of the graph, in execution order. Only a scale may follow the head: nothing else
/// commutes with it.
///
/// # Errors
/// The graph does not return the logits of an LM head alone.
pub(crate) fn row_wise_tail(step: &Graph) -> Result<Vec<Node>, Error> {
    let place = format!("graph @{}", step.name);
    if step.results.len() != 1 {
        return Err(Error::new(place, format!("returns {} values, not the logits alone", step.results.len())));
    }
    let defs: Vec<_> = step.definitions();
    let mut tail: Vec<Node> = Vec::new();
    let mut head_found = false;
    let mut at = step.results.first().copied();
    while let Some(node) = at.and_then(|v| defs[dlx_ir::Id::index(v)]).map(|i| &step.nodes[i]) {
        match node.op {
            Op::Scale { .. } => {}
            Op::RmsNorm { .. } if head_found => {}
            Op::Linear { n: 1, bias: false, norm: None, post: Post::None } if !head_found => head_found = true,
            _ => break,
        }
        at = node.inputs[0].value();
        tail.push(node.clone());
    }
    if !head_found {
        return Err(Error::new(place, "does not end in a linear LM head").help(
            "the head is a linear of one weight without bias, on an optional norm; run split-head before fuse-norm",
        ));
    }
    tail.reverse();
    Ok(tail)
}
