//! Whether every name of a graph is defined once, and in which order its nodes can run.
//!
//! Invariant: after [`check`], each name is defined once where it can be seen, whatever is read is defined, and every node
//! stands after those that it, or a graph inside it, reads. Nodes that were in such an order stay where they were; of others,
//! each comes as early as its place in the file allows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;

use dlx_ir::Error;

use super::graph::{Graph, Node};

/// Most nodes of a cycle that a message lists.
const SHOWN: usize = 8;

/// What defines a name.
#[derive(Clone, Copy, Debug)]
enum Definition {
    Input,
    Initializer,
    Node(usize),
}

/// The names of a graph, and of those that it lies in.
struct Scope<'a> {
    names: BTreeMap<String, Definition>,
    outer: Option<&'a Scope<'a>>,
}

/// What [`check`] found of a graph.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Names of outer graphs that it reads.
    captured: BTreeSet<String>,
    /// Whether its nodes, or those of a graph inside it, were not in order.
    pub(super) sorted: bool,
}

/// Checks the names of a graph and of all inside it, and puts nodes in order. `what` names the graph in messages.
///
/// # Errors
/// When a name is not defined, defined twice or again inside, or nodes read each other in a circle.
pub(super) fn check(path: &Path, what: &str, graph: &mut Graph) -> Result<Checked, Error> {
    inside(&format!("{}: {what}", path.display()), graph, None)
}

fn inside(place: &str, graph: &mut Graph, outer: Option<&Scope<'_>>) -> Result<Checked, Error> {
    let scope = Scope::of(place, graph, outer)?;
    let mut checked = Checked::default();
    let mut needs: Vec<BTreeSet<usize>> = Vec::with_capacity(graph.nodes.len());
    for i in 0..graph.nodes.len() {
        let Some(node) = graph.nodes.get_mut(i) else { break };
        let mut reads: BTreeSet<String> = node.inputs.iter().filter(|name| !name.is_empty()).cloned().collect();
        let own = node.place();
        for (attr, graphs) in &mut node.graphs {
            for inner in graphs {
                let found = inside(&format!("{own}: graph {attr:?}"), inner, Some(&scope))?;
                checked.sorted |= found.sorted;
                reads.extend(found.captured);
            }
        }
        let mut before = BTreeSet::new();
        for name in reads {
            match scope.names.get(&name) {
                Some(Definition::Node(j)) => drop(before.insert(*j)),
                Some(_) => {}
                None if scope.outer_has(&name) => drop(checked.captured.insert(name)),
                None => {
                    let message = format!("reads {name:?}, which no input, initializer or node defines");
                    return Err(
                        Error::new(own, message).help("the file is damaged or incomplete: export the model again")
                    );
                }
            }
        }
        needs.push(before);
    }
    for output in &graph.outputs {
        match scope.names.contains_key(&output.name) {
            true => {}
            false if scope.outer_has(&output.name) => drop(checked.captured.insert(output.name.clone())),
            false => {
                let message = format!("its output {:?} is not defined by any input, initializer or node", output.name);
                return Err(
                    Error::new(place, message).help("the file is damaged or incomplete: export the model again")
                );
            }
        }
    }
    let order = order(&needs);
    if order.len() < graph.nodes.len() {
        return Err(cycle(&graph.nodes, &needs, &order));
    }
    if order.iter().enumerate().any(|(i, j)| i != *j) {
        checked.sorted = true;
        let mut nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
        graph.nodes = order.iter().filter_map(|i| nodes.get_mut(*i)?.take()).collect();
    }
    Ok(checked)
}

impl<'a> Scope<'a> {
    fn of(place: &str, graph: &Graph, outer: Option<&'a Scope<'a>>) -> Result<Scope<'a>, Error> {
        let mut scope = Scope { names: BTreeMap::new(), outer };
        for input in &graph.inputs {
            if input.name.is_empty() {
                return Err(Error::new(place, "has an input without a name").help("export the model again"));
            }
            scope.define(place, graph, &input.name, Definition::Input)?;
        }
        for name in graph.initializers.keys() {
            scope.define(place, graph, name, Definition::Initializer)?;
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            for name in node.outputs.iter().filter(|name| !name.is_empty()) {
                scope.define(&node.place(), graph, name, Definition::Node(i))?;
            }
        }
        Ok(scope)
    }

    fn define(&mut self, place: &str, graph: &Graph, name: &str, what: Definition) -> Result<(), Error> {
        const HELP: &str = "export the model again; if you gave the exporter names of inputs or outputs, give others: \
            one of them is also the name of a value inside the model";
        let first = match self.names.insert(name.to_owned(), what) {
            Some(Definition::Input) => "an input is named so too".to_owned(),
            Some(Definition::Initializer) => "an initializer is named so too".to_owned(),
            Some(Definition::Node(j)) => {
                let node = graph.nodes.get(j).map(Node::label).unwrap_or_default();
                format!("{node} defines it too")
            }
            None if self.outer_has(name) => "a graph around this one defines it too".to_owned(),
            None => return Ok(()),
        };
        Err(Error::new(place, format!("defines {name:?}, and {first}")).help(HELP))
    }

    fn outer_has(&self, name: &str) -> bool {
        self.outer.is_some_and(|outer| outer.names.contains_key(name) || outer.outer_has(name))
    }
}

/// The order in which nodes can run, the first in the file first; without those that wait for ever.
fn order(needs: &[BTreeSet<usize>]) -> Vec<usize> {
    let mut readers = vec![Vec::new(); needs.len()];
    let mut waits: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
    for (i, before) in needs.iter().enumerate() {
        for j in before {
            readers.get_mut(*j).expect("nodes wait for nodes of their graph").push(i);
        }
    }
    let ready = waits.iter().enumerate().filter(|(_, n)| **n == 0);
    let mut ready: BinaryHeap<Reverse<usize>> = ready.map(|(i, _)| Reverse(i)).collect();
    let mut order = Vec::with_capacity(needs.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for reader in readers.get(i).into_iter().flatten() {
            if let Some(n) = waits.get_mut(*reader) {
                *n -= 1;
                ready.extend((*n == 0).then_some(Reverse(*reader)));
            }
        }
    }
    order
}

/// The error for nodes that read each other in a circle: those that `order` lacks.
fn cycle(nodes: &[Node], needs: &[BTreeSet<usize>], order: &[usize]) -> Error {
    let done: BTreeSet<usize> = order.iter().copied().collect();
    // Each of them waits for another of them, so following that one ends in a circle.
    let stuck = |i: &usize| !done.contains(i);
    let mut at = (0..nodes.len()).find(|i| stuck(i));
    let (mut seen, mut path) = (BTreeSet::new(), Vec::new());
    while let Some(i) = at.filter(|i| seen.insert(*i)) {
        path.push(i);
        at = needs.get(i).and_then(|before| before.iter().copied().find(stuck));
    }
    let start = path.iter().position(|i| Some(*i) == at).unwrap_or(0);
    let circle: Vec<&Node> = path.iter().skip(start).rev().filter_map(|i| nodes.get(*i)).collect();
    let names: Vec<String> = circle.iter().take(SHOWN).map(|node| node.label()).collect();
    let more = circle.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let place = circle.first().map(|node| node.place()).unwrap_or_default();
    let message = match names.as_slice() {
        [_] => "reads what it defines itself".to_owned(),
        _ => format!("is one of nodes that read each other in a circle: {}{more}", names.join(", ")),
    };
    Error::new(place, message).help("no such model can run: the file is damaged, export the model again")
}
