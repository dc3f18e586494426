//! Clients that do not read, do not write, or write what is no request; answers that are silent for long.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dlx_runtime::batch::Capacity;
use dlx_serve::Limits;
use serde_json::json;

use crate::client::{Answer, Server, Setup, chat, request};

fn long(parameters: serde_json::Value) -> String {
    let mut body = chat(json!({"ignore_eos": true, "max_tokens": 4000, "stream": true}));
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    request("POST", "/v1/chat/completions", "", &body.to_string())
}

/// Everything until the server closes.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn who_does_not_read_is_cut_off_and_holds_up_nobody() {
    let limits = Limits { write: Duration::from_millis(300), ..Limits::default() };
    let capacity = Capacity { sequences: 5, waiting: 8, ..Capacity::default() };
    let server = Server::start(Setup { limits, capacity, max_seq: 4096, ..Setup::default() });
    let options = json!({"include_usage": true, "continuous_usage_stats": true, "include_canvas": true});
    let mut slow = server.connect();
    let much = json!({"n": 4, "logprobs": true, "top_logprobs": 20, "stream_options": options});
    slow.write_all(long(much).as_bytes()).unwrap();
    // Somebody else is answered meanwhile.
    assert_eq!(server.chat(json!({})).json()["choices"][0]["message"]["content"], "72");
    server.idle();
    // What has no text of its own comes at the end: more than sockets hold.
    std::thread::sleep(10 * limits.write);
    let got = rest(&mut slow);
    assert!(got.starts_with("HTTP/1.1 200") && got.len() > 100_000, "{}", got.len());
    assert!(!got.contains("[DONE]"), "an answer of {} bytes was not cut", got.len());
    assert!(got.len() < 24 << 20, "what waits for a client is bounded: {}", got.len());
}

#[test]
fn a_stream_that_waits_shows_that_it_is_alive() {
    let limits = Limits { keep_alive: Duration::from_millis(30), ..Limits::default() };
    let capacity = Capacity { sequences: 1, waiting: 2, ..Capacity::default() };
    let server = Server::start(Setup { limits, capacity, max_seq: 4096, ..Setup::default() });
    let mut first = server.connect();
    first.write_all(long(json!({})).as_bytes()).unwrap();
    first.read_exact(&mut [0; 600]).unwrap();
    for path in ["/v1/chat/completions", "/v1/responses"] {
        let body = match path {
            "/v1/responses" => json!({"model": "tiny", "input": "What is 27 + 45?", "stream": true}),
            _ => chat(json!({"stream": true})),
        };
        let mut second = server.connect();
        second.write_all(request("POST", path, "", &body.to_string()).as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.windows(8).any(|w| w == b": ping\n\n") {
            let mut byte = [0];
            second.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(!String::from_utf8_lossy(&head).contains("\"72"), "the answer, not digits of an id");
        if path == "/v1/responses" {
            drop(second);
            continue;
        }
        // The rest is an ordinary stream.
        first.shutdown(std::net::Shutdown::Both).unwrap();
        let whole = format!("{}{}", String::from_utf8(head).unwrap(), rest(&mut second));
        let answer = Answer::read(&mut whole.as_bytes());
        let text: String =
            answer.events().iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "72");
        first = server.connect();
        first.write_all(long(json!({})).as_bytes()).unwrap();
        first.read_exact(&mut [0; 600]).unwrap();
    }
    drop(first);
    server.idle();
}

#[test]
fn half_open_connections_end() {
    let short = Duration::from_millis(200);
    let limits = Limits { headers: short, body: short, ..Limits::default() };
    let server = Server::start(Setup { limits, ..Setup::default() });
    for begun in ["", "GET /v1/mod", "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: "] {
        let mut half = server.connect();
        half.write_all(begun.as_bytes()).unwrap();
        let begin = Instant::now();
        rest(&mut half);
        assert!(begin.elapsed() < Duration::from_secs(20), "{begun:?} is held");
    }
    let body = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 500\r\n\r\n{\"model\"";
    assert_eq!(server.raw(body.as_bytes()).error(), (400, String::new(), "incomplete_body".into()));
    // One that is kept alive and has nothing to say ends too.
    let mut kept = server.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(rest(&mut kept).starts_with("HTTP/1.1 200"));
    assert_eq!(server.chat(json!({})).status, 200);
}

#[test]
fn what_is_no_request_gets_an_error_of_the_api() {
    let server = Server::start(Setup::default());
    for (bytes, status, code) in [
        (&b"GET\r\n\r\n"[..], 400, "malformed_request"),
        (b"\0\0\0\0\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/models HTTP/9.9\r\nhost: localhost\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\na b: c\r\n\r\n", 400, "malformed_request"),
    ] {
        let refused = server.raw(bytes);
        assert_eq!(refused.error(), (status, String::new(), code.into()), "{}", String::from_utf8_lossy(bytes));
    }
    let many = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(150));
    assert_eq!(server.raw(many.as_bytes()).error(), (431, String::new(), "headers_too_large".into()));
    // The second request on a connection, after one that was answered.
    let mut kept = server.connect();
    kept.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answered = [0; 15];
    kept.read_exact(&mut answered).unwrap();
    assert_eq!(&answered, b"HTTP/1.1 200 OK");
    std::thread::sleep(Duration::from_millis(50));
    kept.write_all(b"nonsense\r\n\r\n").unwrap();
    let told = rest(&mut kept);
    assert!(told.contains("\"malformed_request\"") && told.contains("HTTP/1.1 400 Bad Request"), "{told}");
    assert_eq!(server.chat(json!({})).status, 200);
}

#[test]
fn long_histories_are_answered_or_refused_in_time() {
    let server = Server::start(Setup::default());
    let messages: Vec<_> = (0..100_000).map(|i| json!({"role": "user", "content": format!("{i}")})).collect();
    let begin = Instant::now();
    let refused = server.post("/v1/responses", &json!({"model": "tiny", "input": messages}));
    assert_eq!(refused.error(), (400, "input".into(), "context_length_exceeded".into()));
    let prompts = json!({"model": "tiny", "prompt": vec!["a"; 100_000]});
    assert_eq!(server.post("/v1/completions", &prompts).error().1, "prompt");
    let segments = json!({"model": "tiny", "segments": vec!["a"; 100_000]});
    assert_eq!(server.post("/v1/infill", &segments).error().1, "segments");
    assert!(begin.elapsed() < Duration::from_secs(60));
}
