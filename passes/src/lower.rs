//! `lower`: weights and caches take the layouts that a target's kernels read.
//!
//! * matrices of linears, heads and embeddings → `pack @w {layout=…}`;
//! * vectors (norms, biases) → f32;
//! * K and V caches → the given layouts.
//!
//! Parameters: `pack`, `keys`, `values` – layout names.

use crate::{Keeps, Params, PassInfo};
use dlx_ir::{DType, Error, Id, Module, Op, Operand, Type, WeightDef};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "lower",
    doc: "weights and caches → the layouts of a target {pack, keys, values}",
    params: &["pack", "keys", "values"],
    keeps: |_| Keeps::Bits,
    run,
};

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let pack: String = params.require("pack")?;
    let mut map: Vec<_> = module.weights.iter().map(|(id, _)| id).collect();
    let mut read = vec![false; map.len()];
    for w in module.graphs.iter().flat_map(|g| &g.nodes).flat_map(|n| &n.inputs).filter_map(|i| i.weight()) {
        read[w.index()] = true;
    }
    let mut changes = 0;
    for id in map.clone().into_iter().filter(|id| read[id.index()]) {
        let w = &module.weights[id];
        let (op, ty, suffix) = match (w.ty.dims.len(), w.ty.dtype) {
            (2, _) if w.ty.layout.is_none() => {
                let layout: Box<str> = pack.as_str().into();
                (
                    Op::Pack { layout: layout.clone(), shard: None },
                    Type { layout: Some(layout), ..w.ty.clone() },
                    "packed",
                )
            }
            (1, DType::F16 | DType::BF16) => {
                (Op::Cast { to: DType::F32, wrap: false }, Type { dtype: DType::F32, ..w.ty.clone() }, "f32")
            }
            _ => continue,
        };
        let name = format!("{}.{suffix}", w.name);
        map[id.index()] = module.add_weight(&name, ty, WeightDef::Expr(op, vec![id]));
        changes += 1;
    }
    crate::replace_weights(module, &map);
    for (key, operand) in [("keys", 1), ("values", 2)] {
        let layout: String = params.require(key)?;
        let nodes = module.graphs.iter().flat_map(|g| &g.nodes);
        let caches = nodes.filter(|n| matches!(n.op, Op::CachedAttention { .. })).map(|n| n.inputs[operand]);
        for state in caches.filter_map(|i: Operand| i.state()).collect::<std::collections::BTreeSet<_>>() {
            module.states[state].ty.layout = Some(layout.as_str().into());
            changes += 1;
        }
    }
    Ok(changes)
}
