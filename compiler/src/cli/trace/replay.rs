//! `dlxc trace replay`: a recorded decode once more, compared to the bit; or another model along its canvas.

use std::path::PathBuf;

use dlx_ir::Error;
use dlx_runtime::trace::{How, Rerun, Row, Trace};
use serde_json::json;

use super::{Side, describe, differences, read, short, token};
use crate::cli::table::{self, Align};
use crate::cli::{Failure, Place, terminal};
use crate::options::QuantSpec;

/// Decode again what was recorded, and compare every number to the bit.
///
/// The threads and the instruction set (DLX_ISA) may be others: results do not depend on them. Exit status 1 when
/// something differs.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A file that `dlxc run --trace` wrote.
    #[arg(value_name = "TRACE")]
    pub file: PathBuf,
    /// The artifact that was recorded, or another one with --force; a model directory is compiled first.
    #[arg(long, value_name = "ARTIFACT|MODEL")]
    pub model: PathBuf,
    /// Run another artifact or target than the recorded one, along the recorded canvas: every pass is fed what the recorded
    /// one was fed, and what this model says of each position is reported.
    #[arg(long)]
    pub force: bool,
    /// Where it runs; on the recorded target if not given.
    #[command(flatten)]
    pub place: Place,
    /// Threads to use, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc trace replay t.jsonl --model sdar.dlxa --threads 1
  DLX_ISA=scalar dlxc trace replay t.jsonl --model sdar.dlxa
  dlxc trace replay t.jsonl --model sdar-int8.dlxa --force";

/// Runs the subcommand.
///
/// # Errors
/// A trace or model that cannot be read or run, another artifact without `--force`, a difference; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let trace = read(&args.file)?;
    let target = args.place.target.clone().unwrap_or_else(|| trace.head.about.target.clone());
    let place = Place { target: Some(target), ..args.place.clone() };
    let mut side = Side::open(&args.model, args.quant, &place, args.threads)?;
    if args.force {
        let run = side.run(&trace, How::Along, usize::MAX)?;
        return report(args, &trace, &side, &run);
    }
    for (what, recorded, found) in [
        ("artifact", &trace.head.about.artifact, &side.about.artifact),
        ("target", &trace.head.about.target, &side.about.target),
    ] {
        if recorded != found {
            let differs = format!("was recorded with {what} {}, and this is {}", short(recorded), short(found));
            let help = format!("give that {what}, or --force to run this one along the recorded canvas");
            return Err(Error::new(args.file.display(), differs).help(help).into());
        }
    }
    let run = side.run(&trace, How::Again, usize::MAX)?;
    let partings = differences(&trace, &run, 0.0);
    let decisions = trace.steps.iter().filter_map(|step| step.decision.as_ref());
    let rows: Vec<&Row> = decisions.clone().flat_map(|d| &d.rows).collect();
    let numbers = rows.iter().flat_map(|row| row.numbers()).filter(|(_, x)| x.is_some()).count();
    let (passes, decisions) = (trace.steps.len(), decisions.count());
    let (here, there) = (side.name(), &trace.head.about.device);
    if args.json {
        let report = json!({
            "same": partings.is_empty(),
            "passes": passes,
            "decisions": decisions,
            "rows": rows.len(),
            "numbers": numbers,
            "recorded": trace.head.about,
            "replayed": side.about,
            "first_difference": partings.first(),
        });
        terminal::print(&format!("{report:#}\n"))?;
    } else {
        let what = match partings.first() {
            None => format!("{passes} passes, {decisions} decisions, {numbers} numbers: the same to the bit"),
            Some(first) => format!("differs: {}", describe(first, &trace, Some(&side.model.tokenizer))),
        };
        let there: String = there.chars().map(crate::cli::canvas::shown).collect();
        terminal::print(&format!("{what}\nreplayed on {here}; recorded on {there}\n"))?;
    }
    if partings.is_empty() { Ok(()) } else { Err(Failure::Differs) }
}

/// What another model says along the canvas.
fn report(args: &Args, trace: &Trace, side: &Side, run: &Rerun) -> Result<(), Failure> {
    let decided = trace.steps.iter().zip(&run.steps).enumerate();
    let decided = decided.filter_map(|(step, (a, b))| Some((step, a.decision.as_ref()?, b.decision.as_ref()?)));
    let (mut rows, mut lines, mut flips, mut others, mut most) = (Vec::new(), Vec::new(), 0, 0, 0.0f32);
    for (step, ours, theirs) in decided {
        for (a, b) in ours.rows.iter().zip(&theirs.rows) {
            let [taken, would] = [ours, theirs].map(|d| d.revealed.iter().any(|r| r.0 == a.position));
            flips += usize::from(a.token != b.token);
            others += usize::from(taken != would);
            if let (Some(x), Some(y)) = (a.confidence, b.confidence) {
                most = most.max((x - y).abs());
            }
            let number = |x: Option<f32>| x.map_or(String::new(), |x| format!("{x:.4}"));
            let yes = |x: bool| if x { "yes".to_owned() } else { String::new() };
            let text = |row: &Row| token(row.token, trace, Some(&side.model.tokenizer));
            let cells = [(step + 1).to_string(), a.position.to_string(), text(a), number(a.confidence), yes(taken)];
            let more = [text(b), number(b.confidence), yes(would), yes(a.token != b.token || taken != would)];
            lines.push(cells.into_iter().chain(more).collect());
            rows.push(json!({"pass": step, "recorded": a, "revealed": taken, "here": b, "would_reveal": would}));
        }
    }
    if args.json {
        let report = json!({
            "recorded": trace.head.about, "here": side.about, "rows": rows, "other_tokens": flips,
            "other_decisions": others, "largest_confidence_difference": most,
        });
        return terminal::print(&format!("{report:#}\n"));
    }
    let (left, right) = (Align::Left, Align::Right);
    let columns = [
        ("pass", right),
        ("position", right),
        ("recorded", left),
        ("confidence", right),
        ("revealed", left),
        ("here", left),
        ("confidence", right),
        ("revealed", left),
        ("other", left),
    ];
    let table = table::table(&columns, &lines);
    terminal::print(&format!(
        "{table}{} rows: {flips} other tokens, {others} other decisions; confidences differ by {most} at most; here is {}\n",
        lines.len(),
        side.name()
    ))
}
