//! What is accepted, honored and refused, parameter by parameter, and errors on every path.

use std::ops::ControlFlow;
use std::path::Path;

use dlx_runtime::LoadOptions;
use dlx_runtime::session::{Prompt, Request, Session};
use dlx_runtime::text::Message;
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::{Value, json};

use crate::client::{Server, Setup};

#[test]
fn parameters_that_any_client_sends_are_accepted() {
    let server = Server::start(Setup::default());
    let plain = server.chat(json!({})).json();
    let answer = plain["choices"][0]["message"]["content"].clone();
    assert_eq!(answer, "72");
    for accepted in [
        json!({"max_tokens": null, "stop": null, "temperature": null, "tools": null, "n": null, "seed": null,
               "stream": null, "stream_options": null, "response_format": null, "logprobs": null, "audio": null,
               "logit_bias": null, "reasoning_effort": null, "whatever": null}),
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "safety_identifier": "s",
               "prompt_cache_key": "k", "tools": [], "stop": [], "logit_bias": {}, "presence_penalty": 0,
               "frequency_penalty": 0.0, "modalities": ["text"], "n": 1, "parallel_tool_calls": true}),
        json!({"max_tokens": 50, "max_completion_tokens": 60, "response_format": {"type": "text"}}),
        json!({"ignore_eos": false, "min_tokens": 0, "top_k": -1, "min_p": 0, "repetition_penalty": 1.0,
               "stop_token_ids": [], "logprobs": false, "seed": -5, "top_p": 1, "temperature": 0,
               "priority": -7}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 27 + 45?"}]}]}),
    ] {
        let got = server.chat(accepted.clone());
        assert_eq!(got.status, 200, "{accepted}: {}", got.body);
        assert_eq!(got.json()["choices"][0]["message"]["content"], answer, "{accepted}");
    }
    let roles = ["system", "developer", "user", "assistant", "tool"];
    let messages: Vec<Value> = roles.iter().map(|role| json!({"role": role, "content": "a", "name": "n"})).collect();
    let ok = server.chat(json!({"messages": messages, "max_tokens": 4}));
    assert!(ok.status == 200 || ok.error().1 == "messages", "the template decides: {}", ok.body);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let server = Server::start(Setup::default());
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let tool = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    for (parameters, param) in [
        (json!({"audio": {}}), "audio"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"messages": image}), "messages[0].content[0]"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 7}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "a", "x": 1}]}), "messages[0].x"),
        (json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}), "messages[0].tool_calls"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [7]}), "messages[0]"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"stop": 3}), "stop"),
        (json!({"stop": ["<|MASK|>"]}), "stop"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": 100}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"priority": 0.5}), "priority"),
        (json!({"priority": 1i64 << 40}), "priority"),
        (json!({"presence_penalty": -2.5}), "presence_penalty"),
        (json!({"frequency_penalty": 3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"min_p": 1.1}), "min_p"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias"),
        (json!({"logit_bias": {"five": 1}}), "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias"),
        (json!({"logit_bias": {"99999999": 1}}), "logit_bias"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"stop_token_ids": ["a"]}), "stop_token_ids"),
        (json!({"tools": tool}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"reasoning_effort": "none"}), "reasoning_effort"),
        (json!({"reasoning_effort": "whatever"}), "reasoning_effort"),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), "chat_template_kwargs.enable_thinking"),
        (json!({"chat_template_kwargs": 3}), "chat_template_kwargs"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"store": true}), "store"),
        (json!({"temprature": 1}), "temprature"),
        (json!({"model": 7}), "model"),
        (json!({"model": null}), "model"),
    ] {
        let refused = server.chat(parameters.clone());
        let (status, named, _) = refused.error();
        assert_eq!((status, named.as_str()), (400, param), "{parameters}: {}", refused.body);
    }
    for (parameters, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"suffix": 1}), "suffix"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"logprobs": 1, "echo": true}), "echo"),
        (json!({"best_of": 1, "n": 2}), "best_of"),
        (json!({"best_of": 3, "stream": true}), "best_of"),
        (json!({"best_of": 128}), "best_of"),
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [["a"]]}), "prompt"),
        (json!({"prompt": "a<|MASK|>b"}), "prompt"),
        (json!({"prompt": [99_999_999]}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"messages": []}), "messages"),
        (json!({"prompt": "the ".repeat(400)}), "prompt"),
    ] {
        let mut body = json!({"model": "tiny", "prompt": "Once"});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        let refused = server.post("/v1/completions", &body);
        let (status, named, _) = refused.error();
        assert_eq!((status, named.as_str()), (400, param), "{parameters}: {}", refused.body);
    }
}

#[test]
fn what_is_too_long_unknown_or_no_json_says_so() {
    let server = Server::start(Setup::default());
    let long = json!([{"role": "user", "content": "word ".repeat(2000)}]);
    let refused = server.chat(json!({"messages": long}));
    assert_eq!(refused.error(), (400, "messages".into(), "context_length_exceeded".into()));
    // litellm and LangChain know this error by its words alone.
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("the prompt is too long: the prompt has "), "{message}");
    assert_eq!(server.chat(json!({"model": "gpt"})).error(), (404, "model".into(), "model_not_found".into()));
    assert_eq!(server.get("/v1/models/gpt").error(), (404, "model".into(), "model_not_found".into()));
    for path in ["/v1", "/v1/engines", "/v1/chat/completions/x"] {
        assert_eq!(server.get(path).error().0, 404, "{path}");
    }
    for (method, path) in
        [("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("DELETE", "/health"), ("OPTIONS", "/v1/completions")]
    {
        assert_eq!(server.send(method, path, "", "").error().0, 405, "{method} {path}");
    }
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!("{{\"model\": {nested}}}");
    for body in ["", "{", "[]", "7", "{\"model\": \"tiny\",}", "\u{FEFF}{}", deep.as_str(), "{\"a\": \"\u{1}\"}"] {
        let refused = server.send("POST", "/v1/chat/completions", "", body);
        assert_eq!(refused.error(), (400, String::new(), "invalid_json".into()));
    }
    let large = server.raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 99999999\r\n\r\n");
    assert_eq!(large.error(), (413, String::new(), "body_too_large".into()));
}

#[test]
fn a_long_history_is_answered_or_refused_in_time() {
    let server = Server::start(Setup::default());
    let messages: Vec<Value> = (0..100_000).map(|i| json!({"role": "user", "content": format!("{i}")})).collect();
    let (status, param, _) = server.chat(json!({"messages": messages})).error();
    assert_eq!((status, param.as_str()), (400, "messages"));
}

#[test]
fn answers_are_those_of_a_session() {
    let server = Server::start(Setup::default());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny");
    let options = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    let mut session = Session::new(compiled::load(&path, &options, &LoadOptions::default()).unwrap()).unwrap();
    let question = "Tell me a story about a fox and a river.";
    for (parameters, temperature, seed) in
        [(json!({}), None, 0), (json!({"temperature": 0.8, "seed": 7}), Some(0.8), 7)]
    {
        let messages = vec![Message::new("user", question)];
        let mut request = Request::new(Prompt::Chat { messages, variables: serde_json::Map::new() }, 40);
        (request.overrides.temperature, request.overrides.seed) = (temperature, Some(seed));
        let alone = session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        let mut parameters = parameters;
        parameters["messages"] = json!([{"role": "user", "content": question}]);
        parameters["max_tokens"] = 40.into();
        let got = server.chat(parameters).json();
        assert_eq!(got["choices"][0]["message"]["content"], alone.text);
        assert_eq!(got["usage"]["completion_tokens"], alone.ids.len());
        assert_eq!(got["usage"]["prompt_tokens"], alone.prompt_tokens);
        assert_eq!(got["usage"]["total_tokens"], alone.prompt_tokens + alone.ids.len());
    }
}

#[test]
fn lengths_stops_seeds_and_choices_are_honored() {
    let server = Server::start(Setup::default());
    let story = json!([{"role": "user", "content": "Tell me a story about a fox and a river."}]);
    let ask = |parameters: Value| {
        let mut body = json!({"messages": story.clone()});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        let answer = server.chat(body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let text = |answer: &Value, i: usize| answer["choices"][i]["message"]["content"].as_str().unwrap().to_owned();
    let whole = ask(json!({}));
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let cut = ask(json!({"max_tokens": 5, "max_completion_tokens": 6}));
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("length"), &json!(6))
    );
    assert!(text(&whole, 0).starts_with(&text(&cut, 0)));
    let stopped = ask(json!({"stop": ["river", "zzz"]}));
    let before = text(&whole, 0).split("river").next().unwrap().to_owned();
    assert_eq!((text(&stopped, 0), &stopped["choices"][0]["finish_reason"]), (before, &json!("stop")));
    // Something that the model has not learned, so that its answer is open.
    let open = json!([{"role": "user", "content": "zq"}]);
    let drawn = |seed: i64| {
        let length = json!({"n": 3, "max_tokens": 60, "ignore_eos": true, "messages": open.clone()});
        let mut parameters = json!({"temperature": 2, "seed": seed});
        parameters.as_object_mut().unwrap().extend(length.as_object().unwrap().clone());
        ask(parameters)
    };
    let (first, again, other) = (drawn(-3), drawn(-3), drawn(99));
    let all = |answer: &Value| (0..3).map(|i| text(answer, i)).collect::<Vec<_>>();
    assert_eq!(all(&first), all(&again));
    assert_ne!(all(&first), all(&other));
    assert!(all(&first)[0] != all(&first)[1] || all(&first)[1] != all(&first)[2], "choices are drawn on their own");
    let greedy = ask(json!({"temperature": 1.5, "top_p": 0, "max_tokens": 16}));
    assert_eq!(text(&greedy, 0), text(&ask(json!({"max_tokens": 16})), 0));
    let forced = ask(json!({"ignore_eos": true, "max_tokens": 100}));
    assert_eq!(
        (&forced["choices"][0]["finish_reason"], &forced["usage"]["completion_tokens"]),
        (&json!("length"), &json!(100))
    );
}

#[test]
fn text_completions_take_every_kind_of_prompt() {
    let server = Server::start(Setup::default());
    let ids = server.batch.text().tokenizer().encode("Once upon a time").unwrap();
    let ask = |prompt: Value, more: Value| {
        let mut body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 8});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["object"], "text_completion");
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let text = ask(json!("Once upon a time"), json!({}));
    assert_eq!(ask(json!(ids.clone()), json!({})), text);
    let both = ask(json!(["Once upon a time", "What"]), json!({"n": 2, "best_of": 2}));
    assert_eq!((both.len(), &both[0], &both[1]), (4, &text[0], &text[0]));
    assert_eq!(ask(json!([ids, [5, 6]]), json!({}))[0], text[0]);
    let echoed = ask(json!("Once upon a time"), json!({"echo": true}));
    assert_eq!(echoed[0], format!("Once upon a time{}", text[0]));
}

#[test]
fn models_health_metrics_and_version() {
    let server = Server::start(Setup::default());
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(server.get("/v1/models/tiny").json(), models["data"][0]);
    assert_eq!(models["data"][0]["max_model_len"], 256);
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(server.get(path).status, 200);
    }
    assert_eq!(server.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
    server.chat(json!({}));
    server.idle();
    let metrics = server.get("/metrics");
    for line in [
        "dlxc_requests_total{path=\"/v1/chat/completions\",status=\"200\"} 1",
        "dlxc_completion_tokens_total{model=\"tiny\"}",
        "dlxc_requests_running{model=\"tiny\"} 0",
        "dlxc_cache_slots{model=\"tiny\"} 4",
        "dlxc_cache_usage_ratio{model=\"tiny\"} 0.0",
        "# EOF",
    ] {
        assert!(metrics.body.contains(line), "{line}: {}", metrics.body);
    }
}
