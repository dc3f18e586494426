//! Sessions on the mock executor.

use proptest::prelude::*;

use std::sync::atomic::Ordering;

use super::*;
use crate::decode::mock::Mock;
use crate::decode::{ForwardKind, PolicyError};
use crate::text::tokenizer::tests::{bytes_tokenizer, bytes_tokenizer_json};

const STOP: i32 = 256;
const MASK: i32 = 257;

/// A session whose model says `answer` (a NUL is the stop token) after a prompt of `prompt` tokens.
fn session(prompt: usize, answer: &[u8]) -> Session {
    let mut mock = Mock::new(64, 258, &[8]);
    for (at, &byte) in answer.iter().enumerate() {
        mock.say(prompt + at, if byte == 0 { STOP } else { i32::from(byte) });
    }
    let policy = DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::greedy(MASK, 4) };
    Session::with_executor(Box::new(mock), bytes_tokenizer(&["<stop>", "<mask>"]), None, policy).unwrap()
}

fn run(session: &mut Session, request: &Request) -> (Report, Vec<String>) {
    let mut pieces = Vec::new();
    let report = session.generate(request, &mut |event| {
        if let Event::Text(piece) = event {
            pieces.push(piece.to_owned());
        }
        ControlFlow::Continue(())
    });
    (report.unwrap(), pieces)
}

fn text(prompt: &str, max_new: usize) -> Request {
    Request::new(Prompt::Text(prompt.to_owned()), max_new)
}

#[test]
fn streams_settled_text_block_by_block() {
    let (report, pieces) = run(&mut session(2, b"hello world\0after"), &text("ab", 40));
    assert_eq!(report.text, "hello world");
    assert_eq!(report.ids, b"hello world".map(i32::from));
    assert_eq!(pieces, ["he", "llo ", "worl", "d"]);
    assert_eq!(report.finish, FinishReason::StopId);
    assert_eq!(report.prompt_tokens, 2);
    assert_eq!((report.passes.prefill, report.passes.denoise, report.passes.commit), (0, 14, 4));
    assert!((report.tokens_per_forward() - 11.0 / 18.0).abs() < 1e-9);
}

#[test]
fn whole_blocks_are_decoded_and_cut_to_max_new() {
    let (report, _) = run(&mut session(2, b"hello world"), &text("ab", 4));
    assert_eq!((report.text.as_str(), report.finish), ("hell", FinishReason::MaxTokens));
    assert_eq!(report.ids.len(), 4);
    let (report, _) = run(&mut session(2, b"hell\0"), &text("ab", 4));
    assert_eq!((report.text.as_str(), report.finish), ("hell", FinishReason::MaxTokens));
}

#[test]
fn a_stop_string_ends_the_text_across_blocks() {
    let mut request = text("ab", 40);
    request.overrides.stop_strings = Some(vec!["o w".into(), "zzz".into()]);
    let (report, pieces) = run(&mut session(2, b"hello world"), &request);
    assert_eq!((report.text.as_str(), report.finish), ("hell", FinishReason::StopString));
    assert_eq!(pieces, ["he", "ll"]);
    assert_eq!(report.ids, b"hello w".map(i32::from));
    assert_eq!(report.passes.commit, 2, "the block that completes it is not committed");
}

#[test]
fn a_beginning_of_a_stop_string_comes_out_at_the_end() {
    let mut request = text("ab", 6);
    request.overrides.stop_strings = Some(vec!["o world".into()]);
    let (report, pieces) = run(&mut session(2, b"hello world"), &request);
    assert_eq!((report.text.as_str(), report.finish), ("hello ", FinishReason::MaxTokens));
    assert_eq!(pieces, ["he", "ll", "o "]);
}

#[test]
fn text_that_ends_inside_a_character_is_replaced_at_the_end_only() {
    let (report, pieces) = run(&mut session(2, "a€b".as_bytes()), &text("ab", 3));
    assert_eq!(report.text, "a\u{FFFD}");
    assert_eq!(pieces, ["a", "\u{FFFD}"]);
}

#[test]
fn canvases_show_every_denoising_step() {
    let mut snapshots = Vec::new();
    let report = session(3, b"x").generate(&text("abc", 1), &mut |event| {
        match event {
            Event::Canvas { ids, masked, block, .. } => snapshots.push((ids.to_vec(), masked.to_vec(), block)),
            Event::Committed { block } => assert_eq!(block, 0..4),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert_eq!(report.unwrap().text, "x");
    assert_eq!(snapshots, [(vec![97, 98, 99, 120], vec![], 0..4)]);
}

#[test]
fn the_trace_has_every_forward_pass() {
    let mut kinds = Vec::new();
    let request = Request::new(Prompt::Ids(vec![65; 5]), 3);
    let trace = &mut |event: Event<'_>| {
        if let Event::Forward(forward) = event {
            kinds.push((forward.kind, forward.q_start, forward.q_len, forward.past_len));
            assert_eq!(forward.ids.len(), 8);
        }
        ControlFlow::Continue(())
    };
    session(5, b"xyz").generate(&request, trace).unwrap();
    let block = (ForwardKind::Block, 4, 4, 4);
    assert_eq!(kinds, [(ForwardKind::Prefill, 0, 4, 0), block, block, block, (ForwardKind::Commit, 4, 4, 4)]);
}

#[test]
fn cancel_and_deadline_keep_what_was_settled() {
    let cancel = Arc::new(AtomicBool::new(false));
    let request = Request { cancel: Some(Arc::clone(&cancel)), ..text("ab", 40) };
    let report = session(2, b"hello world").generate(&request, &mut |event| {
        if matches!(event, Event::Text("llo ")) {
            cancel.store(true, Ordering::Relaxed);
        }
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert_eq!((report.text.as_str(), report.finish), ("hello ", FinishReason::Cancelled));

    let request = Request { deadline: Some(Instant::now()), ..text("ab", 40) };
    let (report, _) = run(&mut session(2, b"hello"), &request);
    assert_eq!((report.text.as_str(), report.finish), ("", FinishReason::Deadline));
    assert_eq!(report.passes.forward(), 0);
    assert_eq!(report.tokens_per_forward(), 0.0);

    let report = session(2, b"hello").generate(&text("ab", 40), &mut |event| match event {
        Event::Text(_) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(report.unwrap().finish, FinishReason::Cancelled);
}

#[test]
fn masks_in_the_prompt_are_filled_in_and_the_answer_begins_there() {
    let mut mock = Mock::new(64, 258, &[32]);
    mock.say(1, i32::from(b'x'));
    mock.say(5, STOP);
    let policy = DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::llada(MASK) };
    let tokenizer = bytes_tokenizer(&["<stop>", "<mask>"]);
    let mut session = Session::with_executor(Box::new(mock), tokenizer, None, policy).unwrap();
    let (report, pieces) = run(&mut session, &text("a<mask>b<stop>d<mask>f", 0));
    assert_eq!(
        (report.text.as_str(), report.finish),
        ("xbd", FinishReason::StopId),
        "a given stop token stops nothing"
    );
    assert_eq!(pieces.concat(), "xbd");
}

#[test]
fn the_end_of_the_caches_is_a_reason_of_its_own() {
    let (report, _) = run(&mut session(2, b""), &text("ab", 4000));
    assert_eq!((report.finish, report.ids.len()), (FinishReason::ContextFull, 62));
}

#[test]
fn unusable_requests_are_typed_errors() {
    let mut session = session(2, b"hello");
    let mut fails = |request: Request| session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(fails(text("", 4)), SessionError::Decode(DecodeError::EmptyPrompt)));
    assert!(matches!(fails(text("ab", 0)), SessionError::Decode(DecodeError::ZeroMaxNew)));
    let mut request = text("ab", 4);
    request.overrides.block = Some(16);
    assert!(matches!(fails(request), SessionError::Decode(DecodeError::Policy(PolicyError::FixedBlock { block: 4 }))));
    assert!(matches!(
        fails(text(&"x".repeat(64), 1)),
        SessionError::Decode(DecodeError::PromptTooLong { prompt: 64, max_seq: 64, longest: 63 })
    ));
    let chat = Prompt::Chat { messages: vec![Message::new("user", "hi")], variables: serde_json::Map::new() };
    assert!(matches!(fails(Request::new(chat, 4)), SessionError::NoTemplate));
    let mut request = text("ab", 4);
    request.overrides.stop_strings = Some(vec![String::new()]);
    assert!(matches!(fails(request), SessionError::EmptyStopString));
    let mut request = text("ab", 4);
    request.overrides.steps = Some(0);
    assert!(matches!(fails(request), SessionError::Decode(DecodeError::Policy(PolicyError::Range { .. }))));
}

#[test]
fn a_policy_that_the_model_cannot_run_fails_at_once() {
    let mock = Box::new(Mock::new(64, 258, &[8]));
    let session = Session::with_executor(mock, bytes_tokenizer(&[]), None, DecodePolicy::greedy(MASK, 32));
    assert!(matches!(session.err(), Some(SessionError::Decode(DecodeError::Policy(PolicyError::Block { .. })))));
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let mut request = text("ab", 20);
    request.overrides = Overrides { temperature: Some(1.0), seed: Some(1), ..Overrides::default() };
    let (first, _) = run(&mut session(2, b""), &request);
    let (second, _) = run(&mut session(2, b""), &request);
    assert_eq!(first.ids, second.ids);
    request.overrides.seed = Some(2);
    assert_ne!(run(&mut session(2, b""), &request).0.ids, first.ids);
}

proptest! {
    #[test]
    fn pieces_add_up_to_the_report(
        answer in proptest::collection::vec(0u8..255, 0..30),
        max_new in 1usize..40,
        stop in proptest::option::of("[a-e]{1,2}"),
    ) {
        let mut request = text("ab", max_new);
        request.overrides.stop_strings = Some(stop.into_iter().collect());
        let (report, pieces) = run(&mut session(2, &answer), &request);
        prop_assert_eq!(pieces.concat(), report.text);
        prop_assert!(report.ids.len() <= max_new);
        prop_assert!(!report.ids.contains(&STOP) && !report.ids.contains(&MASK));
    }
}

/// Report, and the tokens that were told before each piece of the text; the last entry is what no piece held.
fn telling(session: &mut Session, request: &Request) -> (Report, Vec<(Vec<i32>, String)>) {
    let mut pieces = vec![(Vec::new(), String::new())];
    let report = session.generate(request, &mut |event| {
        let last = pieces.last_mut().unwrap();
        match event {
            Event::Logprobs(told) => last.0.extend(told.iter().map(|told| told.token)),
            Event::Text(piece) => {
                last.1 += piece;
                pieces.push((Vec::new(), String::new()));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (report.unwrap(), pieces)
}

#[test]
fn probabilities_come_with_the_text_of_their_tokens() {
    let bytes = |text: &str| text.bytes().map(i32::from).collect::<Vec<_>>();
    let mut request = Request { logprobs: Some(2), ..text("ab", 9) };
    let (report, pieces) = telling(&mut session(2, "a€bcdefghij".as_bytes()), &request);
    let told = report.logprobs.unwrap();
    assert_eq!(told.iter().map(|told| told.token).collect::<Vec<_>>(), report.ids);
    assert_eq!(told.iter().map(|told| told.offset).collect::<Vec<_>>(), [0, 1, 1, 1, 2, 3, 4, 5, 6]);
    for told in &told {
        // The mock is all but certain.
        assert!(told.logprob.unwrap() > -1e-3 && told.logprob.unwrap() <= 0.0);
        assert_eq!((told.top[0], told.top.len()), ((told.token, told.logprob.unwrap()), 2));
    }
    let piece = |text: &str| (bytes(text), text.to_owned());
    assert_eq!(pieces[..3], [piece("a"), piece("€bc"), piece("def")]);
    assert!(telling(&mut session(2, b"hello"), &text("ab", 9)).1.iter().all(|(told, _)| told.is_empty()));

    // A text that may stop is held back with its tokens; what was cut off is told in the end.
    request.overrides.stop_strings = Some(vec!["o w".into()]);
    let (report, pieces) = telling(&mut session(2, b"hello world"), &request);
    assert_eq!((report.text.as_str(), report.logprobs.unwrap().len()), ("hell", 7));
    assert_eq!(pieces, [piece("he"), piece("ll"), (bytes("o w"), String::new())]);
}

#[test]
fn tokens_that_the_prompt_gave_have_no_probability() {
    let mut mock = Mock::new(64, 258, &[32]);
    mock.say(1, i32::from(b'x'));
    let tokenizer = bytes_tokenizer(&["<stop>", "<mask>"]);
    let mut session = Session::with_executor(Box::new(mock), tokenizer, None, DecodePolicy::llada(MASK)).unwrap();
    let request = Request { logprobs: Some(0), ..text("a<mask>bc<mask>d", 0) };
    let told = telling(&mut session, &request).0.logprobs.unwrap();
    assert_eq!(told.iter().map(|told| told.logprob.is_some()).collect::<Vec<_>>(), [true, false, false, true, false]);
}

#[test]
fn nothing_ends_an_answer_before_its_least_length() {
    let ask = |least: usize| {
        let mut request = text("ab", 12);
        request.overrides.min_tokens = Some(least);
        request.overrides.stop_strings = Some(vec!["l".into()]);
        let (report, _) = run(&mut session(2, b"hello\0world"), &request);
        (report.text, report.finish)
    };
    assert_eq!(ask(0), ("he".into(), FinishReason::StopString));
    assert_eq!(ask(3), ("hel".into(), FinishReason::StopString));
    assert_eq!(ask(5), ("hello".into(), FinishReason::StopId));
    let (text, finish) = ask(6);
    assert!(text.starts_with("hello") && text.len() > 5 && text.ends_with("wor"), "{text:?}");
    assert_eq!(finish, FinishReason::StopString);
}

fn chatting(prompt: usize, answer: &[u8]) -> Session {
    let source = "<stop>{{ messages[-1].content }}<stop>";
    let template = ChatTemplate::new(source, std::collections::BTreeMap::new()).unwrap();
    let mut session = session(prompt, answer);
    session.text.template = Some(template);
    session
}

fn chat(content: &str) -> Request {
    let messages = vec![Message::new("user", content)];
    Request::new(Prompt::Chat { messages, variables: serde_json::Map::new() }, 8)
}

#[test]
fn a_mask_in_a_message_is_text_unless_asked_for() {
    let mut chatting = chatting(10, b"yes\0");
    let mut request = chat("a<mask>b");
    let (report, _) = run(&mut chatting, &request);
    assert_eq!((report.text.as_str(), report.prompt_tokens), ("yes", 10));
    request.allow_special = true;
    assert_eq!(chatting.encode(&request).unwrap(), [STOP, 97, MASK, 98, STOP]);
    let source = "{{ messages[-1].content }}<mask>";
    chatting.text.template = Some(ChatTemplate::new(source, std::collections::BTreeMap::new()).unwrap());
    assert!(matches!(chatting.encode(&chat("a")), Err(SessionError::MaskInChat)));
    assert!(SessionError::MaskInChat.is_about_prompt());
}

#[test]
fn a_stop_string_that_is_a_special_token_stops_at_it() {
    let mut mock = Mock::new(64, 259, &[8]);
    for (at, id) in [104, 105, 258, 106, STOP].into_iter().enumerate() {
        mock.say(2 + at, id);
    }
    let policy = DecodePolicy { stop_ids: vec![STOP], suppress_ids: vec![65], ..DecodePolicy::greedy(MASK, 4) };
    let tokenizer = bytes_tokenizer(&["<stop>", "<mask>", "<turn>"]);
    let mut session = Session::with_executor(Box::new(mock), tokenizer, None, policy).unwrap();
    let mut request = text("ab", 20);
    assert_eq!(run(&mut session, &request).0.text, "hij");
    request.overrides.stop_strings = Some(vec!["<turn>".into()]);
    let (report, pieces) = run(&mut session, &request);
    assert_eq!((report.text.as_str(), report.finish, pieces.concat().as_str()), ("hi", FinishReason::StopId, "hi"));
    request.overrides.stop_ids = Some(Vec::new());
    assert_eq!(run(&mut session, &request).0.text, "hi");
    let mut fails = |stop: &str| {
        request.overrides.stop_strings = Some(vec![stop.into()]);
        session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    assert!(matches!(fails("<turn>\n"), SessionError::StopAroundToken { token, .. } if token == "<turn>"));
    assert!(matches!(fails("<mask>"), SessionError::StopNeverComes { .. }));
}

#[test]
fn what_the_tokenizer_puts_before_texts_comes_first() {
    let template = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<mask>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [258], "tokens": ["<bos>"]},
                           "<mask>": {"id": "<mask>", "ids": [257], "tokens": ["<mask>"]}},
    });
    let json = bytes_tokenizer_json(&["<stop>", "<mask>", "<bos>"])
        .replace(r#""post_processor":null"#, &format!(r#""post_processor":{template}"#));
    let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
    assert_eq!(tokenizer.prefix(), [258]);
    let chat_template = ChatTemplate::new("{{ messages[0].content }}", std::collections::BTreeMap::new()).unwrap();
    let policy = DecodePolicy::greedy(MASK, 4);
    let mut session =
        Session::with_executor(Box::new(Mock::new(64, 259, &[8])), tokenizer, Some(chat_template), policy).unwrap();
    let (report, _) = run(&mut session, &text("ab", 4));
    assert_eq!((report.prefix, report.prompt_tokens), (vec![258], 3));
    let request = Request { no_prefix: true, ..text("ab", 4) };
    let (report, _) = run(&mut session, &request);
    assert_eq!((report.prefix, report.prompt_tokens), (vec![], 2));
    assert_eq!(session.encode(&text("<bos>ab", 4)).unwrap(), [258, 97, 98], "not twice");
    assert_eq!(session.encode(&chat("ab")).unwrap(), [97, 98], "a conversation is complete");
    assert_eq!(session.encode(&Request::new(Prompt::Ids(vec![97]), 4)).unwrap(), [97]);
}

/// A session with two measured settings: three passes per block and one.
fn tuned() -> Session {
    let interval = |mean: f64| crate::policies::Interval { mean, low: mean, high: mean };
    let point = |steps, agreement, seconds: f64| crate::policies::Point {
        settings: crate::policies::Settings {
            reveal: crate::decode::Reveal::new("static"),
            steps,
            block: 4,
            cache: crate::decode::policy::CacheMode::CommitBlock,
            draft: None,
        },
        agreement: interval(agreement),
        seconds: interval(seconds),
        passes: interval(seconds),
        cost: crate::policies::Cost { prompt_token: 0.0, pass: 0.1, answer: seconds, position: 1.0, rows: 8.0 },
    };
    let policies = Policies {
        version: crate::policies::VERSION,
        reference: crate::policies::Reference::Careful,
        prompts: 8,
        device: "mock".into(),
        probe: 1e-9,
        points: vec![point(1, 0.5, 1.0), point(4, 1.0, 3.0)],
    };
    let mut session = session(2, b"hello world\0");
    session.set_policies(Some(policies)).unwrap();
    session
}

#[test]
fn an_aim_picks_what_was_measured() {
    let aiming = |aim| Request { aim: Some(aim), ..text("ab", 40) };
    let (fast, _) = run(&mut tuned(), &aiming(Aim::Fast));
    let (best, _) = run(&mut tuned(), &aiming(Aim::Best));
    assert_eq!((fast.passes.denoise, best.passes.denoise), (4, 14), "one pass per block, one per token");
    assert_eq!(fast.chosen.unwrap().point, 0);
    assert!(run(&mut tuned(), &text("ab", 40)).0.chosen.is_none());
    // The probe of the recording was so short that this machine seems slow beyond any deadline, and the call ends at once.
    let late = aiming(Aim::Within(Duration::from_millis(5)));
    let (late, _) = run(&mut tuned(), &late);
    assert_eq!((late.finish, late.chosen.unwrap().fits), (FinishReason::Deadline, false));
}

#[test]
fn aims_that_cannot_be_had_are_refused() {
    let aiming = |aim| Request { aim: Some(aim), ..text("ab", 40) };
    let says = |session: &mut Session, request: &Request, what: &str| {
        let error = session.generate(request, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    says(&mut session(2, b"hello"), &aiming(Aim::Fast), "run `dlxc tune`");
    let mut fixed = aiming(Aim::Fast);
    fixed.overrides.steps = Some(2);
    says(&mut tuned(), &fixed, "`steps`");
    let mut policies = tuned().policies().unwrap().clone();
    policies.points[1].settings.block = 8;
    let error = tuned().set_policies(Some(policies.clone())).unwrap_err().to_string();
    assert!(error.contains("point 1") && error.contains("blocks of 4"), "{error}");
    policies.points.clear();
    assert!(tuned().set_policies(Some(policies)).is_err());
}

#[test]
fn the_pace_rises_at_once_and_falls_slowly() {
    let mut session = tuned();
    session.pace = Some(1.0);
    let (mut report, _) = run(&mut session, &Request { aim: Some(Aim::Best), ..text("ab", 40) });
    let passes = report.passes.denoise + report.passes.commit;
    report.times.prefill = Duration::ZERO;
    session.pace = Some(1.0);
    report.total = Duration::from_secs_f64(0.3 * passes as f64);
    session.learn(&report);
    assert!((session.pace.unwrap() - 3.0).abs() < 1e-6, "{:?}", session.pace);
    report.total = Duration::from_secs_f64(0.1 * passes as f64);
    session.learn(&report);
    assert!((session.pace.unwrap() - 2.8).abs() < 1e-6, "{:?}", session.pace);
}
