//! A program resolved for the CPU: packed weights in the mapped file, entries as lists of instructions.
//!
//! Invariant: what loads here satisfies everything that the kernels assert beyond the types that the verifier checked.

use std::ops::Range;
use std::sync::Arc;

use dlx_ir::layout::N16;
use dlx_ir::{Cost, DType, Entry, Graph, Id, Module, Op, Operand, WeightDef};

use super::arena::Slot;
use super::error::{LoadError, bad};
use super::{MAX_WEIGHTS, PackedWeight, packed_bytes, proof};
use crate::mapped::Mapped;

/// Packed matrices stay in the mapped file; vectors are copied, since kernels read them as aligned f32.
pub(super) struct Weights {
    pub(super) file: Arc<Mapped>,
    pub(super) all: Vec<Weight>,
    /// Whether pages are let go as soon as a node has read them.
    pub(super) passing: bool,
}

pub(super) enum Weight {
    Matrix { dtype: DType, n: usize, k: usize, bytes: Range<usize> },
    Vector(Vec<f32>),
}

/// A compiled graph.
pub(super) struct Code {
    pub(super) entry: Entry,
    pub(super) params: Vec<Slot>,
    pub(super) results: Vec<Slot>,
    pub(super) code: Vec<Instr>,
    /// Instructions of the first layer.
    pub(super) first_layer: usize,
}

pub(super) struct Instr {
    pub(super) op: Op,
    pub(super) inputs: Vec<Loc>,
    pub(super) outputs: Vec<Slot>,
    /// Name of the first result, for observers.
    pub(super) name: String,
    /// Names of the further ones.
    pub(super) others: Vec<String>,
    /// What it costs, for observers.
    pub(super) cost: Cost,
}

#[derive(Clone, Copy)]
pub(super) enum Loc {
    Slot(Slot),
    Weight(usize),
    State(usize),
}

impl Weights {
    pub(super) fn load(module: &Module, file: Arc<Mapped>, section: Range<usize>) -> Result<Self, LoadError> {
        let mut all = Vec::with_capacity(module.weights.len());
        for (_, w) in module.weights.iter() {
            let place = || module.weight_text(w);
            let WeightDef::Stored { offset, bytes, .. } = w.def else {
                return Err(bad(format!("{}: is not stored", place())));
            };
            let start = usize::try_from(offset).ok().and_then(|o| o.checked_add(section.start));
            let end = start.and_then(|s| s.checked_add(usize::try_from(bytes).ok()?));
            let range = match (start, end) {
                (Some(s), Some(e)) if e <= section.end && section.end <= file.bytes().len() => s..e,
                _ => return Err(bad(format!("{}: lies outside the weights", place()))),
            };
            let weight = match (w.ty.shape().as_deref(), w.ty.layout.as_deref(), w.ty.dtype) {
                (Some(&[n, k]), Some(N16), dtype) if packed_bytes(dtype, n, k) == Some(range.len()) => {
                    Weight::Matrix { dtype, n, k, bytes: range }
                }
                (Some(&[_]), None, DType::F32) => {
                    let (words, _) = file.bytes()[range].as_chunks::<4>();
                    Weight::Vector(words.iter().map(|w| f32::from_le_bytes(*w)).collect())
                }
                _ => return Err(bad(format!("{}: has a layout that is not read here", place()))),
            };
            all.push(weight);
        }
        Ok(Weights { file, all, passing: false })
    }

    pub(super) fn matrix(&self, loc: Loc) -> Option<PackedWeight<'_>> {
        let Loc::Weight(w) = loc else { return None };
        let Weight::Matrix { dtype, n, k, bytes } = &self.all[w] else { return None };
        PackedWeight::new(*dtype, *n, *k, &self.file.bytes()[bytes.clone()])
    }

    /// Where in the file a matrix is.
    pub(super) fn place(&self, loc: Loc) -> Option<Range<usize>> {
        let Loc::Weight(w) = loc else { return None };
        let Weight::Matrix { bytes, .. } = &self.all[w] else { return None };
        Some(bytes.clone())
    }

    pub(super) fn vector(&self, weight: usize) -> &[f32] {
        match &self.all[weight] {
            Weight::Vector(v) => v,
            Weight::Matrix { .. } => unreachable!("vectors and matrices are told apart at load"),
        }
    }
}

impl Code {
    /// Resolves a verified graph, refusing everything that the kernels would not accept.
    pub(super) fn load(module: &Module, graph: &Graph) -> Result<Self, String> {
        let entry = Entry::of(graph)?;
        proof::graph(module, graph, entry.kind)?;
        let mut slots = Vec::with_capacity(graph.values.len());
        for (_, v) in graph.values.iter() {
            slots
                .push(Slot::of(v, entry.rows).ok_or_else(|| format!("%{} is not planned, or has other rows", v.name))?);
        }
        let loc = |operand: &Operand| match operand {
            Operand::Value(v) => Loc::Slot(slots[v.index()]),
            Operand::Weight(w) => Loc::Weight(w.index()),
            Operand::State(s) => Loc::State(s.index()),
        };
        let mut code = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            runnable(module, graph, node).map_err(|e| format!("{}: {e}", module.node_text(graph, node)))?;
            let inputs: Vec<Loc> = node.inputs.iter().map(loc).collect();
            code.push(Instr {
                op: node.op.clone(),
                cost: Cost::of(module, graph, node).unwrap_or_default(),
                inputs,
                outputs: node.outputs.iter().map(|o| slots[o.index()]).collect(),
                name: node.outputs.first().map_or_else(String::new, |o| graph.values[*o].name.clone()),
                others: node.outputs.iter().skip(1).map(|o| graph.values[*o].name.clone()).collect(),
            });
        }
        let slots_of = |ids: &[dlx_ir::ValueId]| ids.iter().map(|v| slots[v.index()]).collect();
        let first_layer = dlx_ir::first_layer(graph).map_or(code.len(), |(nodes, _)| nodes);
        let (params, results) = (slots_of(&graph.params), slots_of(&graph.results));
        Ok(Code { entry, params, results, code, first_layer })
    }
}

/// What the kernels ask of a node beyond its types.
fn runnable(module: &Module, graph: &Graph, node: &dlx_ir::Node) -> Result<(), String> {
    let matrix = |i: usize| module.operand_type(graph, node.inputs[i]).layout.as_deref() == Some(N16);
    let vector = |i: usize| module.operand_type(graph, node.inputs[i]).dims.len() == 1;
    let values = |range: Range<usize>| node.inputs[range].iter().all(|i| i.value().is_some());
    // The rows of the operands are those of the result: nothing repeats.
    let alike = |i: &Operand| {
        let ty = module.operand_type(graph, *i);
        ty.dtype == DType::F32 && node.outputs.iter().all(|o| graph.values[*o].ty == *ty)
    };
    let rows = |i: usize| module.operand_type(graph, node.inputs[i]).dims.len() == 2;
    let ok = match &node.op {
        Op::Add {} | Op::Mul {} => values(0..2) && node.inputs.iter().all(alike),
        Op::Scale { .. } | Op::Silu {} | Op::RopeTable { .. } => values(0..1),
        Op::Embed {} => matrix(1),
        Op::RmsNorm { .. } => values(0..1) && vector(1),
        Op::Rope { .. } => values(0..2),
        Op::Linear { n, bias, .. } => {
            let n = *n as usize;
            let ends = values(0..1) && node.inputs.iter().skip(1 + n).all(|i| i.state().is_none());
            n <= MAX_WEIGHTS && ends && rows(0) && (1..=n).all(matrix) && (!bias || (n + 1..=2 * n).all(vector))
        }
        Op::HeadStats { .. } => values(0..1) && matrix(1),
        Op::KvWrite {} => {
            values(0..2) && node.inputs[2] != node.inputs[3] && caches(module, node.inputs[2], node.inputs[3])
        }
        Op::CachedAttention { .. } => values(0..1) && caches(module, node.inputs[1], node.inputs[2]),
        Op::StoreRows {} => values(0..1) && rows_state(module, node.inputs[1]),
        Op::TakeRows {} => rows_state(module, node.inputs[0]),
        _ => return Err("this op is not run on the CPU".into()),
    };
    if ok { Ok(()) } else { Err("an operand has a form that the CPU does not read".into()) }
}

fn caches(module: &Module, k: Operand, v: Operand) -> bool {
    let [Some(k), Some(v)] = [k, v].map(|s| s.state().map(|s| &module.states[s].ty)) else { return false };
    let layouts = [k, v].map(|ty| ty.layout.as_deref());
    k.dtype == v.dtype && k.dims == v.dims && layouts == [Some("cpu.k16"), Some("cpu.v")]
}

fn rows_state(module: &Module, state: Operand) -> bool {
    let ty = state.state().map(|s| &module.states[s].ty);
    ty.is_some_and(|ty| ty.dtype == DType::F32 && ty.layout.is_none() && ty.dims.len() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What loading says of a step of four rows that holds these nodes.
    fn load(nodes: &str) -> Result<(), String> {
        let text = format!(
            "module @m {{
               weight @w: f32[8, 4] @n16 = stored {{offset=0, bytes=256}}
               weight @one: f32[8, 1] @n16 = stored {{offset=256, bytes=64}}
               graph @step_4(%ids: i32[4], %pos: i32[4], %spans: i32[64, 5]) -> () {{
                 %x = embed %ids, @w: f32[4, 4]
                 %y = embed %ids, @w: f32[4, 4]
                 %c = embed %ids, @one: f32[4, 1]
                 {nodes}
                 return
               }}
             }}"
        );
        let mut module = dlx_ir::parse(&text).map_err(|e| e.to_string())?;
        dlx_ir::plan_memory(&mut module.graphs[0])?;
        dlx_ir::verify(&module).map_err(|e| e[0].to_string())?;
        Code::load(&module, &module.graphs[0]).map(drop)
    }

    #[test]
    fn portable_ops_beyond_rows_of_f32_are_refused() {
        load("%z = add %x, %y: f32[4, 4]").unwrap();
        load("%z = mul %c, %c: f32[4, 1]").unwrap();
        for nodes in ["%z = add %x, %c: f32[4, 4]", "%z = mul %c, %x: f32[4, 4]", "%z = add %ids, %pos: i32[4]"] {
            let error = load(nodes).unwrap_err();
            assert!(error.contains("a form that the CPU does not read"), "{nodes}: {error}");
        }
        for (nodes, message) in [
            ("%z = reshape %x {dims=[4, 2, 2]}: f32[4, 2, 2]", "%z is not planned, or has other rows"),
            ("%z = transpose %x: f32[4, 4]", "not run on the CPU"),
            ("%z = concat %x, %y {axis=1}: f32[4, 8]", "not run on the CPU"),
            ("%z = binary %x, %y {kind=sub}: f32[4, 4]", "not run on the CPU"),
        ] {
            let error = load(nodes).unwrap_err();
            assert!(error.contains(message), "{nodes}: {error}");
        }
    }
}
