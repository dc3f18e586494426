//! Typing rules of the ops of [`Level::State`](crate::Level::State).

use super::no_rule;
use super::operands::{Operands, heads_divide, rank2, rank3, same, same_dim};
use crate::op::Op;
use crate::types::{DType, Dim, Type};

impl Operands<'_> {
    /// Result types of an op of this level.
    pub(super) fn state_op(&mut self, op: &Op) -> Result<Vec<Type>, String> {
        match op {
            Op::CachedAttention { mask, .. } if !mask.is_prefix() => {
                Err(format!("a cache is not attended under {mask}, only under full, causal and block_causal masks"))
            }
            Op::CachedAttention { head_dim, mask: _ } => self.cached_attention(*head_dim),
            Op::KvWrite {} => self.kv_write(),
            Op::StoreRows {} => self.store_rows(),
            Op::TakeRows {} => self.take_rows(),
            other => no_rule(other),
        }
    }

    fn cached_attention(&mut self, head_dim: u32) -> Result<Vec<Type>, String> {
        let q = self.activation("q")?;
        let [_, f] = rank2(q)?;
        let k = self.cache("k")?;
        let v = self.cache("v")?;
        let [rows, heads, hd] = rank3(k)?;
        same(&v.dims, &k.dims)?;
        same_dim(hd, &Dim::Fixed(head_dim as usize), "head_dim and the state's")?;
        heads_divide(f, head_dim, heads)?;
        if rows.fixed().is_none() {
            return Err("the cache needs a static number of rows".into());
        }
        self.spans()?;
        Ok(vec![q.clone()])
    }

    fn kv_write(&mut self) -> Result<Vec<Type>, String> {
        let k = self.activation("k")?;
        let v = self.activation("v")?;
        same(&v.dims, &k.dims)?;
        let [_, f] = rank2(k)?;
        let k_state = self.cache("k cache")?;
        let v_state = self.cache("v cache")?;
        same(&v_state.dims, &k_state.dims)?;
        let [_, heads, hd] = rank3(k_state)?;
        match (f.fixed(), heads.fixed(), hd.fixed()) {
            (Some(f), Some(h), Some(d)) if h.checked_mul(d) == Some(f) => {}
            _ => return Err(format!("{f} features do not fill {heads} heads of {hd}")),
        }
        self.spans()?;
        Ok(vec![])
    }

    fn store_rows(&mut self) -> Result<Vec<Type>, String> {
        let [m, f] = rank2(self.activation("x")?)?;
        let [rows, f2] = rank2(self.rows("state")?)?;
        same_dim(f, f2, "features of x and of the state")?;
        if m.fixed().zip(rows.fixed()).is_some_and(|(m, rows)| m > rows) {
            return Err(format!("{m} rows do not fit a state of {rows} rows"));
        }
        Ok(vec![])
    }

    fn take_rows(&mut self) -> Result<Vec<Type>, String> {
        let [_, f] = rank2(self.rows("state")?)?;
        let r = self.vector(DType::I32, "rows")?;
        Ok(vec![Type::new(DType::F32, [r, f.clone()])])
    }
}
