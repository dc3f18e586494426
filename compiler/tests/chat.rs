//! The commands of `dlxc run --chat`, given on standard input.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

const QUESTION: &str = "What is 27 + 45?";

/// What a conversation with a small model says to stdout and stderr; it must end well.
fn chat(dir: &Path, model: &str, args: &[&str], lines: &[&str]) -> (String, String) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
    command.arg("run").arg(model).args(["--quant", "none", "--chat"]).args(args).env("DLXC_CACHE", dir);
    let pipes = command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    child.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    let said: Vec<&str> = err.lines().filter(|line| !line.starts_with("compiling ")).collect();
    (out, said.join("\n"))
}

fn sdar(dir: &Path, lines: &[&str]) -> (String, String) {
    chat(dir, "sdar-tiny", &[], lines)
}

/// Tokens of each turn's prompt.
fn prompts(out: &str) -> Vec<u64> {
    let reports = serde_json::Deserializer::from_str(out).into_iter::<Value>();
    reports.map(|report| report.unwrap()["prompt_tokens"].as_u64().unwrap()).collect()
}

#[test]
fn the_conversation_can_be_forgotten_and_the_system_message_changed() {
    let dir = tempfile::tempdir().unwrap();
    let lines =
        [QUESTION, QUESTION, "/reset", QUESTION, "/system", "/system Answer in digits.", "/system", "/reset", QUESTION];
    let (out, err) = chat(dir.path(), "sdar-tiny", &["--json"], &lines);
    let tokens = prompts(&out);
    assert_eq!((tokens.len(), tokens[2]), (4, tokens[0]), "{err}");
    assert!(tokens[1] > tokens[0] && tokens[3] > tokens[0], "{tokens:?}");
    let forgotten = "the conversation is forgotten";
    let said = [forgotten, "there is no system message", "the system message is set", "Answer in digits.", forgotten];
    assert_eq!(err, said.join("\n"));
    let lines = ["/system \"\"", "/system", QUESTION];
    let (out, err) = chat(dir.path(), "sdar-tiny", &["--json", "--system", "Be brief."], &lines);
    assert_eq!((prompts(&out)[0], err.lines().count()), (tokens[0], 2), "{err}");
    let (out, _) = chat(dir.path(), "sdar-tiny", &["--json", "--system", "Be brief."], &["/reset", QUESTION]);
    assert!(prompts(&out)[0] > tokens[0], "the system message of the command line is kept");
}

#[test]
fn a_turn_computes_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let held = |lines: &[&str]| -> Vec<u64> {
        let (out, _) = chat(dir.path(), "sdar-tiny", &["--json"], lines);
        let reports = serde_json::Deserializer::from_str(&out).into_iter::<Value>();
        reports.map(|report| report.unwrap()["held_tokens"].as_u64().unwrap()).collect()
    };
    // A setting in between leaves the caches alone; guidance, whose second sequence is another, does not use them.
    let turns =
        held(&[QUESTION, QUESTION, "/set temperature 0.5", QUESTION, "/set cfg 0.5", QUESTION, "/reset", QUESTION]);
    assert!(turns[0] == 0 && turns[1] > 0 && turns[2] > turns[1] && turns[3] == 0, "{turns:?}");
    assert!(turns[4] < turns[1], "{turns:?}");
}

#[test]
fn settings_change_the_next_turn() {
    let dir = tempfile::tempdir().unwrap();
    let story = "Tell me a story about a fox and a river.";
    let lines =
        [story, "/set max_new 4", "/reset", story, "/set max_new default", "/set stop fox", "/reset", story, "/set"];
    let (out, err) = sdar(dir.path(), &lines);
    let answers: Vec<&str> = out.lines().collect();
    let [long, short, stopped] = answers[..] else { panic!("{out}") };
    assert!(short.len() < long.len() && long.starts_with(short) && !short.is_empty(), "{out}");
    assert_eq!(long.split("fox").next().unwrap().trim_end(), stopped.trim_end());
    let row = |name: &str| {
        let line = err.lines().rev().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line[name.len()..].trim().to_owned()
    };
    assert_eq!([row("max_new"), row("seed"), row("stop"), row("temperature")], ["256", "0", "[\"fox\"]", "0.0"]);
    let (_, err) =
        chat(dir.path(), "sdar-tiny", &["--threshold", "0.9", "--top-k", "7"], &["/set threshold", "/set top-k"]);
    assert_eq!(err.split_whitespace().collect::<Vec<_>>(), ["threshold", "0.9", "top_k", "7"]);
}

#[test]
fn wrong_commands_and_settings_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (line, right) in [
        ("/hlep", "use one of /help, /reset"),
        ("/hlep", "//text sends /text as a message"),
        ("/reset now", "takes nothing behind it"),
        ("/set heat 1", "use one of max_new, threshold"),
        ("/set heat", "use one of max_new, threshold"),
        ("/set threads 1", "use one of max_new, threshold"),
        ("/set threshold 2", "use a number above 0, up to 1"),
        ("/set top_k 0", "1..="),
        ("/set max_new many", "invalid digit"),
        ("/set rule guess", "sequential"),
        ("/set confidence luck", "margin"),
        ("/set cache dual", "it needs full attention"),
        ("/set ignore_eos 1", "use true or false"),
        ("/set stop x<|im_end|>", "stop at \"<|im_end|>\" alone"),
        ("/stats", "there is no answer yet"),
        ("/save", "needs the name of a file"),
        ("/load", "needs the name of a file"),
    ] {
        let (out, err) = sdar(dir.path(), &[line, QUESTION]);
        assert_eq!((out.as_str(), err.matches("error: ").count()), ("72\n", 1), "{line}: {err}");
        assert!(err.contains(right), "{line}: {err}");
    }
}

#[test]
fn help_statistics_messages_with_a_slash_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let lines = ["/help", QUESTION, "/stats", "//help", "What is \\", "27 + 45?", "/quit", "/help", QUESTION];
    let (out, err) = chat(dir.path(), "sdar-tiny", &["--json"], &lines);
    assert_eq!(prompts(&out).len(), 3, "{err}");
    for part in ["/save FILE", "top_p", "//text sends /text", "/quit"] {
        assert_eq!(err.matches(part).count(), 1, "{part}: {err}");
    }
    assert_eq!(err.matches("prompt tokens from the caches; prefill").count(), 1, "{err}");
    for end in ["/exit", "/bye"] {
        assert_eq!(sdar(dir.path(), &[QUESTION, end, QUESTION]).0, "72\n");
    }
}

#[test]
fn a_saved_conversation_goes_on_as_it_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let next = "Tell me a story about a fox and a river.";
    for model in ["sdar-tiny", "llada-tiny"] {
        let set =
            ["/system Answer briefly.", "/set temperature 0.8", "/set seed 7", "/set max_new 24", "/set top_p 0.9"];
        let lines = [&set[..], &[QUESTION, "/save a.json", next, "/save a.json"]].concat();
        let (out, err) = chat(dir.path(), model, &["--json"], &lines);
        assert!(err.contains("saved 2 messages in a.json") && err.contains("saved 4 messages in a.json"), "{err}");
        let lines = [&set[..], &[QUESTION, "/save b.json"]].concat();
        chat(dir.path(), model, &["--json"], &lines);
        let (again, err) =
            chat(dir.path(), model, &["--json", "--top-k", "3"], &["/load b.json", next, "/save c.json"]);
        assert!(err.contains("loaded 2 messages from b.json"), "{err}");
        let reports = |out: &str| {
            let reports = serde_json::Deserializer::from_str(out).into_iter::<Value>();
            reports.map(|report| report.unwrap()["ids"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(reports(&again)[..], reports(&out)[1..], "{model}");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("a.json"), read("c.json"), "{model}");
        (["a.json", "b.json", "c.json"]).iter().for_each(|name| std::fs::remove_file(dir.path().join(name)).unwrap());
    }
}

#[test]
fn files_that_are_no_conversation_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    sdar(dir.path(), &[QUESTION, "/save good.json"]);
    let good = std::fs::read_to_string(dir.path().join("good.json")).unwrap();
    let settings = good.replace("\"seed\": 0", "\"seed\": 0, \"cache\": \"dual\"");
    let unknown = good.replace("\"seed\": 0", "\"seed\": 0, \"heat\": 1");
    for (text, why) in [
        ("", "is no saved conversation"),
        ("{\"a\": 1}", "is no saved conversation"),
        (&good[..good.len() / 2], "is no saved conversation"),
        (&settings, "it needs full attention"),
        (&unknown, "there is no setting heat"),
    ] {
        assert_ne!(text, good);
        std::fs::write(dir.path().join("bad.json"), text).unwrap();
        let lines = ["/system Keep this.", "/load bad.json", "/load none.json", "/system", QUESTION];
        let (out, err) = sdar(dir.path(), &lines);
        assert_eq!((out.is_empty(), err.matches("error: ").count()), (false, 2), "{err}");
        assert!(err.contains("error: bad.json: ") && err.contains(why) && err.contains("error: none.json: "), "{err}");
        assert!(err.ends_with("Keep this."), "{err}");
    }
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let (_, err) = sdar(dir.path(), &[QUESTION, "/save notes.txt"]);
    assert!(err.contains("notes.txt: is there already and is no saved conversation"), "{err}");
    assert_eq!(std::fs::read_to_string(dir.path().join("notes.txt")).unwrap(), "mine");
}
