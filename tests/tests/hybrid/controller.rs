//! What the controller makes of recorded costs: on every kind of question about what the best fixed length makes, on a
//! mixture of them more than any, and where nothing pays what decoding alone makes.
//!
//! Drafting, acceptance and choices are those of the trained checkpoints; seconds are passes by a table of a full-size shape, so
//! that every run on every machine gives the same numbers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use dlx_runtime::decode::ForwardKind;
use dlx_runtime::decode::hybrid::Side;
use dlx_runtime::session::{CostTable, Drafting, Event, Length, Prompt, Request, Session, Speculate, Verdict};
use dlx_runtime::text::Message;

use super::{DRAFTERS, VERIFIER, load, path, session, wanted};

/// Lengths that the controller is compared with.
const FIXED: [usize; 5] = [1, 2, 4, 8, 16];

/// Seconds of a step with its head by rows: a 1.7 B shape in int4 on two cores of a Zen 4, and of this share of it.
fn full_size(share: f64) -> CostTable {
    let rows = [(1, 0.031), (4, 0.038), (8, 0.0504), (16, 0.088), (32, 0.170), (64, 0.346)];
    let of = |share: f64| rows.iter().map(|(rows, seconds)| (*rows, seconds * share)).collect();
    CostTable { draft: of(share), verify: of(1.0) }
}

/// The tiny checkpoints themselves, whose rows each cost what the first one does.
fn tiny() -> CostTable {
    let rows: BTreeMap<usize, f64> = (1..=256).map(|rows| (rows, 57e-6 + 53e-6 * (rows - 1) as f64)).collect();
    CostTable { draft: rows.clone(), verify: rows }
}

/// Questions by their kind.
fn questions() -> Vec<(String, Request)> {
    let text = std::fs::read_to_string(path("../data/questions.jsonl")).unwrap();
    let request = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let messages = vec![Message::new("user", line["prompt"].as_str().unwrap())];
        let prompt = Prompt::Chat { messages, variables: serde_json::Map::new() };
        (line["task"].as_str().unwrap().to_owned(), Request::new(prompt, 96))
    };
    text.lines().map(request).collect()
}

/// Tokens per second of a fresh session over these requests, by the table.
fn speed(hybrid: &mut Session, costs: &CostTable, drafting: Drafting, length: Length, requests: &[&Request]) -> f64 {
    hybrid.set_costs(Some(costs.clone()));
    let (mut tokens, mut seconds) = (0, 0.0);
    for &request in requests {
        let speculate = Some(Speculate { drafting, length, verdict: Verdict::Verifier });
        let made = hybrid.generate(&Request { speculate, ..request.clone() }, &mut |event| {
            if let Event::Forward(forward) = event {
                seconds += match forward.kind {
                    ForwardKind::Draft => costs.seconds(Side::Draft, forward.q_len),
                    ForwardKind::Verify => costs.seconds(Side::Verify, forward.q_len),
                    // The prompt.
                    _ => 0.0,
                };
            }
            ControlFlow::Continue(())
        });
        tokens += made.unwrap().speculation.unwrap().counts.tokens;
    }
    f64::from(u32::try_from(tokens).unwrap()) / seconds
}

/// Speeds against decoding alone: of the best fixed length, and of the controller.
fn compare(hybrid: &mut Session, costs: &CostTable, requests: &[&Request], what: &str) -> (f64, f64) {
    let plain = 1.0 / costs.seconds(Side::Verify, 1);
    let mut speed = |drafting, length| speed(hybrid, costs, drafting, length, requests) / plain;
    let fixed = FIXED.map(|k| speed(Drafting::Deer, Length::Fixed(k)));
    let auto = speed(Drafting::Deer, Length::Auto);
    let best = fixed.iter().copied().fold(1.0, f64::max);
    println!("{what:40} fixed {fixed:.2?} auto {auto:.2}, {:.2} of the best", auto / best);
    (auto, best)
}

#[test]
fn the_controller_is_as_good_as_the_best_length_and_better_on_a_mixture() {
    let questions = questions();
    let mut kinds: BTreeMap<&str, Vec<&Request>> = BTreeMap::new();
    for (kind, request) in &questions {
        kinds.entry(kind).or_default().push(request);
    }
    // Neighbors in the file are of one kind.
    let mixture: Vec<&Request> = (0..questions.len()).map(|i| &questions[i * 37 % questions.len()].1).collect();
    let all = wanted("DLX_HYBRID_TASKS", 0) > 0;
    let (mut judged, mut good, mut slower) = (0, 0, 0);
    for drafter in DRAFTERS.iter().take(if all { DRAFTERS.len() } else { 1 }) {
        let mut hybrid = session(VERIFIER, "cpu", 0);
        hybrid.draft_with(load(drafter, "cpu", 0)).unwrap();
        for (name, costs) in [("a third", full_size(0.35)), ("as large", full_size(1.0)), ("tiny", tiny())] {
            let mut judge = |kind: &str, requests: &[&Request]| {
                let (auto, best) = compare(&mut hybrid, &costs, requests, &format!("{drafter}, {name}, {kind}"));
                // A fresh session that is asked for a few short answers alone pays its first drafts out of little.
                let least = if all && kind != "mixture" { 0.85 } else { 0.95 };
                assert!(auto >= least, "{kind} is slower than without drafts: {auto}");
                (auto / best, auto < 0.95)
            };
            if all || name == "a third" {
                let (share, _) = judge("mixture", &mixture);
                assert!(
                    share >= if all { 0.98 } else { 1.0 },
                    "{drafter} {name}: a fixed length is better on a mixture"
                );
            }
            for (kind, requests) in kinds.iter().filter(|(kind, _)| all || ["facts", "small_talk"].contains(kind)) {
                let (share, is_slower) = judge(kind, requests);
                assert!(share >= 0.85, "{drafter} {name} {kind}: {share}");
                (judged, good) = (judged + 1, good + usize::from(share >= 0.97));
                slower += usize::from(is_slower);
            }
        }
    }
    println!("{good} of {judged} kinds have 0.97 of the best fixed length, {slower} less than 0.95 of no drafts");
    assert!(100 * good >= 85 * judged && 10 * slower <= judged, "{good} and {slower} of {judged}");
}
