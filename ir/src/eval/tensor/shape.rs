//! What moves elements without looking at them.

use super::{arg, sizes};
use crate::eval::data::{Data, Tensor};
use crate::eval::view::{Lanes, View};
use crate::types::Type;

impl Data {
    /// The elements at some places, in their order.
    pub(in crate::eval) fn pick(&self, at: impl Iterator<Item = usize>) -> Data {
        fn picked<T: Copy>(x: &[T], at: impl Iterator<Item = usize>) -> Vec<T> {
            at.map(|i| x[i]).collect()
        }
        match self {
            Data::F64(x) => Data::F64(picked(x, at)),
            Data::F32(x) => Data::F32(picked(x, at)),
            Data::I32(x) => Data::I32(picked(x, at)),
            Data::I64(x) => Data::I64(picked(x, at)),
            Data::Bool(x) => Data::Bool(picked(x, at)),
        }
    }

    /// Puts elements of other data of the same kind in some places.
    pub(super) fn put(&mut self, at: &[usize], from: &Data) -> Result<(), String> {
        fn put<T: Copy>(to: &mut [T], at: &[usize], from: &[T]) {
            at.iter().zip(from).for_each(|(i, v)| to[*i] = *v);
        }
        match (self, from) {
            (Data::F64(x), Data::F64(y)) => put(x, at, y),
            (Data::F32(x), Data::F32(y)) => put(x, at, y),
            (Data::I32(x), Data::I32(y)) => put(x, at, y),
            (Data::I64(x), Data::I64(y)) => put(x, at, y),
            (Data::Bool(x), Data::Bool(y)) => put(x, at, y),
            _ => return Err("the elements are of different types".into()),
        }
        Ok(())
    }

    /// Appends a part of other data of the same kind.
    fn append(&mut self, from: &Data, part: std::ops::Range<usize>) -> Result<(), String> {
        match (self, from) {
            (Data::F64(x), Data::F64(y)) => x.extend_from_slice(&y[part]),
            (Data::F32(x), Data::F32(y)) => x.extend_from_slice(&y[part]),
            (Data::I32(x), Data::I32(y)) => x.extend_from_slice(&y[part]),
            (Data::I64(x), Data::I64(y)) => x.extend_from_slice(&y[part]),
            (Data::Bool(x), Data::Bool(y)) => x.extend_from_slice(&y[part]),
            _ => return Err("the elements are of different types".into()),
        }
        Ok(())
    }
}

/// The elements of a view.
fn viewed(x: &Tensor, view: &View, ty: &Type) -> Result<Tensor, String> {
    Tensor::of(ty, x.data.pick(view.offsets()))
}

pub(super) fn concat(args: &[&Tensor], axis: i64, ty: &Type) -> Result<Tensor, String> {
    let outer = Lanes::new(&arg(args, 0)?.shape, axis).outer;
    let mut data = arg(args, 0)?.data.pick(std::iter::empty());
    for o in 0..outer {
        for x in args {
            let run = x.data.len() / outer;
            data.append(&x.data, o * run..(o + 1) * run)?;
        }
    }
    Tensor::of(ty, data)
}

pub(super) fn expand(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    viewed(x, &View::repeated(&x.shape, &sizes(ty)?), ty)
}

pub(super) fn reshape(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    Tensor::of(ty, arg(args, 0)?.data.clone())
}

pub(super) fn slice(args: &[&Tensor], starts: &[i64], steps: &[i64], ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let mut view = View::new(&x.shape);
    for (d, (&start, &step)) in starts.iter().zip(steps).enumerate() {
        let stride = view.strides[d];
        view.base = view.base.wrapping_add_signed(stride * start as isize);
        // A step that leaves the dimension is never taken, however large it is.
        view.strides[d] = stride.wrapping_mul(step as isize);
    }
    view.shape = sizes(ty)?;
    viewed(x, &view, ty)
}

pub(super) fn transpose(args: &[&Tensor], perm: &[i64], ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let mut view = View::new(&x.shape);
    view.strides = perm.iter().map(|i| view.strides[*i as usize]).collect();
    view.shape = sizes(ty)?;
    viewed(x, &view, ty)
}
