//! Typing rules of the ops of [`Level::Tensor`](crate::Level::Tensor).

use super::no_rule;
use super::operands::{Operands, rank2, same, same_dim};
use crate::op::Op;
use crate::types::{DType, Dim, Type};

impl Operands<'_> {
    /// Result types of an op of this level.
    pub(super) fn tensor_op(&mut self, op: &Op) -> Result<Vec<Type>, String> {
        match op {
            Op::Add {} | Op::Mul {} => self.elementwise(),
            Op::Cast { to } => self.cast(*to),
            Op::Concat {} => self.concat(),
            Op::Matmul {} => self.matmul(),
            Op::Scale { by: _ } => self.scale(),
            Op::Silu {} => self.silu(),
            Op::Softmax {} => self.softmax(),
            Op::Transpose {} => self.transpose(),
            other => no_rule(other),
        }
    }

    fn elementwise(&mut self) -> Result<Vec<Type>, String> {
        let a = self.float("left")?;
        let b = self.float("right")?;
        same(&a.dims, &b.dims)?;
        if a.dtype != b.dtype {
            return Err(format!("element types {} and {} differ; cast one of them", a.dtype, b.dtype));
        }
        Ok(vec![a.clone()])
    }

    fn cast(&mut self, to: DType) -> Result<Vec<Type>, String> {
        if !to.is_float() {
            return Err(format!("cannot cast to {to}"));
        }
        let x = self.float("operand")?;
        Ok(vec![Type { dtype: to, ..x.clone() }])
    }

    fn concat(&mut self) -> Result<Vec<Type>, String> {
        let first = self.float("operand")?.clone();
        let Some((rows, rest)) = first.dims.split_first() else { return Err("concat needs a dimension".into()) };
        let mut total = rows.fixed().ok_or("concat needs static sizes")?;
        while self.left() > 0 {
            let x = self.float("operand")?;
            match x.dims.split_first() {
                Some((Dim::Fixed(n), r)) if r == rest && x.dtype == first.dtype => {
                    total = total.checked_add(*n).ok_or("the joined size overflows")?;
                }
                _ => return Err(format!("{x} cannot be joined to {first}")),
            }
        }
        let dims = std::iter::once(Dim::Fixed(total)).chain(rest.iter().cloned());
        Ok(vec![Type::new(first.dtype, dims)])
    }

    fn matmul(&mut self) -> Result<Vec<Type>, String> {
        let (a, b) = (self.activation("left")?, self.float("right")?);
        let [m, k] = rank2(a)?;
        let [k2, n] = rank2(b)?;
        same_dim(k, k2, "inner dimensions")?;
        Ok(vec![Type::new(DType::F32, [m.clone(), n.clone()])])
    }

    fn scale(&mut self) -> Result<Vec<Type>, String> {
        Ok(vec![self.float("operand")?.clone()])
    }

    fn silu(&mut self) -> Result<Vec<Type>, String> {
        Ok(vec![self.activation("operand")?.clone()])
    }

    fn softmax(&mut self) -> Result<Vec<Type>, String> {
        let x = self.activation("operand")?;
        if x.dims.is_empty() {
            return Err("softmax needs a dimension".into());
        }
        Ok(vec![x.clone()])
    }

    fn transpose(&mut self) -> Result<Vec<Type>, String> {
        let x = self.float("operand")?;
        let [a, b] = rank2(x)?;
        Ok(vec![Type::new(x.dtype, [b.clone(), a.clone()])])
    }
}
