//! Portable graphs from text to an artifact, and the artifact through the binary.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use dlx_ir::{Data, Error, Tensor, VerifiedModule, parse};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::graph::{GraphModel, Tensors};
use dlx_runtime::{LoadOptions, load_executor};
use dlx_targets::WeightSource;
use dlxc::arrays::{self, ArrayFile};
use dlxc::driver::{GraphEntry, GraphSummary, Graphs, Watch, compile_graphs};
use dlxc::options::CompileOptions;

/// An embedding, a projection and a table that is different in every bucket.
fn module(t: usize) -> VerifiedModule {
    let table: Vec<String> = (0..t * 70).map(|i| format!("{}", i % 7)).collect();
    let text = format!(
        "module @tiny {{
          weight @embed: f32[10, 70]
          weight @w: f32[70, 70]
          weight @w.16: f16[70, 70] = cast @w {{to=f16}}
          weight @unused: f32[3]
          weight @positions: f32[{t}, 70] = [{}]
          graph @main(%ids: i32[{t}], %extra: f32[{t}, 70]) -> (f32[{t}, 70], f32[{t}, 70]) {{
            %x = embed %ids, @embed: f32[{t}, 70]
            %p = add %x, @positions: f32[{t}, 70]
            %e = add %p, %extra: f32[{t}, 70]
            %dead = silu %e: f32[{t}, 70]
            %y = linear %e, @w.16: f32[{t}, 70]
            %z = softmax %y: f32[{t}, 70]
            %again = softmax %y: f32[{t}, 70]
            return %z, %again
          }}
        }}",
        table.join(", ")
    );
    VerifiedModule::new(parse(&text).unwrap()).unwrap()
}

fn number(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5
}

struct Ramp;

impl WeightSource for Ramp {
    fn read_rows(&self, name: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
        Err(Error::new(name, "is read as bytes"))
    }

    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let width = out.len() / 4 / rows.len();
        assert!(["embed", "w"].contains(&name));
        let numbers = (rows.start * width..rows.end * width).flat_map(|i| number(i).to_le_bytes());
        out.iter_mut().zip(numbers).for_each(|(o, b)| *o = b);
        Ok(())
    }

    fn release_rows(&self, _: &str, _: Range<usize>) {}
}

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64) {}
    fn print(&self, _: &str, _: &str) {}
}

fn graphs() -> Graphs {
    let entry = |t: usize| {
        let mut entry = GraphEntry::new(format!("encode_{t}"), module(t)).unwrap();
        entry.outputs = vec!["scores".into(), "same".into()];
        entry
    };
    Graphs {
        name: "tiny".into(),
        embeds: None,
        entries: vec![entry(2), entry(4)],
        notes: vec!["made for a test".into()],
    }
}

fn compile(output: &Path, options: &CompileOptions) -> Result<GraphSummary, Error> {
    compile_graphs(graphs(), &Ramp, output, options, &Silent, &AtomicBool::new(false))
}

fn inputs(t: usize) -> Tensors {
    let ids = (0..).take(t).collect();
    let extra = (0..t * 70).map(|i| number(i + 7)).collect();
    Tensors::from([("ids".into(), Tensor::i32(&[t], ids)), ("extra".into(), Tensor::f32(&[t, 70], extra))])
}

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

fn read(file: &Path) -> Tensors {
    let mut file = ArrayFile::open(file).unwrap();
    let names: Vec<_> = file.arrays().iter().map(|a| a.name.clone()).collect();
    names.into_iter().enumerate().map(|(i, name)| (name, file.read(i).unwrap())).collect()
}

#[test]
fn graphs_share_what_is_the_same_and_come_out_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one.dlxa", "two.dlxa"].map(|name| dir.path().join(name));
    let summary = compile(&one, &CompileOptions::default()).unwrap();
    compile(&two, &CompileOptions { threads: Some(1), ..CompileOptions::default() }).unwrap();
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap());
    assert_eq!(summary.weights["f32"], 4 * (10 * 70 + 2 * 70 + 4 * 70));
    assert_eq!(summary.weights["f16"], 2 * 70 * 70);

    let model = GraphModel::open(&one).unwrap();
    for t in [2, 4] {
        let outputs = model.run(&inputs(t)).unwrap();
        let scores = outputs["scores"].floats().unwrap();
        assert_eq!(outputs["same"].floats().unwrap(), scores);
        // The first row by hand, in f64.
        let e: Vec<f64> = (0..70).map(|i| f64::from(number(i)) + (i % 7) as f64 + f64::from(number(i + 7))).collect();
        let half = |v: f32| half::f16::from_f32(v).to_f64();
        let y: Vec<f64> = (0..70).map(|o| (0..70).map(|i| e[i] * half(number(o * 70 + i))).sum()).collect();
        let sum: f64 = y.iter().map(|v| libm::exp(*v)).sum();
        for (found, y) in scores.iter().zip(&y) {
            assert!((f64::from(*found) - libm::exp(*y) / sum).abs() < 1e-5, "{found}");
        }
    }
    let text = Artifact::open(&one).unwrap().text("program:cpu").unwrap().to_owned();
    assert!(!text.contains("@unused") && !text.contains("%dead"), "{text}");
    assert!(text.contains("graph @encode_2(") && text.matches("= softmax").count() == 2, "{text}");
}

#[test]
fn the_binary_runs_arrays_of_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let artifact = file("m.dlxa");
    compile(&artifact, &CompileOptions::default()).unwrap();
    let expected = GraphModel::open(&artifact).unwrap().run(&inputs(4)).unwrap();
    for (from, to) in [("in.npz", "out.npz"), ("in.safetensors", "out.safetensors")] {
        arrays::write(&file(from), &inputs(4)).unwrap();
        for threads in ["1", "3"] {
            let done = dlxc(&[
                "run-graph",
                path(&artifact),
                "--inputs",
                path(&file(from)),
                "-o",
                path(&file(to)),
                "--threads",
                threads,
                "--json",
            ]);
            assert!(done.status.success(), "{done:?}");
            let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(report["entry"]["name"], "encode_4");
            assert_eq!(read(&file(to)), expected);
        }
    }
    // 64-bit ids, as NumPy has them unless told otherwise.
    let mut wide = inputs(2);
    wide.insert("ids".into(), Tensor::i64(&[2], vec![0, 1]));
    arrays::write(&file("wide.npz"), &wide).unwrap();
    let done = dlxc(&["run-graph", path(&artifact), "-i", path(&file("wide.npz")), "-o", path(&file("wide-out.npz"))]);
    let (said, shown) = (String::from_utf8_lossy(&done.stderr), String::from_utf8_lossy(&done.stdout));
    assert!(said.contains("note: made for a test"), "{said}");
    assert!(said.contains("note: input `ids` is i64 and was converted to i32"), "{said}");
    assert!(shown.contains("scores") && shown.contains("encode_2 in"), "{shown}");
    assert_eq!(read(&file("wide-out.npz")), GraphModel::open(&artifact).unwrap().run(&inputs(2)).unwrap());
}

#[test]
fn wrong_inputs_are_one_error_each() {
    let dir = tempfile::tempdir().unwrap();
    let (artifact, file, out) = (dir.path().join("m.dlxa"), dir.path().join("in.npz"), dir.path().join("out.npz"));
    compile(&artifact, &CompileOptions::default()).unwrap();
    let error = |inputs: Tensors| {
        arrays::write(&file, &inputs).unwrap();
        let done = dlxc(&["run-graph", path(&artifact), "--inputs", path(&file), "-o", path(&out)]);
        assert!(!done.status.success() && !out.exists());
        String::from_utf8(done.stderr).unwrap()
    };
    let with = |name: &str, t: Tensor| {
        let mut inputs = inputs(2);
        inputs.insert(name.into(), t);
        inputs
    };
    for (inputs, message) in [
        (Tensors::new(), "input `ids: i32[2]` is missing"),
        (with("mask", Tensor::i32(&[2], vec![1; 2])), "there is no input `mask`"),
        (with("ids", Tensor::i32(&[3], vec![1; 3])), "input `ids` is i32[3], but must be i32[2] or i32[4]"),
        (with("ids", Tensor::i32(&[4], vec![1; 4])), "no graph takes inputs of these shapes together"),
        (with("ids", Tensor::f32(&[2], vec![1.0; 2])), "input `ids` is f32[2], but must be i32[2] or i32[4]"),
        (with("ids", Tensor::i64(&[2], vec![1, 1 << 40])), "`ids`: holds 1099511627776, which i32 does not"),
        (with("ids", Tensor::i32(&[2], vec![1, 10])), "there is no token 10"),
        (
            with("extra", Tensor { dtype: dlx_ir::DType::F64, shape: vec![2, 70], data: Data::F64(vec![0.0; 140]) }),
            "input `extra` is f64[2, 70], but must be f32[2, 70] or f32[4, 70]",
        ),
    ] {
        let said = error(inputs);
        assert!(said.contains(message), "{message}: {said}");
    }
    let done = dlxc(&["run-graph", path(&artifact), "--inputs", path(&file), "-o", "out.txt"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("does not say its format"), "{done:?}");
}

#[test]
fn each_kind_of_artifact_says_what_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("m.dlxa");
    compile(&artifact, &CompileOptions::default()).unwrap();
    for args in
        [&["run", path(&artifact), "hello"][..], &["bench", path(&artifact)], &["run", path(&artifact), "--chat"]]
    {
        let said = String::from_utf8(dlxc(args).stderr).unwrap();
        assert!(said.contains("generates no text; use `dlxc run-graph`"), "{args:?}: {said}");
    }
    let opened = load_executor(&Artifact::open(&artifact).unwrap(), &LoadOptions::default());
    assert!(opened.err().unwrap().to_string().contains("GraphModel::load"));
    let shown = String::from_utf8(dlxc(&["inspect", path(&artifact)]).stdout).unwrap();
    for part in
        ["graph encode_4", "input ids", "i32[4]", "output scores", "f32[4, 70]", "made for a test", "dce,cse,dce"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&dlxc(&["inspect", path(&artifact), "--json"]).stdout).unwrap();
    assert_eq!(json["manifest"]["entries"][1]["inputs"][0]["shape"], serde_json::json!([4]));
    let ir = String::from_utf8(dlxc(&["inspect", path(&artifact), "--ir"]).stdout).unwrap();
    assert!(parse(&ir).is_ok());

    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny");
    let generator = dir.path().join("g.dlxa");
    assert!(dlxc(&["compile", path(&model), "-o", path(&generator)]).status.success());
    let done = dlxc(&["run-graph", path(&generator), "-i", "in.npz", "-o", "out.npz"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("has no graphs to run; use `dlxc run`"), "{done:?}");
}

#[test]
fn what_graphs_cannot_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("m.dlxa");
    let int8 = CompileOptions { quant: "int8".parse().unwrap(), ..CompileOptions::default() };
    assert!(
        compile(&artifact, &int8).unwrap_err().to_string().starts_with("--quant: is for models that generate text")
    );
    let wgpu = CompileOptions { targets: vec!["wgpu".into()], ..CompileOptions::default() };
    assert!(compile(&artifact, &wgpu).unwrap_err().to_string().starts_with("--target"));
    let run = |graphs: Graphs| {
        let outcome =
            compile_graphs(graphs, &Ramp, &artifact, &CompileOptions::default(), &Silent, &AtomicBool::new(false));
        outcome.unwrap_err().to_string()
    };
    let mut twice = graphs();
    twice.entries[1].name = "encode_2".into();
    assert!(run(twice).contains("each entry needs a name of its own"));
    let mut nameless = graphs();
    nameless.entries[1].outputs.pop();
    assert!(run(nameless).contains("has 2 outputs, not 1"));
    let mut other = graphs();
    let text = other.entries[1].module.to_string().replace("@embed: f32[10, 70]", "@embed: f32[11, 70]");
    other.entries[1].module = VerifiedModule::new(parse(&text).unwrap()).unwrap();
    assert!(run(other).contains("@embed: is f32[11, 70] here, but f32[10, 70] in an earlier entry"));
    let stopped =
        compile_graphs(graphs(), &Ramp, &artifact, &CompileOptions::default(), &Silent, &AtomicBool::new(true));
    assert!(stopped.unwrap_err().to_string().contains("interrupted"));
    assert!(!artifact.exists());
}
