//! Times attention of a 1.7 B diffusion model (16 query heads, 8 KV heads of 128) at several depths, and what a parallel
//! region costs.
//!
//! `cargo bench -p dlx-runtime --bench attention -- [--threads 2] [M...]`.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use dlx_ir::{DType, Mask};
use dlx_runtime::cpu::{
    AttentionShape, Ctx, Isa, KvShape, Pool, attention, attention_scratch_words, k_state_bytes, kernels, kv_write,
    v_state_bytes,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

const HEADS: usize = 16;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
/// Calls that are timed of each kind of cache.
const ROUNDS: usize = 41;

fn main() {
    let mut rows = Vec::new();
    let mut threads = 2;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--threads" => threads = args.next().and_then(|n| n.parse().ok()).expect("--threads takes a number"),
            m => rows.push(m.parse::<usize>().expect("a number of rows")),
        }
    }
    if rows.is_empty() {
        rows = vec![1, 4, 32, 512];
    }
    let isa = Isa::from_env().expect("DLX_ISA");
    let pool = Pool::new(threads).expect("threads");
    let ctx = Ctx { kernels: kernels(isa).expect("instruction set"), pool: &pool };
    println!("kernels: {isa}, {threads} threads");
    for pause in [0, 20, 200, 2000].map(Duration::from_micros) {
        let part = Duration::from_micros(50);
        let ours = excess(pause, part, &|| pool.broadcast(|_| spin(part)));
        // As its own threads see it: handing over from outside costs more.
        let rayon = rayon::join(
            || {
                excess(pause, part, &|| {
                    rayon::join(|| spin(part), || spin(part));
                })
            },
            || (),
        )
        .0;
        println!("a region of two parts costs {ours:.1?} after {pause:?} without one; rayon's join {rayon:.1?}");
    }
    for &m in &rows {
        for depth in [512, 2048] {
            let mut caches = [DType::F32, DType::F16, DType::CACHE_Q8].map(|dtype| Cached::new(&ctx, dtype, m, depth));
            // In turn, so that what else the machine does meets all of them.
            for _ in 0..ROUNDS {
                caches.iter_mut().for_each(|c| c.round(&ctx));
            }
            let [_, f16, q8] = caches.map(|c| c.print(m, depth));
            println!("q8   M={m:<4} depth {depth:<5} {:.2} times as fast as f16", f16 / q8);
        }
    }
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// What a region of equal parts takes beyond one part, when the last one was `pause` ago.
fn excess(pause: Duration, part: Duration, region: &(dyn Fn() + Sync)) -> Duration {
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            spin(pause);
            let start = Instant::now();
            region();
            start.elapsed().saturating_sub(part)
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Attention of new rows over caches of one element type.
struct Cached {
    shape: AttentionShape,
    k_state: Vec<u8>,
    v_state: Vec<u8>,
    q: Vec<f32>,
    out: Vec<f32>,
    scratch: Vec<u32>,
    write_ns: f64,
    times: Vec<Duration>,
}

impl Cached {
    fn new(ctx: &Ctx<'_>, dtype: DType, m: usize, depth: usize) -> Self {
        let kv = KvShape { dtype, max_seq: 4096, kv_heads: KV_HEADS, head_dim: HEAD_DIM };
        let visible = depth + m;
        let mut k_state = vec![0u8; k_state_bytes(kv).expect("a size")];
        let mut v_state = vec![0u8; v_state_bytes(kv).expect("a size")];
        let values = |n: usize| (0..n).map(|i| ((i * 37) % 101) as f32 * 0.02 - 1.0).collect::<Vec<_>>();
        let new = values(visible * KV_HEADS * HEAD_DIM);
        let started = Instant::now();
        kv_write(ctx, kv, &new, &new, 0, &mut k_state, &mut v_state);
        let write_ns = started.elapsed().as_secs_f64() * 1e9 / (2 * new.len()) as f64;
        let q = values(m * HEADS * HEAD_DIM);
        let (out, scratch) = (vec![0f32; q.len()], vec![0u32; attention_scratch_words(ctx.threads(), kv)]);
        let shape = AttentionShape { kv, heads: HEADS, mask: Mask::Full, at: depth, from: 0, visible };
        Cached { shape, k_state, v_state, q, out, scratch, write_ns, times: Vec::new() }
    }

    fn round(&mut self, ctx: &Ctx<'_>) {
        let start = Instant::now();
        attention(ctx, self.shape, &self.q, &self.k_state, &self.v_state, black_box(&mut self.out), &mut self.scratch);
        self.times.push(start.elapsed());
    }

    /// The median of the times, in seconds.
    fn print(mut self, m: usize, depth: usize) -> f64 {
        self.times.sort();
        let (best, median) = (self.times[0].as_secs_f64(), self.times[ROUNDS / 2].as_secs_f64());
        let flops = (4 * self.q.len() * self.shape.visible) as f64;
        println!(
            "{:<4} M={m:<4} depth {depth:<5} best {:8.1} us  median {:8.1} us  {:6.1} GFLOP/s   kv_write {:.2} ns/value",
            self.shape.kv.dtype.to_string(),
            best * 1e6,
            median * 1e6,
            flops / best / 1e9,
            self.write_ns,
        );
        median
    }
}
