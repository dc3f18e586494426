//! `dlxc bench`: how long the entries of an artifact take on this machine, and what its kernels do.
//!
//! Invariant: every speed is also given as a share of what this machine can do, measured in the same run on the same
//! number of threads. It measures only; nothing here changes what is dispatched.

mod hybrid;
mod kernels;
mod load;
pub(super) mod measure;
mod report;
mod serve;
mod steps;
pub(super) mod wgpu;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::{CpuOptions, Isa, Pool, f32_peak, int8_peak};
use dlx_runtime::memory::Certificate;
use dlx_runtime::selftest::SelfTest;
use dlx_runtime::{LoadOptions, load_cpu, read_manifest};
use serde_json::{Map, Value};

use super::{Failure, terminal};
use crate::options::QuantSpec;
use kernels::Product;
use measure::Line;

/// Rows of the steps, and of the products of `--kernels`, when none are given.
const STEP_ROWS: &[u32] = &[1, 4, 8, 16, 32, 64, 128, 512];
const KERNEL_ROWS: &[u32] = &[1, 8, 32];

/// Time the entries of an artifact, or the kernels.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc bench sdar.dlxa\n  dlxc bench sdar.dlxa --rows 4,32 --depth 0,512,2048 --threads 1,2 --json\n  dlxc bench sdar.dlxa --rows 4 --ops\n  dlxc bench sdar.dlxa --rows 32 --temperature 0.8 --top-p 0.95\n  dlxc bench --kernels\n  dlxc bench qwen.dlxa --draft sdar.dlxa --accept 0.9 --draft-length 4,8,16\n  dlxc bench sdar.dlxa --serve --clients 1,4,16 --prompt 544 --shared 512"
)]
pub struct Args {
    /// A .dlxa file, or a model directory to compile first.
    #[arg(value_name = "ARTIFACT|MODEL", required_unless_present = "kernels")]
    pub artifact: Option<PathBuf>,
    /// Rows per step [default: 1,4,8,16,32,64,128,512; with --kernels 1,8,32].
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub rows: Vec<u32>,
    /// Rows in the cache before the step.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<u32>,
    /// Numbers of threads to use, one per core if not given.
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Vec<u16>,
    /// Where it runs.
    #[command(flatten)]
    pub place: super::Place,
    /// Show where the time of a step goes, by kind of node.
    #[arg(long)]
    pub ops: bool,
    /// Time also a head after which a token is drawn for each row, at this temperature; on the CPU.
    #[arg(long, value_name = "NUMBER", value_parser = positive)]
    pub temperature: Option<f32>,
    /// Draw among the most likely tokens only, so many; 0 takes all.
    #[arg(long, value_name = "K", default_value_t = 0, requires = "temperature")]
    pub top_k: usize,
    /// Draw among the most likely tokens that have this probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability, requires = "temperature")]
    pub top_p: f32,
    /// List every kernel with the one that is used, and time products in every weight format.
    #[arg(long, conflicts_with_all = ["artifact", "depth", "ops", "temperature"])]
    pub kernels: bool,
    /// Measure instead what a drafter gains: rounds with drafts of these lengths, of which a coin accepts
    /// tokens, against plain decoding of ARTIFACT, behind the first --depth tokens.
    #[arg(long, value_name = "ARTIFACT|MODEL", conflicts_with_all = ["kernels", "ops", "rows"])]
    pub draft: Option<PathBuf>,
    /// Tokens per draft.
    #[arg(long, value_name = "K,…", value_delimiter = ',', default_value = "8", requires = "draft", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub draft_length: Vec<u32>,
    /// Probability with which a drafted token is accepted.
    #[arg(long, value_name = "P", default_value_t = 0.9, requires = "draft", value_parser = super::run::probability)]
    pub accept: f32,
    /// Measure instead what serving requests side by side gains against one after the other.
    #[arg(long, conflicts_with_all = ["kernels", "draft", "ops", "rows", "depth", "temperature", "seconds"])]
    pub serve: bool,
    /// What is asked of the model that is served.
    #[command(flatten)]
    pub load: serve::LoadArgs,
    /// Time to spend on each line, about.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
}

/// What was measured of an artifact.
struct Report {
    artifact: String,
    isa: Isa,
    open: Duration,
    /// Most memory that the process ever held, where the system tells.
    peak_resident: Option<u64>,
    /// What the artifact says it needs.
    memory: Vec<Certificate>,
    limits: Vec<Limits>,
    lines: Vec<Line>,
}

/// What `--kernels` has measured.
struct KernelReport {
    /// The instruction set that programs run with.
    isa: Isa,
    limits: Vec<Limits>,
    products: Vec<Product>,
}

/// What some threads of the machine can do, measured in this run.
struct Limits {
    threads: usize,
    int8_gops: Option<f64>,
    f32_gops: Option<f64>,
    read_gbs: f64,
}

impl Limits {
    /// Measures on the threads of a pool, which read memory at `read_gbs`.
    fn measure(pool: &Pool, read_gbs: f64) -> Self {
        Limits { threads: pool.threads(), int8_gops: int8_peak(pool), f32_gops: f32_peak(pool), read_gbs }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When the artifact cannot be loaded, or a size does not fit it; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    if let Some(draft) = &args.draft {
        return hybrid::run(args, draft);
    }
    // No number stands for as many threads as there are cores.
    let threads: Vec<usize> = args.threads.iter().copied().map(usize::from).collect();
    let threads = if threads.is_empty() { vec![0] } else { threads };
    let rows = |default: &[u32]| -> Vec<usize> {
        let rows = if args.rows.is_empty() { default } else { &args.rows };
        rows.iter().map(|r| size(*r)).collect()
    };
    let (text, json) = if let Some(path) = &args.artifact {
        let artifact = super::artifact(path, args.quant, &args.place)?;
        if args.serve {
            return serve::run(args, &artifact);
        }
        let rows = rows(STEP_ROWS);
        if args.place.is_wgpu(&artifact)? {
            if args.temperature.is_some() {
                let error = Error::new("--temperature", "drawing is timed on the CPU only");
                return Err(error.help("leave it out, or use --target cpu").into());
            }
            let depth: Vec<usize> = args.depth.iter().map(|d| size(*d)).collect();
            let sizes = wgpu::Sizes { rows: &rows, depth: &depth, seconds: args.seconds };
            let load = LoadOptions { verify_weights: args.place.verify, ..args.place.options(None) };
            return terminal::print(&wgpu::run(&artifact, &load, &sizes, args.json)?);
        }
        let report = on_cpu(&artifact, args, &threads, &rows)?;
        let mut json = report.to_json();
        json["notes"] = read_manifest(&artifact).map_err(|e| Error::new("", e.to_string()))?.notes.into();
        (report.to_text(), json)
    } else {
        let report = kernels::measure(&threads, &rows(KERNEL_ROWS), args.seconds)?;
        (report.to_text(), report.to_json())
    };
    terminal::print(&if args.json { format!("{json:#}\n") } else { text })
}

/// Times every size on every number of threads.
fn on_cpu(artifact: &Artifact, args: &Args, threads: &[usize], rows: &[usize]) -> Result<Report, Failure> {
    let place = artifact.path().display().to_string();
    let unreadable = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    let started = Instant::now();
    let memory = read_manifest(artifact).map_err(|e| unreadable(&e))?.memory;
    let mut report: Option<Report> = None;
    for &threads in threads {
        let cpu = CpuOptions { threads, isa: None };
        let max_memory = args.place.max_memory;
        let options = LoadOptions {
            cpu,
            verify_weights: args.place.verify,
            self_test: SelfTest::Skip,
            max_memory,
            ..LoadOptions::default()
        };
        let mut executor = load_cpu(artifact, &options).map_err(|e| unreadable(&e))?;
        let report = report.get_or_insert_with(|| Report {
            artifact: place.clone(),
            isa: executor.isa(),
            open: started.elapsed(),
            peak_resident: None,
            memory: memory.clone(),
            limits: Vec::new(),
            lines: Vec::new(),
        });
        for depth in args.depth.iter().map(|d| size(*d)) {
            for &rows in rows {
                if terminal::interrupted() {
                    return Err(Failure::Interrupted);
                }
                let line = measure::line(&mut executor, artifact.weights(), rows, depth, args);
                report.lines.push(line.map_err(|e| Error::new(&place, e.to_string()))?);
            }
        }
        // After the steps, so that the memory they took is what it is in a session.
        report.peak_resident = peak_resident();
        let mut reads: Vec<f64> =
            report.lines.iter().filter(|l| l.threads == executor.threads()).map(|l| l.read_gbs).collect();
        reads.sort_unstable_by(f64::total_cmp);
        report.limits.push(Limits::measure(executor.pool(), reads[reads.len() / 2]));
    }
    // Numbers of threads side by side; the order is otherwise that of the arguments.
    let mut report = report.expect("at least one number of threads");
    let sizes = args.depth.len() * rows.len();
    let mut order: Vec<(usize, Line)> = report.lines.into_iter().enumerate().map(|(i, l)| (i % sizes, l)).collect();
    order.sort_by_key(|(size, _)| *size);
    report.lines = order.into_iter().map(|(_, line)| line).collect();
    Ok(report)
}

fn positive(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|n: &f32| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "use a number above 0".to_owned())
}

fn probability(text: &str) -> Result<f32, String> {
    positive(text).ok().filter(|p| *p <= 1.0).ok_or_else(|| "use a number above 0 and at most 1".to_owned())
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Most bytes of memory that this process ever held, mapped weights among them; `None` where only Linux would tell.
pub(super) fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?;
    kibibytes.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// An object without its null fields.
fn object(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).collect::<Map<_, _>>()),
        other => other,
    }
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
