//! Typing rules of what reads and writes at indices. That they lie in range, only the evaluator can see.

use super::{axis_of, fixed};
use crate::infer::operands::{Operands, same};
use crate::kinds::Scatter;
use crate::types::{DType, Dim, Type};

impl<'a> Operands<'a> {
    pub(super) fn gather(&mut self, axis: i64) -> Result<Vec<Type>, String> {
        // A table of quantized rows gives the numbers that they stand for.
        let (x, i) = (self.any("operand")?, self.indices()?);
        let quantized = matches!(x.dtype, DType::Quant(_)) && axis == 0 && x.dims.len() == 2;
        if x.layout.is_some() || matches!(x.dtype, DType::Quant(_)) && !quantized {
            return Err(format!("operand is {x}, not a plain tensor or a table of quantized rows"));
        }
        let axis = axis_of(axis, x)?;
        let dims = x.dims[..axis].iter().chain(&i.dims).chain(&x.dims[axis + 1..]);
        Ok(vec![Type::new(if quantized { DType::F32 } else { x.dtype }, dims.cloned())])
    }

    pub(super) fn gather_elements(&mut self, axis: i64) -> Result<Vec<Type>, String> {
        let (x, i) = (self.tensor("operand")?, self.indices()?);
        inside(x, i, axis)?;
        Ok(vec![Type { dtype: x.dtype, ..i.clone() }])
    }

    pub(super) fn gather_nd(&mut self, batch: i64) -> Result<Vec<Type>, String> {
        let (x, i) = (self.tensor("operand")?, self.indices()?);
        let batch = usize::try_from(batch).map_err(|_| format!("{batch} is not a number of dimensions"))?;
        let (fronts, rest) = coordinates(x, i, batch)?;
        Ok(vec![Type::new(x.dtype, fronts.iter().chain(rest).cloned())])
    }

    pub(super) fn scatter(&mut self, axis: i64, kind: Scatter) -> Result<Vec<Type>, String> {
        let (x, i) = (self.scattered_into(kind)?, self.indices()?);
        inside(x, i, axis)?;
        let updates = self.alike(x, "updates")?;
        same(&updates.dims, &i.dims)?;
        Ok(vec![x.clone()])
    }

    pub(super) fn scatter_nd(&mut self, kind: Scatter) -> Result<Vec<Type>, String> {
        let (x, i) = (self.scattered_into(kind)?, self.indices()?);
        let (fronts, rest) = coordinates(x, i, 0)?;
        let wanted: Vec<Dim> = fronts.iter().chain(rest).cloned().collect();
        let updates = self.alike(x, "updates")?;
        same(&updates.dims, &wanted)?;
        Ok(vec![x.clone()])
    }

    fn scattered_into(&mut self, kind: Scatter) -> Result<&'a Type, String> {
        self.of("operand", "a tensor that this scatters into", |t: DType| kind == Scatter::Set || t.is_numeric())
    }
}

/// An index for `gather_elements`: of the operand's rank, and nowhere larger but along the axis.
fn inside(x: &Type, i: &Type, axis: i64) -> Result<(), String> {
    let axis = axis_of(axis, x)?;
    let larger = |(d, (x, i)): (usize, (&Dim, &Dim))| {
        let fits = x == i || x.fixed().zip(i.fixed()).is_some_and(|(x, i)| i <= x);
        d != axis && !fits
    };
    if x.dims.len() != i.dims.len() || x.dims.iter().zip(&i.dims).enumerate().any(larger) {
        return Err(format!("the index {i} does not lie in {x}"));
    }
    Ok(())
}

/// What coordinates of `gather_nd` leave over: the dimensions of the index in front, and those of a slice.
fn coordinates<'t>(x: &'t Type, i: &'t Type, batch: usize) -> Result<(&'t [Dim], &'t [Dim]), String> {
    let (depth, fronts) = i.dims.split_last().ok_or("the index needs a dimension for coordinates")?;
    let depth = fixed(depth, "the number of coordinates")?;
    let rest = batch.checked_add(depth).and_then(|from| x.dims.get(from..));
    match (rest, fronts.get(..batch).zip(x.dims.get(..batch))) {
        (Some(rest), Some((a, b))) => same(a, b).map(|()| (fronts, rest)),
        _ => Err(format!("{x} has fewer than {batch} and {depth} dimensions, or {i} fewer than {batch}")),
    }
}
