//! `dlxc tune`: measures how an artifact's ways of decoding trade agreement for time, and stores the best of them in it.

mod live;
mod record;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use dlx_ir::Error;
use dlx_runtime::LoadOptions;
use dlx_runtime::artifact::{self, Artifact};
use dlx_runtime::policies::{Interval, Point, Policies, Reference, VERSION};
use dlx_runtime::session::Session;
use serde::Deserialize;
use serde_json::json;

use self::live::Live;
use self::record::Measured;
use super::table::{self, Align};
use super::{Failure, questions, run, terminal};
use crate::options::QuantSpec;
use crate::rewrite;
use crate::tune::{MIN_PROMPTS, Outcome, Race, grid};

/// Find the fastest ways of decoding that lose little, and store them in the artifact.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A .dlxa file.
    pub artifact: PathBuf,
    /// One JSON object per line: prompt, and optionally answer and system.
    #[arg(value_name = "PROMPTS.jsonl")]
    pub prompts: PathBuf,
    /// A diffusion model that drafts what the artifact's verifies: an artifact, or a directory to compile first. Swept are then
    /// the lengths of drafts; the text stays the same.
    #[arg(long, value_name = "ARTIFACT|MODEL")]
    pub draft: Option<PathBuf>,
    /// What answers are compared with: those of the file, or the model's own most careful setting, one token per step; the
    /// former if every prompt has one.
    #[arg(long, value_name = "REFERENCE", value_enum)]
    pub reference: Option<Against>,
    /// Most tokens of an answer; 256 if not given, or 64 for models that see the whole answer at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_new: Option<u32>,
    /// Time that the answers may take, such as 10m; every setting answers eight prompts in any case.
    #[arg(long, value_name = "TIME", value_parser = run::time)]
    pub budget: Option<Duration>,
    /// Order of the prompts.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Take answers and times from what --json printed before, and run nothing.
    #[arg(long, value_name = "FILE.json")]
    pub costs: Option<PathBuf>,
    /// Write the tuned artifact here; in the place of the old one if not given.
    #[arg(long, short, value_name = "FILE.dlxa", conflicts_with = "dry_run")]
    pub out: Option<PathBuf>,
    /// Report only; the artifact stays what it is.
    #[arg(long)]
    pub dry_run: bool,
    /// Threads to use, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Where it runs.
    #[command(flatten)]
    pub place: super::Place,
    /// Report everything as JSON, every answer's time among it; --costs reads it.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc tune sdar.dlxa questions.jsonl                      store what was found in sdar.dlxa
  dlxc tune sdar.dlxa prompts.jsonl --budget 10m -o tuned.dlxa
  dlxc tune sdar.dlxa questions.jsonl --dry-run --json > costs.json
  dlxc tune sdar.dlxa questions.jsonl --costs costs.json   the same choice, without running
  dlxc tune qwen.dlxa questions.jsonl --draft sdar.dlxa    how much to draft
  dlxc run sdar.dlxa \"What is 27 + 45?\" --quality balanced
  dlxc run sdar.dlxa \"What is 27 + 45?\" --deadline 50ms";

/// [`Reference`], as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Against {
    /// The answers of the file, to the letter.
    Answers,
    /// The model itself, one token per step.
    Careful,
}

/// One prompt.
#[derive(Deserialize)]
struct Question {
    prompt: String,
    answer: Option<String>,
    system: Option<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// An artifact that cannot be loaded, written or tuned, prompts that it cannot take, a recording of something else; on
/// Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let questions: Vec<(usize, Question)> = questions::read(&args.prompts)?;
    if questions.len() < MIN_PROMPTS {
        let message = format!("holds {} prompts, too few to tell settings apart", questions.len());
        let error = Error::new(args.prompts.display(), message);
        return Err(error.help(format!("give at least {MIN_PROMPTS}, better a hundred")).into());
    }
    let reference = reference(args, &questions)?;
    if args.artifact.is_dir() {
        let error = Error::new(args.artifact.display(), "is a directory, and settings are stored in an artifact");
        return Err(error.help("compile it first: dlxc compile MODEL -o OUT.dlxa").into());
    }
    let artifact = super::artifact(&args.artifact, Some(QuantSpec::None), &args.place)?;
    // What an earlier sweep stored has no say in this one, and need not be readable.
    let options = LoadOptions { policies: false, ..args.place.options(args.threads) };
    let loaded = super::load_with(&artifact, &args.place, options)?;
    let device = loaded.executor.device();
    let mut session = Session::new(loaded).map_err(|e| Error::new(args.artifact.display(), e.to_string()))?;
    let max_new = run::max_new(args.max_new, session.policy());
    if let Some(path) = &args.draft {
        let drafter = super::model(path, None, &args.place, args.threads)?;
        session.draft_with(drafter).map_err(|e| Error::new(path.display(), e.to_string()))?;
    }
    let mut settings = grid::settings(session.policy(), max_new, args.draft.is_some());
    live::runnable(args, &questions, &mut session, &mut settings, max_new)?;
    if settings.len() < 2 {
        let error = Error::new(args.artifact.display(), "has one way of decoding only, so there is nothing to tune");
        let help = "models that decode one token after the other are as fast as they are, or have a drafter: --draft";
        return Err(error.help(help).into());
    }
    let mut measured = Measured {
        model: identity(&artifact),
        prompts: hash(&args.prompts)?,
        reference,
        max_new,
        device,
        probe_ns: 0,
        settings,
        trials: Vec::new(),
    };
    let race = Race {
        settings: &measured.settings.clone(),
        prompts: questions.len(),
        max_new,
        seed: args.seed,
        budget: args.budget,
    };
    let outcome = match &args.costs {
        Some(path) => {
            let recorded = record::read(path, &measured)?;
            (measured.device, measured.probe_ns) = (recorded.device.clone(), recorded.probe_ns);
            race.run(&|_| {}, &mut |setting, prompt| recorded.trial(path, setting, prompt))?
        }
        None => {
            let probe = session.probe().map_err(|e| Error::new(args.artifact.display(), e.to_string()))?;
            measured.probe_ns = record::nanoseconds(probe);
            let mut live = Live::new(args, &questions, &mut session, &measured);
            let bar = terminal::count_progress("tuning");
            let outcome = race.run(&|trials| bar.set_length(trials as u64), &mut |setting, prompt| {
                bar.inc(1);
                live.trial(setting, prompt)
            });
            bar.finish_and_clear();
            outcome?
        }
    };
    let policies = Policies {
        version: VERSION,
        reference,
        prompts: outcome.rounds.last().map_or(0, |round| round.prompts),
        device: measured.device.clone(),
        probe: measured.probe_ns as f64 * 1e-9,
        points: outcome.points.clone(),
    };
    policies
        .check()
        .map_err(|why| Error::new("the measured settings", why).help("report this with --json's output"))?;
    if !args.dry_run {
        let bytes = serde_json::to_vec(&policies).map_err(|e| Error::new(artifact::POLICIES, e.to_string()))?;
        rewrite::with_section(&artifact, args.out.as_ref().unwrap_or(&args.artifact), artifact::POLICIES, &bytes)?;
    }
    terminal::print(&if args.json { as_json(measured, outcome, &policies, args.seed) } else { as_table(&policies) })
}

fn reference(args: &Args, questions: &[(usize, Question)]) -> Result<Reference, Error> {
    let missing = questions.iter().find(|(_, q)| q.answer.is_none()).map(|(line, _)| *line);
    match (args.reference, missing) {
        (Some(Against::Careful), _) | (None, Some(_)) => Ok(Reference::Careful),
        (_, None) => Ok(Reference::Answers),
        (Some(Against::Answers), Some(line)) => {
            let place = format_args!("{}:{line}", args.prompts.display()).to_string();
            Err(Error::new(place, "has no answer").help("add one, or compare with --reference careful"))
        }
    }
}

/// What a recording was made of: all sections but the measured settings themselves.
fn identity(artifact: &Artifact) -> String {
    let mut hasher = blake3::Hasher::new();
    for section in artifact.sections().iter().filter(|s| s.name != artifact::POLICIES) {
        hasher.update(section.name.as_bytes()).update(&section.hash);
    }
    hasher.finalize().to_hex().to_string()
}

fn hash(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::new(path.display(), format!("cannot be read: {e}")))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn as_json(measured: Measured, outcome: Outcome, policies: &Policies, seed: u64) -> String {
    let mut value = json!(Measured { trials: outcome.trials, ..measured });
    value["seed"] = seed.into();
    value["rounds"] = json!(outcome.rounds);
    value["by_seconds"] = json!(policies.by_seconds());
    value["by_passes"] = json!(policies.by_passes());
    value["policies"] = json!(policies);
    format!("{value:#}\n")
}

/// Measured settings as a table, with a line about them.
pub fn as_table(policies: &Policies) -> String {
    let share = |i: &Interval| format!("{:.3} ({:.3}–{:.3})", i.mean, i.low, i.high);
    let passes = |i: &Interval| format!("{:.1} ({:.1}–{:.1})", i.mean, i.low, i.high);
    let time = |seconds: f64| table::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    let times = |i: &Interval| format!("{} ({}–{})", time(i.mean), time(i.low), time(i.high));
    let (by_seconds, by_passes) = (policies.by_seconds(), policies.by_passes());
    let front = |i: usize| match (by_seconds.contains(&i), by_passes.contains(&i)) {
        (true, true) => "both",
        (true, false) => "seconds",
        _ => "passes",
    };
    let row = |(i, p): (usize, &Point)| {
        let cells = [p.settings.to_string(), share(&p.agreement), times(&p.seconds), passes(&p.passes)];
        cells.into_iter().chain([front(i).to_owned()]).collect::<Vec<_>>()
    };
    let rows: Vec<_> = policies.points.iter().enumerate().map(row).collect();
    let columns =
        [("setting", Align::Left), ("agreement", Align::Right), ("seconds", Align::Right), ("passes", Align::Right)];
    let columns = [&columns[..], &[("best by", Align::Left)]].concat();
    let with = match policies.reference {
        Reference::Answers => "answers that are exactly the expected ones",
        Reference::Careful => "tokens in common with the model's own answers at one token per step",
    };
    let about = format!(
        "agreement: {with}; means of {} prompts with their 95 % intervals, on {}\n",
        policies.prompts, policies.device
    );
    // The device's name comes from a file, and a terminal obeys control characters.
    table::table(&columns, &rows) + &about.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}
