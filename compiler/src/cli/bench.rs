//! `dlxc bench`: how long the entries of an artifact take on this machine.
//!
//! A step is timed on cached rows that really hold something; the head is timed on all rows of the step, which is what a
//! first denoising step of a block asks for. Times are medians, with the fastest beside them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::{CpuExecutor, CpuOptions, Observe, Seen, int8_peak, read_bandwidth};
use dlx_runtime::exec::{ExecError, Executor, RowStats, StepCall};
use dlx_runtime::{LoadOptions, load_cpu};
use serde_json::json;

use super::bench_wgpu::{self, Sizes};
use super::table::{self, Align};
use super::{Failure, terminal};

/// Time the entries of an artifact.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc bench sdar.dlxa\n  dlxc bench sdar.dlxa --rows 4,32 --depth 0,512,2048 --threads 1 --json\n  dlxc bench sdar.dlxa --rows 4 --ops"
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
    /// Where it runs.
    #[command(flatten)]
    pub place: super::Place,
    /// Show where the time of a step goes, by kind of node.
    #[arg(long)]
    pub ops: bool,
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
    /// Work of a step and the head together.
    work: Work,
    ops: Vec<OpTime>,
}

/// What an entry has to do at least.
#[derive(Clone, Copy, Default)]
struct Work {
    weight_bytes: usize,
    products: u64,
}

/// Time of the nodes of a step that have the same role in every layer.
struct OpTime {
    name: String,
    nodes: usize,
    time: Duration,
    work: Work,
}

/// What the machine can do, measured in this run.
struct Limits {
    int8_gops: Option<f64>,
    read_gbs: f64,
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
    if args.place.is_wgpu(&artifact)? {
        let counts = |n: &[u32]| n.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect::<Vec<_>>();
        let (rows, depth) = (counts(&args.rows), counts(&args.depth));
        let sizes = Sizes { rows: &rows, depth: &depth, seconds: args.seconds };
        let load = LoadOptions { verify_weights: false, ..args.place.options(args.threads) };
        return terminal::print(&bench_wgpu::run(&artifact, &load, &sizes, args.json)?);
    }
    let cpu = CpuOptions { threads: args.threads.map_or(0, usize::from), isa: None };
    let options = LoadOptions { cpu, verify_weights: false, self_test: false, ..LoadOptions::default() };
    let mut executor = load_cpu(&artifact, &options).map_err(|e| Error::new("", e.to_string()))?;
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
            lines.push(measure(&mut executor, rows, depth, args).map_err(|e| Error::new(&place, e.to_string()))?);
        }
    }
    let limits = executor.in_pool(|| Limits { int8_gops: int8_peak(), read_gbs: read_bandwidth(artifact.weights()) });
    if args.json {
        let lines: Vec<_> = lines.iter().map(|l| as_json(l, &limits)).collect();
        let report = json!({
            "artifact": place,
            "isa": executor.isa().to_string(),
            "threads": executor.threads(),
            "open_ms": millis(open),
            "int8_peak_gops": limits.int8_gops,
            "read_gbs": limits.read_gbs,
            "lines": lines,
        });
        return terminal::print(&format!("{report:#}\n"));
    }
    let (isa, threads, open) = (executor.isa(), executor.threads(), table::duration(open));
    let peak = limits.int8_gops.map_or("no int8 dot products".into(), |g| format!("{g:.0} GOPS int8 peak"));
    let mut text = format!("{isa} on {threads} threads, opened in {open}; {peak}, {:.1} GB/s read\n", limits.read_gbs);
    text.push_str(&line_table(&lines, &limits));
    for line in lines.iter().filter(|l| !l.ops.is_empty()) {
        text.push_str(&format!("\n{} rows at depth {}\n{}", line.rows, line.depth, op_table(line)));
    }
    terminal::print(&text)
}

fn line_table(lines: &[Line], limits: &Limits) -> String {
    let columns =
        ["rows", "depth", "step", "fastest", "head", "step+head", "rows/s", "GOPS", "of peak", "GB/s", "of read"];
    let columns: Vec<_> = columns.iter().map(|c| (*c, Align::Right)).collect();
    let cells = lines.iter().map(|l| {
        let both = l.step.median + l.head.median;
        let (gops, gbs) = l.work.rates(both);
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        vec![
            l.rows.to_string(),
            l.depth.to_string(),
            table::duration(l.step.median),
            table::duration(l.step.fastest),
            table::duration(l.head.median),
            table::duration(both),
            format!("{:.1}", l.rows as f64 / both.as_secs_f64()),
            format!("{gops:.0}"),
            limits.int8_gops.map_or("–".into(), |peak| percent(gops / peak)),
            format!("{gbs:.1}"),
            percent(gbs / limits.read_gbs),
        ]
    });
    table::table(&columns, &cells.collect::<Vec<_>>())
}

fn op_table(line: &Line) -> String {
    let total: Duration = line.ops.iter().map(|o| o.time).sum();
    let columns = [("node", Align::Left), ("count", Align::Right), ("time", Align::Right), ("share", Align::Right)];
    let columns = columns.into_iter().chain([("GOPS", Align::Right), ("GB/s", Align::Right)]);
    let rows = line.ops.iter().map(|o| {
        let (gops, gbs) = o.work.rates(o.time);
        let rate = |r: f64| if o.work.products == 0 { String::new() } else { format!("{r:.1}") };
        let share = format!("{:.1} %", 100.0 * o.time.as_secs_f64() / total.as_secs_f64().max(1e-12));
        vec![o.name.clone(), o.nodes.to_string(), table::duration(o.time), share, rate(gops), rate(gbs)]
    });
    table::table(&columns.collect::<Vec<_>>(), &rows.collect::<Vec<_>>())
}

impl Work {
    /// Billions of multiplications and additions, and gigabytes of weights, per second.
    fn rates(self, time: Duration) -> (f64, f64) {
        let seconds = time.as_secs_f64().max(1e-12);
        (2.0 * self.products as f64 / seconds / 1e9, self.weight_bytes as f64 / seconds / 1e9)
    }

    fn add(&mut self, seen: &Seen<'_>) {
        self.weight_bytes += seen.weight_bytes;
        self.products += seen.products;
    }
}

fn measure(executor: &mut CpuExecutor, rows: usize, depth: usize, args: &Args) -> Result<Line, ExecError> {
    let vocab = executor.vocab();
    let largest = executor.step_buckets().last().copied().unwrap_or(1);
    let id = |i: usize| i32::try_from((i * 7919 + 17) % vocab).unwrap_or(0);
    let feed = |executor: &mut CpuExecutor, at: usize, n: usize, observe: Observe<'_>| {
        let ids: Vec<i32> = (at..at + n).map(id).collect();
        let pos: Vec<i32> = (at..at + n).map(|p| i32::try_from(p).unwrap_or(i32::MAX)).collect();
        executor.step_observed(StepCall { ids: &ids, pos: &pos, at, from: 0, visible: at + n }, usize::MAX, observe)
    };
    for at in (0..depth).step_by(largest) {
        feed(executor, at, largest.min(depth - at), &mut |_| {})?;
    }
    let step = time(args.seconds, || feed(executor, depth, rows, &mut |_| {}))?;
    let mut work = Work::default();
    feed(executor, depth, rows, &mut |seen| work.add(&seen))?;
    let mut ops = Vec::new();
    if args.ops {
        // The fastest of several runs of each node: what is left is the node itself.
        for run in 0..10 {
            let (mut clock, mut at) = (Instant::now(), 0);
            feed(executor, depth, rows, &mut |seen| {
                note(&mut ops, run == 0, at, clock.elapsed(), &seen);
                at += 1;
                clock = Instant::now();
            })?;
        }
    }
    let all: Vec<usize> = (0..rows).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    let head = time(args.seconds, || executor.head(&all, &mut stats))?;
    let mut logits = vec![0.0; vocab];
    executor.logits_observed(&[0], &mut logits, &mut |seen| {
        work.weight_bytes += seen.weight_bytes;
        work.products += seen.products * rows as u64;
    })?;
    Ok(Line { rows, depth, step, head, work, ops: grouped(ops) })
}

/// Keeps the fastest time of node number `at`.
fn note(nodes: &mut Vec<OpTime>, first: bool, at: usize, time: Duration, seen: &Seen<'_>) {
    if first {
        let mut work = Work::default();
        work.add(seen);
        let role = seen.name.split_once('.').map_or(seen.name, |(_, role)| role);
        nodes.push(OpTime { name: format!("{} {role}", seen.op.name()), nodes: 1, time, work });
    } else if let Some(node) = nodes.get_mut(at) {
        node.time = node.time.min(time);
    }
}

/// Adds up the nodes of the same name, slowest first.
fn grouped(nodes: Vec<OpTime>) -> Vec<OpTime> {
    let mut groups: Vec<OpTime> = Vec::new();
    for node in nodes {
        match groups.iter_mut().find(|g| g.name == node.name) {
            Some(group) => {
                group.nodes += 1;
                group.time += node.time;
                group.work.weight_bytes += node.work.weight_bytes;
                group.work.products += node.work.products;
            }
            None => groups.push(node),
        }
    }
    groups.sort_by_key(|g| std::cmp::Reverse(g.time));
    groups
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

fn as_json(line: &Line, limits: &Limits) -> serde_json::Value {
    let (gops, gbs) = line.work.rates(line.step.median + line.head.median);
    let ops = line.ops.iter().map(|o| json!({"node": o.name, "count": o.nodes, "ms": millis(o.time)}));
    json!({
        "rows": line.rows,
        "depth": line.depth,
        "step_ms": millis(line.step.median),
        "step_fastest_ms": millis(line.step.fastest),
        "head_ms": millis(line.head.median),
        "gops": gops,
        "of_int8_peak": limits.int8_gops.map(|peak| gops / peak),
        "weight_gbs": gbs,
        "of_read": gbs / limits.read_gbs,
        "ops": ops.collect::<Vec<_>>(),
    })
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
