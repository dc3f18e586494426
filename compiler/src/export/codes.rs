//! Codes of weights in the schemes of exported files.
//!
//! A matrix `[N, K]` of the IR (a row per output) is `[K, N]` there, but for `MatMulNBits`. All schemes are symmetric.

use dlx_ir::QuantFormat;
use dlx_ir::quant::QuantizedRow;
use dlx_runtime::cpu::quantize_row;
use rayon::prelude::*;

/// Codes and scales of a matrix.
pub(super) struct Codes {
    /// As the file holds them.
    pub(super) codes: Vec<u8>,
    /// f32 scales, little-endian.
    pub(super) scales: Vec<u8>,
    /// Block scales as multiples of the scales, for [`blocks`].
    pub(super) factors: Vec<u8>,
}

/// Largest block factor: some devices compute larger ones wrongly.
const MAX_FACTOR: u8 = 15;

/// int8, a scale for each output: `codes [K, N]`, `scales [N]`.
pub(super) fn channels(rows: &[f32], k: usize) -> Codes {
    let quantized: Vec<(f32, Vec<u8>)> = rows
        .par_chunks(k)
        .map(|row| {
            let scale = largest(row) / 127.0;
            let code = |v: &f32| rounded((v * inverse(scale)).clamp(-127.0, 127.0)) as i8 as u8;
            (scale, row.iter().map(code).collect())
        })
        .collect();
    let codes = turned(quantized.iter().map(|(_, codes)| &codes[..]), k);
    Codes { codes, scales: bytes(quantized.iter().map(|(scale, _)| *scale)), factors: Vec::new() }
}

/// int4 in blocks of `block` features, whose scales are small multiples of the output's scale: `codes [K, N]` two to a byte,
/// `factors u8 [K / block, N]`, `scales [N]`. Each factor is the one of least squared error.
pub(super) fn blocks(rows: &[f32], k: usize, block: usize) -> Codes {
    let quantized: Vec<(f32, Vec<u8>, Vec<u8>)> = rows
        .par_chunks(k)
        .map(|row| {
            let scale = largest(row) / 7.0 / f32::from(MAX_FACTOR);
            let (mut factors, mut codes) = (Vec::with_capacity(k / block), Vec::with_capacity(k));
            for part in row.chunks(block) {
                let factor = best_factor(part, scale);
                let by = inverse(scale * f32::from(factor));
                factors.push(factor);
                codes.extend(part.iter().map(|v| nibble(*v, by) as i8 as u8 & 15));
            }
            (scale, factors, codes)
        })
        .collect();
    let codes = turned(quantized.iter().map(|(.., codes)| &codes[..]), k);
    Codes {
        codes: codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect(),
        scales: bytes(quantized.iter().map(|(scale, ..)| *scale)),
        factors: turned(quantized.iter().map(|(_, factors, _)| &factors[..]), k / block),
    }
}

fn best_factor(part: &[f32], scale: f32) -> u8 {
    let error = |factor: u8| {
        let (step, by) = (scale * f32::from(factor), inverse(scale * f32::from(factor)));
        let of = |v: &f32| {
            let rest = v - nibble(*v, by) * step;
            rest * rest
        };
        part.iter().map(of).sum::<f32>()
    };
    // Clipping the largest value by half or more never pays.
    let least = (largest(part) * inverse(scale) / 14.0).clamp(1.0, f32::from(MAX_FACTOR)) as u8;
    let mut best = (f32::INFINITY, MAX_FACTOR);
    for factor in (least..=MAX_FACTOR).rev() {
        let error = error(factor);
        if error < best.0 {
            best = (error, factor);
        }
    }
    best.1
}

fn nibble(v: f32, by: f32) -> f32 {
    rounded((v * by).clamp(-8.0, 7.0))
}

/// To the nearest whole number, ties to even, for small numbers: an addition, where the standard function is a call on machines
/// without an instruction for it.
fn rounded(v: f32) -> f32 {
    const HALFWAY: f32 = 12_582_912.0;
    (v + HALFWAY) - HALFWAY
}

/// Codes of `MatMulNBits`: a row per output, blocks one after the other, the code of zero in the middle. None when a scale does
/// not fit f16, which it is chosen in.
pub(super) fn nbits(rows: &[f32], k: usize, bits: u8, block: usize) -> Option<Codes> {
    let format = QuantFormat::symmetric(bits, u32::try_from(block).ok());
    let quantized: Option<Vec<QuantizedRow>> = rows
        .par_chunks(k)
        .map(|row| {
            let mut made = QuantizedRow::zeroed(format, k);
            quantize_row(format, row, &mut made).then_some(made)
        })
        .collect();
    let quantized = quantized?;
    let codes = quantized.iter().flat_map(|q| &q.codes);
    let codes: Vec<u8> = codes.copied().collect();
    let codes = if bits == 4 { codes.as_chunks::<2>().0.iter().map(|[l, h]| l | h << 4).collect() } else { codes };
    let scales = bytes(quantized.iter().flat_map(|q| &q.scales).map(|s| s.to_f32()));
    Some(Codes { codes, scales, factors: Vec::new() })
}

/// Rows of `k` elements as columns.
pub(super) fn turned<'a, T: Copy + Default + Send + Sync + 'a>(
    rows: impl Iterator<Item = &'a [T]>,
    k: usize,
) -> Vec<T> {
    let rows: Vec<&[T]> = rows.collect();
    let mut out = vec![T::default(); rows.len() * k];
    // Blocks, so that neither side walks through memory a line per element.
    out.par_chunks_mut(64 * rows.len().max(1)).enumerate().for_each(|(piece, out)| {
        for (n, row) in rows.iter().enumerate() {
            for (i, v) in row[piece * 64..].iter().take(64).enumerate() {
                out[i * rows.len() + n] = *v;
            }
        }
    });
    out
}

/// f32 as bytes.
pub(super) fn bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |m, v| v.abs().max(m))
}

fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// Numbers without pattern.
    fn rows(n: usize, k: usize) -> Vec<f32> {
        (0..n * k).map(|i| libm::sinf(i as f32 * 1.7) * (1.0 + (i % k) as f32 / 40.0)).collect()
    }

    #[test]
    fn channels_are_nearest_codes_turned() {
        let (n, k) = (3, 70);
        let rows = rows(n, k);
        let made = channels(&rows, k);
        let scales = floats(&made.scales);
        for (i, row) in rows.chunks(k).enumerate() {
            assert_eq!(scales[i], largest(row) / 127.0);
            for (j, v) in row.iter().enumerate() {
                let code = f32::from(made.codes[j * n + i] as i8);
                assert!((code * scales[i] - v).abs() <= scales[i] * 0.5001, "{i} {j}");
            }
        }
        assert_eq!(channels(&[0.0; 4], 4).codes, [0; 4]);
    }

    #[test]
    fn factors_are_small_and_of_least_error() {
        let (n, k, block) = (2, 64, 32);
        let rows = rows(n, k);
        let made = blocks(&rows, k, block);
        let scales = floats(&made.scales);
        let code = |i: usize, j: usize| {
            let at = j * n + i;
            let nibble = made.codes[at / 2] >> (4 * (at % 2)) & 15;
            f32::from((nibble << 4) as i8 >> 4)
        };
        for (i, row) in rows.chunks(k).enumerate() {
            for (b, part) in row.chunks(block).enumerate() {
                let factor = made.factors[b * n + i];
                assert!((1..=MAX_FACTOR).contains(&factor));
                let error = |step: f32, code: &dyn Fn(usize) -> f32| -> f32 {
                    part.iter().enumerate().map(|(j, v)| (v - code(j) * step) * (v - code(j) * step)).sum()
                };
                let found = error(scales[i] * f32::from(factor), &|j| code(i, b * block + j));
                for other in 1..=MAX_FACTOR {
                    let step = scales[i] * f32::from(other);
                    let nearest = |j: usize| (part[j] / step).round_ties_even().clamp(-8.0, 7.0);
                    assert!(found <= error(step, &nearest) * 1.0001, "{i} {b}: {other} is better than {factor}");
                }
            }
        }
    }

    #[test]
    fn columns_of_columns_are_rows() {
        let values: Vec<u16> = (0..130 * 3).collect();
        let turned_once = turned(values.chunks(130), 130);
        assert_eq!(turned_once[..4], [0, 130, 260, 1]);
        assert_eq!(turned(turned_once.chunks(3), 3), values);
        assert_eq!([2.5, -2.5, 3.5, 126.4].map(rounded), [2.0, -2.0, 4.0, 126.0]);
    }
}
