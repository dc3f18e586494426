//! Recordings that part, one way at a time.

use super::*;
use dlx_runtime::decode::{ForwardKind, Reads, Why};
use dlx_runtime::trace::Fed;

fn row(position: usize, token: i32, prob: f32) -> Row {
    let (prob, confidence) = (Some(prob), Some(prob));
    Row { position, token, prob, margin: None, entropy: None, row_entropy: None, confidence, noise: None, draw: None }
}

fn step() -> Step {
    let kind = ForwardKind::Block;
    let pass =
        Fed { kind, start: 4, rows: 2, past: 4, at: 4, visible: 6, spans: 1, reads: Reads::Stats, looks: vec![0, 1] };
    let decision = Decided {
        why: Why::Rule,
        quota: 1,
        part: 0.5,
        block: [4, 6],
        rows: vec![row(4, 7, 0.5), row(5, 8, 0.75)],
        revealed: vec![(5, 8)],
        canvas: vec![0, 8],
    };
    Step { pass, decision: Some(decision), line: 2 }
}

/// What is found when the second of three passes is another one.
fn found(tolerance: f32, edit: impl FnOnce(&mut Step)) -> Vec<(usize, Option<usize>, What)> {
    let a = vec![step(), step(), step()];
    let mut b = a.clone();
    edit(&mut b[1]);
    compare(&a, &b, tolerance).into_iter().map(|p| (p.step, p.position, p.what)).collect()
}

fn decided(step: &mut Step) -> &mut Decided {
    step.decision.as_mut().unwrap()
}

#[test]
fn the_same_is_the_same() {
    assert_eq!(found(0.0, |_| {}), []);
    assert_eq!(compare(&[], &[], 0.0), []);
}

#[test]
fn numbers_are_the_same_to_the_bit_or_within_the_tolerance() {
    let bit = |s: &mut Step| decided(s).rows[0].prob = Some(0.500_000_06);
    let parts = |of| [(1, Some(4), What::Number { name: "prob", of })];
    assert_eq!(found(0.0, bit), parts([Some(0.5), Some(0.500_000_06)]));
    assert_eq!(found(1e-3, bit), []);
    assert_eq!(found(1e9, |s| decided(s).rows[0].prob = None), parts([Some(0.5), None]));
    let zero = |prob: f32| {
        let mut zero = step();
        decided(&mut zero).rows[0].prob = Some(prob);
        vec![zero]
    };
    assert_eq!(compare(&zero(0.0), &zero(-0.0), 0.0).len(), 1, "zeros have signs");
}

#[test]
fn tokens_and_decisions_are_told_apart() {
    let token = What::Token { of: [7, 9] };
    assert_eq!(found(1.0, |s| decided(s).rows[0].token = 9), [(1, Some(4), token)]);
    // Along one canvas: what would have been revealed differs, the canvas does not.
    let revealed = found(1.0, |s| decided(s).revealed = vec![(4, 7)]);
    let becomes = |of| What::Revealed { of };
    assert_eq!(revealed, [(1, Some(4), becomes([None, Some(7)])), (1, Some(5), becomes([Some(8), None]))]);
    assert_eq!(found(1.0, |s| decided(s).quota = 2), [(1, None, What::Order)]);
    assert_eq!(found(1.0, |s| decided(s).why = Why::Overruled), [(1, None, What::Order)]);
}

#[test]
fn nothing_is_compared_behind_another_canvas_or_pass() {
    let a = vec![step(), step()];
    let mut b = a.clone();
    let first = decided(&mut b[0]);
    (first.revealed, first.canvas) = (vec![(4, 7)], vec![7, 0]);
    decided(&mut b[1]).rows[0].token = 1;
    assert!(compare(&a, &b, 0.0).iter().all(|p| p.step == 0));
    assert_eq!(found(1.0, |s| s.pass.rows = 1), [(1, None, What::Pass)]);
    assert_eq!(found(1.0, |s| decided(s).rows.truncate(1)), [(1, None, What::Pass)]);
    assert_eq!(compare(&a, &a[..1], 1.0), [Parting { step: 1, position: None, what: What::Missing }]);
}

#[test]
fn distances_are_parts_of_the_largest_element() {
    assert_eq!(distance(&[1.0, -4.0], &[1.0, -3.0]), 0.25);
    assert_eq!(distance(&[0.0], &[0.0]), 0.0);
    assert_eq!(distance(&[f32::INFINITY], &[f32::INFINITY]), 0.0);
    for (a, b) in [(&[1.0, 2.0][..], &[1.0][..]), (&[1.0], &[f32::NAN]), (&[f32::NAN], &[1.0])] {
        assert_eq!(distance(a, b), f32::INFINITY, "{a:?} {b:?}");
    }
}

#[test]
fn a_weight_is_known_by_its_tensor() {
    assert_eq!(source("model.layers.0.mlp.up_proj.weight.q4g32m.packed"), "model.layers.0.mlp.up_proj.weight");
    assert_eq!(source("model.norm.weight.f32"), "model.norm.weight");
    assert_eq!(source("packed"), "packed");
}
