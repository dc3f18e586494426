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

use super::{QuantizedRow, extremes, tree};
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
    -127, -105, -70, -52, -39, -28, -17, -7, 4, 13, 24, 35, 47, 62, 80, 106, //
    -94, -75, -60, -47, -36, -26, -16, -7, 2, 11, 21, 30, 41, 53, 69, 90, //
    -84, -69, -55, -43, -33, -23, -15, -7, 1, 9, 17, 26, 35, 45, 57, 75, //
    -64, -52, -43, -35, -27, -19, -12, -5, 2, 8, 15, 23, 31, 40, 50, 63,
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
const CANDIDATES: [i16; 16] = [-112, -104, -97, -90, -84, -78, -73, -68, -64, 102, 93, 85, 78, 72, 67, 62];
/// How far from the best of them others are tried.
const NEARBY: i16 = 2;

/// Places per unit of the codebooks: numbers a third beyond theirs still have one.
const PLACES: f32 = 0.75;
/// Square of the distance that counts as one.
const ERROR: f32 = 2.0;
/// Steps per unit of the codebooks in which the nearest number is looked up, and how many there are on each side of zero.
const FINE: f32 = 8.0;
const FINE_MOST: usize = 1024;
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
    /// Place of the nearest number in the table of all codebooks, by a number in steps of an eighth of a unit.
    nearest: [[u8; 2 * FINE_MOST]; LEVELS],
    errors: Errors,
}

static CODEBOOKS: LazyLock<Codebooks> = LazyLock::new(|| {
    Codebooks::new(std::array::from_fn(|level| std::array::from_fn(|i| f32::from(TABLE[level * CODES + i]))))
});

impl Codebooks {
    fn new(numbers: [[f32; CODES]; LEVELS]) -> Self {
        let nearest = std::array::from_fn(|level| {
            std::array::from_fn(|i| {
                let x = (i as f32 - FINE_MOST as f32) / FINE;
                let book = numbers[level];
                let above = (1..CODES).filter(|i| x > 0.5 * (book[i - 1] + book[*i])).count();
                (level * CODES + above) as u8
            })
        });
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
        Codebooks { numbers, nearest, errors }
    }

    /// Codes and scale of at most 128 weights; see [`quantize_row`] for `measure`.
    #[inline(always)]
    fn block(&self, x: &[f32], codes: &mut [u8], measure: &impl Fn(&Errors, &Block, usize, i16) -> Levels) -> f16 {
        let (max, min) = extremes(x);
        let peak = if max >= -min { max } else { min };
        codes.fill(0);
        if peak.abs() < super::TINY || !peak.is_finite() {
            return if peak.is_finite() { f16::ZERO } else { f16::INFINITY };
        }
        let (mut parts, to_part) = ([0; BLOCK], PEAK / peak);
        for (part, v) in parts.iter_mut().zip(x) {
            *part = (v * to_part + ROUND).to_bits() as i16;
        }
        let (mut best, mut place, mut levels) = (f32::INFINITY, 0, [0; BLOCK / RUN]);
        let mut consider = |candidate: i16| {
            let found = measure(&self.errors, &parts, x.len(), candidate);
            let error = found.error as f32 / (i32::from(candidate) * i32::from(candidate)) as f32;
            if error < best {
                (best, place, levels) = (error, candidate, found.of);
            }
            place
        };
        let coarse = CANDIDATES.into_iter().fold(0, |_, candidate| consider(candidate));
        consider(coarse - NEARBY);
        consider(coarse + NEARBY);
        self.assign(x, levels, f32::from(place) / (PLACES * peak), codes);
        let scale = f16::from_f32(self.fitted(x, codes));
        // A scale that f16 rounds by much has other nearest numbers.
        if scale != f16::ZERO && !scale.is_normal() && scale.is_finite() {
            self.assign(x, levels, 1.0 / scale.to_f32(), codes);
        }
        scale
    }

    /// Codes of `x · inverse`: the nearest numbers of the levels, up to a sixteenth of a unit of the codebooks.
    #[inline(always)]
    fn assign(&self, x: &[f32], levels: [u8; BLOCK / RUN], inverse: f32, codes: &mut [u8]) {
        let mut fine = [0u16; BLOCK];
        for (fine, v) in fine.iter_mut().zip(x) {
            let most = FINE_MOST as f32;
            *fine = ((v * (inverse * FINE)).max(-most).min(most - 1.0) + (ROUND + most)).to_bits() as u16;
        }
        for ((fine, codes), level) in fine.chunks(RUN).zip(codes.chunks_mut(RUN)).zip(levels) {
            let nearest = &self.nearest[usize::from(level) % LEVELS];
            for (code, fine) in codes.iter_mut().zip(fine) {
                *code = nearest[usize::from(*fine) % nearest.len()];
            }
        }
    }

    /// The scale of least squares for the codes.
    #[inline(always)]
    fn fitted(&self, x: &[f32], codes: &[u8]) -> f32 {
        let numbers = self.numbers.as_flattened();
        let (mut xq, mut qq) = ([0.0f32; RUN], [0.0f32; RUN]);
        for (x, codes) in x.chunks(RUN).zip(codes.chunks(RUN)) {
            for (i, (&x, &code)) in x.iter().zip(codes).enumerate() {
                let q = numbers[usize::from(code) % numbers.len()];
                xq[i] = x.mul_add(q, xq[i]);
                qq[i] = q.mul_add(q, qq[i]);
            }
        }
        tree(xq) / tree(qq)
    }
}

/// What the runs of a block lose with their best levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Sum of the errors.
    pub error: u32,
    /// Level of each run.
    pub of: [u8; BLOCK / RUN],
}

/// Levels of the first `len` weights of a block when the largest magnitude is put in `place`.
#[inline(always)]
pub fn levels(errors: &Errors, block: &Block, len: usize, place: i16) -> Levels {
    let mut places = [0u8; BLOCK];
    for i in 0..BLOCK {
        let exact = (i32::from(block[i]) * i32::from(place) + (1 << 14)) >> 15;
        places[i] = (exact.clamp(-128, 127) + 128) as u8;
    }
    let mut found = Levels { error: 0, of: [0; BLOCK / RUN] };
    for (run, of) in places[..len].chunks(RUN).zip(&mut found.of) {
        let sums = run.iter().fold(0, |sum, place| sum + errors.words[usize::from(*place)]);
        let error = |level: usize| (sums >> (16 * level)) as u32 & 0xffff;
        let best = (1..LEVELS).fold(0, |best, level| if error(level) < error(best) { level } else { best });
        found.error += error(best);
        *of = best as u8;
    }
    found
}

/// Quantizes one row into `out`, whose buffers have the right lengths. False when a scale does not fit f16.
///
/// `measure` is [`levels`], or a faster way to the same.
#[inline(always)]
pub fn quantize_row(
    row: &[f32],
    out: &mut QuantizedRow,
    measure: impl Fn(&Errors, &Block, usize, i16) -> Levels,
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
