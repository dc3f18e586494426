//! `/v1/responses`: its object and events, what it takes of a conversation, and what it refuses.

use serde_json::{Value, json};

use crate::client::{Answer, Server, Setup};

const STORY: &str = "Tell me a story about a fox and a river.";

fn ask(server: &Server, parameters: Value) -> Answer {
    let mut body = json!({"model": "tiny", "input": STORY});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    server.post("/v1/responses", &body)
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

#[test]
fn a_response_is_the_answer_of_a_chat() {
    let server = Server::start(Setup::default());
    let response = ask(&server, json!({})).json();
    let chat = server.chat(json!({"messages": [{"role": "user", "content": STORY}]})).json();
    assert_eq!(text(&response), chat["choices"][0]["message"]["content"]);
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&response["store"], &response["error"]), (&json!(false), &Value::Null));
    let (used, of_chat) = (&response["usage"], &chat["usage"]);
    assert_eq!(used["input_tokens"], of_chat["prompt_tokens"]);
    assert_eq!(used["output_tokens"], of_chat["completion_tokens"]);
    assert_eq!(used["total_tokens"], of_chat["total_tokens"]);
    assert_eq!(used["output_tokens_details"]["reasoning_tokens"], 0);
    assert_eq!(used["input_tokens_details"]["cached_tokens"], 0);

    let instructed =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 27 + 45?"}]);
    let chat = server.chat(json!({"messages": instructed})).json();
    for parameters in [
        json!({"instructions": "Be brief.", "input": "What is 27 + 45?"}),
        json!({"input": [{"role": "developer", "content": "Be brief."},
                         {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 27 + 45?"}]}]}),
    ] {
        assert_eq!(text(&ask(&server, parameters).json()), chat["choices"][0]["message"]["content"]);
    }
    let turns = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": STORY}]);
    let chat = server.chat(json!({"messages": turns})).json();
    let earlier = json!({"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "phase": null,
        "content": [{"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}]});
    let input = json!([{"role": "user", "content": "Hi"}, earlier, {"role": "user", "content": STORY}]);
    assert_eq!(text(&ask(&server, json!({"input": input})).json()), chat["choices"][0]["message"]["content"]);
}

#[test]
fn what_was_asked_is_repeated_and_a_cut_answer_is_incomplete() {
    let server = Server::start(Setup::default());
    let response = ask(
        &server,
        json!({"max_output_tokens": 5, "temperature": 0, "top_p": 0.5, "metadata": {"a": "b"}, "user": "u",
               "instructions": "Be brief.", "store": false, "seed": 4, "text": {"format": {"type": "text"}},
               "include": ["reasoning.encrypted_content"], "truncation": "disabled", "tools": [], "tool_choice": "auto",
               "parallel_tool_calls": false, "stream_options": {"include_obfuscation": false}, "background": false,
               "reasoning": {"effort": null, "summary": null}, "previous_response_id": null, "top_logprobs": 0}),
    );
    assert_eq!(response.status, 200, "{}", response.body);
    let response = response.json();
    for (name, value) in [
        ("max_output_tokens", json!(5)),
        ("temperature", json!(0)),
        ("top_p", json!(0.5)),
        ("metadata", json!({"a": "b"})),
        ("user", json!("u")),
        ("instructions", json!("Be brief.")),
        ("parallel_tool_calls", json!(false)),
        ("status", json!("incomplete")),
        ("incomplete_details", json!({"reason": "max_output_tokens"})),
        ("finish_detail", json!("max-tokens")),
    ] {
        assert_eq!(response[name], value, "{name}");
    }
    assert_eq!(
        (&response["usage"]["output_tokens"], &response["output"][0]["status"]),
        (&json!(5), &json!("incomplete"))
    );
}

#[test]
fn a_response_is_held_to_its_format() {
    let server = Server::start(Setup::default());
    let schema = json!({"type": "object", "properties": {"n": {"enum": [7, 9]}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "number", "strict": true, "schema": schema});
    let response = ask(&server, json!({"text": {"format": format}}));
    assert_eq!(response.status, 200, "{}", response.body);
    let response = response.json();
    let said: Value = serde_json::from_str(text(&response)).unwrap();
    assert!(said == json!({"n": 7}) || said == json!({"n": 9}), "{said}");
    assert_eq!((&response["text"]["format"], &response["status"]), (&format, &json!("completed")));
}

/// The events of a stream, whose names must be those of their data.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let blocks = answer.body.strip_suffix("\n\n").unwrap().split("\n\n").filter(|block| !block.starts_with(':'));
    let events = blocks.enumerate().map(|(number, block)| {
        let (name, data) = block.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
        data
    });
    events.collect()
}

#[test]
fn events_come_in_the_official_order_and_add_up_to_the_response() {
    let server = Server::start(Setup::default());
    for (parameters, last, status) in [
        (json!({}), "response.completed", "completed"),
        (json!({"max_output_tokens": 9}), "response.incomplete", "incomplete"),
    ] {
        let mut streamed = parameters.clone();
        streamed["stream"] = true.into();
        let events = events(&ask(&server, streamed));
        let mut names: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        names.dedup();
        let wanted = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            last,
        ];
        assert_eq!(names, wanted);
        let whole = ask(&server, parameters).json();
        let deltas: String = events.iter().filter_map(|e| e["delta"].as_str()).collect();
        assert_eq!(deltas, text(&whole));
        let (first, end) = (&events[0]["response"], &events[events.len() - 1]["response"]);
        assert_eq!(
            (&first["status"], &first["output"], &first["usage"]),
            (&json!("in_progress"), &json!([]), &Value::Null)
        );
        assert_eq!((&end["status"], &end["id"], text(end)), (&json!(status), &first["id"], text(&whole)));
        // What was asked before is in the cache by then.
        let counts = |usage: &Value| ["input_tokens", "output_tokens", "total_tokens"].map(|name| usage[name].clone());
        assert_eq!((counts(&end["usage"]), &end["output"][0]["status"]), (counts(&whole["usage"]), &json!(status)));
        let item = &end["output"][0]["id"];
        let about = events.iter().filter_map(|e| e.get("item_id").or_else(|| e["item"].get("id")));
        assert!(about.clone().all(|id| id == item) && about.count() >= 6);
        let done = events.iter().find(|e| e["type"] == "response.output_item.done").unwrap();
        assert_eq!(done["item"], end["output"][0]);
    }
}

#[test]
fn what_needs_a_store_or_tools_is_refused_by_name() {
    let server = Server::start(Setup::default());
    let schema = json!({"format": {"type": "json_schema", "name": "x", "schema": {"type": "what"}}});
    let part = |part: Value| json!([{"role": "user", "content": [part]}]);
    for (parameters, param) in [
        (json!({"store": true}), "store"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"tools": [{"type": "web_search"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"text": schema}), "text.format"),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"text": {"x": 1}}), "text.x"),
        (json!({"text": 1}), "text"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning"),
        (json!({"include": ["message.output_text.logprobs"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"stream_options": {"include_obfuscation": true}}), "stream_options"),
        (json!({"n": 2}), "n"),
        (json!({"messages": []}), "messages"),
        (json!({"max_tokens": 5}), "max_tokens"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"metadata": 1}), "metadata"),
        (json!({"instructions": 1}), "instructions"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [1]}), "input[0]"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "input[0]"),
        (json!({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}), "input[0]"),
        (json!({"input": [{"role": "tool", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"role": "user", "content": "x", "y": 1}]}), "input[0].y"),
        (json!({"input": part(json!({"type": "input_image", "image_url": "x"}))}), "input[0].content[0]"),
        (json!({"input": part(json!({"type": "input_text", "text": 1}))}), "input[0].content[0].text"),
    ] {
        let refused = ask(&server, parameters.clone());
        let (status, named, _) = refused.error();
        assert_eq!((status, named.as_str()), (400, param), "{parameters}: {}", refused.body);
    }
    let long = ask(&server, json!({"input": "word ".repeat(2000), "stream": true})).error();
    assert_eq!(long, (400, "input".into(), "context_length_exceeded".into()));
}
