//! Times choosing a token from one row of logits, by policy.
//!
//! `cargo bench -p dlx-runtime --bench sampling -- [--vocab 151936]`. Flat rows are those of a model that knows little;
//! in peaked rows one token has most of the probability, as in most rows of a real decode.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::{Duration, Instant};

use dlx_runtime::decode::noise::{Noise, NoiseRow};
use dlx_runtime::decode::policy::{ConfidenceStage, DecodePolicy};
use dlx_runtime::decode::sample::{Choice, Needs, Sampler};

fn main() {
    let mut vocab = 151_936;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--vocab" => vocab = args.next().and_then(|n| n.parse().ok()).expect("--vocab takes a number"),
            other => panic!("there is no option `{other}`"),
        }
    }
    let stage = ConfidenceStage::AfterFilters;
    let drawn = DecodePolicy { temperature: 0.8, confidence_stage: stage, ..DecodePolicy::greedy(1, 4) };
    let greedy = DecodePolicy { confidence_stage: stage, ..DecodePolicy::greedy(1, 4) };
    let before = ConfidenceStage::BeforeTemperature;
    let policies = [
        ("temperature", drawn.clone()),
        ("temperature, confidence before it", DecodePolicy { confidence_stage: before, ..drawn.clone() }),
        ("top-k 50", DecodePolicy { top_k: 50, ..drawn.clone() }),
        ("top-p 0.95", DecodePolicy { top_p: 0.95, ..drawn.clone() }),
        ("top-k 50, top-p 0.95", DecodePolicy { top_k: 50, top_p: 0.95, ..drawn }),
        ("greedy, top-k 50, top-p 0.95", DecodePolicy { top_k: 50, top_p: 0.95, ..greedy.clone() }),
        ("greedy, one token suppressed", DecodePolicy { suppress_ids: vec![2], ..greedy }),
    ];
    println!("milliseconds per row of {vocab}, best of 20");
    for (shape, spread, peak) in [("flat", 2.0, 0.0), ("peaked", 2.5, 22.0)] {
        let row = row(vocab, spread, peak);
        for (name, policy) in &policies {
            println!("{shape:8} {name:36} {:8.3}", time(&row, policy).as_secs_f64() * 1e3);
        }
    }
}

/// Normally distributed logits, and one that stands out.
fn row(vocab: usize, spread: f32, peak: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0
    };
    let mut row: Vec<f32> = (0..vocab).map(|_| spread * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect();
    row[vocab / 3] += peak;
    row
}

fn time(row: &[f32], policy: &DecodePolicy) -> Duration {
    let noise = Noise::Seeded(7);
    let needs = Needs { prob: true, ..Needs::NOTHING };
    let mut sampler = Sampler::default();
    let mut best = Duration::MAX;
    for position in 0..20 {
        let begin = Instant::now();
        let drawn = sampler.choose(row, policy, Choice::AsPolicy, needs, &noise, NoiseRow { pass: 0, position });
        best = best.min(begin.elapsed());
        std::hint::black_box(drawn);
    }
    best
}
