//! `dlxc trace show`: a grid of passes and positions for every block, with what was revealed when.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use dlx_runtime::trace::{Decided, Trace};
use serde_json::json;
use unicode_width::UnicodeWidthStr;

use super::{read, short, token};
use crate::cli::canvas::{MASKED, shown};
use crate::cli::table::{self, Align};
use crate::cli::{Failure, terminal};

/// Show a recorded decode: which position got its token in which pass.
///
/// A row is a pass, a column a position; [text] is what the pass revealed.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  dlxc trace show t.jsonl\n  dlxc trace show t.jsonl --json")]
pub struct Args {
    /// A file that `dlxc run --trace` wrote.
    #[arg(value_name = "TRACE")]
    pub file: PathBuf,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Columns of a grid off a terminal.
const COLUMNS: usize = 120;
/// Widest cell in characters; longer tokens are cut.
const CELL: usize = 16;

/// A position that got its token.
struct Reveal {
    step: usize,
    token: i32,
    confidence: Option<f32>,
}

/// Runs the subcommand.
///
/// # Errors
/// A trace that cannot be read.
pub fn run(args: &Args) -> Result<(), Failure> {
    let trace = read(&args.file)?;
    if args.json {
        return terminal::print(&format!("{:#}\n", as_json(&trace)));
    }
    let columns = terminal::stdout_size().map_or(COLUMNS, |size| size.columns.max(40));
    terminal::print(&text(&trace, columns))
}

/// Every position that was revealed, the last time that it was.
fn reveals(trace: &Trace) -> BTreeMap<usize, Reveal> {
    let mut all = BTreeMap::new();
    for (step, decision) in decisions(trace) {
        for &(position, token) in &decision.revealed {
            let row = decision.rows.iter().find(|row| row.position == position);
            all.insert(position, Reveal { step, token, confidence: row.and_then(|row| row.confidence) });
        }
    }
    all
}

fn decisions(trace: &Trace) -> impl Iterator<Item = (usize, &Decided)> {
    trace.steps.iter().enumerate().filter_map(|(step, s)| Some((step, s.decision.as_ref()?)))
}

fn as_json(trace: &Trace) -> serde_json::Value {
    let reveals = reveals(trace);
    let positions: Vec<_> = reveals
        .iter()
        .map(|(position, r)| {
            json!({"position": position, "token": r.token, "text": trace.end.tokens.get(&r.token), "pass": r.step,
                   "confidence": r.confidence})
        })
        .collect();
    let passes: Vec<_> = trace
        .steps
        .iter()
        .map(|step| json!({"line": step.line, "pass": step.pass, "decision": step.decision}))
        .collect();
    json!({"head": trace.head, "positions": positions, "passes": passes, "end": trace.end})
}

fn text(trace: &Trace, columns: usize) -> String {
    let (about, policy, end) = (&trace.head.about, &trace.head.policy, &trace.end);
    let safe = |text: &str| text.chars().map(shown).collect::<String>();
    let finish = serde_json::to_string(&end.finish).unwrap_or_default();
    let mut out = format!(
        "artifact {} on {} ({}), {} prompt tokens, rule {}, seed {}\n{} passes, {} of them decided something, {} tokens, ended by {}\n",
        short(&about.artifact),
        safe(&about.device),
        safe(&about.target),
        trace.head.prompt.len(),
        safe(&policy.reveal.rule),
        policy.seed,
        trace.steps.len(),
        decisions(trace).count(),
        end.ids.len(),
        finish.trim_matches('"')
    );
    let all: Vec<(usize, &Decided)> = decisions(trace).collect();
    // A lead is a decision about one position, and a block of its own here.
    for block in all.chunk_by(|a, b| a.1.block == b.1.block) {
        let [start, last] = block[0].1.block;
        write!(out, "\nblock {start}..{last}\n").expect("writing to a string cannot fail");
        out.push_str(&grid(trace, block, columns));
    }
    out
}

/// The grid of one block, as many positions beside each other as fit.
fn grid(trace: &Trace, block: &[(usize, &Decided)], columns: usize) -> String {
    let [start, end] = block[0].1.block;
    let mut out = String::new();
    let column = |position: usize| -> Vec<String> {
        let cell = |decision: &Decided| {
            let now = decision.canvas[position - start];
            if now == trace.head.policy.mask_id {
                return MASKED.to_owned();
            }
            let text: String = token(now, trace, None).chars().take(CELL).collect();
            let fresh = decision.revealed.iter().any(|r| r.0 == position);
            if fresh { format!("[{text}]") } else { format!(" {text} ") }
        };
        block.iter().map(|(_, decision)| cell(decision)).collect()
    };
    let mut next = start;
    while next < end {
        let (mut titles, mut cells, mut used) = (Vec::new(), Vec::new(), 8);
        while next < end {
            let (title, column) = (next.to_string(), column(next));
            let width = column.iter().map(|c| c.width()).max().unwrap_or(0).max(title.width()) + 2;
            if used + width > columns && !titles.is_empty() {
                break;
            }
            (used, next) = (used + width, next + 1);
            titles.push(title);
            cells.push(column);
        }
        let titles: Vec<_> = titles.iter().map(|title| (title.as_str(), Align::Left)).collect();
        let rows: Vec<Vec<String>> = block
            .iter()
            .enumerate()
            .map(|(row, (step, _))| {
                let first = (step + 1).to_string();
                [first].into_iter().chain(cells.iter().map(|column| column[row].clone())).collect()
            })
            .collect();
        out.push_str(&table::table(&[&[("pass", Align::Right)], &titles[..]].concat(), &rows));
    }
    out
}
