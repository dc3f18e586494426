//! Filling in: `/v1/infill`, `suffix` of `/v1/completions`, and the canvas that shows it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use dlx_runtime::LoadOptions;
use dlx_runtime::decode::Overrides;
use dlx_runtime::session::{Prompt, Request, Session};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::{Value, json};

use crate::client::{Server, Setup, model};

fn llada() -> Server {
    Server::start(Setup { model: "llada-tiny", ..Setup::default() })
}

fn fill(server: &Server, parameters: Value) -> Value {
    let mut body = json!({"model": "tiny"});
    body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    let answer = server.post("/v1/infill", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[test]
fn gaps_become_what_a_session_makes_of_their_masks() {
    let server = llada();
    let segments = json!(["Once upon a time, a ", {"mask": 5}, " lived by the river.", {"mask": 9}, " went home."]);
    let answer = fill(&server, json!({"segments": segments}));

    let options = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    let mut session =
        Session::new(compiled::load(&model("llada-tiny"), &options, &LoadOptions::default()).unwrap()).unwrap();
    let (tokenizer, policy) = (session.tokenizer(), session.policy().clone());
    let part = |text: &str| tokenizer.encode(text).unwrap();
    let (a, b, c) = (part("Once upon a time, a "), part(" lived by the river."), part(" went home."));
    let prompt = [&a[..], &[policy.mask_id; 5], &b, &[policy.mask_id; 9], &c].concat();
    let mut request = Request::new(Prompt::Ids(prompt), 0);
    request.overrides = Overrides { stop_ids: Some(Vec::new()), ..Overrides::default() };
    let alone = session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    let gaps = [&alone.ids[..5], &alone.ids[5 + b.len()..5 + b.len() + 9]];

    let choice = &answer["choices"][0];
    let told = choice["segments"].as_array().unwrap();
    let mut used = 0;
    for (gap, told) in gaps.iter().zip([&told[1], &told[3]]) {
        let kept: Vec<i32> = gap.iter().take_while(|id| !policy.stop_ids.contains(id)).copied().collect();
        assert_eq!(told["text"], tokenizer.decode(&kept, true).unwrap());
        let reason = if kept.len() < gap.len() { "stop" } else { "length" };
        assert_eq!((&told["tokens"], &told["finish_reason"]), (&json!(kept.len()), &json!(reason)));
        used += kept.len();
    }
    assert_eq!(answer["usage"]["completion_tokens"], used);
    assert_eq!(answer["usage"]["prompt_tokens"], alone.prompt_tokens);
    let joined: String = told.iter().map(|segment| segment["text"].as_str().unwrap()).collect();
    assert_eq!(choice["text"], joined);
    assert_eq!((&answer["object"], told.len()), (&json!("infill"), 5));
}

#[test]
fn text_that_stays_comes_back_to_the_byte() {
    let server = llada();
    let texts = ["\u{FEFF}a\r\n\t e\u{301}é ", "  \u{0}\u{1F600}\u{200D}", "<|no_such_token|>\n\n\n"];
    let segments = json!([texts[0], {"mask": 3}, texts[1], {"mask": 1}, {"mask": 2}, texts[2]]);
    let answer = fill(&server, json!({"segments": segments, "n": 3, "temperature": 1.5, "seed": 5}));
    for choice in answer["choices"].as_array().unwrap() {
        for (at, text) in [(0, texts[0]), (2, texts[1]), (5, texts[2])] {
            assert_eq!(choice["segments"][at], json!({"text": text, "masked": false}));
        }
        let whole = choice["text"].as_str().unwrap();
        assert!(whole.starts_with(texts[0]) && whole.contains(texts[1]) && whole.ends_with(texts[2]));
    }
    let drawn = |seed: i64| fill(&server, json!({"segments": segments, "temperature": 2, "seed": seed}));
    assert_eq!(drawn(1)["choices"], drawn(1)["choices"]);
    assert_ne!(drawn(1)["choices"], drawn(2)["choices"]);
}

#[test]
fn a_stream_fills_the_gaps_piece_by_piece_and_shows_where_they_are() {
    let server = llada();
    let segments = json!(["What is ", {"mask": 40}, " plus 45?", {"mask": 8}]);
    let whole = fill(&server, json!({"segments": segments}));
    let options = json!({"include_canvas": true, "include_usage": true});
    let body = json!({"model": "tiny", "segments": segments, "stream": true, "stream_options": options});
    let events = server.post("/v1/infill", &body).events();
    let mut pieces = BTreeMap::<u64, String>::new();
    for choice in events.iter().filter_map(|e| e["choices"].get(0)).filter(|c| c["segment"].is_u64()) {
        *pieces.entry(choice["segment"].as_u64().unwrap()).or_default() += choice["text"].as_str().unwrap();
    }
    let told = &whole["choices"][0]["segments"];
    for at in [1, 3] {
        assert_eq!(pieces.get(&at).map_or("", String::as_str), told[usize::try_from(at).unwrap()]["text"]);
    }
    let last = events.iter().find(|e| e["choices"][0]["finish_reason"].is_string()).unwrap();
    assert_eq!(last["choices"][0], whole["choices"][0]);
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);

    let gaps = &events[0]["choices"][0]["gaps"];
    assert_eq!(
        (&gaps[0], &gaps[1]["segment"], &gaps[1]["length"]),
        (&json!({"segment": 1, "position": 0, "length": 40}), &json!(3), &json!(8))
    );
    let between = server.batch.text().tokenizer().encode(" plus 45?").unwrap();
    assert_eq!(gaps[1]["position"], 40 + between.len());
    let canvases: Vec<&Value> = events.iter().map(|e| &e["canvas"]).filter(|c| c.is_object()).collect();
    let shown: BTreeMap<u64, &Value> = canvases
        .iter()
        .flat_map(|c| c["positions"].as_array().unwrap().iter().zip(c["tokens"].as_array().unwrap()))
        .map(|(position, token)| (position.as_u64().unwrap(), token))
        .collect();
    let frozen: String = (40..40 + between.len() as u64).map(|at| shown[&at].as_str().unwrap()).collect();
    assert_eq!(frozen, " plus 45?", "what stays is shown, too");
    assert!(shown.values().all(|token| token.is_string()), "in the end everything is decided");
}

#[test]
fn a_suffix_is_seen_and_not_given_back() {
    let server = llada();
    let ask = |more: Value| {
        let mut body = json!({"model": "tiny", "prompt": "What is 27 + 45?", "max_tokens": 6});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let segments = json!(["What is 27 + 45?", {"mask": 6}, " That is the answer."]);
    let gap = fill(&server, json!({"segments": segments}))["choices"][0]["segments"][1].clone();
    let answer = ask(json!({"suffix": " That is the answer."}));
    assert_eq!((&answer["choices"][0]["text"], &answer["object"]), (&gap["text"], &json!("text_completion")));
    assert_eq!(answer["choices"][0]["finish_reason"], gap["finish_reason"]);
    assert_eq!(answer["usage"]["completion_tokens"], gap["tokens"]);
    let ids = server.batch.text().tokenizer().encode("What is 27 + 45?").unwrap();
    let of_ids = ask(json!({"suffix": " That is the answer.", "prompt": ids}));
    assert_eq!(of_ids["choices"][0]["text"], gap["text"]);
    let echoed = ask(json!({"suffix": " That is the answer.", "echo": true}));
    assert_eq!(echoed["choices"][0]["text"], format!("What is 27 + 45?{}", gap["text"].as_str().unwrap()));
    assert_ne!(ask(json!({"suffix": " zzz qqq xxx"}))["choices"][0]["text"], gap["text"], "the suffix matters");
    let plain = ask(json!({}))["choices"][0]["text"].clone();
    assert_eq!(ask(json!({"suffix": ""}))["choices"][0]["text"], plain);
    let body = json!({"model": "tiny", "prompt": ["What is 27 + 45?"], "max_tokens": 6, "suffix": " That is the answer.", "stream": true});
    let events = server.post("/v1/completions", &body).events();
    let pieces: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(gap["text"], pieces);
}

#[test]
fn what_cannot_be_filled_in_is_refused_by_name() {
    let server = llada();
    let mask = server.batch.text().tokenizer().decode(&[server.batch.text().policy().mask_id], false).unwrap();
    for (parameters, param) in [
        (json!({}), "segments"),
        (json!({"segments": []}), "segments"),
        (json!({"segments": "a"}), "segments"),
        (json!({"segments": ["a"]}), "segments"),
        (json!({"segments": ["a", 7]}), "segments[1]"),
        (json!({"segments": [{}]}), "segments[0]"),
        (json!({"segments": [{"mask": 0}]}), "segments[0].mask"),
        (json!({"segments": [{"mask": 3, "x": 1}]}), "segments[0].x"),
        (json!({"segments": [{"mask": 2_000_000_000}]}), "segments"),
        (json!({"segments": [format!("a{mask}"), {"mask": 1}]}), "segments"),
        (json!({"segments": ["a", {"mask": 1}], "stop": "x"}), "stop"),
        (json!({"segments": ["a", {"mask": 1}], "max_tokens": 5}), "max_tokens"),
        (json!({"segments": ["a", {"mask": 1}], "logprobs": true}), "logprobs"),
        (json!({"segments": ["a", {"mask": 1}], "best_of": 2}), "best_of"),
        (json!({"segments": ["a", {"mask": 1}], "response_format": {"type": "json_object"}}), "response_format"),
        (json!({"segments": ["a", {"mask": 1}], "tools": [{}]}), "tools"),
        (json!({"segments": vec![json!({"mask": 1}); 1025]}), "segments"),
    ] {
        let mut body = json!({"model": "tiny"});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        let refused = server.post("/v1/infill", &body);
        let (status, named, _) = refused.error();
        assert_eq!((status, named.as_str()), (400, param), "{}", refused.body);
    }
    for (parameters, param) in [
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs"),
    ] {
        let mut body = json!({"model": "tiny", "prompt": "a", "suffix": "b"});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        let refused = server.post("/v1/completions", &body);
        let (status, named, code) = refused.error();
        assert_eq!((status, named.as_str(), code.as_str()), (400, param, "unsupported_parameter"), "{}", refused.body);
    }
    let long = server.post("/v1/infill", &json!({"model": "tiny", "segments": ["a", {"mask": 300}]}));
    assert_eq!(long.error(), (400, "segments".into(), "context_length_exceeded".into()));

    // What does not look ahead would ignore the text behind a gap.
    let server = Server::start(Setup::default());
    let refused = server.post("/v1/infill", &json!({"model": "tiny", "segments": ["a", {"mask": 4}, "b"]}));
    assert_eq!(refused.error().1, "segments");
    assert!(refused.body.contains("look ahead"), "{}", refused.body);
    let refused = server.post("/v1/completions", &json!({"model": "tiny", "prompt": "a", "suffix": "b"}));
    assert_eq!(refused.error().1, "suffix");
}
