//! wgpu artifacts as a whole: the same answers as the CPU, several targets in one file, weights in shards, and kernels that
//! are wrong. Skipped where there is no graphics device.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "test program")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use dlx_runtime::artifact::{self, Artifact};
use dlx_runtime::session::{Prompt, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::wgpu::adapters;
use dlx_runtime::wgpu::plan::{Feature, Plan};
use dlx_runtime::{AnyExecutor, LoadOptions, Model, ModelError};
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_tests::compiled::compile;
use dlxc::check::variants::{VARIANTS, wrong};
use dlxc::options::CompileOptions;

const QUESTIONS: &[&str] =
    &["What is the capital of France?", "What is 27 + 45?", "Sort these letters: d b c a", "Who are you?"];

/// Whether there is a graphics device; says so if not.
fn device() -> bool {
    let found = !adapters().is_empty();
    if !found {
        assert!(std::env::var_os("DLX_REQUIRE_WGPU").is_none(), "no wgpu adapter, although DLX_REQUIRE_WGPU is set");
        eprintln!("skipped: no wgpu adapter");
    }
    found
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny")
}

fn options(targets: &[&str]) -> CompileOptions {
    CompileOptions {
        targets: targets.iter().map(|t| (*t).to_owned()).collect(),
        max_seq: Some(128),
        buckets: vec![4, 32],
        ..CompileOptions::default()
    }
}

fn load(path: &Path, target: &str) -> Result<Model, ModelError> {
    let device = Some("0".into());
    let load = LoadOptions { target: Some(target.into()), device, ..LoadOptions::default() };
    Model::load(&Artifact::open(path).unwrap(), &load)
}

fn answers(model: Model) -> Vec<String> {
    let mut session = Session::new(model).unwrap();
    let mut answer = |question: &&str| {
        let messages = vec![Message::new("user", question)];
        let request = Request::new(Prompt::Chat { messages, variables: Default::default() }, 32);
        session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap().text
    };
    QUESTIONS.iter().map(&mut answer).collect()
}

fn plan(path: &Path) -> Plan {
    let artifact = Artifact::open(path).unwrap();
    serde_json::from_str(artifact.text(&artifact::plan_section("wgpu")).unwrap()).unwrap()
}

#[test]
fn one_file_answers_alike_on_both_targets() {
    if !device() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [cpu, both] = ["cpu.dlxa", "both.dlxa"].map(|name| dir.path().join(name));
    compile(&model(), &cpu, &options(&["cpu"])).unwrap();
    let summary = compile(&model(), &both, &options(&["cpu", "wgpu"])).unwrap();
    assert_eq!(summary.manifest.targets, ["cpu", "wgpu"]);
    assert!(summary.manifest.notes.iter().all(|n| !n.contains("once more")), "{:?}", summary.manifest.notes);
    let [one, two] = [&cpu, &both].map(|path| Artifact::open(path).unwrap());
    assert!(one.weights() == two.weights(), "both targets read the same bytes");
    let expected = answers(load(&both, "cpu").unwrap());
    assert_eq!(expected[0], "The capital of France is Paris.");
    let on_device = load(&both, "wgpu").unwrap();
    // A slow variant may give way, a wrong one there is not.
    let wrong: Vec<String> = on_device.executor.replaced();
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(answers(on_device), expected);
    assert!(matches!(load(&cpu, "wgpu"), Err(ModelError::Target { .. })));
}

#[test]
fn a_denoising_step_is_one_submit_and_reads_a_few_bytes() {
    if !device() {
        return;
    }
    use dlx_runtime::exec::{Executor, RowStats, Span};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.dlxa");
    compile(&model(), &path, &options(&["wgpu"])).unwrap();
    let AnyExecutor::Wgpu(mut executor) = load(&path, "wgpu").unwrap().executor else { panic!("not on wgpu") };
    assert_eq!(executor.counters().submits, 0, "the self-test is not counted");
    let span = Span::new(&[1, 2, 3, 4], &[0, 1, 2, 3], 0);
    let mut stats = [RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; 4];
    executor.step(&[span]).unwrap();
    executor.head(&[0, 1, 2, 3], &mut stats).unwrap();
    let counters = executor.counters();
    assert_eq!((counters.submits, counters.bytes_down), (1, 4 * 16));
    assert!(counters.bytes_up < 128, "{counters:?}");
}

#[test]
fn weights_above_the_binding_limit_are_read_in_shards() {
    if !device() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [whole, sharded] = ["whole.dlxa", "sharded.dlxa"].map(|name| dir.path().join(name));
    // Small steps, so that activations fit the limit that weights do not.
    let small = CompileOptions { buckets: vec![4, 8], ..options(&["cpu", "wgpu"]) };
    compile(&model(), &whole, &small).unwrap();
    compile(&model(), &sharded, &CompileOptions { profile: Some("plain:32768".into()), ..small }).unwrap();
    let [one, two] = [&whole, &sharded].map(|path| Artifact::open(path).unwrap());
    assert!(one.weights() == two.weights(), "sharding changes no byte");
    let (many, few) = (plan(&sharded).summary().weights, plan(&whole).summary().weights);
    assert!(many > few, "{many} bindings, {few} without shards");
    assert_eq!(answers(load(&sharded, "wgpu").unwrap()), answers(load(&whole, "cpu").unwrap()));
}

#[test]
fn a_wrong_kernel_is_replaced_and_reported_and_none_left_is_an_error() {
    if !device() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [good, bad] = ["good.dlxa", "bad.dlxa"].map(|name| dir.path().join(name));
    compile(&model(), &good, &options(&["cpu", "wgpu"])).unwrap();
    let expected = answers(load(&good, "cpu").unwrap());

    let whole = plan(&good);
    let roles = choices(&whole);
    for wrong in [idle, gibberish] {
        let Some(role) = roles.first() else { break };
        let mut plan = whole.clone();
        let kernels = plan.kernels.iter().filter(|k| k.role == *role);
        let fast: BTreeSet<usize> =
            kernels.flat_map(|k| k.variants.iter().filter(|v| !v.needs.is_empty()).map(|v| v.shader)).collect();
        fast.into_iter().for_each(|shader| plan.shaders[shader] = wrong(&plan.shaders[shader]));
        with_plan(&good, &bad, &plan);
        let model = load(&bad, "wgpu").unwrap();
        let replaced = model.executor.replaced();
        assert!(replaced.iter().any(|r| r.contains(role) && r.contains("plain instead of")), "{replaced:?}");
        assert_eq!(answers(model), expected);
    }

    // No variant is left: the error says which entry is wrong, and on what.
    let mut plan = whole.clone();
    let linear = plan.kernels.iter().find(|k| k.role == "linear").unwrap().role.clone();
    let kernels = plan.kernels.iter().filter(|k| k.role == linear);
    let all: BTreeSet<usize> = kernels.flat_map(|k| k.variants.iter().map(|v| v.shader)).collect();
    all.into_iter().for_each(|shader| plan.shaders[shader] = idle(&plan.shaders[shader]));
    with_plan(&good, &bad, &plan);
    let error = load(&bad, "wgpu").err().unwrap();
    assert!(matches!(error, ModelError::SelfTest { .. }), "{error}");
    assert!(error.to_string().contains("step_") && error.to_string().contains(&adapters()[0].name), "{error}");
    assert_eq!(answers(load(&bad, "cpu").unwrap()), expected, "the CPU program of the same file is sound");
}

#[test]
fn the_variant_of_a_kernel_that_is_wrong_is_named() {
    if !device() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [both, alone, bad] = ["both.dlxa", "alone.dlxa", "bad.dlxa"].map(|name| dir.path().join(name));
    compile(&model(), &both, &options(&["cpu", "wgpu"])).unwrap();
    compile(&model(), &alone, &options(&["wgpu"])).unwrap();
    let look = |path: &Path, target: &str| wrong(path, target, None, VARIANTS, 0).unwrap();
    assert!(look(&both, "cpu").is_none() && look(&both, "wgpu").is_none(), "a sound artifact has none");
    let mut named = BTreeSet::new();
    let all = choices(&plan(&both));
    for (good, role) in [&both, &alone].into_iter().flat_map(|good| all.iter().map(move |role| (good, role))) {
        let mut plan = plan(good);
        let kernels = plan.kernels.iter().filter(|k| k.role == *role).flat_map(|k| &k.variants);
        let fast: BTreeSet<usize> = kernels.filter(|v| !v.needs.is_empty()).map(|v| v.shader).collect();
        fast.into_iter().for_each(|shader| plan.shaders[shader] = idle(&plan.shaders[shader]));
        with_plan(good, &bad, &plan);
        // Kernels of heads are no part of a step.
        let Some(found) = look(&bad, "wgpu") else { continue };
        let tried: Vec<_> = found.variants.iter().filter(|v| v.role == *role).collect();
        assert!(!tried[0].right && tried.last().is_some_and(|v| v.right && v.variant == "plain"), "{found:?}");
        assert!(found.variants.iter().filter(|v| v.role != *role).all(|v| v.right), "{found:?}");
        named.insert(role);
    }
    assert!(all.is_empty() || !named.is_empty(), "none of {all:?} was found");
}

/// Roles whose fastest variant runs here and is not their last.
fn choices(plan: &Plan) -> BTreeSet<String> {
    let tier = &adapters()[0].tier;
    let runs = |f: &Feature| match f {
        Feature::F16 => tier.contains("f16"),
        Feature::Subgroups => tier.contains("subgroups"),
    };
    let has_choice = |k: &&dlx_runtime::wgpu::plan::Kernel| {
        k.variants.iter().position(|v| v.needs.iter().all(runs)).unwrap() + 1 < k.variants.len()
    };
    plan.kernels.iter().filter(has_choice).map(|k| k.role.clone()).collect()
}

/// A shader that does nothing.
fn idle(shader: &str) -> String {
    let (head, body) = shader.rsplit_once("fn main(").unwrap();
    let (parameters, body) = body.split_once('{').unwrap();
    format!("{head}fn main({parameters}{{ if true {{ return; }}{body}")
}

/// A shader that no device compiles.
fn gibberish(_: &str) -> String {
    "fn main( is not a shader".into()
}

/// Writes the artifact `from` to `to` with another plan.
fn with_plan(from: &Path, to: &Path, plan: &Plan) {
    let artifact = Artifact::open(from).unwrap();
    let mut writer = ArtifactWriter::create(to).unwrap();
    writer.append(artifact.weights()).unwrap();
    for section in artifact.sections().iter().filter(|s| s.name != artifact::WEIGHTS) {
        let bytes = artifact.section(&section.name).unwrap().to_vec();
        let is_plan = section.name == artifact::plan_section("wgpu");
        writer.section(section.name.clone(), if is_plan { serde_json::to_vec(plan).unwrap() } else { bytes });
    }
    writer.finish().unwrap();
}
