//! Many requests side by side on compiled models: each answer is, to the bit, the one that a session gives alone, whatever
//! runs beside it and whatever of its prompt was computed before.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "test program")]

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use dlx_runtime::batch::{Batch, Capacity, PrefixCache, Update};
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

fn load(model: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model);
    let options = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    compiled::load(&path, &options, &LoadOptions::default()).unwrap()
}

/// What is asked in a mixture.
#[derive(Clone, Debug)]
struct Asked {
    question: usize,
    /// Tokens of prompts of ids that are those of others.
    alike: usize,
    max_new: usize,
    heat: u8,
    seed: u64,
    /// Whether it has stop strings, a least length, a threshold, or masks to be filled in.
    special: bool,
    /// Pieces of text after which it is given up.
    gives_up: Option<usize>,
    priority: i32,
    choices: u64,
}

fn asked() -> impl Strategy<Value = Asked> {
    let how = (0u8..4, any::<u64>(), any::<bool>(), proptest::option::weighted(0.1, 1usize..6), -1i32..2);
    (0usize..24, 0usize..120, 1usize..60, how, 1u64..4).prop_map(|(question, alike, max_new, how, choices)| {
        let (heat, seed, special, gives_up, priority) = how;
        Asked { question, alike, max_new, heat, seed, special, gives_up, priority, choices }
    })
}

impl Asked {
    /// One request for each choice.
    fn requests(&self, mask: i32) -> Vec<(Request, Option<usize>)> {
        let &Asked { question, max_new, heat, special, .. } = self;
        let prompt = match question % 3 {
            0 => Prompt::Text(QUESTIONS[question % 6].repeat(1 + question % 4)),
            1 => {
                let messages = vec![Message::new("user", QUESTIONS[question / 4])];
                Prompt::Chat { messages, variables: serde_json::Map::new() }
            }
            _ => {
                let end = self.alike + 4 + question;
                let own = |i: usize| if i < self.alike { 0 } else { question };
                let mut ids: Vec<i32> = (0..end).map(|i| 5 + i32::try_from((i * 37 + own(i)) % 200).unwrap()).collect();
                if special && mask >= 0 {
                    ids[end - 3] = mask;
                }
                Prompt::Ids(ids)
            }
        };
        let overrides = Overrides {
            temperature: (heat > 0).then(|| f32::from(heat) * 0.4),
            top_p: (heat == 2).then_some(0.9),
            top_k: (heat == 3).then_some(20),
            stop_strings: special.then(|| vec!["the".into(), "4".into()]),
            min_p: (heat == 1).then_some(0.05),
            frequency_penalty: (question % 4 == 2).then_some(0.4),
            repetition_penalty: (question % 6 == 5).then_some(1.2),
            logit_bias: (question % 8 == 3).then(|| [(37, 2.5), (301, -100.0)].into()),
            min_tokens: special.then_some(3),
            reveal: (special && heat == 0).then(|| Reveal::new("threshold").with("threshold", 0.7)),
            ..Overrides::default()
        };
        let choice = |i: u64| {
            let overrides = Overrides { seed: Some(self.seed.wrapping_add(i)), ..overrides.clone() };
            let logprobs = (question % 3 == 1).then_some(max_new % 5);
            let request = Request { overrides, logprobs, ..Request::new(prompt.clone(), max_new) };
            let request = Request { priority: self.priority, ..request };
            (request, self.gives_up)
        };
        (0..self.choices).map(choice).collect()
    }
}

/// What a client sees of an answer, who gives up after some pieces of it.
struct Client {
    streamed: String,
    pieces: usize,
    gives_up: Option<usize>,
}

impl Client {
    fn new(gives_up: Option<usize>) -> Self {
        Self { streamed: String::new(), pieces: 0, gives_up }
    }

    fn event(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        if let Event::Text(piece) = event {
            self.streamed += piece;
            self.pieces += 1;
        }
        if self.gives_up.is_some_and(|most| self.pieces >= most) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Everything of a report that is no time, and not how the prompt was read.
    fn facts(&self, report: Result<Report, String>) -> String {
        match report {
            Ok(r) => {
                assert_eq!(self.streamed, r.text);
                let passes = (r.passes.denoise, r.passes.commit, r.passes.head);
                format!("{:?}", (r.text, r.ids, r.prefix, r.prompt_tokens, r.finish, r.logprobs, passes))
            }
            Err(error) => error,
        }
    }
}

/// Answers of a batch, which gets the requests while others run.
fn beside(batch: &Batch, requests: &[(Request, Option<usize>)]) -> Vec<String> {
    let answers = requests.iter().enumerate().map(|(i, (request, gives_up))| {
        let (send, receive) = channel();
        let mut client = Client::new(*gives_up);
        let listener = move |update: Update<'_>| match update {
            Update::Event { event, .. } => client.event(&event),
            Update::End(result) => {
                let _ = send.send(client.facts(result.map_err(|e| e.to_string())));
                ControlFlow::Continue(())
            }
            Update::Waiting => ControlFlow::Continue(()),
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
        let session = RefCell::new(Session::new(load(model)).unwrap());
        let mask = session.borrow().policy().mask_id;
        // One after the other; side by side; with few pages that come and go, and steps that are soon full; with many.
        let usual = Capacity { sequences: 5, prefill_rows: 8, ..Capacity::default() };
        let batches = [
            Capacity { sequences: 1, prefix_rows: 0, ..usual },
            Capacity { prefix_rows: 0, ..usual },
            Capacity { prefix_rows: 96, step_rows: Some(8), ..usual },
            usual,
        ]
        .map(|capacity| Batch::new(load(model), capacity).unwrap());
        let mixture = (0..batches.len(), proptest::collection::vec(asked(), 2..9));
        let mut runner = TestRunner::new(Config { cases: mixtures(), failure_persistence: None, ..Config::default() });
        let tried = runner.run(&mixture, |(batch, asked)| {
            let requests: Vec<_> = asked.iter().flat_map(|asked| asked.requests(mask)).collect();
            for ((request, gives_up), beside) in requests.iter().zip(beside(&batches[batch], &requests)) {
                let mut client = Client::new(*gives_up);
                let alone = session.borrow_mut().generate(request, &mut |event| client.event(&event));
                let alone = client.facts(alone.map_err(|e| e.to_string()));
                prop_assert_eq!(&alone, &beside, "{}, batch {}: {:?}", model, batch, request);
            }
            Ok(())
        });
        tried.unwrap();
        let keeps = matches!(batches[3].prefix_cache(), PrefixCache::On { .. });
        assert_eq!(keeps, !["llada-tiny", "dream-tiny"].contains(&model));
        let before = batches[3].load().reused_tokens;
        let prompt = Prompt::Ids((0..100).map(|i| 5 + i * 41 % 200).collect());
        let again = vec![(Request::new(prompt, 4), None)];
        assert_eq!(beside(&batches[3], &again), beside(&batches[3], &again));
        assert_eq!(batches[3].load().reused_tokens - before >= 64, keeps, "{model}");
        let loads = batches.each_ref().map(Batch::load);
        eprintln!("{model}: {loads:?}");
        assert!(loads.iter().any(|load| load.rows > load.steps), "{model}: steps are shared");
    }
}
