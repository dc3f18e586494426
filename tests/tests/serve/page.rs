//! The page and the OpenAPI document, as they come over the wire; `tests/serve/page.sh` opens the page in a browser.

use std::collections::BTreeSet;

use serde_json::json;

use crate::client::{Server, Setup};

#[test]
fn the_page_is_whole_and_says_what_may_run() {
    let server = Server::start(Setup { keys: vec!["secret".into()], ..Setup::default() });
    let page = server.get("/");
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    let mut names = BTreeSet::new();
    for text in page.body.split(['"']).filter(|part| part.starts_with("page/")) {
        names.insert(text.to_owned());
    }
    assert!(names.len() >= 3, "{names:?}");
    let mut queue: Vec<String> = names.iter().cloned().collect();
    while let Some(name) = queue.pop() {
        let file = server.get(&format!("/{name}"));
        assert_eq!(file.status, 200, "{name}");
        let kind = match name.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(file.headers["content-type"], kind);
        for import in file.body.split("from \"./").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let import = format!("page/{import}");
            if names.insert(import.clone()) {
                queue.push(import);
            }
        }
    }
    for path in ["/", "/page/app.js"] {
        let headers = server.get(path).headers;
        assert!(headers["content-security-policy"].starts_with("default-src 'self';"));
        assert_eq!(
            (headers["x-content-type-options"].as_str(), headers["cache-control"].as_str()),
            ("nosniff", "no-cache")
        );
        assert!(!headers.contains_key("access-control-allow-origin"));
    }
    // The page is for anybody, what it asks for is not.
    assert_eq!(server.get("/v1/models").error().0, 401);
    for path in ["/page", "/page/", "/page/none.js", "/page/../Cargo.toml", "/index.html"] {
        assert!([401, 404].contains(&server.get(path).status), "{path}");
    }
}

#[test]
fn the_document_is_about_this_server() {
    let server = Server::start(Setup { admin_keys: vec!["root".into()], ..Setup::default() });
    let document = server.get("/openapi.json").json();
    let root = "authorization: Bearer root\r\n";
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "tiny").replace("{file}", "app.js");
        for method in ["get", "post"] {
            let status = server.send(&method.to_uppercase(), &path, root, "").status;
            match methods.get(method) {
                Some(_) => assert!([200, 400].contains(&status), "{method} {path}: {status}"),
                None => assert_eq!(status, 405, "{method} {path}"),
            }
        }
    }
    let error = server.get("/none").json();
    let schema = &document["components"]["schemas"]["Error"]["properties"]["error"];
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&error["error"]), names(&schema["properties"]));
    let described = names(&document["components"]["schemas"]["Model"]["properties"]);
    assert_eq!(names(&server.get("/v1/models/tiny").json()), described);
    let answer = server.chat(json!({})).json();
    assert_eq!(names(&answer), names(&document["components"]["schemas"]["Answer"]["properties"]));
}

#[test]
fn an_answer_can_be_continued() {
    let server = Server::start(Setup::default());
    let story = json!({"role": "user", "content": "Tell me a story about a fox and a river."});
    let whole = server.chat(json!({"messages": [story.clone()]})).json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let begun = server.chat(json!({"messages": [story.clone()], "max_tokens": 8})).json();
    let begun = begun["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with(begun) && begun.len() > 4);
    let go_on = |content: &str| {
        let messages = json!([story.clone(), {"role": "assistant", "content": content}]);
        server.chat(json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false}))
    };
    assert_eq!(format!("{begun}{}", go_on(begun).json()["choices"][0]["message"]["content"].as_str().unwrap()), text);
    // What it begins with is text, whatever it says.
    let answer = go_on("One <|MASK|> two");
    assert_eq!(answer.status, 200, "{}", answer.body);
    for messages in [json!([story.clone()]), json!([{"role": "assistant", "content": "x"}])] {
        let refused = server.chat(json!({"messages": messages, "continue_final_message": true}));
        assert_eq!((refused.error().0, refused.error().1), (400, "messages[0]".into()));
    }
    let refused = server.chat(json!({"messages": [story], "add_generation_prompt": false}));
    assert_eq!(refused.error().1, "add_generation_prompt");
}
