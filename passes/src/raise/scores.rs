//! Scores of an attention: the product of queries and keys, and what scales, caps and masks it before the softmax.

use super::look::Look;
use super::mask::{Kind, Term};
use dlx_ir::{Binary, Op, Operand, Unary};

/// Steps from the softmax to the product, at most.
const DEPTH: usize = 12;

/// What a softmax is given: `cap · tanh(scale · q · k / cap)` under masks.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    pub(crate) q: Operand,
    pub(crate) k: Operand,
    pub(crate) scale: f64,
    pub(crate) cap: Option<f64>,
    pub(crate) terms: Vec<Term>,
}

/// What was met on the way from the softmax inward.
#[derive(Clone, Default)]
struct Way {
    factor: Option<f64>,
    cap: Option<f64>,
    terms: Vec<Term>,
}

impl Scores {
    /// The scores that an operand is.
    ///
    /// # Errors
    /// Where the way to a product ends.
    pub(crate) fn of(look: Look<'_>, operand: Operand) -> Result<Self, String> {
        walk(look, operand, Way::default(), DEPTH)
    }
}

fn walk(look: Look<'_>, operand: Operand, mut way: Way, depth: usize) -> Result<Scores, String> {
    let operand = look.uncast(operand);
    let end = |why: &str| Err(format!("its scores {} {why}", look.name(operand)));
    let (Some(node), Some(depth)) = (look.def(operand), depth.checked_sub(1)) else {
        return end("come from no product of queries and keys");
    };
    if let Some((inner, by)) = factor(look, operand) {
        way.factor = Some(way.factor.unwrap_or(1.0) * by);
        return walk(look, inner, way, depth);
    }
    let masks_outside = way.factor.is_none() && way.cap.is_none();
    match (&node.op, &node.inputs[..]) {
        (Op::Matmul {}, [q, k]) => {
            let scale = way.factor.unwrap_or(1.0) * way.cap.unwrap_or(1.0);
            Ok(Scores { q: *q, k: *k, scale, cap: way.cap, terms: way.terms })
        }
        (Op::Unary { kind: Unary::Tanh }, [inner]) => {
            let cap = way.factor.take().unwrap_or(1.0);
            if way.cap.is_some() || cap <= 0.0 {
                return end("are capped twice");
            }
            way.cap = Some(cap);
            walk(look, *inner, way, depth)
        }
        (Op::Add {}, [a, b]) => {
            if !masks_outside {
                return end("are masked before they are scaled or capped");
            }
            let mut first = None;
            for (scores, mask) in [(a, b), (b, a)] {
                if scores.value().is_none() {
                    continue;
                }
                let mut way = way.clone();
                way.terms.push(Term { operand: *mask, kind: Kind::Added });
                match walk(look, *scores, way, depth) {
                    Ok(found) => return Ok(found),
                    Err(why) => first = first.or(Some(why)),
                }
            }
            Err(first.unwrap_or_else(|| "its scores are constant".into()))
        }
        (Op::Select {}, [condition, a, b]) => {
            if !masks_outside {
                return end("are masked before they are scaled or capped");
            }
            let never = |o: &Operand| look.scalar(*o).is_some_and(|v| v <= -1e4);
            let (scores, kind) = match (never(a), never(b)) {
                (false, true) => (a, Kind::Keeps),
                (true, false) => (b, Kind::Drops),
                _ => return end("are selected, but not by a mask"),
            };
            way.terms.push(Term { operand: *condition, kind });
            walk(look, *scores, way, depth)
        }
        _ => end("come from no product of queries and keys"),
    }
}

/// The operand that another one is a multiple of, and the factor.
pub(crate) fn factor(look: Look<'_>, operand: Operand) -> Option<(Operand, f64)> {
    let node = look.def(operand)?;
    match (&node.op, &node.inputs[..]) {
        (Op::Scale { by }, [x]) => Some((*x, f64::from(*by))),
        (Op::Mul {}, [a, b]) => match (look.scalar(*a), look.scalar(*b)) {
            (None, Some(by)) if keeps_shape(look, operand, *a) => Some((*a, by)),
            (Some(by), None) if keeps_shape(look, operand, *b) => Some((*b, by)),
            _ => None,
        },
        (Op::Binary { kind: Binary::Div }, [x, by]) if keeps_shape(look, operand, *x) => {
            let by = look.scalar(*by).filter(|by| *by != 0.0)?;
            Some((*x, 1.0 / by))
        }
        _ => None,
    }
}

fn keeps_shape(look: Look<'_>, a: Operand, b: Operand) -> bool {
    look.ty(a).dims == look.ty(b).dims
}

/// An operand without the factors and conversions above it, and their product.
pub(crate) fn unscaled(look: Look<'_>, operand: Operand) -> (Operand, f64) {
    let (mut operand, mut product) = (look.uncast(operand), 1.0);
    while let Some((inner, by)) = factor(look, operand) {
        operand = look.uncast(inner);
        product *= by;
    }
    (operand, product)
}
