//! A loaded executor allocates nothing, on any thread: steps of every size, heads and logits run in what was reserved at
//! load. Nor does a sampler that has seen one row.
//!
//! The only test of its binary, because the counter sees every thread of the process.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use dlx_ir::DType;
use dlx_runtime::LoadOptions;
use dlx_runtime::cpu::CpuOptions;
use dlx_runtime::decode::noise::{Noise, NoiseRow};
use dlx_runtime::decode::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
use dlx_runtime::decode::sample::{Choice, Needs, Sampler};
use dlx_runtime::exec::{Executor, RowStats, Span};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;

/// Counts what the system's allocator is asked for.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
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
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
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
    for kv in [None, Some(DType::CACHE_Q8)] {
        for threads in [1, 2, 3] {
            let options = CompileOptions { kv, max_seq: Some(256), ..CompileOptions::default() };
            let cpu = CpuOptions { threads, isa: None };
            let load = LoadOptions { cpu, ..LoadOptions::default() };
            let mut executor = compiled::load(&model, &options, &load).unwrap().executor;
            let mut pass = pass_over(&mut *executor);
            pass();
            let (count, bytes) = allocations(|| (0..100).for_each(|_| pass()));
            let what =
                || format!("{threads} threads, caches {kv:?}: {count} allocations of {bytes} bytes in 100 passes");
            complaints.extend((count > 0).then(what));
        }
    }
    complaints.extend(sampling());
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
    for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 50, 1.0), (0.7, 0, 0.95), (0.7, 2000, 0.5)]
    {
        for (filter_order, confidence_stage) in orders.into_iter().flat_map(|o| stages.map(|stage| (o, stage))) {
            let mut policy = DecodePolicy {
                temperature,
                top_k,
                top_p,
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
