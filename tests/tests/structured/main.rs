//! Answers of the trained tiny models to random schemas, beside an independent validator.
//!
//! `DLX_SCHEMAS` says how many schemas each model gets.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test program")]

mod schemas;

use std::ops::ControlFlow;
use std::path::Path;

use dlx_runtime::LoadOptions;
use dlx_runtime::constrain::{ConstraintError, Grammar};
use dlx_runtime::decode::{DecodeError, FinishReason, Overrides};
use dlx_runtime::session::{Prompt, Report, Request, Session, SessionError};
use dlx_runtime::text::Message;
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::Value;

use schemas::Schemas;

fn load(model: &str) -> Session {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model);
    let options = CompileOptions { max_seq: Some(320), ..CompileOptions::default() };
    Session::new(compiled::load(&path, &options, &LoadOptions::default()).unwrap()).unwrap()
}

fn answer(
    session: &mut Session,
    grammar: &Grammar,
    max_new: usize,
    overrides: Overrides,
) -> Result<Report, SessionError> {
    let message = Message::new("user", "Tell me a story about a fox and a river.");
    let prompt = Prompt::Chat { messages: vec![message], variables: serde_json::Map::new() };
    let constraint = Some(session.constraint(grammar)?);
    let request = Request { constraint, overrides, ..Request::new(prompt, max_new) };
    session.generate(&request, &mut |_| ControlFlow::Continue(()))
}

fn schemas_per_model() -> u64 {
    std::env::var("DLX_SCHEMAS").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

fn every_answer_is_valid(model: &str) {
    let mut session = load(model);
    let (mut valid, mut short, mut large) = (0, 0, 0);
    for seed in 0..schemas_per_model() {
        let mut schemas = Schemas::new(seed);
        let schema = schemas.whole();
        let overrides = Overrides {
            temperature: [None, Some(0.7), Some(1.5)][seed as usize % 3],
            top_p: (seed % 5 == 0).then_some(0.8),
            seed: Some(seed),
            ..Overrides::default()
        };
        let max_new = 60 + schemas.below(120);
        match answer(&mut session, &Grammar::Schema(schema.clone()), max_new, overrides) {
            Ok(report) => {
                let told = || format!("{model} {seed}: {schema}\n{:?}: {}", report.finish, report.text);
                assert!(matches!(report.finish, FinishReason::StopId | FinishReason::Complete), "{}", told());
                let value: Value = serde_json::from_str(&report.text).unwrap_or_else(|e| panic!("{e}: {}", told()));
                let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
                if let Err(error) = validator.validate(&value) {
                    panic!("{error}: {}", told());
                }
                valid += 1;
            }
            Err(SessionError::Decode(DecodeError::NoRoom { .. })) => short += 1,
            Err(SessionError::Constraint(ConstraintError::TooLarge(_))) => large += 1,
            Err(error) => panic!("{model} {seed}: {error}: {schema}"),
        }
    }
    println!("{model}: {valid} valid, {short} need more room, {large} too large");
    assert!(valid * 10 >= schemas_per_model() * 9, "{model}: too few are answered");
}

#[test]
fn answers_of_sdar_are_valid() {
    every_answer_is_valid("sdar-tiny");
}

#[test]
fn answers_of_fast_dllm_v2_are_valid() {
    every_answer_is_valid("fast-dllm-v2-tiny");
}

#[test]
fn answers_of_llada_are_valid() {
    every_answer_is_valid("llada-tiny");
}

#[test]
fn answers_of_dream_are_valid() {
    every_answer_is_valid("dream-tiny");
}

#[test]
fn answers_of_qwen2_are_valid() {
    every_answer_is_valid("qwen2-tiny");
}

#[test]
fn a_constraint_that_changes_nothing_leaves_the_answer_as_it_is() {
    let mut session = load("sdar-tiny");
    let any = Grammar::Regex("(?s).*".into());
    let free = answer(&mut session, &any, 64, Overrides::default()).unwrap();
    let message = Message::new("user", "Tell me a story about a fox and a river.");
    let request = Request::new(Prompt::Chat { messages: vec![message], variables: serde_json::Map::new() }, 64);
    let own = session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((free.text, free.finish), (own.text, own.finish));
}

#[test]
fn constraints_are_those_of_the_model_and_are_not_drafted() {
    let (mut session, other) = (load("sdar-tiny"), load("sdar-tiny"));
    let grammar = Grammar::Regex("a".into());
    let constraint = other.constraint(&grammar).unwrap();
    let request = Request { constraint: Some(constraint), ..Request::new(Prompt::Text("a".into()), 8) };
    let run = |session: &mut Session, request: &Request| session.generate(request, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(run(&mut session, &request), Err(SessionError::OtherVocabulary)));
    let own = session.constraint(&grammar).unwrap();
    assert!(std::sync::Arc::ptr_eq(&own, &session.constraint(&grammar).unwrap()), "it is kept");
    let drafting = dlx_runtime::session::Speculate::new(dlx_runtime::session::Drafting::Itself);
    let drafted = Request { constraint: Some(own), speculate: Some(drafting), ..request };
    assert!(matches!(run(&mut session, &drafted), Err(SessionError::ConstrainedDraft)));
}
