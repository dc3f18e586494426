//! A generator from an ONNX file: imported, raised, and shown not to depend on the length at which it was imported.

use std::collections::BTreeMap;

use dlx_ir::{Error, Mask, Module, Node, Op, Operand, VerifiedModule, WeightId};
use dlx_passes::{Report, parse_pipeline, run_pipeline};

use super::bind::{bind, fixed_length};
use super::file::OnnxModel;
use super::import::{Binding, Import, import};
use super::stored::Sources;
use super::weights::same_rows;

/// The passes that make model ops of an imported graph.
pub const RAISE: &str = "raise-activation,raise-norm,raise-rope,raise-attention,raise-rows,dce";

/// Those that any graph gains by.
pub const RAISE_GRAPHS: &str = "raise-activation,raise-norm,raise-rope,raise-attention,dce";

/// The longer of the two lengths at which a graph is imported. What masks and angles are is shown for all its positions.
const PROOF: usize = 256;

/// Most near misses that an error tells.
const MAX_MISSES: usize = 8;

/// A raised generator.
#[derive(Debug)]
pub struct Generator {
    /// `@forward(ids, pos) -> logits`, as from a checkpoint.
    pub module: VerifiedModule,
    /// Initializers behind its source weights.
    pub sources: Sources,
    /// The rule that its attention follows.
    pub mask: Mask,
    /// Ops that were raised to attention.
    pub attentions: usize,
    /// What the raise passes did, and near misses.
    pub reports: Vec<Report>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Imports and raises a generator. `rule` is the mask of its family, for graphs whose mask is an input; `positions` is the
/// most that it was made for.
///
/// # Errors
/// Nodes that cannot be imported or raised, or a graph that differs between lengths by more than its sizes.
pub fn generator(model: &OnnxModel, rule: Mask, positions: usize) -> Result<Generator, Error> {
    let block = rule.prefix_unit().unwrap_or(1);
    let short = fixed_length(model).unwrap_or((2 * block + 8).max(40));
    // Tables of a file may end before.
    let longer = || {
        let mut len = PROOF.max(4 * block).min(positions.max(2));
        loop {
            match at_length(model, len, rule) {
                Err(_) if len / 2 > short => len /= 2,
                other => return other.map(|g| (len, g)),
            }
        }
    };
    if fixed_length(model).is_some() {
        let mut only = at_length(model, short, rule)?;
        tie(model, &mut only)?;
        only.notes
            .push(format!("the file is for {short} tokens alone: that other lengths follow the same rules is assumed"));
        return Ok(only);
    }
    let (first, last) = rayon::join(|| at_length(model, short, rule), longer);
    let (first, (long, mut last)) = (first?, last?);
    if first.module.graphs != last.module.graphs || first.module.weights != last.module.weights {
        let differs = first.module.to_string();
        let other = last.module.to_string();
        let line = differs.lines().zip(other.lines()).find(|(a, b)| a != b);
        let (a, b) = line.unwrap_or(("", ""));
        let (a, b) = (a.trim(), b.trim());
        let message = format!("is another model for {short} tokens than for {long}: `{a}` became `{b}`");
        return Err(Error::new(model.path.display(), message)
            .help("export it with a dynamic sequence length that nothing else depends on"));
    }
    tie(model, &mut last)?;
    last.notes.push(format!("masks and angles were checked for the first {long} positions"));
    Ok(last)
}

/// Makes one weight of an embedding and a head that hold the same numbers: exporters store both, one of them turned.
fn tie(model: &OnnxModel, g: &mut Generator) -> Result<(), Error> {
    let graph = &g.module.graphs[0];
    let matrix = |n: &Node, i: usize| n.inputs.get(i).and_then(|o| o.weight());
    let table = graph.nodes.iter().find(|n| matches!(n.op, Op::Embed {})).and_then(|n| matrix(n, 1));
    let head = graph.nodes.iter().rev().find(|n| matches!(n.op, Op::Linear { .. })).and_then(|n| matrix(n, 1));
    let (Some(table), Some(head)) = (table, head) else { return Ok(()) };
    let weight = |id: WeightId| &g.module.weights[id];
    if table == head || weight(table).ty != weight(head).ty {
        return Ok(());
    }
    let stored = |id: WeightId| g.sources.0.get(&weight(id).name);
    let (Some(a), Some(b)) = (stored(table), stored(head)) else { return Ok(()) };
    if !same_rows(&a.recipe(model)?, &b.recipe(model)?)? {
        return Ok(());
    }
    g.notes.push(format!("{} is left out: it equals the embedding {}", weight(head).name, weight(table).name));
    let mut module = g.module.clone().into_inner();
    for input in module.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
        if *input == Operand::Weight(head) {
            *input = Operand::Weight(table);
        }
    }
    g.module = VerifiedModule::new(module).map_err(Error::first_of)?;
    Ok(())
}

fn at_length(model: &OnnxModel, len: usize, rule: Mask) -> Result<Generator, Error> {
    let bound = bind(model, len, rule)?;
    let Import { module, sources, notes, .. } = import(model, "onnx", &bound.binding)?;
    let module = VerifiedModule::new(module).map_err(Error::first_of)?;
    let (module, reports) = raise(module, RAISE)?;
    let nodes = || module.graphs.iter().flat_map(|g| &g.nodes);
    let attentions = nodes().filter(|n| matches!(n.op, Op::Attention { .. })).count();
    let mut masks: Vec<Mask> = nodes()
        .filter_map(|n| match n.op {
            Op::Mask { rule } => Some(rule),
            Op::Attention { mask, .. } => mask,
            _ => None,
        })
        .collect();
    masks.dedup();
    let &[mask] = &masks[..] else {
        let shown: Vec<_> = masks.iter().map(ToString::to_string).collect();
        return Err(Error::new(
            model.path.display(),
            format!("attends under {} masks: {}", masks.len(), shown.join(", ")),
        )
        .help("a generator has one mask for all its layers"));
    };
    let notes = bound.notes.into_iter().chain(notes).collect();
    Ok(Generator { module, sources, mask, attentions, reports, notes })
}

/// A graph of any kind, imported as it is for these shapes of its inputs, and raised.
#[derive(Debug)]
pub struct Plain {
    /// One graph, `@main`.
    pub module: VerifiedModule,
    /// Initializers behind its source weights.
    pub sources: Sources,
    /// Names of the results, in order.
    pub outputs: Vec<String>,
    /// What the raise passes did, and near misses.
    pub reports: Vec<Report>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Imports and raises a graph of any kind, without changing what it computes.
///
/// # Errors
/// Nodes that cannot be imported.
pub fn plain(model: &OnnxModel, name: &str, shapes: BTreeMap<String, Vec<usize>>) -> Result<Plain, Error> {
    let binding = Binding { shapes, exact: true, numbers: true, ..Binding::default() };
    let Import { module, sources, outputs, notes } = import(model, name, &binding)?;
    let module = VerifiedModule::new(module).map_err(Error::first_of)?;
    let (module, reports) = raise(module, RAISE_GRAPHS)?;
    Ok(Plain { module, sources, outputs, reports, notes })
}

/// Runs raise passes. What an earlier one left alone often says why a later one fails, so it is part of the error.
fn raise(module: VerifiedModule, pipeline: &str) -> Result<(VerifiedModule, Vec<Report>), Error> {
    let mut left = Vec::new();
    let mut observe = |_: usize, report: &Report, _: &Module| {
        left.extend(report.notes.iter().map(|note| format!("\n  {} left alone: {note}", report.name)));
        Ok(())
    };
    run_pipeline(module, &parse_pipeline(pipeline)?, &mut observe).map_err(|failure| {
        let mut error = failure.error;
        let more = left.len().saturating_sub(MAX_MISSES);
        error.message.extend(left.into_iter().take(MAX_MISSES));
        if more > 0 {
            error.message.push_str(&format!("\n  and {more} more"));
        }
        error
    })
}
