//! `dlxc bench`: how long the entries of an artifact take on this machine.
//!
//! A step is timed on cached rows that really hold something; the head is timed on all rows of the step, which is what a
//! first denoising step of a block asks for. Times are medians, with the fastest beside them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::{CpuExecutor, CpuOptions};
use dlx_runtime::exec::{ExecError, Executor, RowStats, StepCall};
use dlx_runtime::{LoadOptions, load_executor, read_manifest};
use serde_json::json;

use super::table::{self, Align};
use super::{Failure, terminal};

/// Time the entries of an artifact.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc bench sdar.dlxa\n  dlxc bench sdar.dlxa --rows 4,32 --depth 0,512,2048 --threads 1 --json"
)]
pub struct Args {
    /// A .dlxa file.
    #[arg(value_name = "ARTIFACT")]
    pub artifact: PathBuf,
    /// Rows per step.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,4,8,16,32,64,128,512", value_parser = rows())]
    pub rows: Vec<u32>,
    /// Rows in the cache before the step.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<u32>,
    /// Threads to use, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Time to spend on each line, about.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

fn rows() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=65_536)
}

/// One line of the report.
struct Line {
    rows: usize,
    depth: usize,
    step: Timing,
    head: Timing,
}

struct Timing {
    median: Duration,
    fastest: Duration,
}

/// Runs the subcommand.
///
/// # Errors
/// When the artifact cannot be loaded, or a size does not fit it; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let artifact = Artifact::open(&args.artifact).map_err(|e| Error::new("", e.to_string()))?;
    let cpu = CpuOptions { threads: args.threads.map_or(0, usize::from), isa: None };
    let options = LoadOptions { cpu, verify_weights: false, self_test: false };
    let mut executor = load_executor(&artifact, options).map_err(|e| Error::new("", e.to_string()))?;
    let open = started.elapsed();
    let place = args.artifact.display().to_string();
    let mut lines = Vec::new();
    for depth in &args.depth {
        for rows in &args.rows {
            let (rows, depth) =
                (usize::try_from(*rows).unwrap_or(usize::MAX), usize::try_from(*depth).unwrap_or(usize::MAX));
            if terminal::interrupted() {
                return Err(Failure::Interrupted);
            }
            lines.push(
                measure(&mut executor, rows, depth, args.seconds).map_err(|e| Error::new(&place, e.to_string()))?,
            );
        }
    }
    let manifest = read_manifest(&artifact).map_err(|e| Error::new("", e.to_string()))?;
    let matrices = manifest.model.parameters;
    if args.json {
        let lines: Vec<_> = lines.iter().map(|l| as_json(l, matrices)).collect();
        let report = json!({
            "artifact": place,
            "isa": executor.isa().to_string(),
            "threads": executor.threads(),
            "open_ms": millis(open),
            "lines": lines,
        });
        return terminal::print(&format!("{report:#}\n"));
    }
    let columns = ["rows", "depth", "step", "fastest", "head", "step+head", "rows/s", "GOPS"];
    let columns: Vec<_> = columns.iter().map(|c| (*c, Align::Right)).collect();
    let cells = lines.iter().map(|l| {
        let both = l.step.median + l.head.median;
        vec![
            l.rows.to_string(),
            l.depth.to_string(),
            table::duration(l.step.median),
            table::duration(l.step.fastest),
            table::duration(l.head.median),
            table::duration(both),
            format!("{:.1}", l.rows as f64 / both.as_secs_f64()),
            format!("{:.0}", gops(l, matrices)),
        ]
    });
    let text = table::table(&columns, &cells.collect::<Vec<_>>());
    let head = format!("{} on {} threads, opened in {}\n", executor.isa(), executor.threads(), table::duration(open));
    terminal::print(&format!("{head}{text}"))
}

/// Billions of multiplications and additions of the matrix products per second.
fn gops(line: &Line, parameters: u64) -> f64 {
    2.0 * parameters as f64 * line.rows as f64 / (line.step.median + line.head.median).as_secs_f64() / 1e9
}

fn measure(executor: &mut CpuExecutor, rows: usize, depth: usize, seconds: f64) -> Result<Line, ExecError> {
    let vocab = executor.vocab();
    let largest = executor.step_buckets().last().copied().unwrap_or(1);
    let id = |i: usize| i32::try_from((i * 7919 + 17) % vocab).unwrap_or(0);
    let mut feed = |at: usize, n: usize| {
        let ids: Vec<i32> = (at..at + n).map(id).collect();
        let pos: Vec<i32> = (at..at + n).map(|p| i32::try_from(p).unwrap_or(i32::MAX)).collect();
        executor.step(StepCall { ids: &ids, pos: &pos, at, from: 0, visible: at + n })
    };
    for at in (0..depth).step_by(largest) {
        feed(at, largest.min(depth - at))?;
    }
    let step = time(seconds, || feed(depth, rows))?;
    let all: Vec<usize> = (0..rows).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    let head = time(seconds, || executor.head(&all, &mut stats))?;
    Ok(Line { rows, depth, step, head })
}

/// Runs `work` once to warm up, then for about `seconds`, at least three times.
fn time(seconds: f64, mut work: impl FnMut() -> Result<(), ExecError>) -> Result<Timing, ExecError> {
    work()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(Timing { median: times[times.len() / 2], fastest: times[0] })
}

fn as_json(line: &Line, parameters: u64) -> serde_json::Value {
    json!({
        "rows": line.rows,
        "depth": line.depth,
        "step_ms": millis(line.step.median),
        "step_fastest_ms": millis(line.step.fastest),
        "head_ms": millis(line.head.median),
        "gops": gops(line, parameters),
    })
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
