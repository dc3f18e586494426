//! `dlxc trace diff`: where two recordings part, or two models along one recording's canvas, and at which node.

use std::path::PathBuf;

use dlx_ir::Error;
use dlx_runtime::exec::HIDDEN;
use dlx_runtime::trace::{How, Trace};
use serde_json::json;

use super::{Side, describe, read};
use crate::cli::{Failure, Place, terminal};
use crate::options::QuantSpec;
use crate::trace::{FirstNode, Parting, What, compare, first_node};

/// Find where two recordings part; or two models, along the canvas of one recording, and the first node that differs there.
///
/// Exit status 1 when they differ.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A file that `dlxc run --trace` wrote.
    #[arg(value_name = "TRACE")]
    pub file: PathBuf,
    /// Another one, to be compared with it as far as both have the same canvas.
    #[arg(value_name = "OTHER", conflicts_with_all = ["model", "against"], required_unless_present = "model")]
    pub other: Option<PathBuf>,
    /// Run this artifact (or model directory) along the canvas of the recording …
    #[arg(long, value_name = "ARTIFACT|MODEL")]
    pub model: Option<PathBuf>,
    /// Where it runs.
    #[command(flatten)]
    pub place: Place,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// … and this one; the same one if not given.
    #[arg(long, value_name = "ARTIFACT|MODEL", requires = "model")]
    pub against: Option<PathBuf>,
    /// Program of the other artifact to run, cpu or wgpu; its first one if not given.
    #[arg(long, value_name = "NAME", requires = "model")]
    pub against_target: Option<String>,
    /// Format of the weights when the other model directory is compiled first; as for --quant.
    #[arg(long, value_name = "FORMAT", requires = "model")]
    pub against_quant: Option<QuantSpec>,
    /// Threads to use, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// How much numbers may differ; those of a node by that part of the largest of them. With 0 they must be the same to the
    /// bit.
    #[arg(long, value_name = "X", default_value_t = 1e-3, value_parser = tolerance)]
    pub tolerance: f32,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc trace diff a.jsonl b.jsonl
  dlxc trace diff a.jsonl --model both.dlxa --target cpu --against-target wgpu
  dlxc trace diff a.jsonl --model models/sdar --quant none --against models/sdar --against-quant int4 --tolerance 0.01";

/// What was found.
struct Found {
    /// Every difference, in order.
    partings: Vec<Parting>,
    /// The first node that differs in the pass where they part; `None` where nobody looked or none does.
    node: Option<FirstNode>,
    /// What was compared.
    sides: [String; 2],
}

impl Found {
    /// The first other token.
    fn token(&self) -> Option<&Parting> {
        self.partings.iter().find(|p| matches!(p.what, What::Token { .. }))
    }

    /// The first position that only one side reveals, or the first that they reveal for other reasons.
    fn decision(&self) -> Option<&Parting> {
        self.partings.iter().find(|p| matches!(p.what, What::Revealed { .. } | What::Order))
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Traces or models that cannot be read or run, and those that differ; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let trace = read(&args.file)?;
    let found = match (&args.other, &args.model) {
        (Some(other), _) => {
            let name = |path: &PathBuf| path.display().to_string();
            let (sides, other) = ([name(&args.file), name(other)], read(other)?);
            check(args, &trace, &other)?;
            Found { partings: compare(&trace.steps, &other.steps, args.tolerance), node: None, sides }
        }
        (None, Some(model)) => {
            let other = args.against.as_ref().unwrap_or(model);
            let place = Place { target: args.against_target.clone(), ..args.place.clone() };
            let quant = if args.against.is_some() { args.against_quant } else { args.quant };
            let mut a = Side::open(model, args.quant, &args.place, args.threads)?;
            let mut b = Side::open(other, quant, &place, args.threads)?;
            along(args, &trace, &mut a, &mut b)?
        }
        (None, None) => unreachable!("the command line asks for one of them"),
    };
    if args.json {
        let report = json!({
            "same": found.partings.is_empty(),
            "sides": found.sides,
            "differences": found.partings.len(),
            "first_difference": found.partings.first(),
            "first_other_token": found.token(),
            "first_other_decision": found.decision(),
            "first_node": found.node,
        });
        terminal::print(&format!("{report:#}\n"))?;
    } else {
        terminal::print(&text(&found, &trace, args))?;
    }
    if found.partings.is_empty() { Ok(()) } else { Err(Failure::Differs) }
}

/// Refuses recordings of calls that have nothing in common.
fn check(args: &Args, a: &Trace, b: &Trace) -> Result<(), Error> {
    let differs = if a.head.prompt != b.head.prompt {
        "prompts"
    } else if a.head.policy != b.head.policy {
        "policies"
    } else if a.head.max_new != b.head.max_new {
        "lengths (--max-new)"
    } else {
        return Ok(());
    };
    Err(Error::new(args.file.display(), format!("was recorded with other {differs} than the other trace"))
        .help("record both calls with the same prompt and options"))
}

/// Compares two models along the canvas of a recording.
fn along(args: &Args, trace: &Trace, a: &mut Side, b: &mut Side) -> Result<Found, Failure> {
    let runs = [a.run(trace, How::Along, usize::MAX)?, b.run(trace, How::Along, usize::MAX)?];
    let partings = compare(&runs[0].steps, &runs[1].steps, args.tolerance);
    let mut node = None;
    if let Some(first) = partings.first() {
        // Both caches as they were before the pass; then the pass itself, looked into.
        let next = a.run(trace, How::Along, first.step)?.next;
        b.run(trace, How::Along, first.step)?;
        for span in &next {
            node = first_node(a.inside(), b.inside(), span.span(), args.tolerance)?;
            if node.is_some() {
                break;
            }
        }
    }
    Ok(Found { partings, node, sides: [a.name(), b.name()] })
}

fn text(found: &Found, trace: &Trace, args: &Args) -> String {
    let [a, b] = &found.sides;
    let mut lines = vec![format!("A: {a}"), format!("B: {b}")];
    let Some(first) = found.partings.first() else {
        lines.push(format!("no difference beyond {}", args.tolerance));
        return lines.join("\n") + "\n";
    };
    let tell = |p: &Parting| describe(p, trace, None);
    lines.push(format!("first difference: {}", tell(first)));
    for (name, found) in [("first other token", found.token()), ("first other decision", found.decision())] {
        lines.push(format!("{name}: {}", found.map_or("none".to_owned(), tell)));
    }
    if let Some(node) = &found.node {
        let part = node.distance * 100.0;
        lines.push(format!(
            "first node: {} differs by {part:.3} % of its largest element; {} values before it agree",
            if node.value == HIDDEN { "what the head reads".to_owned() } else { format!("%{}", node.value) },
            node.agree
        ));
        for (side, node) in ["A", "B"].into_iter().zip(&node.nodes) {
            lines.extend(node.as_ref().map(|node| format!("  {side}: {node}")));
        }
        if !node.from.is_empty() {
            lines.push(format!("  from {}", node.from.join(", ")));
        }
    } else if args.model.is_some() {
        lines.push(format!("first node: none inside the step differs by more than {}: the head does", args.tolerance));
    }
    lines.join("\n") + "\n"
}

fn tolerance(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|x| (0.0..=1e6).contains(x)).ok_or_else(|| "use 0 or a positive number".into())
}
