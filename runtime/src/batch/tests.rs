//! Batches on the mock executor: who waits, who is let go, and what an error takes with it.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::*;
use crate::decode::FinishReason;
use crate::decode::mock::Mock;
use crate::session::{Prompt, Session};
use crate::text::tokenizer::tests::bytes_tokenizer;
use dlx_ir::Mask;
use proptest::prelude::*;

const STOP: i32 = 256;
const MASK: i32 = 257;

fn policy() -> DecodePolicy {
    DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::greedy(MASK, 4) }
}

fn batch(mock: Mock, sequences: usize, waiting: usize) -> Batch {
    let capacity = Capacity { sequences, waiting, prefill_rows: 4, step_rows: Some(8), ..Capacity::default() };
    Batch::with_executor(Box::new(mock), bytes_tokenizer(&["<stop>", "<mask>"]), None, policy(), capacity).unwrap()
}

fn mock() -> Mock {
    Mock::new(256, 258, &[8, 16])
}

/// A model whose rows do not depend on what follows their block of four.
fn causal() -> Mock {
    mock().masked(Mask::BlockCausal(4))
}

fn keeping(mock: Mock, sequences: usize, prefix_rows: usize) -> Batch {
    let capacity = Capacity { sequences, prefill_rows: 8, step_rows: Some(8), prefix_rows, ..Capacity::default() };
    Batch::with_executor(Box::new(mock), bytes_tokenizer(&["<stop>", "<mask>"]), None, policy(), capacity).unwrap()
}

/// What a session says of the requests, one after the other.
fn alone(mock: Mock, requests: &[Request]) -> Vec<Report> {
    let tokenizer = bytes_tokenizer(&["<stop>", "<mask>"]);
    let mut session = Session::with_executor(Box::new(mock), tokenizer, None, policy()).unwrap();
    requests.iter().map(|r| session.generate(r, &mut |_| ControlFlow::Continue(())).unwrap()).collect()
}

/// Submits requests while the model stands still, so that it sees all of them at once, and waits for their reports.
fn at_once(batch: &Batch, requests: &[Request]) -> Vec<Report> {
    let (gate, open) = sync_channel::<()>(0);
    let hold = move |_: Update<'_>| {
        let _ = open.recv();
        ControlFlow::Break(())
    };
    batch.submit(&text("ab", 8), Box::new(hold)).unwrap();
    let told: Vec<_> = requests
        .iter()
        .map(|request| {
            let (listener, receive) = listener();
            batch.submit(request, listener).unwrap();
            receive
        })
        .collect();
    drop(gate);
    told.iter().map(|receive| wait(receive).1.unwrap()).collect()
}

fn text(prompt: &str, max_new: usize) -> Request {
    Request::new(Prompt::Text(prompt.to_owned()), max_new)
}

type Ended = Result<Report, SessionError>;

/// A listener that sends the pieces of the text and then what became of the request.
fn listener() -> (Listener, Receiver<Result<String, Ended>>) {
    let (send, receive) = sync_channel(4096);
    let listener = move |update: Update<'_>| {
        let sent = match update {
            Update::Event { event: Event::Text(piece), .. } => send.send(Ok(piece.to_owned())),
            Update::End(result) => send.send(Err(*result)),
            _ => Ok(()),
        };
        if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    (Box::new(listener), receive)
}

/// The pieces and what became of the request.
fn wait(receive: &Receiver<Result<String, Ended>>) -> (String, Ended) {
    let mut text = String::new();
    loop {
        match receive.recv_timeout(Duration::from_secs(60)).expect("the request ends") {
            Ok(piece) => text += &piece,
            Err(ended) => return (text, ended),
        }
    }
}

fn until(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn more_requests_than_slots_are_each_answered_as_alone() {
    let batch = batch(mock(), 3, 64);
    let requests: Vec<Request> = (0..20).map(|i| text(&"abcdefghijklmnopqrstuvwxyz"[i..], 1 + 3 * i)).collect();
    let waits: Vec<_> = requests
        .iter()
        .map(|request| {
            let (listener, receive) = listener();
            batch.submit(request, listener).unwrap();
            receive
        })
        .collect();
    let mut alone =
        Session::with_executor(Box::new(mock()), bytes_tokenizer(&["<stop>", "<mask>"]), None, policy()).unwrap();
    for (request, receive) in requests.iter().zip(&waits) {
        let (streamed, ended) = wait(receive);
        let (ended, alone) = (ended.unwrap(), alone.generate(request, &mut |_| ControlFlow::Continue(())).unwrap());
        assert_eq!((&ended.ids, &ended.text, ended.finish), (&alone.ids, &alone.text, alone.finish));
        assert_eq!(streamed, ended.text);
    }
    until(|| batch.load().slots_taken == 0);
    assert_eq!((batch.load().running, batch.load().waiting, batch.load().slots), (0, 0, 3));
    assert!(batch.load().rows > 2 * batch.load().steps, "steps were shared");
}

#[test]
fn too_many_requests_are_refused_at_once_and_a_place_is_free_again_at_the_end() {
    let batch = batch(mock(), 1, 1);
    let (gate, open) = sync_channel::<()>(0);
    let mut held = Some(open);
    let hold: Listener = Box::new(move |_| {
        // The first update waits until the test has seen what it came for.
        if let Some(open) = held.take() {
            let _ = open.recv();
        }
        ControlFlow::Continue(())
    });
    batch.submit(&text("ab", 8), hold).unwrap();
    let (second, receive) = listener();
    batch.submit(&text("ab", 8), second).unwrap();
    assert!(matches!(batch.submit(&text("ab", 8), listener().0), Err(Refused::Full(2))));
    gate.send(()).unwrap();
    assert_eq!(wait(&receive).1.unwrap().finish, FinishReason::MaxTokens);
    let (third, receive) = listener();
    batch.submit(&text("ab", 8), third).unwrap();
    assert!(wait(&receive).1.is_ok());
}

#[test]
fn requests_that_cannot_be_answered_say_so_and_take_nothing() {
    let batch = batch(mock(), 1, 0);
    let (refused, receive) = listener();
    batch.submit(&text(&"x".repeat(300), 1), refused).unwrap();
    let ended = wait(&receive).1;
    assert!(matches!(ended, Err(SessionError::Decode(DecodeError::PromptTooLong { prompt: 300, .. }))));
    let mut request = text("ab", 1);
    request.overrides.stop_strings = Some(vec![String::new()]);
    let refused = batch.submit(&request, listener().0);
    assert!(matches!(refused, Err(Refused::Request(SessionError::EmptyStopString))));
    let (good, receive) = listener();
    batch.submit(&text("ab", 4), good).unwrap();
    assert!(wait(&receive).1.is_ok(), "both places are free again");
}

#[test]
fn who_is_cancelled_overdue_or_not_listening_leaves_within_a_step() {
    let batch = batch(mock(), 2, 8);
    // Nobody listens to the first: its first event breaks.
    batch.submit(&text("ab", 200), Box::new(|_| ControlFlow::Break(()))).unwrap();
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancel);
    let (mut tell, receive) = listener();
    let request = Request { cancel: Some(cancel), ..text("ab", 200) };
    let cancels = move |update: Update<'_>| {
        if matches!(update, Update::Event { event: Event::Text(_), .. }) {
            flag.store(true, Ordering::Relaxed);
        }
        tell(update)
    };
    batch.submit(&request, Box::new(cancels)).unwrap();
    let ended = wait(&receive).1.unwrap();
    assert_eq!((ended.finish, ended.passes.commit), (FinishReason::Cancelled, 0), "not even the block is committed");
    let (late, receive) = listener();
    batch.submit(&Request { deadline: Some(Instant::now()), ..text("ab", 200) }, late).unwrap();
    let ended = wait(&receive).1.unwrap();
    assert_eq!((ended.finish, ended.passes.forward()), (FinishReason::Deadline, 0));
    until(|| batch.load().slots_taken == 0 && batch.load().waiting == 0);
}

#[test]
fn a_listener_that_panics_takes_nobody_with_it() {
    let batch = batch(mock(), 2, 8);
    let (beside, receive) = listener();
    batch.submit(&text("ab", 100), beside).unwrap();
    let panics: [fn(&Update<'_>) -> bool; 3] = [
        |update| matches!(update, Update::Waiting),
        |update| matches!(update, Update::Event { event: Event::Text(_), .. }),
        |update| matches!(update, Update::End(_)),
    ];
    for panics in panics {
        let (gone, dropped) = sync_channel::<()>(0);
        let listener = move |update: Update<'_>| {
            let _gone = &gone;
            assert!(!panics(&update), "a listener's own fault");
            ControlFlow::Continue(())
        };
        batch.submit(&text("ab", 20), Box::new(listener)).unwrap();
        assert!(dropped.recv_timeout(Duration::from_secs(60)).is_err(), "it is let go");
    }
    assert_eq!(wait(&receive).1.unwrap().finish, FinishReason::MaxTokens);
    until(|| batch.load().slots_taken == 0 && batch.load().waiting == 0);
    assert!(batch.is_alive());
    let (after, receive) = listener();
    batch.submit(&text("ab", 4), after).unwrap();
    assert!(wait(&receive).1.is_ok());
}

#[test]
fn an_error_of_the_device_ends_who_took_part_and_nobody_else() {
    let mut failing = mock();
    failing.fail_after(3);
    let batch = batch(failing, 1, 8);
    let (first, receive) = listener();
    batch.submit(&text("ab", 40), first).unwrap();
    assert!(matches!(wait(&receive).1, Err(SessionError::Decode(DecodeError::Exec(_)))));
    assert!(batch.is_alive());
    until(|| batch.load().slots_taken == 0);
}

#[test]
fn the_handle_may_go_before_the_answers_come() {
    let batch = batch(mock(), 1, 8);
    let (first, receive) = listener();
    batch.submit(&text("ab", 20), first).unwrap();
    drop(batch);
    assert!(wait(&receive).1.is_ok());
}

#[test]
fn what_was_computed_for_one_request_serves_the_next() {
    let batch = keeping(causal(), 2, 64);
    assert_eq!(batch.prefix_cache(), PrefixCache::On { page: 16, rows: 64 });
    let prompt = "a prompt of forty bytes, or of forty-one.";
    let first = text(prompt, 12);
    let own = alone(causal(), std::slice::from_ref(&first)).remove(0);
    // The rest of a turn, whose beginning is what was asked and answered before.
    let ids = [prompt.bytes().map(i32::from).collect(), own.ids.clone(), vec![65; 5]].concat();
    let next = Request::new(Prompt::Ids(ids), 6);
    for (request, held) in [(&first, 0), (&first, 32), (&next, 48)] {
        let (listener, receive) = listener();
        batch.submit(request, listener).unwrap();
        let (report, own) = (wait(&receive).1.unwrap(), alone(causal(), std::slice::from_ref(request)).remove(0));
        assert_eq!((report.ids, report.finish), (own.ids, own.finish));
        assert_eq!(report.held_tokens, held);
    }
    assert_eq!((batch.load().reused_tokens, batch.load().prefix_rows), (32 + 48, 64));
}

#[test]
fn choices_of_one_prompt_read_it_once() {
    for prefix_rows in [0, 256] {
        let batch = keeping(causal(), 4, prefix_rows);
        let choice = |seed: u64, prompt: &str| {
            let mut request = text(prompt, 8);
            (request.overrides.temperature, request.overrides.seed) = (Some(1.0), Some(seed));
            request
        };
        for prompt in ["thirty bytes of text, not more", "ten bytes."] {
            let requests: Vec<Request> = (0..8).map(|seed| choice(seed, prompt)).collect();
            let (reports, own) = (at_once(&batch, &requests), alone(causal(), &requests));
            for (report, own) in reports.iter().zip(&own) {
                assert_eq!((&report.ids, &report.text), (&own.ids, &own.text));
            }
            let read: Vec<usize> = reports.iter().map(|r| r.passes.prefill).collect();
            assert_eq!(read[0], (prompt.len() / 4 * 4).div_ceil(8), "pages of {prefix_rows} rows");
            // The second four have slots when the first have gone; without pages the first of them reads again.
            assert_eq!(read[1..4], [0; 3]);
            assert!(read[4..].iter().sum::<usize>() <= read[0]);
        }
    }
}

#[test]
fn who_waits_for_the_rows_of_another_goes_on_without_it() {
    let batch = keeping(causal(), 3, 0);
    let prompt = "a prompt that takes a few steps to be read by anybody";
    let cancel = Arc::new(AtomicBool::new(false));
    let mut leader = Request { cancel: Some(Arc::clone(&cancel)), ..text(prompt, 4) };
    let late = Request { deadline: Some(Instant::now()), ..text(prompt, 4) };
    let requests = [leader.clone(), text(prompt, 4), late];
    // The first is cancelled when it has read a part of its prompt.
    let flag = Arc::clone(&cancel);
    let mut steps = 0;
    let cancels = move |update: Update<'_>| {
        steps += usize::from(matches!(update, Update::Event { event: Event::Forward(_), .. }));
        flag.store(steps >= 3, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    leader.max_new = 5;
    batch.submit(&leader, Box::new(cancels)).unwrap();
    let reports = at_once(&batch, &requests[1..]);
    assert_eq!(reports[1].finish, FinishReason::Deadline);
    assert_eq!(reports[0].ids, alone(causal(), &requests[1..2])[0].ids);
    until(|| batch.load().slots_taken == 0 && batch.load().running == 0);
}

#[test]
fn nothing_is_kept_where_rows_depend_on_what_follows() {
    let why = |batch: &Batch| match batch.prefix_cache() {
        PrefixCache::Off(why) => why,
        PrefixCache::On { .. } => "on",
    };
    assert!(why(&keeping(mock(), 1, 64)).contains("full attention"));
    assert!(why(&keeping(causal(), 1, 0)).contains("turned off"));
    let short = Mock::new(12, 258, &[8]).masked(Mask::BlockCausal(4));
    assert!(why(&keeping(short, 1, 64)).contains("longer than a sequence"));
    let batch = keeping(mock(), 4, 64);
    let reports = at_once(&batch, &vec![text("the same prompt for all of them", 4); 4]);
    assert!(reports.iter().all(|r| r.held_tokens == 0 && r.passes.prefill == 4));
    assert_eq!((batch.load().reused_tokens, batch.load().slots), (0, 4));
}

#[test]
fn lower_numbers_go_first_for_slots_and_steps() {
    let order = |sequences: usize| {
        let batch = keeping(causal(), sequences, 0);
        let (send, ended) = sync_channel(16);
        let (gate, open) = sync_channel::<()>(0);
        batch
            .submit(
                &text("ab", 8),
                Box::new(
                    move |_| if open.recv().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) },
                ),
            )
            .unwrap();
        for (i, priority) in [5, 0, -3, 0].into_iter().enumerate() {
            let send = send.clone();
            let listener = move |update: Update<'_>| {
                if let Update::End(_) = update {
                    send.send(i).unwrap();
                }
                ControlFlow::Continue(())
            };
            // Of different length, so that nobody waits for the rows of another, and a pass fills a step.
            let request =
                Request { priority, ..text(&["abcdefgh", "ijklmnop", "qrstuvwx", "yzabcdef"][i].repeat(2), 4) };
            batch.submit(&request, Box::new(listener)).unwrap();
        }
        drop(gate);
        (0..4).map(|_| ended.recv_timeout(Duration::from_secs(60)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(order(1), [2, 1, 3, 0], "one after the other");
    let beside = order(4);
    assert_eq!((beside[0], beside[3]), (2, 0), "{beside:?}");
}

proptest! {
    /// Prompts that begin alike in many ways, more of them than the pages hold.
    #[test]
    fn answers_are_the_same_with_pages_and_without(
        asked in proptest::collection::vec((0..4usize, 0..60usize, 1..14usize, any::<bool>(), 0..3u64), 1..24),
        sequences in 1..5usize,
        rows in prop_oneof![Just(0usize), Just(16), Just(48), Just(160)],
    ) {
        let requests: Vec<Request> = asked.into_iter().map(|(kind, cut, max_new, hot, seed)| {
            let long: String = (0..80).map(|i| char::from(b'a' + ((i * (kind % 2 + 1)) % 23) as u8)).collect();
            let mut request = text(&format!("{}{kind}", &long[..cut]), max_new);
            (request.overrides.temperature, request.overrides.seed) = (hot.then_some(1.0), Some(seed));
            request
        }).collect();
        let batch = keeping(causal(), sequences, rows);
        for (report, own) in at_once(&batch, &requests).iter().zip(alone(causal(), &requests)) {
            prop_assert_eq!((&report.ids, &report.text, report.finish), (&own.ids, &own.text, own.finish));
        }
        prop_assert!(batch.load().prefix_rows <= rows);
    }
}
