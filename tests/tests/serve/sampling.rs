//! What changes the choice of tokens, what is told of their probabilities, and what is made of several choices.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use dlx_runtime::LoadOptions;
use dlx_runtime::decode::Overrides;
use dlx_runtime::session::{Prompt, Report, Request, Session};
use dlx_runtime::text::Message;
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::{Value, json};

use crate::client::{Server, Setup, model};

/// Something that the model has not learned, so that its answer is open.
const OPEN: &str = "zq";

fn ask(server: &Server, parameters: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": OPEN}], "max_tokens": 40, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    let answer = server.chat(body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn complete(server: &Server, parameters: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "Once upon a time", "max_tokens": 12});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn session() -> Session {
    let path = model("sdar-tiny");
    let options = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    Session::new(compiled::load(&path, &options, &LoadOptions::default()).unwrap()).unwrap()
}

fn alone(session: &mut Session, overrides: Overrides, logprobs: Option<usize>) -> Report {
    let messages = vec![Message::new("user", OPEN)];
    let prompt = Prompt::Chat { messages, variables: serde_json::Map::new() };
    let overrides = Overrides { stop_ids: Some(Vec::new()), ..overrides };
    let request = Request { overrides, logprobs, ..Request::new(prompt, 40) };
    session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn biases_and_penalties_are_those_of_a_session_and_change_the_answer() {
    let (server, mut session) = (Server::start(Setup::default()), session());
    let plain = alone(&mut session, Overrides::default(), None);
    assert_eq!(content(&ask(&server, json!({}))), plain.text);
    let first = plain.ids[0];
    for (parameters, overrides) in [
        (json!({"presence_penalty": 1.5}), Overrides { presence_penalty: Some(1.5), ..Overrides::default() }),
        (json!({"frequency_penalty": 1}), Overrides { frequency_penalty: Some(1.0), ..Overrides::default() }),
        (json!({"repetition_penalty": 1.3}), Overrides { repetition_penalty: Some(1.3), ..Overrides::default() }),
        (
            json!({"logit_bias": {first.to_string(): -100}}),
            Overrides { logit_bias: Some([(first, -100.0)].into()), ..Overrides::default() },
        ),
        (
            json!({"temperature": 1.5, "seed": 4, "min_p": 0.2, "frequency_penalty": 0.5}),
            Overrides {
                temperature: Some(1.5),
                seed: Some(4),
                min_p: Some(0.2),
                frequency_penalty: Some(0.5),
                ..Overrides::default()
            },
        ),
    ] {
        let expected = alone(&mut session, overrides, None);
        assert_eq!(content(&ask(&server, parameters.clone())), expected.text, "{parameters}");
        assert_ne!(expected.ids, plain.ids, "{parameters}");
        assert!(parameters.get("logit_bias").is_none() || !expected.ids.contains(&first));
    }
    // The surest of all biases: an answer of one token.
    let fox = server.batch.text().tokenizer().encode("fox").unwrap()[0];
    let name = server.batch.text().tokenizer().decode(&[fox], true).unwrap();
    let forced = ask(&server, json!({"logit_bias": {fox.to_string(): 100}, "max_tokens": 5}));
    assert_eq!(content(&forced), name.repeat(5));
    // With the rest of the distribution cut off, drawing takes the most likely token.
    assert_eq!(content(&ask(&server, json!({"temperature": 2, "min_p": 1}))), plain.text);
}

#[test]
fn an_answer_is_not_shorter_than_asked_for() {
    let server = Server::start(Setup::default());
    let tokens = |parameters: Value| {
        let answer = server.chat(parameters).json();
        (answer["usage"]["completion_tokens"].as_u64().unwrap(), answer["choices"][0]["finish_reason"].clone())
    };
    let (short, _) = tokens(json!({}));
    assert!(short < 9);
    assert!(tokens(json!({"min_tokens": 9})).0 >= 9);
    assert_eq!(tokens(json!({"min_tokens": 9, "max_tokens": 9})), (9, json!("length")));
    assert_eq!(tokens(json!({"min_tokens": short})), (short, json!("stop")));
    let stopped = server.chat(json!({"stop": "2", "min_tokens": 2})).json();
    assert_eq!(content(&stopped), "72", "a stop text that comes too early is text");
}

/// The text of tokens; special ones have a name, but no text in an answer.
fn text_of(tokens: &[(String, f64, BTreeMap<String, f64>)]) -> String {
    tokens.iter().map(|token| token.0.as_str()).filter(|name| !name.starts_with("<|")).collect()
}

/// What both shapes of the API say of each token: its text, its logarithm, and those of the most likely ones.
fn told(logprobs: &Value) -> Vec<(String, f64, BTreeMap<String, f64>)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    if let Some(content) = logprobs.get("content") {
        let entry = |token: &Value| {
            assert_eq!(token["bytes"], json!(text(&token["token"]).as_bytes()), "whole characters here");
            (text(&token["token"]), token["logprob"].as_f64().unwrap())
        };
        let token = |token: &Value| {
            let top: Vec<_> = token["top_logprobs"].as_array().unwrap().iter().map(entry).collect();
            assert!(top.is_sorted_by(|a, b| a.1 >= b.1));
            let (name, logprob) = entry(token);
            (name, logprob, top.into_iter().collect())
        };
        return content.as_array().unwrap().iter().map(token).collect();
    }
    let list = |name: &str| logprobs[name].as_array().unwrap();
    let tops = list("top_logprobs").iter().map(|top| {
        top.as_object().unwrap().iter().map(|(name, logprob)| (name.clone(), logprob.as_f64().unwrap())).collect()
    });
    let tokens = list("tokens").iter().zip(list("token_logprobs")).zip(tops);
    tokens.map(|((token, logprob), top)| (text(token), logprob.as_f64().unwrap(), top)).collect()
}

#[test]
fn probabilities_are_those_of_a_session_whole_or_in_a_stream() {
    let (server, mut session) = (Server::start(Setup::default()), session());
    for (parameters, temperature) in [(json!({}), None), (json!({"temperature": 1.2, "seed": 9}), Some(1.2))] {
        let overrides = Overrides { temperature, seed: Some(9), ..Overrides::default() };
        let expected = alone(&mut session, overrides, Some(3));
        let mut parameters = parameters;
        (parameters["logprobs"], parameters["top_logprobs"]) = (true.into(), 3.into());
        let answer = ask(&server, parameters.clone());
        let tokens = told(&answer["choices"][0]["logprobs"]);
        assert_eq!(text_of(&tokens), content(&answer));
        let session_told = expected.logprobs.unwrap();
        assert_eq!(tokens.len(), session_told.len());
        for ((name, logprob, top), told) in tokens.iter().zip(&session_told) {
            assert_eq!(*logprob, f64::from(told.logprob.unwrap()));
            assert_eq!(top.len(), 3);
            assert!(top.values().map(|logprob| libm::exp(*logprob)).sum::<f64>() < 1.00001);
            // A drawn token need not be among the most likely ones.
            assert!(temperature.is_some() || top[name] == *logprob);
        }
        parameters["stream"] = true.into();
        parameters["messages"] = json!([{"role": "user", "content": OPEN}]);
        (parameters["max_tokens"], parameters["ignore_eos"]) = (40.into(), true.into());
        let events = server.chat(parameters).events();
        let mut streamed = Vec::new();
        for choice in events.iter().map(|event| &event["choices"][0]) {
            let text = choice["delta"]["content"].as_str().unwrap_or_default();
            let tokens = if choice["logprobs"].is_null() { Vec::new() } else { told(&choice["logprobs"]) };
            assert_eq!(text_of(&tokens), text, "chunk by chunk");
            streamed.extend(tokens);
        }
        assert_eq!(streamed, tokens);
    }
    let cut = ask(&server, json!({"logprobs": true, "stop": "e"}));
    let tokens = &told(&cut["choices"][0]["logprobs"]);
    assert_eq!(cut["usage"]["completion_tokens"], tokens.len());
    assert!(text_of(tokens).starts_with(content(&cut)));
    assert_eq!(cut["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn text_completions_tell_probabilities_with_places() {
    let server = Server::start(Setup::default());
    let whole =
        complete(&server, json!({"prompt": OPEN, "max_tokens": 40, "logprobs": 2, "temperature": 2, "seed": 1}));
    let choice = &whole["choices"][0];
    let (text, logprobs) = (choice["text"].as_str().unwrap(), &choice["logprobs"]);
    let tokens = told(logprobs);
    assert_eq!(text_of(&tokens), text);
    let mut offset = 0;
    for ((name, logprob, top), at) in tokens.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
        assert_eq!((at, top[name]), (&json!(offset), *logprob));
        assert!(top.len() == 2 || top.len() == 3);
        offset += if name.starts_with("<|") { 0 } else { name.chars().count() };
    }
    assert!(tokens.iter().any(|token| token.2.len() == 3), "the one that was taken, beside the two most likely");
    let none = complete(&server, json!({"logprobs": 0}));
    assert!(
        told(&none["choices"][0]["logprobs"])
            .iter()
            .all(|(name, logprob, top)| top == &BTreeMap::from([(name.clone(), *logprob)]))
    );
    let body = json!({"model": "tiny", "prompt": OPEN, "max_tokens": 40, "logprobs": 2, "temperature": 2, "seed": 1,
                      "stream": true});
    let events = server.post("/v1/completions", &body).events();
    let lists = |name: &str| {
        let parts = events.iter().filter_map(|event| event["choices"][0]["logprobs"][name].as_array().cloned());
        Value::from(parts.flatten().collect::<Vec<_>>())
    };
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(&lists(name), &logprobs[name]);
    }
}

#[test]
fn the_best_of_several_choices_has_the_likeliest_tokens() {
    let server = Server::start(Setup::default());
    let drawn = json!({"temperature": 2, "seed": 11, "prompt": [OPEN, "qx"], "logprobs": 0});
    let with = |name: &str, count: usize, n: usize| {
        let mut parameters = drawn.clone();
        (parameters["n"], parameters[name]) = (n.into(), count.into());
        complete(&server, parameters)
    };
    let all = with("n", 5, 5);
    let best = with("best_of", 5, 2);
    assert_eq!(best["choices"].as_array().unwrap().len(), 4);
    assert_eq!(best["usage"], all["usage"], "what is thrown away was made, too");
    for prompt in 0..2 {
        let mut ranked: Vec<(f64, &Value)> = all["choices"].as_array().unwrap()[5 * prompt..][..5]
            .iter()
            .map(|choice| {
                let tokens = told(&choice["logprobs"]);
                let mean = tokens.iter().map(|token| token.1).sum::<f64>() / tokens.len() as f64;
                (if tokens.is_empty() { f64::NEG_INFINITY } else { mean }, &choice["text"])
            })
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert!(ranked[0].0 > ranked[4].0, "the choices differ");
        for place in 0..2 {
            let choice = &best["choices"][2 * prompt + place];
            assert_eq!((&choice["text"], &choice["index"]), (ranked[place].1, &json!(2 * prompt + place)));
        }
    }
    let mut silent = drawn;
    (silent["best_of"], silent["logprobs"]) = (5.into(), Value::Null);
    let silent = complete(&server, silent);
    assert_eq!(
        (&silent["choices"][0]["logprobs"], &silent["choices"][0]["text"]),
        (&Value::Null, &best["choices"][0]["text"])
    );
}

#[test]
fn a_template_that_knows_of_thinking_is_told_of_it() {
    let server = Server::start(Setup { model: "../../tests/golden/models/sdar-tiny", ..Setup::default() });
    let prompt = |parameters: Value| {
        let mut parameters = parameters;
        parameters["max_tokens"] = 1.into();
        let answer = server.chat(parameters);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = prompt(json!({}));
    let quiet = prompt(json!({"chat_template_kwargs": {"enable_thinking": false}}));
    assert!(quiet > plain, "the template writes an empty thought");
    assert_eq!(prompt(json!({"reasoning_effort": "none"})), quiet);
    assert_eq!(prompt(json!({"chat_template_kwargs": {"enable_thinking": true}})), plain);
    for (parameters, param) in [
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": false}}), "reasoning_effort"),
        (json!({"chat_template_kwargs": {"thinking": true}}), "chat_template_kwargs.thinking"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
    ] {
        let (status, named, _) = server.chat(parameters).error();
        assert_eq!((status, named.as_str()), (400, param));
    }
}

#[test]
fn within_a_constraint_probabilities_are_those_of_what_it_allows() {
    let server = Server::start(Setup::default());
    for parameters in [json!({}), json!({"temperature": 1.3, "seed": 2, "top_p": 0.9})] {
        let mut parameters = parameters;
        (parameters["logprobs"], parameters["top_logprobs"]) = (true.into(), 20.into());
        parameters["structured_outputs"] = json!({"regex": "7[0-9]"});
        let answer = server.chat(parameters).json();
        let tokens = told(&answer["choices"][0]["logprobs"]);
        assert_eq!(text_of(&tokens), content(&answer));
        for (name, logprob, top) in &tokens {
            assert_eq!(top[name], *logprob);
            assert!(
                (top.values().map(|logprob| libm::exp(*logprob)).sum::<f64>() - 1.0).abs() < 1e-4,
                "all that may be: {top:?}"
            );
        }
    }
    let early = server.chat(json!({"min_tokens": 3, "structured_outputs": {"regex": "7[0-9]"}}));
    assert_eq!((early.error().0, early.error().1.as_str()), (400, "min_tokens"));
}
