//! Typing rules of functions of each element, and of those that work row by row and keep the shape.

use super::{axis_of, broadcast};
use crate::infer::operands::Operands;
use crate::kinds::{Binary, Compare, Unary};
use crate::types::{DType, Type};

impl Operands<'_> {
    pub(super) fn arithmetic(&mut self) -> Result<Vec<Type>, String> {
        let a = self.numeric("left")?;
        let b = self.numeric("right")?;
        let dims = broadcast(&a.dims, &b.dims)?;
        if a.dtype != b.dtype {
            return Err(format!("element types {} and {} differ; cast one of them", a.dtype, b.dtype));
        }
        Ok(vec![Type::new(a.dtype, dims)])
    }

    pub(super) fn binary(&mut self, kind: Binary) -> Result<Vec<Type>, String> {
        use Binary::{And, BitAnd, BitOr, BitXor, Div, Max, Min, Mod, Or, Pow, Rem, Shl, Shr, Sub, Xor};
        let a = match kind {
            And | Or | Xor => self.bools("left"),
            BitAnd | BitOr | BitXor | Shl | Shr => self.of("left", "an integer tensor", DType::is_int),
            Div | Max | Min | Mod | Pow | Rem | Sub => self.numeric("left"),
        }?;
        let b = if kind == Pow { self.numeric("right") } else { self.alike(a, "right") }?;
        Ok(vec![Type::new(a.dtype, broadcast(&a.dims, &b.dims)?)])
    }

    pub(super) fn compare(&mut self, kind: Compare) -> Result<Vec<Type>, String> {
        let wanted = "a tensor that this comparison orders";
        let a = self.of("left", wanted, |t| t.is_numeric() || (t == DType::Bool && kind == Compare::Eq))?;
        let b = self.alike(a, "right")?;
        Ok(vec![Type::new(DType::Bool, broadcast(&a.dims, &b.dims)?)])
    }

    pub(super) fn select(&mut self) -> Result<Vec<Type>, String> {
        let c = self.bools("condition")?;
        let a = self.tensor("left")?;
        let b = self.alike(a, "right")?;
        Ok(vec![Type::new(a.dtype, broadcast(&c.dims, &broadcast(&a.dims, &b.dims)?)?)])
    }

    pub(super) fn unary(&mut self, kind: Unary) -> Result<Vec<Type>, String> {
        let x = match kind {
            Unary::Abs | Unary::Neg | Unary::Sign => self.numeric("operand"),
            Unary::BitNot => self.of("operand", "an integer tensor", DType::is_int),
            Unary::Not => self.bools("operand"),
            _ => self.real("operand"),
        }?;
        let dtype = if matches!(kind, Unary::IsInf | Unary::IsNan) { DType::Bool } else { x.dtype };
        Ok(vec![Type { dtype, ..x.clone() }])
    }

    pub(super) fn cast(&mut self, to: DType) -> Result<Vec<Type>, String> {
        let x = self.tensor("operand")?;
        if matches!(to, DType::Quant(_)) {
            return Err(format!("cannot cast to {to}"));
        }
        Ok(vec![Type { dtype: to, ..x.clone() }])
    }

    pub(super) fn bitcast(&mut self, to: DType) -> Result<Vec<Type>, String> {
        let x = self.tensor("operand")?;
        if to == DType::Bool || to.bits() != x.dtype.bits() {
            return Err(format!("the bits of {} are no {to}", x.dtype));
        }
        Ok(vec![Type { dtype: to, ..x.clone() }])
    }

    pub(super) fn cumulate(&mut self, axis: i64) -> Result<Vec<Type>, String> {
        let x = self.numeric("operand")?;
        axis_of(axis, x)?;
        Ok(vec![x.clone()])
    }

    pub(super) fn normalize(&mut self, eps: f32) -> Result<Vec<Type>, String> {
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(format!("eps is {eps}, not a small positive number"));
        }
        self.softmax()
    }

    pub(super) fn softmax(&mut self) -> Result<Vec<Type>, String> {
        let x = self.real("operand")?;
        if x.dims.is_empty() {
            return Err("a row needs a dimension".into());
        }
        Ok(vec![x.clone()])
    }
}
