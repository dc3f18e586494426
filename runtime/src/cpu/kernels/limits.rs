//! What this machine can do at most: int8 dot products and reading memory, measured with the same instructions that the
//! kernels use. Every speed is reported as a share of these, measured in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use super::super::Isa;
use crate::cpu::pool::Pool;

/// Giga-operations per second of 512-bit int8 dot products on the threads of a pool; `None` where this CPU has
/// no such instruction.
pub fn int8_peak(pool: &Pool) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.available() {
        use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_set1_epi32};
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn spin(rounds: usize) -> i32 {
            let mut sums = [_mm512_set1_epi32(1); 12];
            let x = _mm512_set1_epi8(3);
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, x, x);
                }
            }
            sums.into_iter().map(|s| _mm512_reduce_add_epi32(s)).fold(0, i32::wrapping_add)
        }
        const ROUNDS: usize = 500_000;
        let best = best_of(5, || {
            // SAFETY: the CPU has the features, as checked above.
            pool.broadcast(|_| {
                black_box(unsafe { spin(black_box(ROUNDS)) });
            });
        });
        return Some((ROUNDS * 12 * 128 * pool.threads()) as f64 / best.as_secs_f64() / 1e9);
    }
    None
}

/// Gigabytes per second at which the threads of a pool read `bytes`, each its own part: the best of three readings.
pub fn read_bandwidth(pool: &Pool, bytes: &[u8]) -> f64 {
    let best = (0..3).map(|_| read_once(pool, bytes)).min().expect("three readings");
    bytes.len() as f64 / best.as_secs_f64() / 1e9
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

fn best_of(n: usize, mut work: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..n).map(run).min().expect("at least one run")
}
