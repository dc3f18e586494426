//! Pages of `dlxc report` through the binary: what is on them, that no text of a file becomes markup, and what is refused.
//!
//! With `DLX_REPORT_DIR` set, the pages stay there for `tests/report/run.sh`, which opens them in a browser.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use dlx_runtime::artifact::Artifact;
use dlx_runtime::session::{Prompt, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::trace::{About, Recorder};
use dlx_runtime::{LoadOptions, Model};
use serde_json::{Value, json};

/// Every section, by the id of its heading.
const SECTIONS: &[&str] = &["passes", "compare", "artifact", "sizes", "memory", "time", "graph", "decode"];
/// What a hostile text would like to be.
const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&";

/// A compile, its stages, an answer and limits of a machine, in one directory.
struct Made {
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

static MADE: LazyLock<Made> = LazyLock::new(|| {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_owned();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny");
    let [artifact, stages] = ["tiny.dlxa", "stages"].map(|name| dir.join(name));
    let args = ["compile", path(&model), "-o", path(&artifact), "--dump", path(&stages), "--target", "cpu,wgpu"];
    let more = ["--max-seq", "256", "--buckets", "4,64"];
    ok(&dlxc(&dir, &[&args[..], &more].concat()));
    record(&artifact, &dir.join("answer.trace"));
    std::fs::write(dir.join("machine.json"), machine().to_string()).unwrap();
    Made { dir, _temp: temp }
});

#[test]
fn a_page_has_a_section_for_each_of_its_inputs() {
    let dir = &MADE.dir;
    let inputs = ["stages", "tiny.dlxa", "answer.trace"];
    let every = page(dir, "all.html", &[&inputs[..], &["--machine", "machine.json"]].concat());
    assert_eq!(sections(&every), SECTIONS);
    assert!(every.len() < 2 << 20, "{} bytes", every.len());
    for (input, name, wanted) in [
        (inputs[0], "stages.html", &SECTIONS[..2]),
        (inputs[1], "artifact.html", &SECTIONS[2..7]),
        (inputs[2], "answer.html", &SECTIONS[7..]),
    ] {
        assert_eq!(sections(&page(dir, name, &[input])), wanted, "{input}");
    }
    let parts = [
        "fuse-linears",
        "layers.*.mlp",
        "q4g32",
        "step of 4 rows, entry step_4",
        "Roofline of the head",
        "limits from machine.json",
        "What is the capital of France?",
        "The capital of France is Paris.",
        "No quality card",
    ];
    for part in parts {
        assert!(every.contains(part), "{part}");
    }
    assert!(!page(dir, "untimed.html", &["tiny.dlxa"]).contains("Roofline of"), "no limits, no prediction");
    let data = data(&every);
    assert_eq!(data["dumps"].as_array().unwrap().len(), 2);
    let entry = &data["programs"]["targets"][0]["entries"][0];
    assert!(entry["groups"][0]["layers"].as_array().unwrap().len() > 1, "layers that are alike are folded");
    assert!(!data["programs"]["drawings"].as_array().unwrap().is_empty());
    assert!(entry["live"].as_array().unwrap().len() > 10);
}

#[test]
fn a_page_loads_nothing_and_is_the_same_every_time() {
    let dir = &MADE.dir;
    let all = ["stages", "tiny.dlxa", "answer.trace", "--machine", "machine.json"];
    let (one, two) = (page(dir, "one.html", &all), page(dir, "two.html", &all));
    assert!(one == two, "pages differ");
    let policy = one.split("http-equiv=\"Content-Security-Policy\" content=\"").nth(1).unwrap();
    let policy = policy.split('"').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
    let markup = one.split("<script").next().unwrap();
    for outside in ["src=", "href=\"http", "@import", "url(http", "<link", "<iframe", "style=\""] {
        assert!(!markup.contains(outside), "{outside}");
    }
}

#[test]
fn no_text_of_a_file_becomes_markup() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let stages = dir.join("<b>stages");
    std::fs::create_dir(&stages).unwrap();
    let quoted = HOSTILE.replace('"', "\\\"");
    let module = |op: &str| {
        format!(
            "module @m {{\n  weight @\"w{quoted}\": f32[2]\n  graph @\"g{quoted}\"(%\"x{quoted}\": f32[2]) -> (f32[2]) {{\n    %\"y{quoted}\" = {op} %\"x{quoted}\": f32[2] from \"{quoted}\"\n    return %\"y{quoted}\"\n  }}\n}}\n"
        )
    };
    std::fs::write(stages.join("00-import.dlx"), module("silu")).unwrap();
    std::fs::write(stages.join("01-<i>pass.dlx"), module("softmax")).unwrap();
    // The same answer, with other texts for its tokens.
    let trace = std::fs::read_to_string(MADE.dir.join("answer.trace")).unwrap();
    let (start, end) = trace.trim_end().rsplit_once('\n').unwrap();
    let mut end: Value = serde_json::from_str(end).unwrap();
    let tokens = end["end"]["tokens"].as_object_mut().unwrap();
    tokens.values_mut().for_each(|text| *text = HOSTILE.into());
    std::fs::write(dir.join("<u>answer.trace"), format!("{start}\n{end}\n")).unwrap();

    let page = page(dir, "hostile.html", &["<b>stages", "<u>answer.trace"]);
    for bad in ["<img", "<script>alert", "<b>stages", "<i>pass", "<u>answer", "alert(1)</script>"] {
        assert!(!page.contains(bad), "{bad}");
    }
    assert_eq!(page.matches("<script").count(), 2, "the data and the script");
    assert!(page.contains("&lt;img src=x onerror=alert(2)&gt;"), "it is shown as what it is");
    let data = data(&page);
    let lines: Vec<&str> = data["lines"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    assert!(lines.iter().any(|line| line.contains("<img src=x onerror=alert(2)>")), "the script reads the text itself");
    assert!(data["film"]["tokens"].as_object().unwrap().values().all(|text| text == HOSTILE));
}

#[test]
fn what_cannot_be_shown_is_refused_with_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let made = &MADE.dir;
    std::fs::create_dir(dir.join("empty")).unwrap();
    std::fs::create_dir(dir.join("half")).unwrap();
    std::fs::copy(made.join("stages/cpu/00-import.dlx"), dir.join("half/03-dce.dlx")).unwrap();
    std::fs::create_dir(dir.join("old")).unwrap();
    std::fs::write(dir.join("old/00-import.dlx"), "module @m {\n  tensor @w\n}\n").unwrap();
    std::fs::write(dir.join("text.txt"), "hello").unwrap();
    let trace = std::fs::read_to_string(made.join("answer.trace")).unwrap();
    std::fs::write(dir.join("cut.trace"), &trace[..trace.len() / 2]).unwrap();
    std::fs::write(dir.join("new.trace"), trace.replacen("\"version\":1", "\"version\":9", 1)).unwrap();
    let artifact = std::fs::read(made.join("tiny.dlxa")).unwrap();
    std::fs::write(dir.join("cut.dlxa"), &artifact[..artifact.len() - 1]).unwrap();
    std::fs::write(dir.join("tiny.dlxa"), &artifact).unwrap();
    std::fs::write(dir.join("bad.json"), "{}").unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["nothing"], &["nothing: cannot be read"]),
        (&["empty"], &["empty: holds no stages", "--dump DIR"]),
        (&["half"], &["half: the first stage, 00-import.dlx, is missing"]),
        (&["old"], &["00-import.dlx: is no IR", "line 2"]),
        (&["text.txt"], &["text.txt: is neither an artifact, nor a recording"]),
        (&["cut.trace"], &["cut.trace: line "]),
        (&["new.trace"], &["new.trace: line 1: trace format 9"]),
        (&["cut.dlxa"], &["cut.dlxa: truncated"]),
        (&["tiny.dlxa", "tiny.dlxa"], &["second of its kind"]),
        (&["tiny.dlxa", "--machine", "bad.json"], &["bad.json: is no file of a machine's limits"]),
    ];
    for (args, parts) in cases {
        let output = dlxc(dir, &[&["report"], *args, &["-o", "page.html"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
        assert!(!dir.join("page.html").exists(), "{args:?}");
    }
    // Neither an input nor a directory is replaced.
    for (output, part) in [("tiny.dlxa", "would be replaced"), ("empty", "is a directory")] {
        let output = dlxc(dir, &["report", "tiny.dlxa", "-o", output]);
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{output:?}");
    }
    assert!(std::fs::read(dir.join("tiny.dlxa")).unwrap() == artifact);
    assert_eq!(dlxc(dir, &["report"]).status.code(), Some(2));
}

/// Runs the command with a cache of its own, so that no limits of this machine are found.
fn dlxc(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
    command.args(args).current_dir(dir).env("DLXC_CACHE", dir.join("no cache")).output().unwrap()
}

fn ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A page of these inputs, kept if somebody wants to see it.
fn page(dir: &Path, name: &str, inputs: &[&str]) -> String {
    ok(&dlxc(dir, &[&["report"], inputs, &["-o", name]].concat()));
    let page = std::fs::read_to_string(dir.join(name)).unwrap();
    if let Some(keep) = std::env::var_os("DLX_REPORT_DIR") {
        std::fs::write(Path::new(&keep).join(name), &page).unwrap();
    }
    page
}

fn sections(page: &str) -> Vec<&str> {
    page.split("<section id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// What the script of a page is given.
fn data(page: &str) -> Value {
    let block = page.split("<script type=\"application/json\"").nth(1).unwrap();
    let json = block.split_once('>').unwrap().1.split("</script>").next().unwrap();
    serde_json::from_str(json).unwrap()
}

/// Records an answer.
fn record(artifact: &Path, to: &Path) {
    let artifact = Artifact::open(artifact).unwrap();
    let model = Model::load(&artifact, &LoadOptions::default()).unwrap();
    let about = About::of(&artifact, &model.manifest, &model.executor);
    let mut session = Session::new(model).unwrap();
    let messages = vec![Message::new("user", "What is the capital of France?")];
    let request = Request::new(Prompt::Chat { messages, variables: serde_json::Map::new() }, 32);
    let mut recorder = Recorder::new(Vec::new(), about);
    let report = session.generate(&request, &mut |event| {
        recorder.take(&event).unwrap();
        ControlFlow::Continue(())
    });
    let written = recorder.finish(&report.unwrap(), &session.tokenizer()).unwrap();
    std::fs::write(to, written).unwrap();
}

/// Limits with round numbers for whatever a small model needs.
fn machine() -> Value {
    let formats = ["f32", "f16", "bf16", "q4g32", "q8"];
    let linear = |weights: &&str, rows: usize, gops: f64| json!({"weights": weights, "rows": rows, "cached_gops": gops, "streamed_gops": gops / 5.0});
    let linear: Vec<Value> = formats.iter().flat_map(|f| [linear(f, 1, 100.0), linear(f, 64, 400.0)]).collect();
    let ops = [
        "embed",
        "rope_table",
        "rope",
        "kv_write",
        "kv_write to memory",
        "rms_norm",
        "add",
        "scale",
        "swiglu",
        "statistics",
        "silu",
        "mul",
    ];
    let value = |op: &str, ns: f64| json!({"op": op, "rows": 1, "ns": ns});
    let attention = |cache: &str| json!({"cache": cache, "rows": 1, "cached_gflops": 50.0, "streamed_gflops": 25.0, "row_ns": 10.0});
    let attention: Vec<Value> = ["f32", "f16", "q8"].iter().map(|cache| attention(cache)).collect();
    let rows: Vec<Value> = ops.iter().map(|op| value(op, 0.1)).collect();
    json!({"version": 1, "cpu": "made up", "isa": "scalar", "cores": 2, "limits": [{
        "threads": 2,
        "region_us": 0.2,
        "reads": [{"bytes": 1 << 16, "gbs": 100.0}, {"bytes": 1 << 28, "gbs": 10.0}],
        "linear": linear,
        "prepare": [value("int8", 0.05), value("float", 0.02)],
        "attention": attention,
        "rows": rows,
    }]})
}
