//! Clients that vanish, wait, press on or may not be here; a server that is full, late or told to stop.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dlx_runtime::batch::Capacity;
use serde_json::json;

use crate::client::{Answer, Server, Setup, chat, request};

/// A chat that runs for long.
fn long_chat(stream: bool) -> String {
    let body = chat(json!({"ignore_eos": true, "max_tokens": 4000, "stream": stream}));
    request("POST", "/v1/chat/completions", "", &body.to_string())
}

fn long(sequences: usize, waiting: usize) -> Setup {
    let capacity = Capacity { sequences, waiting, ..Capacity::default() };
    Setup { capacity, max_seq: 4096, ..Setup::default() }
}

fn until(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never happens");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_client_that_is_gone_frees_its_slot_at_once() {
    let server = Server::start(long(2, 4));
    for stream in [true, false] {
        let mut connection = server.connect();
        connection.write_all(long_chat(stream).as_bytes()).unwrap();
        until(|| server.batch.load().running == 1);
        if stream {
            // In the middle of a block: some of the answer has come.
            connection.read_exact(&mut [0; 600]).unwrap();
        }
        let steps = server.batch.load().steps;
        drop(connection);
        server.idle();
        assert!(server.batch.load().steps - steps < 900, "stream {stream}: the answer ran on");
    }
    assert_eq!(server.chat(json!({})).json()["choices"][0]["message"]["content"], "72", "others are unharmed");
}

#[test]
fn a_full_server_says_when_to_come_back() {
    let server = Server::start(long(1, 1));
    let mut busy: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for connection in &mut busy {
        connection.write_all(long_chat(true).as_bytes()).unwrap();
    }
    until(|| server.batch.load().running + server.batch.load().waiting == 2);
    let refused = server.chat(json!({}));
    assert_eq!(refused.error(), (429, String::new(), "queue_full".into()));
    let seconds: u64 = refused.headers["retry-after"].parse().unwrap();
    assert!((1..=60).contains(&seconds));
    drop(busy);
    server.idle();
    assert_eq!(server.chat(json!({})).status, 200);
}

#[test]
fn a_late_answer_is_cut_and_says_so() {
    let server = Server::start(Setup { timeout: Duration::from_millis(50), ..long(1, 1) });
    let body = chat(json!({"ignore_eos": true, "max_tokens": 4000}));
    let choice = &server.post("/v1/chat/completions", &body).json()["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["finish_detail"]), (&json!("length"), &json!("deadline")));
}

#[test]
fn keys_are_asked_for_everywhere_but_at_health() {
    let server = Server::start(Setup { keys: vec!["first".into(), "second".into()], ..Setup::default() });
    let body = chat(json!({})).to_string();
    for (path, method) in
        [("/v1/models", "GET"), ("/v1/chat/completions", "POST"), ("/metrics", "GET"), ("/none", "GET")]
    {
        for headers in
            ["", "authorization: Bearer thirdd\r\n", "authorization: first\r\n", "authorization: Bearer firs\r\n"]
        {
            let refused = server.send(method, path, headers, &body);
            assert_eq!(refused.error(), (401, String::new(), "invalid_api_key".into()), "{path} {headers}");
        }
    }
    for key in ["first", "second"] {
        let headers = format!("authorization: Bearer {key}\r\n");
        assert_eq!(server.send("POST", "/v1/chat/completions", &headers, &body).status, 200);
    }
}

#[test]
fn pages_of_other_websites_are_kept_out() {
    let server = Server::start(Setup::default());
    let with = |headers: &str| server.send("GET", "/v1/models", headers, "");
    for host in ["localhost", "127.0.0.1:8080", "[::1]:80", "models.example", "Models.Example:443", "10.0.0.7"] {
        let answer = with(&format!("host: {host}\r\n"));
        assert_eq!(answer.status, 200, "{host}");
        assert!(answer.headers.keys().all(|name| !name.starts_with("access-control")));
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example"] {
        assert_eq!(
            with(&format!("host: {host}\r\n")).error(),
            (403, String::new(), "host_not_allowed".into()),
            "{host}"
        );
    }
    for origin in ["https://evil.example", "null"] {
        assert_eq!(with(&format!("origin: {origin}\r\n")).error().0, 403, "{origin}");
    }
    assert_eq!(with("origin: http://localhost\r\n").status, 200);
    let nameless = server.raw(b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n");
    assert_eq!(nameless.error(), (400, String::new(), "no_host".into()));
}

#[test]
fn requests_have_ids_of_their_own_or_the_client_s() {
    let server = Server::start(Setup::default());
    let id = |headers: &str| server.send("GET", "/none", headers, "").headers["x-request-id"].clone();
    assert_eq!(id("x-request-id: mine-1\r\n"), "mine-1");
    assert_ne!(id("x-request-id: a b\r\n"), "a b");
    assert_ne!(id(""), id(""));
}

#[test]
fn broken_requests_hurt_nobody() {
    let server = Server::start(Setup::default());
    // A body that never comes whole, then the client is gone.
    let mut half = server.connect();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{\"model\"")
        .unwrap();
    // A connection on which nothing comes.
    let _open = server.connect();
    let flood = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(100_000));
    let refused = server.raw(flood.as_bytes()).status;
    assert!([0, 400, 431].contains(&refused), "{refused}");
    for noise in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n"] {
        assert!([0, 400].contains(&server.raw(noise).status));
    }
    drop(half);
    assert_eq!(server.chat(json!({})).json()["choices"][0]["message"]["content"], "72");
}

#[test]
fn many_clients_get_the_answers_of_one() {
    let server = Server::start(Setup::default());
    let questions = ["What is 27 + 45?", "What is the capital of France?", "Sort these letters: d b c a"];
    let ask = |question: &str| {
        let answer = server.chat(json!({"messages": [{"role": "user", "content": question}]}));
        answer.json()["choices"][0]["message"]["content"].clone()
    };
    let alone: Vec<_> = questions.iter().map(|q| ask(q)).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|i| (i % 3, scope.spawn(move || ask(questions[i % 3])))).collect();
        for (question, thread) in threads {
            assert_eq!(thread.join().unwrap(), alone[question]);
        }
    });
    server.idle();
}

#[test]
fn told_to_stop_it_finishes_what_runs_and_refuses_what_comes() {
    let server = Server::start(long(2, 4));
    let mut running = server.connect();
    let body = chat(json!({"ignore_eos": true, "max_tokens": 1500, "stream": true}));
    running.write_all(request("POST", "/v1/chat/completions", "", &body.to_string()).as_bytes()).unwrap();
    until(|| server.batch.load().running == 1);
    server.stop.store(true, Ordering::Relaxed);
    let mut refused = server.get("/health/ready");
    while refused.status == 200 {
        refused = server.get("/health/ready");
    }
    assert_eq!((refused.error().0, refused.headers["retry-after"].as_str()), (503, "5"));
    let refused = server.chat(json!({}));
    assert_eq!((refused.error().0, refused.headers["retry-after"].as_str()), (503, "5"));
    assert_eq!(server.get("/health/live").status, 200);
    let answer = Answer::read(&mut running);
    assert_eq!(answer.events().last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    server.ended();
}
