//! ONNX files through the binary: generators beside the checkpoints that they were exported from, encoders beside what
//! another runtime computes, and what `inspect` says of both.
#![allow(clippy::unwrap_used, reason = "test program")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlx_ir::{Dim, Graph, Id, Operand, Origin, WeightId};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// File, its checkpoint, and who exported it.
const GENERATORS: &[(&str, &str)] = &[
    ("qwen2.dynamo.onnx", "qwen2"),
    ("qwen2.dynamo-mask-pos.onnx", "qwen2"),
    ("qwen2-1.optimum-past/model.onnx", "qwen2-1"),
    ("a2d.dynamo23.onnx", "a2d"),
    ("llada.fp16.onnx", "llada"),
    ("qwen3.bf16.onnx", "qwen3"),
];

const QUESTIONS: &[&str] = &["What is the capital of France?", "What is the capital of Greece?", "Hello"];

#[test]
fn a_file_and_its_checkpoint_make_one_model() {
    let dir = tempfile::tempdir().unwrap();
    for (file, model) in GENERATORS {
        let checkpoint = golden().join("models").join(model);
        // The shortened model comes without a tokenizer.
        let whole = dir.path().join(model);
        std::fs::create_dir_all(&whole).unwrap();
        for from in [golden().join("models/qwen2"), checkpoint] {
            for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
                std::fs::copy(entry.path(), whole.join(entry.file_name())).unwrap();
            }
        }
        let [ours, theirs] = ["onnx", "checkpoint"].map(|name| dir.path().join(format!("{model}.{name}.dlxa")));
        let dumps = [&ours, &theirs].map(|p| p.with_extension("dump"));
        let source = golden().join(file);
        let ok = ["compile", path(&source), "-o", path(&ours), "--dump", path(&dumps[0]), "--config", path(&whole)];
        let report = text(&dlxc(&ok));
        assert!(report.contains("masks and angles were checked for the first"), "{report}");
        text(&dlxc(&["compile", path(&whole), "-o", path(&theirs), "--dump", path(&dumps[1])]));
        for question in QUESTIONS {
            let [a, b] = [&ours, &theirs].map(|p| text(&dlxc(&["run", path(p), question, "--max-new", "24"])));
            assert_eq!(a, b, "{file}: {question}");
        }
        // Node for node the same programs, from the import to the last pass.
        let [names, others] = dumps.each_ref().map(|d| listed(d));
        assert_eq!(names, others, "{file}");
        for name in names {
            let [a, b] = dumps.each_ref().map(|d| plain(&d.join(&name)));
            assert_eq!(a, b, "{file}: {name}");
        }
    }
}

#[test]
fn encoders_run_for_the_shapes_that_they_were_compiled_for() {
    let dir = tempfile::tempdir().unwrap();
    for (name, tolerance) in [("modernbert.dynamo", 1e-4), ("bert.ortopt", 1e-3), ("bert.ort-static-qdq-u8s8", 5e-2)] {
        let artifact = dir.path().join(format!("{name}.dlxa"));
        let file = golden().join(format!("{name}.onnx"));
        let args = ["compile", path(&file), "-o", path(&artifact), "--dim", "B=2", "--dim", "T=5,14"];
        let report = text(&dlxc(&args));
        assert!(report.contains("main_T5(") && report.contains("main_T14("), "{report}");
        let bytes = std::fs::read(golden().join(format!("cases/{name}.safetensors"))).unwrap();
        let cases = SafeTensors::deserialize(&bytes).unwrap();
        for case in ["0", "1"] {
            let [inputs, outputs] = ["in", "out"].map(|n| dir.path().join(format!("{name}.{case}.{n}.safetensors")));
            let given: Vec<(String, TensorView<'_>)> = cases
                .tensors()
                .into_iter()
                .filter_map(|(key, view)| Some((key.strip_prefix(&format!("{case}.in."))?.to_owned(), view)))
                .collect();
            std::fs::write(&inputs, safetensors::serialize(given, None).unwrap()).unwrap();
            text(&dlxc(&["run-graph", path(&artifact), "--inputs", path(&inputs), "-o", path(&outputs)]));
            let bytes = std::fs::read(&outputs).unwrap();
            let found = SafeTensors::deserialize(&bytes).unwrap();
            let [a, b] = [
                cases.tensor(&format!("{case}.out.last_hidden_state")).unwrap(),
                found.tensor("last_hidden_state").unwrap(),
            ]
            .map(|v| (v.shape().to_vec(), floats(v.data())));
            assert_eq!(a.0, b.0);
            let off = a.1.iter().zip(&b.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off <= tolerance, "{name}: case {case} is off by {off}");
        }
    }
}

#[test]
fn what_is_missing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.dlxa");
    let refused = |args: &[&str]| {
        let file = golden().join(args[0]);
        let all = [&["compile", path(&file), "-o", path(&out)], &args[1..]].concat();
        let output = dlxc(&all);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let e = refused(&["bert.ortopt.onnx"]);
    assert!(e.contains("dynamic dimensions without a size: B, T") && e.contains("--dim \"B=N\""), "{e}");
    let e = refused(&["a2d.dynamo23.onnx", "--family", "a2d-qwen3"]);
    assert!(e.contains("tokenizer.json"), "{e}");
    let models = golden().join("models");
    let tokenizer = models.join("qwen2");
    let e = refused(&["qwen2.dynamo.onnx", "--family", "a2d-qwen2", "--tokenizer", path(&tokenizer), "--mask-id", "3"]);
    assert!(e.contains("attends under the mask causal, but a2d-qwen2 under full"), "{e}");
    let e = refused(&["qwen2.dynamo.onnx", "--family", "a2d-qwen2", "--tokenizer", path(&models.join("qwen3"))]);
    assert!(e.contains("give the id of the mask token with --mask-id N") || e.contains("under full"), "{e}");
    let e = refused(&["qwen2.dynamo.onnx", "--family", "none", "--tokenizer", path(&tokenizer)]);
    assert!(e.contains("there is no family `none`") && e.contains("use one of a2d-qwen2"), "{e}");
    let e = refused(&["qwen2.dynamo.onnx", "--config", path(dir.path()), "--tokenizer", path(&tokenizer)]);
    assert!(e.contains("config.json: is missing") && e.contains("put it beside the model"), "{e}");
    let e = refused(&["qwen2.dynamo.onnx", "--config", path(&models.join("qwen2-1")), "--tokenizer", path(&tokenizer)]);
    assert!(e.contains("has 2 layers") && e.contains("says 1"), "{e}");
}

#[test]
fn inspect_says_what_a_file_would_become() {
    let inspect = |args: &[&str]| {
        let file = golden().join(args[0]);
        let output = dlxc(&[&["inspect", path(&file), "--json"], &args[1..]].concat());
        let value: serde_json::Value = serde_json::from_str(&text(&output)).unwrap();
        (value["compiled"].clone(), value["unsupported"].clone())
    };
    let (made, unsupported) = inspect(&["qwen2.dynamo.onnx"]);
    assert_eq!((made["becomes"].as_str(), made["mask"].as_str()), (Some("generator"), Some("causal")));
    assert_eq!((made["ops"]["attention"].as_u64(), made["ops"].get("softmax")), (Some(2), None));
    assert_eq!(unsupported, serde_json::json!({}));
    let (made, _) = inspect(&["bert.ortopt.onnx"]);
    assert_eq!(made["becomes"].as_str(), None);
    assert!(made["no_graph"].as_str().unwrap().contains("--dim \"B=N\" --dim \"T=N\""), "{made}");
    let (made, _) = inspect(&["bert.ortopt.onnx", "--dim", "B=1", "--dim", "T=8"]);
    assert_eq!((made["becomes"].as_str(), made["ops"]["sdpa"].as_u64()), (Some("graph"), Some(2)), "{made}");
    assert!(made["no_generator"].as_str().unwrap().contains("raise-rows"), "{made}");
    let shown = text(&dlxc(&["inspect", path(&golden().join("bert.ortopt.onnx"))]));
    assert!(shown.contains("compiled as") && shown.contains("nothing, as it stands"), "{shown}");
}

/// The graphs of a dumped module without what says where things come from, and what they are called and stored as there:
/// weights are numbered as they are read, and known by their sizes.
fn plain(file: &Path) -> (Vec<Graph>, Vec<Vec<Dim>>) {
    let mut module = dlx_ir::parse(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut order = Vec::new();
    for node in module.graphs.iter_mut().flat_map(|g| &mut g.nodes) {
        node.origin = Origin::default();
        for input in &mut node.inputs {
            if let Operand::Weight(w) = input {
                let known = order.iter().position(|o| o == w);
                let place = known.unwrap_or(order.len());
                if known.is_none() {
                    order.push(*w);
                }
                *w = WeightId::new(place);
            }
        }
    }
    (module.graphs, order.iter().map(|w| module.weights[*w].ty.dims.clone()).collect())
}

fn listed(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/onnx2")
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn dlxc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).output().unwrap()
}
