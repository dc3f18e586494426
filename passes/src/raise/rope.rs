//! `raise-rope`: a rotary embedding spelled in slices, products and sums becomes `rotary` with literal tables.
//!
//! A candidate depends on one value of its own shape `[B, H, T, D]` or `[B, T, H, D]` through views, signs, sums and products
//! with constant tables, so it is linear in that value. Its tables are what it makes of ones in the first half of the features
//! (or at the even ones), whose pairs turn into cosines and sines. What `rotary` computes by these tables is compared with it.

use super::look::{Look, distance, floats, is_float, tensor, tolerance};
use super::region::Region;
use super::{each_graph, emit, find_all, in_type, replace_all};
use crate::{Keeps, Note, PassInfo};
use dlx_ir::{
    Binary, DType, Error, Module, Node, Op, Operand, Rewriter, Tensor, Type, Unary, ValueId, WeightDef, compute,
};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "raise-rope",
    doc: "a rotary embedding in arithmetic → rotary with literal tables",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, notes| each_graph(module, notes, run),
};

/// Most nodes of a spelling: pairs that are split, rotated, stacked and joined with what is not rotated.
const LIMIT: usize = 40;

/// Where the tokens are in `[B, T, H, D]` and in `[B, H, T, D]`.
const PERM: [i64; 4] = [0, 2, 1, 3];

/// A rotation.
#[derive(Clone)]
struct Rotation {
    dtype: DType,
    interleaved: bool,
    /// Cosines and sines `[1, T, R/2]`.
    tables: Rc<[Tensor; 2]>,
    /// Whether heads stand behind the tokens.
    transposed: bool,
}

/// What is known of regions, by their keys.
type Known = BTreeMap<String, Result<Rotation, String>>;

fn run(module: &mut Module, graph: usize, notes: &mut Vec<Note>) -> Result<usize, Error> {
    let mut known = Known::new();
    let found = find_all(module, graph, &mut |look, root| find(look, root, &mut known, notes));
    replace_all(module, graph, &found, &mut |rw, name, (x, found)| {
        let x = in_type(rw, *x, found.dtype)?;
        let [cos, sin] =
            [("rope_cos", &found.tables[0]), ("rope_sin", &found.tables[1])].map(|(n, t)| literal(rw, n, t));
        let turn = |rw: &mut Rewriter<'_>, x, name: &str| {
            let inputs = vec![Operand::Value(x), cos, sin];
            Ok::<_, Error>(rw.emit(Op::Rotary { interleaved: found.interleaved }, inputs, &[name])?[0])
        };
        if !found.transposed {
            return turn(rw, x, name);
        }
        let x = emit(rw, Op::Transpose { perm: PERM.to_vec() }, [x], "heads")?;
        let y = turn(rw, x, "rotated")?;
        emit(rw, Op::Transpose { perm: PERM.to_vec() }, [y], name)
    })
}

/// The literal weight that holds a table.
fn literal(rw: &mut Rewriter<'_>, name: &str, table: &Tensor) -> Operand {
    let ty = Type::new(table.dtype, table.shape.iter().copied());
    let same = |def: &WeightDef| matches!(def, WeightDef::Literal(data) if *data == table.data);
    let known = rw.module.weights.iter().find(|(_, w)| w.name.starts_with(name) && w.ty == ty && same(&w.def));
    let known = known.map(|(id, _)| id);
    Operand::Weight(known.unwrap_or_else(|| rw.module.add_weight(name, ty, WeightDef::Literal(table.data.clone()))))
}

fn find(look: Look<'_>, root: ValueId, known: &mut Known, notes: &mut Vec<Note>) -> Option<(ValueId, Rotation)> {
    let node = look.def(Operand::Value(root))?;
    let ty = look.ty(Operand::Value(root));
    if !matches!(node.op, Op::Add {} | Op::Concat { .. } | Op::Reshape { .. })
        || ty.dims.len() != 4
        || !is_float(ty.dtype)
    {
        return None;
    }
    let mut missed = None;
    let found = Region::find(look, root, LIMIT, &may, &mut |region| {
        let source = Operand::Value(region.source);
        let alike = look.shape(source) == look.shape(Operand::Value(root)) && is_float(look.ty(source).dtype);
        let tables = region.has(|n| matches!(n.op, Op::Mul {}) && n.inputs.iter().any(|i| is_table(look, *i)));
        let given =
            region.has(|n| matches!(n.op, Op::Rotary { .. })) && region.has(|n| matches!(n.op, Op::Concat { .. }));
        if !alike || !tables && !given {
            return None;
        }
        match known.entry(region.key()).or_insert_with(|| rotation(region, ty.dtype)).clone() {
            Ok(found) => return Some((region.source, found)),
            // A table alone is a mask or a weight; halves that change places are a rotation's.
            Err(why) if region.has(|n| matches!(n.op, Op::Concat { .. })) => missed = missed.take().or(Some(why)),
            Err(_) => {}
        }
        None
    });
    if let (None, Some(why)) = (&found, missed) {
        notes.push(look.note("rotary", root, why));
    }
    found
}

fn is_table(look: Look<'_>, operand: Operand) -> bool {
    look.is_constant(operand) && look.ty(operand).elements().is_some_and(|n| n > 1)
}

fn may(node: &Node) -> bool {
    let constant = |i: usize| node.inputs.get(i).is_some_and(|o| o.weight().is_some());
    match &node.op {
        Op::Add {} | Op::Cast { .. } | Op::Concat { .. } | Op::Reshape { .. } | Op::Scale { .. } => true,
        Op::Slice { .. } | Op::Transpose { .. } | Op::Expand { .. } => true,
        Op::Mul {} => constant(0) || constant(1),
        Op::Binary { kind } => *kind == Binary::Sub || *kind == Binary::Div && constant(1),
        Op::Unary { kind } => *kind == Unary::Neg,
        Op::Gather { .. } | Op::Matmul {} => constant(1),
        Op::Rotary { .. } => constant(1) && constant(2),
        _ => false,
    }
}

/// The rotation that a region computes.
fn rotation(region: &Region<'_>, dtype: DType) -> Result<Rotation, String> {
    let unknown = || "cannot be computed on trial numbers".to_owned();
    let x = region.noise(1.0, 0.0).ok_or_else(unknown)?;
    let y = region.of(x.clone()).ok_or_else(unknown)?;
    let x_in_type = cast(&x, dtype).ok_or_else(unknown)?;
    let &[b, one, two, d] = &x.shape[..] else { return Err(unknown()) };
    let part = changed_features(&x_in_type, &y, d);
    let mut nearest = f64::INFINITY;
    for (rotated, interleaved) in [(d, false), (d, true), (part, false), (part, true)] {
        if rotated < 2 || rotated % 2 != 0 || rotated > d {
            continue;
        }
        let first = |f: usize| f < rotated && if interleaved { f.is_multiple_of(2) } else { f < rotated / 2 };
        let ones = (0..b * one * two * d).map(|i| f64::from(u8::from(first(i % d)))).collect();
        let ones = region.input(ones).ok_or_else(unknown)?;
        let turned = region.of(ones).and_then(|t| floats(&t)).ok_or_else(unknown)?;
        for transposed in [false, true] {
            let (heads, tokens) = if transposed { (two, one) } else { (one, two) };
            let at = |head: usize, token: usize| if transposed { token * heads + head } else { head * tokens + token };
            let row = |b: usize, head: usize, token: usize| &turned[(b * heads * tokens + at(head, token)) * d..][..d];
            let same = (0..b * heads * tokens).all(|i| {
                let (b, head, token) = (i / (heads * tokens), i / tokens % heads, i % tokens);
                row(b, head, token) == row(0, 0, token)
            });
            // A rotation of all tokens alike would be one of the heads.
            if !same || tokens > 1 && (1..tokens).all(|t| row(0, 0, t) == row(0, 0, 0)) {
                continue;
            }
            let trim = if interleaved { untouched_pairs(&row, tokens, rotated) } else { 0 };
            let half = rotated / 2 - trim;
            let table = |sine: usize| {
                let place = |k: usize| if interleaved { 2 * k + sine } else { k + sine * (rotated / 2) };
                let numbers = (0..tokens).flat_map(|t| (0..half).map(move |k| row(0, 0, t)[place(k)])).collect();
                tensor(dtype, &[1, tokens, half], numbers).ok_or_else(unknown)
            };
            let tables = [table(0)?, table(1)?];
            let far = distance(&turn(&x_in_type, &tables, interleaved, transposed).ok_or_else(unknown)?, &y);
            if far <= 4.0 * tolerance(dtype) {
                return Ok(Rotation { dtype, interleaved, tables: Rc::new(tables), transposed });
            }
            nearest = nearest.min(far);
        }
    }
    Err(if nearest.is_finite() {
        format!("differs by up to {nearest:.1e} from the nearest rotation")
    } else {
        "does not rotate all heads of a token alike".into()
    })
}

/// One past the last feature that is not passed on as it is, rounded up to a pair.
fn changed_features(x: &Tensor, y: &Tensor, d: usize) -> usize {
    let (Some(x), Some(y)) = (floats(x), floats(y)) else { return 0 };
    let changed = x.iter().zip(&y).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i % d + 1);
    changed.max().unwrap_or(0).next_multiple_of(2)
}

/// How many of the last pairs no token turns.
fn untouched_pairs<'t>(row: &dyn Fn(usize, usize, usize) -> &'t [f64], tokens: usize, rotated: usize) -> usize {
    let still = |pair: usize| (0..tokens).all(|t| row(0, 0, t)[2 * pair..2 * pair + 2] == [1.0, 0.0]);
    (0..rotated / 2).rev().take_while(|pair| still(*pair)).count()
}

fn cast(x: &Tensor, to: DType) -> Option<Tensor> {
    compute(&Op::Cast { to, wrap: false }, &[x]).ok()?.pop()
}

fn turn(x: &Tensor, [cos, sin]: &[Tensor; 2], interleaved: bool, transposed: bool) -> Option<Tensor> {
    let perm = Op::Transpose { perm: PERM.to_vec() };
    let swap = |x: Tensor| if transposed { compute(&perm, &[&x]).ok()?.pop() } else { Some(x) };
    let y = compute(&Op::Rotary { interleaved }, &[&swap(x.clone())?, cos, sin]).ok()?.pop()?;
    swap(y)
}
