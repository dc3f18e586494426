//! Typing rules of the ops of [`Level::Model`](crate::Level::Model).

use super::no_rule;
use super::operands::{Operands, chunks, even, heads_divide, rank1, rank2, same, same_dim};
use crate::attr::Post;
use crate::op::Op;
use crate::types::{DType, Dim, Type};

impl Operands<'_> {
    /// Result types of an op of this level.
    pub(super) fn model_op(&mut self, op: &Op) -> Result<Vec<Type>, String> {
        match op {
            Op::Attention { head_dim, mask } => self.attention(*head_dim, mask.is_none()),
            Op::Embed {} => self.embed(),
            Op::HeadStats { norm, ban: _ } => self.head_stats(norm.is_some()),
            Op::Linear { n, bias, norm, post } => self.linear(*n, *bias, norm.is_some(), *post),
            Op::Mask { rule: _ } => self.mask(),
            Op::RmsNorm { eps: _ } => self.rms_norm(),
            Op::Rope { head_dim, norm } => self.rope(*head_dim, norm.is_some()),
            Op::RopeTable { theta, head_dim } => self.rope_table(*theta, *head_dim),
            other => no_rule(other),
        }
    }

    fn attention(&mut self, head_dim: u32, masked: bool) -> Result<Vec<Type>, String> {
        let q = self.activation("q")?;
        let k = self.activation("k")?;
        let v = self.activation("v")?;
        let [t, f] = rank2(q)?;
        let [s, fk] = rank2(k)?;
        same(&v.dims, &k.dims)?;
        let hd = Dim::Fixed(head_dim as usize);
        chunks(fk, &hd, "k features", "head_dim")?;
        let kv_heads = Dim::Fixed(fk.fixed().unwrap_or(0) / (head_dim as usize).max(1));
        heads_divide(f, head_dim, &kv_heads)?;
        if masked {
            let mask = self.any("mask")?;
            if mask.dtype != DType::Bool {
                return Err(format!("the mask is {}, not bool", mask.dtype));
            }
            same(&mask.dims, &[t.clone(), s.clone()])?;
        } else {
            same_dim(t, s, "rows of q and k under a static mask")?;
        }
        Ok(vec![q.clone()])
    }

    fn embed(&mut self) -> Result<Vec<Type>, String> {
        let ids = self.vector(DType::I32, "ids")?;
        let [_, h] = rank2(self.weight("table")?)?;
        Ok(vec![Type::new(DType::F32, [ids, h.clone()])])
    }

    fn head_stats(&mut self, norm: bool) -> Result<Vec<Type>, String> {
        let x = self.activation("x")?;
        let [r, k] = rank2(x)?;
        let [_, k2] = rank2(self.weight("head weight")?)?;
        same_dim(k, k2, "features of x and of the head weight")?;
        if norm {
            self.norm_weight(k)?;
        }
        Ok(vec![Type::new(DType::I32, [r.clone()]), Type::new(DType::F32, [r.clone(), Dim::Fixed(3)])])
    }

    fn linear(&mut self, n: u32, bias: bool, norm: bool, post: Post) -> Result<Vec<Type>, String> {
        let n = n as usize;
        if n > self.count() {
            return Err(format!("n={n} weights, but {} operands", self.count()));
        }
        if (post == Post::SwiGlu && n != 2) || (post == Post::Add && n != 1) {
            return Err(format!("this epilogue does not take {n} weights"));
        }
        let x = self.activation("x")?;
        let (k, rows) = x.dims.split_last().ok_or("x needs a dimension")?;
        let mut outs = Vec::with_capacity(n);
        for _ in 0..n {
            let [out, k2] = rank2(self.weight("weight")?)?;
            same_dim(k, k2, "features of x and of the weight")?;
            outs.push(out.clone());
        }
        if bias {
            for out in &outs {
                let [b] = rank1(self.weight("bias")?)?;
                same_dim(out, b, "outputs and bias length")?;
            }
        }
        if norm {
            self.norm_weight(k)?;
        }
        let f32 = |f: &Dim| Type::new(DType::F32, rows.iter().chain([f]).cloned());
        match post {
            Post::None => Ok(outs.iter().map(f32).collect()),
            Post::Add => {
                let residual = self.activation("residual")?;
                let sum = f32(&outs[0]);
                same(&residual.dims, &sum.dims)?;
                Ok(vec![sum])
            }
            Post::SwiGlu => {
                same_dim(&outs[0], &outs[1], "gate and up outputs")?;
                Ok(vec![f32(&outs[0])])
            }
        }
    }

    fn mask(&mut self) -> Result<Vec<Type>, String> {
        let x = self.any("operand")?;
        let t = x.dims.first().ok_or("mask needs an operand with rows")?;
        Ok(vec![Type::new(DType::Bool, [t.clone(), t.clone()])])
    }

    fn rms_norm(&mut self) -> Result<Vec<Type>, String> {
        let x = self.activation("x")?;
        let [_, f] = rank2(x)?;
        let w = self.weight("weight")?;
        let [c] = rank1(w)?;
        chunks(f, c, "features", "weight length")?;
        Ok(vec![x.clone()])
    }

    fn rope(&mut self, head_dim: u32, norm: bool) -> Result<Vec<Type>, String> {
        let x = self.activation("x")?;
        let [m, f] = rank2(x)?;
        let hd = Dim::Fixed(head_dim as usize);
        even(head_dim)?;
        chunks(f, &hd, "features", "head_dim")?;
        let table = self.activation("table")?;
        same(&table.dims, &[m.clone(), hd.clone()])?;
        if norm {
            self.norm_weight(&hd)?;
        }
        Ok(vec![x.clone()])
    }

    fn rope_table(&mut self, theta: f32, head_dim: u32) -> Result<Vec<Type>, String> {
        if theta <= 0.0 {
            return Err("theta must be positive".into());
        }
        even(head_dim)?;
        let pos = self.vector(DType::I32, "positions")?;
        Ok(vec![Type::new(DType::F32, [pos, Dim::Fixed(head_dim as usize)])])
    }
}
