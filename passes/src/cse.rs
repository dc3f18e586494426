//! `cse`: equal pure nodes on equal operands become one; so do equal weight expressions.
//!
//! ```text
//! %a = silu %x: f32[4, 8]
//! %b = silu %x: f32[4, 8]
//! %c = mul %a, %b: f32[4, 8]
//! ```
//! becomes `%a = silu %x: f32[4, 8]` and `%c = mul %a, %a: f32[4, 8]`.

use crate::{Keeps, PassInfo};
use dlx_ir::{Id, Module, Op, Operand, Rewrite, WeightDef, WeightId, rewrite};
use std::collections::BTreeMap;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "cse",
    doc: "equal pure nodes and equal weight expressions → one",
    params: &[],
    keeps: |_| Keeps::Bits,
    run: |module, _, _| {
        let mut changes = merge_weights(module);
        for g in 0..module.graphs.len() {
            // Nodes of the new graph by what they read.
            let mut seen: BTreeMap<Vec<Operand>, Vec<usize>> = BTreeMap::new();
            let done = rewrite(module, g, &mut |rw, node| {
                if node.op.touches_state() || node.outputs.is_empty() {
                    return Ok(Rewrite::Keep);
                }
                let alike = seen.entry(node.inputs.clone()).or_default();
                if let Some(same) = alike.iter().map(|&i| &rw.graph.nodes[i]).find(|n| n.op == node.op) {
                    return Ok(Rewrite::Replace(same.outputs.clone()));
                }
                alike.push(rw.graph.nodes.len());
                Ok(Rewrite::Keep)
            })?;
            changes += done.changes;
        }
        Ok(changes)
    },
};

/// Points every use of a repeated weight expression to its first spelling.
fn merge_weights(module: &mut Module) -> usize {
    let mut map: Vec<_> = module.weights.iter().map(|(id, _)| id).collect();
    let mut seen: BTreeMap<Vec<WeightId>, Vec<(Op, WeightId)>> = BTreeMap::new();
    let mut merged = 0;
    for id in map.clone() {
        let WeightDef::Expr(op, inputs) = &mut module.weights[id].def else { continue };
        inputs.iter_mut().for_each(|w| *w = map[w.index()]);
        let alike = seen.entry(inputs.clone()).or_default();
        if let Some((_, first)) = alike.iter().find(|(o, _)| o == op) {
            map[id.index()] = *first;
            merged += 1;
        } else {
            alike.push((op.clone(), id));
        }
    }
    if merged > 0 {
        crate::replace_weights(module, &map);
    }
    merged
}
