//! Tensors of the evaluator, and which of them fit a type.

use crate::types::{DType, Dim, Type};
use std::collections::BTreeMap;

/// A tensor of the evaluator. Quantized weights are held as the numbers that they stand for.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Data,
}

/// Elements of a tensor.
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    /// Floats, already rounded to the element type.
    F32(Vec<f32>),
    /// Integers.
    I32(Vec<i32>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl Tensor {
    /// A float tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::F32(data) }
    }

    /// An integer tensor.
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Self {
        Tensor { shape: shape.to_vec(), data: Data::I32(data) }
    }

    /// The floats of a float tensor.
    ///
    /// # Errors
    /// The tensor holds something else.
    pub fn floats(&self) -> Result<&[f32], String> {
        if let Data::F32(x) = &self.data { Ok(x) } else { Err("a float tensor was expected".into()) }
    }

    /// The integers of an integer tensor.
    ///
    /// # Errors
    /// The tensor holds something else.
    pub fn ints(&self) -> Result<&[i32], String> {
        if let Data::I32(x) = &self.data { Ok(x) } else { Err("an integer tensor was expected".into()) }
    }

    pub(super) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// A result as its written type holds it.
pub(super) fn rounded(mut tensor: Tensor, dtype: DType) -> Tensor {
    if let (Data::F32(data), DType::F16 | DType::BF16) = (&mut tensor.data, dtype) {
        data.iter_mut().for_each(|v| *v = dtype.round(*v));
    }
    tensor
}

pub(super) fn round_all(row: &[f32], dtype: DType) -> Vec<f32> {
    row.iter().map(|&v| dtype.round(v)).collect()
}

pub(super) fn matrix(t: &Tensor) -> Result<(usize, usize), String> {
    if let [a, b] = t.shape[..] { Ok((a, b)) } else { Err(format!("shape {:?} is not two-dimensional", t.shape)) }
}

/// Whether an argument is of a parameter's type; equal names must be equal sizes.
pub(super) fn accepts<'g>(ty: &'g Type, t: &Tensor, sizes: &mut BTreeMap<&'g str, usize>) -> Result<(), String> {
    let len = match (&t.data, ty.dtype) {
        (Data::F32(x), d) if d.is_float() => x.len(),
        (Data::I32(x), DType::I32) => x.len(),
        (Data::Bool(x), DType::Bool) => x.len(),
        _ => return Err(format!("the argument has other elements than {ty}")),
    };
    let size = |(n, dim): (&usize, &'g Dim)| match dim {
        Dim::Fixed(fixed) => n == fixed,
        Dim::Named(name) => sizes.entry(&**name).or_insert(*n) == n,
    };
    let matches = t.shape.len() == ty.dims.len() && t.shape.iter().zip(&ty.dims).all(size);
    if matches && t.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) == Some(len) {
        Ok(())
    } else {
        Err(format!("an argument of shape {:?} with {len} elements is not {ty}", t.shape))
    }
}

pub(super) fn fits(t: &Tensor, ty: &Type) -> Result<(), String> {
    let same =
        t.shape.len() == ty.dims.len() && t.shape.iter().zip(&ty.dims).all(|(&n, d)| d.fixed().is_none_or(|f| f == n));
    if same { Ok(()) } else { Err(format!("computed shape {:?} is not {ty}", t.shape)) }
}
