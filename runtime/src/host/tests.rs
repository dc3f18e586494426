//! The host's side of an export, on a backend that only looks.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::exec::{CacheRow, Executor, Span};

fn model() -> Model {
    Model {
        family: "none".into(),
        vocab: 10,
        hidden: 2,
        layers: 1,
        kv_heads: 1,
        head_dim: 4,
        rope_theta: 100.0,
        max_seq: 8,
        mask: "block_causal:2".into(),
    }
}

fn manifest() -> Manifest {
    let policy = crate::decode::policy::DecodePolicy::autoregressive();
    let entry = |kind, rows| Entry::new(kind, rows, &model());
    Manifest {
        format: FORMAT.into(),
        version: VERSION,
        compiler: String::new(),
        target: "qnn".into(),
        profile: "f16".into(),
        min_htp: 0,
        soc: None,
        model: model(),
        decode: policy,
        tokenizer: "tokenizer.json".into(),
        text: "text.json".into(),
        embeddings: Table { file: "embeddings.bin".into(), dtype: "f16".into(), rows: 10, cols: 2 },
        weights: WeightsFile { file: "weights.bin".into(), bytes: 0, blake3: String::new() },
        calibration: String::new(),
        entries: vec![entry(EntryKind::Step, 2), entry(EntryKind::Step, 4), entry(EntryKind::Head, 2)],
        notes: vec![],
    }
}

/// Keeps what it is given, and answers with counting numbers.
#[derive(Clone, Default)]
struct Watcher(Arc<Mutex<Vec<Call>>>);

/// The entry, and its inputs.
type Call = (String, Vec<Vec<f32>>);

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
}

impl Backend for Watcher {
    fn run(&mut self, entry: &Entry, inputs: &[Vec<u8>], outputs: &mut [Vec<u8>]) -> Result<(), String> {
        let seen = inputs.iter().map(|i| floats(i)).collect();
        let mut calls = self.0.lock().unwrap();
        calls.push((entry.name.clone(), seen));
        for (port, out) in entry.outputs.iter().zip(outputs) {
            let of = |i: usize| (100 * calls.len() + i) as f32;
            *out = match port.dtype.as_str() {
                "f32" => (0..out.len() / 4).flat_map(|i| of(i % 10).to_le_bytes()).collect(),
                _ => (0..out.len() / 2).flat_map(|i| half::f16::from_f32(of(i)).to_le_bytes()).collect(),
            };
        }
        Ok(())
    }
}

fn executor(dir: &Path) -> (HostExecutor, Watcher) {
    let table: Vec<u8> = (0..20u8).flat_map(|i| half::f16::from_f32(f32::from(i)).to_le_bytes()).collect();
    let path = dir.join("embeddings.bin");
    std::fs::write(&path, table).unwrap();
    let watcher = Watcher::default();
    (HostExecutor::new(manifest(), Mapped::open(&path).unwrap(), Box::new(watcher.clone())), watcher)
}

#[test]
fn a_step_is_given_embeddings_angles_masks_and_what_earlier_steps_left() {
    let dir = tempfile::tempdir().unwrap();
    let (mut executor, watcher) = executor(dir.path());
    executor.step(&[Span::new(&[3, 4], &[0, 1], 0)]).unwrap();
    executor.step(&[Span::new(&[5, 6, 7], &[2, 3, 4], 2)]).unwrap();
    let calls = watcher.0.lock().unwrap();
    let (name, inputs) = &calls[1];
    assert_eq!(name, "step_4");
    // The fourth row only fills up, and repeats the first.
    assert_eq!(inputs[0], [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 10.0, 11.0]);
    let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 2e-3, "{a} {b}");
    for (i, angle) in [2.0f64, 0.2, 2.0, 0.2].into_iter().enumerate() {
        close(inputs[1][i], angle.cos());
        close(inputs[2][i], if i < 2 { -angle.sin() } else { angle.sin() });
    }
    let sees: Vec<String> =
        inputs[3].chunks(12).map(|row| row.iter().map(|v| if *v == 0.0 { 'x' } else { '.' }).collect()).collect();
    // Rows 2 and 3 are a block behind rows 0 and 1; row 4 is in a block of its own, and sees them all.
    assert_eq!(sees, ["xx......xx..", "xx......xx..", "xx......xxx.", "xx......xx.."]);
    assert!(inputs[3].iter().all(|v| [0.0, MASKED].contains(v)));
    // Keys of the first step: a row per feature, its two rows first. Values: a row per row.
    assert_eq!(inputs[4][..10], [100.0, 101.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 102.0, 103.0]);
    assert_eq!(inputs[5][..9], [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0, 107.0, 0.0]);
}

#[test]
fn rows_are_copied_to_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut executor, watcher) = executor(dir.path());
    executor.reserve(2).unwrap();
    executor.step(&[Span::new(&[3, 4], &[0, 1], 0)]).unwrap();
    let at = |slot: usize, row: usize| CacheRow { slot, row };
    executor.copy_rows(at(0, 0), at(1, 4), 2).unwrap();
    executor.copy_rows(at(1, 4), at(1, 0), 2).unwrap();
    executor.step(&[Span { slot: 1, ..Span::new(&[5, 6], &[2, 3], 2) }]).unwrap();
    let calls = watcher.0.lock().unwrap();
    // Eight rows of a feature of the keys, then two rows of four features of the values.
    assert_eq!(calls[1].1[4][..8], [100.0, 101.0, 0.0, 0.0, 100.0, 101.0, 0.0, 0.0]);
    assert_eq!(calls[1].1[5][..9], [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0, 107.0, 0.0]);
    assert_eq!(calls[1].1[5][16..24], calls[1].1[5][..8]);
}

#[test]
fn the_head_sees_the_rows_that_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (mut executor, watcher) = executor(dir.path());
    executor.step(&[Span::new(&[3, 4, 5], &[0, 1, 2], 0)]).unwrap();
    let mut logits = vec![0.0; 30];
    executor.logits(&[2, 0, 1], &mut logits).unwrap();
    let calls = watcher.0.lock().unwrap();
    assert_eq!(calls[1].1[0], [104.0, 105.0, 100.0, 101.0]);
    assert_eq!(calls[2].1[0], [102.0, 103.0, 102.0, 103.0]);
    assert_eq!((logits[0], logits[20]), (200.0, 300.0));
    drop(calls);
    let mut stats = vec![crate::exec::RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }];
    executor.head(&[0], &mut stats).unwrap();
    let z: f64 = (0..10).map(|i| f64::from(-i).exp()).sum();
    assert_eq!(stats[0].best, 9);
    assert!((f64::from(stats[0].prob) - 1.0 / z).abs() < 1e-6, "{stats:?}");
    assert!((f64::from(stats[0].margin) - (1.0 - f64::from(-1.0f32).exp()) / z).abs() < 1e-6, "{stats:?}");
    let entropy: f64 = (0..10).map(|i| f64::from(-i).exp() / z).map(|p| -p * p.ln()).sum();
    assert!((f64::from(stats[0].entropy) - entropy).abs() < 1e-5, "{stats:?}");
    assert!(executor.logits(&[3], &mut [0.0; 10]).is_err(), "the step had three rows");
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    assert_eq!(manifest().check(), Ok(()));
    type Edit = fn(&mut Manifest);
    let edits: &[(&str, Edit)] = &[
        ("is `x` version 1", |m| m.format = "x".into()),
        ("impossible sizes", |m| m.model.head_dim = 3),
        ("impossible sizes", |m| m.model.max_seq = usize::MAX),
        ("caches that nothing holds", |m| {
            (m.model.layers, m.model.kv_heads, m.model.head_dim) = (1 << 20, 1 << 20, 1 << 20);
        }),
        ("is not a mask", |m| m.model.mask = "none".into()),
        ("embeddings of another model", |m| m.embeddings.rows = 11),
        ("says of step_2", |m| m.entries[0].rows = 3),
        ("says of step_2", |m| m.entries[0].outputs.truncate(1)),
        ("lacks a step or a head", |m| m.entries.truncate(2)),
        ("names `../x`", |m| m.tokenizer = "../x".into()),
    ];
    for (wanted, edit) in edits {
        let mut manifest = manifest();
        edit(&mut manifest);
        let error = manifest.check().unwrap_err();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}
