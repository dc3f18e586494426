//! A pass keeps the meaning: results before and after it, on the reference evaluator, over two calls with one state.

use dlx_ir::{Data, Evaluator, Module, Tensor, verify};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::generate::{arguments, module, weight};
use crate::{after, choices, config};

/// Passes that change how something is computed and not what.
const STRUCTURAL: &[&str] = &[
    "block-attention",
    "cse",
    "dce",
    "fold",
    "fuse-linears",
    "fuse-norm",
    "fuse-residual",
    "fuse-rope",
    "fuse-swiglu",
    "hoist-weights",
    "fold,cse,fuse-rope,fuse-linears,fuse-swiglu,fuse-residual,dce,fuse-norm,hoist-weights,fold,dce",
];

/// Results of two calls, or nothing when a number left the range in which rounding can be compared.
fn results(m: &Module, graph: &str) -> Result<Option<Vec<Tensor>>, TestCaseError> {
    let source = |name: &str| {
        let id = m.weight(name).ok_or("no such weight")?;
        Ok(weight(name, m.weights[id].ty.elements().ok_or("no static size")?))
    };
    let mut evaluator = Evaluator::new(m, &source, 1);
    let (mut all, mut in_range) = (Vec::new(), true);
    for call in 0..2 {
        let outcome = evaluator.run(graph, &arguments(call), &mut |_, value| {
            if let Data::F32(x) = &value.data {
                in_range &= x.iter().all(|v| v.abs() < 1e20);
            }
        });
        all.extend(outcome.map_err(|e| TestCaseError::fail(format!("{e}\n{m}")))?);
    }
    Ok(in_range.then_some(all))
}

/// Whether results are equal but for the rounding of joined factors.
fn equal(a: &[Tensor], b: &[Tensor]) -> bool {
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * a.abs().max(b.abs()).max(1e-3);
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.shape == b.shape
                && match (&a.data, &b.data) {
                    (Data::F32(x), Data::F32(y)) => x.iter().zip(y).all(close),
                    (x, y) => x == y,
                }
        })
}

/// The generator must keep giving every pass something to do, or the properties below say nothing.
#[test]
fn every_pass_finds_work() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let modules: Vec<Module> =
        (0..200).map(|_| module(&choices(120).new_tree(&mut runner).expect("no filter").current())).collect();
    for pass in STRUCTURAL {
        let changed = modules.iter().filter(|m| after(m, pass).is_ok_and(|a| a.to_string() != m.to_string())).count();
        assert!(changed >= 10, "{pass} changes {changed} of {} modules", modules.len());
    }
    let in_range = modules.iter().filter(|m| matches!(results(m, "g"), Ok(Some(_)))).count();
    assert!(in_range >= 150, "only {in_range} modules of {} stay in range", modules.len());
    // What only foreign graphs hold no pass of these changes.
    let modelled = ["add", "cast", "matmul", "mul", "scale", "silu", "softmax", "transpose"];
    let ours = |op: &&dlx_ir::OpInfo| op.level != dlx_ir::Level::Tensor || modelled.contains(&op.name);
    for op in dlx_ir::OPS.iter().filter(ours).filter(|op| !["pack", "quantize"].contains(&op.name)) {
        let found = modules.iter().flat_map(|m| &m.graphs[0].nodes).any(|n| n.op.name() == op.name);
        assert!(found, "no random module has {}", op.name);
    }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn structural_passes_keep_the_meaning(choices in choices(120)) {
        let before = module(&choices);
        prop_assert!(verify(&before).is_ok(), "{before}");
        let Some(expected) = results(&before, "g")? else { return Ok(()) };
        for pipeline in STRUCTURAL {
            let changed = after(&before, pipeline).map_err(|e| TestCaseError::fail(format!("{e}\n{before}")))?;
            let found = results(&changed, "g")?;
            let same = found.is_none_or(|found| equal(&expected, &found));
            prop_assert!(same, "; test: opt {pipeline}\n{before}\nbecame\n{changed}");
        }
    }

    #[test]
    fn passes_are_done_after_one_run(choices in choices(120)) {
        let before = module(&choices);
        for pass in ["block-attention", "cse", "dce", "fuse-norm", "fuse-rope", "fuse-swiglu", "hoist-weights"] {
            let once = after(&before, pass).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let twice = after(&once, pass).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(once.to_string(), twice.to_string(), "{} twice\n{}", pass, before);
        }
    }

    #[test]
    fn specialized_graphs_compute_the_same(choices in choices(80)) {
        let before = module(&choices);
        if !before.to_string().contains("[T") {
            return Ok(());
        }
        let specialized = after(&before, "specialize{T=3},plan-memory");
        let specialized = specialized.map_err(|e| TestCaseError::fail(format!("{e}\n{before}")))?;
        if let (Some(a), Some(b)) = (results(&before, "g")?, results(&specialized, "g_3")?) {
            prop_assert!(equal(&a, &b), "{before}\nbecame\n{specialized}");
        }
    }
}
