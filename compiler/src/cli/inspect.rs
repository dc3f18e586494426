//! `dlxc inspect`: what is in an artifact, a checkpoint or an ONNX file, as tables, JSON or IR.

use std::path::{Path, PathBuf};

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::artifact::{Artifact, plan_section, program_section};
use dlx_runtime::graph::{GraphManifest, Port, read_graph_manifest};
use dlx_runtime::host::Export;
use dlx_runtime::manifest::Manifest;
use dlx_runtime::wgpu::plan::Plan;
use dlx_runtime::{ModelError, certify, read_manifest, read_policies};
use serde_json::json;

use super::memory::memory_table;
use super::table::{self, Align};
use super::{Failure, terminal};
use crate::checkpoint::{Checkpoint, TextFiles};
use crate::onnx::{OnnxModel, Summary};
use crate::{driver, hf};

/// Show what is in an artifact, a model directory, an ONNX file or an export.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc inspect sdar.dlxa\n  dlxc inspect sdar.dlxa --ir | less\n  dlxc inspect models/sdar\n  dlxc inspect model.onnx\n  dlxc inspect bert.onnx --dim batch=1 --dim seq=32"
)]
pub struct Args {
    /// A .dlxa file, a model directory, an .onnx file, or the directory of an export.
    #[arg(value_name = "ARTIFACT|MODEL|FILE.onnx|EXPORT")]
    pub model: PathBuf,
    /// Size of a dynamic dimension of an ONNX graph, to see what would become of it; may be repeated.
    #[arg(long, value_name = "NAME=N", value_parser = super::compile::dim)]
    pub dim: Vec<(String, Vec<usize>)>,
    /// Threads to show the memory of an artifact for, computed from its programs; what its manifest says of 16 if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print the program.
    #[arg(long)]
    pub ir: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the file or directory is damaged or of an unknown kind.
pub fn run(args: &Args) -> Result<(), Failure> {
    let is_onnx = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    let text = if args.model.join("manifest.json").is_file() {
        export(args)?
    } else if args.model.is_dir() {
        checkpoint(args)?
    } else if is_onnx(&args.model) {
        onnx(args)?
    } else {
        artifact(args)?
    };
    terminal::print(&text)
}

fn artifact(args: &Args) -> Result<String, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    let artifact = Artifact::open(&args.model).map_err(|e| failed(&e))?;
    let manifest = match read_manifest(&artifact) {
        Err(ModelError::Graph { .. }) => return graphs(args, &artifact),
        manifest => manifest.map_err(|e| failed(&e))?,
    };
    let mut manifest = manifest;
    if let Some(threads) = args.threads {
        let certificate = |target: &String| certify(&artifact, target, usize::from(threads)).map_err(|e| failed(&e));
        manifest.memory = manifest.targets.iter().map(certificate).collect::<Result<_, _>>()?;
    }
    if args.ir {
        let programs = manifest.targets.iter().map(|t| artifact.text(&program_section(t)).map(str::to_owned));
        return programs.collect::<Result<String, _>>().map_err(|e| failed(&e));
    }
    let policies = read_policies(&artifact).map_err(|e| failed(&e))?;
    let sections: Vec<_> = artifact.sections().iter().map(|s| (s.name.clone(), s.len)).collect();
    if args.json {
        let sections: serde_json::Map<_, _> = sections.into_iter().map(|(name, len)| (name, len.into())).collect();
        let plans = plans(&artifact, &manifest.targets)?;
        let plans: serde_json::Map<_, _> = plans.iter().map(|(t, p)| (t.clone(), json!(p.summary()))).collect();
        let mut value = json!({"manifest": manifest, "sections": sections, "plans": plans});
        if let Some(policies) = policies {
            value["policies"] = json!(policies);
        }
        return Ok(format!("{value:#}\n"));
    }
    let facts = pairs(generator_facts(&artifact, &manifest)?.into_iter());
    let tuned = policies.map_or_else(String::new, |policies| format!("\n{}", super::tune::as_table(&policies)));
    Ok(format!("{facts}\n{}{tuned}", memory_table(&manifest.memory)))
}

/// What an artifact says of itself, by name.
///
/// # Errors
/// When its manifest or a plan is damaged.
pub(super) fn facts(artifact: &Artifact) -> Result<Vec<(String, String)>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    match read_manifest(artifact) {
        Err(ModelError::Graph { .. }) => {
            Ok(graph_facts(artifact, &read_graph_manifest(artifact).map_err(|e| failed(&e))?))
        }
        manifest => generator_facts(artifact, &manifest.map_err(|e| failed(&e))?),
    }
}

fn generator_facts(artifact: &Artifact, manifest: &Manifest) -> Result<Vec<(String, String)>, Error> {
    let sections = artifact.sections().iter().map(|s| (s.name.clone(), s.len));
    let m = &manifest.model;
    let mut rows = vec![
        ("family", m.family.clone()),
        ("parameters", table::count(m.parameters)),
        ("vocabulary", m.vocab.to_string()),
        ("longest sequence", m.max_seq.to_string()),
        ("targets", manifest.targets.join(", ")),
        ("compiler", manifest.compiler.clone()),
    ];
    let pipelines = manifest.pipelines.iter().map(|(target, p)| (format!("pipeline {target}"), p.clone()));
    let plans = plans(artifact, &manifest.targets)?;
    rows.extend(manifest.options.iter().map(|(k, v)| (k.as_str(), v.clone())));
    let policy = serde_json::to_value(&manifest.policy).unwrap_or_default();
    let policy: Vec<_> =
        policy.as_object().into_iter().flatten().map(|(k, v)| (format!("decode: {k}"), v.to_string())).collect();
    let rows = rows.into_iter().map(|(k, v)| (k.to_owned(), v)).chain(pipelines).chain(policy);
    let rows = rows.chain(plans.iter().flat_map(|(target, plan)| plan_rows(target, plan)));
    let rows = rows.chain(sections.map(|(name, len)| (format!("section {name}"), table::bytes(len))));
    let rows = rows.chain(manifest.notes.iter().map(|n| ("note".to_owned(), n.clone())));
    Ok(rows.collect())
}

/// An artifact of graphs.
fn graphs(args: &Args, artifact: &Artifact) -> Result<String, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    if args.ir {
        return artifact.text(&program_section("cpu")).map(str::to_owned).map_err(|e| failed(&e));
    }
    let manifest = read_graph_manifest(artifact).map_err(|e| failed(&e))?;
    let sections = artifact.sections().iter().map(|s| (s.name.clone(), s.len));
    if args.json {
        let sections: serde_json::Map<_, _> = sections.map(|(name, len)| (name, len.into())).collect();
        return Ok(format!("{:#}\n", json!({"manifest": manifest, "sections": sections})));
    }
    Ok(pairs(graph_facts(artifact, &manifest).into_iter()))
}

fn graph_facts(artifact: &Artifact, manifest: &GraphManifest) -> Vec<(String, String)> {
    let sections = artifact.sections().iter().map(|s| (s.name.clone(), s.len));
    let rows = [
        ("holds", "graphs, for dlxc run-graph".to_owned()),
        ("name", manifest.name.clone()),
        ("parameters", table::count(manifest.parameters)),
        ("compiler", manifest.compiler.clone()),
        ("memory: weights", table::bytes(manifest.memory.weights)),
        ("memory: values", table::bytes(manifest.memory.values)),
        ("pipeline", manifest.pipeline.clone()),
    ];
    let embeds = manifest.embeds.as_ref().map(|embeds| {
        let scaled = if embeds.normalize { ", scaled to length 1" } else { "" };
        ("embeddings", format!("pooling {} of {}{scaled}", json!(embeds.pooling), embeds.output))
    });
    let rows = rows.into_iter().chain(embeds).map(|(k, v)| (k.to_owned(), v));
    let ports = |what: &'static str, ports: &[Port]| {
        let row = move |port: &Port| (format!("  {what} {}", port.name), port.ty());
        ports.iter().map(row).collect::<Vec<_>>()
    };
    let entries = manifest.entries.iter().flat_map(|e| {
        let head = [(format!("graph {}", e.name), String::new())];
        head.into_iter().chain(ports("input", &e.inputs)).chain(ports("output", &e.outputs))
    });
    let sections = sections.map(|(name, len)| (format!("section {name}"), table::bytes(len)));
    let notes = manifest.notes.iter().map(|n| ("note".to_owned(), n.clone()));
    rows.chain(entries).chain(sections).chain(notes).collect()
}

/// The plans of an artifact's targets.
fn plans(artifact: &Artifact, targets: &[String]) -> Result<Vec<(String, Plan)>, Error> {
    let mut plans = Vec::new();
    for target in targets.iter().filter(|t| artifact.section(&plan_section(t)).is_some()) {
        let name = plan_section(target);
        let text = artifact.text(&name).map_err(|e| Error::new("", e.to_string()))?;
        let plan: Plan = serde_json::from_str(text).map_err(|e| Error::new(&name, e.to_string()))?;
        plan.check(artifact.weights().len() as u64).map_err(|e| Error::new(&name, e))?;
        plans.push((target.clone(), plan));
    }
    Ok(plans)
}

fn plan_rows(target: &str, plan: &Plan) -> Vec<(String, String)> {
    let s = plan.summary();
    let steps = s.dispatches.iter().map(|(entry, n)| format!("{entry} {n}")).collect::<Vec<_>>().join(", ");
    let rows = [
        ("profile", format!("{}, {} per binding", plan.profile.name, table::bytes(plan.profile.max_binding))),
        ("kernels", format!("{} in {} variants, {} shaders", s.kernels, s.variants, s.shaders)),
        ("dispatches", steps),
        ("weights", format!("{} in {} bindings", table::bytes(s.weight_bytes), s.weights)),
        ("states", table::bytes(s.states)),
        ("activations", table::bytes(s.arena)),
        ("read back", table::bytes(s.outputs)),
    ];
    rows.into_iter().map(|(k, v)| (format!("{target}: {k}"), v)).collect()
}

fn checkpoint(args: &Args) -> Result<String, Error> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let text = TextFiles::read(&args.model)?;
    let imported = hf::import(&checkpoint, &hf::Source::new(&checkpoint, &text))?;
    if args.ir {
        return Ok(imported.module.to_string());
    }
    let tensors: Vec<_> = checkpoint.names().filter_map(|n| Some((n, checkpoint.tensor(n)?))).collect();
    let type_of =
        |t: &crate::checkpoint::TensorView<'_>| dlx_ir::Type::new(t.dtype, t.shape.iter().copied()).to_string();
    if args.json {
        let tensors: serde_json::Map<_, _> =
            tensors.iter().map(|(n, t)| ((*n).to_owned(), type_of(t).into())).collect();
        let value = json!({
            "family": imported.family,
            "vocab": imported.vocab,
            "max_positions": imported.max_positions,
            "policy": imported.policy,
            "facts": imported.facts.rows,
            "notes": imported.facts.notes,
            "tensors": tensors,
        });
        return Ok(format!("{value:#}\n"));
    }
    let head = [("family", imported.family.to_owned()), ("positions", imported.max_positions.to_string())];
    let rows = head.into_iter().map(|(k, v)| (k.to_owned(), v));
    let rows =
        rows.chain(imported.facts.rows.iter().map(|f| (f.name.to_owned(), format!("{} ({})", f.value, f.source))));
    let rows = rows.chain(imported.facts.notes.iter().map(|n| ("note".to_owned(), n.clone())));
    Ok(pairs(rows.chain(tensors.iter().map(|(n, t)| ((*n).to_owned(), type_of(t))))))
}

fn onnx(args: &Args) -> Result<String, Error> {
    if args.ir {
        return Err(Error::new(args.model.display(), "is an ONNX file, which has no IR to print")
            .help("leave --ir away: operators, inputs and outputs are shown without it"));
    }
    let model = OnnxModel::open(&args.model)?;
    let s = Summary::of(&model)?;
    let sizes = args.dim.iter().filter_map(|(name, sizes)| Some((name.clone(), *sizes.first()?))).collect();
    let outlook = driver::outlook(&model, &sizes);
    if args.json {
        let mut value = json!(s);
        value["compiled"] = json!(outlook);
        return Ok(format!("{value:#}\n"));
    }
    let mut rows = vec![
        ("producer".to_owned(), s.producer),
        ("IR version".to_owned(), s.ir_version.to_string()),
        ("operator sets".to_owned(), s.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect::<Vec<_>>().join(", ")),
        ("initializers".to_owned(), s.initializers.count.to_string()),
        ("bytes of initializers".to_owned(), table::bytes(s.initializers.bytes)),
        ("… in other files".to_owned(), table::bytes(s.initializers.external_bytes)),
        ("local functions".to_owned(), s.functions.to_string()),
        ("graphs in nodes".to_owned(), s.subgraphs.to_string()),
    ];
    rows.extend(s.inputs.into_iter().map(|v| (format!("input {}", v.name), v.text)));
    rows.extend(s.outputs.into_iter().map(|v| (format!("output {}", v.name), v.text)));
    rows.extend(s.ops.into_iter().map(|(op, n)| (format!("op {op}"), n.to_string())));
    rows.extend(s.unsupported.into_iter().map(|(op, why)| (format!("unsupported {op}"), why.to_owned())));
    rows.push(("compiled as".to_owned(), outlook.becomes.unwrap_or("nothing, as it stands").to_owned()));
    rows.extend(outlook.mask.map(|mask| ("… attention under".to_owned(), mask)));
    rows.extend(outlook.ops.into_iter().map(|(op, n)| (format!("… op {op}"), n.to_string())));
    rows.extend(outlook.left.into_iter().map(|left| ("… left alone".to_owned(), left)));
    for (label, why) in [("no generator", outlook.no_generator), ("no graph", outlook.no_graph)] {
        let why = why.unwrap_or_default();
        rows.extend(why.lines().enumerate().map(|(n, line)| {
            let label = if n == 0 { label } else { "" };
            (label.to_owned(), line.trim_start().to_owned())
        }));
    }
    rows.extend(outlook.notes.into_iter().map(|n| ("… note".to_owned(), n)));
    rows.extend(s.notes.into_iter().map(|n| ("note".to_owned(), n)));
    // Names come from the file, and a terminal obeys control characters.
    let plain = |text: String| text.replace(char::is_control, "\u{fffd}");
    Ok(pairs(rows.into_iter().map(|(k, v)| (plain(k), plain(v)))))
}

fn export(args: &Args) -> Result<String, Error> {
    if args.ir {
        return Err(Error::new(args.model.display(), "is an export, which has no IR to print")
            .help("inspect one of its .onnx files, or leave --ir away"));
    }
    let m = Export::open(&args.model).map_err(|e| Error::new("", e.to_string()))?.manifest;
    if args.json {
        return Ok(format!("{:#}\n", json!(m)));
    }
    let rows = [
        ("holds", format!("an export for {}, profile {}", m.target, m.profile)),
        ("family", m.model.family.clone()),
        ("vocabulary", m.model.vocab.to_string()),
        ("cache rows", m.model.max_seq.to_string()),
        ("mask", m.model.mask.clone()),
        ("weights", table::bytes(m.weights.bytes)),
        ("calibration", m.calibration.clone()),
        ("compiler", m.compiler.clone()),
    ];
    let rows = rows.into_iter().map(|(k, v)| (k.to_owned(), v));
    let entries = m.entries.iter().map(|e| {
        let (inputs, outputs) = (e.inputs.len(), e.outputs.len());
        (e.file.clone(), format!("{} rows, {inputs} inputs, {outputs} outputs", e.rows))
    });
    Ok(pairs(rows.chain(entries).chain(m.notes.iter().map(|n| ("note".to_owned(), n.clone())))))
}

fn pairs(rows: impl Iterator<Item = (String, String)>) -> String {
    let rows: Vec<Vec<String>> = rows.map(|(k, v)| vec![k, v]).collect();
    table::table(&[("", Align::Left), ("", Align::Left)], &rows)
}
