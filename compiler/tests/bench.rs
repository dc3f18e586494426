//! `dlxc bench` through the binary: what it reports is complete and adds up. How fast anything is, no test can say.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use dlx_runtime::cpu::Isa;
use serde_json::Value;

/// Runs `dlxc` and returns what it printed.
fn dlxc(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&dlxc(args)).unwrap()
}

fn positive(value: &Value, field: &str) -> f64 {
    let number = value[field].as_f64().unwrap_or_else(|| panic!("{field} of {value}"));
    assert!(number > 0.0 && number.is_finite(), "{field} of {value}");
    number
}

#[test]
fn an_artifact_is_timed_on_every_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("model.dlxa");
    let artifact = artifact.to_str().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/sdar-tiny");
    dlxc(&["compile", model, "-o", artifact]);
    let sizes = ["--rows", "1,5", "--depth", "0,9", "--seconds", "0.01"];
    let bench = [&["bench", artifact], &sizes[..]].concat();
    let report = json(&[&bench, &["--threads", "1,2", "--ops", "--json"][..]].concat());

    let manifest = &json(&["inspect", artifact, "--json"])["manifest"];
    assert_eq!(report["memory"], manifest["memory"]);
    if cfg!(target_os = "linux") {
        let weights = &report["memory"][0]["parts"][0];
        assert_eq!(weights["name"], "weights");
        assert!(positive(&report, "peak_resident_bytes") > positive(weights, "bytes"));
    }
    let limits = report["limits"].as_array().unwrap();
    assert_eq!(limits.iter().map(|l| l["threads"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for limit in limits {
        positive(limit, "read_gbs");
        assert_eq!(limit["f32_peak_gflops"].is_number(), Isa::best() != Isa::Scalar);
    }
    let lines = report["lines"].as_array().unwrap();
    let number = |line: &Value, field: &str| line[field].as_u64().unwrap();
    let found = lines.iter().map(|l| (number(l, "depth"), number(l, "rows"), number(l, "threads")));
    let wanted = [(0, 1, 1), (0, 1, 2), (0, 5, 1), (0, 5, 2), (9, 1, 1), (9, 1, 2), (9, 5, 1), (9, 5, 2)];
    assert_eq!(found.collect::<Vec<_>>(), wanted);
    for line in lines {
        for entry in ["step_ms", "head_ms"] {
            let times = ["fastest", "p10", "median", "p90"].map(|field| positive(&line[entry], field));
            assert!(times.is_sorted(), "{line}");
        }
        if line["threads"] == 1 {
            assert_eq!(line["speed_up"], 1.0);
        }
        positive(line, "speed_up");
        let split = &line["split"];
        let shares = ["matrix", "attention", "other"].map(|field| positive(split, field));
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{split}");
        assert!(split["gaps"].as_f64().unwrap() <= shares[2], "{split}");
        positive(split, "attention_gflops");
        let ops = split["ops"].as_array().unwrap();
        assert!(ops.iter().any(|o| o["node"].as_str().unwrap().starts_with("cached_attention")), "{ops:?}");
    }
    let text = dlxc(&[&bench, &["--threads", "1", "--ops"][..]].concat());
    assert!(text.contains("certified") && text.contains("p10–p90") && text.contains("everything else"), "{text}");
    assert!(!text.contains("speed-up"), "{text}");
}

#[test]
fn one_kernel_per_role_is_in_use() {
    let args = ["bench", "--kernels", "--rows", "1", "--threads", "1", "--seconds", "0", "--json"];
    let report = json(&args);
    let mut roles: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for variant in report["kernels"].as_array().unwrap() {
        roles.entry(variant["role"].as_str().unwrap()).or_default().push(variant);
    }
    for role in ["linear q4", "linear q8 min", "linear bf16", "attention f16", "rms_norm", "softmax_block", "store"] {
        assert!(roles.contains_key(role), "{role} is missing from {:?}", roles.keys());
    }
    for (role, variants) in &roles {
        let used: Vec<_> = variants.iter().filter(|v| v["in_use"] == true).collect();
        assert_eq!(used.len(), 1, "{role}: {variants:?}");
        assert_eq!((&used[0]["isa"], &used[0]["available"]), (&report["isa"], &Value::Bool(true)));
        let available = variants.iter().filter(|v| v["available"] == true).count();
        assert_eq!(available, Isa::ALL.into_iter().filter(|isa| isa.available()).count(), "{role}");
    }
    let products = report["products"].as_array().unwrap();
    let formats: BTreeSet<&str> = products.iter().map(|p| p["weights"].as_str().unwrap()).collect();
    for format in ["q4g32", "q4g128", "q4g64m", "q8", "q8g128m", "f32", "f16", "bf16"] {
        assert!(formats.contains(format), "{format} is missing from {formats:?}");
    }
    for product in products {
        assert!(positive(product, "gops") > 0.0 && positive(product, "weight_gbs") > 0.0);
    }
}

#[test]
fn an_artifact_or_the_kernels_but_not_both() {
    for args in [&["bench"][..], &["bench", "x.dlxa", "--kernels"], &["bench", "--kernels", "--ops"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn serving_is_held_against_the_step_table_of_its_own_run() {
    let dir = tempfile::tempdir().unwrap();
    let compiled = |name: &str| {
        let artifact = dir.path().join(name).with_extension("dlxa").to_str().unwrap().to_owned();
        let model = format!("{}/../examples/models/{name}", env!("CARGO_MANIFEST_DIR"));
        dlxc(&["compile", &model, "-o", &artifact, "--max-seq", "256"]);
        artifact
    };
    let sdar = compiled("sdar-tiny");
    let asked = ["--prompt", "40", "--shared", "32", "--new", "8", "--requests", "6"];
    let bench =
        |artifact: &str, more: &[&str]| json(&[&["bench", artifact, "--serve", "--json"], &asked[..], more].concat());
    let report = bench(&sdar, &["--clients", "1,3"]);
    let lines = report["lines"].as_array().unwrap();
    assert_eq!(lines.iter().map(|l| l["load"]["clients"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    for line in lines {
        let [alone, beside] = ["one_by_one", "side_by_side"].map(|way| &line[way]);
        for way in [alone, beside] {
            assert_eq!((way["requests"].as_u64(), way["tokens"].as_u64()), (Some(6), Some(48)));
            let rate = positive(way, "tokens") / positive(way, "seconds");
            assert!((rate / positive(way, "tokens_per_second") - 1.0).abs() < 1e-9);
            let (first, whole) = (&way["first_text_seconds"], &way["answer_seconds"]);
            assert!(
                positive(first, "p50") <= positive(whole, "p50") && positive(whole, "p50") <= positive(whole, "p99")
            );
        }
        assert_eq!(alone["held_tokens"], 0);
        assert_eq!(beside["held_tokens"], 5 * 32, "what all prompts begin with is computed once");
        assert!(positive(beside, "rows") < positive(alone, "rows"));
        let gain = positive(beside, "tokens_per_second") / positive(alone, "tokens_per_second");
        assert!((gain / positive(line, "gain") - 1.0).abs() < 1e-9);
        // The bound is that of the cheapest step of each pass that so many clients fill.
        let clients = line["load"]["clients"].as_u64().unwrap();
        let best = line["step_table"].as_array().unwrap().iter().map(|pass| {
            let steps = pass["steps"].as_array().unwrap().iter().filter(|s| s["passes"].as_u64().unwrap() <= clients);
            let each = steps.map(|s| positive(s, "seconds") / positive(s, "passes"));
            pass["count"].as_f64().unwrap() * each.fold(f64::INFINITY, f64::min)
        });
        let bound = 48.0 / best.sum::<f64>();
        assert!((bound / positive(line, "tokens_per_second_at_best") - 1.0).abs() < 1e-9);
        let reached = positive(beside, "tokens_per_second") / bound;
        assert!((reached / positive(line, "reached") - 1.0).abs() < 1e-9);
    }
    let open = &bench(&sdar, &["--rate", "200"])["lines"][0];
    assert_eq!((&open["gain"], &open["step_table"]), (&Value::Null, &Value::Array(Vec::new())));
    let llada = &bench(&compiled("llada-tiny"), &["--clients", "2"])["lines"][0];
    assert!(llada["prefix_off"].as_str().unwrap().contains("full attention"));
    assert_eq!(llada["side_by_side"]["held_tokens"], 0);

    let text = dlxc(&["bench", &sdar, "--serve", "--clients", "2", "--prompt", "8", "--new", "4"]);
    assert!(["2 clients", "one by one", "side by side", "tokens/s"].iter().all(|part| text.contains(part)), "{text}");
    for (args, said) in [(&["--prompt", "300"][..], "holds 256 tokens"), (&["--rate", "0"], "above 0")] {
        let args = [&["bench", &sdar, "--serve", "--clients", "1"], args].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_dlxc")).args(&args).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{args:?}");
    }
}
