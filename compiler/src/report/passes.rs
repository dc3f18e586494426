//! What each pass of a dump did: counts for the timeline, ops by stage, and the lines that the page compares stages by.

use std::collections::BTreeSet;

use serde::Serialize;

use super::dump::{Dump, Stage};
use super::lines::Lines;
use super::stages::{Change, Identities, Item, Part, change, ops, parts};

/// A stage of the timeline.
#[derive(Serialize)]
struct Row {
    number: usize,
    pass: String,
    file: String,
    graphs: usize,
    nodes: usize,
    weights: usize,
    states: usize,
    /// Lines of graphs, and of weights and states.
    nodes_change: Change,
    weights_change: Change,
    graphs_added: Vec<String>,
    graphs_removed: Vec<String>,
    /// Bars of added, removed and rewritten lines: from where, and how wide, of 100.
    bars: [[String; 2]; 3],
}

/// An op and how many nodes have it at each stage.
#[derive(Serialize)]
struct OpRow {
    name: &'static str,
    counts: Vec<usize>,
}

/// The timeline of a target.
#[derive(Serialize)]
pub(super) struct Timeline {
    /// Empty when there is one target.
    target: String,
    stages: Vec<Row>,
    ops: Vec<OpRow>,
}

/// A part of a stage for the page.
#[derive(Serialize)]
struct Shown {
    name: String,
    from: Option<usize>,
    /// Nothing when they are those of the part that this was made from.
    items: Option<Vec<[i64; 4]>>,
}

/// The stages of a target for the page.
#[derive(Serialize)]
pub(super) struct Stages {
    target: String,
    stages: Vec<(String, Vec<Shown>)>,
}

/// Timelines, and what the page compares.
pub(super) fn passes(dumps: &[Dump], lines: &mut Lines) -> (Vec<Timeline>, Vec<Stages>) {
    dumps.iter().map(|dump| target(dump, lines)).unzip()
}

fn target(dump: &Dump, lines: &mut Lines) -> (Timeline, Stages) {
    let mut identities = Identities::default();
    let mut found: Vec<Vec<Part>> = Vec::with_capacity(dump.stages.len());
    for (i, stage) in dump.stages.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| (&dump.stages[i], &found[i][..]));
        found.push(parts(stage, before, &mut identities, lines));
    }
    let before = |i: usize| i.checked_sub(1).map(|i| (&dump.stages[i], &found[i][..]));
    let mut rows: Vec<Row> = dump.stages.iter().enumerate().map(|(i, s)| row(s, &found[i], before(i))).collect();
    let all = |row: &Row| {
        let (n, w) = (row.nodes_change, row.weights_change);
        [n.added + w.added, n.removed + w.removed, n.rewritten + w.rewritten]
    };
    // The import is all new, which says nothing.
    let widest = rows.iter().skip(1).map(|row| all(row).iter().sum()).max().unwrap_or(0usize).max(1);
    for row in rows.iter_mut().skip(1) {
        let (mut at, numbers) = (0.0, all(row));
        for (bar, n) in row.bars.iter_mut().zip(numbers) {
            let width = 100.0 * n as f64 / widest as f64;
            *bar = [format!("{at:.2}"), format!("{width:.2}")];
            at += width;
        }
    }
    let counts: Vec<_> = dump.stages.iter().map(|stage| ops(&stage.module)).collect();
    let names: BTreeSet<&'static str> = counts.iter().flat_map(|ops| ops.keys().copied()).collect();
    let count = |name| counts.iter().map(|ops| ops.get(name).copied().unwrap_or(0)).collect();
    let ops = names.into_iter().map(|name| OpRow { name, counts: count(name) }).collect();
    let title = |stage: &Stage| format!("{:02} {}", stage.number, stage.pass);
    let shown =
        dump.stages.iter().enumerate().map(|(i, stage)| (title(stage), shown(&found[i], before(i).map(|b| b.1))));
    let stages = Stages { target: dump.target.clone(), stages: shown.collect() };
    (Timeline { target: dump.target.clone(), stages: rows, ops }, stages)
}

fn row(stage: &Stage, parts: &[Part], before: Option<(&Stage, &[Part])>) -> Row {
    let module = &stage.module;
    let (globals, graphs) = parts.split_at(1);
    let (mut nodes_change, mut weights_change) = (Change::default(), Change::default());
    let names = |parts: &[Part]| parts.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let (mut graphs_added, mut graphs_removed) = (Vec::new(), Vec::new());
    if let Some((_, parts)) = before {
        let (had, has) = (names(&parts[1..]), names(graphs));
        graphs_added = has.iter().filter(|name| !had.contains(name)).cloned().collect();
        graphs_removed = had.into_iter().filter(|name| !has.contains(name)).collect();
        (nodes_change, weights_change) = (change(&parts[1..], graphs), change(&parts[..1], globals));
    }
    Row {
        number: stage.number,
        pass: stage.pass.clone(),
        file: stage.file.clone(),
        graphs: module.graphs.len(),
        nodes: module.graphs.iter().map(|g| g.nodes.len()).sum(),
        weights: module.weights.len(),
        states: module.states.len(),
        nodes_change,
        weights_change,
        graphs_added,
        graphs_removed,
        bars: Default::default(),
    }
}

fn shown(parts: &[Part], before: Option<&[Part]>) -> Vec<Shown> {
    let numbers = |item: &Item| [item.id as i64, item.content as i64, item.line.0 as i64, item.line.1];
    let show = |part: &Part| {
        let old = before.zip(part.from).map(|(parts, from)| &parts[from]);
        let same = old.is_some_and(|old| old.items == part.items);
        let items = (!same).then(|| part.items.iter().map(numbers).collect());
        Shown { name: part.name.clone(), from: part.from, items }
    };
    parts.iter().map(show).collect()
}
