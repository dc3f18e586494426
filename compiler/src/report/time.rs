//! Where the time of a step goes: what `dlxc explain` predicts of it, as a table and as a roofline.
//!
//! Invariant: every number comes from [`crate::explain`]; without limits of a machine there are counts and no times.

use std::path::PathBuf;

use dlx_ir::{EntryKind, Error, Module, SpanRows};
use dlx_runtime::decode::DecodePolicy;
use serde::Serialize;

use crate::cli::table;
use crate::explain::{Entry, Limits, Line, Program};

/// Limits of a machine, and where they are kept.
pub struct Machine {
    /// The file.
    pub path: PathBuf,
    /// The machine.
    pub name: String,
    /// What its threads can do.
    pub limits: Limits,
}

/// Size of the plot, and of its margins.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 48.0;
const TOP: f64 = 16.0;
const RIGHT: f64 = 24.0;

/// A line of the table.
#[derive(Serialize)]
struct Row {
    /// Number in the plot.
    number: usize,
    name: String,
    nodes: usize,
    weights: String,
    operations: String,
    intensity: String,
    time: String,
    share: String,
    bar: String,
    rate: String,
    bound: &'static str,
}

/// A point of the plot.
#[derive(Serialize)]
struct Point {
    number: usize,
    name: String,
    x: String,
    y: String,
    bound: &'static str,
}

/// A labelled mark of an axis.
#[derive(Serialize)]
struct Tick {
    at: String,
    label: String,
}

/// A roofline.
#[derive(Serialize)]
struct Plot {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    roof: String,
    memory: String,
    compute: String,
    points: Vec<Point>,
    x: Vec<Tick>,
    y: Vec<Tick>,
}

/// An entry at a number of rows.
#[derive(Serialize)]
struct Call {
    title: String,
    rows: Vec<Row>,
    total: String,
    plot: Option<Plot>,
}

/// Everything about time.
#[derive(Serialize)]
pub(super) struct Time {
    machine: Option<String>,
    calls: Vec<Call>,
}

/// What steps and heads of the block's and of the largest step's rows cost.
///
/// # Errors
/// When the program lacks an entry, or the limits do not say how long a node takes.
pub(super) fn time(module: &Module, policy: &DecodePolicy, machine: Option<&Machine>) -> Result<Time, Error> {
    let program = Program::new(module)?;
    let entries = module.graphs.iter().filter_map(|g| dlx_ir::Entry::of(g).ok());
    let largest = entries.filter(|e| e.kind == EntryKind::Step).map(|e| e.rows).max().unwrap_or(1);
    let mut sizes = vec![policy.block.clamp(1, largest), largest];
    sizes.dedup();
    let mut calls = Vec::new();
    for rows in sizes {
        let spans = [SpanRows { rows: 0..rows, slot: 0, at: 0, from: 0, visible: rows }];
        for kind in [EntryKind::Step, EntryKind::Head] {
            let entry = Entry::new(&program, machine.map(|m| &m.limits), kind, rows, &spans)?.folded(module);
            calls.push(call(&entry, kind, rows, machine.map(|m| &m.limits)));
        }
    }
    let machine =
        machine.map(|m| format!("{}, {} threads, limits from {}", m.name, m.limits.threads, m.path.display()));
    Ok(Time { machine, calls })
}

fn call(entry: &Entry<'_>, kind: EntryKind, rows: usize, limits: Option<&Limits>) -> Call {
    let whole = entry.estimate().map(|e| e.seconds);
    let longest = entry.lines.iter().filter_map(|l| Some(l.estimate?.seconds)).fold(0.0, f64::max);
    let lines: Vec<Row> = entry.lines.iter().enumerate().map(|(i, line)| row(i + 1, line, whole, longest)).collect();
    let work = entry.work();
    let predicted = whole.map_or_else(String::new, |s| format!(", {} predicted", seconds(s)));
    let total = format!(
        "{} of weights, {} operations{predicted}",
        table::bytes(work.weight_bytes),
        table::count(work.operations)
    );
    let title = format!("{kind} of {rows} rows, entry {}", entry.graph.name);
    Call { title, rows: lines, total, plot: limits.and_then(|limits| plot(entry, rows, limits)) }
}

fn row(number: usize, line: &Line, whole: Option<f64>, longest: f64) -> Row {
    let estimate = line.estimate;
    let time = estimate.map(|e| e.seconds);
    let part = |of: f64| time.map_or(0.0, |t| 100.0 * t / of.max(f64::MIN_POSITIVE));
    Row {
        number,
        name: line.name.clone(),
        nodes: line.nodes.len(),
        weights: table::bytes(line.work.weight_bytes),
        operations: table::count(line.work.operations),
        intensity: format!("{:.2}", line.work.intensity()),
        time: time.map_or_else(String::new, seconds),
        share: whole.map_or_else(String::new, |whole| format!("{:.1} %", part(whole))),
        bar: format!("{:.2}", part(longest)),
        rate: time.map_or_else(String::new, |t| {
            format!("{:.1}", 1e-9 * line.work.operations as f64 / t.max(f64::MIN_POSITIVE))
        }),
        bound: estimate.map_or("", |e| e.bound().name()),
    }
}

fn seconds(s: f64) -> String {
    table::duration(std::time::Duration::try_from_secs_f64(s).unwrap_or_default())
}

/// Operations per byte and per second of every line that has operations, under the machine's roof.
fn plot(entry: &Entry<'_>, rows: usize, limits: &Limits) -> Option<Plot> {
    let memory = limits.memory_gbs();
    let best = limits.linear.iter().filter(|p| p.rows <= rows).map(|p| p.cached_gops);
    let compute = best.reduce(f64::max).or_else(|| limits.linear.iter().map(|p| p.cached_gops).reduce(f64::min))?;
    let lines = entry.lines.iter().enumerate().filter(|(_, l)| l.work.operations > 0);
    let lines: Vec<(usize, &Line, f64, f64)> = lines
        .filter_map(|(i, l)| {
            Some((
                i + 1,
                l,
                l.work.intensity(),
                1e-9 * l.work.operations as f64 / l.estimate?.seconds.max(f64::MIN_POSITIVE),
            ))
        })
        .collect();
    let ridge = compute / memory;
    let xs = decades(lines.iter().map(|l| l.2).chain([ridge]));
    let ys = decades(lines.iter().map(|l| l.3).chain([compute, memory * 10f64.powi(xs.0)]));
    let scale = |(from, to): (i32, i32), start: f64, end: f64| {
        move |v: f64| start + (end - start) * (libm::log10(v) - f64::from(from)) / f64::from(to - from)
    };
    let x = scale(xs, LEFT, WIDTH - RIGHT);
    let y = scale(ys, HEIGHT - BOTTOM, TOP);
    let (first, last) = (10f64.powi(xs.0), 10f64.powi(xs.1));
    let roof =
        [first, ridge.clamp(first, last), last].map(|at| format!("{:.1},{:.1}", x(at), y((memory * at).min(compute))));
    let ticks = |(from, to): (i32, i32), place: &dyn Fn(f64) -> f64| {
        (from..=to).map(|d| Tick { at: format!("{:.1}", place(10f64.powi(d))), label: decade(d) }).collect()
    };
    Some(Plot {
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        right: WIDTH - RIGHT,
        top: TOP,
        bottom: HEIGHT - BOTTOM,
        roof: roof.join(" "),
        memory: format!("{memory:.1} GB/s"),
        compute: format!("{compute:.0} Gop/s"),
        points: lines
            .iter()
            .map(|(number, line, intensity, rate)| Point {
                number: *number,
                name: line.name.clone(),
                x: format!("{:.1}", x(*intensity)),
                y: format!("{:.1}", y(*rate)),
                bound: line.estimate.map_or("", |e| e.bound().name()),
            })
            .collect(),
        x: ticks(xs, &x),
        y: ticks(ys, &y),
    })
}

/// The powers of ten around all values, at least one apart.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let logs = values.filter(|v| v.is_finite() && *v > 0.0).map(libm::log10);
    let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0, 1);
    }
    let (from, to) = (low.floor() as i32, high.ceil() as i32);
    (from, to.max(from + 1))
}

fn decade(power: i32) -> String {
    if power < 0 {
        format!("{:.*}", power.unsigned_abs() as usize, 10f64.powi(power))
    } else {
        format!("{:.0}", 10f64.powi(power))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values() {
        assert_eq!(decades([0.02, 300.0].into_iter()), (-2, 3));
        assert_eq!(decades([5.0].into_iter()), (0, 1));
        assert_eq!(decades([1.0, f64::NAN, 0.0].into_iter()), (0, 1));
        assert_eq!(decades(std::iter::empty()), (0, 1));
        assert_eq!([-2, 0, 3].map(decade), ["0.01", "1", "1000"]);
    }
}
