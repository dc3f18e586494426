//! `dlxc compile`: what can be typed, what it means, and the report.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use dlx_ir::{DType, Error};
use dlx_runtime::graph::Pooling;
use indicatif::ProgressBar;
use serde_json::json;

use super::checks::Checks;
use super::memory::memory_table;
use super::table::{self, Align};
use super::{Failure, terminal};
use crate::check::each::{Checked, Tolerances};
use crate::driver::{self, Summary, Watch};
use crate::options::{CompileOptions, Keep, QuantSpec, kv_type, memory_size};

/// Compile a model into one file that the runtime can run.
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory of a Hugging Face checkpoint, or an ONNX file.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// File to write; for onnx and qnn, a directory.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What to compile for, one or several over the same weights, such as cpu,wgpu; see `dlxc targets`.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "cpu")]
    pub target: Vec<String>,
    /// For wgpu, limits of the graphics devices that it shall run on: plain (WebGPU's defaults, any device; the default) or
    /// desktop. For qnn, how weights and activations are stored: w8a16 (the default), w4a16, mnb4, mnb8 or f16.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// JSONL file of prompts (`prompt`, and `answer` if known) or texts (`text`) that qnn's ranges of activations come from.
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// SoC that qnn's files are for, by name or QNN's number, such as SM8650; those of every SoC from the profile's oldest on if
    /// not given.
    #[arg(long, value_name = "NAME")]
    pub soc: Option<String>,
    /// Note operators that qnn would run on the CPU, instead of refusing them.
    #[arg(long)]
    pub allow_fallback: bool,
    /// Replace an output directory that holds an export.
    #[arg(long)]
    pub force: bool,
    /// Format of the weights: none, f16, bf16, int8, int4 or l16; int8 and int4 with a group size and `:min` if wanted
    /// (int4:64, int4:64:min). int4 if not given; weights that come quantized then keep their codes where a format holds them.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// Weights that get a format of their own, as stored if none is given; may be repeated, later ones win.
    #[arg(long, value_name = "NAME,…[=FORMAT]")]
    pub keep: Vec<Keep>,
    /// Longest sequence, prompt and answer together.
    #[arg(long, value_name = "N", value_parser = size(1 << 20))]
    pub max_seq: Option<u32>,
    /// Block length, for models that decode in blocks.
    #[arg(long, value_name = "N", value_parser = size(4096))]
    pub block: Option<u32>,
    /// Sampler, for checkpoints that do not say which one they were trained for (Tiny-A2D: bd3lm or mdlm).
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<String>,
    /// Family of an ONNX file that has no config.json; see `dlxc families`.
    #[arg(long, value_name = "NAME")]
    pub family: Option<String>,
    /// Mask token, instead of what the model's files say.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..1 << 22))]
    pub mask_id: Option<i32>,
    /// Directory of an ONNX file's config.json, if not its own.
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Directory of an ONNX file's tokenizer files, if not that of its config.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// How the hidden states of an ONNX encoder become embeddings: mean, cls (of the first token) or last; the model's files
    /// say which it was trained for (1_Pooling/config.json). The artifact then holds the tokenizer, for `dlxc serve`.
    #[arg(long, value_name = "POOLING", value_parser = pooling)]
    pub pooling: Option<Pooling>,
    /// Scale embeddings to length 1, as models do whose modules.json ends with Normalize.
    #[arg(long, requires = "pooling")]
    pub normalize: bool,
    /// Compile an ONNX file as the graph that it is, for `dlxc run-graph`, even if it is known to generate text.
    #[arg(long)]
    pub graph: bool,
    /// Size of a dynamic dimension of an ONNX graph, or several for a bucket each; may be repeated, one for each name.
    #[arg(long, value_name = "NAME=N,…", value_parser = dim)]
    pub dim: Vec<(String, Vec<usize>)>,
    /// Element type of the KV caches: f32, f16 or int8; f32 for unquantized models and f16 otherwise if not given.
    #[arg(long, value_name = "TYPE", value_parser = kv_type)]
    pub kv: Option<DType>,
    /// Rows of the compiled steps, smallest first; a call runs in the next larger one, and may serve several sequences.
    #[arg(long, visible_alias = "rows", value_name = "N,…", value_delimiter = ',', value_parser = size(1 << 16))]
    pub buckets: Vec<u32>,
    /// Passes to run instead of the target's own; see `dlxc passes`.
    #[arg(long, value_name = "PIPELINE")]
    pub passes: Option<String>,
    /// Write the IR after every pass that changes it, one numbered file each.
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Print the IR after this pass; may be repeated.
    #[arg(long, value_name = "PASS")]
    pub print_after: Vec<String>,
    /// Print to stderr what passes left alone, and why.
    #[arg(long)]
    pub why: bool,
    /// Run the model before and after every pass on seeded inputs, and stop at a pass that does not keep what it says. A large
    /// model is cut to one of each kind of layer.
    #[arg(long)]
    pub verify_each: bool,
    /// Error that --verify-each allows a pass, as RMS over that of each node, instead of what the pass says; `run` is the run
    /// on the device.
    #[arg(long, value_name = "PASS=ERROR,…", requires = "verify_each")]
    pub tolerance: Option<Tolerances>,
    /// Compile weights that hold NaN or infinity.
    #[arg(long)]
    pub allow_nonfinite: bool,
    /// Most memory that running the artifact may take, such as 2GiB, 1500MB or bytes: proven for up to 16 threads before
    /// weights are written, or refused with the options that would fit. See docs/memory.md.
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub max_memory: Option<u64>,
    /// Threads to use, one per core if not given. The output does not depend on it.
    #[arg(long, value_name = "N", value_parser = size(1024))]
    pub threads: Option<u32>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc compile models/sdar -o sdar.dlxa
  dlxc compile models/sdar -o sdar.dlxa --target cpu,wgpu
  dlxc compile models/sdar -o sdar.dlxa --quant int4:64 --keep lm_head,embed=int8
  dlxc compile models/sdar -o sdar.dlxa --verify-each   run every pass, and stop at one that breaks something
  dlxc compile models/sdar -o sdar.dlxa --max-memory 2GiB
  dlxc compile models/dream -o dream.dlxa --quant bf16 --max-seq 4096 --kv f32
  dlxc compile sdar.onnx -o sdar.dlxa                   config.json and the tokenizer lie beside the file
  dlxc compile qwen.onnx -o qwen.dlxa --family qwen3 --tokenizer models/qwen3
  dlxc compile bert.onnx -o bert.dlxa --dim batch=1 --dim seq=32,128
  dlxc compile bert.onnx -o bert.dlxa --dim batch=1 --dim seq=32,128 --tokenizer models/bert --pooling mean --normalize";

impl Args {
    /// What the arguments mean to the compiler.
    pub fn options(&self) -> CompileOptions {
        let count = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok());
        CompileOptions {
            targets: self.target.clone(),
            profile: self.profile.clone(),
            calibrate: self.calibrate.clone(),
            soc: self.soc.clone(),
            allow_fallback: self.allow_fallback,
            keep: self.keep.iter().flat_map(|k| k.names.iter().map(|n| (n.clone(), k.format))).collect(),
            max_seq: count(self.max_seq),
            block: count(self.block),
            sampler: self.sampler.clone(),
            family: self.family.clone(),
            mask_id: self.mask_id,
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            pooling: self.pooling,
            normalize: self.normalize,
            graph: self.graph,
            dims: self.dim.clone(),
            kv: self.kv,
            buckets: self.buckets.iter().filter_map(|b| count(Some(*b))).collect(),
            pipeline: self.passes.clone(),
            dump: self.dump.clone(),
            print_after: self.print_after.clone(),
            allow_nonfinite: self.allow_nonfinite,
            max_memory: self.max_memory,
            threads: count(self.threads),
            verify_each: self.verify_each,
            tolerances: self.tolerance.clone().unwrap_or_default(),
            ..CompileOptions::asked(self.quant)
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When the model cannot be compiled or the artifact not written, or on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let view = View::new("compile");
    let (graph, export) = (driver::is_graph(&args.model, &args.options())?, driver::is_export(&args.options())?);
    if args.max_memory.is_some() && (graph || export) {
        let help = "leave it out: `dlxc run-graph --memory` limits graphs, and the host of an export its own memory";
        return Err(Error::new("--max-memory", "is for artifacts that generate text").help(help).into());
    }
    if graph {
        return graphs(args, &view, started);
    }
    if export {
        return super::export::run(args, &view, started);
    }
    for (flag, given) in [
        ("--calibrate", args.calibrate.is_some()),
        ("--soc", args.soc.is_some()),
        ("--allow-fallback", args.allow_fallback),
        ("--force", args.force),
    ] {
        if given {
            let help = format!("leave {flag} out, or compile for --target qnn");
            return Err(Error::new(flag, "is for exports, which are directories").help(help).into());
        }
    }
    let summary = driver::compile(&args.model, &args.output, &args.options(), &view, terminal::interrupt_flag());
    view.bar.finish_and_clear();
    let checks = std::mem::take(&mut *view.checks.lock().unwrap_or_else(PoisonError::into_inner));
    if args.verify_each && !args.json {
        terminal::print(&checks.text())?;
    }
    let summary = match summary {
        Err(error) if args.json && args.verify_each => {
            terminal::print(&format!("{:#}\n", json!({"error": error.to_string(), "verify": checks.json()})))?;
            return Err(error.into());
        }
        outcome => outcome?,
    };
    let took = started.elapsed();
    for (_, report) in summary.passes.iter().filter(|_| args.why) {
        report.notes.iter().for_each(|note| terminal::note(&format!("{}: {note}", report.name)));
    }
    if args.json {
        return terminal::print(&format!("{:#}\n", report(args, &summary, &checks, took)));
    }
    let mut out = pass_table(&summary);
    out.push('\n');
    out.push_str(&size_table(&summary));
    out.push('\n');
    out.push_str(&memory_table(&summary.manifest.memory));
    for note in &summary.manifest.notes {
        out.push_str(&format!("\nnote: {note}"));
    }
    let (size, took) = (table::bytes(summary.file_bytes), table::duration(took));
    terminal::print(&format!("{out}\n{}: {size} in {took}\n", args.output.display()))
}

/// Compiles an ONNX file as graphs, and reports.
fn graphs(args: &Args, view: &View, started: Instant) -> Result<(), Failure> {
    let (options, flag) = (args.options(), terminal::interrupt_flag());
    let summary = driver::compile_file(&args.model, &args.output, &options, view, flag);
    view.bar.finish_and_clear();
    let summary = summary?;
    let took = started.elapsed();
    if args.json {
        let report = json!({
            "output": args.output, "bytes": summary.file_bytes, "seconds": took.as_secs_f64(), "manifest": summary.manifest,
        });
        return terminal::print(&format!("{report:#}\n"));
    }
    let mut out = String::new();
    for entry in &summary.manifest.entries {
        let ports = |ports: &[dlx_runtime::graph::Port]| {
            ports.iter().map(|p| format!("{}: {}", p.name, p.ty())).collect::<Vec<_>>().join(", ")
        };
        out.push_str(&format!("{}({}) -> ({})\n", entry.name, ports(&entry.inputs), ports(&entry.outputs)));
    }
    for note in &summary.manifest.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    let (size, took) = (table::bytes(summary.file_bytes), table::duration(took));
    terminal::print(&format!("{out}\n{}: {size} in {took}\n", args.output.display()))
}

/// A way of pooling by its name.
fn pooling(text: &str) -> Result<Pooling, String> {
    serde_json::from_value(text.into()).map_err(|_| "use mean, cls or last".into())
}

/// `NAME=N,…` as a name and its sizes; the name is free text.
pub(super) fn dim(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, sizes) = text.rsplit_once('=').ok_or("write NAME=N or NAME=N,N,…")?;
    let size = |s: &str| s.trim().parse().ok().filter(|n| (1..=1 << 20).contains(n)).ok_or(format!("`{s}` is no size"));
    Ok((name.to_owned(), sizes.split(',').map(size).collect::<Result<_, _>>()?))
}

/// Progress on stderr; IR of `--print-after` on stderr too, since stdout holds the report.
pub(super) struct View {
    pub(super) bar: ProgressBar,
    checks: Mutex<Checks>,
}

impl View {
    pub(super) fn new(what: &str) -> Self {
        View { bar: terminal::byte_progress(what), checks: Mutex::default() }
    }
}

impl Watch for View {
    fn progress(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn print(&self, pass: &str, ir: &str) {
        self.bar.suspend(|| terminal::note(&format!("; after {pass}\n{ir}")));
    }

    fn verifying(&self, target: &str, notes: &[String]) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).begin(target, notes);
    }

    fn checked(&self, _: &str, checked: &Checked) {
        self.bar.set_message(format!("verified {}", checked.pass));
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).add(checked);
    }
}

fn pass_table(summary: &Summary) -> String {
    let rows: Vec<Vec<String>> = summary
        .passes
        .iter()
        .map(|(target, p)| {
            let (time, verify) = (table::duration(p.time), table::duration(p.verify_time));
            vec![(*target).to_owned(), p.pass.clone(), p.changes.to_string(), time, verify]
        })
        .collect();
    let columns = [
        ("target", Align::Left),
        ("pass", Align::Left),
        ("changes", Align::Right),
        ("time", Align::Right),
        ("verify", Align::Right),
    ];
    table::table(&columns, &rows)
}

fn size_table(summary: &Summary) -> String {
    let mut rows: Vec<Vec<String>> =
        summary.weights.iter().map(|(t, b)| vec![format!("weights {t}"), table::bytes(*b)]).collect();
    for (stage, time) in &summary.stages {
        rows.push(vec![format!("time {stage}"), table::duration(*time)]);
    }
    table::table(&[("", Align::Left), ("", Align::Right)], &rows)
}

fn report(args: &Args, summary: &Summary, checks: &Checks, took: Duration) -> serde_json::Value {
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let passes = summary.passes.iter().map(
        |(target, p)| json!({"target": target, "pass": p.pass, "changes": p.changes, "us": micros(p.time), "verify_us": micros(p.verify_time)}),
    );
    json!({
        "artifact": args.output.display().to_string(),
        "bytes": summary.file_bytes,
        "seconds": took.as_secs_f64(),
        "stages": summary.stages.iter().map(|(s, d)| json!({"stage": s, "us": micros(*d)})).collect::<Vec<_>>(),
        "passes": passes.collect::<Vec<_>>(),
        "weights": summary.weights,
        "verify": checks.json(),
        "manifest": summary.manifest,
    })
}

fn size(max: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_options() {
        let line = "compile m -o m.dlxa --quant int4:32m --keep lm_head,embed=int8 --keep norm --max-seq 512 --kv f32 \
                    --print-after cse --threads 3";
        let options = Args::try_parse_from(line.split_whitespace()).unwrap().options();
        assert_eq!(options.quant.to_string(), "int4:32:min");
        let keep: Vec<_> = options.keep.iter().map(|(n, f)| format!("{n}={f}")).collect();
        assert_eq!(keep, ["lm_head=int8", "embed=int8", "norm=none"]);
        assert_eq!((options.max_seq, options.block, options.threads), (Some(512), None, Some(3)));
        assert_eq!((options.kv, &options.targets[..]), (Some(DType::F32), &["cpu".to_owned()][..]));
        assert_eq!(options.print_after, ["cse"]);
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in ["--quant int3", "--max-seq 0", "--max-seq 2000000", "--kv int4", "--keep =f16", "--threads -1"] {
            let line = format!("compile m -o m.dlxa {wrong}");
            assert!(Args::try_parse_from(line.split_whitespace()).is_err(), "{wrong}");
        }
    }
}
