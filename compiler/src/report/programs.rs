//! The programs of an artifact as the page shows them: entries node by node, with operands, sources and drawings.
//!
//! Invariant: what is shown of a node is its text; the page computes nothing of it.

use std::collections::HashMap;

use dlx_ir::{Graph, Module, Operand, WeightDef, live_ranges, weight_bytes};
use serde::Serialize;

use super::draw::{Drawing, Open, draw};
use super::fold::{Layer, groups};
use super::lines::{Line, Lines, layer_of};
use super::stages::node_layer;
use crate::cli::table;

/// A program and the target that runs it.
pub(super) struct Program {
    pub(super) target: String,
    pub(super) module: Module,
}

/// A node.
#[derive(Serialize)]
struct Shown {
    text: Line,
    /// What it reads.
    reads: Vec<Line>,
}

/// A value that lies in the arena: from when to when, where, and how many bytes.
#[derive(Serialize)]
struct Live(String, usize, usize, u64, u64);

/// A group of layers that are alike, and drawings with one of them unfolded.
#[derive(Serialize)]
struct Group {
    layers: Vec<Layer>,
    first: Option<usize>,
    middle: Option<usize>,
    last: Option<usize>,
}

/// An entry.
#[derive(Serialize)]
struct Entry {
    name: String,
    head: String,
    params: Vec<Line>,
    nodes: Vec<Shown>,
    results: Vec<String>,
    arena: u64,
    live: Vec<Live>,
    groups: Vec<Group>,
    /// Drawing with all groups folded; none when it has too many boxes.
    folded: Option<usize>,
}

/// The entries of a target.
#[derive(Serialize)]
pub(super) struct Entries {
    target: String,
    entries: Vec<Entry>,
}

/// What the page shows of programs.
#[derive(Serialize)]
pub(super) struct Shows {
    targets: Vec<Entries>,
    drawings: Vec<Drawing>,
}

/// Everything about the graphs of programs.
pub(super) fn show(programs: &[Program], lines: &mut Lines) -> Shows {
    let mut drawings = Drawings::default();
    let targets = programs.iter().map(|program| {
        let entry = |graph| entry(&program.module, graph, lines, &mut drawings);
        Entries { target: program.target.clone(), entries: program.module.graphs.iter().map(entry).collect() }
    });
    Shows { targets: targets.collect(), drawings: drawings.all }
}

/// Drawings, each once: entries of one kind often look the same.
#[derive(Default)]
struct Drawings {
    all: Vec<Drawing>,
    places: HashMap<String, usize>,
}

impl Drawings {
    fn put(&mut self, drawing: Option<Drawing>) -> Option<usize> {
        let drawing = drawing?;
        let next = self.all.len();
        let place = *self.places.entry(format!("{drawing:?}")).or_insert(next);
        if place == next {
            self.all.push(drawing);
        }
        Some(place)
    }
}

fn entry(module: &Module, graph: &Graph, lines: &mut Lines, drawings: &mut Drawings) -> Entry {
    let value = |id: &dlx_ir::ValueId| format!("%{}: {}", graph.values[*id].name, graph.values[*id].ty);
    let nodes = graph.nodes.iter().map(|node| Shown {
        text: lines.put(&module.node_text(graph, node), node_layer(module, graph, node)),
        reads: node.inputs.iter().map(|input| operand(module, graph, *input, lines)).collect(),
    });
    let nodes = nodes.collect();
    let alike = groups(module, graph);
    let folded = drawings.put(draw(module, graph, &alike, None));
    let opened = |g: usize, open, drawings: &mut Drawings| drawings.put(draw(module, graph, &alike, Some((g, open))));
    let mut shown = Vec::with_capacity(alike.len());
    for (g, layers) in alike.iter().enumerate() {
        let first = opened(g, Open::First, drawings);
        let middle = if layers.len() > 2 { opened(g, Open::Middle, drawings) } else { None };
        shown.push(Group { layers: layers.clone(), first, middle, last: opened(g, Open::Last, drawings) });
    }
    Entry {
        name: graph.name.clone(),
        head: format!(
            "{} nodes, {} parameters, {} results",
            graph.nodes.len(),
            graph.params.len(),
            graph.results.len()
        ),
        params: graph.params.iter().map(|p| lines.put(&value(p), None)).collect(),
        nodes,
        results: graph.results.iter().map(value).collect(),
        arena: graph.arena_bytes(),
        live: live(graph),
        groups: shown,
        folded,
    }
}

/// What an operand is, and for weights what they are made from.
fn operand(module: &Module, graph: &Graph, operand: Operand, lines: &mut Lines) -> Line {
    match operand {
        Operand::Value(v) => {
            let value = &graph.values[v];
            lines.put(&format!("%{}: {}", value.name, value.ty), layer_of(&value.name))
        }
        Operand::Weight(w) => {
            let weight = &module.weights[w];
            let size = weight_bytes(weight).map_or_else(String::new, |bytes| format!(", {}", table::bytes(bytes)));
            // Where its bytes lie differs from layer to layer, and says nothing here.
            let def = if matches!(weight.def, WeightDef::Stored { .. }) { "stored" } else { "computed" };
            lines.put(&format!("@{}: {}, {def}{size}{}", weight.name, weight.ty, weight.origin), layer_of(&weight.name))
        }
        Operand::State(s) => {
            let state = &module.states[s];
            lines.put(&format!("@{}: {}, a state", state.name, state.ty), layer_of(&state.name))
        }
    }
}

/// Where every value lies, and how long; nothing before memory is planned.
fn live(graph: &Graph) -> Vec<Live> {
    let ranges = live_ranges(graph);
    let values = graph.values.iter().zip(ranges);
    let planned = values.filter_map(|((_, value), (from, to))| {
        Some(Live(value.name.clone(), from, to, value.slot?, value.ty.bytes()? as u64))
    });
    planned.collect()
}
