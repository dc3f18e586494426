//! Every kernel but attention: sizes in, what its template is told out. The comment of each says what it binds after the
//! call's scalars.

use dlx_ir::DType;
use dlx_ir::quant::zero_point;

use super::Job;
use super::product::{ACT_WORDS, BLOCK, Product, declare_weight};
use super::source::{Features, PLAIN, SUBGROUPS, Source, float};

/// Largest number of workgroups put into one dimension; what is above goes to another.
const GRID: usize = 32_768;

/// What happens to the sums of a linear layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Epilogue {
    Store,
    Add,
    SwiGlu,
}

/// A linear layer or a shard of one.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) product: Product,
    pub(super) epilogue: Epilogue,
    pub(super) bias: bool,
    /// First column in the output, and columns of that.
    pub(super) first: usize,
    pub(super) stride: usize,
}

/// Activations, weights, biases, residual, out.
pub(super) fn linear(l: &Linear) -> Job {
    let p = &l.product;
    let columns = p.tiles().div_ceil(p.cut.tiles);
    let groups = [p.row_groups().div_ceil(p.cut.groups), columns.min(GRID), columns.div_ceil(GRID)];
    let shape = format!("{}[{}, {}] x {}", p.dtype, p.n, p.k, p.rows);
    let role = if p.quantized().is_some() { "linear" } else { "linear_float" };
    let post = match l.epilogue {
        Epilogue::Store => "store",
        Epilogue::Add => "add",
        Epilogue::SwiGlu => "swiglu",
    };
    Job::new(role, shape, groups, &[PLAIN], |features| {
        let biases = 0..if l.bias { p.weights } else { 0 };
        let source = p.declare(Source::new(features, "linear"));
        let source = biases.fold(source, |s, w| s.read(format!("bias{w}"), "f32"));
        let source = if l.epilogue == Epilogue::Add { source.write("residual", "f32") } else { source };
        source
            .write("out", "f32")
            .set("bias", l.bias)
            .set("post", post)
            .size("FIRST", l.first)
            .size("STRIDE", l.stride)
            .size("GRID_Y", columns.min(GRID))
    })
}

/// Bytes of `rows × k` quantized activations.
pub(super) fn quantized_bytes(rows: usize, k: usize) -> u64 {
    (rows.div_ceil(4) * k.div_ceil(BLOCK) * ACT_WORDS * 16) as u64
}

/// x, norm weight if any, quantized activations.
pub(super) fn quantize(rows: usize, k: usize, norm: Option<f32>) -> Job {
    const THREADS: usize = 128;
    let blocks = k.div_ceil(BLOCK);
    let tiers: &[Features] = if norm.is_some() { &[SUBGROUPS, PLAIN] } else { &[PLAIN] };
    let shape = format!("[{rows}, {k}]{}", if norm.is_some() { " with norm" } else { "" });
    Job::new("quantize", shape, [blocks.div_ceil(THREADS / 32), rows, 1], tiers, |features| {
        with_norm(Source::new(features, "quantize").write("x", "f32"), norm)
            .write("quantized", "u32")
            .size("K", k)
            .size("BLOCKS", blocks)
            .size("ACT_WORDS", ACT_WORDS)
            .size("THREADS", THREADS)
    })
}

/// Binds and declares the norm that a kernel begins with, if it does.
fn with_norm(source: Source, norm: Option<f32>) -> Source {
    let source = source.set("with_norm", norm.is_some());
    if let Some(eps) = norm { source.read("norm", "f32").float("EPS", eps) } else { source }
}

/// Threads for a reduction over `width` numbers.
fn threads_for(width: usize) -> usize {
    width.next_power_of_two().clamp(32, 256)
}

/// x, weight, out; the norm of each chunk of `width` features.
pub(super) fn rms_norm(rows: usize, features: usize, width: usize, eps: f32) -> Job {
    let (chunks, threads) = (features / width, threads_for(width));
    let shape = format!("[{rows}, {features}] by {width}");
    Job::new("rms_norm", shape, [chunks, rows, 1], &[SUBGROUPS, PLAIN], |tier| {
        with_norm(Source::new(tier, "rms_norm").write("x", "f32"), Some(eps))
            .write("out", "f32")
            .size("CHUNKS", chunks)
            .size("WIDTH", width)
            .size("THREADS", threads)
    })
}

/// x, table, norm weight if any, out.
pub(super) fn rope(rows: usize, features: usize, head_dim: usize, norm: Option<f32>) -> Job {
    let (heads, threads) = (features / head_dim, threads_for(head_dim / 2).min(128));
    let tiers: &[Features] = if norm.is_some() { &[SUBGROUPS, PLAIN] } else { &[PLAIN] };
    let shape = format!("[{rows}, {features}] by {head_dim}{}", if norm.is_some() { " with norm" } else { "" });
    Job::new("rope", shape, [heads, rows, 1], tiers, |tier| {
        with_norm(Source::new(tier, "rope").write("x", "f32").write("table", "f32"), norm)
            .write("out", "f32")
            .size("HEADS", heads)
            .size("HEAD_DIM", head_dim)
            .size("HALF", head_dim / 2)
            .size("THREADS", threads)
    })
}

/// Positions, table.
pub(super) fn rope_table(rows: usize, head_dim: usize, theta: f32) -> Job {
    let half = head_dim / 2;
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        1.0 / libm::pow(f64::from(theta), f64::from(exponent)) as f32
    };
    let list: Vec<_> = (0..half).map(|i| float(frequency(i))).collect();
    Job::new("rope_table", format!("[{rows}, {head_dim}]"), [half.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        let source = Source::new(tier, "rope_table").read("positions", "i32").write("table", "f32");
        source.size("HALF", half).set("frequencies", list.clone())
    })
}

/// What is computed of numbers at the same place.
#[derive(Clone, Copy)]
pub(super) enum Pointwise {
    Add,
    Copy,
    Mul,
    Scale(f32),
    Silu,
    SiluMul,
}

/// a, b for those with two operands, out.
pub(super) fn pointwise(op: Pointwise, rows: usize, width: usize) -> Job {
    let (name, two) = match op {
        Pointwise::Add => ("add", true),
        Pointwise::Copy => ("copy", false),
        Pointwise::Mul => ("mul", true),
        Pointwise::Scale(_) => ("scale", false),
        Pointwise::Silu => ("silu", false),
        Pointwise::SiluMul => ("silu_mul", true),
    };
    let blocks = (rows * width).div_ceil(256);
    let groups = [blocks.min(GRID), blocks.div_ceil(GRID), 1];
    Job::new("elementwise", format!("{name} [{rows}, {width}]"), groups, &[PLAIN], |tier| {
        let source = Source::new(tier, "elementwise").set("op", name).write("a", "f32");
        let source = if two { source.write("b", "f32") } else { source };
        let source = if let Pointwise::Scale(by) = op { source.float("BY", by) } else { source };
        source.write("out", "f32").size("ROWS", rows).size("WIDTH", width).size("GRID_X", blocks.min(GRID))
    })
}

/// Ids, table (or a shard of it, from row `first` on), out.
pub(super) fn embed(rows: usize, n: usize, k: usize, dtype: DType, first: usize) -> Job {
    let shape = format!("{dtype}[{n}, {k}] x {rows}");
    Job::new("embed", shape, [k.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        let source = Source::new(tier, "embed").read("ids", "i32").read("weight0", "u32").write("out", "f32");
        let source = declare_weight(source, n, k, dtype).size("FIRST_ID", first);
        if let DType::Quant(format) = dtype { source.float("ZERO", f32::from(zero_point(format))) } else { source }
    })
}

/// Row numbers, state, out.
pub(super) fn take_rows(rows: usize, width: usize) -> Job {
    Job::new("take_rows", format!("[{rows}, {width}]"), [width.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        let source = Source::new(tier, "take_rows").read("rows", "i32").write("state", "f32").write("out", "f32");
        source.size("WIDTH", width)
    })
}

/// x, state.
pub(super) fn store_rows(rows: usize, width: usize) -> Job {
    Job::new("store_rows", format!("[{rows}, {width}]"), [width.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        Source::new(tier, "store_rows").write("x", "f32").write("state", "f32").size("WIDTH", width)
    })
}

/// Keys, values, and the two caches of `max_seq` rows.
pub(super) fn kv_write(rows: usize, width: usize, max_seq: usize, cache: DType) -> Job {
    let per_word = if matches!(cache, DType::F16 | DType::BF16) { 2 } else { 1 };
    let words = width / per_word;
    let shape = format!("[{rows}, {width}] to {cache}");
    Job::new("kv_write", shape, [words.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        Source::new(tier, "kv_write")
            .write("k", "f32")
            .write("v", "f32")
            .write("k_cache", "u32")
            .write("v_cache", "u32")
            .size("MAX_SEQ", max_seq)
            .size("WORDS", words)
            .size("PER_WORD", per_word)
            .set("cache", cache.to_string())
    })
}

/// Words of the statistics of a chunk.
const STATS_WORDS: usize = 6;
/// Threads that share a row of a chunk.
const TEAM: usize = 16;

/// Columns per chunk of the head.
pub(super) fn head_chunk(p: &Product) -> usize {
    if p.cut.groups == 1 { 128 } else { 64 }.max(p.cut.columns())
}

/// Bytes of the statistics of all chunks.
pub(super) fn head_bytes(rows: usize, chunks: usize) -> u64 {
    (rows * chunks * STATS_WORDS * 4) as u64
}

/// Activations, weight (a shard from id `first_id` on), partial statistics; chunks of this shard come after `first_chunk`
/// of `all` chunks.
pub(super) fn head_part(p: &Product, first_id: usize, first_chunk: usize, all: usize, ban: Option<u32>) -> Job {
    let chunk = head_chunk(p);
    let chunks = p.n.div_ceil(chunk);
    let groups = [p.row_groups().div_ceil(p.cut.groups), chunks.min(GRID), chunks.div_ceil(GRID)];
    let shape = format!("{}[{}, {}] x {}", p.dtype, p.n, p.k, p.rows);
    let rows_here = 4 * p.cut.groups;
    Job::new("head", shape, groups, &[PLAIN], |tier| {
        p.declare(Source::new(tier, "head_part"))
            .write("partials", "u32")
            .size("CHUNK", chunk)
            .size("CHUNKS", chunks)
            .size("FIRST_CHUNK", first_chunk)
            .size("ALL_CHUNKS", all)
            .size("PASSES", chunk / p.cut.columns())
            .size("GRID_Y", chunks.min(GRID))
            .size("FIRST_ID", first_id)
            .size("BAN", ban.map_or(u32::MAX as usize, |b| b as usize))
            .size("ROWS_HERE", rows_here)
            .size("LOGITS", rows_here * chunk)
            .size("TEAM", TEAM)
            .size("PARTS", rows_here * TEAM)
    })
}

/// Partial statistics, best ids, numbers.
pub(super) fn head_final(rows: usize, chunks: usize, ban: Option<u32>) -> Job {
    Job::new("head", format!("{rows} rows of {chunks} chunks"), [rows, 1, 1], &[PLAIN], |tier| {
        Source::new(tier, "head_final")
            .write("partials", "u32")
            .write("best", "i32")
            .write("stats", "f32")
            .size("CHUNKS", chunks)
            .size("THREADS", 128)
            .size("FIRST_ALLOWED", usize::from(ban == Some(0)))
    })
}
