//! Loading and unloading while running, and who may.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use dlx_runtime::LoadOptions;
use dlx_runtime::batch::{Batch, Capacity};
use dlx_serve::{Loaded, Loader, NotLoaded};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::{Value, json};

use crate::client::{Answer, Server, Setup, chat, model, request};

/// Loads `second`, and keeps handles of what it loaded.
fn loader(loaded: Arc<Mutex<Vec<Batch>>>) -> Loader {
    Arc::new(move |name| match name {
        "second" => {
            let options = CompileOptions { max_seq: Some(4096), ..CompileOptions::default() };
            let model = compiled::load(&model("sdar-tiny"), &options, &LoadOptions::default());
            let batch = Batch::new(model.map_err(NotLoaded::Failed)?, Capacity::default()).unwrap();
            loaded.lock().unwrap().push(batch.clone());
            Ok(Loaded::Generator(batch))
        }
        "broken" => Err(NotLoaded::Failed("it is damaged".into())),
        _ => Err(NotLoaded::Unknown),
    })
}

fn admin(server: &Server, what: &str, body: &Value) -> Answer {
    server.send("POST", &format!("/admin/models/{what}"), "authorization: Bearer root\r\n", &body.to_string())
}

#[test]
fn models_come_and_go_and_no_request_is_lost() {
    let loaded = Arc::new(Mutex::new(Vec::new()));
    let setup =
        Setup { admin_keys: vec!["root".into()], loader: Some(loader(Arc::clone(&loaded))), ..Setup::default() };
    let server = Server::start(setup);
    let second = json!({"model": "second"});
    assert_eq!(server.chat(second.clone()).error().2, "model_not_found");
    let told = admin(&server, "load", &second).json();
    assert_eq!((&told["model"]["id"], &told["replaced"]), (&json!("second"), &json!(false)));
    assert_eq!(server.get("/v1/models").json()["data"].as_array().unwrap().len(), 2);
    assert_eq!(server.chat(second.clone()).json()["choices"][0]["message"]["content"], "72");

    let body = chat(json!({"model": "second", "ignore_eos": true, "max_tokens": 1500, "stream": true}));
    let mut running = server.connect();
    running.write_all(request("POST", "/v1/chat/completions", "", &body.to_string()).as_bytes()).unwrap();
    let old = loaded.lock().unwrap()[0].clone();
    while old.load().running == 0 {
        std::thread::yield_now();
    }
    // Loaded again: who comes now is answered by the new one.
    assert_eq!(admin(&server, "load", &second).json()["replaced"], true);
    assert_eq!(server.chat(second.clone()).status, 200);
    let new = loaded.lock().unwrap()[1].clone();
    assert!(new.load().steps > 0);
    assert_eq!(admin(&server, "unload", &second).json()["unloaded"], true);
    assert_eq!(server.chat(second.clone()).error().2, "model_not_found");
    assert_eq!(admin(&server, "unload", &second).error().2, "model_not_found");
    // What was begun ends as if nothing had been.
    let answer = Answer::read(&mut running);
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(answer.events().last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.chat(json!({})).status, 200, "the first model is unharmed");
    assert_eq!(server.get("/health/ready").status, 200);
    assert!(!server.get("/metrics").body.contains("dlxc_cache_slots{model=\"second\"}"));
}

#[test]
fn what_cannot_be_loaded_says_so_and_changes_nothing() {
    let setup = Setup { admin_keys: vec!["root".into()], loader: Some(loader(Arc::default())), ..Setup::default() };
    let server = Server::start(setup);
    assert_eq!(
        admin(&server, "load", &json!({"model": "none"})).error(),
        (404, "model".into(), "model_not_found".into())
    );
    let broken = admin(&server, "load", &json!({"model": "broken"}));
    assert_eq!(broken.error(), (400, "model".into(), "invalid_value".into()));
    assert!(broken.body.contains("it is damaged"));
    for (body, param) in
        [(json!({}), "model"), (json!({"model": 1}), "model"), (json!({"model": "second", "x": 1}), "x")]
    {
        for what in ["load", "unload"] {
            assert_eq!(admin(&server, what, &body).error().1, param, "{what} {body}");
        }
    }
    assert_eq!(server.get("/v1/models").json()["data"].as_array().unwrap().len(), 1);
    let without = Server::start(Setup { admin_keys: vec!["root".into()], ..Setup::default() });
    assert_eq!(admin(&without, "load", &json!({"model": "second"})).error().0, 400);
}

#[test]
fn only_admins_get_there() {
    let setup = Setup {
        keys: vec!["user".into()],
        admin_keys: vec!["root".into()],
        loader: Some(loader(Arc::default())),
        ..Setup::default()
    };
    let server = Server::start(setup);
    let body = json!({"model": "tiny"}).to_string();
    for headers in ["", "authorization: Bearer user\r\n", "authorization: Bearer roo\r\n"] {
        let refused = server.send("POST", "/admin/models/unload", headers, &body);
        assert_eq!(refused.error(), (401, String::new(), "invalid_api_key".into()));
    }
    let root = "authorization: Bearer root\r\n";
    assert_eq!(server.send("GET", "/v1/models", root, "").error().0, 401, "an admin key is no API key");
    assert_eq!(server.send("GET", "/admin/models/unload", root, "").error().0, 405);
    let open = Server::start(Setup { loader: Some(loader(Arc::default())), ..Setup::default() });
    for path in ["/admin/models/load", "/admin/models/unload"] {
        assert_eq!(open.send("POST", path, root, &body).error().0, 404, "without admin keys there is nothing");
    }
}

#[test]
fn told_to_stop_under_load_it_finishes_what_it_has_taken() {
    let capacity = Capacity { sequences: 3, waiting: 16, ..Capacity::default() };
    let server = Server::start(Setup { capacity, max_seq: 1024, ..Setup::default() });
    let body = chat(json!({"ignore_eos": true, "max_tokens": 300, "stream": true})).to_string();
    let mut taken: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(request("POST", "/v1/chat/completions", "", &body).as_bytes()).unwrap();
            stream
        })
        .collect();
    while server.batch.load().running + server.batch.load().waiting < 8 {
        std::thread::yield_now();
    }
    server.stop.store(true, Ordering::Relaxed);
    while server.get("/health/ready").status == 200 {
        std::thread::yield_now();
    }
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/infill", "/v1/embeddings"] {
        let refused = server.post(path, &json!({"model": "tiny"}));
        assert_eq!((refused.error().0, refused.headers["retry-after"].as_str()), (503, "5"), "{path}");
    }
    for stream in &mut taken {
        let answer = Answer::read(stream);
        assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
        assert_eq!(answer.events().last().unwrap()["choices"][0]["finish_reason"], "length");
    }
    server.ended();
}
