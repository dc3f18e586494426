//! Where the codebooks come from, and what they lose.

use super::*;
use crate::types::QuantFormat;

/// Numbers of a normal distribution (xorshift, Box–Muller), blocks of them.
fn gaussian(seed: u64, blocks: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        for (left, by) in [(true, 13), (false, 7), (true, 17)] {
            state ^= if left { state << by } else { state >> by };
        }
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut normal = || {
        let radius = libm::sqrt(-2.0 * libm::log(uniform()));
        (radius * libm::cos(std::f64::consts::TAU * uniform())) as f32
    };
    (0..blocks * BLOCK).map(|_| normal()).collect()
}

/// Sums of squares of errors and of numbers.
fn loss(books: &Codebooks, x: &[f32]) -> f64 {
    let (mut lost, mut all) = (0.0, 0.0);
    for x in x.chunks(BLOCK) {
        let mut codes = [0; BLOCK];
        let scale = books.block(x, &mut codes, &levels).to_f32();
        for (x, code) in x.iter().zip(codes) {
            let q = books.numbers[usize::from(code) / CODES][usize::from(code) % CODES];
            lost += f64::from(x - scale * q).powi(2);
            all += f64::from(*x).powi(2);
        }
    }
    lost / all
}

/// One of Lloyd's iterations: every number becomes the mean of what it stands for, and the largest is 127 again.
fn iteration(books: &Codebooks, x: &[f32]) -> [[f32; CODES]; LEVELS] {
    let mut sums = [[(0.0f64, 0.0f64); CODES]; LEVELS];
    for x in x.chunks(BLOCK) {
        let mut codes = [0; BLOCK];
        let scale = f64::from(books.block(x, &mut codes, &levels).to_f32());
        for (x, code) in x.iter().zip(codes) {
            let (sum, weight) = &mut sums[usize::from(code) / CODES][usize::from(code) % CODES];
            *sum += f64::from(*x) * scale;
            *weight += scale * scale;
        }
    }
    let means = sums.map(|book| book.map(|(sum, weight)| sum / weight));
    let peak = means.iter().flatten().fold(0.0f64, |m, v| v.abs().max(m));
    means.map(|book| book.map(|v| (v / peak * 127.0) as f32))
}

/// A rough solution, where the iteration starts: the numbers of every codebook stand closer where weights are denser.
#[rustfmt::skip]
const START: [[i8; CODES]; LEVELS] = [
    [-127, -108, -82, -63, -47, -33, -20, -9, 3, 14, 25, 37, 50, 64, 82, 115],
    [-99, -77, -62, -49, -38, -28, -18, -8, 2, 11, 21, 31, 42, 54, 70, 93],
    [-89, -71, -56, -43, -33, -24, -15, -7, 1, 9, 17, 25, 35, 45, 58, 77],
    [-65, -53, -43, -35, -27, -19, -12, -5, 1, 8, 14, 22, 30, 39, 50, 63],
];

#[test]
fn the_codebooks_are_what_lloyds_iteration_finds() {
    let x = gaussian(0x6c31_3600, 4000);
    let mut numbers = START.map(|book| book.map(f32::from));
    for _ in 0..200 {
        numbers = iteration(&Codebooks::new(numbers), &x);
    }
    let found: Vec<i8> = numbers.iter().flatten().map(|v| v.round_ties_even() as i8).collect();
    assert_eq!(found, TABLE);
}

#[test]
fn gaussian_weights_lose_what_the_format_was_made_for() {
    let x = gaussian(0x1234_5678_9abc, 2000);
    let loss = loss(&CODEBOOKS, &x);
    assert!((4.9e-3..5.2e-3).contains(&loss), "{loss}");
}

#[test]
fn numbers_ascend_and_fit_a_signed_byte_without_its_least() {
    for book in TABLE.chunks(CODES) {
        assert!(book.is_sorted_by(|a, b| a < b) && book[0] >= -127);
    }
}

#[test]
fn codes_of_a_run_share_their_level_and_zeros_stay_zeros() {
    for k in [1, 15, 16, 17, 128, 130, 300] {
        let x = &gaussian(9, 3)[..k];
        let mut q = QuantizedRow::zeroed(QuantFormat::L16, k);
        assert!(quantize_row(x, &mut q, levels) && are_codes(&q.codes), "{k}");
        let numbers = q.dequantize(QuantFormat::L16);
        let lost: f32 = numbers.iter().zip(x).map(|(a, b)| (a - b) * (a - b)).sum();
        let all: f32 = x.iter().map(|v| v * v).sum();
        assert!(lost < 0.01 * all, "{k}: {lost} of {all}");
        assert!(quantize_row(&vec![0.0; k], &mut q, levels));
        assert_eq!(q.dequantize(QuantFormat::L16), vec![0.0; k]);
    }
    assert!(!are_codes(&[0, 16]) && !are_codes(&[64]));
}
