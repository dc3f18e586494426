//! Typing rules of what moves elements, and of what makes dimensions shorter.

use super::{axis_of, fixed, list, size};
use crate::infer::operands::Operands;
use crate::kinds::Reduce;
use crate::types::{DType, Dim, Type};

impl Operands<'_> {
    pub(super) fn concat(&mut self, axis: i64) -> Result<Vec<Type>, String> {
        let first = self.tensor("operand")?;
        let axis = axis_of(axis, first)?;
        let mut dims = first.dims.clone();
        let mut total = fixed(&dims[axis], "concat")?;
        while self.left() > 0 {
            let x = self.tensor("operand")?;
            let apart = |(i, (a, b)): (usize, (&Dim, &Dim))| i != axis && a != b;
            let other = x.dims.len() != dims.len() || x.dims.iter().zip(&dims).enumerate().any(apart);
            if other || x.dtype != first.dtype {
                return Err(format!("{x} cannot be joined to {first}"));
            }
            total = total.checked_add(fixed(&x.dims[axis], "concat")?).ok_or("the joined size overflows")?;
        }
        dims[axis] = Dim::Fixed(total);
        Ok(vec![Type::new(first.dtype, dims)])
    }

    pub(super) fn expand(&mut self, to: &[i64]) -> Result<Vec<Type>, String> {
        let x = self.tensor("operand")?;
        let dims = to.iter().map(|n| size(*n).map(Dim::Fixed)).collect::<Result<Vec<_>, _>>()?;
        let one = Dim::Fixed(1);
        let fits = |(from, to): (&Dim, &Dim)| from == to || *from == one;
        // From the back: what is in front of the operand repeats.
        if x.dims.len() > dims.len() || !x.dims.iter().rev().zip(dims.iter().rev()).all(fits) {
            return Err(format!("{x} does not repeat to {}", list(&dims)));
        }
        Ok(vec![Type::new(x.dtype, dims)])
    }

    pub(super) fn reshape(&mut self, to: &[i64]) -> Result<Vec<Type>, String> {
        let x = self.tensor("operand")?;
        let dims = to.iter().map(|n| size(*n).map(Dim::Fixed)).collect::<Result<Vec<_>, _>>()?;
        let result = Type::new(x.dtype, dims);
        let elements = x.elements().ok_or_else(|| format!("reshape needs static sizes, not {x}"))?;
        if result.elements() != Some(elements) {
            return Err(format!("the {elements} elements of {x} do not fill {}", list(&result.dims)));
        }
        Ok(vec![result])
    }

    pub(super) fn slice(&mut self, starts: &[i64], ends: &[i64], steps: &[i64]) -> Result<Vec<Type>, String> {
        let x = self.tensor("operand")?;
        if [starts, ends, steps].iter().any(|list| list.len() != x.dims.len()) {
            return Err(format!("slice needs a start, an end and a step for each dimension of {x}"));
        }
        let mut dims = Vec::with_capacity(x.dims.len());
        for (dim, ((&start, &end), &step)) in x.dims.iter().zip(starts.iter().zip(ends).zip(steps)) {
            let n = i64::try_from(fixed(dim, "slice")?).map_err(|_| format!("{dim} is too large a size"))?;
            let inside = match step {
                0 => false,
                1.. => 0 <= start && start <= end && end <= n,
                _ => -1 <= end && end <= start && start < n,
            };
            if !inside {
                return Err(format!("{start} to {end} in steps of {step} is no part of a dimension of {n}"));
            }
            let steps = start.abs_diff(end).div_ceil(step.unsigned_abs());
            dims.push(usize::try_from(steps).map_err(|_| format!("{steps} is too large a size"))?);
        }
        Ok(vec![Type::new(x.dtype, dims)])
    }

    pub(super) fn transpose(&mut self, perm: &[i64]) -> Result<Vec<Type>, String> {
        let x = self.tensor("operand")?;
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if sorted.len() != x.dims.len() || !sorted.iter().zip(0..).all(|(a, b)| *a == b) {
            return Err(format!("{perm:?} is no order of the dimensions of {x}"));
        }
        let dims = perm.iter().map(|&i| axis_of(i, x).map(|i| x.dims[i].clone())).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![Type::new(x.dtype, dims)])
    }

    pub(super) fn reduce(&mut self, kind: Reduce, axes: &[i64]) -> Result<Vec<Type>, String> {
        let bool_too = matches!(kind, Reduce::Max | Reduce::Min);
        let wanted = "a tensor that can be reduced so";
        let x = self.of("operand", wanted, |t| t.is_numeric() || (t == DType::Bool && bool_too))?;
        let mut result = x.clone();
        for (i, &axis) in axes.iter().enumerate() {
            if axes[..i].contains(&axis) {
                return Err(format!("dimension {axis} is reduced twice"));
            }
            let axis = axis_of(axis, x)?;
            if kind == Reduce::Mean {
                fixed(&x.dims[axis], "a mean")?;
            }
            result.dims[axis] = Dim::Fixed(1);
        }
        Ok(vec![result])
    }

    pub(super) fn arg_max(&mut self, axis: i64) -> Result<Vec<Type>, String> {
        let x = self.numeric("operand")?;
        let axis = axis_of(axis, x)?;
        let mut result = Type { dtype: DType::I64, ..x.clone() };
        result.dims[axis] = Dim::Fixed(1);
        Ok(vec![result])
    }

    pub(super) fn sort(&mut self, axis: i64) -> Result<Vec<Type>, String> {
        let x = self.numeric("operand")?;
        axis_of(axis, x)?;
        Ok(vec![x.clone(), Type { dtype: DType::I64, ..x.clone() }])
    }
}
