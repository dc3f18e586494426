//! `fuse-linears`: linears that read the same input become one, so that the input is normalised, quantized and
//! streamed once: Q/K/V, and gate/up.
//!
//! ```text
//! %q = linear %x, @wq: f32[4, 192]
//! %k = linear %x, @wk: f32[4, 64]
//! ```
//! becomes `%q, %k = linear %x, @wq, @wk {n=2}: f32[4, 192], f32[4, 64]`.
//!
//! Parameter: `max` – most weights that the kernels of a target share one input among; unlimited if not given.

use crate::{Keeps, Params, PassInfo};
use dlx_ir::{Error, Module, Node, Op, Operand, Post, Rewrite, ValueId, rewrite};
use std::collections::BTreeMap;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "fuse-linears",
    doc: "linears with the same input (Q/K/V, gate/up) → one linear of several weights {max}",
    params: &["max"],
    keeps: |_| Keeps::Bits,
    run,
};

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let max = params.optional("max")?.unwrap_or(usize::MAX);
    (0..module.graphs.len()).map(|g| fuse(module, g, max)).sum()
}

fn fuse(module: &mut Module, index: usize, max: usize) -> Result<usize, Error> {
    let nodes = module.graphs[index].nodes.clone();
    let mut siblings: BTreeMap<(Operand, bool), Vec<usize>> = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        if let Some(bias) = plain(node) {
            siblings.entry((node.inputs[0], bias)).or_default().push(i);
        }
    }
    let mut fused: BTreeMap<usize, ValueId> = BTreeMap::new();
    let done = rewrite(module, index, &mut |rw, node| {
        let Some(bias) = plain(node) else { return Ok(Rewrite::Keep) };
        if let Some(&out) = fused.get(&rw.index) {
            return Ok(Rewrite::Replace(vec![out]));
        }
        let same_input = &siblings[&(nodes[rw.index].inputs[0], bias)];
        let group: Vec<usize> = same_input.iter().copied().filter(|&i| i >= rw.index).take(max).collect();
        if group.len() < 2 {
            return Ok(Rewrite::Keep);
        }
        let column = |c: usize| group.iter().map(move |&i| (i, c)).map(|(i, c)| nodes[i].inputs[c]);
        let mut inputs = vec![node.inputs[0]];
        inputs.extend(column(1));
        if bias {
            inputs.extend(column(2));
        }
        let names: Vec<String> = group.iter().map(|&i| rw.old_name(&nodes[i], 0)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let op = Op::Linear { n: group.len() as u32, bias, norm: None, post: Post::None };
        let outs = rw.emit(op, inputs, &names)?;
        fused.extend(group[1..].iter().zip(&outs[1..]).map(|(&i, &o)| (i, o)));
        Ok(Rewrite::Replace(vec![outs[0]]))
    })?;
    Ok(done.changes)
}

/// For a linear of one weight without prologue and epilogue: whether it has a bias.
fn plain(node: &Node) -> Option<bool> {
    match node.op {
        Op::Linear { n: 1, bias, norm: None, post: Post::None } if matches!(node.inputs[0], Operand::Value(_)) => {
            Some(bias)
        }
        _ => None,
    }
}
