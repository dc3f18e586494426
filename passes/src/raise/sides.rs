//! Keys and values of an attention without what repeats, transposes and scales them.
//!
//! What lies between a value and the product is run on the numbers of its elements, so any spelling of it is understood
//! that does nothing else.

use super::look::Look;
use super::mask::Sizes;
use super::scores::factor;
use dlx_ir::{DType, Data, Op, Operand, Tensor, ValueId, compute};
use std::collections::BTreeMap;

/// Most nodes between a value and the product.
const DEPTH: usize = 20;

/// Most elements that are numbered.
const MAX_ELEMENTS: usize = 1 << 24;

/// Keys `[B, G, S, D]` or values `[B, G, S, E]`.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) value: ValueId,
    /// What makes a value of them that has other dimensions first.
    pub(crate) perm: Option<[i64; 4]>,
    /// By what they are multiplied on the way.
    pub(crate) factor: f64,
}

/// Which step and which order of dimensions it was for chains of these keys.
pub(crate) type Known = BTreeMap<String, Option<(usize, Option<[i64; 4]>)>>;

impl Side {
    /// A value as it is.
    pub(crate) fn plain(value: ValueId) -> Self {
        Side { value, perm: None, factor: 1.0 }
    }

    /// How many heads there are.
    pub(crate) fn heads(&self, look: Look<'_>) -> Option<usize> {
        let shape = look.shape(Operand::Value(self.value));
        let at = self.perm.map_or(1, |perm| perm[1] as usize);
        // Without a batch it is 1.
        if shape.len() == 3 {
            at.checked_sub(1).map_or(Some(1), |at| shape.get(at).copied())
        } else {
            shape.get(at).copied()
        }
    }
}

/// One step from the product outward.
struct Step<'a> {
    value: ValueId,
    /// What makes the step before it of this one; scales and conversions are nothing.
    op: Option<&'a Op>,
    /// Product of the scales on the way.
    factor: f64,
}

/// The keys (`transposed`) or values that the right operand of a product is made of.
pub(crate) fn side(
    look: Look<'_>,
    operand: Operand,
    sizes: Sizes,
    transposed: bool,
    known: &mut Known,
) -> Option<Side> {
    let steps = steps(look, operand)?;
    if look.shape(operand).len() == 3 {
        return flat(&steps, transposed);
    }
    let chain: Vec<_> = steps.iter().map(|s| (s.op, look.shape(Operand::Value(s.value)))).collect();
    let key = format!("{chain:?} {sizes:?} {transposed}");
    let (i, perm) = (*known.entry(key).or_insert_with(|| furthest(look, &steps, sizes, transposed)))?;
    Some(Side { value: steps[i].value, perm, factor: steps[i].factor })
}

/// The furthest step that has its dimensions in order, else the furthest at all.
fn furthest(look: Look<'_>, steps: &[Step<'_>], sizes: Sizes, transposed: bool) -> Option<(usize, Option<[i64; 4]>)> {
    const ORDERS: [[i64; 4]; 3] = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2]];
    let all = ORDERS.iter().flat_map(|perm| (0..steps.len()).rev().map(move |i| (i, *perm)));
    let (i, perm) = { all }.find(|(i, perm)| is_side(look, &steps[..=*i], *perm, sizes, transposed))?;
    Some((i, (perm != ORDERS[0]).then_some(perm)))
}

/// Batch and heads are one dimension, so nothing is repeated.
fn flat(steps: &[Step<'_>], transposed: bool) -> Option<Side> {
    let first = steps.first()?;
    let turned = steps.iter().find(|s| s.op.is_some()).filter(|s| s.op == Some(&Op::Transpose { perm: vec![0, 2, 1] }));
    Some(match turned.filter(|_| transposed) {
        Some(step) => Side { value: step.value, perm: None, factor: step.factor },
        None => Side { value: first.value, perm: transposed.then_some([0, 1, 3, 2]), factor: first.factor },
    })
}

fn steps<'a>(look: Look<'a>, operand: Operand) -> Option<Vec<Step<'a>>> {
    let mut steps = vec![Step { value: operand.value()?, op: None, factor: 1.0 }];
    while steps.len() < DEPTH {
        let Some(last) = steps.last() else { break };
        let at = Operand::Value(last.value);
        let (op, inner, by) = match (factor(look, at), look.def(at)) {
            (Some((inner, by)), _) => (None, inner, by),
            (None, Some(node)) => match node.op {
                Op::Reshape { .. } | Op::Transpose { .. } | Op::Expand { .. } => (Some(&node.op), node.inputs[0], 1.0),
                _ if look.uncast(at) != at => (None, node.inputs[0], 1.0),
                _ => break,
            },
            (None, None) => break,
        };
        let Some(value) = inner.value() else { break };
        let factor = last.factor * by;
        steps.push(Step { value, op, factor });
    }
    Some(steps)
}

/// Whether the last step, in another order of dimensions, is what the first one repeats and transposes.
fn is_side(look: Look<'_>, steps: &[Step<'_>], perm: [i64; 4], sizes: Sizes, transposed: bool) -> bool {
    let Some(last) = steps.last() else { return false };
    let shape = look.shape(Operand::Value(last.value));
    let (Ok(shape), [batch, heads, _, keys]) = (<[usize; 4]>::try_from(shape), sizes) else { return false };
    let [b, g, s, d] = perm.map(|p| shape[p as usize]);
    let elements = shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
    if b != batch || g == 0 || heads % g != 0 || s != keys || elements.is_none_or(|n| n > MAX_ELEMENTS) {
        return false;
    }
    let numbers = (0..elements.unwrap_or(0) as i64).collect();
    let mut x = Tensor { dtype: DType::I64, shape: shape.to_vec(), data: Data::I64(numbers) };
    let original = match compute(&Op::Transpose { perm: perm.to_vec() }, &[&x]).map(|mut r| r.pop()) {
        Ok(Some(t)) => t,
        _ => return false,
    };
    for op in steps.iter().rev().filter_map(|s| s.op) {
        match compute(op, &[&x]).map(|mut r| r.pop()) {
            Ok(Some(next)) if next.data.len() <= MAX_ELEMENTS => x = next,
            _ => return false,
        }
    }
    let (Data::I64(found), Data::I64(original)) = (&x.data, &original.data) else { return false };
    let Ok([bx, hx, rows, columns]) = <[usize; 4]>::try_from(x.shape.clone()) else { return false };
    let wanted = if transposed { [d, s] } else { [s, d] };
    if [rows, columns] != wanted || ![1, batch].contains(&bx) || ![1, heads].contains(&hx) {
        return false;
    }
    (0..batch * heads).all(|i| {
        let (b, h) = (i / heads, i % heads);
        let (from, to) = ((b.min(bx - 1) * hx + h.min(hx - 1)) * s * d, (b * g + h * g / heads) * s * d);
        (0..s * d).all(|i| {
            let at = if transposed { i % d * s + i / d } else { i };
            found[from + at] == original[to + i]
        })
    })
}
