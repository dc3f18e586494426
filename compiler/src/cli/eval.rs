//! `dlxc eval`: exact match of an artifact's answers on a file of questions.
//!
//! The file has one JSON object per line with `prompt`, `answer` and, if wanted, `task` and `system`. An answer counts when
//! the generated text is exactly the expected one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::manifest::Quality;
use dlx_runtime::session::{Request, Session, Speculate};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Deserialize;
use serde_json::json;

use super::table::{self, Align};
use super::{Failure, hybrid, questions, run, terminal};
use crate::options::QuantSpec;
use crate::quality::{self, Paired, Tally};
use dlx_runtime::decode::Passes;
use dlx_runtime::decode::hybrid::Counts;

/// Measure exact match on a file of questions.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc eval sdar.dlxa questions.jsonl\n  dlxc eval models/sdar questions.jsonl --quant none --json\n  dlxc eval qwen.dlxa questions.jsonl --draft sdar.dlxa --draft-length 8"
)]
pub struct Args {
    /// A .dlxa file, a model directory to compile first, or the directory of an export, which is run on the CPU.
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: PathBuf,
    /// One JSON object per line: prompt, answer, and optionally task and system.
    #[arg(value_name = "DATA.jsonl")]
    pub data: PathBuf,
    /// How to decode.
    #[command(flatten)]
    pub decode: run::Decode,
    /// Who drafts.
    #[command(flatten)]
    pub hybrid: hybrid::Hybrid,
    /// Where it runs; the baseline runs on the CPU.
    #[command(flatten)]
    pub place: super::Place,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// Compare with this artifact (or model directory, unquantized): the quality card.
    #[arg(long, value_name = "ARTIFACT|MODEL")]
    pub against: Option<PathBuf>,
    /// Write the quality card into the artifact's manifest.
    #[arg(long, requires = "against")]
    pub write: bool,
    /// List the wrong answers too.
    #[arg(long)]
    pub errors: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// One question.
#[derive(Deserialize)]
struct Question {
    prompt: String,
    answer: String,
    #[serde(default)]
    task: String,
    system: Option<String>,
}

/// Sums over some questions.
#[derive(Default)]
struct Score {
    asked: usize,
    exact: usize,
    tokens: usize,
    passes: Passes,
    /// Of drafting, if there was any.
    speculation: Option<Counts>,
}

impl Score {
    fn exact_match(&self) -> f64 {
        self.exact as f64 / self.asked.max(1) as f64
    }
}

/// A wrong answer.
struct Miss {
    prompt: String,
    want: String,
    got: String,
}

/// Runs the subcommand.
///
/// # Errors
/// A model that cannot be loaded, a malformed data file, a prompt that the model cannot take; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let lines = questions::read(&args.data)?;
    let questions: Vec<Question> = lines.into_iter().map(|(_, question)| question).collect();
    let super::Opened { mut session, notes, .. } =
        super::open(&args.model, args.quant, &args.place, args.decode.threads)?;
    let speculate = args.hybrid.prepare(&mut session, args.quant, &args.place, args.decode.threads)?;
    let answered = answer_all(args, &questions, &mut session, speculate)?;
    let card = match &args.against {
        Some(baseline) => Some(card(args, &questions, baseline, answered.all.passes.forward())?),
        None => None,
    };
    if let Some(card) = card.as_ref().filter(|_| args.write) {
        quality::write_card(&args.model, card.clone())?;
    }
    terminal::print(&if args.json { as_json(args, &answered, card, &notes) } else { as_table(args, &answered, card) })
}

/// Answers the questions with the baseline while the model under test looks at the same states.
fn card(args: &Args, questions: &[Question], baseline: &Path, forwards: usize) -> Result<Quality, Failure> {
    let ours = super::model(&args.model, args.quant, &args.place, args.decode.threads)?;
    let cpu = super::Place { target: Some("cpu".into()), device: None, ..args.place.clone() };
    let base = super::model(baseline, Some(QuantSpec::None), &cpu, args.decode.threads)?;
    if ours.manifest.model.tokenizer_hash != base.manifest.model.tokenizer_hash {
        let message = format!("has another tokenizer than {}", args.model.display());
        return Err(Error::new(baseline.display(), message).help("compare artifacts of the same model").into());
    }
    let tally = Arc::new(Mutex::new(Tally::default()));
    let paired = Paired { baseline: base.executor, other: ours.executor, tally: Arc::clone(&tally) };
    let session = Session::with_executor(Box::new(paired), base.tokenizer, base.template, base.manifest.policy);
    let mut session = session.map_err(|e| Error::new(baseline.display(), e.to_string()))?;
    let answered = answer_all(args, questions, &mut session, None)?;
    let tally = tally.lock().expect("no holder panics");
    Ok(tally.quality(questions.len(), forwards, answered.all.passes.forward()))
}

/// All answers, counted.
struct Answered<'q> {
    all: Score,
    tasks: BTreeMap<&'q str, Score>,
    misses: Vec<Miss>,
}

fn answer_all<'q>(
    args: &Args,
    questions: &'q [Question],
    session: &mut Session,
    speculate: Option<Speculate>,
) -> Result<Answered<'q>, Failure> {
    let bar = ProgressBar::with_draw_target(Some(questions.len() as u64), ProgressDrawTarget::stderr());
    let mut tasks: BTreeMap<&str, Score> = BTreeMap::new();
    let (mut all, mut misses) = (Score::default(), Vec::new());
    for question in questions {
        if terminal::interrupted() {
            return Err(Failure::Interrupted);
        }
        let report = ask(session, question, &args.decode, speculate)
            .map_err(|e| Error { place: args.data.display().to_string(), ..e })?;
        let exact = report.text == question.answer;
        for tally in [&mut all, tasks.entry(&question.task).or_default()] {
            tally.asked += 1;
            tally.exact += usize::from(exact);
            tally.tokens += report.ids.len();
            tally.passes += report.passes;
            if let Some(speculation) = &report.speculation {
                tally.speculation.get_or_insert_default().add(&speculation.counts);
            }
        }
        if !exact {
            let (prompt, want) = (question.prompt.clone(), question.answer.clone());
            misses.push(Miss { prompt, want, got: report.text });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Answered { all, tasks, misses })
}

fn ask(
    session: &mut Session,
    question: &Question,
    decode: &run::Decode,
    speculate: Option<Speculate>,
) -> Result<dlx_runtime::session::Report, Error> {
    let prompt = questions::chat(&question.prompt, question.system.as_deref());
    let mut request = Request::new(prompt, decode.max_new(session.policy()));
    request.overrides = decode.overrides(session.policy());
    request.speculate = speculate;
    let report = session.generate(&request, &mut |_| {
        if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    report.map_err(|e| Error::new("", format!("`{}`: {e}", question.prompt)))
}

fn as_table(args: &Args, answered: &Answered<'_>, card: Option<Quality>) -> String {
    let Answered { all, tasks, misses } = answered;
    let row = |name: &str, t: &Score| {
        vec![
            name.to_owned(),
            format!("{}/{}", t.exact, t.asked),
            format!("{:.3}", t.exact_match()),
            t.passes.forward().to_string(),
            format!("{:.2}", t.passes.tokens_per_forward(t.tokens)),
        ]
    };
    let mut rows: Vec<_> = tasks.iter().map(|(name, t)| row(name, t)).collect();
    rows.push(row("all", all));
    let columns = ["task", "right", "exact match", "forwards", "tokens/forward"];
    let aligns = columns.iter().enumerate().map(|(i, c)| (*c, if i == 0 { Align::Left } else { Align::Right }));
    let mut text = table::table(&aligns.collect::<Vec<_>>(), &rows);
    for m in misses.iter().filter(|_| args.errors) {
        text.push_str(&format!("\n{:?}\n  want {:?}\n  got  {:?}\n", m.prompt, m.want, m.got));
    }
    if let Some(counts) = &all.speculation {
        text.push_str(&format!("\n{}\n", hybrid::summary(counts)));
    }
    if let Some(card) = card {
        text.push_str(&format!(
            "\nagainst the baseline, on {} masked rows: KL {:.5} nats (largest {:.3}), {:.2} % other best tokens, {} forwards for {}\n",
            card.rows,
            card.mean_kl,
            card.max_kl,
            100.0 * card.flip_rate,
            card.forwards,
            card.baseline_forwards,
        ));
    }
    text
}

fn as_json(args: &Args, answered: &Answered<'_>, card: Option<Quality>, notes: &[String]) -> String {
    let Answered { all, tasks, misses } = answered;
    let tally = |t: &Score| {
        let mut json = json!({
            "exact_match": t.exact_match(),
            "right": t.exact,
            "asked": t.asked,
            "tokens": t.tokens,
            "forwards": t.passes.forward(),
            "denoise_forwards": t.passes.denoise,
            "tokens_per_forward": t.passes.tokens_per_forward(t.tokens),
        });
        if let Some(counts) = &t.speculation {
            json["speculation"] = json!(counts);
            json["speculation"]["tokens_per_round"] = counts.tokens_per_round().into();
            json["speculation"]["tokens_per_pass"] = counts.tokens_per_pass().into();
        }
        json
    };
    let mut report = tally(all);
    report["model"] = args.model.display().to_string().into();
    report["notes"] = notes.into();
    report["tasks"] =
        tasks.iter().map(|(name, t)| ((*name).to_owned(), tally(t))).collect::<serde_json::Map<_, _>>().into();
    if let Some(card) = card {
        report["quality"] = json!(card);
    }
    if args.errors {
        let list = misses.iter().map(|m| json!({"prompt": m.prompt, "want": m.want, "got": m.got}));
        report["errors"] = list.collect::<Vec<_>>().into();
    }
    format!("{report:#}\n")
}
