//! Many requests side by side on compiled models: each answer is, to the bit, the one that a session gives alone.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use dlx_runtime::batch::{Batch, Capacity, Update};
use dlx_runtime::decode::{Overrides, Reveal};
use dlx_runtime::session::{Event, Prompt, Report, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::{LoadOptions, Model};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const MODELS: [&str; 5] = ["sdar-tiny", "llada-tiny", "dream-tiny", "fast-dllm-v2-tiny", "qwen2-tiny"];

const QUESTIONS: [&str; 6] = [
    "What is the capital of France?",
    "What is 27 + 45?",
    "Sort these letters: d b c a",
    "Tell me a story about a fox and a river.",
    "Reverse this word: stone",
    "Hello",
];

/// A compiled model, loaded for the session and for the batch.
fn load(model: &str) -> (Model, Model) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model);
    let options = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    let load = || compiled::load(&path, &options, &LoadOptions::default()).unwrap();
    (load(), load())
}

/// A request of the mixture: a question, how long, how hot, whether stop strings and thresholds; some with penalties, biases or
/// probabilities.
fn request(kind: (usize, usize, u8, u64, bool)) -> Request {
    let (question, max_new, heat, seed, special) = kind;
    let prompt = match question % 3 {
        0 => Prompt::Text(QUESTIONS[question % 6].repeat(1 + question % 4)),
        _ => {
            let messages = vec![Message::new("user", QUESTIONS[question % 6])];
            Prompt::Chat { messages, variables: serde_json::Map::new() }
        }
    };
    let overrides = Overrides {
        temperature: (heat > 0).then(|| f32::from(heat) * 0.4),
        top_p: (heat == 2).then_some(0.9),
        top_k: (heat == 3).then_some(20),
        seed: Some(seed),
        stop_strings: special.then(|| vec!["the".into(), "4".into()]),
        min_p: (heat == 1).then_some(0.05),
        frequency_penalty: (question % 4 == 2).then_some(0.4),
        repetition_penalty: (question % 6 == 5).then_some(1.2),
        logit_bias: (question % 8 == 3).then(|| [(37, 2.5), (301, -100.0)].into()),
        min_tokens: special.then_some(3),
        reveal: (special && heat == 0).then(|| Reveal::new("threshold").with("threshold", 0.7)),
        ..Overrides::default()
    };
    let logprobs = (question % 3 == 1).then_some(max_new % 5);
    Request { overrides, logprobs, ..Request::new(prompt, max_new) }
}

/// Everything of a report that is no time, and what was streamed.
fn facts(streamed: &str, report: Result<Report, String>) -> String {
    match report {
        Ok(r) => {
            assert_eq!(streamed, r.text);
            format!("{:?}", (r.text, r.ids, r.prefix, r.prompt_tokens, r.finish, r.logprobs, r.passes))
        }
        Err(error) => error,
    }
}

/// Answers of a batch, which gets the requests while others run.
fn beside(batch: &Batch, requests: &[Request]) -> Vec<String> {
    let answers = requests.iter().enumerate().map(|(i, request)| {
        let (send, receive) = channel();
        let mut streamed = String::new();
        let listener = move |update: Update<'_>| {
            match update {
                Update::Event { event: Event::Text(piece), .. } => streamed += piece,
                Update::End(result) => {
                    let _ = send.send(facts(&streamed, result.map_err(|e| e.to_string())));
                }
                _ => {}
            }
            ControlFlow::Continue(())
        };
        let refused = batch.submit(request, Box::new(listener)).err().map(|e| e.to_string());
        if i % 3 == 2 {
            std::thread::sleep(Duration::from_micros(200));
        }
        (refused, receive)
    });
    let answers: Vec<_> = answers.collect();
    answers.into_iter().map(|(refused, receive)| refused.unwrap_or_else(|| receive.recv().unwrap())).collect()
}

/// Mixtures that are tried; `DLX_MIXTURES` says how many.
fn mixtures() -> u32 {
    std::env::var("DLX_MIXTURES").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

#[test]
fn any_mixture_gives_the_answers_of_each_alone() {
    for model in MODELS {
        let (one, many) = load(model);
        let session = RefCell::new(Session::new(one).unwrap());
        let capacity = Capacity { sequences: 5, prefill_rows: 8, ..Capacity::default() };
        let batch = Batch::new(many, capacity).unwrap();
        let kind = (0usize..24, 1usize..60, 0u8..4, any::<u64>(), any::<bool>());
        let mixture = proptest::collection::vec(kind, 2..12);
        let mut runner = TestRunner::new(Config { cases: mixtures(), failure_persistence: None, ..Config::default() });
        let tried = runner.run(&mixture, |kinds| {
            let requests: Vec<Request> = kinds.into_iter().map(request).collect();
            for (request, beside) in requests.iter().zip(beside(&batch, &requests)) {
                let mut streamed = String::new();
                let alone = session.borrow_mut().generate(request, &mut |event| {
                    if let Event::Text(piece) = event {
                        streamed += piece;
                    }
                    ControlFlow::Continue(())
                });
                let alone = facts(&streamed, alone.map_err(|e| e.to_string()));
                // How many passes the prompt took is the only thing that the batch decides.
                let passes = |facts: &str| facts.split("prefill: ").next().unwrap_or_default().to_owned();
                prop_assert_eq!(passes(&alone), passes(&beside), "{}", model);
            }
            Ok(())
        });
        tried.unwrap();
        let load = batch.load();
        assert!(load.rows > load.steps, "{model}: steps are shared");
    }
}
