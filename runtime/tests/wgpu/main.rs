//! The wgpu executor on a plan written by hand; skipped where there is no adapter.
#![allow(clippy::disallowed_methods, reason = "expected values take the system's mathematics")]
#![allow(clippy::unwrap_used, reason = "test program")]

mod tiny;

use std::io::Write;

use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};
use dlx_runtime::mapped::Mapped;
use dlx_runtime::wgpu::plan::Plan;
use dlx_runtime::wgpu::{Counters, LoadError, WgpuExecutor, WgpuOptions, adapters};
use tiny::{ROWS, VOCAB, WIDTH};

/// Whether there is an adapter; says so if not.
fn adapter() -> bool {
    let found = !adapters().is_empty();
    if !found {
        assert!(std::env::var_os("DLX_REQUIRE_WGPU").is_none(), "no wgpu adapter, although DLX_REQUIRE_WGPU is set");
        eprintln!("skipped: no wgpu adapter");
    }
    found
}

fn load(plan: Plan) -> Result<WgpuExecutor, LoadError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[7; 100]).unwrap();
    file.write_all(&tiny::weights()).unwrap();
    let mapped = Mapped::open(file.path()).unwrap();
    // Any adapter will do.
    let options = WgpuOptions { device: Some("0".into()) };
    WgpuExecutor::new(plan, &mapped, 100..100 + tiny::weights().len(), &options)
}

fn logits(ids: &[i32], pos: &[i32], rows: &[usize]) -> Vec<f32> {
    let table = tiny::embedding();
    let hidden = |r: usize, c: usize| table[usize::try_from(ids[r]).unwrap() * WIDTH + c] + pos[r] as f32;
    let one = |r: usize, v: usize| (0..WIDTH).map(|c| hidden(r, c) * table[v * WIDTH + c]).sum::<f32>();
    rows.iter().flat_map(|&r| (0..VOCAB).map(move |v| (r, v))).map(|(r, v)| one(r, v)).collect()
}

#[test]
fn steps_heads_and_logits() {
    if !adapter() {
        return;
    }
    let mut executor = load(tiny::plan()).unwrap();
    assert_eq!((executor.step_buckets(), executor.max_seq(), executor.vocab()), (&[ROWS][..], 16, VOCAB));
    let (ids, pos) = ([3, 1, 6], [0, 1, 2]);
    executor.step(&[Span::new(&ids, &pos, 2)]).unwrap();
    assert_eq!(executor.counters().submits, 0, "a step waits for its head");
    let mut stats = [RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; 2];
    executor.head(&[2, 0], &mut stats).unwrap();
    // The call with one span, ids and positions up, then the head's call and rows; numbers of two rows down.
    let bytes_up = (16 + 32) + 12 + 12 + 16 + 8;
    assert_eq!(executor.counters(), Counters { bytes_up, bytes_down: 2 * 16, dispatches: 4, submits: 1 });
    let expected = logits(&ids, &pos, &[2, 0]);
    for (s, l) in stats.iter().zip(expected.chunks(VOCAB)) {
        let best = (0..VOCAB).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap();
        let sum: f32 = l.iter().map(|v| (v - l[best]).exp()).sum();
        assert_eq!(s.best, i32::try_from(best).unwrap());
        assert!((s.prob - 1.0 / sum).abs() < 1e-5, "{s:?}");
        let entropy: f32 = l.iter().map(|v| (v - l[best]).exp() / sum).map(|p| -p * p.ln()).sum();
        assert!((s.entropy - entropy).abs() < 1e-5, "{s:?} {entropy}");
    }
    // More rows than the bucket has run in several calls, and a row may be asked for twice.
    let rows = [0, 1, 2, 2, 1];
    let mut out = vec![0.0; rows.len() * VOCAB];
    executor.logits(&rows, &mut out).unwrap();
    for (found, expected) in out.iter().zip(logits(&ids, &pos, &rows)) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    // Two steps without a head: the first must not see the second's ids.
    executor.step(&[Span::new(&[0; 4], &[5; 4], 0)]).unwrap();
    executor.step(&[Span::new(&[7], &[1], 0)]).unwrap();
    let mut out = vec![0.0; VOCAB];
    executor.logits(&[0], &mut out).unwrap();
    assert!((out[1] - logits(&[7], &[1], &[0])[1]).abs() < 1e-6);
    executor.finish().unwrap();
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    if !adapter() {
        return;
    }
    let mut executor = load(tiny::plan()).unwrap();
    let mut refused = |ids: &[i32], at, visible| {
        let pos = vec![0; ids.len()];
        let outcome = executor.step(&[Span { slot: 0, ids, pos: &pos, at, from: 0, visible }]);
        assert!(matches!(outcome, Err(ExecError::Shape(_))), "{outcome:?}");
    };
    refused(&[0; 5], 0, 5);
    refused(&[], 0, 5);
    refused(&[8], 0, 1);
    refused(&[-1], 0, 1);
    refused(&[0; 4], 14, 18);
    refused(&[0; 4], usize::MAX, 18);
    let mut out = [0.0; VOCAB];
    assert!(matches!(executor.logits(&[0], &mut out), Err(ExecError::Shape(_))), "there was no step");
    executor.step(&[Span::new(&[1], &[0], 0)]).unwrap();
    assert!(matches!(executor.logits(&[0], &mut out[1..]), Err(ExecError::Shape(_))));
    executor.logits(&[0], &mut out).unwrap();
}

#[test]
fn what_a_device_cannot_do_is_said_at_load() {
    if !adapter() {
        return;
    }
    let mut plan = tiny::plan();
    plan.profile.max_buffer = 1 << 60;
    plan.profile.max_binding = 1 << 60;
    assert!(matches!(load(plan), Err(LoadError::Unfit { .. })));
    let mut plan = tiny::plan();
    plan.shaders[4] = "not a shader".into();
    let error = load(plan).err().unwrap().to_string();
    assert!(error.contains("head_stats"), "{error}");
    let options = WgpuOptions { device: Some("no such device".into()) };
    let mapped = Mapped::open(std::env::current_exe().unwrap().as_path()).unwrap();
    let outcome = WgpuExecutor::new(tiny::plan(), &mapped, 0..4096, &options);
    assert!(matches!(outcome, Err(LoadError::Choice(_))));
}
