//! Attention of heads that lie apart, and rotary embedding.

use super::{arg, sizes};
use crate::attr::Mask;
use crate::eval::data::{Data, Tensor};
use crate::eval::view::View;
use crate::types::Type;

/// What is added to the score of each query and key.
enum Added<'m> {
    Nothing,
    Allowed(&'m [bool], View),
    Numbers(std::borrow::Cow<'m, [f64]>, View),
}

pub(super) fn sdpa(
    args: &[&Tensor],
    scale: f32,
    cap: Option<f32>,
    rule: Option<Mask>,
    ty: &Type,
) -> Result<Tensor, String> {
    let (q, k, v) = (arg(args, 0)?, arg(args, 1)?, arg(args, 2)?);
    let (&[batch, heads, rows, d], &[_, groups, keys, _], shape) = (&q.shape[..], &k.shape[..], sizes(ty)?) else {
        return Err("attention needs heads".into());
    };
    let e = shape.last().copied().unwrap_or(1);
    let repeated = |m: &Tensor| View::repeated(&m.shape, &[batch, heads, rows, keys]);
    let added = match args.get(3) {
        None => Added::Nothing,
        Some(m) => match &m.data {
            Data::Bool(allowed) => Added::Allowed(allowed, repeated(m)),
            _ => Added::Numbers(m.as_reals()?, repeated(m)),
        },
    };
    let (q, k, v) = (q.as_reals()?, k.as_reals()?, v.as_reals()?);
    let mut out = Vec::with_capacity(shape.iter().product());
    for (i, query) in q.chunks_exact(d).enumerate() {
        let (b, h, t) = (i / rows / heads, i / rows % heads, i % rows);
        let head = (b * groups + h / (heads / groups)) * keys;
        let score = |s: usize| {
            if rule.is_some_and(|rule| !rule.sees(t, s)) {
                return None;
            }
            let offset = match &added {
                Added::Nothing => 0.0,
                Added::Allowed(m, view) => {
                    if m[view.at(&[b, h, t, s])] {
                        0.0
                    } else {
                        f64::NEG_INFINITY
                    }
                }
                Added::Numbers(m, view) => m[view.at(&[b, h, t, s])],
            };
            // What is masked must not be looked at: infinities there would make NaN of everything.
            if offset == f64::NEG_INFINITY {
                return None;
            }
            let key = &k[(head + s) * d..][..d];
            let dot = query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() * f64::from(scale);
            let capped = cap.map(f64::from).map_or(dot, |cap| cap * libm::tanh(dot / cap));
            Some((s, capped + offset))
        };
        let scores: Vec<(usize, f64)> = (0..keys).filter_map(score).collect();
        let p = super::probabilities(&scores.iter().map(|(_, score)| *score).collect::<Vec<_>>());
        let mut row = vec![0.0; e];
        for (&(s, _), p) in scores.iter().zip(p) {
            row.iter_mut().zip(&v[(head + s) * e..][..e]).for_each(|(sum, v)| *sum += p * v);
        }
        out.extend(row);
    }
    Tensor::reals(ty, out)
}

pub(super) fn rotary(args: &[&Tensor], interleaved: bool, ty: &Type) -> Result<Tensor, String> {
    let (x, table) = (arg(args, 0)?, arg(args, 1)?);
    let (&[_, heads, rows, d], &[batch, _, half]) = (&x.shape[..], &table.shape[..]) else {
        return Err("a rotary embedding needs heads and a table".into());
    };
    let (mut out, cos, sin) = (x.as_reals()?.into_owned(), table.as_reals()?, arg(args, 2)?.as_reals()?);
    for (i, head) in out.chunks_exact_mut(d).enumerate() {
        let sequence = if batch == 1 { 0 } else { i / rows / heads };
        let at = (sequence * rows + i % rows) * half;
        for (pair, (cos, sin)) in cos[at..at + half].iter().zip(&sin[at..at + half]).enumerate() {
            let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }
    Tensor::reals(ty, out)
}
