//! Answers that must be something: schemas, expressions, calls of tools.

use serde_json::{Value, json};

use crate::client::{Server, Setup};

fn schema() -> Value {
    json!({
        "type": "object",
        "title": "Answer",
        "properties": {
            "answer": {"type": "integer", "title": "Answer"},
            "sure": {"anyOf": [{"type": "boolean"}, {"type": "null"}], "default": null},
            "kind": {"$ref": "#/$defs/Kind"},
        },
        "$defs": {"Kind": {"enum": ["sum", "other"], "type": "string"}},
        "required": ["answer", "sure", "kind"],
        "additionalProperties": false,
    })
}

fn asked() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema()}})
}

/// The content of the only choice, which ended by itself.
fn content(answer: &Value) -> String {
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn fits(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["answer", "sure", "kind"]);
    assert!(value["answer"].is_i64() && (value["sure"].is_boolean() || value["sure"].is_null()));
    assert!(["sum", "other"].contains(&value["kind"].as_str().unwrap()));
}

#[test]
fn answers_are_what_the_format_says() {
    let server = Server::start(Setup::default());
    for more in [json!({}), json!({"temperature": 1.5, "seed": 3}), json!({"temperature": 1, "top_p": 0.5, "top_k": 5})]
    {
        let mut body = more.clone();
        body["response_format"] = asked();
        let answer = server.chat(body.clone());
        fits(&content(&answer.json()));
        body["stream"] = true.into();
        let streamed = server.chat(body);
        let events = streamed.events();
        let pieces = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        let text: String = pieces.collect();
        fits(&text);
        if more.get("seed").is_some() || more.get("temperature").is_none() {
            assert_eq!(text, content(&answer.json()), "streamed or not");
        }
    }
    let object = server.chat(json!({"response_format": {"type": "json_object"}, "max_tokens": 40}));
    assert!(serde_json::from_str::<Value>(&content(&object.json())).unwrap().is_object());
    for (asked, texts) in [
        (json!({"choice": ["yes", "no"]}), &["yes", "no"][..]),
        (json!({"regex": "7[0-9]"}), &["70", "71", "72", "73", "74", "75", "76", "77", "78", "79"]),
        (json!({"json": {"const": 7}}), &["7"]),
    ] {
        let text = content(&server.chat(json!({"structured_outputs": asked})).json());
        assert!(texts.contains(&text.as_str()), "{text}");
    }
    // Of all numbers from 70 the model knows the right one.
    assert_eq!(content(&server.chat(json!({"structured_outputs": {"regex": "7[0-9]"}})).json()), "72");
    let body =
        json!({"model": "tiny", "prompt": "Once upon a time", "structured_outputs": {"regex": "[a-z ]{3,9}\\."}});
    let text = server.post("/v1/completions", &body).json()["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!((4..=10).contains(&text.len()) && text.ends_with('.'), "{text}");
}

#[test]
fn an_answer_is_complete_however_few_tokens_there_are() {
    let server = Server::start(Setup::default());
    let list = json!({"structured_outputs": {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 2}}});
    for most in [8, 9, 13] {
        let mut body = list.clone();
        body["max_tokens"] = most.into();
        let answer = server.chat(body).json();
        let value: Value = serde_json::from_str(&content(&answer)).unwrap();
        assert!(value.as_array().unwrap().len() >= 2, "{answer}");
    }
    let open = server.chat(json!({"structured_outputs": {"regex": "a+"}, "max_tokens": 6, "ignore_eos": false})).json();
    let reason = open["choices"][0]["finish_reason"].as_str().unwrap();
    let text = open["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.bytes().all(|b| b == b'a') && ["stop", "length"].contains(&reason), "{open}");
    let short = server.chat(json!({"response_format": asked(), "max_tokens": 5}));
    assert_eq!(short.error(), (400, "max_tokens".into(), "invalid_value".into()), "{}", short.body);
    let long = json!({"structured_outputs": {"regex": "(abcdefghi){100}"}});
    assert_eq!(server.chat(long).error(), (400, "messages".into(), "context_length_exceeded".into()));
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let server = Server::start(Setup::default());
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}});
    for (parameters, param) in [
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"response_format": "text"}), "response_format"),
        (json!({"response_format": {"type": "json_object", "x": 1}}), "response_format.x"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}), "response_format"),
        (format(json!({"type": "object", "patternProperties": {}})), "response_format"),
        (format(json!({"type": "string", "pattern": "(?=a)"})), "response_format"),
        (format(json!({"type": "whole"})), "response_format"),
        (format(json!({"enum": []})), "response_format"),
        (format(json!({"type": "string", "maxLength": 1_000_000})), "response_format"),
        (json!({"structured_outputs": {"regex": "("}}), "structured_outputs"),
        (json!({"structured_outputs": {"grammar": "x"}}), "structured_outputs.grammar"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs"),
        (json!({"structured_outputs": {"choice": [1]}}), "structured_outputs"),
        (
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            "structured_outputs",
        ),
        (json!({"structured_outputs": {"regex": "a"}, "ignore_eos": true}), "stop_token_ids"),
        (json!({"structured_outputs": {"regex": "a"}, "stop_token_ids": [65]}), "stop_token_ids"),
    ] {
        let refused = server.chat(parameters.clone());
        let (status, named, _) = refused.error();
        assert_eq!((status, named.as_str()), (400, param), "{parameters}: {}", refused.body);
    }
    let named = server.chat(format(json!({"type": "object", "properties": {"a": {"not": {}}}})));
    let message = named.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`not`") && message.contains("#/properties/a"), "{message}");
}

fn tool(name: &str, parameters: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d", "parameters": parameters, "strict": true}})
}

fn add() -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": 99});
    let parameters = json!({
        "type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"], "additionalProperties": false,
    });
    tool("add", parameters)
}

/// The only call of an answer, and its arguments.
fn called(message: &Value) -> (String, Value) {
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1, "{message}");
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_") && calls[0]["type"] == "function");
    let function = &calls[0]["function"];
    let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    (function["name"].as_str().unwrap().to_owned(), arguments)
}

/// The message that the deltas of a stream add up to.
fn joined(events: &[Value]) -> (Value, String) {
    let mut message = json!({"content": null, "tool_calls": []});
    let mut finish = String::new();
    for choice in events.iter().filter_map(|e| e["choices"].get(0)) {
        if let Some(text) = choice["delta"]["content"].as_str() {
            let so_far = message["content"].as_str().unwrap_or_default().to_owned();
            message["content"] = (so_far + text).into();
        }
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let (index, calls) =
                (call["index"].as_u64().unwrap() as usize, message["tool_calls"].as_array_mut().unwrap());
            if calls.len() == index {
                assert!(call["id"].is_string() && call["function"]["name"].is_string(), "{call}");
                calls.push(call.clone());
            } else {
                assert!(call.get("id").is_none());
                let so_far = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
                calls[index]["function"]["arguments"] =
                    (so_far + call["function"]["arguments"].as_str().unwrap()).into();
            }
        }
        finish += choice["finish_reason"].as_str().unwrap_or_default();
    }
    (message, finish)
}

#[test]
fn forced_calls_have_the_arguments_that_the_tool_takes() {
    let server = Server::start(Setup::default());
    let named = json!({"type": "function", "function": {"name": "add"}});
    let none = tool("none", json!({"type": "object", "properties": {}, "additionalProperties": false}));
    for choice in [named, json!("required")] {
        let body = json!({"tools": [none, add()], "tool_choice": choice, "temperature": 0});
        let answer = server.chat(body.clone()).json();
        let message = &answer["choices"][0]["message"];
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        assert!(message["content"].is_null(), "{message}");
        let (name, arguments) = called(message);
        if name == "add" {
            assert!(arguments["a"].as_u64().unwrap() < 100 && arguments["b"].as_u64().unwrap() < 100);
        } else {
            assert_eq!((name.as_str(), &arguments), ("none", &json!({})));
        }
        let mut body = body;
        body["stream"] = true.into();
        let (streamed, finish) = joined(&server.chat(body).events());
        assert_eq!((called(&streamed), finish.as_str()), ((name, arguments), "tool_calls"));
        assert!(streamed["content"].is_null());
    }
    let never = server.chat(json!({"tools": [add()], "tool_choice": "none"})).json();
    assert_eq!(never["choices"][0]["message"]["content"], "72");
    let answered = json!([
        {"role": "user", "content": "What is 27 + 45?"},
        {"role": "assistant", "content": "I call add."},
        {"role": "tool", "tool_call_id": "call_1", "content": "72"},
    ]);
    assert_eq!(server.chat(json!({"messages": answered, "max_tokens": 4})).status, 200);
}

#[test]
fn tools_that_cannot_be_had_are_refused_by_name() {
    let server = Server::start(Setup::default());
    let forced = |tools: Value| json!({"tools": tools, "tool_choice": "required"});
    for (parameters, param) in [
        (json!({"tools": [add()]}), "tools"),
        (json!({"tools": [add()], "tool_choice": "auto"}), "tool_choice"),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [add()], "tool_choice": {"type": "function", "function": {"name": "sub"}}}), "tool_choice"),
        (json!({"tools": [add()], "tool_choice": "always"}), "tool_choice"),
        (json!({"tools": [add()], "tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
        (forced(json!([add(), add()])), "tools"),
        (forced(json!([{"type": "custom"}])), "tools[0].type"),
        (forced(json!([{"type": "function"}])), "tools[0].function"),
        (forced(json!([tool("a b", json!({}))])), "tools[0].function.name"),
        (forced(json!([tool("f", json!(7))])), "tools[0].function.parameters"),
        (forced(json!([add(), tool("f", json!({"not": {}}))])), "tools.f.parameters"),
        (json!({"tools": 1}), "tools"),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (
            json!({"tools": [add()], "tool_choice": "required", "response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}), "messages[0].tool_calls"),
        (json!({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}), "messages[0].tool_calls"),
    ] {
        let refused = server.chat(parameters.clone());
        let (status, named, _) = refused.error();
        assert_eq!((status, named.as_str()), (400, param), "{parameters}: {}", refused.body);
    }
}

/// Shows tools and calls as Qwen's templates do.
const HERMES: &str = "{%- if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n\
    {% endif %}{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
    {%- for call in message.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": \
    {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
    {%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn a_template_that_knows_tools_lets_the_model_decide() {
    let server = Server::start(Setup { template: Some(HERMES), max_seq: 512, ..Setup::default() });
    for (temperature, seed) in [(0.0, 0), (1.5, 1), (2.0, 2), (2.0, 3)] {
        let body = json!({"tools": [add()], "temperature": temperature, "seed": seed, "max_tokens": 60});
        let answer = server.chat(body.clone()).json();
        let choice = &answer["choices"][0];
        let calls = choice["message"].get("tool_calls").is_some();
        assert_eq!(choice["finish_reason"] == "tool_calls", calls, "{answer}");
        let mut body = body;
        body["stream"] = true.into();
        let (streamed, _) = joined(&server.chat(body).events());
        assert_eq!(streamed["content"], choice["message"]["content"]);
        let mut forced = json!({"tools": [add()], "tool_choice": "required", "temperature": temperature, "seed": seed});
        let answer = server.chat(forced.clone()).json();
        let call = called(&answer["choices"][0]["message"]);
        assert_eq!(call.0, "add");
        forced["stream"] = true.into();
        assert_eq!(called(&joined(&server.chat(forced).events()).0), call);
    }
    let call =
        json!({"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 27, \"b\": 45}"}});
    let messages = json!([
        {"role": "user", "content": "What is 27 + 45?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "72"},
    ]);
    assert_eq!(server.chat(json!({"messages": messages, "max_tokens": 8})).status, 200);
    let mut broken = messages;
    broken[1]["tool_calls"][0]["function"]["arguments"] = "{".into();
    let refused = server.chat(json!({"messages": broken}));
    assert_eq!(refused.error().1, "messages[1].tool_calls[0]");
}
