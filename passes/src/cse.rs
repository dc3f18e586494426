//! `cse`: equal pure nodes on equal operands become one; so do equal weight expressions.
//!
//! ```text
//! %a = silu %x: f32[4, 8]
//! %b = silu %x: f32[4, 8]
//! %c = mul %a, %b: f32[4, 8]
//! ```
//! becomes `%a = silu %x: f32[4, 8]` and `%c = mul %a, %a: f32[4, 8]`.

use crate::PassInfo;
use dlx_ir::{Module, Rewrite, WeightDef, rewrite};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "cse",
    doc: "equal pure nodes and equal weight expressions → one",
    params: &[],
    run: |module, _| {
        let mut changes = merge_weights(module);
        for g in 0..module.graphs.len() {
            changes += rewrite(module, g, &mut |rw, node| {
                if node.op.touches_state() || node.outputs.is_empty() {
                    return Ok(Rewrite::Keep);
                }
                let same = rw.graph.nodes.iter().find(|n| n.op == node.op && n.inputs == node.inputs);
                Ok(same.map_or(Rewrite::Keep, |n| Rewrite::Replace(n.outputs.clone())))
            })?;
        }
        Ok(changes)
    },
};

/// Points every use of a repeated weight expression to its first spelling.
fn merge_weights(module: &mut Module) -> usize {
    let mut map: Vec<_> = module.weights.iter().map(|(id, _)| id).collect();
    let mut merged = 0;
    for (i, id) in map.clone().into_iter().enumerate() {
        let mut def = module.weights[id].def.clone();
        if let WeightDef::Expr(_, inputs) = &mut def {
            inputs.iter_mut().for_each(|w| *w = map[dlx_ir::Id::index(*w)]);
            let first = module.weights.iter().take(i).find(|(_, w)| w.def == def).map(|(first, _)| first);
            if let Some(first) = first {
                map[i] = first;
                merged += 1;
            }
        }
        module.weights[id].def = def;
    }
    if merged > 0 {
        crate::replace_weights(module, &map);
    }
    merged
}
