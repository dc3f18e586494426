//! `dlxc bench` on a graphics device: how long a denoising step takes, and what it moves between host and device.
//!
//! Step and head are one submit, so they are timed together. The weights that a step reads are those that its dispatches
//! bind; of an embedding only the rows gathered are read, so its table is left out.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dlx_ir::{EntryKind, Error};
use dlx_runtime::artifact::Artifact;
use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};
use dlx_runtime::wgpu::plan::{Binding, Plan};
use dlx_runtime::wgpu::{Counters, WgpuExecutor};
use dlx_runtime::{LoadOptions, load_wgpu};
use serde_json::json;

use crate::cli::table::{self, Align};
use crate::cli::{Failure, terminal};

/// What to time.
pub(super) struct Sizes<'a> {
    /// Rows of a step.
    pub(super) rows: &'a [usize],
    /// Rows in the cache before it.
    pub(super) depth: &'a [usize],
    /// Time for each line, about.
    pub(super) seconds: f64,
}

/// One line of the report.
pub(in crate::cli) struct Line {
    rows: usize,
    depth: usize,
    pub(in crate::cli) median: Duration,
    pub(in crate::cli) fastest: Duration,
    weight_bytes: u64,
    /// Of one step and its head.
    counters: Counters,
}

impl Line {
    fn gbs(&self) -> f64 {
        self.weight_bytes as f64 / self.median.as_secs_f64() / 1e9
    }
}

/// Times steps of every size; gives the report as text or JSON.
///
/// # Errors
/// When the artifact cannot be loaded, or a size does not fit it; on Ctrl-C.
pub(super) fn run(
    artifact: &Artifact,
    load: &LoadOptions,
    sizes: &Sizes<'_>,
    as_json: bool,
) -> Result<String, Failure> {
    let started = Instant::now();
    let mut executor = load_wgpu(artifact, load).map_err(|e| Error::new("", e.to_string()))?;
    let open = started.elapsed();
    let place = artifact.path().display().to_string();
    let mut lines = Vec::new();
    for &depth in sizes.depth {
        for &rows in sizes.rows {
            if terminal::interrupted() {
                return Err(Failure::Interrupted);
            }
            let line = measure(&mut executor, rows, depth, sizes.seconds);
            lines.push(line.map_err(|e| Error::new(&place, e.to_string()))?);
        }
    }
    let replaced: Vec<String> = executor.replaced().iter().map(ToString::to_string).collect();
    if as_json {
        let lines = lines.iter().map(|l| {
            json!({
                "rows": l.rows,
                "depth": l.depth,
                "ms": millis(l.median),
                "fastest_ms": millis(l.fastest),
                "weight_gbs": l.gbs(),
                "counters": l.counters,
            })
        });
        let report = json!({
            "artifact": place,
            "device": executor.adapter(),
            "load_ms": millis(open),
            "replaced_kernels": replaced,
            "lines": lines.collect::<Vec<_>>(),
        });
        return Ok(format!("{report:#}\n"));
    }
    let columns = ["rows", "depth", "step+head", "fastest", "rows/s", "GB/s", "dispatches", "submits", "up", "down"];
    let rows = lines.iter().map(|l| {
        vec![
            l.rows.to_string(),
            l.depth.to_string(),
            table::duration(l.median),
            table::duration(l.fastest),
            format!("{:.1}", l.rows as f64 / l.median.as_secs_f64()),
            format!("{:.2}", l.gbs()),
            l.counters.dispatches.to_string(),
            l.counters.submits.to_string(),
            table::bytes(l.counters.bytes_up),
            table::bytes(l.counters.bytes_down),
        ]
    });
    let columns: Vec<_> = columns.iter().map(|c| (*c, Align::Right)).collect();
    let mut text = format!("{}, loaded in {}\n", executor.adapter(), table::duration(open));
    replaced.iter().for_each(|r| text.push_str(&format!("note: {r}\n")));
    text.push_str(&table::table(&columns, &rows.collect::<Vec<_>>()));
    Ok(text)
}

/// Times a step with a head on all of its rows.
pub(in crate::cli) fn measure(
    executor: &mut WgpuExecutor,
    rows: usize,
    depth: usize,
    seconds: f64,
) -> Result<Line, ExecError> {
    let vocab = executor.vocab();
    let id = |i: usize| i32::try_from((i * 7919 + 17) % vocab).unwrap_or(0);
    let largest = executor.step_buckets().last().copied().unwrap_or(1);
    // The cache really holds something.
    for at in (0..depth).step_by(largest) {
        let n = largest.min(depth - at);
        let ids: Vec<i32> = (at..at + n).map(id).collect();
        let pos: Vec<i32> = (at..at + n).map(|p| i32::try_from(p).unwrap_or(i32::MAX)).collect();
        executor.step(&[Span::new(&ids, &pos, at)])?;
    }
    let ids: Vec<i32> = (0..rows).map(id).collect();
    let pos: Vec<i32> = (depth..depth + rows).map(|p| i32::try_from(p).unwrap_or(i32::MAX)).collect();
    let all: Vec<usize> = (0..rows).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    let mut once = |executor: &mut WgpuExecutor| {
        executor.step(&[Span::new(&ids, &pos, depth)])?;
        executor.head(&all, &mut stats)
    };
    executor.finish()?;
    let before = executor.counters();
    once(executor)?;
    let after = executor.counters();
    let counters = Counters {
        bytes_up: after.bytes_up - before.bytes_up,
        bytes_down: after.bytes_down - before.bytes_down,
        dispatches: after.dispatches - before.dispatches,
        submits: after.submits - before.submits,
    };
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        once(executor)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let weight_bytes = weight_bytes(executor.plan(), rows);
    Ok(Line { rows, depth, median: times[times.len() / 2], fastest: times[0], weight_bytes, counters })
}

/// Bytes of the weights that a step of `rows` rows and its heads multiply by.
fn weight_bytes(plan: &Plan, rows: usize) -> u64 {
    let mut total = 0;
    for kind in [EntryKind::Step, EntryKind::Head] {
        let entries = plan.entries.iter().filter(|e| e.kind == kind);
        let largest = entries.clone().map(|e| e.rows).max().unwrap_or(1);
        let fits = entries.filter(|e| e.rows >= rows.min(largest)).min_by_key(|e| e.rows);
        let Some(entry) = fits else { continue };
        let dispatches = entry.dispatches.iter().filter(|d| !plan.kernels[d.kernel].role.starts_with("embed"));
        let bindings = dispatches.flat_map(|d| &d.bindings);
        let read: BTreeSet<_> =
            bindings.filter_map(|b| if let Binding::Weight(r) = b { Some(*r) } else { None }).collect();
        total += read.iter().map(|r| r.bytes).sum::<u64>() * rows.div_ceil(largest) as u64;
    }
    total
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
