//! Raising: what a foreign graph spells in arithmetic becomes the op that it means, proven by computing both.
//!
//! The first passes turn a graph of any rank into one of any rank: `raise-norm`, `raise-activation`, `raise-rope`,
//! `raise-attention`. `raise-rows` turns the graph of a generator, once that is raised, into the two-dimensional one that a
//! front end builds. No pass looks at names or at who wrote a graph, and none claims more than it computed: what looks like a
//! pattern and is none stays, and is noted with its reason.

pub(crate) mod activation;
pub(crate) mod attention;
mod ends;
mod look;
mod mask;
pub(crate) mod norm;
mod region;
mod roles;
pub(crate) mod rope;
pub(crate) mod rows;
mod scores;
mod sides;
mod theta;
mod view;
mod weights;

use crate::Note;
use dlx_ir::{DType, Error, Module, Op, Operand, Rewrite, Rewriter, ValueId, rewrite};
use look::Look;
use std::collections::BTreeMap;

/// Adds up what a pass changes in each graph.
fn each_graph(
    module: &mut Module,
    notes: &mut Vec<Note>,
    run: fn(&mut Module, usize, &mut Vec<Note>) -> Result<usize, Error>,
) -> Result<usize, Error> {
    (0..module.graphs.len()).map(|g| run(module, g, notes)).sum()
}

/// What is found at the nodes of a graph, by their indices; nothing changes before all is found.
fn find_all<T>(
    module: &Module,
    graph: usize,
    find: &mut dyn FnMut(Look<'_>, ValueId) -> Option<T>,
) -> BTreeMap<usize, T> {
    let graph = &module.graphs[graph];
    let defs = graph.definitions();
    let look = Look::new(module, graph, &defs);
    let roots = graph.nodes.iter().enumerate().filter_map(|(i, n)| Some((i, *n.outputs.first()?)));
    roots.filter_map(|(i, root)| Some((i, find(look, root)?))).collect()
}

/// Puts something in the place of the nodes at which it was found.
fn replace_all<T>(
    module: &mut Module,
    graph: usize,
    found: &BTreeMap<usize, T>,
    make: &mut dyn FnMut(&mut Rewriter<'_>, &str, &T) -> Result<ValueId, Error>,
) -> Result<usize, Error> {
    if found.is_empty() {
        return Ok(0);
    }
    let done = rewrite(module, graph, &mut |rw, node| {
        let Some(found) = found.get(&rw.index) else { return Ok(Rewrite::Keep) };
        let name = rw.old_name(node, 0);
        Ok(Rewrite::Replace(vec![make(rw, &name, found)?]))
    })?;
    Ok(done.changes)
}

/// The value of the new graph for one of the old graph, converted to a type.
fn in_type(rw: &mut Rewriter<'_>, old: ValueId, dtype: DType) -> Result<ValueId, Error> {
    let name = &rw.old.values[old].name;
    let value = rw.mapped(old).ok_or_else(|| Error::new(format!("%{name}"), "a dropped value is still read"))?;
    emit_cast(rw, value, dtype)
}

fn emit_cast(rw: &mut Rewriter<'_>, value: ValueId, dtype: DType) -> Result<ValueId, Error> {
    if rw.graph.values[value].ty.dtype == dtype {
        Ok(value)
    } else {
        emit(rw, Op::Cast { to: dtype, wrap: false }, [value], "cast")
    }
}

fn emit<const N: usize>(rw: &mut Rewriter<'_>, op: Op, inputs: [ValueId; N], name: &str) -> Result<ValueId, Error> {
    Ok(rw.emit(op, inputs.map(Operand::Value).to_vec(), &[name])?[0])
}
