//! What works on each row of the last dimension.

use super::arg;
use crate::eval::data::Tensor;
use crate::kinds::Norm;
use crate::types::Type;

pub(super) fn softmax(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    Tensor::reals(ty, x.as_reals()?.chunks(x.cols()).flat_map(probabilities).collect())
}

/// The softmax of a row.
pub(in crate::eval) fn probabilities(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|&v| libm::exp(v - max)).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

pub(super) fn normalize(args: &[&Tensor], kind: Norm, eps: f32, ty: &Type) -> Result<Tensor, String> {
    let x = arg(args, 0)?;
    let mut values = x.as_reals()?.into_owned();
    for row in values.chunks_mut(x.cols()) {
        let n = row.len() as f64;
        let mean = if kind == Norm::Layer { row.iter().sum::<f64>() / n } else { 0.0 };
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        let root = (variance + f64::from(eps)).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) / root);
    }
    Tensor::reals(ty, values)
}
