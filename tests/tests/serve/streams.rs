//! Streams: framing that every client survives, roles, ends, usage, stop strings and choices.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::{Answer, Server, Setup};

const STORY: &str = "Tell me a story about a fox and a river.";

fn stream(server: &Server, parameters: Value) -> Answer {
    let mut body = json!({"stream": true, "messages": [{"role": "user", "content": STORY}]});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    server.chat(body)
}

/// The text of choice `index`.
fn text(events: &[Value], index: usize) -> String {
    let choices = events.iter().filter_map(|e| e["choices"].get(0)).filter(|c| c["index"] == index);
    choices.filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn a_stream_is_what_every_client_reads() {
    let server = Server::start(Setup::default());
    let answer = stream(&server, json!({}));
    assert!(answer.body.ends_with("data: [DONE]\n\n") && !answer.headers.contains_key("content-encoding"));
    let events = answer.events();
    let whole = server.chat(json!({"messages": [{"role": "user", "content": STORY}]})).json();
    assert_eq!(text(&events, 0), whole["choices"][0]["message"]["content"]);
    assert!(events.len() > 5, "text comes in pieces");
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    for event in &events {
        assert_eq!(
            (&event["id"], &event["created"], &event["model"]),
            (&events[0]["id"], &events[0]["created"], &json!("tiny"))
        );
        assert_eq!((&event["object"], event.get("usage")), (&json!("chat.completion.chunk"), None));
    }
    let ends: Vec<_> = events.iter().filter(|e| !e["choices"][0]["finish_reason"].is_null()).collect();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0], &events[events.len() - 1]);
    assert_eq!(
        (&ends[0]["choices"][0]["finish_reason"], &ends[0]["choices"][0]["delta"]),
        (&json!("stop"), &json!({}))
    );
}

#[test]
fn usage_comes_alone_at_the_end_or_also_on_the_way() {
    let server = Server::start(Setup::default());
    let end = stream(&server, json!({"stream_options": {"include_usage": true}})).events();
    let (last, others) = end.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let used = last["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(used > 10 && others.iter().all(|e| e["usage"].is_null() && e.as_object().unwrap().contains_key("usage")));
    let running =
        stream(&server, json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}})).events();
    let counts: Vec<u64> = running.iter().map(|e| e["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts[0] == 0 && counts.last() == Some(&used), "{counts:?}");
    assert_eq!(running.last().unwrap()["choices"], json!([]));
}

#[test]
fn the_canvas_is_shown_to_who_asks_for_it() {
    let server = Server::start(Setup::default());
    assert!(!stream(&server, json!({})).body.contains("canvas"));
    let options = json!({"include_canvas": true, "include_usage": true});
    let events = stream(&server, json!({"stream_options": options, "n": 2})).events();
    assert!(events.last().unwrap()["usage"].is_object());
    for index in 0..2 {
        let (mut decided, mut before) = (BTreeMap::new(), (Vec::new(), usize::MAX));
        let canvases: Vec<&Value> = events.iter().filter(|e| e["canvas"]["index"] == index).collect();
        assert!(canvases.len() > 5);
        for event in canvases {
            assert_eq!((&event["choices"], &event["usage"]), (&json!([]), &Value::Null));
            let canvas = &event["canvas"];
            let list = |name: &str| canvas[name].as_array().unwrap().clone();
            let (positions, tokens, masked, sure) =
                (list("positions"), list("tokens"), list("masked"), list("confidence"));
            assert!(positions.len() <= 4 && [tokens.len(), masked.len(), sure.len()] == [positions.len(); 3]);
            let left = masked.iter().filter(|m| **m == true).count();
            if before.0 == positions {
                assert!(left < before.1, "every pass decides something");
            }
            before = (positions.clone(), left);
            for (((position, token), masked), sure) in positions.iter().zip(&tokens).zip(&masked).zip(&sure) {
                let sure = sure.as_f64().expect("every position of the block has been looked at");
                assert!((0.0..=1.0).contains(&sure));
                if *masked == false {
                    decided.insert(position.as_u64().unwrap(), token.as_str().unwrap().to_owned());
                }
            }
        }
        let shown: String = decided.into_values().collect();
        let text = text(&events, index);
        assert!(shown.starts_with(&text) && text.len() > 30, "{shown} / {text}");
    }
    let refused = server.chat(json!({"stream_options": {"include_canvas": true}})).error();
    assert_eq!(refused.1, "stream_options");
}

#[test]
fn choices_begin_in_order_and_end_once_each() {
    let server = Server::start(Setup::default());
    let parameters = json!({"n": 5, "temperature": 1.2, "seed": 3, "max_tokens": 20});
    let events = stream(&server, parameters.clone()).events();
    for (index, event) in events.iter().take(5).enumerate() {
        assert_eq!(
            (&event["choices"][0]["index"], &event["choices"][0]["delta"]["role"]),
            (&json!(index), &json!("assistant"))
        );
    }
    let mut body = parameters;
    body["messages"] = json!([{"role": "user", "content": STORY}]);
    let whole = server.chat(body).json();
    for index in 0..5 {
        assert_eq!(text(&events, index), whole["choices"][index]["message"]["content"].as_str().unwrap());
        let ends =
            events.iter().filter(|e| e["choices"][0]["index"] == index && !e["choices"][0]["finish_reason"].is_null());
        assert_eq!(ends.count(), 1);
    }
}

#[test]
fn stop_strings_are_cut_over_chunk_edges_and_lengths_inside_blocks() {
    let server = Server::start(Setup::default());
    let whole = text(&stream(&server, json!({})).events(), 0);
    // Every stop string of a few characters, wherever the chunks are cut.
    for at in (0..whole.len() - 4).step_by(7) {
        let stop = &whole[at..at + 4];
        let events = stream(&server, json!({"stop": stop})).events();
        assert_eq!(text(&events, 0), whole.split(stop).next().unwrap(), "{stop:?}");
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
    for max_tokens in [1, 2, 3, 5, 6] {
        let parameters = json!({"max_tokens": max_tokens, "stream_options": {"include_usage": true}});
        let events = stream(&server, parameters).events();
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], max_tokens);
        assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
        assert!(whole.starts_with(&text(&events, 0)));
    }
}

#[test]
fn text_completions_stream_too() {
    let server = Server::start(Setup::default());
    let body = json!({"model": "tiny", "prompt": "Once upon a time", "max_tokens": 12, "echo": true});
    let whole = server.post("/v1/completions", &body).json();
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = server.post("/v1/completions", &streamed).events();
    let pieces: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(pieces, whole["choices"][0]["text"].as_str().unwrap());
    assert!(events.iter().all(|e| e["object"] == "text_completion"));
}

#[test]
fn what_is_wrong_with_a_stream_is_said_before_it_begins() {
    let server = Server::start(Setup::default());
    let long = json!([{"role": "user", "content": "word ".repeat(2000)}]);
    assert_eq!(stream(&server, json!({"messages": long})).error().2, "context_length_exceeded");
    assert_eq!(stream(&server, json!({"n": 200})).error().1, "n");
}
