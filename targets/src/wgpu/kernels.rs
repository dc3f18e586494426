//! Every kernel but attention: sizes in, WGSL out. The comment of each says what it binds after the call's scalars.

use dlx_ir::quant::zero_point;
use dlx_ir::{DType, QuantFormat};

use super::Job;
use super::product::{ACT_WORDS, BLOCK, Product, TILE};
use super::source::{Features, Fold, PLAIN, SUBGROUPS, Source, float, reduction, thread};

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
    Job::new(if p.quantized().is_some() { "linear" } else { "linear_float" }, shape, groups, &[PLAIN], |features| {
        let mut source = bind_weights(Source::new(features), p);
        for w in 0..if l.bias { p.weights } else { 0 } {
            source = source.read(&format!("bias{w}"), "f32");
        }
        if l.epilogue == Epilogue::Add {
            source = source.write("residual", "f32");
        }
        source = p.declare(source.write("out", "f32")).size("FIRST", l.first).size("STRIDE", l.stride);
        source = source.size("GRID_Y", columns.min(GRID));
        if l.epilogue == Epilogue::SwiGlu {
            source = source.text(include_str!("shaders/silu.wgsl"));
        }
        let biased = |w: usize| if l.bias { format!("(sum{w} + bias{w}[FIRST + n])") } else { format!("sum{w}") };
        let value = match l.epilogue {
            Epilogue::Store => biased(0),
            Epilogue::Add => format!("residual[at] + {}", biased(0)),
            Epilogue::SwiGlu => format!("silu({}) * {}", biased(0), biased(1)),
        };
        let sums: Vec<_> = (0..p.weights).map(|w| format!("sum{w}: f32")).collect();
        let store = format!(
            "fn store(row: u32, n: u32, {}) {{
    if (row < min(call.live, ROWS)) {{
        let at = row * STRIDE + FIRST + n;
        out[at] = {value};
    }}
}}
",
            sums.join(", ")
        );
        let mut end = "if (slice == 0u && tile * 16u + thread < N) {\n".to_owned();
        for g in 0..p.cut.groups {
            for (i, c) in ["x", "y", "z", "w"].into_iter().enumerate() {
                let sums: Vec<_> = (0..p.weights).map(|w| format!("acc{w}_{g}.{c}")).collect();
                let row = format!("(row_group + {g}u) * 4u + {i}u");
                end.push_str(&format!("store({row}, tile * 16u + thread, {});\n", sums.join(", ")));
            }
        }
        source.text(&store).text(include_str!("shaders/linear.wgsl")).text(&p.text()).text(&end).text("}\n}\n")
    })
}

fn bind_weights(source: Source, p: &Product) -> Source {
    let element = if p.quantized().is_some() { "vec4<u32>" } else { "f32" };
    (0..p.weights).fold(source.write("activations", element), |s, w| s.read(&format!("weight{w}"), "u32"))
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
        let source = Source::new(features).write("x", "f32");
        let source = if norm.is_some() { source.read("norm", "f32") } else { source };
        let source = source
            .write("quantized", "u32")
            .size("K", k)
            .size("BLOCKS", blocks)
            .size("ACT_WORDS", ACT_WORDS)
            .size("THREADS", THREADS)
            .text(thread(features));
        let source = match norm {
            Some(eps) => source
                .float("EPS", eps)
                .text(&reduction(features, Fold::Sum, "f32", THREADS))
                .text(include_str!("shaders/quantize_norm.wgsl")),
            None => source.text(include_str!("shaders/quantize_plain.wgsl")),
        };
        source.text(include_str!("shaders/quantize.wgsl"))
    })
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
        Source::new(tier)
            .write("x", "f32")
            .read("norm", "f32")
            .write("out", "f32")
            .size("CHUNKS", chunks)
            .size("WIDTH", width)
            .size("THREADS", threads)
            .float("EPS", eps)
            .text(thread(tier))
            .text(&reduction(tier, Fold::Sum, "f32", threads))
            .text(include_str!("shaders/rms_norm.wgsl"))
    })
}

/// x, table, norm weight if any, out.
pub(super) fn rope(rows: usize, features: usize, head_dim: usize, norm: Option<f32>) -> Job {
    let (heads, threads) = (features / head_dim, threads_for(head_dim / 2).min(128));
    let tiers: &[Features] = if norm.is_some() { &[SUBGROUPS, PLAIN] } else { &[PLAIN] };
    let shape = format!("[{rows}, {features}] by {head_dim}{}", if norm.is_some() { " with norm" } else { "" });
    Job::new("rope", shape, [heads, rows, 1], tiers, |tier| {
        let source = Source::new(tier).write("x", "f32").write("table", "f32");
        let source = if norm.is_some() { source.read("norm", "f32") } else { source };
        let source = source
            .write("out", "f32")
            .size("HEADS", heads)
            .size("HEAD_DIM", head_dim)
            .size("HALF", head_dim / 2)
            .size("THREADS", threads)
            .text(thread(tier));
        let source = match norm {
            Some(eps) => source
                .float("EPS", eps)
                .text(&reduction(tier, Fold::Sum, "f32", threads))
                .text(include_str!("shaders/rope_norm.wgsl")),
            None => source.text(include_str!("shaders/rope_plain.wgsl")),
        };
        source.text(include_str!("shaders/rope.wgsl"))
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
    let list = format!("const FREQUENCIES = array<f32, {half}>({});\n", list.join(", "));
    Job::new("rope_table", format!("[{rows}, {head_dim}]"), [half.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        Source::new(tier)
            .read("positions", "i32")
            .write("table", "f32")
            .size("HALF", half)
            .text(&list)
            .text(include_str!("shaders/rope_table.wgsl"))
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
    let (name, value, two) = match op {
        Pointwise::Add => ("add", "a[i] + b[i]".to_owned(), true),
        Pointwise::Copy => ("copy", "a[i]".to_owned(), false),
        Pointwise::Mul => ("mul", "a[i] * b[i]".to_owned(), true),
        Pointwise::Scale(by) => ("scale", format!("a[i] * {}", float(by)), false),
        Pointwise::Silu => ("silu", "silu(a[i])".to_owned(), false),
        Pointwise::SiluMul => ("silu_mul", "silu(a[i]) * b[i]".to_owned(), true),
    };
    let blocks = (rows * width).div_ceil(256);
    let groups = [blocks.min(GRID), blocks.div_ceil(GRID), 1];
    Job::new("elementwise", format!("{name} [{rows}, {width}]"), groups, &[PLAIN], |tier| {
        let source = Source::new(tier).write("a", "f32");
        let source = if two { source.write("b", "f32") } else { source };
        source
            .write("out", "f32")
            .size("ROWS", rows)
            .size("WIDTH", width)
            .size("GRID_X", blocks.min(GRID))
            .text(include_str!("shaders/silu.wgsl"))
            .text(&format!("fn value(i: u32) -> f32 {{\n    return {value};\n}}\n"))
            .text(include_str!("shaders/elementwise.wgsl"))
    })
}

/// Ids, table (or a shard of it, from row `first` on), out.
pub(super) fn embed(rows: usize, n: usize, k: usize, dtype: DType, first: usize) -> Job {
    let tile_words = dlx_runtime::cpu::tile_bytes(dtype, k).unwrap_or(0) / 4;
    let shape = format!("{dtype}[{n}, {k}] x {rows}");
    Job::new("embed", shape, [k.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        let source = Source::new(tier)
            .read("ids", "i32")
            .read("weight0", "u32")
            .write("out", "f32")
            .size("FIRST_ID", first)
            .size("N", n)
            .size("K", k)
            .size("TILE_WORDS", tile_words);
        let source = match dtype {
            DType::Quant(format) => embed_int(source, format),
            _ => source
                .text(match dtype {
                    DType::F16 => include_str!("shaders/weight_f16.wgsl"),
                    DType::BF16 => include_str!("shaders/weight_bf16.wgsl"),
                    _ => include_str!("shaders/weight_f32.wgsl"),
                })
                .text(
                    "fn weight(base: u32, column: u32, k: u32) -> f32 {
    return element(weight0[word_of(base, k, column)], column);
}
",
                ),
        };
        source.text(include_str!("shaders/embed.wgsl"))
    })
}

fn embed_int(source: Source, format: QuantFormat) -> Source {
    let group = format.group.map_or(BLOCK, |g| g as usize);
    let codes = BLOCK * usize::from(format.bits) / 8 * TILE / 4;
    let table = BLOCK / group * TILE / 2;
    let low = if format.min { "half_of(weight0[entry + TABLE_WORDS], column)" } else { "0.0" };
    source
        .size("GROUP", group)
        .size("CODE_WORDS", codes)
        .size("TABLE_WORDS", table)
        .size("BLOCK_WORDS", codes + if format.min { 2 } else { 1 } * table)
        .size("PER_WORD", 32 / usize::from(format.bits))
        .size("CODE_MASK", (1 << format.bits) - 1)
        .float("ZERO", f32::from(zero_point(format)))
        .text(include_str!("shaders/embed_int.wgsl"))
        .text(&format!("fn low(entry: u32, column: u32) -> f32 {{\n    return {low};\n}}\n"))
}

/// Row numbers, state, out.
pub(super) fn take_rows(rows: usize, width: usize) -> Job {
    Job::new("take_rows", format!("[{rows}, {width}]"), [width.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        Source::new(tier)
            .read("rows", "i32")
            .write("state", "f32")
            .write("out", "f32")
            .size("WIDTH", width)
            .text(include_str!("shaders/take_rows.wgsl"))
    })
}

/// x, state.
pub(super) fn store_rows(rows: usize, width: usize) -> Job {
    Job::new("store_rows", format!("[{rows}, {width}]"), [width.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        Source::new(tier)
            .write("x", "f32")
            .write("state", "f32")
            .size("WIDTH", width)
            .text(include_str!("shaders/store_rows.wgsl"))
    })
}

/// Keys, values, and the two caches of `max_seq` rows.
pub(super) fn kv_write(rows: usize, width: usize, max_seq: usize, cache: DType) -> Job {
    let (per_word, text) = match cache {
        DType::F16 => (2, include_str!("shaders/cache_f16.wgsl")),
        DType::BF16 => (2, include_str!("shaders/cache_bf16.wgsl")),
        _ => (1, include_str!("shaders/cache_f32.wgsl")),
    };
    let words = width / per_word;
    let shape = format!("[{rows}, {width}] to {cache}");
    Job::new("kv_write", shape, [words.div_ceil(64), rows, 1], &[PLAIN], |tier| {
        Source::new(tier)
            .write("k", "f32")
            .write("v", "f32")
            .write("k_cache", "u32")
            .write("v_cache", "u32")
            .size("MAX_SEQ", max_seq)
            .size("WORDS", words)
            .size("PER_WORD", per_word)
            .text(text)
            .text(include_str!("shaders/kv_write.wgsl"))
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
    let mut keep = String::new();
    for g in 0..p.cut.groups {
        for (i, c) in ["x", "y", "z", "w"].into_iter().enumerate() {
            keep.push_str(&format!("logits[{}u * CHUNK + to] = acc0_{g}.{c};\n", g * 4 + i));
        }
    }
    let body = include_str!("shaders/head_part.wgsl").replace("PRODUCT", &p.text()).replace("KEEP", &keep);
    Job::new("head", shape, groups, &[PLAIN], |tier| {
        p.declare(bind_weights(Source::new(tier), p).write("partials", "u32"))
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
            .text(include_str!("shaders/stats.wgsl"))
            .text(&body)
    })
}

/// Partial statistics, best ids, numbers.
pub(super) fn head_final(rows: usize, chunks: usize, ban: Option<u32>) -> Job {
    Job::new("head", format!("{rows} rows of {chunks} chunks"), [rows, 1, 1], &[PLAIN], |tier| {
        Source::new(tier)
            .write("partials", "u32")
            .write("best", "i32")
            .write("stats", "f32")
            .size("CHUNKS", chunks)
            .size("THREADS", 128)
            .size("FIRST_ALLOWED", usize::from(ban == Some(0)))
            .text(include_str!("shaders/stats.wgsl"))
            .text(include_str!("shaders/head_final.wgsl"))
    })
}
