//! Tensors of the evaluator, and which of them fit a type.

use crate::types::{DType, Dim, Type};
use std::collections::BTreeMap;

/// A tensor of the evaluator. Quantized weights are held as the numbers that they stand for.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Data,
}

/// Elements of a tensor, wide enough for their type.
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    /// Of f64.
    F64(Vec<f64>),
    /// Of f32 and the floats below it, already rounded to the element type. Infinities are numbers here, as masks use them.
    F32(Vec<f32>),
    /// Of i32.
    I32(Vec<i32>),
    /// Of every other integer type; of u64 the same bits.
    I64(Vec<i64>),
    /// Of bool.
    Bool(Vec<bool>),
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F64(x) => x.len(),
            Data::F32(x) => x.len(),
            Data::I32(x) => x.len(),
            Data::I64(x) => x.len(),
            Data::Bool(x) => x.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether elements of a type are held like this.
    pub fn holds(&self, dtype: DType) -> bool {
        match self {
            Data::F64(_) => dtype == DType::F64,
            Data::F32(_) => dtype.is_float() || dtype.is_small_float() || matches!(dtype, DType::Quant(_)),
            Data::I32(_) => dtype == DType::I32,
            Data::I64(_) => dtype.is_int() && dtype != DType::I32,
            Data::Bool(_) => dtype == DType::Bool,
        }
    }
}

impl Tensor {
    /// A float tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Tensor { dtype: DType::F32, shape: shape.to_vec(), data: Data::F32(data) }
    }

    /// An integer tensor.
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Self {
        Tensor { dtype: DType::I32, shape: shape.to_vec(), data: Data::I32(data) }
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

    /// The type of a tensor whose elements are what it says.
    pub(super) fn checked(&self) -> Result<Type, String> {
        let ty = Type::new(self.dtype, self.shape.iter().copied());
        if self.data.holds(self.dtype) && ty.elements() == Some(self.data.len()) {
            Ok(ty)
        } else {
            Err(format!("a tensor of {} elements is not {ty}, or holds others", self.data.len()))
        }
    }

    pub(super) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// A result as its written type holds it.
pub(super) fn rounded(mut tensor: Tensor, dtype: DType) -> Tensor {
    tensor.dtype = dtype;
    match &mut tensor.data {
        Data::F32(data) if dtype != DType::F32 => data.iter_mut().for_each(|v| *v = dtype.round(*v)),
        Data::I64(data) => data.iter_mut().for_each(|v| *v = dtype.wrap(*v)),
        _ => {}
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
    if !t.data.holds(ty.dtype) {
        return Err(format!("the argument has other elements than {ty}"));
    }
    let len = t.data.len();
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
