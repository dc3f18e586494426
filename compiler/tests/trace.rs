//! `dlxc run --trace` and `dlxc trace` through the binary: recorded, shown, decoded again, compared.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlx_runtime::cpu::Isa;
use serde_json::Value;

/// A directory with artifacts of two formats and a recording of the first.
struct Made {
    dir: tempfile::TempDir,
}

const STORY: &str = "Tell me a story about a fox and a river.";

impl Made {
    fn new(model: &str, options: &[&str]) -> Made {
        let made = Made { dir: tempfile::tempdir().unwrap() };
        let model = format!("{}/../examples/models/{model}", env!("CARGO_MANIFEST_DIR"));
        for quant in ["int4", "none"] {
            made.run(&["compile", &model, "--quant", quant, "--max-seq", "128", "-o", &made.at(quant)]);
        }
        let answer = made.run(&[&["run", &made.at("int4"), STORY, "--max-new", "32"], options].concat());
        let traced = ["run", &made.at("int4"), STORY, "--max-new", "32", "--trace", &made.at("t.jsonl")];
        assert_eq!(made.run(&[&traced, options].concat()), answer, "recording changes nothing");
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn output(&self, args: &[&str], isa: Option<Isa>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
        command.args(args).env_remove("DLX_ISA");
        command.envs(isa.map(|isa| ("DLX_ISA", isa.to_string())));
        command.output().unwrap()
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.output(args, None);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is said of a call that fails.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.output(args, None);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The report of a call that ends with a status.
    fn report(&self, args: &[&str], status: i32) -> Value {
        let output = self.output(&[args, &["--json"]].concat(), None);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Writes the recording with one edit beside it.
    fn edited(&self, from: &str, to: &str) -> String {
        let text = std::fs::read_to_string(self.path("t.jsonl")).unwrap();
        let edited = text.replacen(from, to, 1);
        assert_ne!(edited, text, "{from}");
        std::fs::write(self.path("edited.jsonl"), edited).unwrap();
        self.at("edited.jsonl")
    }
}

/// Greedy decoding with a cache of blocks; drawing with guidance; full attention with a cache, in an order of its own.
fn cases() -> [Made; 3] {
    [
        Made::new("sdar-tiny", &[]),
        Made::new(
            "llada-tiny",
            &["--temperature", "0.8", "--seed", "3", "--cfg", "0.5", "--rule", "static", "--steps", "8"],
        ),
        Made::new("dream-tiny", &["--cache", "dual", "--rule", "drawn", "--steps", "6", "--confidence", "neg-entropy"]),
    ]
}

#[test]
fn a_replay_is_the_same_to_the_bit_on_any_thread_count_and_instruction_set() {
    for made in cases() {
        for threads in ["1", "2", "5"] {
            let replay = ["trace", "replay", &made.at("t.jsonl"), "--model", &made.at("int4"), "--threads", threads];
            let report = made.report(&replay, 0);
            assert_eq!((&report["same"], &report["first_difference"]), (&Value::Bool(true), &Value::Null));
            assert!(report["numbers"].as_u64().unwrap() > 20 && report["decisions"].as_u64().unwrap() > 2, "{report}");
        }
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let replay = ["trace", "replay", &made.at("t.jsonl"), "--model", &made.at("int4")];
            let output = made.output(&replay, Some(isa));
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && said.contains("the same to the bit"), "{isa}: {said}");
            assert!(said.contains(&format!("replayed on cpu: {isa} on")), "{said}");
        }
    }
}

#[test]
fn a_replay_names_what_differs() {
    let made = Made::new("sdar-tiny", &[]);
    let text = std::fs::read_to_string(made.path("t.jsonl")).unwrap();
    let number = text.split("\"prob\":").nth(3).unwrap().split([',', '}']).next().unwrap();
    let other = format!("{}", f32::from_bits(number.parse::<f32>().unwrap().to_bits() - 1));
    let file = made.edited(&format!("\"prob\":{number}"), &format!("\"prob\":{other}"));
    let output = made.output(&["trace", "replay", &file, "--model", &made.at("int4")], None);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("`prob` is") && said.contains(number) && said.contains(&other), "{said}");

    let whole: Vec<&str> = text.lines().collect();
    let last = whole.iter().rposition(|line| line.starts_with("{\"pass\"")).unwrap();
    let short: Vec<&str> = [&whole[..last], &whole[whole.len() - 1..]].concat();
    std::fs::write(made.path("short.jsonl"), short.join("\n") + "\n").unwrap();
    let report = made.report(&["trace", "replay", &made.at("short.jsonl"), "--model", &made.at("int4")], 1);
    assert_eq!(report["first_difference"]["what"], "missing");
}

#[test]
fn another_artifact_is_refused_or_run_along_the_canvas() {
    for made in cases() {
        let replay = ["trace", "replay", &made.at("t.jsonl"), "--model", &made.at("none")];
        let error = made.refused(&replay);
        assert!(error.contains("was recorded with artifact") && error.contains("--force"), "{error}");
        let report = made.report(&[&replay[..], &["--force"]].concat(), 0);
        let rows = report["rows"].as_array().unwrap();
        let text = std::fs::read_to_string(made.path("t.jsonl")).unwrap();
        assert_eq!(rows.len(), text.matches("{\"position\":").count(), "every row that was read");
        assert!(rows.iter().any(|row| row["recorded"]["prob"] != row["here"]["prob"]), "{report}");
        // Along its own canvas a model says what it said.
        let own = ["trace", "replay", &made.at("t.jsonl"), "--model", &made.at("int4"), "--force"];
        for row in made.report(&own, 0)["rows"].as_array().unwrap() {
            assert_eq!((&row["recorded"], &row["revealed"]), (&row["here"], &row["would_reveal"]));
        }
    }
}

#[test]
fn a_difference_is_followed_to_its_node() {
    for made in cases() {
        let diff = ["trace", "diff", &made.at("t.jsonl"), "--model", &made.at("none"), "--against", &made.at("int4")];
        let report = made.report(&[&diff[..], &["--tolerance", "0.0001"]].concat(), 1);
        assert!(report["first_difference"]["what"].is_object(), "{report}");
        // The table of embeddings is the first thing that int4 makes another.
        let node = &report["first_node"];
        assert!(node["nodes"][0].as_str().unwrap().contains(" = embed %ids, "), "{node}");
        assert_eq!(node["agree"], 0);
        let tensor = node["from"][0].as_str().unwrap();
        assert!(tensor.contains("embed") || tensor.contains("wte"), "{node}");
        let same = ["trace", "diff", &made.at("t.jsonl"), "--model", &made.at("int4"), "--tolerance", "0"];
        let report = made.report(&same, 0);
        assert_eq!((&report["same"], &report["first_node"]), (&Value::Bool(true), &Value::Null));
    }
}

#[test]
fn two_recordings_are_compared() {
    let made = Made::new("sdar-tiny", &[]);
    let (ours, theirs) = (made.at("t.jsonl"), made.at("f.jsonl"));
    made.run(&["run", &made.at("none"), STORY, "--max-new", "32", "--trace", &theirs]);
    assert_eq!(made.report(&["trace", "diff", &ours, &ours, "--tolerance", "0"], 0)["differences"], 0);
    let report = made.report(&["trace", "diff", &ours, &theirs, "--tolerance", "0"], 1);
    assert!(report["differences"].as_u64().unwrap() > 10, "{report}");
    made.run(&["run", &made.at("none"), STORY, "--max-new", "28", "--trace", &theirs]);
    assert!(made.refused(&["trace", "diff", &ours, &theirs]).contains("other lengths"));
    made.run(&["run", &made.at("none"), "Who are you?", "--max-new", "32", "--trace", &theirs]);
    assert!(made.refused(&["trace", "diff", &ours, &theirs]).contains("other prompts"));
}

#[test]
fn a_recording_is_shown() {
    let made = Made::new("sdar-tiny", &[]);
    let shown = made.run(&["trace", "show", &made.at("t.jsonl")]);
    assert!(shown.contains("[ found]"), "{shown}");
    let json: Value = serde_json::from_str(&made.run(&["trace", "show", &made.at("t.jsonl"), "--json"])).unwrap();
    let positions = json["positions"].as_array().unwrap();
    let answer = made.run(&["run", &made.at("int4"), STORY, "--max-new", "32"]);
    let text: String = positions.iter().filter_map(|p| p["text"].as_str()).collect();
    assert!(text.starts_with(answer.trim_end()), "{text}");
    // Text of a file that somebody edited reaches no terminal as it is.
    let file = made.edited("\":\" found\"", "\":\"\\u001b[2J\"");
    let shown = made.run(&["trace", "show", &file]);
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn hostile_recordings_are_errors() {
    let made = Made::new("sdar-tiny", &[]);
    let prompt = std::fs::read_to_string(made.path("t.jsonl")).unwrap();
    let prompt = prompt.split("\"prompt\":[").nth(1).unwrap().split(',').next().unwrap().to_owned();
    for (from, to, message) in [
        (format!("\"prompt\":[{prompt}"), "\"prompt\":[99999".to_owned(), "outside the vocabulary"),
        ("\"block\":4".into(), "\"block\":8".into(), "its block is not that of this sdar model"),
        ("\"mask_id\":511".into(), "\"mask_id\":5".into(), "its mask is not that"),
        ("\"steps\":4".into(), "\"steps\":0".into(), "`steps` is out of range"),
        ("\"tokenizer\":\"".into(), "\"tokenizer\":\"0".into(), "its tokenizer is not that"),
        ("\"held\":0".into(), "\"held\":4".into(), "held 4 tokens of a call before"),
        ("\"revealed\":[[23,".into(), "\"revealed\":[[20,".into(), "would be fed other rows"),
        ("\"revealed\":[[23,448]]".into(), "\"revealed\":[[23,99999]]".into(), "outside the vocabulary"),
        ("\"kind\":\"commit\"".into(), "\"kind\":\"prefill\"".into(), "would be fed other rows"),
    ] {
        let file = made.edited(&from, &to);
        let error = made.refused(&["trace", "replay", &file, "--model", &made.at("int4"), "--force"]);
        assert!(error.contains(message), "{from} → {to}: {error}");
    }
    let other = made.at("other");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/llada-tiny");
    made.run(&["compile", model, "--max-seq", "128", "-o", &other]);
    let error = made.refused(&["trace", "replay", &made.at("t.jsonl"), "--model", &other, "--force"]);
    assert!(error.contains("is not that of this llada model"), "{error}");
}

#[test]
fn nothing_is_left_of_a_recording_that_fails() {
    let made = Made::new("sdar-tiny", &[]);
    let names = || {
        let names = std::fs::read_dir(made.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let before = names();
    let file = made.at("new.jsonl");
    made.refused(&["run", &made.at("int4"), "a", "--temperature", "1", "--rule", "none such", "--trace", &file]);
    assert_eq!(names(), before);
    assert!(!Path::new(&file).exists());
    let error = made.refused(&["run", &made.at("int4"), "a", "--trace", &made.at("no/such/dir")]);
    assert!(error.contains("cannot be written"), "{error}");
    let chat = made.output(&["run", &made.at("int4"), "--chat", "--trace", &file], None);
    assert_eq!(chat.status.code(), Some(2));
}
