//! What this machine can do at most: int8 dot products, f32 multiply-adds and reading memory, measured with the same
//! instructions that the kernels use. Every speed is reported as a share of these, measured in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use super::super::Isa;
use crate::cpu::pool::Pool;

/// Accumulators that are in flight at once: latency times throughput of the instruction, with some to spare.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const CHAINS: usize = 12;

/// Giga-operations per second of 512-bit int8 dot products on the threads of a pool; `None` where this CPU has
/// no such instruction.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "no other architecture has one"))]
pub fn int8_peak(pool: &Pool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.available() {
        use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_set1_epi32};
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn spin(rounds: usize) {
            let (mut sums, x) = black_box(([_mm512_set1_epi32(1); CHAINS], _mm512_set1_epi8(3)));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, x, x);
                }
            }
            black_box(sums.map(|s| _mm512_reduce_add_epi32(s)));
        }
        // SAFETY: the CPU has the features, as checked above.
        return Some(rate(pool, 128 * CHAINS, |rounds| unsafe { spin(rounds) }));
    }
    None
}

/// Giga-operations per second of f32 multiply-adds (two each) on the threads of a pool, as wide as the kernels
/// use them; `None` where there are only scalar kernels.
pub fn f32_peak(pool: &Pool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.available() {
        use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
        #[target_feature(enable = "avx512f")]
        fn spin(rounds: usize) {
            let (mut sums, x) = black_box(([_mm512_set1_ps(1.0); CHAINS], _mm512_set1_ps(0.5)));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, x, x);
                }
            }
            black_box(sums.map(|s| _mm512_reduce_add_ps(s)));
        }
        // SAFETY: the CPU has the features, as checked above.
        return Some(rate(pool, 32 * CHAINS, |rounds| unsafe { spin(rounds) }));
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.available() {
        use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
        #[target_feature(enable = "avx2,fma")]
        fn spin(rounds: usize) {
            let (mut sums, x) = black_box(([_mm256_set1_ps(1.0); CHAINS], _mm256_set1_ps(0.5)));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, x, x);
                }
            }
            black_box(sums.map(|s| _mm256_cvtss_f32(s)));
        }
        // SAFETY: the CPU has the features, as checked above.
        return Some(rate(pool, 16 * CHAINS, |rounds| unsafe { spin(rounds) }));
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::aarch64::{vaddvq_f32, vdupq_n_f32, vfmaq_f32};
        #[target_feature(enable = "neon")]
        fn spin(rounds: usize) {
            let (mut sums, x) = black_box(([vdupq_n_f32(1.0); CHAINS], vdupq_n_f32(0.5)));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = vfmaq_f32(x, *sum, x);
                }
            }
            black_box(sums.map(|s| vaddvq_f32(s)));
        }
        // SAFETY: NEON is part of aarch64.
        Some(rate(pool, 8 * CHAINS, |rounds| unsafe { spin(rounds) }))
    }
    #[cfg(not(target_arch = "aarch64"))]
    None
}

/// Giga-operations per second of `spin(rounds)`, whose operands the compiler must not know, or it would not spin; does
/// `operations` per round, on all threads of the pool.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn rate(pool: &Pool, operations: usize, spin: impl Fn(usize) + Sync) -> f64 {
    const ROUNDS: usize = 500_000;
    let once = |_| {
        let start = Instant::now();
        pool.broadcast(|_| spin(black_box(ROUNDS)));
        start.elapsed()
    };
    let best = (0..5).map(once).min().expect("five runs");
    (ROUNDS * operations * pool.threads()) as f64 / best.as_secs_f64() / 1e9
}

/// Time in which the threads of a pool read `bytes` once, each its own part.
pub fn read_once(pool: &Pool, bytes: &[u8]) -> Duration {
    let words = bytes.as_chunks::<64>().0;
    let share = words.len() / pool.threads();
    let start = Instant::now();
    pool.broadcast(|t| {
        let mut acc = [0u64; 8];
        for line in &words[t * share..][..share] {
            for (a, w) in acc.iter_mut().zip(line.as_chunks::<8>().0) {
                *a ^= u64::from_le_bytes(*w);
            }
        }
        black_box(acc);
    });
    start.elapsed()
}
