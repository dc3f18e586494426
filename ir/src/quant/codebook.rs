//! `l16`: codes of 4 bits that stand for numbers of a codebook, one of four for every 16 weights.
//!
//! `w = scale · TABLE[level · 16 + code]`, with a level per run of 16 consecutive weights of a row and an f16 scale per 128.
//! Codes are kept one to a byte, level and code together; the weights of a run have one level.
//!
//! The codebooks are the same for every model: what Lloyd's iteration finds for Gaussian weights when scale and levels are
//! chosen as here. A test runs it again.
//!
//! A scale is searched for among fixed places of the largest magnitude, by sums of whole numbers from a table, so that any
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
    -127, -105, -75, -57, -42, -30, -19, -8, 3, 13, 24, 35, 48, 62, 79, 107, //
    -94, -76, -61, -48, -37, -26, -16, -7, 2, 11, 20, 30, 41, 53, 68, 89, //
    -85, -69, -55, -43, -33, -23, -15, -7, 1, 9, 17, 25, 34, 44, 57, 75, //
    -64, -52, -42, -34, -27, -19, -12, -5, 2, 8, 15, 22, 30, 39, 49, 62,
];

/// The number that a code stands for, before its scale. The upper two of its eight bits do not count.
pub fn number(code: u8) -> i8 {
    TABLE[usize::from(code) % TABLE.len()]
}

/// Whether codes of a row, level and code together, are such that runs have one level.
pub fn are_codes(row: &[u8]) -> bool {
    row.chunks(RUN).all(|run| run.iter().all(|c| usize::from(*c) < TABLE.len() && c / 16 == run[0] / 16))
}

/// Places that are tried for the largest magnitude of a block, among those of [`Errors`]. Most magnitudes are far below it, so
/// the best may leave it beyond all numbers, or in another codebook.
#[rustfmt::skip]
const CANDIDATES: [i16; 24] = [
    -112, -106, -100, -95, -91, -87, -83, -79, -76, -73, -71, -68, -66, -63,
    102, 95, 89, 84, 79, 75, 71, 68, 64, 61,
];

/// Places per unit of the codebooks: numbers a third beyond theirs still have one.
const PLACES: f32 = 0.75;
/// Square of the distance that counts as one.
const ERROR: f32 = 2.0;
/// Adding it to a small number leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Where [`Block`] has the largest magnitude.
const PEAK: f32 = 32_767.0;

/// A block of weights as parts of the one with the largest magnitude, which is 32767; short blocks end in zeros that do not
/// count.
pub type Block = [i16; BLOCK];

/// Squared distances of numbers from the nearest number of each codebook, by place: the number times three quarters, rounded.
pub struct Errors {
    /// By place + 128, of each codebook 16 bits.
    words: [u64; 256],
    /// The same by codebook.
    pub bytes: [[u8; 256]; LEVELS],
}

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
        let bytes = numbers.map(|book| {
            std::array::from_fn(|place| {
                let x = (place as f32 - 128.0) / PLACES;
                let distance = book.iter().fold(f32::MAX, |d, c| (x - c).abs().min(d));
                (distance * distance / ERROR).round_ties_even().min(255.0) as u8
            })
        });
        let words = std::array::from_fn(|place| {
            bytes.iter().rev().fold(0, |word, book: &[u8; 256]| word << 16 | u64::from(book[place]))
        });
        let errors = Errors { words, bytes };
        Codebooks { numbers, middles, errors }
    }

    /// Codes and scale of at most 128 weights; see [`quantize_row`] for `measure`.
    #[inline(always)]
    fn block(&self, x: &[f32], codes: &mut [u8], measure: &impl Fn(&Errors, &Block, usize, i16) -> u32) -> f16 {
        let mut peak = 0.0f32;
        for &v in x {
            peak = if v.abs() > peak.abs() { v } else { peak };
        }
        codes.fill(0);
        if peak.abs() < super::TINY || !peak.is_finite() {
            return if peak.is_finite() { f16::ZERO } else { f16::INFINITY };
        }
        let (mut parts, to_part) = ([0; BLOCK], PEAK / peak);
        for (part, v) in parts.iter_mut().zip(x) {
            *part = (v * to_part + ROUND).to_bits() as i16;
        }
        let (mut best, mut place) = (f32::INFINITY, 0);
        for candidate in CANDIDATES {
            let error = measure(&self.errors, &parts, x.len(), candidate) as f32;
            let error = error / (i32::from(candidate) * i32::from(candidate)) as f32;
            (best, place) = if error < best { (error, candidate) } else { (best, place) };
        }
        self.assign(x, f32::from(place) / (PLACES * peak), codes);
        let scale = f16::from_f32(self.fitted(x, codes));
        if scale != f16::ZERO {
            self.assign(x, 1.0 / scale.to_f32(), codes);
        }
        scale
    }

    /// Codes of `x · inverse`: the level of least error for each run, and of its numbers the nearest.
    #[inline(always)]
    fn assign(&self, x: &[f32], inverse: f32, codes: &mut [u8]) {
        let place = |v: f32| (v * inverse * PLACES).max(-128.0).min(127.0) + (ROUND + 128.0);
        for (run, codes) in x.chunks(RUN).zip(codes.chunks_mut(RUN)) {
            let mut places = [0u8; RUN];
            places.iter_mut().zip(run).for_each(|(place_of, v)| *place_of = place(*v).to_bits() as u8);
            let level = best_level(self.errors.of(&places[..run.len()])).0;
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

impl Errors {
    /// Errors of a run of places + 128, added up for each codebook in a word.
    #[inline(always)]
    fn of(&self, run: &[u8]) -> u64 {
        run.iter().fold(0, |sum, place| sum + self.words[usize::from(*place)])
    }
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

/// Errors of the first `len` weights of a block, each run's with its best level, when the largest magnitude is put in `place`.
#[inline(always)]
pub fn errors(errors: &Errors, block: &Block, len: usize, place: i16) -> u32 {
    let mut places = [0u8; BLOCK];
    for i in 0..BLOCK {
        let exact = (i32::from(block[i]) * i32::from(place) + (1 << 14)) >> 15;
        places[i] = (exact.clamp(-128, 127) + 128) as u8;
    }
    places[..len].chunks(RUN).map(|run| best_level(errors.of(run)).1).sum()
}

/// Quantizes one row into `out`, whose buffers have the right lengths. False when a scale does not fit f16.
///
/// `measure` is [`errors`], or a faster way to the same sums.
#[inline(always)]
pub fn quantize_row(
    row: &[f32],
    out: &mut QuantizedRow,
    measure: impl Fn(&Errors, &Block, usize, i16) -> u32,
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
