//! `dlxc explain`: where the time of a step goes, and what would change it.
//!
//! Predictions come from the program's counts and the machine's limits; measurements stand beside them and never flow into
//! them. What is not predicted or not measured is said to be so.

mod profile;
mod report;

use std::path::PathBuf;

use clap::Parser;
use dlx_ir::{EntryKind, Error, Module, SpanRows, VerifiedModule};
use dlx_runtime::artifact::{Artifact, program_section};
use dlx_runtime::cpu::{CpuExecutor, CpuOptions, read_once};
use dlx_runtime::decode::DecodePolicy;
use dlx_runtime::selftest::SelfTest;
use dlx_runtime::{LoadOptions, load_cpu, load_wgpu, read_manifest};

use super::bench::wgpu;
use super::{Failure, terminal};
use crate::explain::{self, Change, Entry, Limits, Machine, Program, Sizes, TokenCost};
use crate::options::QuantSpec;
use profile::Profile;

/// Show where the time of a step goes, node by node, and what would change it.
#[derive(Parser, Debug)]
#[command(
    after_help = "Examples:\n  dlxc explain sdar.dlxa\n  dlxc explain sdar.dlxa --rows 4,32 --depth 0,2048\n  dlxc explain sdar.dlxa --rows 4 --nodes --json\n  dlxc explain sdar.dlxa --machine server.json        predict for another machine\n  dlxc explain sdar.dlxa --measure                    measure this machine again"
)]
pub struct Args {
    /// A .dlxa file, or a model directory to compile first.
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub artifact: PathBuf,
    /// Rows per step, the block and the largest step if not given.
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub rows: Vec<u32>,
    /// Rows in the cache before the step.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<u32>,
    /// Number of threads, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Where it runs.
    #[command(flatten)]
    pub place: super::Place,
    /// Limits of a machine, instead of those kept for this one.
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Measure this machine's limits again, and keep them.
    #[arg(long)]
    pub measure: bool,
    /// Predict and run nothing.
    #[arg(long)]
    pub predict: bool,
    /// Show every node with its text and where it comes from, instead of one line for all layers.
    #[arg(long)]
    pub nodes: bool,
    /// Time to spend on measuring each entry, about.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub seconds: f64,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
}

/// Everything that is said.
struct Report<'m> {
    artifact: String,
    module: &'m Module,
    /// What it runs on.
    device: String,
    /// The limits that predictions are made from, and where they are kept; none on a graphics device.
    machine: Option<(PathBuf, Machine, Limits)>,
    /// Rate at which weights were read beside the measurements.
    read_gbs: Option<f64>,
    notes: Vec<String>,
    passes: Vec<Pass<'m>>,
}

/// A step of some rows behind others, and the head on all of its rows.
struct Pass<'m> {
    rows: usize,
    depth: usize,
    /// Step and head.
    entries: [(Entry<'m>, Option<Profile>); 2],
    /// Both together on a graphics device.
    both: Option<wgpu::Line>,
    changes: Vec<Change>,
    tokens: Result<Vec<TokenCost>, Error>,
}

/// Runs the subcommand.
///
/// # Errors
/// When the artifact cannot be loaded, a size does not fit it, or limits are broken or missing; on Ctrl-C.
pub fn run(args: &Args) -> Result<(), Failure> {
    let artifact = super::artifact(&args.artifact, args.quant, &args.place)?;
    let failed = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    let manifest = read_manifest(&artifact).map_err(|e| failed(&e))?;
    let target = args.place.target.as_deref().or(manifest.targets.first().map(String::as_str)).unwrap_or("cpu");
    let section = program_section(target);
    let text = artifact.text(&section).map_err(|e| failed(&e))?;
    let place = |e: Error| Error::new(format!("{}: section `{section}`", artifact.path().display()), e.to_string());
    let module = dlx_ir::parse(text).map_err(place)?;
    let module = VerifiedModule::new(module).map_err(|e| place(Error::first_of(e)))?;
    let sizes = Compiled::of(&module, manifest.model.max_seq, manifest.model.vocab);
    let wanted = sizes.wanted(args, &manifest.policy)?;
    let report = if args.place.is_wgpu(&artifact)? {
        on_wgpu(args, &artifact, &module, &wanted)?
    } else {
        on_cpu(args, &artifact, &module, &sizes, &manifest.policy, &wanted)?
    };
    let text = if args.json { format!("{:#}\n", report.to_json(args.nodes)) } else { report.to_text(args.nodes) };
    terminal::print(&text)
}

/// Sizes that an artifact was compiled for.
struct Compiled {
    buckets: Vec<usize>,
    max_seq: usize,
    vocab: usize,
}

impl Compiled {
    fn of(module: &Module, max_seq: usize, vocab: usize) -> Self {
        let entries = module.graphs.iter().filter_map(|g| dlx_ir::Entry::of(g).ok());
        let mut buckets: Vec<usize> = entries.filter(|e| e.kind == EntryKind::Step).map(|e| e.rows).collect();
        buckets.sort_unstable();
        Compiled { buckets, max_seq, vocab }
    }

    fn sizes(&self) -> Sizes<'_> {
        Sizes { max_seq: self.max_seq, vocab: self.vocab, buckets: &self.buckets }
    }

    /// The rows and depths that are asked for, by depth, so that caches are filled once.
    fn wanted(&self, args: &Args, policy: &DecodePolicy) -> Result<Vec<(usize, usize)>, Error> {
        let number = |n: &u32| usize::try_from(*n).unwrap_or(usize::MAX);
        let largest = self.buckets.last().copied().unwrap_or(0);
        let mut rows: Vec<usize> = args.rows.iter().map(number).collect();
        if rows.is_empty() {
            rows = vec![policy.block.clamp(1, largest.max(1)), largest];
            rows.dedup();
        }
        let mut depths: Vec<usize> = args.depth.iter().map(number).collect();
        depths.sort_unstable();
        depths.dedup();
        for &rows in &rows {
            if rows > largest {
                return Err(Error::new("--rows", format!("{rows} rows do not fit the largest step, of {largest}"))
                    .help(format!("ask for 1 to {largest} rows, or compile with a larger --buckets")));
            }
            let max_seq = self.max_seq;
            if let Some(depth) = depths.iter().find(|d| d.checked_add(rows).is_none_or(|end| end > max_seq)) {
                let message = format!("{rows} rows behind {depth} others do not fit caches of {max_seq} rows");
                return Err(Error::new("--depth", message).help(format!(
                    "ask for a depth of {} at most, or compile with a longer --max-seq",
                    max_seq.saturating_sub(rows)
                )));
            }
        }
        Ok(depths.iter().flat_map(|depth| rows.iter().map(|rows| (*rows, *depth))).collect())
    }
}

fn on_cpu<'m>(
    args: &Args,
    artifact: &Artifact,
    module: &'m Module,
    compiled: &Compiled,
    policy: &DecodePolicy,
    wanted: &[(usize, usize)],
) -> Result<Report<'m>, Failure> {
    let threads = args.threads.map_or_else(default_threads, usize::from);
    let (file, machine, limits) = limits(args, threads)?;
    let here = Machine::here()?;
    let mut notes = Vec::new();
    if !machine.is(&here) {
        notes.push(format!(
            "nothing is measured: the limits are of another machine ({}, {}, {} cores)",
            machine.cpu, machine.isa, machine.cores
        ));
    }
    let mut executor = if args.predict || !machine.is(&here) {
        None
    } else {
        let cpu = CpuOptions { threads, isa: None };
        let options =
            LoadOptions { cpu, verify_weights: args.place.verify, self_test: SelfTest::Skip, ..LoadOptions::default() };
        Some(load_cpu(artifact, &options).map_err(|e| Error::new("", e.to_string()))?)
    };
    let program = Program::new(module)?;
    let (mut filled, mut passes, mut reads) = (0, Vec::new(), Vec::new());
    // Maps the weights, so that no run is the first to touch them.
    if let Some(executor) = &executor {
        read_once(executor.pool(), artifact.weights());
    }
    for &(rows, depth) in wanted {
        let spans = [SpanRows { rows: 0..rows, slot: 0, at: depth, from: 0, visible: depth + rows }];
        let entry = |kind| Entry::new(&program, Some(&limits), kind, rows, &spans);
        let (step, head) = (entry(EntryKind::Step)?, entry(EntryKind::Head)?);
        let mut measured = [None, None];
        if let Some(executor) = &mut executor {
            if terminal::interrupted() {
                return Err(Failure::Interrupted);
            }
            let failed = |e: dlx_runtime::exec::ExecError| Error::new(artifact.path().display(), e.to_string());
            profile::fill(executor, &mut filled, depth).map_err(failed)?;
            reads.push(read_once(executor.pool(), artifact.weights()).as_secs_f64());
            measured = profile::pass(executor, rows, depth, args.seconds).map_err(failed)?.map(Some);
            reads.push(read_once(executor.pool(), artifact.weights()).as_secs_f64());
            filled = depth;
        }
        let [step_profile, head_profile] = measured;
        passes.push(Pass {
            rows,
            depth,
            entries: [(step, step_profile), (head, head_profile)],
            both: None,
            changes: explain::changes(&program, &limits, compiled.sizes(), rows, depth)?,
            tokens: explain::tokens(&program, &limits, policy, compiled.sizes(), depth),
        });
    }
    reads.sort_unstable_by(f64::total_cmp);
    let read_gbs = reads.get(reads.len() / 2).map(|s| 1e-9 * artifact.weights().len() as f64 / s);
    let device = executor.as_ref().map_or_else(
        || format!("{} on {threads} threads, predicted", machine.isa),
        |e: &CpuExecutor| format!("{} on {} threads", e.isa(), e.threads()),
    );
    let artifact = artifact.path().display().to_string();
    Ok(Report { artifact, module, device, machine: Some((file, machine, limits)), read_gbs, notes, passes })
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The limits of that many threads: those of the file that is named, or those kept for this machine, which are measured
/// first if there are none.
fn limits(args: &Args, threads: usize) -> Result<(PathBuf, Machine, Limits), Failure> {
    let here = Machine::here()?;
    let path = args.machine.clone().map_or_else(|| here.path(), Ok)?;
    let known = path.exists().then(|| Machine::read(&path));
    let mut machine = match known {
        // A file that is measured anew need not be readable.
        Some(known) => known.or_else(|e| if args.measure { Ok(here.clone()) } else { Err(e) })?,
        None if args.measure || args.machine.is_none() => here.clone(),
        None => Machine::read(&path)?,
    };
    if args.measure && !machine.is(&here) {
        let error = Error::new(path.display(), format!("holds the limits of another machine ({})", machine.cpu));
        return Err(error.help("leave --measure out to predict for it, or give another file").into());
    }
    let kept = machine.of(threads).filter(|_| !args.measure).cloned();
    let limits = match kept {
        Some(limits) => limits,
        None if machine.is(&here) => {
            let bar = terminal::count_progress("measuring this machine");
            terminal::note(&format!("measuring what {threads} threads of this machine can do, for {}", path.display()));
            let limits = explain::measure(threads, &|done, total| {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                if terminal::interrupted() { Err(Error::new("measuring", "was interrupted")) } else { Ok(()) }
            });
            bar.finish_and_clear();
            machine.put(limits?);
            machine.write(&path)?;
            machine
                .of(threads)
                .cloned()
                .ok_or_else(|| Error::new("--threads", format!("{threads} were not measured")))?
        }
        None => {
            let have: Vec<_> = machine.limits.iter().map(|l| l.threads.to_string()).collect();
            let message = format!("has no limits of {threads} threads, only of {}", have.join(", "));
            return Err(Error::new(path.display(), message).help("choose one of them with --threads N").into());
        }
    };
    Ok((path, machine, limits))
}

fn on_wgpu<'m>(
    args: &Args,
    artifact: &Artifact,
    module: &'m Module,
    wanted: &[(usize, usize)],
) -> Result<Report<'m>, Failure> {
    for (flag, given) in [
        ("--machine", args.machine.is_some()),
        ("--measure", args.measure),
        ("--threads", args.threads.is_some()),
        ("--predict", args.predict),
    ] {
        if given {
            let error = Error::new(flag, "has no effect on a graphics device, whose limits are not measured");
            return Err(error.help(format!("leave {flag} out, or explain the CPU program with --target cpu")).into());
        }
    }
    let load = LoadOptions { verify_weights: args.place.verify, ..args.place.options(None) };
    let mut executor = load_wgpu(artifact, &load).map_err(|e| Error::new("", e.to_string()))?;
    let program = Program::new(module)?;
    let mut passes = Vec::new();
    for &(rows, depth) in wanted {
        if terminal::interrupted() {
            return Err(Failure::Interrupted);
        }
        let spans = [SpanRows { rows: 0..rows, slot: 0, at: depth, from: 0, visible: depth + rows }];
        let entry = |kind| Entry::new(&program, None, kind, rows, &spans);
        let both = wgpu::measure(&mut executor, rows, depth, args.seconds);
        let both = both.map_err(|e| Error::new(artifact.path().display(), e.to_string()))?;
        passes.push(Pass {
            rows,
            depth,
            entries: [(entry(EntryKind::Step)?, None), (entry(EntryKind::Head)?, None)],
            both: Some(both),
            changes: Vec::new(),
            tokens: Ok(Vec::new()),
        });
    }
    let mut notes: Vec<String> = executor.replaced().iter().map(ToString::to_string).collect();
    notes.push(
        "on a graphics device nodes are counted and neither predicted nor timed; step and head are one submit, timed together"
            .into(),
    );
    let device = executor.adapter().to_string();
    let artifact = artifact.path().display().to_string();
    Ok(Report { artifact, module, device, machine: None, read_gbs: None, notes, passes })
}
