//! Passes with a wrong rewrite planted behind them.

use std::cell::Cell;
use std::collections::BTreeSet;

use dlx_ir::{Mask, Module, Node, Op, Operand, Rewrite, Type, ValueId, WeightDef, rewrite};
use dlx_passes::{Note, Params, PassInfo, Step};

/// Changes one of the nodes or weights that a pass made, if it can, and says which.
pub(crate) type Fault = fn(&mut Module, &Made) -> Option<String>;

/// What a pass made: nodes by graph and index, and weights by index.
pub(crate) struct Made {
    nodes: Vec<(usize, usize)>,
    weights: Vec<usize>,
}

pub(crate) const FAULTS: &[(&str, Fault)] = &[
    ("dropped scale", |m, made| {
        edit(m, made, |op| match op {
            Op::Scale { by } => {
                *by = 1.0;
                true
            }
            _ => false,
        })
    }),
    ("swapped operand", swap),
    ("off-by-one mask", |m, made| {
        edit(m, made, |op| match op {
            Op::CachedAttention { mask, .. } | Op::Attention { mask: Some(mask), .. } => {
                *mask = Mask::BlockCausal(5);
                true
            }
            _ => false,
        })
    }),
    ("wrong epsilon", |m, made| {
        edit(m, made, |op| {
            let eps = match op {
                Op::RmsNorm { eps } => Some(eps),
                Op::Rope { norm, .. } | Op::Linear { norm, .. } | Op::HeadStats { norm, .. } => norm.as_mut(),
                _ => None,
            };
            eps.map(|eps| *eps = 0.5).is_some()
        })
    }),
    ("wrong weight", wrong_weight),
    ("stale alias", stale_alias),
    ("lost write", lost_write),
    ("wrong operand", wrong_operand),
    ("lost node", lost_node),
];

/// Edits the last op that can be, and gives the text of its node.
fn edit(m: &mut Module, made: &Made, change: impl Fn(&mut Op) -> bool) -> Option<String> {
    let at = made.nodes.iter().rev().find(|(g, n)| change(&mut m.graphs[*g].nodes[*n].op.clone()))?;
    change(&mut m.graphs[at.0].nodes[at.1].op);
    Some(text(m, *at))
}

fn text(m: &Module, (g, n): (usize, usize)) -> String {
    m.node_text(&m.graphs[g], &m.graphs[g].nodes[n])
}

/// Two operands of one type, of which neither order is a matter of taste.
fn swap(m: &mut Module, made: &Made) -> Option<String> {
    let (g, n, a, b) = made.nodes.iter().rev().find_map(|&(g, n)| {
        let node = &m.graphs[g].nodes[n];
        let matters = !matches!(node.op, Op::Add {} | Op::Mul {});
        let ty = |i: usize| m.operand_type(&m.graphs[g], node.inputs[i]);
        let all = 0..node.inputs.len();
        let mut pairs = all.clone().flat_map(|a| all.clone().map(move |b| (a, b)));
        let alike = pairs.find(|(a, b)| {
            a < b
                && node.inputs[*a].kind() == node.inputs[*b].kind()
                && ty(*a) == ty(*b)
                && node.inputs[*a] != node.inputs[*b]
        });
        alike.filter(|_| matters).map(|(a, b)| (g, n, a, b))
    })?;
    m.graphs[g].nodes[n].inputs.swap(a, b);
    Some(text(m, (g, n)))
}

/// A weight of the same type in the place of another.
fn wrong_weight(m: &mut Module, made: &Made) -> Option<String> {
    for &w in made.weights.iter().rev() {
        let (id, weight) = m.weights.iter().nth(w)?;
        let WeightDef::Expr(op, inputs) = &weight.def else { continue };
        let ty: &Type = &m.weights[inputs[0]].ty;
        let other = m.weights.iter().find(|(o, x)| *o < id && *o != inputs[0] && x.ty == *ty);
        let Some((other, _)) = other else { continue };
        let def = WeightDef::Expr(op.clone(), vec![other]);
        m.weights.iter_mut().find(|(i, _)| *i == id)?.1.def = def;
        let reader = m.graphs.iter().enumerate().flat_map(|(g, graph)| {
            let reads = move |node: &Node| node.inputs.contains(&Operand::Weight(id));
            graph.nodes.iter().enumerate().filter(move |(_, n)| reads(n)).map(move |(n, _)| (g, n))
        });
        let reader = reader.collect::<Vec<_>>();
        return reader.first().map(|at| text(m, *at));
    }
    None
}

/// Two operands of a node in one place.
fn stale_alias(m: &mut Module, made: &Made) -> Option<String> {
    let (at, a, b) = made.nodes.iter().rev().find_map(|&(g, n)| {
        let values: Vec<ValueId> = m.graphs[g].nodes[n].inputs.iter().filter_map(|i| i.value()).collect();
        let planned = |v: &&ValueId| m.graphs[g].values[**v].slot.is_some();
        let (a, b) = (values.first().filter(planned)?, values.iter().skip(1).find(planned)?);
        (a != b).then_some(((g, n), *a, *b))
    })?;
    let values = &mut m.graphs[at.0].values;
    values[a].slot = values[b].slot;
    Some(text(m, at))
}

/// An effect that is not there any more.
fn lost_write(m: &mut Module, made: &Made) -> Option<String> {
    let &(g, n) = made.nodes.iter().rev().find(|(g, n)| matches!(m.graphs[*g].nodes[*n].op, Op::KvWrite {}))?;
    let reader = m.graphs[g]
        .nodes
        .iter()
        .position(|r| matches!(r.op, Op::CachedAttention { .. }) && r.inputs[1] == m.graphs[g].nodes[n].inputs[2])?;
    let said = text(m, (g, reader));
    m.graphs[g].nodes.remove(n);
    Some(said)
}

/// An earlier value of the same type in the place of the one that is meant.
fn wrong_operand(m: &mut Module, made: &Made) -> Option<String> {
    let (at, input, other) = made.nodes.iter().rev().find_map(|&(g, n)| {
        let graph = &m.graphs[g];
        let earlier: Vec<ValueId> = graph.nodes[..n].iter().flat_map(|n| n.outputs.iter().copied()).collect();
        graph.nodes[n].inputs.iter().enumerate().find_map(|(i, input)| {
            let v = input.value()?;
            let other = earlier.iter().find(|o| **o != v && graph.values[**o].ty == graph.values[v].ty)?;
            (graph.values[v].slot.is_none()).then_some(((g, n), i, *other))
        })
    })?;
    m.graphs[at.0].nodes[at.1].inputs[input] = Operand::Value(other);
    Some(text(m, at))
}

/// Of a pass that only removes: a node too much, whose readers read what it read.
fn lost_node(m: &mut Module, made: &Made) -> Option<String> {
    if !made.nodes.is_empty() {
        return None;
    }
    let (g, n, input) = m.graphs.iter().enumerate().find_map(|(g, graph)| {
        graph.nodes.iter().enumerate().rev().find_map(|(n, node)| {
            let &[out] = &node.outputs[..] else { return None };
            let same = |i: &Operand| i.value().is_some_and(|v| graph.values[v].ty == graph.values[out].ty);
            let input = node.inputs.iter().position(same)?;
            (!graph.results.contains(&out)).then_some((g, n, input))
        })
    })?;
    let gone = m.graphs[g].nodes[n].outputs[0];
    let reader = m.graphs[g].nodes.iter().position(|r| r.inputs.contains(&Operand::Value(gone)))?;
    let past = |rw: &mut dlx_ir::Rewriter<'_>, node: &Node| {
        let value = node.inputs.get(input).and_then(|i| i.value());
        Ok(value.filter(|_| rw.index == n).map_or(Rewrite::Keep, |v| Rewrite::Replace(vec![v])))
    };
    rewrite(m, g, &mut { past }).ok()?;
    Some(text(m, (g, reader - 1)))
}

thread_local! {
    static PLANTED: Cell<Option<(&'static PassInfo, Fault)>> = const { Cell::new(None) };
    static WHERE: Cell<Option<String>> = const { Cell::new(None) };
}

/// The pipeline with a fault behind one of its passes.
pub(crate) fn planted(steps: &[Step], at: usize, fault: Fault) -> Vec<Step> {
    let real = steps[at].pass;
    PLANTED.set(Some((real, fault)));
    WHERE.set(None);
    let wrong: &'static PassInfo = Box::leak(Box::new(PassInfo { run: run_planted, ..*real }));
    let mut steps = steps.to_vec();
    steps[at].pass = wrong;
    steps
}

/// The node that the fault is in, once the pass ran and the fault applied.
pub(crate) fn place() -> Option<String> {
    let place = WHERE.take();
    WHERE.set(place.clone());
    place
}

fn run_planted(m: &mut Module, params: &Params, notes: &mut Vec<Note>) -> Result<usize, dlx_ir::Error> {
    let (real, fault) = PLANTED.get().expect("a fault was planted on this thread");
    let lines: BTreeSet<String> = m.to_string().lines().map(str::to_owned).collect();
    let changes = (real.run)(m, params, notes)?;
    let new = |text: &str, indent: &str| !lines.contains(&format!("{indent}{text}"));
    let all = m.graphs.iter().enumerate().flat_map(|(g, graph)| (0..graph.nodes.len()).map(move |n| (g, n)));
    let nodes = all.filter(|at| new(&text(m, *at), "    ")).collect();
    let weights = m.weights.iter().map(|(_, w)| m.weight_text(w)).enumerate().filter(|(_, w)| new(w, "  "));
    let made = Made { nodes, weights: weights.map(|(i, _)| i).collect() };
    if let Some(said) = fault(m, &made) {
        // A reduction runs the pass again; the first place is the one that counts.
        let place = WHERE.take();
        WHERE.set(place.or(Some(said)));
    }
    Ok(changes)
}
