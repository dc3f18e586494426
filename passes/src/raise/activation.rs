//! `raise-activation`: `x · sigmoid(x)`, however it is spelled, becomes `silu`.
//!
//! Other activations stay arithmetic, for which there are ops of the tensor level.

use super::look::{Look, distance, is_float, tolerance};
use super::region::Region;
use super::{each_graph, emit, find_all, in_type, replace_all};
use crate::{Keeps, Note, PassInfo};
use dlx_ir::{Binary, DType, Error, Module, Node, Op, Operand, Unary, ValueId, compute};
use std::collections::BTreeMap;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "raise-activation",
    doc: "x · sigmoid(x) in arithmetic → silu",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, notes| each_graph(module, notes, run),
};

/// Most nodes of a spelling: `x / (1 + exp(−x))` with conversions.
const LIMIT: usize = 10;

fn run(module: &mut Module, graph: usize, notes: &mut Vec<Note>) -> Result<usize, Error> {
    let mut known = BTreeMap::new();
    let found = find_all(module, graph, &mut |look, root| find(look, root, &mut known, notes));
    replace_all(module, graph, &found, &mut |rw, name, (x, dtype)| {
        let x = in_type(rw, *x, *dtype)?;
        emit(rw, Op::Silu {}, [x], name)
    })
}

/// How far the regions of these keys are from `silu`.
type Known = BTreeMap<String, f64>;

fn find(look: Look<'_>, root: ValueId, known: &mut Known, notes: &mut Vec<Note>) -> Option<(ValueId, DType)> {
    let node = look.def(Operand::Value(root))?;
    let dtype = look.ty(Operand::Value(root)).dtype;
    if !matches!(node.op, Op::Mul {} | Op::Binary { kind: Binary::Div }) || !is_float(dtype) {
        return None;
    }
    let mut missed = None;
    let found = Region::find(look, root, LIMIT, &may, &mut |region| {
        let logistic = region.has(|n| matches!(n.op, Op::Unary { kind: Unary::Sigmoid | Unary::Exp }));
        let alike = look.shape(Operand::Value(region.source)) == look.shape(Operand::Value(root));
        if !logistic || !alike || !is_float(look.ty(Operand::Value(region.source)).dtype) {
            return None;
        }
        let far = *known.entry(region.key()).or_insert_with(|| far(region, dtype).unwrap_or(f64::INFINITY));
        if far <= 8.0 * tolerance(dtype) {
            return Some((region.source, dtype));
        }
        if far < 1.0 {
            missed = Some(format!("differs by up to {far:.1e} from x · sigmoid(x)"));
        }
        None
    });
    if let (None, Some(why)) = (&found, missed) {
        notes.push(look.note("silu", root, why));
    }
    found
}

/// How far a region is from `silu`.
fn far(region: &Region<'_>, dtype: DType) -> Option<f64> {
    let x = region.noise(6.0, 0.0)?;
    let y = region.of(x.clone())?;
    let x = compute(&Op::Cast { to: dtype, wrap: false }, &[&x]).ok()?.pop()?;
    Some(distance(&compute(&Op::Silu {}, &[&x]).ok()?.pop()?, &y))
}

fn may(node: &Node) -> bool {
    match &node.op {
        Op::Add {} | Op::Mul {} | Op::Scale { .. } | Op::Cast { .. } => true,
        Op::Binary { kind } => *kind == Binary::Div,
        Op::Unary { kind } => matches!(kind, Unary::Sigmoid | Unary::Exp | Unary::Neg | Unary::Reciprocal),
        _ => false,
    }
}
