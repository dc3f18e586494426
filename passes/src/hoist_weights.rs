//! `hoist-weights`: a node that reads only weights becomes a weight expression, computed once at emission.
//!
//! ```text
//! %t = transpose @w: bf16[8, 4]
//! ```
//! becomes `weight @w.transpose: bf16[8, 4] = transpose @w`.
//!
//! Only nodes whose readers take a weight there are hoisted: a row-major float operand may be either.

use crate::{Keeps, PassInfo};
use dlx_ir::{Error, Id, Module, Op, Operand, Rewrite, WeightDef, rewrite};
use std::collections::BTreeMap;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "hoist-weights",
    doc: "nodes that read only weights → weight expressions",
    params: &[],
    keeps: |_| Keeps::Bits,
    run,
};

fn run(module: &mut Module, _: &crate::Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let mut changes = 0;
    for g in 0..module.graphs.len() {
        let mut hoisted = BTreeMap::new();
        let returned = module.graphs[g].results.clone();
        for i in 0..module.graphs[g].nodes.len() {
            let graph = &mut module.graphs[g];
            for input in &mut graph.nodes[i].inputs {
                if let Some(w) = input.value().and_then(|v| hoisted.get(&v.index())) {
                    *input = Operand::Weight(*w);
                }
            }
            let node = graph.nodes[i].clone();
            let portable =
                matches!(node.op, Op::Cast { .. } | Op::Concat { .. } | Op::Scale { .. } | Op::Transpose { .. });
            let weights: Option<Vec<_>> = node.inputs.iter().map(|i| i.weight()).collect();
            let (true, Some(weights), [out]) = (portable, weights, &node.outputs[..]) else { continue };
            if returned.contains(out) {
                continue;
            }
            let ty = graph.values[*out].ty.clone();
            let name = format!("{}.{}", module.weights[weights[0]].name, node.op.name());
            let id = module.add_weight(&name, ty, WeightDef::Expr(node.op, weights));
            module.weights[id].origin.join(&node.origin);
            hoisted.insert(out.index(), id);
        }
        let done = rewrite(module, g, &mut |_, node| {
            let gone = node.outputs.first().is_some_and(|o| hoisted.contains_key(&o.index()));
            Ok(if gone { Rewrite::Drop } else { Rewrite::Keep })
        })?;
        changes += done.changes;
    }
    Ok(changes)
}
