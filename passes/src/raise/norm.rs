//! `raise-norm`: a root mean square or layer norm spelled in arithmetic becomes `normalize`; the weight stays a product.
//!
//! A candidate is a product or quotient that depends on one value of its own shape through a mean over the last dimension.
//! What it computes is compared with `normalize` for every small constant in it as epsilon.

use super::look::{Look, distance, is_float, tolerance};
use super::region::Region;
use super::{each_graph, emit, find_all, in_type, replace_all};
use crate::{Keeps, Note, PassInfo};
use dlx_ir::{Binary, DType, Error, Module, Node, Norm, Op, Operand, Reduce, Tensor, Unary, ValueId, compute};
use std::collections::BTreeMap;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "raise-norm",
    doc: "a norm in arithmetic → normalize; its weight stays a product",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, notes| each_graph(module, notes, run),
};

/// Most nodes of a spelling: six and a few conversions.
const LIMIT: usize = 24;

/// What is known of regions, by their keys.
type Known = BTreeMap<String, Result<Op, Option<String>>>;

fn run(module: &mut Module, graph: usize, notes: &mut Vec<Note>) -> Result<usize, Error> {
    let mut known = Known::new();
    let found = find_all(module, graph, &mut |look, root| find(look, root, &mut known, notes));
    replace_all(module, graph, &found, &mut |rw, name, (x, dtype, op)| {
        let x = in_type(rw, *x, *dtype)?;
        emit(rw, op.clone(), [x], name)
    })
}

/// The value that a product or quotient normalizes, in which type, and how.
fn find(look: Look<'_>, root: ValueId, known: &mut Known, notes: &mut Vec<Note>) -> Option<(ValueId, DType, Op)> {
    let node = look.def(Operand::Value(root))?;
    let dtype = look.ty(Operand::Value(root)).dtype;
    if !matches!(node.op, Op::Mul {} | Op::Binary { kind: Binary::Div }) || !is_float(dtype) {
        return None;
    }
    let (mut missed, mut centered) = (None, None);
    let found = Region::find(look, root, LIMIT, &may, &mut |region| {
        let shape = look.shape(Operand::Value(region.source));
        let last = shape.last().copied().unwrap_or(0);
        let means = last > 1 && region.has(|n| is_mean(n, shape.len()));
        if !means
            || shape != look.shape(Operand::Value(root))
            || !is_float(look.ty(Operand::Value(region.source)).dtype)
        {
            return None;
        }
        match known.entry(region.key()).or_insert_with(|| norm(look, region)).clone() {
            // What is without its mean already may be half of a layer norm.
            Ok(op) if is_difference(look, region.source) => centered = Some((region.source, dtype, op)),
            Ok(op) => return Some((region.source, dtype, op)),
            Err(why) => missed = missed.take().or(why),
        }
        None
    });
    let found = found.or(centered);
    if let (None, Some(why)) = (&found, missed) {
        notes.push(look.note("normalize", root, why));
    }
    found
}

fn may(node: &Node) -> bool {
    match &node.op {
        Op::Add {} | Op::Mul {} | Op::Scale { .. } | Op::Cast { .. } | Op::Reduce { .. } => true,
        Op::Binary { kind } => matches!(kind, Binary::Sub | Binary::Div | Binary::Pow | Binary::Max),
        Op::Unary { kind } => matches!(kind, Unary::Sqrt | Unary::Reciprocal),
        _ => false,
    }
}

fn is_difference(look: Look<'_>, value: ValueId) -> bool {
    look.def(Operand::Value(value)).is_some_and(|n| n.op == Op::Binary { kind: Binary::Sub })
}

fn is_mean(node: &Node, rank: usize) -> bool {
    matches!(&node.op, Op::Reduce { kind: Reduce::Mean | Reduce::Sum, axes } if *axes == [rank as i64 - 1])
}

/// The normalization that a region computes, or what it looks like and does not.
fn norm(look: Look<'_>, region: &Region<'_>) -> Result<Op, Option<String>> {
    let mut eps: Vec<f64> = region.nodes.iter().flat_map(|n| &n.inputs).filter_map(|i| look.scalar(*i)).collect();
    eps.retain(|v| *v > 0.0 && *v < 0.1);
    eps.push(0.0);
    // Where squares are as small as epsilon, epsilon shows; and the mean shows where numbers do not lie around zero.
    let small = eps.iter().copied().filter(|v| *v > 0.0).fold(1e-6, f64::min);
    let probe = |factor: f64| {
        let x = region.noise(factor, 0.3)?;
        Some((region.of(x.clone())?, x))
    };
    let (Some(large), Some(small)) = (probe(1.0), probe(small.sqrt())) else { return Err(None) };
    let dtype = look.ty(Operand::Value(region.root)).dtype;
    let mut nearest = (f64::INFINITY, String::new());
    for kind in [Norm::Rms, Norm::Layer] {
        for eps in eps.iter().map(|v| *v as f32) {
            let op = Op::Normalize { kind, eps };
            let far = [&large, &small].map(|(y, x)| far(&op, x, y, dtype)).into_iter().fold(0.0, f64::max);
            if far <= 4.0 * tolerance(dtype) {
                return Ok(op);
            }
            if far < nearest.0 {
                nearest = (far, format!("{kind} with an epsilon of {eps:e}"));
            }
        }
    }
    // What is not even near is something else with a mean in it.
    Err((nearest.0 < 0.5).then(|| format!("differs by up to {:.1e} from {}, the nearest norm", nearest.0, nearest.1)))
}

/// How far the op of x is from y.
fn far(op: &Op, x: &Tensor, y: &Tensor, dtype: DType) -> f64 {
    let one = |op: &Op, x: &Tensor| compute(op, &[x]).ok()?.pop();
    let z = one(&Op::Cast { to: dtype, wrap: false }, x).and_then(|x| one(op, &x));
    z.map_or(f64::INFINITY, |z| distance(&z, y))
}
