//! Slots of the caches on compiled models: rows that are copied from one sequence to another, rows that are kept from one
//! request to the next, and what is refused.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "test program")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use dlx_ir::DType;
use dlx_runtime::exec::{CacheRow, ExecError, Executor, Span};
use dlx_runtime::session::{Prompt, Report, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::wgpu::adapters;
use dlx_runtime::{LoadOptions, Model};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;

fn path(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model)
}

fn load(model: &str, target: &str, kv: Option<DType>) -> Model {
    let options = CompileOptions { targets: vec![target.into()], kv, max_seq: Some(256), ..CompileOptions::default() };
    let load = LoadOptions { device: Some("0".into()), ..LoadOptions::default() };
    compiled::load(&path(model), &options, &load).unwrap()
}

/// The CPU, and the graphics device if there is one.
fn targets() -> Vec<&'static str> {
    let found = !adapters().is_empty();
    assert!(
        found || std::env::var_os("DLX_REQUIRE_WGPU").is_none(),
        "no wgpu adapter, although DLX_REQUIRE_WGPU is set"
    );
    if !found {
        eprintln!("skipped on wgpu: no wgpu adapter");
    }
    if found { vec!["cpu", "wgpu"] } else { vec!["cpu"] }
}

fn ids(count: usize) -> (Vec<i32>, Vec<i32>) {
    ((0..count).map(|i| 5 + i32::try_from(i * 37 % 200).unwrap()).collect(), (0..).take(count).collect())
}

fn at(slot: usize, row: usize) -> CacheRow {
    CacheRow { slot, row }
}

/// Logits of all rows of a span.
fn logits(executor: &mut dyn Executor, span: Span<'_>) -> Vec<f32> {
    executor.step(&[span]).unwrap();
    let rows: Vec<usize> = (0..span.ids.len()).collect();
    let mut out = vec![0.0; rows.len() * executor.vocab()];
    executor.logits(&rows, &mut out).unwrap();
    out
}

#[test]
fn copied_rows_are_those_of_the_other_sequence() {
    for target in targets() {
        for kv in [None, Some(DType::F32), Some(DType::CACHE_Q8)] {
            if target == "wgpu" && kv == Some(DType::CACHE_Q8) {
                continue;
            }
            let mut model = load("sdar-tiny", target, kv);
            let executor = &mut *model.executor;
            executor.reserve(3).unwrap();
            let (ids, pos) = ids(44);
            // Blocks of four; neither 36 nor 40 rows are whole tiles of interleaved keys.
            executor.step(&[Span::new(&ids[..40], &pos[..40], 0)]).unwrap();
            let other: Vec<i32> = ids.iter().rev().copied().collect();
            executor.step(&[Span { slot: 2, ..Span::new(&other[..40], &pos[..40], 0) }]).unwrap();
            for rows in [0, 36, 40] {
                let next = Span::new(&ids[rows..rows + 4], &pos[rows..rows + 4], rows);
                let own = logits(executor, next);
                executor.copy_rows(at(0, 0), at(2, 0), rows).unwrap();
                let copied = logits(executor, Span { slot: 2, ..next });
                assert_eq!(own, copied, "{target}, caches {kv:?}, {rows} rows");
            }
            // Kept elsewhere in the caches piece by piece, and put together again.
            let unit = executor.copy_unit().unwrap();
            let pages: Vec<usize> = (0..40).step_by(unit).collect();
            let places = |i: usize| at(1, (pages.len() - 1 - i) * 2 * unit);
            for (i, row) in pages.iter().enumerate() {
                executor.copy_rows(at(0, *row), places(i), unit.min(40 - row)).unwrap();
            }
            executor.step(&[Span { slot: 2, ..Span::new(&other[..40], &pos[..40], 0) }]).unwrap();
            for (i, row) in pages.iter().enumerate() {
                executor.copy_rows(places(i), at(2, *row), unit.min(40 - row)).unwrap();
            }
            let next = Span::new(&ids[40..], &pos[40..], 40);
            let (own, copied) = (logits(executor, next), logits(executor, Span { slot: 2, ..next }));
            assert_eq!(own, copied, "{target}, caches {kv:?}, pages of {unit}");
        }
    }
}

#[test]
fn rows_that_depend_on_what_follows_are_not_copied() {
    for target in targets() {
        let refused = |model: &mut Model, from: CacheRow, to: CacheRow, rows: usize| {
            let error = model.executor.copy_rows(from, to, rows).unwrap_err();
            assert!(matches!(error, ExecError::Shape(_)), "{error}");
            error.to_string()
        };
        let mut sdar = load("sdar-tiny", target, None);
        sdar.executor.reserve(2).unwrap();
        let unit = sdar.executor.copy_unit().unwrap();
        assert_eq!(unit, if target == "cpu" { 16 } else { 4 }, "tiles of keys, or blocks");
        assert!(refused(&mut sdar, at(0, 0), at(1, 0), 6).contains("no whole blocks of 4"));
        assert!(refused(&mut sdar, at(0, 2), at(1, 0), 4).contains("not row 2"));
        assert!(refused(&mut sdar, at(0, 0), at(1, unit + 1), 4).contains("multiples"));
        for (from, to, rows) in [
            (at(0, 0), at(2, 0), 4),
            (at(2, 0), at(0, 0), 4),
            (at(0, 0), at(1, 0), 260),
            (at(0, 0), at(1, 256), 4),
            (at(0, usize::MAX), at(1, 0), 4),
        ] {
            assert!(refused(&mut sdar, from, to, rows).contains("do not fit"), "{from:?} {to:?} {rows}");
        }
        let mut llada = load("llada-tiny", target, None);
        llada.executor.reserve(2).unwrap();
        assert_eq!(llada.executor.copy_unit(), None);
        assert!(refused(&mut llada, at(0, 0), at(1, 0), 32).contains("full attention"));
        let mut qwen = load("qwen2-tiny", target, None);
        qwen.executor.reserve(2).unwrap();
        qwen.executor.copy_rows(at(0, 0), at(1, 0), 7).unwrap();
    }
}

#[test]
fn spans_that_do_not_fit_are_refused() {
    for target in targets() {
        let mut model = load("sdar-tiny", target, None);
        let (ids, pos) = ids(4);
        let span = Span::new(&ids, &pos, 0);
        let mut refused = |spans: &[Span<'_>], what: &str| {
            let error = model.executor.step(spans).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(&[], "rows");
        refused(&[Span { slot: 1, ..span }], "slot 1");
        refused(&[span, span], "slot 0");
        refused(&[Span { ids: &[], pos: &[], ..span }, span], "0 ids");
        model.executor.reserve(2).unwrap();
        model.executor.step(&[span, Span { slot: 1, ..span }]).unwrap();
    }
}

/// Answers a conversation turn by turn.
fn conversation(model: &str, target: &str, keep: bool) -> Vec<Report> {
    let mut session = Session::new(load(model, target, None)).unwrap();
    let mut messages = Vec::new();
    let questions = [
        "What is the capital of France?",
        "What is 27 + 45?",
        "Sort these letters: d b c a",
        "Tell me a story about a fox and a river.",
        "What is 12 + 30?",
    ];
    let mut answer = |question: &&str| {
        messages.push(Message::new("user", question));
        let prompt = Prompt::Chat { messages: messages.clone(), variables: serde_json::Map::new() };
        let request = Request { keep, ..Request::new(prompt, 32) };
        let report = session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        messages.push(Message::new("assistant", &report.text));
        report
    };
    questions.iter().map(&mut answer).collect()
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    for target in targets() {
        for model in ["sdar-tiny", "fast-dllm-v2-tiny", "qwen2-tiny", "llada-tiny"] {
            let (kept, fresh) = (conversation(model, target, true), conversation(model, target, false));
            for (turn, (kept, fresh)) in kept.iter().zip(&fresh).enumerate() {
                // A graphics device rounds differently in steps of another size, and the models know no long conversations.
                if target == "cpu" || turn < 2 {
                    assert_eq!((&kept.text, &kept.ids), (&fresh.text, &fresh.ids), "{model} on {target}, turn {turn}");
                }
                assert_eq!(fresh.held_tokens, 0);
                let (held, prompt) = (kept.held_tokens, kept.prompt_tokens);
                // Blocks of 32, of which the last before the answer is always computed.
                let least = if model == "fast-dllm-v2-tiny" { prompt.saturating_sub(64) / 32 * 32 } else { prompt / 3 };
                let right = if turn == 0 || model == "llada-tiny" { held == 0 } else { held >= least };
                assert!(right, "{model} on {target}, turn {turn}: {held} of {prompt}");
            }
            let held = kept[kept.len() - 1].held_tokens;
            assert!(model == "llada-tiny" || held >= 32, "{model} on {target}: {held}");
        }
    }
}
