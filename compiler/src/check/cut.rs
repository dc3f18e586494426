//! Cuts a model to what a pass can tell apart: one of each kind of layer, narrow matrices, the smallest steps.
//!
//! Layers that look alike but for their numbers are one kind, of which the first and the last stay; sizes shrink together,
//! in units that heads and quantized groups divide, and weights are the corners of the real ones. So a model of 8 B costs
//! what a tiny one does, and every pass meets every kind of node that the model has. What is left out is said.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use dlx_ir::{Dim, Error, Graph, Id, Module, Node, Op, Operand, QuantFormat, Type, ValueId, VerifiedModule, WeightDef};
use dlx_passes::{Params, Step};
use dlx_targets::{CodeRows, WeightSource};

use super::source::rows_of;

/// Elements of weights up to which a model is run as it is.
const SMALL: usize = 1 << 23;
/// Features that the widest row that passes between layers is cut to, about.
const FEATURES: usize = 256;
/// Rows that a vocabulary is cut to.
const VOCABULARY: usize = 512;
/// What every size that is cut remains a multiple of: the largest quantized group, and what heads have.
const UNIT: usize = 128;
/// The widest row that is not a vocabulary.
const WIDEST: usize = 32_768;
/// Rows of the largest step that is run, if a smaller one is not all there is.
const ROWS: usize = 64;

/// A model that is cut, or is small enough as it is.
pub struct Cut {
    /// What is left.
    pub module: VerifiedModule,
    /// What was left out.
    pub notes: Vec<String>,
    /// Columns of each weight in the model, and in the cut.
    columns: BTreeMap<String, (usize, usize)>,
}

/// Cuts an imported model. Layers of which only one has a weight whose name has one of the `patterns` in it are not alike.
///
/// # Errors
/// Never for a model that a front end made: sizes that do not shrink together are left as they are.
pub fn cut(module: &VerifiedModule, patterns: &[String]) -> Result<Cut, Error> {
    let whole = |notes| Cut { module: module.clone(), notes, columns: BTreeMap::new() };
    let elements = |m: &Module| m.weights.iter().filter_map(|(_, w)| w.ty.elements()).fold(0, usize::saturating_add);
    let [graph] = &module.graphs[..] else { return Ok(whole(vec![])) };
    if elements(module) <= SMALL {
        return Ok(whole(vec![]));
    }
    let mut small = (**module).clone();
    let mut notes = Vec::new();
    let (kept, dropped) = drop_layers(module, graph, patterns);
    if dropped > 0 {
        notes.push(format!(
            "checked on {} of {} nodes: one of each kind of layer",
            kept.nodes.len(),
            graph.nodes.len()
        ));
        small.graphs[0] = kept;
    }
    small.drop_unread_weights();
    let widest = widest(&small);
    let mut columns = BTreeMap::new();
    // Heads must go on to divide each other; the first factor for which all types fit is taken.
    for factor in (2..=widest / FEATURES).rev() {
        let mut narrow = small.clone();
        resize(&mut narrow, factor);
        let Ok(narrow) = VerifiedModule::new(narrow) else { continue };
        for ((_, full), (_, cut)) in small.weights.iter().zip(narrow.weights.iter()) {
            if let (Some((_, from)), Some((_, to))) = (rows_of(&full.ty), rows_of(&cut.ty)) {
                columns.insert(cut.name.clone(), (from, to));
            }
        }
        let (from, to) = (elements(module), elements(&narrow));
        notes.push(format!(
            "checked with {to} of {from} weights: rows of {widest} features cut to {}",
            size(widest, factor)
        ));
        return Ok(Cut { module: narrow, notes, columns });
    }
    Ok(Cut { module: VerifiedModule::new(small).map_err(Error::first_of)?, notes, columns })
}

/// The steps of a pipeline for a cut model: of the sizes that graphs get, the small ones.
pub fn cut_pipeline(steps: &[Step], cut: &Cut) -> (Vec<Step>, Option<String>) {
    let mut note = None;
    let largest = |text: &str| text.split(':').filter_map(|s| s.parse::<usize>().ok()).max();
    let all = steps.iter().filter(|s| s.pass.name == "specialize").flat_map(|s| &s.params.0);
    let largest_kept = all.filter_map(|(_, sizes)| largest(&small_sizes(sizes))).max().unwrap_or(0);
    let vocabulary = cut.module.graphs.iter().flat_map(|g| &g.nodes).find_map(|n| match n.op {
        Op::Embed {} => cut.module.operand_type(&cut.module.graphs[0], n.inputs[1]).dims[0].fixed(),
        _ => None,
    });
    let steps = steps.iter().map(|step| {
        let params = step.params.0.iter().map(|(key, value)| {
            let number = value.parse::<usize>().ok();
            let value = match (step.pass.name, key.as_str(), number) {
                ("specialize", ..) => {
                    let small = small_sizes(value);
                    if small != *value {
                        note = Some(format!("checked for steps of {small} rows, of {value}"));
                    }
                    small
                }
                ("split-head", "rows", Some(n)) if largest_kept > 0 => n.min(largest_kept).to_string(),
                ("split-head", "ban", Some(n)) => vocabulary.map_or(n, |v| n.min(v - 1)).to_string(),
                ("cache-kv", "max_seq", Some(n)) => n.min(4 * ROWS.max(largest_kept)).to_string(),
                _ => value.clone(),
            };
            (key.clone(), value)
        });
        Step { pass: step.pass, params: Params(params.collect()) }
    });
    let steps = steps.collect();
    (steps, note)
}

/// Of the sizes of a graph those up to [`ROWS`], or the smallest.
fn small_sizes(text: &str) -> String {
    let mut sizes: Vec<&str> = text.split(':').collect();
    sizes.sort_by_key(|s| s.parse::<usize>().unwrap_or(usize::MAX));
    let few = sizes.iter().take_while(|s| s.parse::<usize>().is_ok_and(|n| n <= ROWS)).count().clamp(1, 2);
    sizes[..few].join(":")
}

/// The graph without layers that look like one before and one after them, and how many were dropped.
fn drop_layers(module: &Module, graph: &Graph, patterns: &[String]) -> (Graph, usize) {
    let cuts = cut_points(graph, module);
    let spans: Vec<(Range<usize>, ValueId, ValueId)> =
        cuts.windows(2).map(|w| (w[0].0 + 1..w[1].0 + 1, w[0].1, w[1].1)).collect();
    let mut kinds: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, (nodes, from, _)) in spans.iter().enumerate() {
        kinds.entry(kind(module, graph, nodes.clone(), *from, patterns)).or_default().push(i);
    }
    let inner: BTreeSet<usize> =
        kinds.values().flat_map(|all| all.get(1..all.len().saturating_sub(1)).unwrap_or_default()).copied().collect();
    let mut small = Graph::new(graph.name.clone());
    let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let copy = |small: &mut Graph, v: ValueId| small.value(&graph.values[v].name, graph.values[v].ty.clone());
    for &p in &graph.params {
        map.insert(p, small.param(&graph.values[p].name, graph.values[p].ty.clone()));
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(span) = inner.iter().map(|s| &spans[*s]).find(|(nodes, ..)| nodes.contains(&i)) {
            let before = map[&span.1];
            map.insert(span.2, before);
            continue;
        }
        let read = |input: &Operand| input.value().map_or(*input, |v| Operand::Value(map[&v]));
        let inputs = node.inputs.iter().map(read).collect();
        let outputs: Vec<ValueId> = node.outputs.iter().map(|o| copy(&mut small, *o)).collect();
        map.extend(node.outputs.iter().copied().zip(outputs.iter().copied()));
        small.nodes.push(Node { inputs, outputs, ..node.clone() });
    }
    small.results = graph.results.iter().map(|r| map[r]).collect();
    (small, inner.len())
}

/// Nodes behind which a single value that a matrix had a part in is still needed, and that value.
fn cut_points(graph: &Graph, module: &Module) -> Vec<(usize, ValueId)> {
    let mut last = vec![0; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().filter_map(|i| i.value()).for_each(|v| last[v.index()] = i);
    }
    graph.results.iter().for_each(|r| last[r.index()] = graph.nodes.len());
    let mut live: BTreeSet<ValueId> = BTreeSet::new();
    let mut weighed = BTreeSet::new();
    let mut cuts = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let matrix = |input: &Operand| match input {
            Operand::Weight(w) => module.weights[*w].ty.dims.len() == 2,
            Operand::Value(v) => weighed.contains(v),
            Operand::State(_) => false,
        };
        if node.inputs.iter().any(matrix) {
            weighed.extend(node.outputs.iter().copied());
            live.extend(node.outputs.iter().copied());
        }
        live.retain(|v| last[v.index()] > i);
        let alike = |v: &ValueId| {
            cuts.first().is_none_or(|(_, w): &(usize, ValueId)| graph.values[*w].ty == graph.values[*v].ty)
        };
        if let (1, Some(v)) = (live.len(), live.first().filter(|v| node.outputs.contains(v) && alike(v))) {
            cuts.push((i, *v));
        }
    }
    cuts
}

/// The text of a few nodes without what only tells layers apart.
fn kind(module: &Module, graph: &Graph, nodes: Range<usize>, from: ValueId, patterns: &[String]) -> String {
    let mut inside = BTreeMap::from([(from, 0)]);
    let mut text = String::new();
    for node in &graph.nodes[nodes] {
        text.push_str(&format!("{:?}", node.op));
        for input in &node.inputs {
            match input {
                Operand::Weight(w) => {
                    let weight = &module.weights[*w];
                    let asked: Vec<&String> = patterns.iter().filter(|p| weight.name.contains(*p)).collect();
                    let name: String = weight.name.chars().filter(|c| !c.is_ascii_digit()).collect();
                    let made = matches!(weight.def, WeightDef::Expr(..));
                    text.push_str(&format!(" {name} {} {asked:?} {made}", weight.ty));
                }
                Operand::Value(v) => match inside.get(v) {
                    Some(n) => text.push_str(&format!(" %{n}")),
                    None => text.push_str(&format!(" {}", graph.values[*v].name)),
                },
                Operand::State(s) => text.push_str(&format!(" {}", module.states[*s].ty)),
            }
        }
        for out in &node.outputs {
            let n = inside.len();
            inside.insert(*out, n);
        }
        text.push('\n');
    }
    text
}

/// Features of the embedding's rows.
fn widest(module: &Module) -> usize {
    let embed = |n: &Node| match n.op {
        Op::Embed {} => n.inputs[1].weight().and_then(|w| module.weights[w].ty.dims[1].fixed()),
        _ => None,
    };
    module.graphs.iter().flat_map(|g| &g.nodes).find_map(embed).unwrap_or(0)
}

/// A size over a factor, in whole units; small ones stay, and those of vocabularies get their own.
fn size(n: usize, factor: usize) -> usize {
    match n {
        _ if n <= 2 * UNIT => n,
        _ if n.is_multiple_of(UNIT) && n <= WIDEST => (n / UNIT).div_ceil(factor) * UNIT,
        _ => n.min(VOCABULARY),
    }
}

fn resize(module: &mut Module, factor: usize) {
    let cut = |ty: &mut Type| {
        for dim in &mut ty.dims {
            if let Dim::Fixed(n) = dim {
                *n = size(*n, factor);
            }
        }
    };
    module.weights.iter_mut().for_each(|(_, w)| cut(&mut w.ty));
    for graph in &mut module.graphs {
        graph.values.iter_mut().for_each(|(_, v)| cut(&mut v.ty));
    }
}

/// The corners of a model's weights.
pub struct Corners<'a> {
    /// The whole ones.
    pub weights: &'a dyn WeightSource,
    /// What they are cut to.
    pub cut: &'a Cut,
}

impl WeightSource for Corners<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let Some(&(from, to)) = self.cut.columns.get(name).filter(|(from, to)| from != to) else {
            return self.weights.read_rows(name, rows, out);
        };
        let mut row = vec![0.0; from];
        for (r, out) in rows.zip(out.chunks_exact_mut(to)) {
            self.weights.read_rows(name, r..r + 1, &mut row)?;
            out.copy_from_slice(&row[..to]);
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        match self.cut.columns.get(name) {
            Some((from, to)) if from != to => Err(Error::new(name, "cannot be cut: it holds no floats")),
            _ => self.weights.read_bytes(name, rows, out),
        }
    }

    fn read_codes(&self, name: &str, format: QuantFormat, rows: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        let Some(&(from, to)) = self.cut.columns.get(name).filter(|(from, to)| from != to) else {
            return self.weights.read_codes(name, format, rows, out);
        };
        let (groups, few) = (format.groups(from), format.groups(to));
        let mut row = (vec![0; from], vec![0.0; groups], vec![0.0; if format.has_min() { groups } else { 0 }]);
        for (i, r) in rows.enumerate() {
            let whole = CodeRows { codes: &mut row.0, scales: &mut row.1, mins: &mut row.2 };
            self.weights.read_codes(name, format, r..r + 1, whole)?;
            out.codes[i * to..][..to].copy_from_slice(&row.0[..to]);
            out.scales[i * few..][..few].copy_from_slice(&row.1[..few]);
            if format.has_min() {
                out.mins[i * few..][..few].copy_from_slice(&row.2[..few]);
            }
        }
        Ok(())
    }

    fn release_rows(&self, name: &str, rows: Range<usize>) {
        self.weights.release_rows(name, rows);
    }
}
