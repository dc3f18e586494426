//! Edited and signed graph artifacts: each is refused, or runs within the memory that it may have. Never a panic.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use dlx_ir::{Error, Tensor, VerifiedModule, parse};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::graph::{GraphError, GraphModel, GraphOptions, Tensors};
use dlx_targets::WeightSource;
use dlxc::driver::{GraphEntry, Graphs, Watch, compile_graphs};
use dlxc::options::CompileOptions;

use crate::container::{Sections, section, sign, take_apart};
use crate::edits;
use crate::rng::Rng;

/// Mutants of an ordinary run; `DLX_MUTANTS` asks for others.
const COUNT: u64 = 120;

/// A layer of everything that a small encoder has.
const TEXT: &str = "module @m {
  weight @table: f32[20, 16]
  weight @w: f32[16, 16]
  weight @norm: f32[16]
  weight @scale: f32[1, 3] = [1, 2, 3]
  graph @main(%ids: i32[3]) -> (f32[3, 16], f32[1, 16]) {
    %x = embed %ids, @table: f32[3, 16]
    %n = rms_norm %x, @norm {eps=1e-6}: f32[3, 16]
    %q = linear %n, @w: f32[3, 16]
    %a = attention %q, %n, %x {head_dim=8, mask=full}: f32[3, 16]
    %s = silu %a: f32[3, 16]
    %y = add %s, %x: f32[3, 16]
    %t = transpose %y: f32[16, 3]
    %u = transpose %t: f32[3, 16]
    %p = softmax %u: f32[3, 16]
    %z = matmul @scale, %p: f32[1, 16]
    return %y, %z
  }
}";

struct Ramp;

impl WeightSource for Ramp {
    fn read_rows(&self, name: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
        Err(Error::new(name, "is read as bytes"))
    }

    fn read_bytes(&self, _: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let number = |i: usize| (i * 37 % 256) as f32 / 256.0 + rows.start as f32 / 16.0;
        let numbers = (0..out.len() / 4).flat_map(|i| number(i).to_le_bytes());
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

fn original(path: &Path) -> Sections {
    let module = VerifiedModule::new(parse(TEXT).unwrap()).unwrap();
    let entry = GraphEntry::new("main", module).unwrap();
    let graphs = Graphs { name: "m".into(), embeds: None, entries: vec![entry], notes: Vec::new() };
    compile_graphs(graphs, &Ramp, path, &CompileOptions::default(), &Silent, &AtomicBool::new(false)).unwrap();
    take_apart(&Artifact::open(path).unwrap())
}

fn ask(path: &Path, self_test: bool) -> Result<Tensors, GraphError> {
    let options = GraphOptions { memory: 64 << 20, self_test, ..GraphOptions::default() };
    let model = GraphModel::load(&Artifact::open(path)?, &options)?;
    model.run(&Tensors::from([("ids".into(), Tensor::i32(&[3], vec![3, 0, 19]))]))
}

#[test]
fn graphs_are_refused_or_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dlxa");
    let base = original(&path);
    let answer = ask(&path, true).unwrap();
    let count = std::env::var("DLX_MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(COUNT);
    let (mut errors, mut same, mut other) = (0, 0, 0);
    for number in 0..count {
        let mut rng = Rng::new(number.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 7);
        let mut sections = base.clone();
        match rng.below(10) {
            0 | 1 => drop(edits::json(&mut rng, section(&mut sections, "manifest").unwrap())),
            2 => drop(edits::json(&mut rng, section(&mut sections, "golden").unwrap())),
            3 => drop(edits::table(&mut rng, &mut sections)),
            4 => drop(edits::bytes(&mut rng, section(&mut sections, "weights").unwrap())),
            5 => drop(edits::bytes(&mut rng, section(&mut sections, "program:cpu").unwrap())),
            _ => drop(edits::program(&mut rng, section(&mut sections, "program:cpu").unwrap())),
        }
        let Some(bytes) = sign(&sections) else { continue };
        std::fs::write(&path, bytes).unwrap();
        // Half of them without the golden vectors: checks alone must do.
        match ask(&path, number % 2 == 0) {
            Err(_) => errors += 1,
            Ok(found) if found == answer => same += 1,
            Ok(_) => other += 1,
        }
    }
    assert!(errors > count / 3 && same > 0, "{errors} errors, {same} same, {other} others of {count}");
}

#[test]
fn what_a_graph_artifact_says_twice_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.dlxa");
    let base = original(&path);
    let error = |name: &str, from: &str, to: &str| {
        let mut sections = base.clone();
        let bytes = section(&mut sections, name).unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        *bytes = text.replace(from, to).into_bytes();
        std::fs::write(&path, sign(&sections).unwrap()).unwrap();
        ask(&path, true).unwrap_err().to_string()
    };
    for (name, from, to, message) in [
        ("manifest", "\"graph\"", "\"graphs\"", "unknown variant"),
        ("manifest", "\"name\": \"main\"", "\"name\": \"mein\"", "lists the graphs mein"),
        ("manifest", "\"i32\"", "\"i64\"", "other types"),
        ("manifest", "\"name\": \"ids\"", "\"name\": \"\"", "need names"),
        ("manifest", "\"name\": \"z\"", "\"name\": \"y\"", "each its own"),
        ("manifest", "\"kind\": \"graph\",", "", "generates text"),
        ("program:cpu", "i32[3]", "i32[4]", "not what is written"),
        ("program:cpu", "offset=0, bytes=1280", "offset=4096, bytes=1280", "outside the weights"),
        ("golden", "\"main\"", "\"mein\"", "do not belong"),
    ] {
        let said = error(name, from, to);
        let any = said.contains(message);
        assert!(any, "{from} → {to}: {said}");
    }
    let mut sections = base.clone();
    sections.push(("tokenizer".into(), b"{}".to_vec()));
    std::fs::write(&path, sign(&sections).unwrap()).unwrap();
    assert!(ask(&path, true).unwrap_err().to_string().contains("a section `tokenizer`, which no graph needs"));
}
