//! Pairs and requests that cannot work, and what is said of them.

use std::path::Path;

use dlx_runtime::session::{Drafting, Length, Prompt, Request, Session, Speculate};

use super::{VERIFIER, load, load_from, path, session};

/// A drafter whose tokenizer.json was edited.
fn edited(model: &str, edit: impl Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(path(model)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let file = dir.path().join("tokenizer.json");
    let mut json = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(&file, json.to_string()).unwrap();
    dir
}

fn refused(dir: &Path) -> String {
    session(VERIFIER, "cpu", 1).draft_with(load_from(dir, "cpu", 1)).unwrap_err().to_string()
}

#[test]
fn tokenizers_that_mean_something_else_are_refused_by_the_first_difference() {
    let one_merge = edited("sdar-tiny", |json| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.pop();
    });
    let error = refused(one_merge.path());
    assert!(error.contains("model.merges["), "{error}");
    let one_token = edited("sdar-tiny", |json| {
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let (x, y) = (vocab[&a].clone(), vocab[&b].clone());
        vocab.insert(a, y);
        vocab.insert(b, x);
    });
    let error = refused(one_token.path());
    assert!(error.contains("is \"a\" to the verifier and \"b\" to the drafter"), "{error}");
}

#[test]
fn what_cannot_draft_or_verify_is_refused_with_advice() {
    let prompt = || Prompt::Text("What is 1 + 1?".into());
    let ask = |session: &mut Session, drafting, length| {
        let speculate = Speculate { length, ..Speculate::new(drafting) };
        let request = Request { speculate: Some(speculate), ..Request::new(prompt(), 8) };
        session.generate(&request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let mut qwen = session(VERIFIER, "cpu", 1);
    assert!(ask(&mut qwen, Drafting::Deer, Length::Auto).contains("no drafter"));
    let error = ask(&mut qwen, Drafting::Itself, Length::Auto);
    assert!(error.contains("fills in masks"), "{error}");
    for model in ["sdar-tiny", "llada-tiny"] {
        let error = ask(&mut session(model, "cpu", 1), Drafting::Itself, Length::Auto);
        assert!(error.contains("predict the next token"), "{error}");
    }
    qwen.draft_with(load("sdar-tiny", "cpu", 1)).unwrap();
    let error = ask(&mut qwen, Drafting::Deer, Length::Fixed(100_000));
    assert!(error.contains("a draft of 100000 tokens does not fit"), "{error}");
    // The drafter's mask is a token of the verifier: as a part of the prompt it would be filled in.
    let request =
        Request { speculate: Some(Speculate::new(Drafting::Deer)), ..Request::new(Prompt::Ids(vec![5, 511]), 8) };
    let error = qwen.generate(&request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("token 511 at position 1"), "{error}");
}
