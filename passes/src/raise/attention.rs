//! `raise-attention`: `softmax(q · kᵀ) · v` with its scales, cap and masks becomes `sdpa`, and a mask that follows a rule its name.
//!
//! Scales may stand on either side of the product, masks be added or selected. What lies between keys or values and the
//! product is asked by numbering elements: whether it transposes or repeats heads, and nothing else. An `sdpa` that is there
//! already is given the same forms. A mask of which no rule is proven stays an operand.

use super::look::{Look, is_float};
use super::mask::{Kind, Sizes, Term, Verdict, verdict};
use super::scores::{Scores, unscaled};
use super::sides::{self, Side, side};
use super::{each_graph, emit, emit_cast, find_all, in_type, replace_all};
use crate::{Keeps, Note, PassInfo};
use dlx_ir::{Binary, DType, Error, Mask, Module, Op, Operand, Rewriter, Unary, ValueId};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "raise-attention",
    doc: "attention in arithmetic → sdpa; masks that follow a rule → its name",
    params: &[],
    keeps: |_| Keeps::Rounding,
    run: |module, _, notes| each_graph(module, notes, run),
};

/// An attention.
struct Found {
    /// Heads as a dimension of their own, or `None` where batch and heads are one dimension.
    heads: bool,
    q: ValueId,
    k: Side,
    v: Side,
    dtype: DType,
    scale: f32,
    cap: Option<f32>,
    rule: Option<Mask>,
    /// The input that says which keys there are, or masks of which no rule is known.
    padding: Option<ValueId>,
    terms: Vec<Term>,
    result: Vec<i64>,
}

/// What was found already: layers share their masks and repeat their views.
#[derive(Default)]
struct Known {
    /// Rules by the masks and sizes that they were found for.
    rules: BTreeMap<(Vec<Term>, String, Sizes), Result<Verdict, String>>,
    sides: sides::Known,
}

fn run(module: &mut Module, graph: usize, notes: &mut Vec<Note>) -> Result<usize, Error> {
    let (mut known, mut missed, mut used) = (Known::default(), BTreeMap::new(), BTreeSet::new());
    let found = find_all(module, graph, &mut |look, root| {
        let node = look.def(Operand::Value(root))?;
        match node.op {
            Op::Sdpa { .. } => given(look, root, &mut known, notes),
            Op::Softmax {} => {
                missed.insert(root, look.note("sdpa", root, "feeds no product with values"));
                None
            }
            Op::Matmul {} => {
                let softmax = probabilities(look, node.inputs[0])?;
                match spelled(look, root, softmax, &mut known, notes) {
                    Ok(found) => {
                        used.insert(softmax);
                        Some(found)
                    }
                    Err(why) => {
                        missed.insert(softmax, look.note("sdpa", softmax, why));
                        None
                    }
                }
            }
            _ => None,
        }
    });
    notes.extend(missed.into_iter().filter(|(v, _)| !used.contains(v)).map(|(_, note)| note));
    let mut paddings = BTreeMap::new();
    replace_all(module, graph, &found, &mut |rw, name, found| make(rw, name, found, &mut paddings))
}

/// The softmax of which an operand is, but for its type and for rows that see nothing, the result.
fn probabilities(look: Look<'_>, operand: Operand) -> Option<ValueId> {
    let mut p = look.uncast(operand);
    let node = look.def(p)?;
    if let (Op::Select {}, [is_nan, zero, other]) = (&node.op, &node.inputs[..]) {
        let test = look.def(*is_nan).filter(|n| matches!(n.op, Op::Unary { kind: Unary::IsNan }))?;
        if look.scalar(*zero) != Some(0.0) || look.uncast(test.inputs[0]) != look.uncast(*other) {
            return None;
        }
        p = look.uncast(*other);
    }
    look.def(p).filter(|n| matches!(n.op, Op::Softmax {}))?;
    p.value()
}

/// An attention that ends with the product `root`.
fn spelled(
    look: Look<'_>,
    root: ValueId,
    softmax: ValueId,
    known: &mut Known,
    notes: &mut Vec<Note>,
) -> Result<Found, String> {
    let node = look.def(Operand::Value(root)).ok_or("is no product")?;
    let input = look.def(Operand::Value(softmax)).ok_or("is no softmax")?.inputs[0];
    let scores = Scores::of(look, input)?;
    let dtype = look.ty(Operand::Value(root)).dtype;
    let result = look.shape(Operand::Value(root));
    let sizes = look.shape(Operand::Value(softmax));
    let heads = sizes.len() == 4;
    let sizes: Sizes = match sizes[..] {
        [b, h, t, s] => [b, h, t, s],
        [n, t, s] => [1, n, t, s],
        _ => return Err("has scores that are not of three or four dimensions".into()),
    };
    let (q, q_scale) = unscaled(look, scores.q);
    let q = q.value().ok_or("has queries that are a weight")?;
    let of_queries = look.shape(Operand::Value(q));
    let rows = if heads { &sizes[..3] } else { &sizes[1..3] };
    if of_queries.split_last().map(|(_, rest)| rest) != Some(rows) || result.len() != of_queries.len() {
        return Err("has queries that are repeated".into());
    }
    let k = side(look, scores.k, sizes, true, &mut known.sides)
        .ok_or("has keys that are neither transposed nor repeated by heads")?;
    let v = side(look, node.inputs[1], sizes, false, &mut known.sides)
        .ok_or("has values that are not repeated by heads")?;
    if v.factor != 1.0 || !is_float(dtype) {
        return Err("has values that are scaled".into());
    }
    if k.heads(look) != v.heads(look) {
        return Err(
            "has keys and values of another number of heads, of which something between hides the repetition".into()
        );
    }
    let scale = (scores.scale * q_scale * k.factor) as f32;
    let result = result.iter().map(|n| *n as i64).collect();
    let cap = scores.cap.map(|c| c as f32);
    let mut found = Found { heads, q, k, v, dtype, scale, cap, rule: None, padding: None, terms: scores.terms, result };
    name_mask(look, root, &mut found, sizes, Mask::Full, known, notes);
    let kinds: BTreeSet<bool> = found.terms.iter().map(|t| t.kind == Kind::Added).collect();
    if kinds.len() > 1 {
        return Err("adds a mask and selects by another, of which no rule is known".into());
    }
    Ok(found)
}

/// An `sdpa` that can be said more simply.
fn given(look: Look<'_>, root: ValueId, known: &mut Known, notes: &mut Vec<Note>) -> Option<Found> {
    let node = look.def(Operand::Value(root))?;
    let Op::Sdpa { scale, cap, mask } = node.op else { return None };
    let [b, h, t, _] = look.shape(node.inputs[0])[..] else { return None };
    let s = *look.shape(node.inputs[1]).get(2)?;
    let (sizes, dtype) = ([b, h, t, s], look.ty(Operand::Value(root)).dtype);
    let (q, q_scale) = unscaled(look, node.inputs[0]);
    let (mut k, mut v) = (
        side(look, node.inputs[1], sizes, false, &mut known.sides)?,
        side(look, node.inputs[2], sizes, false, &mut known.sides)?,
    );
    let kind = |operand: &Operand| if look.ty(*operand).dtype == DType::Bool { Kind::Keeps } else { Kind::Added };
    let terms: Vec<Term> = node.inputs.get(3).map(|o| Term { operand: *o, kind: kind(o) }).into_iter().collect();
    let (plain, masked) =
        ([node.inputs[0].value()?, node.inputs[1].value()?, node.inputs[2].value()?], !terms.is_empty());
    if k.heads(look) != v.heads(look) {
        (k, v) = (Side::plain(plain[1]), Side::plain(plain[2]));
    }
    let scaled = (f64::from(scale) * q_scale * k.factor) as f32;
    let mut found = Found {
        heads: true,
        q: q.value()?,
        k,
        v,
        dtype,
        scale: scaled,
        cap,
        rule: mask,
        padding: None,
        terms,
        result: Vec::new(),
    };
    if found.v.factor != 1.0 {
        found.v = Side::plain(plain[2]);
    }
    if found.k.heads(look) != found.v.heads(look) {
        found.k = Side { factor: found.k.factor, ..Side::plain(plain[1]) };
        found.v = Side::plain(plain[2]);
        found.scale = (f64::from(scale) * q_scale) as f32;
    }
    if masked || mask.is_some() {
        name_mask(look, root, &mut found, sizes, mask.unwrap_or(Mask::Full), known, notes);
    }
    let named = masked && found.terms.is_empty() || found.rule != mask;
    let simpler = [found.q, found.k.value, found.v.value] != plain || named;
    simpler.then_some(found)
}

/// Gives the masks of an attention the name of their rule, or notes why they have none.
fn name_mask(
    look: Look<'_>,
    root: ValueId,
    found: &mut Found,
    sizes: Sizes,
    rule: Mask,
    known: &mut Known,
    notes: &mut Vec<Note>,
) {
    let key = (found.terms.clone(), rule.to_string(), sizes);
    match known.rules.entry(key).or_insert_with(|| verdict(look, &found.terms, rule, sizes)) {
        Ok(verdict) => {
            found.rule = Some(verdict.rule).filter(|rule| *rule != Mask::Full);
            found.padding = verdict.padding;
            found.terms.clear();
        }
        Err(why) => notes.push(look.note("mask", root, why.as_str())),
    }
}

fn make(
    rw: &mut Rewriter<'_>,
    name: &str,
    found: &Found,
    paddings: &mut BTreeMap<ValueId, ValueId>,
) -> Result<ValueId, Error> {
    let fit = |rw: &mut Rewriter<'_>, value: ValueId, perm: Option<[i64; 4]>| {
        let mut x = in_type(rw, value, found.dtype)?;
        let ty = &rw.graph.values[x].ty;
        if let (3, Some(shape)) = (ty.dims.len(), ty.shape()) {
            let dims = std::iter::once(1).chain(shape.iter().map(|n| *n as i64)).collect();
            x = emit(rw, Op::Reshape { dims }, [x], "heads")?;
        }
        match perm {
            Some(perm) => emit(rw, Op::Transpose { perm: perm.to_vec() }, [x], "heads"),
            None => Ok(x),
        }
    };
    let q = fit(rw, found.q, None)?;
    let k = fit(rw, found.k.value, found.k.perm)?;
    let v = fit(rw, found.v.value, found.v.perm)?;
    let mut inputs: Vec<Operand> = [q, k, v].map(Operand::Value).to_vec();
    match found.padding {
        Some(input) => {
            let known = paddings.get(&input).copied();
            let padding = known.map_or_else(|| padding(rw, input), Ok)?;
            paddings.insert(input, padding);
            inputs.push(Operand::Value(padding));
        }
        None => inputs.extend(mask(rw, found)?),
    }
    let op = Op::Sdpa { scale: found.scale, cap: found.cap, mask: found.rule };
    if found.heads {
        return Ok(rw.emit(op, inputs, &[name])?[0]);
    }
    let y = rw.emit(op, inputs, &["attention"])?[0];
    emit(rw, Op::Reshape { dims: found.result.clone() }, [y], name)
}

/// Which keys there are, as a mask of scores.
fn padding(rw: &mut Rewriter<'_>, input: ValueId) -> Result<ValueId, Error> {
    let x = in_type(rw, input, DType::Bool)?;
    let shape = rw.graph.values[x].ty.shape().unwrap_or_default();
    let [b, s] = shape[..] else { return Err(Error::new("padding", "is not one number for each key")) };
    emit(rw, Op::Reshape { dims: vec![b as i64, 1, 1, s as i64] }, [x], "padding")
}

/// The masks of which no rule is known, as one operand.
fn mask(rw: &mut Rewriter<'_>, found: &Found) -> Result<Option<Operand>, Error> {
    let mut joined: Option<Operand> = None;
    for term in &found.terms {
        let mut operand = match term.operand {
            Operand::Value(v) => match rw.mapped(v) {
                Some(v) => Operand::Value(v),
                None => return Err(Error::new(rw.old_text(), "reads a mask that was dropped")),
            },
            other => other,
        };
        let dtype = rw.module.operand_type(&rw.graph, operand).dtype;
        if term.kind == Kind::Drops {
            operand = Operand::Value(rw.emit(Op::Unary { kind: Unary::Not }, vec![operand], &["mask"])?[0]);
        } else if term.kind == Kind::Added && dtype != found.dtype {
            operand = match operand {
                Operand::Value(v) => Operand::Value(emit_cast(rw, v, found.dtype)?),
                other => Operand::Value(rw.emit(Op::Cast { to: found.dtype, wrap: false }, vec![other], &["mask"])?[0]),
            };
        }
        joined = Some(match joined {
            None => operand,
            Some(first) => {
                let op = if term.kind == Kind::Added { Op::Add {} } else { Op::Binary { kind: Binary::And } };
                Operand::Value(rw.emit(op, vec![first, operand], &["mask"])?[0])
            }
        });
    }
    // A mask of heads and batch in one is one of heads.
    if let (Some(operand), false) = (joined, found.heads) {
        let shape = rw.module.operand_type(&rw.graph, operand).shape().unwrap_or_default();
        if shape.len() == 3 {
            let dims = std::iter::once(1).chain(shape.iter().map(|n| *n as i64)).collect();
            joined = Some(Operand::Value(rw.emit(Op::Reshape { dims }, vec![operand], &["mask"])?[0]));
        }
    }
    Ok(joined)
}
