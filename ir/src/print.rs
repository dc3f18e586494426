//! The canonical text of a module. `print(parse(print(m))) == print(m)`.

use crate::module::{Graph, Module, Node, Operand, Weight, WeightDef};
use crate::name::name;
use crate::op::Op;
use std::fmt::{self, Write};

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "module {} {{", name('@', &self.name))?;
        for (_, w) in self.weights.iter() {
            writeln!(f, "  {}", self.weight_text(w))?;
        }
        for (_, s) in self.states.iter() {
            writeln!(f, "  state {}: {}", name('@', &s.name), s.ty)?;
        }
        for graph in &self.graphs {
            writeln!(f)?;
            self.write_graph(f, graph)?;
        }
        writeln!(f, "}}")
    }
}

impl Module {
    /// The text of one weight line.
    pub fn weight_text(&self, w: &Weight) -> String {
        let mut s = format!("weight {}: {}", name('@', &w.name), w.ty);
        match &w.def {
            WeightDef::Source => {}
            WeightDef::Literal(literal) => {
                let _ = write!(s, " = {}", literal.text());
            }
            WeightDef::Expr(op, inputs) => {
                let inputs: Vec<_> = inputs.iter().map(|&i| name('@', &self.weights[i].name)).collect();
                let _ = write!(s, " = {} {}{}", op.name(), inputs.join(", "), attrs(op));
            }
            WeightDef::Stored { offset, bytes, shard } => {
                let shard = shard.map_or_else(String::new, |rows| format!(", shard={rows}"));
                let _ = write!(s, " = stored {{offset={offset}, bytes={bytes}{shard}}}");
            }
        }
        let _ = write!(s, "{}", w.origin);
        s
    }

    /// The text of one node.
    pub fn node_text(&self, graph: &Graph, node: &Node) -> String {
        let mut s = String::new();
        for (i, &out) in node.outputs.iter().enumerate() {
            let _ = write!(s, "{}{}", if i == 0 { "" } else { ", " }, name('%', &graph.values[out].name));
        }
        if !node.outputs.is_empty() {
            s.push_str(" = ");
        }
        s.push_str(node.op.name());
        for (i, &input) in node.inputs.iter().enumerate() {
            let _ = write!(s, "{}{}", if i == 0 { " " } else { ", " }, self.operand_text(graph, input));
        }
        s.push_str(&attrs(&node.op));
        for (i, &out) in node.outputs.iter().enumerate() {
            let v = &graph.values[out];
            let _ = write!(s, "{}{}{}", if i == 0 { ": " } else { ", " }, v.ty, slot(v.slot));
        }
        let _ = write!(s, "{}", node.origin);
        s
    }

    /// The text of an operand.
    pub fn operand_text(&self, graph: &Graph, operand: Operand) -> String {
        match operand {
            Operand::Value(v) => name('%', &graph.values[v].name),
            Operand::Weight(w) => name('@', &self.weights[w].name),
            Operand::State(s) => name('@', &self.states[s].name),
        }
    }

    fn write_graph(&self, f: &mut fmt::Formatter<'_>, graph: &Graph) -> fmt::Result {
        write!(f, "  graph {}(", name('@', &graph.name))?;
        for (i, &p) in graph.params.iter().enumerate() {
            let v = &graph.values[p];
            write!(f, "{}{}: {}{}", if i == 0 { "" } else { ", " }, name('%', &v.name), v.ty, slot(v.slot))?;
        }
        let types: Vec<_> = graph.results.iter().map(|&r| graph.values[r].ty.to_string()).collect();
        writeln!(f, ") -> ({}) {{", types.join(", "))?;
        for node in &graph.nodes {
            writeln!(f, "    {}", self.node_text(graph, node))?;
        }
        let results: Vec<_> = graph.results.iter().map(|&r| name('%', &graph.values[r].name)).collect();
        let space = if results.is_empty() { "" } else { " " };
        writeln!(f, "    return{space}{}", results.join(", "))?;
        writeln!(f, "  }}")
    }
}

fn slot(slot: Option<u64>) -> String {
    slot.map_or_else(String::new, |s| format!(" at {s}"))
}

fn attrs(op: &Op) -> String {
    let list: Vec<_> = op
        .attrs()
        .into_iter()
        .map(|(name, text)| if text.is_empty() { name.to_owned() } else { format!("{name}={text}") })
        .collect();
    if list.is_empty() { String::new() } else { format!(" {{{}}}", list.join(", ")) }
}
