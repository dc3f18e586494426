//! Intervals of measured numbers, at a confidence of 95 %.
//!
//! Deterministic: resampling draws its numbers from the seed.

use dlx_runtime::policies::Interval;

use crate::synth::numbers::mix;

/// The two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;
/// Samples of a bootstrap.
const RESAMPLES: usize = 1000;

/// Wilson's interval of the mean of `n` numbers from 0 to 1. It is exact in spirit for shares; other numbers in that range
/// vary less than zeros and ones of the same mean, so it is wider than needed for them.
pub(super) fn wilson(mean: f64, n: usize) -> Interval {
    let n = n.max(1) as f64;
    let center = (mean + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (mean * (1.0 - mean) / n + Z * Z / (4.0 * n * n)).max(0.0).sqrt();
    Interval { mean, low: (center - half).clamp(0.0, mean), high: (center + half).clamp(mean, 1.0) }
}

/// The percentile bootstrap of a mean: times have long tails, which a symmetric interval would not show.
pub(super) fn bootstrap(values: &[f64], seed: u64) -> Interval {
    let n = values.len().max(1);
    let mean = values.iter().sum::<f64>() / n as f64;
    let draw = |at: u64| values[(mix(mix(seed) ^ at) % n as u64) as usize];
    let resample = |r: usize| (0..values.len()).map(|i| draw((r * n + i) as u64)).sum::<f64>() / n as f64;
    let mut means: Vec<f64> = (0..RESAMPLES).map(resample).collect();
    means.sort_by(f64::total_cmp);
    let (low, high) = (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40]);
    Interval { mean, low: low.min(mean), high: high.max(mean) }
}

/// The number that 39 of 40 do not exceed.
pub(super) fn upper(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * 39).div_ceil(40).saturating_sub(1);
    values.get(at).copied().unwrap_or(0.0)
}
