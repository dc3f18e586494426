//! Edits with a purpose: each is what somebody would try who knows the format, and what the program answers.

use std::path::Path;
use std::time::{Duration, Instant};

use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::{CpuExecutor, CpuOptions};
use dlx_runtime::exec::{Executor, Span};
use dlx_runtime::selftest::SelfTest;
use dlx_runtime::session::Session;
use dlx_runtime::wgpu::plan::{Binding, Plan};
use dlx_runtime::{LoadOptions, Model, load_cpu};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::{Value, json};

use crate::container::{Sections, section, sign, take_apart};
use crate::models;

/// The sections of sdar-tiny, with caches of 96 rows, a vocabulary of 512 and blocks of 4.
fn original(targets: &[&str]) -> Sections {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("model.dlxa");
    let options = CompileOptions {
        quant: "int4".parse().unwrap(),
        targets: targets.iter().map(|t| (*t).into()).collect(),
        max_seq: Some(96),
        ..CompileOptions::default()
    };
    compiled::compile(&models().join("sdar-tiny"), &path, &options).unwrap();
    take_apart(&Artifact::open(&path).unwrap())
}

fn options(self_test: bool) -> LoadOptions {
    let self_test = if self_test { SelfTest::Whole } else { SelfTest::Skip };
    LoadOptions { cpu: CpuOptions { threads: 1, isa: None }, self_test, ..LoadOptions::default() }
}

/// Signs sections, loads them and makes a session of them, without the golden vectors: checks alone must do.
fn open(sections: &Sections, self_test: bool) -> Result<Session, String> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("model.dlxa");
    std::fs::write(&path, sign(sections).unwrap()).unwrap();
    let artifact = Artifact::open(&path).map_err(|e| e.to_string())?;
    let model = Model::load(&artifact, &options(self_test)).map_err(|e| e.to_string())?;
    Session::new(model).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(sections: &Sections) -> String {
    open(sections, false).map(drop).expect_err("this artifact must be refused")
}

/// The error of a program in which each of the pairs is replaced everywhere.
#[track_caller]
fn edited(base: &Sections, edits: &[(&str, &str)]) -> String {
    let mut sections = base.clone();
    let program = section(&mut sections, "program:cpu").unwrap();
    let mut text = String::from_utf8(program.clone()).unwrap();
    for (from, to) in edits {
        assert!(text.contains(from), "{from} is not in the program");
        text = text.replace(from, to);
    }
    *program = text.into_bytes();
    deeply_refused(sections)
}

/// The error of sections whose manifest says of their memory whatever it must.
#[track_caller]
fn deeply_refused(mut sections: Sections) -> String {
    loop {
        let error = refused(&sections);
        let said = error.split_once("the manifest says ").and_then(|(_, rest)| rest.split_once(" bytes of "));
        let said = said.and_then(|(_, rest)| {
            let (part, rest) = rest.split_once(", but section `program:cpu` takes ")?;
            Some((part.to_owned(), rest.split(';').next()?.parse::<u64>().ok()?))
        });
        let Some((part, bytes)) = said else { return error };
        let manifest = section(&mut sections, "manifest").unwrap();
        let mut tree: Value = serde_json::from_slice(manifest).unwrap();
        let parts = tree["memory"][0]["parts"].as_array_mut().unwrap();
        let found = parts.iter_mut().find(|p| p["name"] == *part).unwrap();
        assert_ne!(found["bytes"], bytes, "{error}");
        found["bytes"] = bytes.into();
        *manifest = serde_json::to_vec(&tree).unwrap();
    }
}

#[track_caller]
fn contains(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in: {text}");
}

/// A manifest with the value at a path replaced.
fn with(base: &Sections, pointer: &str, value: Value) -> Sections {
    let mut sections = base.clone();
    let manifest = section(&mut sections, "manifest").unwrap();
    let mut tree: Value = serde_json::from_slice(manifest).unwrap();
    *tree.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    *manifest = serde_json::to_vec(&tree).unwrap();
    sections
}

#[test]
fn every_index_of_a_program_is_a_parameter() {
    let base = original(&["cpu"]);
    assert!(open(&base, true).is_ok());
    let error = |edits: &[(&str, &str)]| edited(&base, edits);
    contains(&error(&[("embed %ids", "embed %pos")]), "must be the parameter %ids");
    contains(&error(&[("rope_table %pos", "rope_table %ids")]), "must be the parameter %pos");
    // No op computes a table of spans, and no entry may take a second one.
    contains(&error(&[("@kv.0.v, %spans\n", "@kv.0.v, %ids\n")]), "not i32[64, 5]");
    contains(&error(&[("@kv.0.v, %spans {", "@kv.0.v, %pos {")]), "not i32[64, 5]");
    contains(
        &error(&[("%spans: i32[64, 5] at", "%other: i32[64, 5] at 4194304, %spans: i32[64, 5] at")]),
        "parameters",
    );
    let rows = "    store_rows %l3.out, @hidden\n    return\n  }\n\n  graph @step_16(";
    let taken = "    %y = take_rows @hidden, %ids: f32[4, 192] at 65536\n";
    contains(&error(&[(rows, &format!("{taken}{rows}"))]), "a step cannot read rows");
    let best = "%best, %stats = head_stats";
    let again = "take_rows @hidden, %best: f32[4, 192] at 65536\n    return";
    let text = error(&[
        ("    return %best", &format!("    %y = {again} %best")),
        (best, best),
        ("f32[4, 192] at 65536", "f32[4, 192] at 65536"),
    ]);
    assert!(
        text.contains("must be the parameter %rows")
            || text.contains("is not the inferred")
            || text.contains("not what"),
        "{text}"
    );
    let moved =
        [4, 16, 64].map(|r| (format!("i32[{r}] at 0, f32[{r}, 3]"), format!("i32[{r}] at 1048576, f32[{r}, 3]")));
    let mut results: Vec<(&str, &str)> = moved.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    results.push(("return %best, %stats", "return %rows, %stats"));
    contains(&error(&results), "one head_stats");
    contains(&error(&[("return %best, %stats", "return %stats, %best")]), "declares");
    contains(&error(&[("@kv.0.k, @kv.0.v, %spans {", "@kv.0.k, @kv.1.v, %spans {")]), "no earlier kv_write");
    assert!(error(&[("kv_write %l0.k_rope, %l0.v, @kv.0.k, @kv.0.v, %spans\n", "")]).contains("no earlier kv_write"));
}

#[test]
fn what_entries_share_is_the_same_in_all() {
    let base = original(&["cpu"]);
    let error = |edits: &[(&str, &str)]| edited(&base, edits);
    let head = "@lm_head.weight.q4g32.packed";
    let ban = text_of(&base).split("ban=").nth(1).unwrap().split([',', '}']).next().unwrap().to_owned();
    let beyond = with(&base, "/policy/mask_id", json!(512));
    contains(&edited(&beyond, &[(&format!("ban={ban}"), "ban=512")]), "banned token");
    contains(&error(&[(&format!("ban={ban}"), "ban=3")]), "mask_id");
    let narrow = "@model.layers.0.self_attn.q_proj.weight.q4g32.packed";
    let stats = format!("head_stats %x, {head}");
    contains(&error(&[(&stats, &format!("head_stats %x, {narrow}"))]), "look at different logits");
    assert!(
        error(&[("f32[4, 512]", "f32[4, 192]"), ("%logits = linear %x, @lm_head", "%logits = linear %x, @lm")])
            .contains("@lm")
    );
    // One of the entries of a kind alone.
    let one = text_of(&base).split("graph @head_16").nth(1).unwrap().split("return").next().unwrap().to_owned();
    contains(&error(&[(&one, &one.replace("norm=1e-6", "norm=1e-5"))]), "differ in more than their rows");
    assert!(
        error(&[("graph @head_16(%rows: i32[16]", "graph @head_x(%rows: i32[16]"), ("@head_x", "@other_16")])
            .contains("is not a step, head or logits entry")
    );
    let copy = text_of(&base).split("  graph @head_4(").nth(1).unwrap().split("\n  }\n").next().unwrap().to_owned();
    let twice = format!("  graph @head_twin({copy}\n  }}\n\n  graph @head_16(");
    contains(&error(&[("  graph @head_16(", &twice)]), "has 4 rows too");
    contains(&error(&[("graph @head", "graph @step")]), "defined twice");
    contains(&error(&[("    store_rows %l3.out, @hidden\n", "")]), "does not store");
    contains(&error(&[("mask=block_causal:4", "mask=block_causal:8")]), "block_causal:4");
    contains(&error(&[("mask=block_causal:4", "mask=full")]), "mask=full");
    contains(&error(&[("mask=block_causal:4", "mask=block_causal:0")]), "is not a mask");
    contains(&error(&[("theta=1e4, head_dim=64", "theta=1e4, head_dim=32")]), "not what is written");
    let other = [("%x = take_rows @hidden, %rows: f32[4, 192]", "%x = take_rows @hiden, %rows: f32[4, 192]")];
    contains(&error(&other), "@hiden");
}

fn text_of(sections: &Sections) -> String {
    String::from_utf8(sections.iter().find(|(n, _)| n == "program:cpu").unwrap().1.clone()).unwrap()
}

#[test]
fn sizes_that_a_program_declares_are_no_allocations() {
    let base = original(&["cpu"]);
    let error = |edits: &[(&str, &str)]| edited(&base, edits);
    // The same lie in the manifest: what is left is the size itself.
    for rows in [1u64 << 50, 1 << 45, 1 << 31, u64::MAX] {
        let base = with(&base, "/model/max_seq", json!(rows));
        let text = edited(&base, &[("f16[96, 1, 64]", &format!("f16[{rows}, 1, 64]"))]);
        assert!(
            text.contains("not enough memory") || text.contains("not a form") || text.contains("overflows"),
            "{text}"
        );
    }
    let lied = with(&base, "/model/max_seq", json!(1u64 << 30));
    let mut sections = lied;
    let program = section(&mut sections, "program:cpu").unwrap();
    *program = text_of(&base).replace("f16[96, 1, 64]", &format!("f16[{}, 1, 64]", 1u64 << 30)).into_bytes();
    // Reserved or refused, as the system likes; never filled.
    drop(open(&sections, false));
    assert!(resident_mib() < 2048, "{} MiB", resident_mib());
    contains(&error(&[("f16[96, 1, 64] @cpu.k16", "f16[48, 1, 64] @cpu.k16")]), "differ");
    assert!(
        error(&[("@kv.3.k: f16[96", "@kv.3.k: f16[64"), ("@kv.3.v: f16[96", "@kv.3.v: f16[64")]).contains("max_seq")
    );
    contains(&error(&[("state @hidden: f32[96,", "state @hidden: f32[8,")]), "do not fit a state");
    let huge = 1u64 << 40;
    assert!(!error(&[("i32[16]", &format!("i32[{huge}]")), ("f32[16, ", &format!("f32[{huge}, "))]).is_empty());
    let large = 1u64 << 21;
    let both = [("i32[96]".into(), format!("i32[{large}]")), ("f32[96, ".into(), format!("f32[{large}, "))];
    let both: Vec<(&str, &str)> = both.iter().map(|(a, b): &(String, String)| (a.as_str(), b.as_str())).collect();
    assert!(!error(&both).is_empty());
    let wide = "    %wide = rope_table %pos {theta=1e4, head_dim=1000000}: f32[4, 1000000] at 1048576\n";
    let at = "    store_rows %l3.out, @hidden\n    return\n  }\n\n  graph @step_16(";
    contains(&error(&[(at, &format!("{wide}{at}"))]), "wider than any weight");
    let first = ("  state @kv.0.k", "  state @more: f32[96, 1099511627776]\n  state @kv.0.k");
    contains(&error(&[first]), "one state of rows");
    contains(&error(&[("offset=768, bytes=256", "offset=772, bytes=256")]), "multiple of 64");
    contains(&error(&[("offset=768, bytes=256", "offset=1024, bytes=256")]), "share bytes");
    assert!(
        error(&[("offset=768, bytes=256", "offset=18446744073709551552, bytes=256")]).contains("outside the weights")
    );
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10
}

#[test]
fn a_long_program_takes_no_longer_than_it_is() {
    use std::fmt::Write as _;
    let mut many_live = "module @m {\n  graph @g(%x: f32[1, 16] at 0) -> (".to_owned();
    let n = 40_000;
    many_live += &vec!["f32[1, 16]"; n].join(", ");
    many_live += ") {\n";
    for i in 0..n {
        let _ = writeln!(many_live, "    %v{i} = softmax %x: f32[1, 16] at {}", 64 * (i + 1));
    }
    let names: Vec<String> = (0..n).map(|i| format!("%v{i}")).collect();
    let _ = write!(many_live, "    return {}\n  }}\n}}\n", names.join(", "));
    let mut many_graphs = "module @m {\n".to_owned();
    for i in 0..40_000 {
        let _ = writeln!(many_graphs, "  graph @g{i}() -> () {{ return }}");
    }
    many_graphs += "}\n";
    let mut many_params = "module @m {\n  graph @g(".to_owned();
    for i in 0..40_000 {
        let _ = write!(many_params, "%p{i}: i32[] at {}, ", 64 * i);
    }
    many_params += ") -> () { return }\n}\n";
    for text in [many_live, many_graphs, many_params] {
        let begin = Instant::now();
        let module = dlx_ir::parse(&text).unwrap();
        dlx_ir::verify(&module).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?} for {}", begin.elapsed(), &text[..60]);
    }
}

#[test]
fn a_manifest_that_contradicts_the_rest_is_refused() {
    let base = original(&["cpu"]);
    let error = |pointer: &str, value: Value| refused(&with(&base, pointer, value));
    for (pointer, value, said) in [
        ("/model/vocab", json!(511), "vocab"),
        ("/model/max_seq", json!(64), "max_seq"),
        ("/model/tokenizer_hash", json!("00"), "tokenizer's hash"),
        ("/policy/block", json!(8), "block_causal:8"),
        ("/policy/attention", json!("full"), "attention"),
        ("/policy/mask_id", json!(3), "mask_id"),
        ("/policy/mask_id", json!(-1), "mask_id"),
        ("/targets", json!(["cpu", "cpu"]), "twice"),
        ("/targets", json!(["cpu", "wgpu"]), "MISSING"),
        ("/targets", json!([]), "no program"),
    ] {
        if said == "MISSING" {
            // A target without its sections is an error as soon as it is asked for, and the first one is.
            assert!(!error(pointer, json!(["wgpu", "cpu"])).is_empty());
            continue;
        }
        let text = error(pointer, value);
        assert!(text.contains(said), "{pointer}: {text}");
    }
    let mut sections = base.clone();
    sections.push(("program:gpu".into(), b"module @m {\n}\n".to_vec()));
    assert!(refused(&sections).contains("program:gpu"));
    let mut sections = base.clone();
    section(&mut sections, "tokenizer").unwrap().push(b' ');
    let text = refused(&sections);
    assert!(text.contains("another tokenizer.json"), "{text}");
    sections.retain(|(name, _)| name != "tokenizer:tables");
    let text = refused(&sections);
    assert!(text.contains("tokenizer's hash"), "{text}");
    // What is said of memory is that of the program, or decides nothing.
    let manifest: Value = serde_json::from_slice(section(&mut base.clone(), "manifest").unwrap()).unwrap();
    let parts = manifest["memory"][0]["parts"].as_array().unwrap();
    for (i, part) in parts.iter().enumerate() {
        let (name, pointer) = (part["name"].as_str().unwrap(), format!("/memory/0/parts/{i}/bytes"));
        let edited = with(&base, &pointer, json!(1));
        if ["weights", "activations", "hidden states", "caches"].contains(&name) {
            contains(&refused(&edited), &format!("the manifest says 1 bytes of {name}"));
        } else {
            assert!(open(&edited, true).is_ok(), "{name}");
        }
    }
    assert!(open(&with(&base, "/memory/0/total", json!(u64::MAX)), true).is_ok());
    contains(&error("/memory", json!([])), "the manifest's memory is not that of its targets");
}

#[test]
fn numbers_of_a_policy_are_bounded() {
    let base = original(&["cpu"]);
    let error = |pointer: &str, value: Value| deeply_refused(with(&base, pointer, value));
    contains(&error("/policy/steps", json!(1u64 << 60)), "`steps`");
    let timesteps = with(&base, "/policy/schedule", json!({"curve": "timesteps"}));
    assert!(refused(&with(&timesteps, "/policy/steps", json!(1u64 << 60))).contains("`steps`"));
    contains(&error("/policy/schedule", json!({"curve": "timesteps", "eps": 1e300})), "`eps`");
    contains(&error("/policy/reveal", json!({"rule": "threshold", "threshold": 1e300})), "`threshold`");
    assert!(error("/policy/stop_ids", json!(vec![1; 100_000])).contains("`stop_ids`"));
    assert!(error("/policy/suppress_ids", json!(vec![1; 100_000])).contains("`suppress_ids`"));
    contains(&error("/policy/stop_strings", json!(["x".repeat(1 << 20)])), "`stop_strings`");
    contains(&error("/policy/temperature", json!(1e300)), "number out of range");
    contains(&error("/policy/cfg_scale", json!(1e300)), "number out of range");
    assert!(open(&with(&base, "/policy/top_k", json!(u64::MAX)), false).is_ok());
}

#[test]
fn golden_vectors_see_every_layer() {
    let base = original(&["cpu"]);
    let swapped = |a: &str, b: &str| {
        let mut sections = base.clone();
        let text = text_of(&base).replace(a, "@tmp").replace(b, a).replace("@tmp", b);
        *section(&mut sections, "program:cpu").unwrap() = text.into_bytes();
        open(&sections, true).map(drop).expect_err("another model must be noticed")
    };
    // The same shapes in the last layer: no type tells them apart.
    let (gate, up) =
        ("@model.layers.3.mlp.gate_proj.weight.q4g32.packed, ", "@model.layers.3.mlp.up_proj.weight.q4g32.packed, ");
    assert!(swapped(gate, up).contains("self-test"));
    let (k2, k3) =
        ("@model.layers.2.mlp.down_proj.weight.q4g32.packed, ", "@model.layers.3.mlp.down_proj.weight.q4g32.packed, ");
    assert!(swapped(k2, k3).contains("self-test"));
}

#[test]
fn an_executor_survives_a_panic_in_a_step() {
    let base = original(&["cpu"]);
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("model.dlxa");
    std::fs::write(&path, sign(&base).unwrap()).unwrap();
    let load = |path: &Path| load_cpu(&Artifact::open(path).unwrap(), &options(true)).unwrap();
    let (mut whole, mut hurt): (CpuExecutor, CpuExecutor) = (load(&path), load(&path));
    let ids: Vec<i32> = (5..21).collect();
    let pos: Vec<i32> = (0..16).collect();
    let prompt = [Span::new(&ids[..12], &pos[..12], 0)];
    let next = [Span::new(&ids[12..], &pos[12..], 12)];
    let logits = |executor: &mut CpuExecutor| {
        let mut out = vec![0.0; 4 * executor.vocab()];
        executor.step(&next).unwrap();
        executor.logits(&[0, 1, 2, 3], &mut out).unwrap();
        out
    };
    whole.step(&prompt).unwrap();
    hurt.step(&prompt).unwrap();
    for after in [1, 7, 20] {
        let mut nodes = 0;
        let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            hurt.step_observed(&next, usize::MAX, &mut |_| {
                nodes += 1;
                assert!(nodes < after, "on purpose");
            })
        }));
        assert!(broken.is_err());
        assert_eq!(logits(&mut hurt), logits(&mut whole), "the rows of the prompt are still there");
    }
}

#[test]
fn a_plan_is_that_of_its_program() {
    let base = original(&["cpu", "wgpu"]);
    let of = |name: &str| base.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let plan: Plan = serde_json::from_slice(&of("plan:wgpu")).unwrap();
    let program = dlx_ir::parse(std::str::from_utf8(&of("program:wgpu")).unwrap()).unwrap();
    let weights = of("weights").len() as u64;
    plan.check(weights).unwrap();
    plan.check_program(&program).unwrap();
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        plan.check(weights).and_then(|()| plan.check_program(&program)).unwrap_err()
    };
    assert!(refused(&|p| p.max_seq /= 2).contains("cache rows"));
    assert!(refused(&|p| p.max_seq = 97).contains("are no 97 rows"));
    assert!(refused(&|p| p.states[0].cache ^= true).contains("states"));
    assert!(refused(&|p| p.prefix_unit = Some(1)).contains("mask"));
    assert!(refused(&|p| p.states[0].bytes *= 2).contains("states"));
    assert!(refused(&|p| p.states.push(p.states[0].clone())).contains("states"));
    assert!(refused(&|p| drop(p.entries.pop())).contains("entries"));
    assert!(refused(&|p| p.entries[0].dispatches[0].node = 1 << 40).contains("no such node"));
    assert!(refused(&|p| p.entries[0].name = "step_5".into()).contains("is another"));
    let is_weight = |b: &Binding| matches!(b, Binding::Weight(_));
    let swap = |p: &mut Plan| {
        // Two weights of one size, of different layers.
        let places: Vec<(usize, usize)> = p.entries[0]
            .dispatches
            .iter()
            .enumerate()
            .flat_map(|(d, dispatch)| dispatch.bindings.iter().enumerate().map(move |(b, binding)| (d, b, *binding)))
            .filter(|(_, _, b)| is_weight(b))
            .map(|(d, b, _)| (d, b))
            .collect();
        let size = |p: &Plan, (d, b): (usize, usize)| match p.entries[0].dispatches[d].bindings[b] {
            Binding::Weight(r) => r.bytes,
            _ => 0,
        };
        let (a, b) = places
            .iter()
            .flat_map(|a| places.iter().map(move |b| (*a, *b)))
            .find(|(a, b)| {
                let node = |d: usize| p.entries[0].dispatches[d].node;
                node(a.0) != node(b.0) && size(p, *a) == size(p, *b)
            })
            .unwrap();
        let (x, y) = (p.entries[0].dispatches[a.0].bindings[a.1], p.entries[0].dispatches[b.0].bindings[b.1]);
        p.entries[0].dispatches[a.0].bindings[a.1] = y;
        p.entries[0].dispatches[b.0].bindings[b.1] = x;
    };
    assert!(refused(&swap).contains("no operand of its node"));
    let states = |p: &mut Plan| {
        let bindings = p.entries.iter_mut().flat_map(|e| &mut e.dispatches).flat_map(|d| &mut d.bindings);
        bindings.for_each(|b| {
            if let Binding::State(s) = b {
                *s ^= 2
            }
        });
    };
    assert!(refused(&states).contains("no operand of its node") || refused(&states).contains("no such state"));
}
