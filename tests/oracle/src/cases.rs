//! Operands for every op: seeded numbers in several shapes, types and attributes.
//!
//! Invariant: the same cases on every machine. Numbers are such that a result is defined: no integer is divided by zero,
//! no square root is taken of a negative number (but where NaN is the point), indices lie in range.

mod index;
mod model;
mod tensor;

use dlx_ir::{DType, Data, Op, Tensor};

use crate::compare::Within;

/// An op, its operands, and how far a result may be from the oracle's.
#[derive(Clone, Debug)]
pub struct Case {
    /// With its attributes.
    pub op: Op,
    /// Values and weights.
    pub args: Vec<Tensor>,
    /// Tolerance.
    pub within: Within,
}

/// Every case of the ops without states.
pub fn all() -> Vec<Case> {
    let mut cases = Cases { list: Vec::new(), rng: Rng(0x5eed_0001) };
    tensor::add_to(&mut cases);
    index::add_to(&mut cases);
    model::add_to(&mut cases);
    cases.list
}

/// Functions in f64, each side's own: a few last bits, 2e-16 each.
const ROUNDED: Within = Within::Element(2e-14);
/// Sums in f64, in any order: 2e-16 for each of at most some hundred terms.
const SUMMED: Within = Within::Largest(2e-14);

/// The list being made.
struct Cases {
    list: Vec<Case>,
    rng: Rng,
}

impl Cases {
    fn push(&mut self, op: Op, args: impl IntoIterator<Item = Tensor>, within: Within) {
        self.list.push(Case { op, args: args.into_iter().collect(), within });
    }
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..high`.
    pub fn real(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// A number in `low..=high`.
    pub fn whole(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1).unsigned_abs()) as i64
    }

    /// Floats of f32.
    pub fn floats(&mut self, shape: &[usize], low: f64, high: f64) -> Tensor {
        self.reals(DType::F32, shape, low, high)
    }

    /// Floats of a type, already rounded to it.
    pub fn reals(&mut self, dtype: DType, shape: &[usize], low: f64, high: f64) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.real(low, high)).collect();
        let data = match dtype {
            DType::F64 => Data::F64(values),
            _ => Data::F32(values.into_iter().map(|v| held(dtype, v as f32)).collect()),
        };
        Tensor { dtype, shape: shape.to_vec(), data }
    }

    /// Integers of a type in `low..=high`.
    pub fn wholes(&mut self, dtype: DType, shape: &[usize], low: i64, high: i64) -> Tensor {
        let values: Vec<i64> = (0..shape.iter().product()).map(|_| self.whole(low, high)).collect();
        of_ints(dtype, shape, values)
    }

    /// Booleans.
    pub fn bools(&mut self, shape: &[usize]) -> Tensor {
        let data = Data::Bool((0..shape.iter().product()).map(|_| self.whole(0, 1) == 1).collect());
        Tensor { dtype: DType::Bool, shape: shape.to_vec(), data }
    }

    /// `0..n` in any order.
    pub fn shuffled(&mut self, n: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..n as i64).collect();
        for i in (1..n).rev() {
            order.swap(i, self.whole(0, i as i64) as usize);
        }
        order
    }
}

/// An f32 as a coarser type holds it: what has more bits of mantissa is cut off, so that both sides start alike.
fn held(dtype: DType, v: f32) -> f32 {
    let kept = match dtype {
        DType::F16 => 0xffff_e000,
        DType::BF16 => 0xffff_0000,
        _ => u32::MAX,
    };
    f32::from_bits(v.to_bits() & kept)
}

/// A tensor of integers.
pub fn of_ints(dtype: DType, shape: &[usize], values: Vec<i64>) -> Tensor {
    let data = match dtype {
        DType::I32 => Data::I32(values.into_iter().map(|v| v as i32).collect()),
        _ => Data::I64(values),
    };
    Tensor { dtype, shape: shape.to_vec(), data }
}
