//! `cache-kv`: the full-sequence `@forward` becomes `@step`, which keeps keys and values in states.
//!
//! ```text
//! %a = attention %q, %k, %v {head_dim=64, mask=causal}: f32[T, 192]
//! ```
//! becomes
//! ```text
//! kv_write %k, %v, @kv.0.k, @kv.0.v, %spans
//! %a = cached_attention %q, @kv.0.k, @kv.0.v, %spans {head_dim=64, mask=causal}: f32[T, 192]
//! ```
//! A state is one slot: what one sequence needs. How many slots there are is the executor's business.
//!
//! Parameters: `max_seq` (cache rows of a slot), `kv` (f32, f16, or q8: int8 with one scale per row and head).

use crate::{Keeps, Params, PassInfo};
use dlx_ir::{DType, EntryKind, Error, Module, Op, Operand, Rewrite, Type, rewrite, spans_type};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "cache-kv",
    doc: "@forward → @step with KV states {max_seq, kv=f32|f16|q8}",
    params: &["max_seq", "kv"],
    keeps: |params| match params.get("kv") {
        Some("f16") => Keeps::Format(0.005),
        Some("q8") => Keeps::Format(0.03),
        _ => Keeps::Bits,
    },
    run,
};

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let max_seq: usize = params.require("max_seq")?;
    let kv: DType = params.require("kv")?;
    let missing =
        || Error::new("module", "there is no graph @forward").help("cache-kv runs once, on an imported model");
    let index = module.graphs.iter().position(|g| g.name == "forward").ok_or_else(missing)?;
    let graph = &mut module.graphs[index];
    graph.name = EntryKind::Step.name().into();
    // The new parameter keeps its number: a rewrite copies parameters first and in order.
    let spans = graph.params.len();
    graph.param("spans", spans_type());
    let mut layer = 0;
    let done = rewrite(module, index, &mut |rw, node| {
        let Op::Attention { head_dim, mask } = &node.op else { return Ok(Rewrite::Keep) };
        let ([q, k, v], Some(mask)) = (&node.inputs[..], mask) else {
            let help = "run block-attention first; a mask that is not made by a rule cannot be cached";
            return Err(Error::new(rw.old_text(), "the attention has no static mask").help(help));
        };
        let hd = *head_dim as usize;
        let features = rw.module.operand_type(&rw.graph, *k).dims.last().and_then(|d| d.fixed()).unwrap_or(0);
        let ty = Type::new(kv, [max_seq, features / hd, hd]);
        let mut state = |kind: &str| Operand::State(rw.module.add_state(&format!("kv.{layer}.{kind}"), ty.clone()));
        let (k_state, v_state) = (state("k"), state("v"));
        layer += 1;
        let spans = Operand::Value(rw.graph.params[spans]);
        rw.emit(Op::KvWrite {}, vec![*k, *v, k_state, v_state, spans], &[])?;
        let op = Op::CachedAttention { head_dim: *head_dim, mask: *mask };
        let name = rw.old_name(node, 0);
        Ok(Rewrite::Replace(rw.emit(op, vec![*q, k_state, v_state, spans], &[&name])?))
    })?;
    Ok(done.changes)
}
