//! Artifacts that somebody edited and signed again: each must be refused or answer as before.
//!
//! Manifest, program, plan, golden vectors, text, tokenizer, section table and header of a few artifacts are edited, by
//! structure and at random; checksums are computed again; the mutant is opened and asked a question in a process with
//! little memory. Never may one panic, abort, hang, or answer something else without an error, apart from what `free`
//! lists. A fixed seed and a small number run always; `DLX_MUTANTS=20000` runs more, `DLX_MUTANT_SEED` others, and
//! `DLX_MUTANT_LOG=FILE` keeps what became of each. With `DLX_MUTANT_WGPU=1` the plans alone are edited, and run on the only
//! graphics device.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

mod container;
mod edits;
mod free;
mod graphs;
mod holes;
mod rng;
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use dlx_tests::compiled;
use dlxc::options::CompileOptions;

use worker::{Job, work};

/// Mutants of an ordinary run.
const COUNT: u64 = 240;
/// Address space of a worker: a few times what the originals need.
const MEMORY_KIB: u64 = 2 << 20;
/// Time of one mutant, or of the originals. Drivers compile for seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the environment of a worker holds.
const JOB: &str = "DLX_MUTANT_JOB";

/// What became of the mutants.
#[derive(Default)]
struct Tally {
    mutants: u64,
    errors: u64,
    same: u64,
    free: u64,
    peak_kib: u64,
    /// Those that must not be.
    panics: Vec<String>,
    aborts: Vec<String>,
    hangs: Vec<String>,
    silent: Vec<String>,
}

#[test]
fn mutants_are_refused_or_answer_as_before() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (count, seed) = (number("DLX_MUTANTS").unwrap_or(COUNT), number("DLX_MUTANT_SEED").unwrap_or(1));
    let work = tempfile::tempdir().unwrap();
    originals(work.path());
    let threads = 2;
    let share = count.div_ceil(threads);
    let mut tallies = Vec::new();
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|t| {
                let path = work.path();
                scope.spawn(move || watch(seed, (t * share).min(count), ((t + 1) * share).min(count), path))
            })
            .collect();
        tallies = parts.into_iter().map(|p| p.join().unwrap()).collect();
    });
    let total = tallies.into_iter().fold(Tally::default(), Tally::add);
    let counts = [&total.panics, &total.aborts, &total.hangs, &total.silent].map(Vec::len);
    eprintln!(
        "{} mutants: {} errors, {} same, {} free, {} panics, {} aborts, {} hangs, {} silent differences, {} MiB at most",
        total.mutants,
        total.errors,
        total.same,
        total.free,
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        total.peak_kib >> 10
    );
    let bad = [("panic", &total.panics), ("abort", &total.aborts), ("hang", &total.hangs), ("silent", &total.silent)];
    let bad: Vec<String> = bad.iter().flat_map(|(k, v)| v.iter().take(20).map(move |l| format!("{k}: {l}"))).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert_eq!(total.mutants, count);
    let free = total.free > 0 || std::env::var_os("DLX_MUTANT_WGPU").is_some();
    assert!(total.errors > count / 2 && total.same > 0 && free, "the mutants must be of all kinds");
}

/// A worker's entry: does nothing unless it is one.
#[test]
fn worker() {
    let Ok(job) = std::env::var(JOB) else { return };
    let mut parts = job.split(' ');
    let mut number = || parts.next().unwrap().parse().unwrap();
    let job = Job { seed: number(), first: number(), end: number() };
    let dir = parts.next().unwrap();
    work(&job, Path::new(dir), Path::new(parts.next().unwrap()));
}

/// The trained checkpoints.
fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models")
}

/// The artifacts that are edited: one of each kind of attention.
fn originals(dir: &Path) {
    let device = std::env::var_os("DLX_MUTANT_WGPU").is_some();
    let names: &[&str] = if device { &["sdar-tiny"] } else { &["llada-tiny", "qwen2-tiny", "sdar-tiny"] };
    for model in names {
        let options = CompileOptions {
            quant: "int4".parse().unwrap(),
            targets: vec!["cpu".into(), "wgpu".into()],
            max_seq: Some(96),
            ..CompileOptions::default()
        };
        compiled::compile(&models().join(model), &dir.join(format!("{model}.dlxa")), &options).unwrap();
    }
}

/// Has workers do some mutants; one that dies is followed by another.
fn watch(seed: u64, first: u64, end: u64, dir: &Path) -> Tally {
    let mut tally = Tally::default();
    let mut next = first;
    while next < end {
        let log = dir.join(format!("{first}-{next}.log"));
        let mut child = start(&format!("{seed} {next} {end} {} {}", dir.display(), log.display()));
        let (mut seen, mut since) = (0, Instant::now());
        let hung = loop {
            if child.try_wait().unwrap().is_some() {
                break false;
            }
            let len = std::fs::metadata(&log).map_or(0, |m| m.len());
            if len != seen {
                (seen, since) = (len, Instant::now());
            } else if since.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                break true;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Ok(path) = std::env::var("DLX_MUTANT_LOG") {
            use std::io::Write as _;
            std::fs::File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert!(text.contains("begin"), "a worker did not start");
        let mut open = None;
        for line in text.lines() {
            open = tally.line(line);
        }
        next = match open {
            None => end,
            Some(number) => {
                let place = if hung { &mut tally.hangs } else { &mut tally.aborts };
                place.push(format!("mutant {number} of seed {seed}"));
                tally.mutants += 1;
                number + 1
            }
        };
    }
    tally
}

fn start(job: &str) -> Child {
    let exe = std::env::current_exe().unwrap();
    // Drivers reserve more address space than a model.
    let memory = if std::env::var_os("DLX_MUTANT_WGPU").is_some() { 64 * MEMORY_KIB } else { MEMORY_KIB };
    let limited = format!("ulimit -v {memory}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited]).arg(exe).args(["worker", "--exact", "--nocapture"]).env(JOB, job);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

impl Tally {
    /// Takes a line of a log; a mutant that has begun and not ended is returned.
    fn line(&mut self, line: &str) -> Option<u64> {
        let mut words = line.splitn(4, ' ');
        let (kind, number) = (words.next()?, words.next()?.parse().ok()?);
        if kind == "begin" {
            return Some(number);
        }
        self.peak_kib = self.peak_kib.max(words.next()?.parse().ok()?);
        let outcome = words.next()?;
        self.mutants += 1;
        match outcome.split(' ').next()? {
            "error" => self.errors += 1,
            "same" => self.same += 1,
            "free" => self.free += 1,
            "panic" => self.panics.push(format!("mutant {number}: {outcome}")),
            _ => self.silent.push(format!("mutant {number}: {outcome}")),
        }
        None
    }

    fn add(mut self, other: Tally) -> Tally {
        self.mutants += other.mutants;
        self.errors += other.errors;
        self.same += other.same;
        self.free += other.free;
        self.peak_kib = self.peak_kib.max(other.peak_kib);
        self.panics.extend(other.panics);
        self.aborts.extend(other.aborts);
        self.hangs.extend(other.hangs);
        self.silent.extend(other.silent);
        self
    }
}
