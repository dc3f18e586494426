//! What prompts begin with alike, as clients and operators see it.

use dlx_runtime::batch::Capacity;
use serde_json::{Value, json};

use crate::client::{Server, Setup};

/// A chat of 23 tokens and a short answer, with these parameters.
fn story(parameters: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Tell me a story about a fox and a river."}],
        "max_tokens": 8,
    });
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    body
}

fn cached(usage: &Value) -> u64 {
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[test]
fn tokens_that_were_there_already_are_counted() {
    let server = Server::start(Setup::default());
    let (first, again) = (server.chat(story(json!({}))).json(), server.chat(story(json!({}))).json());
    assert_eq!(first["choices"][0]["message"], again["choices"][0]["message"]);
    let page = 16;
    assert_eq!((cached(&first["usage"]), cached(&again["usage"])), (0, page));
    assert_eq!(first["usage"]["prompt_tokens"], again["usage"]["prompt_tokens"]);
    let stream = story(json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert_eq!(cached(&server.chat(stream).events().last().unwrap()["usage"]), page);
    // Choices share what the first of them computed, which is no cache's merit.
    let other = json!([{"role": "user", "content": "Reverse this word, letter by letter: riverbanks"}]);
    let choices = server.chat(story(json!({"n": 3, "temperature": 1, "messages": other}))).json();
    let prompt = choices["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached(&choices["usage"]) < page && prompt > page, "{choices}");
    assert!(server.batch.load().reused_tokens >= 2 * page + 2 * (prompt / 4 * 4), "two of three did not read it");
}

#[test]
fn whether_rows_are_kept_and_why_not_is_told() {
    let off = Capacity { prefix_rows: 0, ..Setup::default().capacity };
    for (setup, lines) in [
        (Setup::default(), ["prefix_cache_on{model=\"tiny\",reason=\"\"} 1", "prefix_cache_rows{model=\"tiny\"} 4096"]),
        (
            Setup { capacity: off, ..Setup::default() },
            ["prefix_cache_on{model=\"tiny\",reason=\"it was turned off\"} 0", "prefix_cache_rows{model=\"tiny\"} 0"],
        ),
        (
            Setup { model: "llada-tiny", ..Setup::default() },
            ["reason=\"with full attention every row depends on those behind it\"} 0", "reused_tokens_total"],
        ),
    ] {
        let server = Server::start(setup);
        assert_eq!((server.chat(story(json!({}))).status, server.chat(story(json!({}))).status), (200, 200));
        let metrics = server.get("/metrics").body;
        for line in lines {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
    }
}
