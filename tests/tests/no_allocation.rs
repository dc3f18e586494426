//! A loaded executor allocates nothing, on any thread: steps of every size, heads and logits run in what was reserved at
//! load. Nor does a sampler that has seen one row. And a tokenizer takes no more than is counted for it, nor much less.
//!
//! The only test of its binary, because the counter sees every thread of the process.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use dlx_ir::{DType, QuantFormat};
use dlx_runtime::LoadOptions;
use dlx_runtime::cpu::CpuOptions;
use dlx_runtime::decode::noise::{Noise, NoiseRow};
use dlx_runtime::decode::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
use dlx_runtime::decode::sample::{Choice, Needs, Sampler};
use dlx_runtime::exec::{Executor, RowStats, Span};
use dlx_runtime::text::{Tokenizer, TokenizerSize};
use dlx_tests::compiled;
use dlxc::options::{CompileOptions, QuantSpec};
use serde_json::{Value, json};

/// Counts what the system's allocator is asked for.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Bytes in use, and the most of them since it was last asked.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The smallest block of an allocator.
const BLOCK: usize = 32;

fn count(bytes: usize) {
    let live = LIVE.fetch_add(bytes.max(BLOCK), Ordering::Relaxed) + bytes.max(BLOCK);
    PEAK.fetch_max(live, Ordering::Relaxed);
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        LIVE.fetch_sub(layout.size().max(BLOCK), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size().max(BLOCK), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and their bytes during `work`, on all threads.
fn allocations(work: impl FnOnce()) -> (usize, usize) {
    let counts = || (ALLOCATIONS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
    let before = counts();
    work();
    let after = counts();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn nothing_is_allocated_after_loading() {
    // What the counter is worth: it sees another thread.
    let (seen, bytes) = allocations(|| {
        std::thread::scope(|s| s.spawn(|| std::hint::black_box(vec![0u8; 4321])).join().map(drop)).unwrap();
    });
    assert!(seen > 0 && bytes >= 4321, "{seen} allocations of {bytes} bytes");

    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny");
    let mut complaints = Vec::new();
    let plain = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    let kept = CompileOptions { kv: Some(DType::CACHE_Q8), ..plain.clone() };
    let table = CompileOptions { quant: QuantSpec::Quant(QuantFormat::L16), ..plain.clone() };
    for options in [plain, kept, table] {
        for threads in [1, 2, 3] {
            let (kv, quant) = (options.kv, options.quant);
            let cpu = CpuOptions { threads, isa: None };
            let load = LoadOptions { cpu, ..LoadOptions::default() };
            let mut executor = compiled::load(&model, &options, &load).unwrap().executor;
            let mut pass = pass_over(&mut *executor);
            pass();
            let (count, bytes) = allocations(|| (0..100).for_each(|_| pass()));
            let what = || {
                format!("{threads} threads, {quant}, caches {kv:?}: {count} allocations of {bytes} bytes in 100 passes")
            };
            complaints.extend((count > 0).then(what));
        }
    }
    complaints.extend(sampling());
    complaints.extend(tokenizers());
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// What choosing tokens from rows that differ allocates after the first, by policy.
fn sampling() -> Vec<String> {
    let rows: Vec<Vec<f32>> = (0..6)
        .map(|row| (0..5000u32).map(|id| (id * (2 * row + 7919) % 4999) as f32 / 4999.0 * 4.0 * row as f32).collect())
        .collect();
    let mut complaints = Vec::new();
    let orders = [FilterOrder::TopKTopP, FilterOrder::TopPTopK];
    let stages = [ConfidenceStage::AfterFilters, ConfidenceStage::BeforeFilters, ConfidenceStage::BeforeTemperature];
    for (temperature, top_k, top_p, min_p) in [
        (0.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (0.7, 50, 1.0, 0.0),
        (0.7, 0, 0.95, 0.0),
        (0.7, 2000, 0.5, 0.0),
        (0.7, 0, 1.0, 0.1),
        (0.7, 50, 1.0, 0.1),
        (0.7, 0, 0.95, 0.1),
    ] {
        for (filter_order, confidence_stage) in orders.into_iter().flat_map(|o| stages.map(|stage| (o, stage))) {
            let mut policy = DecodePolicy {
                temperature,
                top_k,
                top_p,
                min_p,
                filter_order,
                confidence_stage,
                ..DecodePolicy::greedy(1, 4)
            };
            (policy.suppress_ids, policy.unsure_ids) = (vec![2, 3], vec![4, 5]);
            let mut sampler = Sampler::default();
            let mut choose = |row: &Vec<f32>| {
                let at = NoiseRow { pass: 0, position: 0 };
                let drawn = sampler.choose(row, &policy, Choice::AsPolicy, Needs::ALL, &Noise::Seeded(1), at);
                drawn.unwrap();
            };
            choose(&rows[5]);
            let (count, bytes) = allocations(|| rows.iter().for_each(&mut choose));
            complaints.extend((count > 0).then(|| format!("{policy:?}: {count} allocations of {bytes} bytes")));
        }
    }
    complaints
}

/// Tokenizers of several kinds and sizes that take more than is counted for them, or much less.
fn tokenizers() -> Vec<String> {
    let mut complaints = Vec::new();
    for (kind, tokens, merges) in [
        ("BPE", 300, "none"),
        ("BPE", 30_000, "none"),
        ("BPE", 30_000, "texts"),
        ("BPE", 30_000, "pairs"),
        ("BPE", 140_000, "texts"),
        ("BPE", 140_000, "pairs"),
        ("WordLevel", 30_000, "none"),
        ("WordPiece", 30_000, "none"),
        ("Unigram", 30_000, "none"),
    ] {
        let json = tokenizer(kind, tokens, merges);
        let json = json.as_bytes();
        let what = format!("{kind} of {tokens} tokens, merges {merges}");
        let size = TokenizerSize::of(json).unwrap();
        let bound = if kind == "BPE" && tokens > 1000 { Bound::Tight } else { Bound::Loose };
        complaints.extend(exceeded(&what, size, bound, &|| Tokenizer::from_bytes(json).unwrap()));
        if kind == "BPE" {
            let section = Tokenizer::compile(json, &[]).unwrap();
            let (size, hash) = (TokenizerSize::of_compiled(&section).unwrap(), blake3::hash(json));
            let read = || {
                Tokenizer::check_compiled(&section, json).unwrap();
                Tokenizer::from_compiled(&section, hash.as_bytes()).unwrap()
            };
            complaints.extend(exceeded(&format!("{what}, compiled"), size, Bound::Loose, &read));
        }
    }
    complaints
}

/// How close a bound has to be.
#[derive(Clone, Copy, PartialEq)]
enum Bound {
    Tight,
    Loose,
}

/// What a tokenizer takes beyond its bound, or, where that is to be tight, far less.
fn exceeded(what: &str, size: TokenizerSize, bound: Bound, read: &dyn Fn() -> Tokenizer) -> Vec<String> {
    let (held, reading) = (size.held() as usize, size.reading() as usize);
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let tokenizer = read();
    let (live, peak) = (LIVE.load(Ordering::SeqCst) - before, PEAK.load(Ordering::SeqCst) - before);
    assert!(tokenizer.vocab_size() >= 256);
    let complaints = [
        (live > held).then(|| format!("{what}: holds {live} bytes of {held}")),
        (peak > reading).then(|| format!("{what}: reading takes {peak} bytes of {reading}")),
        (bound == Bound::Tight && reading > peak * 3 / 2)
            .then(|| format!("{what}: {reading} bytes are counted for {peak}")),
    ];
    complaints.into_iter().flatten().collect()
}

/// A tokenizer of `tokens` made-up tokens, each the join of two before it.
fn tokenizer(kind: &str, tokens: usize, merges: &str) -> String {
    let letter = |i: usize| char::from_u32(0x100 + i as u32).unwrap().to_string();
    let mut vocab: Vec<String> = (0..256).map(letter).collect();
    let mut pairs = Vec::new();
    for i in 0..tokens - 256 {
        let (first, rest) = (letter(i % 256), i / 256);
        let (left, right) = if rest < 256 {
            (first, letter(rest))
        } else {
            (format!("{first}{}", letter(rest % 256)), letter(rest / 256 - 1))
        };
        vocab.push(format!("{left}{right}"));
        pairs.push((left, right));
    }
    let numbered: serde_json::Map<_, _> = vocab.iter().cloned().zip((0..).map(Value::from)).collect();
    let pairs: Vec<Value> = match merges {
        "pairs" => pairs.into_iter().map(|(a, b)| json!([a, b])).collect(),
        "texts" => pairs.into_iter().map(|(a, b)| json!(format!("{a} {b}"))).collect(),
        _ => Vec::new(),
    };
    let unknown = letter(0);
    let model = match kind {
        "BPE" => json!({"type": kind, "vocab": numbered, "merges": pairs}),
        "WordLevel" => json!({"type": kind, "vocab": numbered, "unk_token": unknown}),
        "WordPiece" => json!({
            "type": kind, "vocab": numbered, "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }),
        _ => json!({
            "type": kind, "unk_id": 0, "byte_fallback": false,
            "vocab": vocab.iter().map(|text| json!([text, -1.5])).collect::<Vec<_>>(),
        }),
    };
    let splitter = json!({"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+"},
                          "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "NFC"}, "pre_tokenizer": splitter,
        "added_tokens": [{
            "id": tokens, "content": "<end>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        }],
        "post_processor": null, "decoder": null, "model": model,
    })
    .to_string()
}

/// A pass of steps of several sizes, some of them cut short of their bucket, each with a head and logits.
fn pass_over(executor: &mut dyn Executor) -> impl FnMut() {
    const MOST: usize = 64;
    let vocab = executor.vocab();
    let ids: Vec<i32> = (0..MOST).map(|i| i32::try_from((i * 7919 + 17) % vocab).unwrap()).collect();
    let pos: Vec<i32> = (0..256).collect();
    let rows: Vec<usize> = (0..MOST).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; MOST];
    let mut logits = vec![0.0; MOST * vocab];
    move || {
        for (at, n) in [(0, MOST), (64, 1), (65, 4), (69, 3), (72, 16), (88, 33)] {
            executor.step(&[Span::new(&ids[..n], &pos[at..at + n], at)]).unwrap();
            executor.head(&rows[..n], &mut stats[..n]).unwrap();
            executor.logits(&rows[..n.min(8)], &mut logits[..n.min(8) * vocab]).unwrap();
        }
    }
}
