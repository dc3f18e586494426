//! An entry of a program node by node, and folded: nodes that are the same in every layer are one line.
//!
//! Invariant: every node of the graph is in exactly one line, and lines stand in the order of their first nodes.

use dlx_ir::{EntryKind, Error, Graph, Module, Node, SpanRows, Type};

use super::limits::Limits;
use super::predict::{Call, Estimate, Program, Work};
use super::tokens::Asked;

/// A node of an entry, or the nodes of all layers that are alike.
#[derive(Clone, Debug)]
pub struct Line {
    /// Op and role, such as `linear q k v`.
    pub name: String,
    /// The nodes, by their places in the graph.
    pub nodes: Vec<usize>,
    /// What they have to do together.
    pub work: Work,
    /// How long they are predicted to take together, if limits are known.
    pub estimate: Option<Estimate>,
}

/// An entry, as often as a call runs it.
#[derive(Clone, Debug)]
pub struct Entry<'m> {
    /// The graph.
    pub graph: &'m Graph,
    /// Its lines.
    pub lines: Vec<Line>,
}

impl<'m> Entry<'m> {
    /// The entry that runs `rows` rows of `spans`; a head runs the rows of a larger step in parts.
    ///
    /// # Errors
    /// When there is no such entry, or limits do not say how long a node takes.
    pub fn new(
        program: &Program<'m>,
        limits: Option<&Limits>,
        kind: EntryKind,
        rows: usize,
        spans: &[SpanRows],
    ) -> Result<Self, Error> {
        let none = || Error::new("program", format!("it has no {kind} entry"));
        let graph = program.graph(kind, rows).ok_or_else(none)?;
        let set = program.working_set(spans);
        let largest = dlx_ir::Entry::of(graph).map_err(|e| Error::new(&graph.name, e))?.rows.max(1);
        let (whole, rest) = (rows / largest, rows % largest);
        let parts = [(largest, whole), (rest, 1)].into_iter().filter(|(rows, times)| rows * times > 0);
        let parts: Vec<(usize, usize)> = parts.collect();
        let node = |index: usize, node: &Node| {
            let mut work = Work::default();
            let mut estimate = limits.map(|_| Estimate::default());
            for &(rows, times) in &parts {
                // Its graph is that of its own rows: only its size is another.
                let graph = program.graph(kind, rows).ok_or_else(none)?;
                let spans = if kind == EntryKind::Step { spans } else { &[] };
                let call = Call { graph, rows, spans };
                let node = graph.nodes.get(index).unwrap_or(node);
                for _ in 0..times {
                    work.add(&program.work(&call, node)?);
                    if let (Some(limits), Some(estimate)) = (limits, &mut estimate) {
                        estimate.add(&program.estimate(limits, &call, node, set)?);
                    }
                }
            }
            let name = label(graph, node);
            Ok(Line { name, nodes: vec![index], work, estimate })
        };
        let lines: Result<_, Error> = graph.nodes.iter().enumerate().map(|(i, n)| node(i, n)).collect();
        Ok(Entry { graph, lines: lines? })
    }

    /// The same entry with the nodes of all layers that are alike on one line.
    #[must_use]
    pub fn folded(&self, module: &Module) -> Self {
        let mut lines: Vec<(Vec<&Type>, Line)> = Vec::new();
        for line in &self.lines {
            let nodes = line.nodes.iter().map(|n| &self.graph.nodes[*n]);
            let types: Vec<&Type> = nodes.flat_map(|n| types(module, self.graph, n)).collect();
            match lines.iter_mut().find(|(same, first)| first.name == line.name && *same == types) {
                Some((_, first)) => {
                    first.nodes.extend(&line.nodes);
                    first.work.add(&line.work);
                    if let (Some(sum), Some(more)) = (&mut first.estimate, &line.estimate) {
                        sum.add(more);
                    }
                }
                None => lines.push((types, line.clone())),
            }
        }
        Entry { graph: self.graph, lines: lines.into_iter().map(|(_, line)| line).collect() }
    }

    /// What all nodes have to do.
    pub fn work(&self) -> Work {
        self.lines.iter().fold(Work::default(), |mut sum, line| {
            sum.add(&line.work);
            sum
        })
    }

    /// How long all nodes are predicted to take.
    pub fn estimate(&self) -> Option<Estimate> {
        self.lines.iter().try_fold(Estimate::default(), |mut sum, line| {
            sum.add(&line.estimate?);
            Some(sum)
        })
    }
}

/// Predicted seconds of calls, one after the other.
///
/// # Errors
/// As [`Entry::new`].
pub fn seconds(program: &Program<'_>, limits: &Limits, calls: &[Asked]) -> Result<f64, Error> {
    let (mut sum, mut last) = (0.0, &[][..]);
    for call in calls {
        let (kind, rows) = match call {
            Asked::Step(spans) => {
                last = spans;
                (EntryKind::Step, spans.iter().map(|s| s.rows.len()).sum())
            }
            Asked::Head(rows) => (EntryKind::Head, *rows),
            Asked::Logits(rows) => (EntryKind::Logits, *rows),
        };
        sum += Entry::new(program, Some(limits), kind, rows, last)?.estimate().map_or(0.0, |e| e.seconds);
    }
    Ok(sum)
}

/// Op and roles of the results: what their names say behind the layer's.
fn label(graph: &Graph, node: &Node) -> String {
    let names = node.outputs.iter().map(|o| graph.values[*o].name.as_str());
    let roles = names.map(|name| name.split_once('.').map_or(name, |(_, role)| role));
    [node.op.name()].into_iter().chain(roles).collect::<Vec<_>>().join(" ")
}

fn types<'a>(module: &'a Module, graph: &'a Graph, node: &'a Node) -> impl Iterator<Item = &'a Type> {
    let inputs = node.inputs.iter().map(|i| module.operand_type(graph, *i));
    inputs.chain(node.outputs.iter().map(|o| &graph.values[*o].ty))
}

#[cfg(test)]
mod tests {
    use dlx_ir::parse;

    use super::super::limits::tests::round;
    use super::*;

    #[test]
    fn layers_that_are_alike_are_one_line_and_others_are_not() {
        let module = parse(
            "module @m {
               weight @a: q4g32[64, 64] @n16 = stored {offset=0, bytes=4608}
               weight @b: q4g32[64, 64] @n16 = stored {offset=0, bytes=4608}
               weight @c: q8[64, 64] @n16 = stored {offset=0, bytes=8448}
               weight @head: q4g32[128, 64] @n16 = stored {offset=0, bytes=9216}
               weight @table: q4g32[128, 64] @n16 = stored {offset=0, bytes=9216}
               state @hidden: f32[8, 64]
               graph @step_8(%ids: i32[8], %pos: i32[8], %spans: i32[64, 5]) -> () {
                 %x = embed %ids, @table: f32[8, 64]
                 %l0.o = linear %x, @a: f32[8, 64]
                 %l1.o = linear %l0.o, @b: f32[8, 64]
                 %l2.o = linear %l1.o, @c: f32[8, 64]
                 store_rows %l2.o, @hidden
                 return
               }
               graph @head_4(%rows: i32[4]) -> (i32[4], f32[4, 3]) {
                 %y = take_rows @hidden, %rows: f32[4, 64]
                 %best, %stats = head_stats %y, @head: i32[4], f32[4, 3]
                 return %best, %stats
               }
             }",
        )
        .unwrap();
        let program = Program::new(&module).unwrap();
        let (machine, spans) = (round(), [SpanRows { rows: 0..6, slot: 0, at: 0, from: 0, visible: 6 }]);
        let limits = machine.of(2);
        let entry = Entry::new(&program, limits, EntryKind::Step, 6, &spans).unwrap();
        assert_eq!((entry.graph.name.as_str(), entry.lines.len()), ("step_8", 5));
        let folded = entry.folded(&module);
        let lines: Vec<_> = folded.lines.iter().map(|l| (l.name.as_str(), &l.nodes[..])).collect();
        let wanted = [("embed x", &[0][..]), ("linear o", &[1, 2]), ("linear o", &[3]), ("store_rows", &[4])];
        assert_eq!(lines, wanted);
        assert_eq!(folded.lines[1].work.operations, 2 * 2 * 6 * 64 * 64);
        assert_eq!((folded.work(), folded.lines[1].work.weight_bytes), (entry.work(), 9216));
        let (all, sum) = (entry.estimate().unwrap(), folded.estimate().unwrap());
        assert!((all.seconds / sum.seconds - 1.0).abs() < 1e-12);

        // Six rows of a head that takes four are a head of four and one of two.
        let head = |rows| Entry::new(&program, limits, EntryKind::Head, rows, &spans).unwrap();
        let parts = [4, 2].map(|rows| head(rows).estimate().unwrap().seconds);
        assert!((head(6).estimate().unwrap().seconds / (parts[0] + parts[1]) - 1.0).abs() < 1e-12);
        assert_eq!(head(6).work().weight_bytes, 2 * 9216);
        let calls = [Asked::Step(spans.to_vec()), Asked::Head(6)];
        let whole = seconds(&program, machine.of(2).unwrap(), &calls).unwrap();
        assert!((whole / (all.seconds + parts[0] + parts[1]) - 1.0).abs() < 1e-12);
        let logits = seconds(&program, machine.of(2).unwrap(), &[Asked::Logits(1)]).unwrap_err().to_string();
        assert!(logits.contains("no logits entry"), "{logits}");
    }
}
