//! At temperature 0 the answer is the verifier's own, token for token, wherever it ends.

use dlx_runtime::session::{Drafting, Length, Prompt, Request, Session, Speculate, Verdict};
use dlx_runtime::text::Message;
use dlx_runtime::wgpu::adapters;

use super::{DRAFTERS, VERIFIER, answer, load, load_from, path, session, wanted};

/// Requests that end in all kinds of places: at the model's own stop token, in the middle of drafts, at a text that crosses
/// tokens, at a token that is none of the model's ends, after one token.
fn requests(count: usize) -> Vec<Request> {
    let text = std::fs::read_to_string(path("../data/questions.jsonl")).unwrap();
    let questions = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let questions: Vec<String> = questions.map(|q| q["prompt"].as_str().unwrap().to_owned()).collect();
    // Neighbors in the file are of one kind.
    let ask = |i: usize| {
        let question = &questions[i * 37 % questions.len()];
        // More questions than there are: the same ones with something before them.
        let system = (i >= questions.len()).then(|| Message::new("system", &format!("Answer number {i}.")));
        let messages = system.into_iter().chain([Message::new("user", question)]).collect();
        let limit = [96, 1, 2, 7, 33, 96, 96][i % 7];
        let mut request = Request::new(Prompt::Chat { messages, variables: serde_json::Map::new() }, limit);
        let stops: &[&str] = [&[][..], &["e "], &["fox"], &["."], &["1", "the river"]][i % 5];
        request.overrides.stop_strings = Some(stops.iter().map(|stop| (*stop).to_owned()).collect());
        if i % 11 == 3 {
            request.overrides.stop_ids = Some(vec![]);
        }
        if i % 13 == 5 {
            // A frequent letter as a stop token.
            request.overrides.stop_ids = Some(vec![i32::from(b'e') - 33, 300, 260]);
        }
        request
    };
    (0..count).map(ask).collect()
}

/// Compares every answer with the one of decoding alone; returns tokens per round.
fn compare(alone: &mut Session, hybrid: &mut Session, speculate: Speculate, requests: &[Request], what: &str) -> f64 {
    let (mut tokens, mut rounds) = (0, 0);
    for (i, request) in requests.iter().enumerate() {
        let plain = answer(alone, request);
        let drafted = answer(hybrid, &Request { speculate: Some(speculate), ..request.clone() });
        assert_eq!(
            (&drafted.ids, &drafted.text, drafted.finish),
            (&plain.ids, &plain.text, plain.finish),
            "{what}, {speculate:?}, request {i}"
        );
        let counts = drafted.speculation.unwrap().counts;
        (tokens, rounds) = (tokens + counts.tokens, rounds + counts.rounds);
    }
    f64::from(u32::try_from(tokens).unwrap()) / f64::from(u32::try_from(rounds.max(1)).unwrap())
}

fn fixed(drafting: Drafting, k: usize) -> Speculate {
    Speculate { drafting, length: Length::Fixed(k), verdict: Verdict::Verifier }
}

#[test]
fn every_family_drafts_and_the_text_stays_the_verifiers() {
    let requests = requests(wanted("DLX_HYBRID_PROMPTS", 14));
    let mut alone = session(VERIFIER, "cpu", 1);
    for drafter in DRAFTERS {
        // The text does not depend on the number of threads.
        let mut hybrid = session(VERIFIER, "cpu", 2);
        hybrid.draft_with(load(drafter, "cpu", 2)).unwrap();
        for speculate in [
            fixed(Drafting::Deer, 3),
            fixed(Drafting::Deer, 8),
            fixed(Drafting::SpecDiff, 8),
            Speculate::new(Drafting::Deer),
        ] {
            let per_round = compare(&mut alone, &mut hybrid, speculate, &requests, drafter);
            println!("{drafter} {speculate:?}: {per_round:.2} tokens per round");
            // A drafter that is in step with the text is right most of the time, though many of these answers end early; one
            // that is off by one never is.
            let least = if speculate.length == Length::Auto { 1.0 } else { 1.3 };
            assert!(per_round >= least, "{drafter} {speculate:?}: {per_round}");
        }
    }
}

#[test]
fn fast_dllm_v2_verifies_itself_in_its_causal_mode() {
    let requests = requests(wanted("DLX_HYBRID_PROMPTS", 14));
    // The same weights as an autoregressive model are its causal mode.
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path("fast-dllm-v2-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    std::fs::copy(path(VERIFIER).join("config.json"), dir.path().join("config.json")).unwrap();
    let mut causal = Session::new(load_from(dir.path(), "cpu", 1)).unwrap();
    let mut itself = session("fast-dllm-v2-tiny", "cpu", 2);
    // What masks is no token to it.
    let mask = itself.policy().mask_id;
    let banned = requests.iter().cloned().map(|mut request| {
        request.overrides.suppress_ids = Some(vec![mask]);
        request
    });
    let banned: Vec<_> = banned.collect();
    for k in [3, 8] {
        let per_round = compare(&mut causal, &mut itself, fixed(Drafting::Itself, k), &banned, "self");
        println!("self, drafts of {k}: {per_round:.2} tokens per round");
        assert!(per_round >= 1.8, "{per_round}");
    }
}

#[test]
fn a_conversation_keeps_the_caches_of_both_sides() {
    let mut alone = session(VERIFIER, "cpu", 1);
    let mut hybrid = session(VERIFIER, "cpu", 1);
    hybrid.draft_with(load("sdar-tiny", "cpu", 1)).unwrap();
    let mut messages = Vec::new();
    for question in ["What is the capital of France?", "What is 27 + 45?", "Tell me a story about a fox and a river."] {
        messages.push(Message::new("user", question));
        let prompt = Prompt::Chat { messages: messages.clone(), variables: serde_json::Map::new() };
        let plain = Request { keep: true, ..Request::new(prompt, 48) };
        let wanted = answer(&mut alone, &plain);
        let drafted = answer(&mut hybrid, &Request { speculate: Some(fixed(Drafting::Deer, 4)), ..plain });
        assert_eq!((&drafted.ids, drafted.held_tokens), (&wanted.ids, wanted.held_tokens));
        messages.push(Message::new("assistant", &wanted.text));
    }
}

#[test]
fn graphics_devices_verify_too() {
    if adapters().is_empty() {
        assert!(std::env::var_os("DLX_REQUIRE_WGPU").is_none(), "no wgpu adapter, although DLX_REQUIRE_WGPU is set");
        eprintln!("skipped: no wgpu adapter");
        return;
    }
    let requests = requests(wanted("DLX_HYBRID_PROMPTS_WGPU", 4));
    let mut alone = session(VERIFIER, "wgpu", 1);
    let mut hybrid = session(VERIFIER, "wgpu", 1);
    hybrid.draft_with(load("sdar-tiny", "wgpu", 1)).unwrap();
    compare(&mut alone, &mut hybrid, fixed(Drafting::Deer, 4), &requests, "wgpu");
    let mut itself = session("fast-dllm-v2-tiny", "wgpu", 1);
    let mut on_cpu = session("fast-dllm-v2-tiny", "cpu", 1);
    for request in &requests {
        let request = Request { speculate: Some(fixed(Drafting::Itself, 4)), ..request.clone() };
        assert_eq!(answer(&mut itself, &request).ids, answer(&mut on_cpu, &request).ids);
    }
}
