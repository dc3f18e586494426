//! Memory plans: an arena played through byte by byte, and the verifier on plans that were broken on purpose.

use dlx_ir::{Graph, Id, ValueId, verify};
use proptest::prelude::*;

use crate::generate::module;
use crate::{after, choices, config};

fn planned(choices: &[u32]) -> Result<dlx_ir::Module, TestCaseError> {
    let before = module(choices);
    let pipeline = if before.to_string().contains("[T") { "specialize{T=3},plan-memory" } else { "plan-memory" };
    after(&before, pipeline).map_err(|e| TestCaseError::fail(format!("{e}\n{before}")))
}

fn span(graph: &Graph, v: ValueId) -> std::ops::Range<u64> {
    let value = &graph.values[v];
    let start = value.slot.expect("planned");
    start..start + value.ty.bytes().expect("static") as u64
}

/// Runs the schedule on an arena whose lines (of 64 bytes) remember who wrote them, and checks every read.
fn play(graph: &Graph) -> Result<(), String> {
    let lines = |v: ValueId| {
        let s = span(graph, v);
        (s.start / 64) as usize..s.end.div_ceil(64) as usize
    };
    let mut owner: Vec<Option<ValueId>> = vec![None; graph.arena_bytes().div_ceil(64) as usize];
    let name = |v: ValueId| &graph.values[v].name;
    let intact = |owner: &[Option<ValueId>], v: ValueId| owner[lines(v)].iter().all(|o| *o == Some(v));
    for &p in &graph.params {
        owner[lines(p)].fill(Some(p));
    }
    for node in &graph.nodes {
        let reads: Vec<ValueId> = node.inputs.iter().filter_map(|i| i.value()).collect();
        for &v in &reads {
            // A parameter that is never read may be overwritten at once; one that is read must be there.
            if !intact(&owner, v) {
                return Err(format!("%{} was overwritten before {} read it", name(v), node.op.name()));
            }
        }
        let taken = node.op.may_alias().and_then(|i| node.inputs[i].value());
        for (i, &out) in node.outputs.iter().enumerate() {
            for &v in &reads {
                let (a, b) = (span(graph, v), span(graph, out));
                let overlap = a.start < b.end && b.start < a.end;
                let alike = graph.values[v].ty == graph.values[out].ty;
                if overlap && !(i == 0 && taken == Some(v) && a == b && alike) {
                    return Err(format!("{} writes %{} over its operand %{}", node.op.name(), name(out), name(v)));
                }
            }
            owner[lines(out)].fill(Some(out));
        }
        if let Some(out) = node.outputs.iter().find(|out| !intact(&owner, **out)) {
            return Err(format!("%{} was overwritten by another result of {}", name(*out), node.op.name()));
        }
    }
    match graph.results.iter().find(|r| !intact(&owner, **r)) {
        Some(r) => Err(format!("the result %{} was overwritten", name(*r))),
        None => Ok(()),
    }
}

/// Pairs of values of which the first is still read, or returned, after the node that defines the second.
fn live_together(graph: &Graph) -> Vec<(ValueId, ValueId)> {
    let defs = graph.definitions();
    let birth = |v: ValueId| defs[v.index()].map_or(0, |i| i + 1);
    let last = |v: ValueId| {
        let reads = graph.nodes.iter().rposition(|n| n.inputs.iter().any(|i| i.value() == Some(v)));
        if graph.results.contains(&v) { graph.nodes.len() + 1 } else { reads.map_or(0, |i| i + 1) }
    };
    let ids: Vec<ValueId> = graph.values.iter().map(|(id, _)| id).collect();
    let pairs = ids.iter().flat_map(|&a| ids.iter().map(move |&b| (a, b)));
    pairs.filter(|&(a, b)| a != b && birth(a) <= birth(b) && birth(b) < last(a)).collect()
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn nothing_is_overwritten_before_it_is_read(choices in choices(160)) {
        let module = planned(&choices)?;
        for graph in &module.graphs {
            if let Err(e) = play(graph) {
                return Err(TestCaseError::fail(format!("{e}\n{module}")));
            }
        }
    }

    #[test]
    fn a_broken_plan_is_caught(choices in choices(80), pair in any::<prop::sample::Index>(), shift in 0u64..3) {
        let mut module = planned(&choices)?;
        let pairs = live_together(&module.graphs[0]);
        prop_assume!(!pairs.is_empty());
        let (a, b) = *pair.get(&pairs);
        let graph = &mut module.graphs[0];
        // Same bytes, or the tail of the first and the head of the second.
        let lines = span(graph, a).end.div_ceil(64) - span(graph, a).start / 64;
        graph.values[b].slot = graph.values[a].slot.map(|s| s + 64 * shift.min(lines - 1));
        prop_assert!(verify(&module).is_err(), "%{} over %{}\n{module}", module.graphs[0].values[b].name, module.graphs[0].values[a].name);
    }

    #[test]
    fn a_misaligned_or_missing_slot_is_caught(choices in choices(60), which in any::<prop::sample::Index>(), off in 0u64..64) {
        let mut module = planned(&choices)?;
        let graph = &mut module.graphs[0];
        let ids: Vec<ValueId> = graph.values.iter().map(|(id, _)| id).collect();
        let slot = &mut graph.values[*which.get(&ids)].slot;
        *slot = if off == 0 { None } else { slot.map(|s| s + off) };
        prop_assert!(verify(&module).is_err(), "{module}");
    }
}
