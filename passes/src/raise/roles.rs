//! The names and the order that a front end gives the nodes of `@forward`, so that graphs of one model are one text wherever
//! they come from. Where a node has no such role, names and order stay as they are.

use dlx_ir::{Graph, Id, Node, Op, Operand, ValueId};

/// Roles in a layer, in order.
const LAYER: &[&str] = &[
    "attn_norm",
    "q",
    "k",
    "v",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "q_scaled",
    "attn",
    "attn_out",
    "attn_sum",
    "mlp_norm",
    "gate",
    "up",
    "gate_silu",
    "mlp",
    "mlp_out",
    "out",
];

/// Roles before the layers, and behind them.
const BEFORE: &[&str] = &["embed", "embed_scaled", "mask", "rope"];
const BEHIND: &[&str] = &["final_norm", "logits", "logits_scaled"];

/// Where a node belongs: before, in or behind the layers, and there which role it has.
type Place = (usize, usize);

struct Roles<'a> {
    graph: &'a Graph,
    defs: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
    places: Vec<Option<Place>>,
    layers: usize,
}

/// The graph with its nodes named and in order.
pub(crate) fn in_order(graph: &Graph) -> Graph {
    let mut readers = vec![Vec::new(); graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().filter_map(|o| o.value()).for_each(|v| readers[v.index()].push(i));
    }
    let layers = graph.nodes.iter().filter(|n| matches!(n.op, Op::Attention { .. })).count();
    let places = vec![None; graph.nodes.len()];
    let mut roles = Roles { graph, defs: graph.definitions(), readers, places, layers };
    roles.find();
    let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
    if roles.places.iter().all(Option::is_some) {
        order.sort_by_key(|i| roles.places[*i]);
        if !is_schedule(graph, &order) {
            order.sort_unstable();
        }
    }
    renamed(graph, &order, &roles)
}

impl Roles<'_> {
    fn def(&self, operand: Operand) -> Option<(usize, &Node)> {
        let i = self.defs[operand.value()?.index()]?;
        Some((i, &self.graph.nodes[i]))
    }

    fn set(&mut self, index: usize, stage: usize, role: &str) {
        let of = match stage {
            0 => BEFORE,
            stage if stage <= self.layers => LAYER,
            _ => BEHIND,
        };
        let role = of.iter().position(|r| *r == role);
        self.places[index] = self.places[index].or(role.map(|role| (stage, role)));
    }

    /// The first reader of a value that is of some kind.
    fn reader(&self, value: ValueId, is: impl Fn(&Node) -> bool) -> Option<usize> {
        self.readers[value.index()].iter().copied().find(|i| is(&self.graph.nodes[*i]))
    }

    fn find(&mut self) {
        let graph = self.graph;
        for (i, node) in graph.nodes.iter().enumerate() {
            match node.op {
                Op::Embed {} => self.set(i, 0, "embed"),
                Op::Mask { .. } => self.set(i, 0, "mask"),
                Op::RopeTable { .. } => self.set(i, 0, "rope"),
                Op::Scale { .. } if self.def(node.inputs[0]).is_some_and(|(_, n)| n.op == Op::Embed {}) => {
                    self.set(i, 0, "embed_scaled");
                }
                _ => {}
            }
        }
        self.behind(self.layers + 1);
        let attentions = graph.nodes.iter().enumerate().filter(|(_, n)| matches!(n.op, Op::Attention { .. }));
        for (layer, (i, node)) in attentions.enumerate() {
            self.attention(layer + 1, i, node);
            self.mlp(layer + 1, node.outputs[0]);
        }
    }

    fn attention(&mut self, stage: usize, index: usize, node: &Node) {
        self.set(index, stage, "attn");
        for (side, operand) in ["q", "k", "v"].into_iter().zip(&node.inputs) {
            let mut at = *operand;
            while let Some((i, node)) = self.def(at) {
                let (op, input) = (node.op.clone(), node.inputs[0]);
                match op {
                    Op::Scale { .. } => self.set(i, stage, &format!("{side}_scaled")),
                    Op::Rope { .. } => self.set(i, stage, &format!("{side}_rope")),
                    Op::RmsNorm { .. } => self.set(i, stage, &format!("{side}_norm")),
                    Op::Linear { .. } => {
                        self.set(i, stage, side);
                        if let Some((i, Node { op: Op::RmsNorm { .. }, .. })) = self.def(input) {
                            self.set(i, stage, "attn_norm");
                        }
                        break;
                    }
                    _ => break,
                }
                at = input;
            }
        }
    }

    /// What follows an attention up to the end of the layer.
    fn mlp(&mut self, stage: usize, attention: ValueId) -> Option<()> {
        let result = |roles: &Self, i: usize| roles.graph.nodes[i].outputs[0];
        let linear = |n: &Node| matches!(n.op, Op::Linear { .. });
        let out = self.reader(attention, linear)?;
        self.set(out, stage, "attn_out");
        let sum = self.reader(result(self, out), |n| n.op == Op::Add {})?;
        self.set(sum, stage, "attn_sum");
        let norm = self.reader(result(self, sum), |n| matches!(n.op, Op::RmsNorm { .. }))?;
        self.set(norm, stage, "mlp_norm");
        for i in self.readers[result(self, norm).index()].clone() {
            if let Some(silu) = self.reader(result(self, i), |n| n.op == Op::Silu {}) {
                self.set(i, stage, "gate");
                self.set(silu, stage, "gate_silu");
            } else if let Some(mul) = self.reader(result(self, i), |n| n.op == Op::Mul {}) {
                self.set(i, stage, "up");
                self.set(mul, stage, "mlp");
                let down = self.reader(result(self, mul), linear)?;
                self.set(down, stage, "mlp_out");
                let sum = self.reader(result(self, down), |n| n.op == Op::Add {})?;
                self.set(sum, stage, "out");
            }
        }
        Some(())
    }

    fn behind(&mut self, stage: usize) {
        let mut at = self.graph.results.first().map(|r| Operand::Value(*r));
        while let Some((i, node)) = at.and_then(|at| self.def(at)) {
            let (op, input) = (node.op.clone(), node.inputs[0]);
            match op {
                Op::Scale { .. } => self.set(i, stage, "logits_scaled"),
                Op::Linear { .. } => self.set(i, stage, "logits"),
                Op::RmsNorm { .. } => return self.set(i, stage, "final_norm"),
                _ => return,
            }
            at = Some(input);
        }
    }
}

/// Whether every value is defined before it is read.
fn is_schedule(graph: &Graph, order: &[usize]) -> bool {
    let mut known = graph.values.side_table(false);
    graph.params.iter().for_each(|p| known[*p] = true);
    order.iter().all(|i| {
        let node = &graph.nodes[*i];
        let fine = node.inputs.iter().filter_map(|o| o.value()).all(|v| known[v]);
        node.outputs.iter().for_each(|o| known[*o] = true);
        fine
    })
}

fn renamed(graph: &Graph, order: &[usize], roles: &Roles<'_>) -> Graph {
    let mut new = Graph::new(graph.name.clone());
    let mut map = graph.values.side_table(None);
    for &p in &graph.params {
        map[p] = Some(new.param(&graph.values[p].name, graph.values[p].ty.clone()));
    }
    for &i in order {
        let node = &graph.nodes[i];
        let name = match roles.places[i] {
            Some((0, role)) => BEFORE[role].to_owned(),
            Some((stage, role)) if stage <= roles.layers => format!("l{}.{}", stage - 1, LAYER[role]),
            Some((_, role)) => BEHIND[role].to_owned(),
            None => node.op.name().to_owned(),
        };
        let inputs = node.inputs.iter().map(|o| match o {
            Operand::Value(v) => Operand::Value(map[*v].expect("the order is a schedule")),
            other => *other,
        });
        let inputs = inputs.collect();
        let outputs = node.outputs.iter().map(|o| {
            let copy = new.value(&name, graph.values[*o].ty.clone());
            map[*o] = Some(copy);
            copy
        });
        let outputs = outputs.collect();
        new.nodes.push(Node { op: node.op.clone(), inputs, outputs, origin: node.origin.clone() });
    }
    new.results = graph.results.iter().filter_map(|r| map[*r]).collect();
    new
}
