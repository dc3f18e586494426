//! `dlxc tune` on trained checkpoints: the front is stored, read, used, and repeated from a recording.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use dlx_runtime::artifact::Artifact;
use dlx_runtime::decode::{FinishReason, Overrides};
use dlx_runtime::policies::Aim;
use dlx_runtime::session::{Prompt, Report, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::{LoadOptions, Model};
use dlx_targets::artifact_writer::ArtifactWriter;
use serde_json::Value;

#[test]
fn a_front_is_measured_stored_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let (model, prompts) = (artifact(dir.path(), "sdar-tiny"), questions(dir.path(), 24));
    let untuned = dlxc(&["run", path(&model), "What is 27 + 45?", "--quality", "fast"]);
    assert!(stderr(&untuned).contains("run `dlxc tune`"), "{}", stderr(&untuned));

    let tuned = dir.path().join("tuned.dlxa");
    let before = std::fs::read(&model).unwrap();
    let first = dlxc(&["tune", path(&model), path(&prompts), "--json", "-o", path(&tuned)]);
    let report = json(&first);
    assert!(std::fs::read(&model).unwrap() == before, "the artifact itself is left alone");
    assert_eq!(report["reference"], "answers");
    let points = report["policies"]["points"].as_array().unwrap();
    for (name, cost) in [("by_seconds", "seconds"), ("by_passes", "passes")] {
        let front: Vec<_> = report[name].as_array().unwrap().iter().map(|i| &points[number(i) as usize]).collect();
        assert!(!front.is_empty());
        for pair in front.windows(2) {
            assert!(number(&pair[0][cost]["mean"]) <= number(&pair[1][cost]["mean"]), "{name}");
            assert!(number(&pair[0]["agreement"]["mean"]) < number(&pair[1]["agreement"]["mean"]), "{name}");
        }
    }
    // The best is no worse than one token per step, which the sweep holds.
    let careful = report["trials"].as_array().unwrap().iter().filter(|t| t["setting"] == 0);
    let careful: f64 = careful.map(|t| number(&t["agreement_ppm"])).sum::<f64>() / 24e6;
    let best = points.iter().map(|p| number(&p["agreement"]["mean"])).fold(0.0, f64::max);
    assert!(best >= careful - 1e-9 && best > 0.8, "{best} {careful}");

    // The same recording leads to the same bytes, in the report and in the artifact.
    let costs = dir.path().join("costs.json");
    std::fs::write(&costs, &first.stdout).unwrap();
    let again = dlxc(&["tune", path(&model), path(&prompts), "--json", "--costs", path(&costs)]);
    assert_eq!(text(&again), text(&first));
    assert!(std::fs::read(&model).unwrap() == std::fs::read(&tuned).unwrap());
    let other = questions(dir.path(), 25);
    let refused = dlxc(&["tune", path(&model), path(&other), "--dry-run", "--costs", path(&costs)]);
    assert!(stderr(&refused).contains("another file of prompts"), "{}", stderr(&refused));

    let shown = text(&dlxc(&["inspect", path(&tuned)]));
    assert!(shown.contains("best by") && shown.contains("section policies"), "{shown}");
    assert_eq!(json(&dlxc(&["inspect", path(&tuned), "--json"]))["policies"], report["policies"]);
    for (quality, point) in [("fast", 0), ("best", -1), ("0.3", 0)] {
        let front = report["by_seconds"].as_array().unwrap();
        let want = if point < 0 { front.last() } else { front.first() }.unwrap();
        let run = json(&dlxc(&["run", path(&tuned), "What is 27 + 45?", "--json", "--quality", quality]));
        if quality != "0.3" || number(&points[number(want) as usize]["agreement"]["mean"]) >= 0.3 {
            assert_eq!(&run["chosen"]["point"], want, "{quality}");
        }
        assert_eq!(run["chosen"]["settings"], points[number(&run["chosen"]["point"]) as usize]["settings"]);
    }
    let run = dlxc(&["run", path(&tuned), "What is 27 + 45?", "--stats", "--deadline", "60s"]);
    assert_eq!(text(&run), "72\n");
    assert!(stderr(&run).contains("; decoded by ") && !stderr(&run).contains("not fast enough"), "{}", stderr(&run));
    let run = dlxc(&["run", path(&tuned), "What is 27 + 45?", "--stats", "--deadline", "0.001ms"]);
    assert!(stderr(&run).contains("not fast enough"), "{}", stderr(&run));
    for wrong in [&["--quality", "good"][..], &["--quality", "1.5"], &["--deadline", "1s", "--steps", "2"]] {
        let args = [&["run", path(&tuned), "Hello"], wrong].concat();
        assert_eq!(dlxc(&args).status.code(), Some(2), "{wrong:?}");
    }
    let missed = dlxc(&["run", path(&tuned), "Hello", "--quality", "1"]);
    assert!(best >= 1.0 || stderr(&missed).contains("no measured setting"), "{}", stderr(&missed));
}

#[test]
fn full_attention_sweeps_blocks_and_caches_against_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (model, prompts) = (artifact(dir.path(), "llada-tiny"), questions(dir.path(), 8));
    let args = ["tune", path(&model), path(&prompts), "--max-new", "32", "--reference", "careful", "--json"];
    let report = json(&dlxc(&args));
    let settings = report["settings"].as_array().unwrap();
    for cache in ["none", "prefix", "dual"] {
        assert!(settings.iter().any(|s| s["cache"] == cache), "{cache}");
    }
    let careful: Vec<_> = report["trials"].as_array().unwrap().iter().filter(|t| t["setting"] == 0).collect();
    assert!(careful.len() == 8 && careful.iter().all(|t| t["agreement_ppm"] == 1_000_000), "it agrees with itself");
    let points = report["policies"]["points"].as_array().unwrap();
    assert!(points.len() > 1, "{points:?}");
    let fastest = &points[0];
    let slowest = careful.iter().map(|t| number(&t["passes"])).sum::<f64>() / 8.0;
    assert!(number(&fastest["passes"]["mean"]) < slowest, "{fastest:?} {slowest}");
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (model, good) = (artifact(dir.path(), "sdar-tiny"), questions(dir.path(), 8));
    let refused = |model: &Path, prompts: &Path, rest: &[&str], says: &[&str]| {
        let output = dlxc(&[&["tune", path(model), path(prompts)], rest].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        says.iter().for_each(|says| assert!(stderr(&output).contains(says), "{says}: {}", stderr(&output)));
    };
    let file = |text: &str| {
        let file = dir.path().join("prompts.jsonl");
        std::fs::write(&file, text).unwrap();
        file
    };
    let lines = std::fs::read_to_string(&good).unwrap();
    refused(&model, &file(""), &[], &["prompts.jsonl", "holds no questions"]);
    refused(&model, &file(&lines[..lines.find('\n').unwrap()]), &[], &["holds 1 prompts", "at least 8"]);
    refused(&model, &file(&format!("{lines}{{\"prompt\": 3}}")), &[], &["prompts.jsonl:9"]);
    refused(
        &model,
        &file(&format!("{lines}{{\"prompt\": \"x\"}}")),
        &["--reference", "answers"],
        &[":9: has no answer"],
    );
    let long = format!("{lines}{{\"prompt\": \"{}\"}}", "fox and river ".repeat(4000));
    refused(&model, &file(&long), &[], &["prompts.jsonl:9", "the model holds"]);
    let causal = artifact(dir.path(), "qwen2-tiny");
    refused(&causal, &good, &[], &["qwen2-tiny", "one way of decoding only"]);
    refused(&model, &good, &["--costs", path(&good)], &["is no recording of a sweep"]);
    let source = models().join("sdar-tiny");
    refused(&source, &good, &[], &["compile it first"]);

    // A section that cannot be read stops every other command, and is replaced by a new sweep.
    let edited = dir.path().join("edited.dlxa");
    for (section, says) in [("{", "EOF"), (r#"{"version": 9}"#, "version 9"), (r#"{"version": 1}"#, "missing field")] {
        with_policies(&model, &edited, section);
        for command in [&["run", path(&edited), "Hello"][..], &["inspect", path(&edited)]] {
            let output = dlxc(command);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(stderr(&output).contains(says) && stderr(&output).contains("`policies`"), "{}", stderr(&output));
        }
    }
    text(&dlxc(&["tune", path(&edited), path(&good)]));
    assert!(text(&dlxc(&["inspect", path(&edited)])).contains("best by"));
}

/// Calls with deadlines around what an answer takes; `DLX_TUNE_CALLS=200` is the measurement that counts.
#[test]
fn deadlines_are_met() {
    let dir = tempfile::tempdir().unwrap();
    let (model, prompts) = (artifact(dir.path(), "sdar-tiny"), questions(dir.path(), 40));
    text(&dlxc(&["tune", path(&model), path(&prompts), "--threads", "1"]));
    let calls = std::env::var("DLX_TUNE_CALLS").ok().map(|n| n.parse::<usize>().unwrap());
    let options = LoadOptions { cpu: dlx_runtime::cpu::CpuOptions { threads: 1, isa: None }, ..LoadOptions::default() };
    let mut session = Session::new(Model::load(&Artifact::open(&model).unwrap(), &options).unwrap()).unwrap();
    let asked: Vec<Value> =
        std::fs::read_to_string(data()).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut ask = |i: usize, aim: Aim| -> Report {
        let message = Message::new("user", asked[i % asked.len()]["prompt"].as_str().unwrap());
        let prompt = Prompt::Chat { messages: vec![message], variables: serde_json::Map::new() };
        let request = Request { aim: Some(aim), ..Request::new(prompt, 256) };
        session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let mut alone: Vec<Duration> = (0..21).map(|i| ask(i * 9, Aim::Best).total).collect();
    alone.sort_unstable();
    let typical = alone[10];
    let wanted = calls.unwrap_or(40);
    let (mut met, mut whole, mut points) = (0, 0, [0usize; 64]);
    for i in 0..wanted {
        let deadline = typical.mul_f64([0.5, 1.0, 2.0, 4.0][i % 4]);
        let report = ask(i, Aim::Within(deadline));
        let chosen = report.chosen.unwrap();
        assert!(!chosen.fits || chosen.seconds <= deadline.as_secs_f64());
        met += usize::from(report.total <= deadline);
        whole += usize::from(report.finish != FinishReason::Deadline && report.total <= deadline);
        points[chosen.point] += 1;
    }
    let used: Vec<_> = points.iter().enumerate().filter(|(_, n)| **n > 0).collect();
    let _ = writeln!(
        std::io::stderr(),
        "{met} of {wanted} deadlines met ({whole} with the whole answer) around {typical:?}; settings {used:?}"
    );
    // Other programs may hold a small machine up for longer than a tiny model's answer takes.
    let least = if calls.is_some() { 95 } else { 75 };
    assert!(met * 100 >= wanted * least, "{met} of {wanted}");

    let fixed = Request {
        aim: Some(Aim::Best),
        overrides: Overrides { steps: Some(2), ..Overrides::default() },
        ..Request::new(Prompt::Text("Hello".into()), 8)
    };
    let error = session.generate(&fixed, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("`steps`"), "{error}");
}

/// Puts any text into the section.
fn with_policies(from: &Path, to: &Path, policies: &str) {
    let artifact = Artifact::open(from).unwrap();
    let mut writer = ArtifactWriter::create(to).unwrap();
    for section in artifact.sections() {
        let bytes = artifact.section(&section.name).unwrap();
        if section.name == dlx_runtime::artifact::WEIGHTS {
            writer.append(bytes).unwrap();
        } else {
            writer.section(section.name.clone(), bytes);
        }
    }
    writer.section(dlx_runtime::artifact::POLICIES, policies);
    writer.finish().unwrap();
}

fn artifact(dir: &Path, model: &str) -> PathBuf {
    let to = dir.join(format!("{model}.dlxa"));
    text(&dlxc(&["compile", path(&models().join(model)), "-o", path(&to), "--max-seq", "512"]));
    to
}

/// A file of so many questions of different tasks.
fn questions(dir: &Path, count: usize) -> PathBuf {
    let all = std::fs::read_to_string(data()).unwrap();
    let some: String = all.lines().step_by(200 / count).take(count).map(|l| format!("{l}\n")).collect();
    let file = dir.join(format!("questions-{count}.jsonl"));
    std::fs::write(&file, some).unwrap();
    file
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/questions.jsonl")
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}
