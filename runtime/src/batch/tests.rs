//! Batches on the mock executor: who waits, who is let go, and what an error takes with it.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::*;
use crate::decode::FinishReason;
use crate::decode::mock::Mock;
use crate::session::{Prompt, Session};
use crate::text::tokenizer::tests::bytes_tokenizer;

const STOP: i32 = 256;
const MASK: i32 = 257;

fn policy() -> DecodePolicy {
    DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::greedy(MASK, 4) }
}

fn batch(mock: Mock, sequences: usize, waiting: usize) -> Batch {
    let capacity = Capacity { sequences, waiting, prefill_rows: 4 };
    Batch::with_executor(Box::new(mock), bytes_tokenizer(&["<stop>", "<mask>"]), None, policy(), capacity).unwrap()
}

fn mock() -> Mock {
    Mock::new(256, 258, &[8, 16])
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
