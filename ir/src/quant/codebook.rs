//! `l16`: codes of 4 bits that stand for numbers of a codebook, one of four for every 16 weights.
//!
//! `w = scale · TABLE[level · 16 + code]`, with a level per run of 16 consecutive weights of a row and an f16 scale per 128.
//! Codes are kept one to a byte, level and code together; the weights of a run have one level.
//!
//! The codebooks are the same for every model: what Lloyd's iteration finds for Gaussian weights when scale and levels are
//! chosen as here. A test runs it again.
//!
//! A scale is searched for among fixed multiples of the largest magnitude, by sums of whole numbers from a table, so that any
//! way of adding them up gives the same codes; then it is refined by least squares.

use super::{LANES, QuantizedRow, tree};
use crate::layout::BLOCK;
use half::f16;
use std::sync::LazyLock;

/// Weights of a row that share a level.
pub const RUN: usize = 16;
/// Codebooks.
pub const LEVELS: usize = 4;
/// Numbers of a codebook.
const CODES: usize = 16;

/// Numbers of the codebooks, by level; ascending in each.
pub const TABLE: [i8; LEVELS * CODES] = [
    -127, -105, -75, -57, -43, -30, -19, -8, 3, 13, 24, 35, 48, 62, 79, 106, //
    -94, -75, -60, -48, -37, -26, -17, -7, 2, 11, 20, 30, 40, 53, 68, 89, //
    -85, -69, -55, -43, -33, -23, -15, -7, 1, 9, 17, 25, 34, 44, 57, 74, //
    -64, -52, -42, -34, -26, -19, -12, -5, 1, 8, 15, 22, 30, 39, 49, 62,
];

/// The number that a code stands for, before its scale. The upper two of its eight bits do not count.
pub fn number(code: u8) -> i8 {
    TABLE[usize::from(code) % TABLE.len()]
}

/// Whether codes of a row, level and code together, are such that runs have one level.
pub fn are_codes(row: &[u8]) -> bool {
    row.chunks(RUN).all(|run| run.iter().all(|c| usize::from(*c) < TABLE.len() && c / 16 == run[0] / 16))
}

/// Multiples of the largest magnitude that are tried as what the first of the codebooks' numbers stands for. Most magnitudes
/// of a block are far below the largest, so the best may leave that one beyond all numbers, or in another codebook.
#[rustfmt::skip]
const CANDIDATES: [f32; 24] = [
    -0.85, -0.9, -0.95, -1.0, -1.05, -1.1, -1.15, -1.2, -1.25, -1.3, -1.35, -1.4, -1.45, -1.5,
    0.93, 1.0, 1.07, 1.14, 1.21, 1.28, 1.34, 1.41, 1.48, 1.55,
];

/// Places of [`Codebooks::errors`] per unit of the codebooks: numbers a third beyond theirs still have one.
const PLACES: f32 = 0.75;
/// Square of the distance that counts as one.
const ERROR: f32 = 2.0;
/// Adding it to a small number leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Squared distances of numbers from the nearest number of each codebook, four to a word, by place: the number times
/// [`PLACES`], rounded, and moved by 128.
type Errors = [u64; 256];

/// Codebooks, and what is looked up in them.
struct Codebooks {
    numbers: [[f32; CODES]; LEVELS],
    /// Halfway between neighbors.
    middles: [[f32; CODES - 1]; LEVELS],
    errors: Errors,
}

static CODEBOOKS: LazyLock<Codebooks> = LazyLock::new(|| {
    Codebooks::new(std::array::from_fn(|level| std::array::from_fn(|i| f32::from(TABLE[level * CODES + i]))))
});

impl Codebooks {
    fn new(numbers: [[f32; CODES]; LEVELS]) -> Self {
        let middles = numbers.map(|book| std::array::from_fn(|i| 0.5 * (book[i] + book[i + 1])));
        let errors = std::array::from_fn(|place| {
            let x = (place as f32 - 128.0) / PLACES;
            let distance = |book: &[f32; CODES]| book.iter().fold(f32::MAX, |d, c| (x - c).abs().min(d));
            let error = |book| (distance(book) * distance(book) / ERROR).round_ties_even().min(255.0) as u64;
            numbers.iter().rev().fold(0, |word, book| word << 16 | error(book))
        });
        Codebooks { numbers, middles, errors }
    }

    /// Codes and scale of one block of at most 128 weights; see [`quantize_row`] for `measure`.
    #[inline(always)]
    fn block(&self, x: &[f32], codes: &mut [u8], measure: &impl Fn(&Errors, &[f32], f32) -> u32) -> f16 {
        let (mut peak, mut sign) = (0.0f32, 1.0f32);
        for v in x {
            (peak, sign) = if v.abs() > peak { (v.abs(), v.signum()) } else { (peak, sign) };
        }
        codes.fill(0);
        if peak < super::TINY || !peak.is_finite() {
            return if peak < super::TINY { f16::ZERO } else { f16::INFINITY };
        }
        let (mut best, mut inverse) = (f32::INFINITY, 0.0);
        for candidate in CANDIDATES {
            let to = 127.0 * sign / (candidate * peak);
            let error = measure(&self.errors, x, to * PLACES) as f32 * (candidate * candidate);
            (best, inverse) = if error < best { (error, to) } else { (best, inverse) };
        }
        self.assign(x, inverse, codes);
        self.assign(x, 1.0 / self.fitted(x, codes), codes);
        let scale = f16::from_f32(self.fitted(x, codes));
        if scale != f16::ZERO {
            self.assign(x, 1.0 / scale.to_f32(), codes);
        }
        scale
    }

    /// Codes of `x · inverse`: the level of least error for each run, and of its numbers the nearest.
    #[inline(always)]
    fn assign(&self, x: &[f32], inverse: f32, codes: &mut [u8]) {
        for (run, codes) in x.chunks(RUN).zip(codes.chunks_mut(RUN)) {
            let level = best_level(run_errors(&self.errors, run, inverse * PLACES)).0;
            let mut y = [0.0; RUN];
            y.iter_mut().zip(run).for_each(|(y, v)| *y = v * inverse);
            let mut above = [(level * CODES) as u32; RUN];
            for middle in self.middles[level] {
                for i in 0..RUN {
                    above[i] += u32::from(y[i] > middle);
                }
            }
            codes.iter_mut().zip(above).for_each(|(c, above)| *c = above as u8);
        }
    }

    /// The scale of least squares for the codes.
    #[inline(always)]
    fn fitted(&self, x: &[f32], codes: &[u8]) -> f32 {
        let (mut xq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
        for (x, codes) in x.chunks(LANES).zip(codes.chunks(LANES)) {
            for (i, (&x, &code)) in x.iter().zip(codes).enumerate() {
                let q = self.numbers[usize::from(code) / CODES % LEVELS][usize::from(code) % CODES];
                xq[i] = x.mul_add(q, xq[i]);
                qq[i] = q.mul_add(q, qq[i]);
            }
        }
        tree(xq) / tree(qq)
    }
}

/// Errors of a run of numbers, added up for each level in a word.
#[inline(always)]
fn run_errors(errors: &Errors, run: &[f32], to_place: f32) -> u64 {
    let place = |v: f32| (v * to_place).max(-128.0).min(127.0) + (ROUND + 128.0);
    run.iter().fold(0, |sum, v| sum + errors[usize::from(place(*v).to_bits() as u8)])
}

/// The level of least error among those of a word, and its error.
#[inline(always)]
fn best_level(sums: u64) -> (usize, u32) {
    let mut best = (0, sums as u32 & 0xffff);
    for level in 1..LEVELS {
        let error = (sums >> (16 * level)) as u32 & 0xffff;
        best = if error < best.1 { (level, error) } else { best };
    }
    best
}

/// Errors of a block of numbers `x · to_place`, each run's with its best level.
#[inline(always)]
pub fn errors(errors: &[u64; 256], x: &[f32], to_place: f32) -> u32 {
    x.chunks(RUN).map(|run| best_level(run_errors(errors, run, to_place)).1).sum()
}

/// Quantizes one row into `out`, whose buffers have the right lengths. False when a scale does not fit f16.
///
/// `measure` is [`errors`], or a faster way to the same sums.
#[inline(always)]
pub fn quantize_row(
    row: &[f32],
    out: &mut QuantizedRow,
    measure: impl Fn(&[u64; 256], &[f32], f32) -> u32,
) -> bool {
    let books = &*CODEBOOKS;
    let mut fits = true;
    for (g, (x, codes)) in row.chunks(BLOCK).zip(out.codes.chunks_mut(BLOCK)).enumerate() {
        let scale = books.block(x, codes, &measure);
        fits &= scale.is_finite();
        (out.scales[g], out.mins[g]) = (scale, f16::ZERO);
    }
    fits
}

#[cfg(test)]
mod tests;
