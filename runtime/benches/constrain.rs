//! Times constraints: making one, and what it adds to a pass.
//!
//! `cargo bench -p dlx-runtime --bench constrain -- [--tokenizer FILE]`. Without a `tokenizer.json` the vocabulary is one of
//! random words, of the size of Qwen's. Rows of logits come from a small pool, peaked like those of a model; the time of a
//! pass is that of choosing, without any model.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dlx_runtime::constrain::{Constraint, Grammar, Vocabulary};
use dlx_runtime::decode::noise::Noise;
use dlx_runtime::decode::policy::DecodePolicy;
use dlx_runtime::decode::{Overrides, decode};
use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};
use dlx_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};

const VOCAB: usize = 151_936;
const MASK: i32 = 151_669;
const STOP: i32 = 151_645;
const POOL: usize = 7;

fn main() {
    let mut tokenizer = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--tokenizer" => tokenizer = Some(args.next().expect("--tokenizer takes a file")),
            other => panic!("there is no option `{other}`"),
        }
    }
    let bytes = match tokenizer {
        Some(path) => std::fs::read(path).expect("the tokenizer can be read"),
        None => random_words().to_string().into_bytes(),
    };
    let tokenizer = Tokenizer::from_bytes(&bytes).expect("it is a tokenizer");
    let begin = Instant::now();
    let vocabulary = Vocabulary::new(&tokenizer, VOCAB, &[MASK, STOP]).expect("it is byte-level");
    println!("vocabulary: {:?}", begin.elapsed());
    let vocabulary = Arc::new(vocabulary);
    for (name, grammar) in grammars() {
        let begin = Instant::now();
        let constraint = match Constraint::new(&grammar, &vocabulary) {
            Ok(constraint) => Arc::new(constraint),
            Err(error) => {
                println!("{name:32} {:?}: {error}", begin.elapsed());
                continue;
            }
        };
        let made = begin.elapsed().as_secs_f64() * 1e3;
        let automaton = constraint.automaton();
        let (states, sets) = (automaton.len(), automaton.sets());
        println!("{name:32} {made:8.1} ms to make, {states} states, {sets} sets");
        for (block, temperature) in [(1, 0.0), (4, 0.0), (32, 0.0), (32, 0.8)] {
            let (own, free) = (pass(Some(&constraint), block, temperature), pass(None, block, temperature));
            println!("    block {block:2}, temperature {temperature}: {own:7.2} ms a pass, {free:7.2} without");
        }
    }
}

fn grammars() -> Vec<(&'static str, Grammar)> {
    let fields = |count: usize, of: Value| {
        let names: Vec<String> = (0..count).map(|i| format!("field_{i}")).collect();
        let properties: Map<String, Value> = names.iter().map(|name| (name.clone(), of.clone())).collect();
        json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
    };
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "email": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "role": {"enum": ["admin", "editor", "reader"]},
        },
        "required": ["name", "age", "email", "tags", "role"],
        "additionalProperties": false,
    });
    vec![
        ("any text", Grammar::Regex("(?s).*".into())),
        ("[a-z ]{1,200}", Grammar::Regex("[a-z ]{1,200}".into())),
        ("a person", Grammar::Schema(person)),
        ("20 strings", Grammar::Schema(fields(20, json!({"type": "string"})))),
        ("20 strings of up to 50", Grammar::Schema(fields(20, json!({"type": "string", "maxLength": 50})))),
        ("a string of up to 2000", Grammar::Schema(json!({"type": "string", "maxLength": 2000}))),
        ("any object", Grammar::Schema(json!({"type": "object"}))),
    ]
}

/// Milliseconds of choosing per pass over a block, over a decode of 256 tokens.
fn pass(constraint: Option<&Arc<Constraint>>, block: usize, temperature: f32) -> f64 {
    let mut executor = Says::new(block);
    let base = if block == 1 {
        DecodePolicy::autoregressive()
    } else {
        DecodePolicy { steps: block.min(4), ..DecodePolicy::greedy(MASK, block) }
    };
    let stops = Overrides { stop_ids: Some(vec![STOP]), temperature: Some(temperature), ..Overrides::default() };
    let policy = base.with(&stops).expect("nothing in it is fixed");
    let resolved = policy.resolve(&executor).expect("it can be run");
    let resolved = match constraint {
        Some(constraint) => resolved.constrained(Arc::clone(constraint), &executor).expect("it can be constrained"),
        None => resolved,
    };
    let ignore = &mut |_: dlx_runtime::decode::Moment<'_>| ControlFlow::Continue(());
    let decoded = decode(&mut executor, resolved, &[5; 32], 256, 0, Noise::Seeded(1), ignore).expect("it decodes");
    let head = decoded.times.head.saturating_sub(executor.copied);
    head.as_secs_f64() * 1e3 / decoded.passes.head.max(1) as f64
}

/// An executor without a model.
struct Says {
    buckets: [usize; 1],
    pool: Vec<Vec<f32>>,
    turn: usize,
    copied: Duration,
}

impl Says {
    fn new(block: usize) -> Self {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 16_777_216.0
        };
        let pool = (0..POOL).map(|i| {
            let mut row: Vec<f32> = (0..VOCAB).map(|_| 2.5 * ((0..4).map(|_| uniform()).sum::<f32>() - 2.0)).collect();
            row[1000 + i * 17] += 15.0;
            row
        });
        Self { buckets: [block.max(64)], pool: pool.collect(), turn: 0, copied: Duration::ZERO }
    }
}

impl Executor for Says {
    fn max_seq(&self) -> usize {
        1024
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn step_buckets(&self) -> &[usize] {
        &self.buckets
    }

    fn slots(&self) -> usize {
        1
    }

    fn reserve(&mut self, _: usize) -> Result<(), ExecError> {
        Ok(())
    }

    fn step(&mut self, _: &[Span<'_>]) -> Result<(), ExecError> {
        self.turn += 1;
        Ok(())
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        for (row, out) in rows.iter().zip(out) {
            let best = 1000 + ((self.turn + row) % POOL * 17) as i32;
            *out = RowStats { best, prob: 0.5, margin: 0.1, entropy: 1.0 };
        }
        Ok(())
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        let begin = Instant::now();
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(VOCAB)) {
            out.copy_from_slice(&self.pool[(self.turn + row) % POOL]);
        }
        self.copied += begin.elapsed();
        Ok(())
    }
}

/// A byte-level tokenizer of random words, as many as Qwen has tokens.
fn random_words() -> Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let shifted: Vec<u32> = (0..256).filter(|byte| !printable(*byte)).collect();
    let letter = |byte: u32| match shifted.iter().position(|other| *other == byte) {
        Some(at) => char::from_u32(256 + at as u32),
        None => char::from_u32(byte),
    };
    let spelled = |bytes: &[u8]| bytes.iter().filter_map(|byte| letter(u32::from(*byte))).collect::<String>();
    let mut vocab: Map<String, Value> = (0..=255u8).map(|b| (spelled(&[b]), json!(b))).collect();
    let mut state = 7u64;
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    while vocab.len() < 151_643 {
        let mut word = Vec::new();
        if below(2) == 0 {
            word.push(b' ');
        }
        for _ in 0..2 + below(7) {
            match below(40) {
                0 => word.extend(b"\""),
                1 => word.extend(b"\n"),
                2 => word.extend("é".as_bytes()),
                3 => word.push(0xE4 + below(4) as u8),
                4 => word.push(b'0' + below(10) as u8),
                _ => word.push(b'a' + below(26) as u8),
            }
        }
        let id = vocab.len();
        vocab.entry(spelled(&word)).or_insert(id.into());
    }
    json!({
        "version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}
