//! Which lines of one stage are those of the next: what passes changed, and what the page compares any two stages by.
//!
//! A line is a node, a weight, a state, or the head or end of a graph. Invariant: two lines of different stages have the
//! same identity exactly if each stage between them was matched with the next; they say the same if also their contents
//! are the same, in which operands are identities, so that a number in a name changes nothing.

use std::collections::{HashMap, HashSet};

use dlx_ir::{Graph, Module, Node, Operand, ValueId};
use serde::Serialize;

use super::dump::Stage;
use super::lines::{Line, Lines, layer_of};

/// A line of a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Item {
    /// What it is through all stages.
    pub(super) id: usize,
    /// What it says.
    pub(super) content: usize,
    /// Its text.
    pub(super) line: Line,
}

/// A graph of a stage, or, under an empty name, its weights and states.
#[derive(PartialEq, Debug)]
pub(super) struct Part {
    /// Name of the graph.
    pub(super) name: String,
    /// Place among the parts of its stage.
    pub(super) place: usize,
    /// Place of the part in the stage before that this one was made from.
    pub(super) from: Option<usize>,
    /// Its lines in order.
    pub(super) items: Vec<Item>,
}

/// Lines that came, went or say something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Change {
    pub(super) added: usize,
    pub(super) removed: usize,
    pub(super) rewritten: usize,
}

/// Numbers for texts, and for lines that no line before was.
#[derive(Default)]
pub(super) struct Identities {
    next: usize,
    contents: HashMap<String, usize>,
}

/// The parts of a stage, matched with those of the one before.
pub(super) fn parts(
    stage: &Stage,
    before: Option<(&Stage, &[Part])>,
    identities: &mut Identities,
    lines: &mut Lines,
) -> Vec<Part> {
    let module = &stage.module;
    let old = before.and_then(|(_, parts)| parts.first());
    let mut parts = vec![globals(module, before.map(|(stage, _)| &stage.module).zip(old), identities, lines)];
    for graph in &module.graphs {
        let from = before.and_then(|(stage, _)| parent(graph, &stage.module));
        let old = before
            .zip(from)
            .map(|((stage, parts), from)| (&stage.module, &stage.module.graphs[from], &parts[from + 1]));
        let items = Matcher::new(module, graph, identities, lines).items(old);
        parts.push(Part { name: graph.name.clone(), place: parts.len(), from: from.map(|from| from + 1), items });
    }
    parts
}

/// How the parts of a stage differ from those of the stage before. A line is gone when no part has it any more, and new
/// when none had it; a part that several were made from is compared with each.
pub(super) fn change(old: &[Part], new: &[Part]) -> Change {
    let ids = |parts: &[Part]| parts.iter().flat_map(|p| &p.items).map(|item| item.id).collect::<HashSet<usize>>();
    let (had, has) = (ids(old), ids(new));
    let mut change = Change { removed: had.difference(&has).count(), ..Change::default() };
    for part in new {
        let from = part.from.and_then(|from| old.iter().find(|old| old.place == from));
        let from = from.into_iter().flat_map(|p| &p.items).map(|item| (item.id, item.content));
        let from: HashMap<usize, usize> = from.collect();
        for item in &part.items {
            change.added += usize::from(!had.contains(&item.id));
            change.rewritten += usize::from(from.get(&item.id).is_some_and(|content| *content != item.content));
        }
    }
    change
}

impl Identities {
    fn fresh(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn content(&mut self, text: String) -> usize {
        let next = self.contents.len();
        *self.contents.entry(text).or_insert(next)
    }
}

/// Weights and states, which are what their names say.
fn globals(module: &Module, old: Option<(&Module, &Part)>, identities: &mut Identities, lines: &mut Lines) -> Part {
    let names = |module: &Module| -> Vec<String> {
        module
            .weights
            .iter()
            .map(|(_, w)| w.name.clone())
            .chain(module.states.iter().map(|(_, s)| s.name.clone()))
            .collect()
    };
    let known: HashMap<String, usize> = old
        .map(|(module, part)| names(module).into_iter().zip(part.items.iter().map(|item| item.id)).collect())
        .unwrap_or_default();
    let weights = module.weights.iter().map(|(_, w)| module.weight_text(w));
    let texts = weights.chain(module.states.iter().map(|(_, s)| format!("state @{}: {}", s.name, s.ty)));
    let items = names(module).into_iter().zip(texts).map(|(name, text)| {
        let id = known.get(&name).copied().unwrap_or_else(|| identities.fresh());
        Item { id, line: lines.put(&text, layer_of(&name)), content: identities.content(text) }
    });
    Part { name: String::new(), place: 0, from: old.map(|_| 0), items: items.collect() }
}

/// The graph that another was made from: the one of its name, else the one that has most of its values.
fn parent(graph: &Graph, before: &Module) -> Option<usize> {
    if let Some(same) = before.graphs.iter().position(|g| g.name == graph.name) {
        return Some(same);
    }
    let shared = |old: &Graph| graph.values.iter().filter(|(_, v)| old.values.find(&v.name).is_some()).count();
    let shared = before.graphs.iter().map(shared).enumerate().filter(|(_, n)| *n > 0);
    // Of equals the first.
    shared.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(place, _)| place)
}

/// Matches the lines of a graph.
struct Matcher<'m, 'i> {
    module: &'m Module,
    graph: &'m Graph,
    identities: &'i mut Identities,
    lines: &'i mut Lines,
}

/// What makes a value, as far as another graph can know it: the identity of its node and which result, or a name.
type Source = (usize, String);

impl<'m, 'i> Matcher<'m, 'i> {
    fn new(module: &'m Module, graph: &'m Graph, identities: &'i mut Identities, lines: &'i mut Lines) -> Self {
        Matcher { module, graph, identities, lines }
    }

    fn items(mut self, old: Option<(&Module, &Graph, &Part)>) -> Vec<Item> {
        let mut by_name: HashMap<String, usize> = HashMap::new();
        let mut by_content: HashMap<String, Vec<usize>> = HashMap::new();
        let (mut head, mut end) = (None, None);
        if let Some((module, graph, part)) = old {
            head = part.items.first().map(|item| item.id);
            end = part.items.last().map(|item| item.id);
            let ids = part.items.iter().skip(1).map(|item| item.id);
            let ids: Vec<usize> = ids.take(graph.nodes.len()).collect();
            let sources = sources(graph, &ids);
            let keys = keys(module, graph);
            for (i, node) in graph.nodes.iter().enumerate() {
                by_name.entry(keys[i].clone()).or_insert(ids[i]);
                by_content.entry(does(module, graph, node, &sources)).or_default().push(ids[i]);
            }
        }
        let keys = keys(self.module, self.graph);
        let named: Vec<Option<usize>> = keys.iter().map(|key| by_name.remove(key)).collect();
        let mut taken: Vec<usize> = named.iter().flatten().copied().collect();
        taken.sort_unstable();
        let mut ids = Vec::with_capacity(keys.len());
        let mut sources = params(self.graph);
        for (node, named) in self.graph.nodes.iter().zip(named) {
            // One that has another name now does the same with the same operands.
            let same = || {
                let same = by_content.get(&does(self.module, self.graph, node, &sources))?;
                same.iter().copied().find(|id| taken.binary_search(id).is_err() && !ids.contains(id))
            };
            let id = named.or_else(same).unwrap_or_else(|| self.identities.fresh());
            ids.push(id);
            define(node, id, &mut sources);
        }
        let head = head.unwrap_or_else(|| self.identities.fresh());
        let end = end.unwrap_or_else(|| self.identities.fresh());
        self.lined(&ids, &sources, head, end)
    }

    /// The lines with their contents.
    fn lined(&mut self, ids: &[usize], sources: &HashMap<ValueId, Source>, head: usize, end: usize) -> Vec<Item> {
        let (module, graph) = (self.module, self.graph);
        let value = |id: &ValueId| format!("%{}: {}", graph.values[*id].name, type_text(graph, *id));
        let list = |ids: &[ValueId]| ids.iter().map(value).collect::<Vec<_>>().join(", ");
        let text = format!("graph @{}({})", graph.name, list(&graph.params));
        let mut items = vec![self.item(head, text.clone(), text)];
        for (node, id) in graph.nodes.iter().zip(ids) {
            let types: Vec<String> = node.outputs.iter().map(|o| type_text(graph, *o)).collect();
            let content = format!("{}: {}{}", does(module, graph, node, sources), types.join(", "), node.origin);
            let line = self.lines.put(&module.node_text(graph, node), node_layer(module, graph, node));
            items.push(Item { id: *id, content: self.identities.content(content), line });
        }
        let results: Vec<_> =
            graph.results.iter().map(|r| format!("{} {}", source(sources, *r), type_text(graph, *r))).collect();
        items.push(self.item(end, format!("return {}", list(&graph.results)), results.join(", ")));
        items
    }

    fn item(&mut self, id: usize, text: String, content: String) -> Item {
        Item { id, line: self.lines.put(&text, None), content: self.identities.content(content) }
    }
}

/// The layer of a node: that of its first result, or of the state that it writes when it has none.
pub(super) fn node_layer(module: &Module, graph: &Graph, node: &Node) -> Option<u32> {
    match node.outputs.first() {
        Some(out) => layer_of(&graph.values[*out].name),
        None => node.inputs.iter().find_map(|input| layer_of(&module.states[input.state()?].name)),
    }
}

fn operand_name<'m>(module: &'m Module, graph: &'m Graph, operand: Operand) -> &'m str {
    match operand {
        Operand::Value(v) => &graph.values[v].name,
        Operand::Weight(w) => &module.weights[w].name,
        Operand::State(s) => &module.states[s].name,
    }
}

fn type_text(graph: &Graph, id: ValueId) -> String {
    let value = &graph.values[id];
    let slot = value.slot.map_or_else(String::new, |slot| format!(" at {slot}"));
    format!("{}{slot}", value.ty)
}

/// What each node is known by: the name of its first result; one without by its op and its states, counted.
fn keys(module: &Module, graph: &Graph) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let key = |node: &Node| match node.outputs.first() {
        Some(out) => format!("%{}", graph.values[*out].name),
        None => {
            let states = node.inputs.iter().filter(|i| i.state().is_some());
            let states: Vec<_> = states.map(|i| operand_name(module, graph, *i)).collect();
            let key = format!("{} {}", node.op.name(), states.join(" "));
            let count = seen.entry(key.clone()).or_default();
            *count += 1;
            format!("{key} {count}")
        }
    };
    graph.nodes.iter().map(key).collect()
}

fn params(graph: &Graph) -> HashMap<ValueId, Source> {
    graph.params.iter().map(|p| (*p, (0, graph.values[*p].name.clone()))).collect()
}

fn define(node: &Node, id: usize, sources: &mut HashMap<ValueId, Source>) {
    sources.extend(node.outputs.iter().enumerate().map(|(i, out)| (*out, (id, i.to_string()))));
}

fn sources(graph: &Graph, ids: &[usize]) -> HashMap<ValueId, Source> {
    let mut sources = params(graph);
    graph.nodes.iter().zip(ids).for_each(|(node, id)| define(node, *id, &mut sources));
    sources
}

/// What makes a value; a value that nothing makes has a name that no node has.
fn source(sources: &HashMap<ValueId, Source>, value: ValueId) -> String {
    sources.get(&value).map_or_else(|| "#".to_owned(), |(id, which)| format!("#{id}.{which}"))
}

/// What a node does, with operands as what makes them.
fn does(module: &Module, graph: &Graph, node: &Node, sources: &HashMap<ValueId, Source>) -> String {
    let operand = |operand: &Operand| match operand.value() {
        Some(value) => source(sources, value),
        None => format!("@{}", operand_name(module, graph, *operand)),
    };
    let operands: Vec<String> = node.inputs.iter().map(operand).collect();
    format!("{:?} {}", node.op, operands.join(", "))
}

/// Names of ops and how many nodes have them, by name.
pub(super) fn ops(module: &Module) -> std::collections::BTreeMap<&'static str, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for node in module.graphs.iter().flat_map(|g| &g.nodes) {
        *counts.entry(node.op.name()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(text: &str) -> Stage {
        Stage { number: 0, pass: String::new(), file: String::new(), module: dlx_ir::parse(text).unwrap() }
    }

    fn graph(name: &str, body: &str) -> String {
        format!(
            "module @m {{ weight @w: f32[2] state @s: f32[2, 2] graph @{name}(%x: f32[2, 2]) -> (f32[2, 2]) {{ {body} }} }}"
        )
    }

    /// What became of the first graph, and how its lines differ.
    fn changed(before: &str, after: &str) -> (Change, Vec<Part>) {
        let (before, after) = (stage(before), stage(after));
        let (mut identities, mut lines) = (Identities::default(), Lines::default());
        let old = parts(&before, None, &mut identities, &mut lines);
        let new = parts(&after, Some((&before, &old)), &mut identities, &mut lines);
        assert_eq!(change(&old[..1], &new[..1]), Change::default(), "weights and states are the same");
        (change(&old[1..], &new[1..]), new)
    }

    #[test]
    fn another_number_in_a_name_is_no_change() {
        let before = graph("g", "%v.1 = silu %x: f32[2, 2] %v.2 = silu %v.1: f32[2, 2] return %v.2");
        let after = graph("g", "%v.7 = silu %x: f32[2, 2] %v.9 = silu %v.7: f32[2, 2] return %v.9");
        let (change, _) = changed(&before, &after);
        assert_eq!(change, Change::default());
    }

    #[test]
    fn nodes_come_go_and_change_by_the_names_of_their_results() {
        let before = graph(
            "forward",
            "%a = silu %x: f32[2, 2] %b = rms_norm %a, @w {eps=1}: f32[2, 2] %c = add %b, %x: f32[2, 2] store_rows %c, @s return %c",
        );
        let after = graph(
            "step_2",
            "%b = rms_norm %x, @w {eps=1}: f32[2, 2] %c = add %b, %x: f32[2, 2] %d = silu %c: f32[2, 2] store_rows %c, @s return %c",
        );
        let (change, parts) = changed(&before, &after);
        // The head (its name), and %b which reads %x now.
        assert_eq!(change, Change { added: 1, removed: 1, rewritten: 2 });
        assert_eq!(parts[1].from, Some(1));
    }

    #[test]
    fn a_graph_of_nothing_before_is_new() {
        let before = graph("g", "%a = silu %x: f32[2, 2] return %a");
        let after = "module @m { weight @w: f32[2] state @s: f32[2, 2] graph @other(%i: f32[2]) -> (f32[2]) { %k = silu %i: f32[2] return %k } }";
        let (change, parts) = changed(&before, after);
        assert_eq!((change, parts[1].from), (Change { added: 3, removed: 3, ..Change::default() }, None));
    }

    #[test]
    fn what_one_of_several_graphs_keeps_is_not_gone() {
        let body = "%a = silu %x: f32[2, 2] %b = silu %a: f32[2, 2]";
        let before = graph("step", &format!("{body} return %b"));
        let split =
            format!(" graph @head(%x: f32[2, 2]) -> (f32[2, 2]) {{ {body} %c = silu %b: f32[2, 2] return %c }} }}");
        let after = format!(
            "{}{split}",
            graph("step", "%a = silu %x: f32[2, 2] return %a").trim_end_matches([' ', '}']).to_owned() + " }"
        );
        let (change, _) = changed(&before, &after);
        // New is %c; other are the end of the step, and the head's first and last lines.
        assert_eq!(change, Change { added: 1, removed: 0, rewritten: 3 });
    }
}
