//! `dlxc bisect`: which pass broke it, and in which rewrite.

use std::path::{Path, PathBuf};

use clap::Parser;
use dlx_ir::{Error, VerifiedModule};
use dlx_passes::{Step, parse_pipeline};
use dlx_runtime::LoadOptions;
use dlx_targets::WeightSource;
use serde_json::json;

use super::{Failure, terminal};
use crate::check::against::{Departure, Metric, Reference, departs};
use crate::check::bisect::{Verdict, bisect};
use crate::check::builds::{Dumps, Parting, part};
use crate::check::built::{Built, read_ir};
use crate::check::compare::{Between, Breach};
use crate::check::cut::{Corners, cut, cut_pipeline};
use crate::check::reduce::Repro;
use crate::check::source::Seeded;
use crate::check::variants::{self, VARIANTS};
use crate::options::{CompileOptions, Keep, QuantSpec};
use crate::{driver, files};

/// Find the first pass that broke what a model computes, the rewrite in it, and the smallest module that shows it.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory of a checkpoint, an ONNX file, a file with IR text, whose weights are made up, a directory of `--dump`, or an
    /// artifact, whose kernels are looked at on this machine.
    #[arg(value_name = "MODEL|FILE.dlx|DUMPS|ARTIFACT")]
    pub model: PathBuf,
    /// Passes to look at, instead of the target's own; needed for IR text.
    #[arg(long, value_name = "PIPELINE")]
    pub pipeline: Option<String>,
    /// Target whose passes these are; see `dlxc targets`.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub target: String,
    /// Format of the weights; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// Weights that get a format of their own, as for compile.
    #[arg(long, value_name = "NAME,…[=FORMAT]")]
    pub keep: Vec<Keep>,
    /// What the model should compute: `evaluator` holds every pass to the stage before it; an artifact, or a file with
    /// `input_ids` and `logits` or values by name, is what every stage is compared with. Dumps are compared with those of
    /// another build.
    #[arg(long, value_name = "evaluator|FILE|DUMPS", default_value = "evaluator")]
    pub against: String,
    /// What is compared with a file: logits, hidden (values by name) or tokens (the most likely ones).
    #[arg(long, value_name = "WHAT")]
    pub metric: Option<Metric>,
    /// What may differ: RMS over RMS for logits and hidden, rows for tokens. 0.02, or 0 tokens, if not given; 0.1
    /// between variants of a graphics device's kernels.
    #[arg(long, value_name = "T", value_parser = tolerance)]
    pub tolerance: Option<f32>,
    /// Graphics device whose kernels are looked at, by number or a part of its name; see `dlxc devices`.
    #[arg(long, value_name = "N|NAME")]
    pub device: Option<String>,
    /// Seed of made up inputs and weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where to write the file test that still fails.
    #[arg(short, long, value_name = "FILE", default_value = "bisected.dlx")]
    pub output: PathBuf,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc bisect models/sdar                                        every pass against the stage before it
  dlxc bisect dump/00-import.dlx --pipeline \"cse,fold,dce\"
  dlxc bisect models/sdar --against good.dlxa --metric tokens    against what another build computed
  dlxc bisect models/sdar --quant none --against torch.safetensors --tolerance 1e-4
  dlxc bisect good-dumps --against new-dumps                     two builds of the compiler, by what they dumped
  dlxc bisect sdar.dlxa --target wgpu --device radeon            which variant of which kernel is wrong there

Exit status: 0 nothing is broken, 1 a pass is, or it could not be looked at.";

pub(super) fn tolerance(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("a tolerance is a number from 0 on".into()) }
}

/// Runs the subcommand.
///
/// # Errors
/// A pass that is broken, or what cannot be read or run.
pub fn run(args: &Args) -> Result<(), Failure> {
    let against = (args.against != "evaluator").then(|| Path::new(&args.against));
    if args.model.extension().is_some_and(|e| e == "dlxa") {
        return kernels(args, against);
    }
    for (flag, given) in [("--metric", args.metric.is_some()), ("--tolerance", args.tolerance.is_some())] {
        if given && against.is_none() {
            let help = "give --against FILE, or leave it out: passes say themselves what they keep";
            return Err(Error::new(flag, "has no effect without a reference").help(help).into());
        }
    }
    if args.device.is_some() {
        let help = "give the artifact that was compiled for it, or leave it out";
        return Err(Error::new("--device", "is for artifacts, whose kernels run there").help(help).into());
    }
    if args.model.is_dir()
        && !args.model.join("config.json").is_file()
        && let Built::Dumps(dumps) = Built::open(&args.model)?
    {
        return builds(args, against, &dumps);
    }
    let look = |module: &VerifiedModule, steps: &[Step], weights: &dyn WeightSource| match against {
        Some(path) => compare(args, path, module, steps, weights).map(Outcome::Departure),
        None => bisect(module, steps, weights, args.seed).map(|v| Outcome::Verdict(v.map(Box::new))),
    };
    let outcome = if args.model.extension().is_some_and(|e| e == "dlx") {
        let module = read_ir(&args.model)?;
        let pipeline = args.pipeline.as_ref().ok_or_else(|| {
            Error::new("--pipeline", "is needed for IR text").help("name the passes, as `dlxc compile` lists them")
        })?;
        look(&module, &parse_pipeline(pipeline)?, &Seeded { module: &module, seed: args.seed })?
    } else {
        let keep = args.keep.iter().flat_map(|k| k.names.iter().map(|n| (n.clone(), k.format)));
        let options = CompileOptions {
            targets: vec![args.target.clone()],
            keep: keep.collect(),
            pipeline: args.pipeline.clone(),
            ..CompileOptions::asked(args.quant)
        };
        driver::with_passes(&args.model, &options, |module, steps, weights| {
            if against.is_some() {
                return look(module, steps, weights);
            }
            let patterns: Vec<String> = options.keep.iter().map(|(name, _)| name.clone()).collect();
            let cut = cut(module, &patterns)?;
            let (steps, note) = cut_pipeline(steps, &cut);
            cut.notes.iter().chain(&note).for_each(|n| terminal::note(&format!("note: {n}")));
            look(&cut.module, &steps, &Corners { weights, cut: &cut })
        })?
    };
    match outcome {
        Outcome::Verdict(None) => sound(args, "every pass keeps what it says"),
        Outcome::Departure(None) => sound(args, &format!("no stage is further from {} than allowed", args.against)),
        Outcome::Verdict(Some(verdict)) => broken(args, &verdict),
        Outcome::Departure(Some(departure)) => departed(args, &departure),
    }
}

/// Looks at the kernels that an artifact runs in on this machine.
fn kernels(args: &Args, against: Option<&Path>) -> Result<(), Failure> {
    for (flag, given) in
        [("--against", against.is_some()), ("--metric", args.metric.is_some()), ("--pipeline", args.pipeline.is_some())]
    {
        if given {
            let help = "leave it out: the kernels of an artifact are compared with each other";
            return Err(Error::new(flag, "has no effect on an artifact").help(help).into());
        }
    }
    let tolerance = args.tolerance.unwrap_or(VARIANTS);
    let Some(wrong) = variants::wrong(&args.model, &args.target, args.device.as_deref(), tolerance, args.seed)? else {
        return sound(args, "every variant of every kernel that runs here computes the same");
    };
    let mut out = format!("{} is the first value that is wrong on {}\n", wrong.value, wrong.device);
    out.push_str(&format!("\nit is computed by\n  {}\n", wrong.node));
    if !wrong.sources.is_empty() {
        out.push_str(&format!("\nfrom the tensors {}\n", wrong.sources.join(", ")));
    }
    for v in &wrong.variants {
        let verdict = if v.right { "right" } else { "WRONG" };
        out.push_str(&format!("\n{verdict}: {} of {}, {:.2e} off", v.variant, v.role, v.error));
    }
    out.push('\n');
    terminal::print(&if args.json { format!("{:#}\n", json!({ "broken": wrong })) } else { out })?;
    Err(Error::new(args.model.display(), format!("{} is wrong on {}", wrong.value, wrong.device)).into())
}

/// Compares the dumps of two builds.
fn builds(args: &Args, against: Option<&Path>, dumps: &Dumps) -> Result<(), Failure> {
    let other = against.ok_or_else(|| {
        Error::new(args.model.display(), "is a directory of dumps, which is compared with that of another build")
            .help("give it with --against DIR; a single file with --pipeline is held to what passes keep")
    })?;
    for (flag, given) in [
        ("--metric", args.metric.is_some()),
        ("--tolerance", args.tolerance.is_some()),
        ("--pipeline", args.pipeline.is_some()),
    ] {
        if given {
            return Err(Error::new(flag, "has no effect on dumps of two builds").help("leave it out").into());
        }
    }
    let others = match Built::open(other)? {
        Built::Dumps(others) => others,
        built => {
            let message = format!("is {}, and {} is a directory of dumps", built.kind(), args.model.display());
            return Err(Error::new(other.display(), message).help("give the --dump of another build").into());
        }
    };
    match part(dumps, &others, args.seed)? {
        None => sound(args, "every stage that both dumped computes the same"),
        Some(parting) => parted(args, &parting),
    }
}

fn parted(args: &Args, p: &Parting) -> Result<(), Failure> {
    let pass = p.pass.as_ref().map_or_else(String::new, |pass| format!(", behind {pass},"));
    let (compared, stages) = (p.compared, p.stages);
    let mut out =
        format!("from {}{pass} on they compute other things ({compared} of {stages} stages compared)\n", p.stage);
    out.push_str(&difference(p.breach.as_ref(), &p.between));
    for stage in &p.alone {
        out.push_str(&format!("\nnote: {stage} is only in one of them: the pass changes nothing in the other\n"));
    }
    match (&p.repro, &p.pass) {
        (Some(repro), Some(pass)) => out.push_str(&written(args, repro, pass)?),
        _ => out.push_str(
            "\nnote: the pass of this build keeps what it says, or is not known here: the other build is to be asked\n",
        ),
    }
    terminal::print(&if args.json { format!("{:#}\n", json!({ "broken": p })) } else { out })?;
    Err(Error::new(&args.against, format!("computes other things than {} from {} on", args.model.display(), p.stage))
        .into())
}

/// A value that differs, and what computes it.
fn difference(breach: Option<&Breach>, between: &Between) -> String {
    let mut out = String::new();
    if let Some(b) = breach {
        let [row, column] = b.at;
        out.push_str(&format!("\n{} is {:e} at [{row}, {column}], and was {:e}\n", b.value, b.found, b.expected));
    }
    for (title, nodes) in [("was computed by", &between.before), ("is computed by", &between.after)] {
        if !nodes.is_empty() {
            out.push_str(&format!("\n{title}\n  {}\n", nodes.join("\n  ")));
        }
    }
    if !between.sources.is_empty() {
        out.push_str(&format!("\nfrom the tensors {}\n", between.sources.join(", ")));
    }
    out
}

/// Writes the file test, and says how to run it.
fn written(args: &Args, repro: &Repro, pass: &str) -> Result<String, Error> {
    let file = args.output.display();
    let failed = |e: std::io::Error| Error::new(args.output.display(), format!("cannot be written: {e}"));
    files::write(&args.output, repro.text.as_bytes()).map_err(failed)?;
    Ok(format!("\n{file}: {} nodes that show it; run `dlxc opt {file} -p \"{pass}\" --verify-each`\n", repro.nodes))
}

enum Outcome {
    Verdict(Option<Box<Verdict>>),
    Departure(Option<Departure>),
}

fn compare(
    args: &Args,
    path: &Path,
    module: &VerifiedModule,
    steps: &[Step],
    weights: &dyn WeightSource,
) -> Result<Option<Departure>, Error> {
    let metric = args.metric.unwrap_or(Metric::Logits);
    let reference = if path.extension().is_some_and(|e| e == "dlxa") {
        let ids = crate::check::against::tokens(module, args.seed)?;
        Reference::of_artifact(path, ids, &LoadOptions::default())?
    } else {
        Reference::read(path)?
    };
    departs(module, steps, weights, &reference, metric, args.tolerance.unwrap_or_else(|| metric.tolerance()))
}

fn sound(args: &Args, message: &str) -> Result<(), Failure> {
    let text = if args.json { format!("{:#}\n", json!({ "broken": null })) } else { format!("{message}\n") };
    terminal::print(&text)
}

fn broken(args: &Args, v: &Verdict) -> Result<(), Failure> {
    let mut out =
        format!("pass {}, {}, is the first that is broken ({} of {} stages run)\n", v.number, v.pass, v.runs, v.stages);
    if let Some(error) = &v.error {
        out.push_str(&format!("\nit fails: {error}\n"));
    }
    out.push_str(&difference(v.breach.as_ref(), &v.between));
    match &v.repro {
        Some(repro) => out.push_str(&written(args, repro, &v.pass)?),
        None => out.push_str("\nnote: it does not show with made up weights, so there is no file to reproduce it\n"),
    }
    terminal::print(&if args.json { format!("{:#}\n", json!({ "broken": v })) } else { out })?;
    Err(Error::new(args.model.display(), format!("pass {} is broken", v.pass)).into())
}

fn departed(args: &Args, d: &Departure) -> Result<(), Failure> {
    let metric = args.metric.unwrap_or(Metric::Logits);
    let mut out = match d.number {
        0 => format!("the imported model is too far from {} already: no pass is to blame\n", args.against),
        n => format!("pass {n}, {}, is the first behind which the model is too far from {}\n", d.pass, args.against),
    };
    out.push_str(&format!("{metric} of %{}: {:.3e} behind it", d.after.value, d.after.error));
    if let Some(before) = &d.before {
        out.push_str(&format!(", {:.3e} before it", before.error));
    }
    out.push_str(&format!(" ({} of {} stages run)\n", d.runs, d.stages));
    terminal::print(&if args.json { format!("{:#}\n", json!({ "broken": d })) } else { out })?;
    Err(Error::new(args.model.display(), format!("is too far from {} behind {}", args.against, d.pass)).into())
}
