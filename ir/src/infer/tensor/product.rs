//! Typing rules of products, attention and rotary embedding.

use super::{broadcast, fixed, list};
use crate::attr::Mask;
use crate::infer::operands::{Operands, chunks, same, same_dim};
use crate::types::{DType, Dim, Type};

impl Operands<'_> {
    pub(super) fn matmul(&mut self) -> Result<Vec<Type>, String> {
        let (a, b) = (self.numeric("left")?, self.numeric("right")?);
        // A weight keeps its type beside f32 activations.
        if a.dtype != b.dtype && !(a.dtype == DType::F32 && b.dtype.is_float()) {
            return Err(format!("element types {} and {} differ; cast one of them", a.dtype, b.dtype));
        }
        let ([fronts_a @ .., m, k], [fronts_b @ .., k2, n]) = (&a.dims[..], &b.dims[..]) else {
            return Err(format!("{a} and {b} are not both matrices"));
        };
        same_dim(k, k2, "inner dimensions")?;
        let mut dims = broadcast(fronts_a, fronts_b)?;
        dims.extend([m.clone(), n.clone()]);
        Ok(vec![Type::new(a.dtype, dims)])
    }

    pub(super) fn rotary(&mut self) -> Result<Vec<Type>, String> {
        let x = self.real("x")?;
        let [b, _, t, d] = rank4(x, "x")?;
        let cos = self.alike(x, "cosines")?;
        let sin = self.alike(x, "sines")?;
        same(&cos.dims, &sin.dims)?;
        let [batch, rows, half] = &cos.dims[..] else {
            return Err(format!("the cosines are {cos}, not of three dimensions"));
        };
        if batch != b && *batch != Dim::Fixed(1) {
            return Err(format!("a table for {batch} sequences of {b}"));
        }
        same_dim(t, rows, "rows of x and of the table")?;
        let (half, d) = (fixed(half, "rotary")?, fixed(d, "rotary")?);
        if half > d / 2 {
            return Err(format!("{half} pairs are more than the {d} features of a head"));
        }
        Ok(vec![x.clone()])
    }

    pub(super) fn sdpa(&mut self, cap: Option<f32>, mask: Option<Mask>) -> Result<Vec<Type>, String> {
        if let Some(cap) = cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(format!("scores cannot be capped at {cap}"));
        }
        if matches!(mask, Some(Mask::BlockCausal(0) | Mask::Local(0))) {
            return Err("a mask with blocks of no rows".into());
        }
        let q = self.real("q")?;
        let (k, v) = (self.alike(q, "k")?, self.alike(q, "v")?);
        let ([b, h, t, d], [bk, g, s, dk], [bv, gv, sv, e]) = (rank4(q, "q")?, rank4(k, "k")?, rank4(v, "v")?);
        same(&[b.clone(), b.clone()], &[bk.clone(), bv.clone()])?;
        same_dim(d, dk, "features of q and k")?;
        same_dim(g, gv, "heads of k and v")?;
        same_dim(s, sv, "rows of k and v")?;
        chunks(h, g, "the number of query heads", "that of key heads")?;
        if !matches!(mask, None | Some(Mask::Full)) {
            same_dim(t, s, "rows of q and k under a static mask")?;
        }
        if self.left() > 0 {
            let m = self.of("the mask", &format!("a tensor of bool or {}", q.dtype), |dtype| {
                dtype == DType::Bool || dtype == q.dtype
            })?;
            let scores = [b, h, t, s].map(Dim::clone);
            if broadcast(&m.dims, &scores)? != scores {
                return Err(format!("the mask {m} does not repeat to {}", list(&scores)));
            }
        }
        Ok(vec![Type::new(q.dtype, [b, h, t, e].map(Dim::clone))])
    }
}

fn rank4<'t>(ty: &'t Type, what: &str) -> Result<[&'t Dim; 4], String> {
    let [a, b, c, d] = &ty.dims[..] else { return Err(format!("{what} is {ty}, not of four dimensions")) };
    Ok([a, b, c, d])
}
