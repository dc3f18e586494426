//! What the ops of [`Level::Tensor`](crate::Level::Tensor) compute.

use super::data::{Tensor, matrix};
use super::not_computed;
use crate::op::Op;

/// Evaluates an op of this level.
pub(super) fn compute(op: &Op, args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    match op {
        Op::Add {} => zip(args, &|a, b| a + b),
        // Every result is rounded to its type.
        Op::Cast { to: _ } => map(args, &|v| v),
        Op::Concat {} => concat(args),
        Op::Matmul {} => matmul(args),
        Op::Mul {} => zip(args, &|a, b| a * b),
        Op::Scale { by } => map(args, &|v| v * by),
        Op::Silu {} => map(args, &silu),
        Op::Softmax {} => softmax(args),
        Op::Transpose {} => transpose(args),
        other => not_computed(other),
    }
}

/// Operand `i`.
pub(super) fn arg<'t>(args: &[&'t Tensor], i: usize) -> Result<&'t Tensor, String> {
    args.get(i).copied().ok_or_else(|| format!("operand {} is missing", i + 1))
}

/// A function of each element of operand 0.
pub(super) fn map(args: &[&Tensor], f: &dyn Fn(f32) -> f32) -> Result<Vec<Tensor>, String> {
    let x = arg(args, 0)?;
    Ok(vec![Tensor::f32(&x.shape, x.floats()?.iter().map(|&v| f(v)).collect())])
}

/// A function of each two elements of operands 0 and 1.
pub(super) fn zip(args: &[&Tensor], f: &dyn Fn(f32, f32) -> f32) -> Result<Vec<Tensor>, String> {
    let (a, b) = (arg(args, 0)?, arg(args, 1)?);
    if a.shape != b.shape {
        return Err(format!("shapes {:?} and {:?} differ", a.shape, b.shape));
    }
    let data = a.floats()?.iter().zip(b.floats()?).map(|(&a, &b)| f(a, b)).collect();
    Ok(vec![Tensor::f32(&a.shape, data)])
}

pub(super) fn concat(args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let mut shape = arg(args, 0)?.shape.clone();
    let mut data = Vec::new();
    shape[0] = 0;
    for a in args {
        shape[0] += a.shape[0];
        data.extend_from_slice(a.floats()?);
    }
    Ok(vec![Tensor::f32(&shape, data)])
}

pub(super) fn matmul(args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let ((m, k), (k2, n)) = (matrix(arg(args, 0)?)?, matrix(arg(args, 1)?)?);
    if k != k2 {
        return Err(format!("inner dimensions {k} and {k2} differ"));
    }
    let (a, b) = (arg(args, 0)?.floats()?, arg(args, 1)?.floats()?);
    let cell = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
    let data = (0..m * n).map(|i| cell(i / n, i % n) as f32).collect();
    Ok(vec![Tensor::f32(&[m, n], data)])
}

pub(super) fn softmax(args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let x = arg(args, 0)?;
    let data = x.floats()?.chunks(x.cols()).flat_map(probabilities).map(|p| p as f32).collect();
    Ok(vec![Tensor::f32(&x.shape, data)])
}

pub(super) fn transpose(args: &[&Tensor]) -> Result<Vec<Tensor>, String> {
    let (x, (rows, cols)) = (arg(args, 0)?, matrix(arg(args, 0)?)?);
    let data = x.floats()?;
    let flipped = (0..cols).flat_map(|c| (0..rows).map(move |r| data[r * cols + c])).collect();
    Ok(vec![Tensor::f32(&[cols, rows], flipped)])
}

/// The softmax of a row.
pub(super) fn probabilities(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = x.iter().map(|&v| libm::exp(f64::from(v) - f64::from(max))).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

pub(super) fn silu(v: f32) -> f32 {
    let v = f64::from(v);
    (v / (1.0 + libm::exp(-v))) as f32
}
