//! `dlxc explain` through the binary: what it reports adds up, and what cannot be said is refused.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Limits of a machine that nobody has, so that nothing is measured.
fn machine() -> Value {
    let product = |weights: &str| json!({"weights": weights, "rows": 1, "cached_gops": 100.0, "streamed_gops": 50.0});
    let cache = |cache: &str| json!({"cache": cache, "rows": 1, "cached_gflops": 50.0, "streamed_gflops": 25.0, "row_ns": 10.0});
    let value = |op: &str| json!({"op": op, "rows": 1, "ns": 0.5});
    let linear = ["q4g32", "q4g128", "q8"].map(product);
    let prepare = ["int8", "float"].map(value);
    let attention = ["f16", "q8"].map(cache);
    let ops = ["add", "embed", "kv_write", "kv_write to memory", "rms_norm", "rope", "rope_table", "scale", "swiglu"];
    let rows: Vec<_> = ops.into_iter().chain(["statistics"]).map(value).collect();
    json!({
        "version": 1, "cpu": "made up", "isa": "scalar", "cores": 2,
        "limits": [{
            "threads": 2,
            "region_us": 1.0,
            "reads": [{"bytes": 1 << 20, "gbs": 100.0}, {"bytes": 1 << 28, "gbs": 10.0}],
            "linear": linear,
            "prepare": prepare,
            "attention": attention,
            "rows": rows,
        }],
    })
}

struct Made {
    dir: tempfile::TempDir,
    artifact: String,
    machine: String,
}

/// A compiled tiny model and a machine's file.
fn made() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (artifact, machine_file) = (path("model.dlxa"), path("machine.json"));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/sdar-tiny");
    let output = dlxc(&dir, &["compile", model, "--quant", "int4", "-o", &artifact]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(&machine_file, machine().to_string()).unwrap();
    Made { dir, artifact, machine: machine_file }
}

fn dlxc(dir: &tempfile::TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlxc"));
    command.args(args).env("DLXC_CACHE", dir.path().join("cache")).output().unwrap()
}

impl Made {
    fn explain(&self, args: &[&str]) -> Output {
        dlxc(&self.dir, &[&["explain", &self.artifact], args].concat())
    }

    /// What it says for the machine of the file, on two threads.
    fn predicted(&self, args: &[&str]) -> String {
        let output = self.explain(&[&["--machine", &self.machine, "--threads", "2"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says when it fails.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.explain(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("{field} of {value}"))
}

#[test]
fn lines_add_up_and_layers_are_folded() {
    let made = made();
    let report: Value =
        serde_json::from_str(&made.predicted(&["--rows", "4,16", "--depth", "0,32", "--json"])).unwrap();
    let passes = report["passes"].as_array().unwrap();
    let sizes: Vec<_> = passes.iter().map(|p| (p["depth"].as_u64().unwrap(), p["rows"].as_u64().unwrap())).collect();
    assert_eq!(sizes, [(0, 4), (0, 16), (32, 4), (32, 16)]);
    for pass in passes {
        for entry in pass["entries"].as_array().unwrap() {
            let lines = entry["lines"].as_array().unwrap();
            for field in ["weight_bytes", "cache_bytes", "value_bytes", "operations", "predicted_ms", "overhead_ms"] {
                let sum: f64 = lines.iter().map(|l| number(l, field)).sum();
                assert!((sum - number(entry, field)).abs() <= 1e-9 * sum, "{field}: {sum} of {entry}");
            }
            assert!(entry["measured_ms"].is_null(), "limits of another machine: nothing is measured");
        }
        let step = &pass["entries"][0];
        let attention =
            step["lines"].as_array().unwrap().iter().find(|l| l["node"] == "cached_attention attn").unwrap();
        // Four layers of 64 f16 keys and as many values.
        assert_eq!(attention["count"], 4);
        let rows = number(pass, "rows") + number(pass, "depth");
        assert_eq!(number(attention, "cache_bytes"), 4.0 * 2.0 * 2.0 * 64.0 * rows);
        // The first change is none: its time is that of both entries.
        let both: f64 = pass["entries"].as_array().unwrap().iter().map(|e| number(e, "predicted_ms")).sum();
        assert!((number(&pass["changes"][0], "predicted_ms") / both - 1.0).abs() < 1e-9);
        let whats: Vec<_> = pass["changes"].as_array().unwrap().iter().map(|c| c["what"].as_str().unwrap()).collect();
        assert!(whats.contains(&"--quant int8") && !whats.contains(&"--quant int4"), "{whats:?}");
        // One pass to four for a block of four, and a commit.
        let forwards: Vec<_> = pass["tokens"].as_array().unwrap().iter().map(|t| t["forwards"].clone()).collect();
        assert_eq!(forwards, [2, 5, 2, 3]);
    }
    assert!(report["notes"][0].as_str().unwrap().contains("limits are of another machine"), "{report}");

    let text = made.predicted(&["--rows", "4", "--nodes"]);
    assert!(text.contains("%l3.mlp = linear %l3.attn_sum, @model.layers.3.mlp.gate_proj.weight"), "{text}");
    let folded = made.predicted(&["--rows", "4"]);
    assert!(!folded.contains("%l3.mlp") && folded.lines().count() < text.lines().count(), "{folded}");
    assert!(folded.contains("if it is sure of nothing (most passes)"), "{folded}");
}

#[test]
fn a_program_is_timed_on_the_machine_of_the_limits() {
    let made = made();
    // What takes long is not this test's business: a file of this machine's that says something round.
    let here: Value = {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
        let cores = std::thread::available_parallelism().unwrap().get();
        let mut machine = machine();
        machine["cpu"] = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).into();
        machine["isa"] = dlx_runtime::cpu::Isa::from_env().unwrap().to_string().into();
        machine["cores"] = cores.into();
        machine
    };
    std::fs::write(&made.machine, here.to_string()).unwrap();
    let args = ["--rows", "5", "--depth", "9", "--seconds", "0.01"];
    let report: Value = serde_json::from_str(&made.predicted(&[&args[..], &["--json"]].concat())).unwrap();
    for entry in report["passes"][0]["entries"].as_array().unwrap() {
        let lines = entry["lines"].as_array().unwrap();
        let sum: f64 = lines.iter().map(|l| number(l, "measured_ms")).sum();
        assert!((sum / number(entry, "nodes_sum_ms") - 1.0).abs() < 1e-6, "{entry}");
        assert!(number(entry, "nodes_fastest_ms") <= number(entry, "nodes_sum_ms"));
        assert!(number(entry, "fastest_ms") <= number(entry, "measured_ms"));
        let ratio = number(entry, "predicted_ms") / number(entry, "measured_ms");
        assert!((ratio / number(entry, "predicted_of_measured") - 1.0).abs() < 1e-9, "{entry}");
    }
    assert!(number(&report, "read_gbs") > 0.0);
    let text = made.predicted(&args);
    assert!(text.contains("nodes timed one by one add up to") && text.contains("largest gap"), "{text}");
    let quiet = made.predicted(&["--rows", "5", "--predict"]);
    assert!(!quiet.contains("timed one by one"), "{quiet}");
}

#[test]
fn sizes_and_machines_that_do_not_fit_are_refused() {
    let made = made();
    let with = |args: &[&str]| made.refused(&[&["--machine", &made.machine, "--threads", "2"], args].concat());
    let error = with(&["--rows", "4096"]);
    assert!(error.contains("4096 rows do not fit the largest step") && error.contains("--buckets"), "{error}");
    let error = with(&["--rows", "4", "--depth", "100000"]);
    assert!(
        error.contains("4 rows behind 100000 others do not fit caches of") && error.contains("--max-seq"),
        "{error}"
    );
    let error = made.refused(&["--machine", &made.machine, "--threads", "3"]);
    assert!(error.contains("has no limits of 3 threads, only of 2"), "{error}");
    let error = made.refused(&["--machine", "no such file"]);
    assert!(error.contains("no such file: cannot be read") && error.contains("--measure"), "{error}");
    let error = with(&["--measure"]);
    assert!(error.contains("the limits of another machine (made up)"), "{error}");
    assert!(Path::new(&made.machine).exists() && !made.dir.path().join("cache").exists(), "nothing is written");

    let broken = made.dir.path().join("broken.json");
    std::fs::write(&broken, machine().to_string().replace("\"gbs\":10.0", "\"gbs\":-1.0")).unwrap();
    let error = made.refused(&["--machine", broken.to_str().unwrap(), "--threads", "2"]);
    assert!(error.contains("-1 is not a positive number") && error.contains("broken.json"), "{error}");

    let mut machine = machine();
    machine["limits"][0]["linear"].as_array_mut().unwrap().retain(|p| p["weights"] == "q8");
    std::fs::write(&made.machine, machine.to_string()).unwrap();
    let error = with(&[]);
    assert!(error.contains("%l0.q") && error.contains("products with q4g32 weights"), "{error}");

    let output = made.explain(&["--rows", "0"]);
    assert_eq!(output.status.code(), Some(2));
}
