//! Looking inside a step: the values that executors show are those that the step computes, by the names of the program.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "test program")]

use std::path::{Path, PathBuf};

use dlx_ir::{DType, Module, Op};
use dlx_runtime::artifact::{self, Artifact};
use dlx_runtime::exec::{Executor, HIDDEN, Span};
use dlx_runtime::wgpu::adapters;
use dlx_runtime::{AnyExecutor, LoadOptions, load_executor};
use dlx_tests::compiled::{Interpreted, compile};
use dlxc::options::{CompileOptions, QuantSpec};

type Values = Vec<(String, Vec<f32>)>;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny")
}

fn options(quant: QuantSpec, targets: &[&str]) -> CompileOptions {
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    CompileOptions { quant, targets, max_seq: Some(64), buckets: vec![4, 16], ..CompileOptions::default() }
}

fn load(artifact: &Artifact, target: &str) -> AnyExecutor {
    let device = Some("0".to_owned());
    load_executor(artifact, &LoadOptions { target: Some(target.into()), device, ..LoadOptions::default() }).unwrap()
}

fn program(artifact: &Artifact, target: &str) -> Module {
    dlx_ir::parse(artifact.text(&artifact::program_section(target)).unwrap()).unwrap()
}

/// Two steps: a prompt of six rows, and a block of three behind it, which is what is seen.
fn seen(executor: &mut dyn Executor) -> Values {
    let ids = [5, 17, 40, 101, 33, 7];
    executor.step(&[Span::new(&ids, &[0, 1, 2, 3, 4, 5], 0)]).unwrap();
    let mut values = Values::new();
    let mut see = |name: &str, rows: &[f32]| values.push((name.to_owned(), rows.to_vec()));
    assert!(executor.observe(&[Span::new(&[9, 250, 12], &[6, 7, 8], 6)], &mut see).unwrap());
    values
}

fn logits(executor: &mut dyn Executor) -> Vec<f32> {
    let mut out = vec![0.0; 3 * executor.vocab()];
    executor.logits(&[0, 1, 2], &mut out).unwrap();
    out
}

/// Largest difference, as a part of the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = a.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Every f32 value of the step of four rows was seen, in order, and the last one is what the step stores.
fn complete(program: &Module, values: &Values) {
    let graph = program.graph("step_4").unwrap();
    let computed = graph.nodes.iter().flat_map(|n| &n.outputs).map(|o| &graph.values[*o]);
    let floats: Vec<_> = computed.filter(|v| v.ty.dtype == DType::F32).collect();
    let (last, inside) = values.split_last().unwrap();
    assert!(inside.iter().map(|v| v.0.as_str()).eq(floats.iter().map(|v| v.name.as_str())));
    assert!(inside.iter().zip(&floats).all(|(v, f)| v.1.len() == 3 * f.ty.dims[1].fixed().unwrap()));
    let stores = graph.nodes.iter().find(|n| matches!(n.op, Op::StoreRows {})).unwrap();
    let stored = &graph.values[stores.inputs[0].value().unwrap()].name;
    assert_eq!(last.0, HIDDEN);
    assert_eq!(&inside.iter().find(|v| v.0 == *stored).unwrap().1, &last.1);
}

#[test]
fn the_cpu_shows_what_the_step_computes_and_the_evaluator_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.dlxa");
    let options = options(QuantSpec::None, &["cpu"]);
    compile(&model(), &path, &options).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let mut cpu = load(&artifact, "cpu");
    let values = seen(&mut *cpu);
    complete(&program(&artifact, "cpu"), &values);
    let observed = logits(&mut *cpu);
    cpu.step(&[Span::new(&[9, 250, 12], &[6, 7, 8], 6)]).unwrap();
    assert_eq!(observed, logits(&mut *cpu), "looking changes nothing");

    let mut evaluator = Interpreted::load(&model(), &options).unwrap();
    let expected = seen(&mut evaluator);
    let mut compared = 0;
    for (name, value) in &values[..values.len() - 1] {
        let Some(other) = expected.iter().find(|(n, _)| n == name) else { continue };
        let distance = distance(&other.1, value);
        assert!(distance < 1e-3, "%{name}: {distance}");
        compared += 1;
    }
    assert_eq!(compared, values.len() - 1);
}

#[test]
fn a_graphics_device_shows_the_same_values() {
    if adapters().is_empty() {
        assert!(std::env::var_os("DLX_REQUIRE_WGPU").is_none(), "no wgpu adapter, although DLX_REQUIRE_WGPU is set");
        eprintln!("skipped: no wgpu adapter");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (quant, tolerance) in [("none", 2e-3), ("int4", 6e-2)] {
        let path = dir.path().join(format!("{quant}.dlxa"));
        compile(&model(), &path, &options(quant.parse().unwrap(), &["cpu", "wgpu"])).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        let (mut cpu, mut wgpu) = (load(&artifact, "cpu"), load(&artifact, "wgpu"));
        let (expected, values) = (seen(&mut *cpu), seen(&mut *wgpu));
        complete(&program(&artifact, "wgpu"), &values);
        let names = |values: &Values| values.iter().map(|v| v.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(&values), names(&expected));
        for ((name, value), (_, other)) in values.iter().zip(&expected) {
            let distance = distance(other, value);
            assert!(distance < tolerance, "{quant}: %{name}: {distance}");
        }
        let observed = logits(&mut *wgpu);
        wgpu.step(&[Span::new(&[9, 250, 12], &[6, 7, 8], 6)]).unwrap();
        assert_eq!(observed, logits(&mut *wgpu), "{quant}: looking changes nothing");
    }
}
