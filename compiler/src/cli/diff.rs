//! `dlxc diff`: what differs between two builds, in structure and in numbers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Parser;
use dlx_ir::{Error, VerifiedModule};
use serde_json::json;

use super::diff_view::{Stage, View};
use super::{Failure, terminal};
use crate::check::built::{Built, decisions, observe, read_ir, tensors};
use crate::check::diff::{numbers, run_both, structure};
use crate::check::source::Seeded;

/// Show what differs between two IR files, dump directories, artifacts or checkpoints.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// An IR file, a directory of `--dump`, an artifact or a checkpoint.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Another one of the same kind.
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// What numbers may differ, as the RMS of the difference over that of A's.
    #[arg(long, value_name = "T", default_value_t = 1e-6, value_parser = super::bisect::tolerance)]
    pub tolerance: f32,
    /// Program of artifact A to run, and of B: cpu or wgpu.
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',', num_args = 1, default_value = "cpu")]
    pub target: Vec<String>,
    /// Compare structure alone.
    #[arg(long)]
    pub no_run: bool,
    /// Seed of inputs and weights that are made up.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Most lines of a graph to show.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
    /// Write Markdown, for the summary of a CI job.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc diff before.dlx after.dlx
  dlxc diff good-dumps new-dumps --markdown >> \"$GITHUB_STEP_SUMMARY\"
  dlxc diff f32.dlxa int4.dlxa --tolerance 0.1       where the error grows, and which tokens flip
  dlxc diff both.dlxa both.dlxa --target cpu,wgpu    two programs of one artifact
  dlxc diff models/base models/tuned                 tensor by tensor

IR text has no weights: they are made up. Exit status: 0 the same, 1 different, or not to be compared.";

/// Runs the subcommand.
///
/// # Errors
/// Inputs that cannot be read or are not of one kind, or that differ.
pub fn run(args: &Args) -> Result<(), Failure> {
    let (a, b) = (Built::open(&args.a)?, Built::open(&args.b)?);
    let (stages, tensors) = match (&a, &b) {
        (Built::Module(a), Built::Module(b)) => (vec![stage(args, "module", a, b)], vec![]),
        (Built::Dumps(a), Built::Dumps(b)) => (dumps(args, a, b)?, vec![]),
        (Built::Artifact(a), Built::Artifact(b)) => {
            let of = |i: usize| args.target.get(i).or(args.target.first()).map_or("cpu", String::as_str);
            let (x, y) = (a.program(of(0))?, b.program(of(1))?);
            let mut changes = structure(&x, &y);
            changes.extend(a.manifest_changes(b));
            let mut found = Stage { name: "program".into(), note: None, changes, numbers: None };
            if !args.no_run {
                let node = |name: &str| text_of(&y, name);
                let (first, second) = (observe(a, of(0), args.seed)?, observe(b, of(1), args.seed)?);
                let mut numbers = numbers(&first, &second, args.tolerance, &node);
                numbers.decisions = decisions(a, &first, &second);
                found.numbers = Some(numbers);
            }
            (vec![found], vec![])
        }
        (Built::Checkpoint(a), Built::Checkpoint(b)) => (vec![], tensors(a, b)?),
        _ => {
            let message = format!("is {}, and {} is {}", a.kind(), args.b.display(), b.kind());
            return Err(Error::new(args.a.display(), message).help("give two of one kind").into());
        }
    };
    let differing: Vec<&Stage> = stages.iter().filter(|s| s.differs(args.tolerance)).collect();
    let worse = tensors.iter().filter(|t| t.differs(args.tolerance)).count();
    if args.json {
        let first = differing.first().map(|s| &s.name);
        let report = json!({ "first": first, "stages": stages, "tensors": tensors });
        terminal::print(&format!("{report:#}\n"))?;
    } else {
        let view = View { markdown: args.markdown, lines: args.lines, tolerance: args.tolerance };
        terminal::print(&view.text(&args.a, &args.b, &stages, &tensors))?;
    }
    match (differing.first(), worse) {
        (None, 0) => Ok(()),
        (Some(first), _) => {
            Err(Error::new(args.b.display(), format!("differs from {} from {} on", args.a.display(), first.name))
                .into())
        }
        (None, n) => Err(Error::new(args.b.display(), format!("{n} tensors differ from {}", args.a.display())).into()),
    }
}

fn stage(args: &Args, name: &str, a: &VerifiedModule, b: &VerifiedModule) -> Stage {
    let mut found = Stage { name: name.to_owned(), note: None, changes: structure(a, b), numbers: None };
    if !args.no_run {
        let weights = (Seeded { module: a, seed: args.seed }, Seeded { module: b, seed: args.seed });
        match run_both(a, b, (&weights.0, &weights.1), args.seed, args.tolerance) {
            Ok(numbers) => found.numbers = Some(numbers),
            Err(e) => found.note = Some(format!("cannot be run: {e}")),
        }
    }
    found
}

fn dumps(args: &Args, a: &[(String, PathBuf)], b: &[(String, PathBuf)]) -> Result<Vec<Stage>, Error> {
    let names: BTreeSet<&String> = a.iter().chain(b).map(|(name, _)| name).collect();
    let find = |of: &[(String, PathBuf)], name: &String| of.iter().find(|(n, _)| n == name).map(|(_, p)| p.clone());
    let mut all = Vec::new();
    for name in names {
        let alone = |dir: &Path| {
            let note = Some(format!(
                "is only in {}: the pass changes something there, and nothing in the other",
                dir.display()
            ));
            Stage { name: name.clone(), note, changes: vec![], numbers: None }
        };
        all.push(match (find(a, name), find(b, name)) {
            (Some(x), Some(y)) if std::fs::read(&x).ok() == std::fs::read(&y).ok() => {
                Stage { name: name.clone(), note: None, changes: vec![], numbers: None }
            }
            (Some(x), Some(y)) => stage(args, name, &read_ir(&x)?, &read_ir(&y)?),
            (Some(_), None) => alone(&args.a),
            _ => alone(&args.b),
        });
    }
    Ok(all)
}

/// The node that computes a value in a step, with the tensors that it reads.
fn text_of(module: &VerifiedModule, name: &str) -> String {
    let found = module.graphs.iter().find_map(|g| Some((g, g.values.find(name)?)));
    let node = found.and_then(|(g, v)| Some((g, g.nodes.iter().find(|n| n.outputs.contains(&v))?)));
    node.map_or_else(String::new, |(g, n)| module.node_text(g, n))
}
