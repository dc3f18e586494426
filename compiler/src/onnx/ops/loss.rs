//! Losses of classification.

use dlx_ir::{Compare, DType, Op, Reduce, Unary};

use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::{Row, one};

const LOSS: &[Row] = &[
    ("", "NegativeLogLikelihoodLoss", |i, c, _| one(likelihood(i, c, c.arg(0)?))),
    ("", "SoftmaxCrossEntropyLoss", cross_entropy),
];

pub(super) const ROWS: &[&[Row]] = &[LOSS];

/// The loss of logarithms of probabilities `[N, C, …]` for classes `[N, …]`.
fn likelihood(i: &mut Importer<'_>, c: &Call<'_>, x: &Val) -> Result<Val, String> {
    let target = i.b.cast(c.arg(1)?, DType::I64)?;
    let (shape, places) = (i.b.shape(x)?, i.b.shape(&target)?);
    if shape.len() < 2 || places.is_empty() || shape[0] != places[0] || shape[2..] != places[1..] {
        return Err(format!("classes {places:?} for {shape:?}"));
    }
    let ignored = match c.int("ignore_index")? {
        Some(index) => {
            let index = i.b.number(DType::I64, index as f64)?;
            Some(i.b.compare(Compare::Eq, &target, &index)?)
        }
        None => None,
    };
    // An ignored class may be none at all.
    let zero = i.b.like(&target, 0.0)?;
    let target = ignored.as_ref().map_or(Ok(target.clone()), |g| i.b.select(g, &zero, &target))?;
    let mut dims = shape.clone();
    dims[1] = 1;
    let column = i.b.reshape(&target, &dims)?;
    let chosen = i.b.op1(Op::GatherElements { axis: 1 }, &[x, &column])?;
    let chosen = i.b.reshape(&chosen, &places)?;
    let mut loss = i.b.unary(Unary::Neg, &chosen)?;
    let mut weight = c.opt(2).map(|w| i.b.gather(w, &target, 0)).transpose()?;
    if let Some(ignored) = &ignored {
        let (zero, number) = (i.b.like(x, 0.0)?, i.b.like(x, 1.0)?);
        weight = Some(i.b.select(ignored, &zero, weight.as_ref().unwrap_or(&number))?);
        loss = i.b.select(ignored, &zero, &loss)?;
    }
    if let Some(weight) = &weight {
        loss = i.b.mul(&loss, weight)?;
    }
    let all: Vec<usize> = (0..places.len()).collect();
    match (c.text_or("reduction", "mean")?.as_str(), weight) {
        ("none", _) => Ok(loss),
        ("sum", _) => i.b.reduce(Reduce::Sum, &loss, &all, false),
        ("mean", None) => i.b.reduce(Reduce::Mean, &loss, &all, false),
        ("mean", Some(weight)) => {
            let sum = i.b.reduce(Reduce::Sum, &loss, &all, false)?;
            let weight = i.b.expand(&weight, &places)?;
            let count = i.b.reduce(Reduce::Sum, &weight, &all, false)?;
            i.b.div(&sum, &count)
        }
        (other, _) => Err(format!("reduction `{other}` is not supported")),
    }
}

fn cross_entropy(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    let most = i.b.reduce(Reduce::Max, x, &[1], true)?;
    let y = i.b.sub(x, &most)?;
    let e = i.b.unary(Unary::Exp, &y)?;
    let sum = i.b.reduce(Reduce::Sum, &e, &[1], true)?;
    let sum = i.b.unary(Unary::Log, &sum)?;
    let log = i.b.sub(&y, &sum)?;
    Ok(vec![likelihood(i, c, &log)?, log])
}
