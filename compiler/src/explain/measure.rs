//! Measures what this machine can do, with the kernels that programs run with.
//!
//! Nothing here knows a model: products have one shape, attention has one, and a limit is the time of one repeated call
//! less what was measured before it. A limit is the median of several runs of about a millisecond, as what a prediction is
//! compared with is the median of whole passes. Weights that come from memory are read out of a mapped file, as those of an
//! artifact are.

use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dlx_ir::{DType, Error, Mask, QuantFormat};
use dlx_runtime::cpu::{
    AttentionShape, Ctx, Epilogue, Input, Isa, KvShape, Norm, PackedWeight, Pool, add, attention,
    attention_scratch_words, embed, head_stats, head_stats_scratch_words, k_state_bytes, kernel_variants, kernels,
    kv_write, linear, linear_scratch_words, mul, packed_bytes, prepare_rows, read_once, rms_norm, rope, rope_table,
    scale, silu, silu_mul, v_state_bytes,
};
use dlx_runtime::exec::RowStats;
use dlx_runtime::mapped::Mapped;

use super::limits::{Attention, Limits, PerValue, Product, Reading};

/// Outputs and inputs of the products.
const SHAPE: (usize, usize) = (2048, 2048);
/// Rows of the products, and of everything else.
const PRODUCT_ROWS: &[usize] = &[1, 2, 4, 8, 16, 32, 64, 128, 512];
const ROWS: &[usize] = &[1, 4, 32, 512];
/// Rows above which a product has half the outputs, so that it still takes about as long as nobody disturbs.
const MANY_ROWS: usize = 32;
/// Query rows of a KV head, and cache rows: a block of keys that attention takes at once, and a long context. More query
/// rows are more register tiles, each of which takes as long as the last of these.
const QUERY_ROWS: &[usize] = &[1, 2, 4, 8, 16, 64];
const FEW_KEYS: usize = 64;
const MANY_KEYS: usize = 2048;
/// KV heads and features of a head.
const HEADS: (usize, usize) = (8, 128);
/// Bytes that are read again and again. The largest are more than the caches of most machines hold.
const READS: &[usize] = &[1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28];
/// Bytes of caches that take turns.
const CACHE_BYTES: usize = 128 << 20;
/// Bytes of a piece that is timed alone: few enough for a moment in which nobody disturbs.
const PIECE: usize = 1 << 21;
/// Seconds of runs that a limit is taken from, at least, and after which a slow one is not repeated.
const SECONDS: f64 = 0.08;
const SLOW: f64 = 0.3;
/// Regions that are timed, and the longest wait for a thread to enter one.
const REGIONS: usize = 4000;
const ENTER: Duration = Duration::from_micros(50);

/// Measures the limits of `threads` threads; 0 takes one per core. `watch` is told how many of how many measurements are
/// done, and stops them with an error.
///
/// # Errors
/// When `DLX_ISA` is wrong, threads or a temporary file cannot be had, or `watch` fails.
pub fn measure(threads: usize, watch: &dyn Fn(usize, usize) -> Result<(), Error>) -> Result<Limits, Error> {
    let isa = Isa::from_env().map_err(|e| Error::new("", e))?;
    let kernels = kernels(isa).map_err(|e| Error::new("", e))?;
    let pool = Pool::new(threads);
    let pool = pool.map_err(|e| Error::new("--threads", format!("cannot start {threads} threads: {e}")))?;
    let (_file, weights) = mapped_weights()?;
    let formats: Vec<DType> = kernel_variants().filter(|v| v.isa == isa).flat_map(|v| v.formats).copied().collect();
    let total = READS.len()
        + (2 * formats.len() + 2) * PRODUCT_ROWS.len()
        + CACHES.len() * QUERY_ROWS.len()
        + (OPS.len() + 1) * ROWS.len();
    let (bytes, done) = (weights.bytes(), Cell::new(0));
    let meter = Meter { ctx: Ctx { kernels, pool: &pool }, region: 0.0, weights: bytes, done, total, watch };
    let meter = Meter { region: region(&pool), ..meter };
    let reads = READS.iter().map(|n| meter.read(*n)).collect::<Result<_, _>>()?;
    let mut prepare = Vec::new();
    for (op, format) in [("int8", DType::CACHE_Q8), ("float", DType::F32)] {
        for &rows in PRODUCT_ROWS {
            prepare.push(meter.prepare(op, format, rows)?);
        }
    }
    let mut linear = Vec::new();
    for format in formats {
        for &rows in PRODUCT_ROWS {
            let op = if matches!(format, DType::Quant(_)) { "int8" } else { "float" };
            let ns = prepare.iter().find(|p| p.op == op && p.rows == rows).map_or(0.0, |p| p.ns);
            linear.push(meter.product(format, rows, 1e-9 * ns * (rows * SHAPE.1) as f64)?);
        }
    }
    let mut attention = Vec::new();
    for cache in CACHES {
        for &rows in QUERY_ROWS {
            attention.push(meter.attention(cache, rows)?);
        }
    }
    let mut values = Vec::new();
    for &rows in ROWS {
        values.push(meter.statistics(rows)?);
        for op in OPS {
            values.push(meter.op(op, rows)?);
        }
    }
    let region_us = 1e6 * meter.region;
    Ok(Limits { threads: pool.threads(), region_us, reads, linear, prepare, attention, rows: values })
}

/// Element types of the caches that kernels read.
const CACHES: [DType; 3] = [DType::F32, DType::F16, DType::CACHE_Q8];
/// Ops that are measured as they are, and `swiglu`, which products end with.
const OPS: [&str; 11] =
    ["add", "embed", "kv_write", FAR_WRITE, "mul", "rms_norm", "rope", "rope_table", "scale", "silu", "swiglu"];

/// `kv_write` to caches that come from memory.
pub(super) const FAR_WRITE: &str = "kv_write to memory";

/// Bytes that are finite weights in any format.
pub(crate) fn finite_weights(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        // Two of every f16's exponent bits are cleared and one is set: random scales are finite, and no float is subnormal,
        // which some CPUs multiply a hundred times slower.
        (state & 0x3bff_3bff_3bff_3bff | 0x2000_2000_2000_2000).to_le_bytes()
    });
    words.take(len / 8).flatten().collect()
}

/// A temporary file of weights, mapped.
fn mapped_weights() -> Result<(tempfile::NamedTempFile, Mapped), Error> {
    let len = READS.iter().copied().max().unwrap_or(0);
    let failed = |e: std::io::Error| {
        Error::new(std::env::temp_dir().display(), format!("a file of {len} bytes cannot be made there: {e}"))
            .help("set TMPDIR to a directory that has room")
    };
    let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
    file.write_all(&finite_weights(len)).and_then(|()| file.flush()).map_err(failed)?;
    let mapped = Mapped::open(file.path()).map_err(failed)?;
    Ok((file, mapped))
}

/// Seconds of a call, after one to warm up: the median of several runs, each of as many calls as take a millisecond.
fn repeated(mut call: impl FnMut()) -> f64 {
    let mut run = |calls: usize| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed().as_secs_f64() / calls as f64
    };
    let first = run(1);
    if first > SLOW {
        return first.min(run(1));
    }
    let calls = (1e-3 / first.max(1e-8)).ceil() as usize;
    let (begin, mut runs) = (Instant::now(), Vec::new());
    while runs.len() < 5 || begin.elapsed().as_secs_f64() < SECONDS {
        runs.push(run(calls));
    }
    runs.sort_unstable_by(f64::total_cmp);
    runs[runs.len() / 2]
}

/// Seconds of a region that all threads enter: the quarter mark of those that all have entered in time.
fn region(pool: &Pool) -> f64 {
    let once = |_| {
        let (inside, start) = (AtomicUsize::new(0), Instant::now());
        pool.run(&|_| {
            inside.fetch_add(1, Ordering::Relaxed);
            while inside.load(Ordering::Relaxed) < pool.threads() && start.elapsed() < ENTER {
                std::hint::spin_loop();
            }
        });
        (inside.into_inner() == pool.threads()).then(|| start.elapsed().as_secs_f64())
    };
    let mut times: Vec<f64> = (0..REGIONS).filter_map(once).collect();
    times.sort_unstable_by(f64::total_cmp);
    // Where threads never run at the same time, a region is what its caller takes.
    times.get(times.len() / 4).copied().unwrap_or_else(|| repeated(|| pool.run(&|_| {})))
}

/// What all measurements need.
struct Meter<'a> {
    ctx: Ctx<'a>,
    /// Seconds of a parallel region.
    region: f64,
    weights: &'a [u8],
    done: Cell<usize>,
    total: usize,
    watch: &'a dyn Fn(usize, usize) -> Result<(), Error>,
}

impl Meter<'_> {
    /// Seconds of a call that has this many regions, without them. What is left is at least half: regions are measured apart,
    /// and may take longer there.
    fn time(&self, regions: f64, call: impl FnMut()) -> Result<f64, Error> {
        (self.watch)(self.done.get(), self.total)?;
        self.done.set(self.done.get() + 1);
        let whole = repeated(call);
        Ok((whole - regions * self.region).max(0.5 * whole))
    }

    /// Reads the first `bytes` bytes again and again, a piece at a time.
    fn read(&self, bytes: usize) -> Result<Reading, Error> {
        let (pool, mut pieces) = (self.ctx.pool, self.weights[..bytes].chunks(PIECE).cycle());
        let seconds = self.time(1.0, || {
            read_once(pool, pieces.next().unwrap_or_default());
        })?;
        Ok(Reading { bytes: bytes as u64, gbs: 1e-9 * bytes.min(PIECE) as f64 / seconds })
    }

    fn weight(&self, format: DType, n: usize, k: usize, turn: usize) -> PackedWeight<'_> {
        let bytes = packed_bytes(format, n, k).expect("the formats of the kernel table are packed ones");
        let aligned = &self.weights[self.weights.as_ptr().align_offset(64)..];
        let parts = aligned.len() / bytes;
        PackedWeight::new(format, n, k, &aligned[turn % parts * bytes..][..bytes])
            .expect("a part has the weight's size")
    }

    fn prepare(&self, op: &str, format: DType, rows: usize) -> Result<PerValue, Error> {
        let (weight, x) = (self.weight(format, 16, SHAPE.1, 0), values(rows * SHAPE.1));
        let (ones, mut scratch) = (vec![1.0; SHAPE.1], vec![0; linear_scratch_words(rows, &[weight])]);
        let norm = Norm { weight: &ones, eps: 1e-6 };
        // The region that many rows are prepared in is part of it.
        let seconds = self.time(0.0, || prepare_rows(&self.ctx, &x, Some(norm), weight, &mut scratch))?;
        Ok(PerValue { op: op.to_owned(), rows, ns: 1e9 * seconds / x.len() as f64 })
    }

    /// Products of some rows, which take `prepare` seconds to prepare, with a weight in a cache and with weights that take
    /// turns.
    fn product(&self, format: DType, rows: usize, prepare: f64) -> Result<Product, Error> {
        let (n, k) = (if rows > MANY_ROWS { SHAPE.0 / 2 } else { SHAPE.0 }, SHAPE.1);
        let (x, ones, mut out) = (values(rows * k), vec![1.0; k], vec![0.0; rows * n]);
        let mut scratch = vec![0; linear_scratch_words(rows, &[self.weight(format, n, k, 0)])];
        let mut gops = |turns: usize| {
            let mut turn = 0;
            let whole = self.time(1.0, || {
                let weights = [self.weight(format, n, k, turn)];
                turn += turns;
                let norm = Some(Norm { weight: &ones, eps: 1e-6 });
                linear(&self.ctx, &x, rows, norm, &weights, &[], Epilogue::Store, &mut [&mut out], &mut scratch);
            })?;
            Ok::<_, Error>(2e-9 * (rows * n * k) as f64 / (whole - prepare).max(0.5 * whole))
        };
        let (cached_gops, streamed_gops) = (gops(0)?, gops(1)?);
        Ok(Product { weights: format.to_string(), rows, cached_gops, streamed_gops })
    }

    fn attention(&self, cache: DType, rows: usize) -> Result<Attention, Error> {
        let (kv_heads, head_dim) = HEADS;
        let kv = KvShape { dtype: cache, max_seq: MANY_KEYS, kv_heads, head_dim };
        let size = |bytes: Option<usize>| bytes.expect("caches of every type that is measured have a size");
        let (k_bytes, v_bytes) = (size(k_state_bytes(kv)), size(v_state_bytes(kv)));
        let caches = CACHE_BYTES / (k_bytes + v_bytes);
        // A small number in every element type.
        let states = vec![0x11u8; caches * (k_bytes + v_bytes)];
        let (q, mut scratch) =
            (values(rows * kv_heads * head_dim), vec![0; attention_scratch_words(self.ctx.threads(), kv)]);
        let mut out = vec![0.0; q.len()];
        let mut time = |keys: usize, turns: usize| {
            let shape = AttentionShape { kv, heads: kv_heads, mask: Mask::Full, at: 0, from: 0, visible: keys };
            let mut turn = 0;
            let seconds = repeated(|| {
                let (k, v) = states[turn % caches * (k_bytes + v_bytes)..][..k_bytes + v_bytes].split_at(k_bytes);
                turn += turns;
                attention(&self.ctx, shape, &q, k, v, &mut out, &mut scratch);
            });
            (seconds - self.region).max(0.5 * seconds)
        };
        (self.watch)(self.done.get(), self.total)?;
        self.done.set(self.done.get() + 1);
        let (few, cached, streamed) = (time(FEW_KEYS, 0), time(MANY_KEYS, 0), time(MANY_KEYS, 1));
        let operations = (4 * q.len() * (MANY_KEYS - FEW_KEYS)) as f64;
        // What does not grow with the keys is what few of them take beyond their share.
        let key = ((cached - few) / (MANY_KEYS - FEW_KEYS) as f64).max(0.1 * cached / MANY_KEYS as f64);
        let besides = (few - key * FEW_KEYS as f64).max(0.01 * few);
        let gflops = |many: f64| 1e-9 * operations / (many - few).max(0.1 * many);
        let row_ns = 1e9 * besides / (rows * kv_heads) as f64;
        let (cached_gflops, streamed_gflops) = (gflops(cached), gflops(streamed));
        Ok(Attention { cache: cache.to_string(), rows, cached_gflops, streamed_gflops, row_ns })
    }

    /// The statistics of a head: what it takes beyond a product, with so few features that this is most of it.
    fn statistics(&self, rows: usize) -> Result<PerValue, Error> {
        let (n, k, format) = (16_384, 128, DType::Quant(QuantFormat::symmetric(4, Some(32))));
        let (head, x) = (self.weight(format, n, k, 0), values(rows * k));
        let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
        let mut scratch = vec![0; head_stats_scratch_words(rows, &head).max(linear_scratch_words(rows, &[head]))];
        let mut out = vec![0.0; rows * n];
        let whole = self.time(2.0, || head_stats(&self.ctx, &x, None, &head, None, &mut stats, &mut scratch))?;
        let product = repeated(|| {
            linear(&self.ctx, &x, rows, None, &[head], &[], Epilogue::Store, &mut [&mut out], &mut scratch);
        });
        let seconds = (whole + 2.0 * self.region - product).max(0.1 * whole);
        Ok(PerValue { op: "statistics".into(), rows, ns: 1e9 * seconds / (rows * n) as f64 })
    }

    fn op(&self, op: &str, rows: usize) -> Result<PerValue, Error> {
        let (ctx, width, (kv_heads, head_dim)) = (&self.ctx, SHAPE.1, HEADS);
        let (x, y, ones) = (values(rows * width), values(rows * width), vec![1.0; width]);
        let mut out = vec![0.0; rows * width];
        let pos: Vec<i32> = (0..rows).filter_map(|p| i32::try_from(p).ok()).collect();
        // Rows of a large table, far apart.
        let ids: Vec<i32> = pos.iter().map(|p| p * 7919 % 65_536).collect();
        let table = vec![0.5; rows * head_dim];
        let embedding = self.weight(DType::Quant(QuantFormat::symmetric(4, Some(32))), 65_536, width, 0);
        let kv = KvShape { dtype: DType::F16, max_seq: MANY_KEYS, kv_heads, head_dim };
        let size = |bytes: Option<usize>| bytes.expect("a cache of this shape has a size");
        let (k_bytes, v_bytes) = (size(k_state_bytes(kv)), size(v_state_bytes(kv)));
        let caches = if op == FAR_WRITE { CACHE_BYTES / (k_bytes + v_bytes) } else { 1 };
        // Not zeros, whose pages the system would only make while they are timed.
        let (mut states, mut turn) = (vec![0x11u8; caches * (k_bytes + v_bytes)], 0);
        let (norm, head) = (Norm { weight: &ones, eps: 1e-6 }, Norm { weight: &ones[..head_dim], eps: 1e-6 });
        let half = rows * kv_heads * head_dim;
        let mut angles = vec![0.0; rows * head_dim];
        let numbers = match op {
            "rope_table" => angles.len(),
            "kv_write" | FAR_WRITE => 2 * half,
            _ => out.len(),
        };
        let seconds = self.time(0.0, || match op {
            "add" => add(ctx, Input::From(&x), &y, &mut out),
            "embed" => embed(ctx, &ids, &embedding, &mut out),
            "kv_write" | FAR_WRITE => {
                // Other rows of another cache every time; the same ones where there is but one cache.
                turn = (turn + 1) % (caches * (MANY_KEYS / FEW_KEYS));
                let at = (turn / caches * FEW_KEYS).min(MANY_KEYS - rows);
                let (k, v) = states[turn % caches * (k_bytes + v_bytes)..][..k_bytes + v_bytes].split_at_mut(k_bytes);
                kv_write(ctx, kv, &x[..half], &y[..half], if caches > 1 { at } else { 0 }, k, v);
            }
            "mul" => mul(ctx, Input::From(&x), &y, &mut out),
            "rms_norm" => rms_norm(ctx, Input::From(&x), norm, &mut out),
            "rope" => rope(ctx, Input::From(&x), &table, head_dim, Some(head), &mut out),
            "rope_table" => rope_table(ctx, &pos, head_dim, 1e6, &mut angles),
            "scale" => scale(ctx, Input::From(&x), 0.5, &mut out),
            "silu" => silu(ctx, Input::From(&x), &mut out),
            "swiglu" => silu_mul(ctx, Input::From(&x), &y, &mut out),
            other => unreachable!("`{other}` is no row of OPS"),
        })?;
        Ok(PerValue { op: op.to_owned(), rows, ns: 1e9 * seconds / numbers as f64 })
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37) % 101) as f32 * 0.02 - 1.0).collect()
}
