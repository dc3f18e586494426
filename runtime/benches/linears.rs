//! Times the linear layers and the head of a 1.7 B diffusion model, and the limits of the machine beside them.
//!
//! `cargo bench -p dlx-runtime --bench linears -- [--format q4g32] [--threads 2] [M...]`. Weights are random bytes of
//! distinct memory per layer, so that a single row really streams them.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use dlx_ir::DType;
use dlx_runtime::cpu::{
    Ctx, Epilogue, Isa, Norm, PackedWeight, Pool, head_logits, int8_peak, kernels, linear, linear_scratch_words,
    packed_bytes, read_once,
};
use std::time::{Duration, Instant};

const LAYERS: usize = 28;
const HIDDEN: usize = 2048;
const KV: usize = 1024;
const MLP: usize = 6144;
const VOCAB: usize = 151_936;

fn main() {
    let mut formats = Vec::new();
    let mut rows = Vec::new();
    let mut threads = 2;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--format" => formats.push(args.next().expect("--format takes a format")),
            "--threads" => threads = args.next().and_then(|n| n.parse().ok()).expect("--threads takes a number"),
            m => rows.push(m.parse::<usize>().expect("a number of rows")),
        }
    }
    if formats.is_empty() {
        formats = ["q4g32", "q4g64", "q4g128", "q8g128"].map(String::from).to_vec();
    }
    if rows.is_empty() {
        rows = vec![1, 4, 8, 16, 32, 64, 128, 512];
    }
    let isa = Isa::from_env().expect("DLX_ISA");
    let pool = Pool::new(threads).expect("threads");
    let ctx = Ctx { kernels: kernels(isa).expect("instruction set"), pool: &pool };
    println!("kernels: {isa}, {threads} threads");
    for format in &formats {
        let model = Model::new(format.parse().expect("a format"));
        for &m in &rows {
            model.time(&ctx, m);
        }
    }
}

fn timed(work: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Time that this process has spent on a CPU, where Linux tells: what a shared machine cannot disturb.
fn cpu_time() -> Option<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanos += stat.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(nanos))
}

/// The weights, in one allocation: per layer q, k, v, o, gate, up, down; then the head.
struct Model {
    dtype: DType,
    shapes: Vec<(usize, usize)>,
    bytes: Vec<u8>,
    start: usize,
}

impl Model {
    fn new(dtype: DType) -> Self {
        let layer = [
            (HIDDEN, HIDDEN),
            (KV, HIDDEN),
            (KV, HIDDEN),
            (HIDDEN, HIDDEN),
            (MLP, HIDDEN),
            (MLP, HIDDEN),
            (HIDDEN, MLP),
        ];
        let mut shapes: Vec<(usize, usize)> = layer.iter().copied().cycle().take(7 * LAYERS).collect();
        shapes.push((VOCAB, HIDDEN));
        let total: usize = shapes.iter().map(|(n, k)| packed_bytes(dtype, *n, *k).expect("a packable format")).sum();
        let mut bytes = vec![0u8; total + 64];
        let mut state = 1u64;
        for word in bytes.as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Two of every f16's exponent bits are cleared: random scales stay finite.
            *word = (state & 0x3bff_3bff_3bff_3bff).to_le_bytes();
        }
        let start = bytes.as_ptr().align_offset(64);
        Model { dtype, shapes, bytes, start }
    }

    fn weights(&self) -> Vec<PackedWeight<'_>> {
        let mut at = self.start;
        self.shapes
            .iter()
            .map(|&(n, k)| {
                let len = packed_bytes(self.dtype, n, k).expect("a packable format");
                at += len;
                PackedWeight::new(self.dtype, n, k, &self.bytes[at - len..at]).expect("the right size")
            })
            .collect()
    }

    fn time(&self, ctx: &Ctx<'_>, m: usize) {
        let weights = self.weights();
        let (layers, head) = weights.as_chunks::<7>();
        let head = &head[0];
        let mut x: Vec<f32> = (0..m * HIDDEN).map(|i| ((i * 37) % 101) as f32 * 0.02 - 1.0).collect();
        let norm_weight = vec![1f32; HIDDEN];
        let norm = Norm { weight: &norm_weight, eps: 1e-6 };
        let (mut q, mut k, mut v) = (vec![0f32; m * HIDDEN], vec![0f32; m * KV], vec![0f32; m * KV]);
        let mut mlp = vec![0f32; m * MLP];
        let mut logits = vec![0f32; m * VOCAB];
        let most = layers[0].iter().map(|w| linear_scratch_words(m, &[*w])).max().expect("seven weights");
        let mut scratch = vec![0u32; 3 * most];
        let scratch = &mut scratch;
        let mut head_time = Vec::new();
        let mut pass = |x: &mut Vec<f32>| {
            for [wq, wk, wv, wo, gate, up, down] in layers {
                let mut outs: [&mut [f32]; 3] = [&mut q, &mut k, &mut v];
                linear(ctx, x, m, Some(norm), &[*wq, *wk, *wv], &[], Epilogue::Store, &mut outs, scratch);
                linear(ctx, &q, m, None, &[*wo], &[], Epilogue::AddInPlace, &mut [x], scratch);
                let outs: &mut [&mut [f32]] = &mut [&mut mlp];
                linear(ctx, x, m, Some(norm), &[*gate, *up], &[], Epilogue::SwiGlu, outs, scratch);
                linear(ctx, &mlp, m, None, &[*down], &[], Epilogue::AddInPlace, &mut [x], scratch);
            }
            head_time.push(timed(&mut || head_logits(ctx, x, m, Some(norm), head, &mut logits, scratch)));
        };
        pass(&mut x);
        let mut times = Vec::new();
        let started = Instant::now();
        let cpu_before = cpu_time();
        // A reading of memory after every pass: a shared machine's bandwidth drifts within seconds.
        let mut reads = Vec::new();
        while times.len() < 3 || (started.elapsed() < Duration::from_millis(2500) && times.len() < 40) {
            times.push(timed(&mut || pass(&mut x)));
            reads.push(read_once(ctx.pool, &self.bytes));
        }
        reads.sort();
        let cpu = cpu_time().zip(cpu_before).map_or(f64::NAN, |(after, before)| {
            (after - before).as_secs_f64() * 1e3 / (times.len() * ctx.threads()) as f64
        });
        times.sort();
        head_time.sort();
        let (best, median) = (times[0], times[times.len() / 2]);
        let elements: usize = self.shapes.iter().map(|(n, k)| n * k).sum();
        let gops = 2.0 * (elements * m) as f64 / median.as_secs_f64() / 1e9;
        let peak = int8_peak(ctx.pool).unwrap_or(f64::NAN);
        let bandwidth = self.bytes.len() as f64 / reads[reads.len() / 2].as_secs_f64() / 1e9;
        println!(
            "{:7} M={m:<4} median {:8.1} ms  best {:8.1}  on CPU {cpu:8.1}  head {:7.1}  {gops:6.0} GOPS = {:3.0} % of {peak:.0}  \
             {:5.1} GB/s of {bandwidth:.1}",
            self.dtype.to_string(),
            median.as_secs_f64() * 1e3,
            best.as_secs_f64() * 1e3,
            head_time[head_time.len() / 2].as_secs_f64() * 1e3,
            gops / peak * 100.0,
            self.bytes.len() as f64 / median.as_secs_f64() / 1e9,
        );
    }
}
