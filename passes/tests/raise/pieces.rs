//! Pieces of graphs, and what becomes of each: patterns in other spellings, near misses, masks of run-time inputs.

use crate::build::{Build, DYNAMO, HEADS, KV_HEADS, Ropes, Spelling, TOKENS, WIDTH};
use crate::{RAISE, run};
use dlx_ir::{
    Binary, Compare, DType, Data, Evaluator, Module, Op, Operand, Reduce, Tensor, Type, Unary, VerifiedModule,
};

/// Numbers for a parameter.
fn argument(ty: &Type, seed: usize) -> Tensor {
    let shape = ty.shape().unwrap();
    let n = shape.iter().product::<usize>();
    let v = |i: usize| ((i * 7919 + seed * 31) % 101) as f32 / 50.0 - 1.0;
    let data = match ty.dtype {
        DType::I64 => Data::I64((0..n).map(|i| i64::from(!(i + seed).is_multiple_of(5))).collect()),
        DType::Bool => Data::Bool((0..n).map(|i| !(i + seed).is_multiple_of(5)).collect()),
        _ => Data::F32((0..n).map(v).collect()),
    };
    Tensor { dtype: ty.dtype, shape, data }
}

fn results(module: &Module) -> Vec<Tensor> {
    let graph = &module.graphs[0];
    let args: Vec<_> = graph.params.iter().enumerate().map(|(i, p)| argument(&graph.values[*p].ty, i)).collect();
    let none = |name: &str| Err::<Vec<f32>, _>(name.to_owned());
    Evaluator::new(module, &none, 1).run(&graph.name, &args, &mut |_, _| {}).unwrap()
}

/// The nodes and notes after raising; what the module computes stays.
fn raised(module: &VerifiedModule) -> (Vec<String>, Vec<String>) {
    let (after, notes) = run(module, RAISE).unwrap();
    for (a, b) in results(module).iter().zip(results(&after)) {
        let far = a.floats().unwrap().iter().zip(b.floats().unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{far} away\n{}", *after);
    }
    let graph = &after.graphs[0];
    let nodes = graph.nodes.iter().map(|n| after.node_text(graph, n)).collect();
    (nodes, notes.iter().map(ToString::to_string).collect())
}

fn ops(nodes: &[String]) -> Vec<&str> {
    nodes.iter().map(|n| n.split(" = ").nth(1).unwrap().split(' ').next().unwrap()).collect()
}

fn build() -> Build {
    Build::new(DYNAMO)
}

fn param(b: &mut Build, name: &str, dtype: DType, shape: &[usize]) -> Operand {
    Operand::Value(b.graph.param(name, Type::new(dtype, shape.iter().copied())))
}

fn mean(b: &mut Build, x: Operand, axis: i64) -> Operand {
    b.op(Op::Reduce { kind: Reduce::Mean, axes: vec![axis] }, &[x])
}

#[test]
fn layer_norms_are_norms() {
    for squared_last in [false, true] {
        let mut b = build();
        let x = param(&mut b, "x", DType::F32, &[2, 5, 12]);
        let m = mean(&mut b, x, 2);
        let centered = b.op(Op::Binary { kind: Binary::Sub }, &[x, m]);
        let var = if squared_last {
            let (xx, mm) = (b.mul(x, x), b.mul(m, m));
            let square = mean(&mut b, xx, 2);
            b.op(Op::Binary { kind: Binary::Sub }, &[square, mm])
        } else {
            let two = b.number(DType::F32, 2.0);
            let square = b.op(Op::Binary { kind: Binary::Pow }, &[centered, two]);
            mean(&mut b, square, 2)
        };
        let eps = b.number(DType::F32, 1e-5);
        let var = b.add(eps, var);
        let root = b.op(Op::Unary { kind: Unary::Sqrt }, &[var]);
        let y = b.op(Op::Binary { kind: Binary::Div }, &[centered, root]);
        let (nodes, notes) = raised(&b.done(y));
        assert_eq!(nodes.len(), 1, "{nodes:?} {notes:?}");
        assert!(nodes[0].contains("normalize %x {kind=layer, eps=1e-5}"), "{nodes:?}");
    }
}

#[test]
fn what_is_near_a_norm_is_noted() {
    let norm = |axis: i64, factor: f32, eps: Option<f32>| {
        let mut b = build();
        let x = param(&mut b, "x", DType::F32, &[2, 5, 12]);
        let square = b.mul(x, x);
        let m = mean(&mut b, square, axis);
        let eps = match eps {
            Some(eps) => b.number(DType::F32, eps),
            None => param(&mut b, "eps", DType::F32, &[]),
        };
        let m = b.add(m, eps);
        let by = b.number(DType::F32, factor);
        let m = b.mul(m, by);
        let root = b.op(Op::Unary { kind: Unary::Sqrt }, &[m]);
        let y = b.op(Op::Binary { kind: Binary::Div }, &[x, root]);
        b.done(y)
    };
    assert_eq!(ops(&raised(&norm(2, 1.0, Some(1e-6))).0), ["normalize"]);
    let (nodes, notes) = raised(&norm(2, 1.2, Some(1e-6)));
    assert!(
        nodes.len() == 6 && notes[0].starts_with("normalize: %v.5 = binary %x, %v.4") && notes[0].contains("rms"),
        "{notes:?}"
    );
    for (axis, eps) in [(1, Some(1e-6)), (2, None)] {
        let (nodes, _) = raised(&norm(axis, 1.0, eps));
        assert_eq!(ops(&nodes).last(), Some(&"binary"));
    }
}

#[test]
fn a_silu_has_no_other_slope() {
    let silu = |slope: f32, divided: bool| {
        let mut b = build();
        let x = param(&mut b, "x", DType::F32, &[3, 7]);
        let by = b.number(DType::F32, if divided { -slope } else { slope });
        let scaled = b.mul(x, by);
        let y = if divided {
            let one = b.number(DType::F32, 1.0);
            let e = b.op(Op::Unary { kind: Unary::Exp }, &[scaled]);
            let e = b.add(one, e);
            b.op(Op::Binary { kind: Binary::Div }, &[x, e])
        } else {
            let s = b.op(Op::Unary { kind: Unary::Sigmoid }, &[scaled]);
            b.mul(s, x)
        };
        b.done(y)
    };
    for divided in [false, true] {
        assert_eq!(ops(&raised(&silu(1.0, divided)).0), ["silu"]);
        let (nodes, notes) = raised(&silu(1.702, divided));
        assert!(nodes.len() > 2 && notes[0].contains("from x · sigmoid(x)"), "{notes:?}");
    }
    // A gate is no activation, and neither is the error function.
    let mut b = build();
    let (x, y) = (param(&mut b, "x", DType::F32, &[3]), param(&mut b, "y", DType::F32, &[3]));
    let s = b.op(Op::Unary { kind: Unary::Sigmoid }, &[x]);
    let s = b.mul(y, s);
    let e = b.op(Op::Unary { kind: Unary::Erf }, &[s]);
    let e = b.mul(e, s);
    let (nodes, notes) = raised(&b.done(e));
    assert_eq!((ops(&nodes), notes.len()), (vec!["unary", "mul", "unary", "mul"], 0));
}

#[test]
fn rotations_of_neighbors_and_of_a_part() {
    for rotated in [WIDTH, WIDTH / 2] {
        let mut b = build();
        let x = param(&mut b, "x", DType::F32, &[2, HEADS, TOKENS, WIDTH]);
        let y = b.neighbors(x, rotated);
        let (nodes, notes) = raised(&b.done(y));
        assert_eq!((nodes.len(), notes.len()), (1, 0), "{nodes:?} {notes:?}");
        assert!(nodes[0].contains("rotary %x, @rope_cos, @rope_sin {interleaved}"), "{nodes:?}");
    }
    let mut b = build();
    let x = param(&mut b, "x", DType::F32, &[2, HEADS, TOKENS, WIDTH]);
    let (turned, rest) = (b.slice(x, 0, 4, 1), b.slice(x, 4, WIDTH, 1));
    let turned = b.rope(turned);
    let y = b.concat(&[turned, rest]);
    let module = b.done(y);
    let (nodes, notes) = raised(&module);
    assert_eq!((nodes.len(), notes.len()), (1, 0), "{nodes:?} {notes:?}");
    let (after, _) = run(&module, RAISE).unwrap();
    let cos = after.weights.iter().find(|(_, w)| w.name == "rope_cos").map(|(_, w)| w.ty.to_string());
    assert_eq!(cos.as_deref(), Some("f32[1, 6, 2]"));
}

#[test]
fn a_wrong_sign_is_no_rotation() {
    let mut b = build();
    let x = param(&mut b, "x", DType::F32, &[1, HEADS, TOKENS, WIDTH]);
    let [cos, sin] = b.wide_tables(&[1, 1, TOKENS, WIDTH]);
    let (lo, hi) = (b.slice(x, 0, WIDTH / 2, 1), b.slice(x, WIDTH / 2, WIDTH, 1));
    let turned = b.concat(&[hi, lo]);
    let (a, c) = (b.mul(x, cos), b.mul(turned, sin));
    let y = b.add(a, c);
    let (nodes, notes) = raised(&b.done(y));
    assert_eq!(ops(&nodes).last(), Some(&"add"));
    assert!(notes.len() == 1 && notes[0].contains("from the nearest rotation"), "{notes:?}");
}

/// Queries, keys and values as parameters, their scores as `of` masks them.
fn attention(of: impl Fn(&mut Build, Operand) -> Operand) -> VerifiedModule {
    let mut b = build();
    let sizes = |heads| [2, heads, TOKENS, WIDTH];
    let (q, k) = (param(&mut b, "q", DType::F32, &sizes(HEADS)), param(&mut b, "k", DType::F32, &sizes(KV_HEADS)));
    let v = param(&mut b, "v", DType::F32, &sizes(KV_HEADS));
    let repeat = |b: &mut Build, x| {
        let x = b.reshape(x, &[2, KV_HEADS, 1, TOKENS, WIDTH]);
        let dims = [2, KV_HEADS, HEADS / KV_HEADS, TOKENS, WIDTH].map(|n| n as i64).to_vec();
        let x = b.op(Op::Expand { dims }, &[x]);
        b.reshape(x, &[2, HEADS, TOKENS, WIDTH])
    };
    let (k, v) = (repeat(&mut b, k), repeat(&mut b, v));
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let s = b.op(Op::Matmul {}, &[q, k]);
    let s = of(&mut b, s);
    let p = b.op(Op::Softmax {}, &[s]);
    let y = b.op(Op::Matmul {}, &[p, v]);
    b.done(y)
}

#[test]
fn repetitions_that_are_hidden_are_no_error() {
    let mut b = build();
    let sizes = |heads| [2, heads, TOKENS, WIDTH];
    let (q, k) = (param(&mut b, "q", DType::F32, &sizes(HEADS)), param(&mut b, "k", DType::F32, &sizes(KV_HEADS)));
    let v = param(&mut b, "v", DType::F32, &sizes(KV_HEADS));
    let repeat = |b: &mut Build, x| {
        let x = b.reshape(x, &[2, KV_HEADS, 1, TOKENS, WIDTH]);
        let dims = [2, KV_HEADS, HEADS / KV_HEADS, TOKENS, WIDTH].map(|n| n as i64).to_vec();
        let x = b.op(Op::Expand { dims }, &[x]);
        b.reshape(x, &[2, HEADS, TOKENS, WIDTH])
    };
    let (k, v) = (repeat(&mut b, k), repeat(&mut b, v));
    let k = b.op(Op::Unary { kind: Unary::Tanh }, &[k]);
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let s = b.op(Op::Matmul {}, &[q, k]);
    let p = b.op(Op::Softmax {}, &[s]);
    let y = b.op(Op::Matmul {}, &[p, v]);
    let (nodes, notes) = raised(&b.done(y));
    assert_eq!(ops(&nodes).last(), Some(&"matmul"));
    assert!(notes.len() == 1 && notes[0].contains("another number of heads"), "{notes:?}");
}

#[test]
fn masks_of_paddings_keep_the_padding() {
    for (dtype, causal) in [(DType::I64, true), (DType::I64, false), (DType::Bool, true)] {
        let module = attention(|b, s| {
            let pad = param(b, "attention_mask", dtype, &[2, TOKENS]);
            let pad = if dtype == DType::Bool { pad } else { b.op(Op::Cast { to: DType::Bool, wrap: false }, &[pad]) };
            let pad = b.reshape(pad, &[2, 1, 1, TOKENS]);
            let dims = [2, 1, TOKENS, TOKENS].map(|n| n as i64).to_vec();
            let mut seen = b.op(Op::Expand { dims }, &[pad]);
            if causal {
                let rule = b.allowed();
                let rule = b.bools(&[1, 1, TOKENS, TOKENS], rule);
                seen = b.op(Op::Binary { kind: Binary::And }, &[rule, seen]);
            }
            let (zero, never) = (b.number(DType::F32, 0.0), b.number(DType::F32, f32::MIN));
            let mask = b.op(Op::Select {}, &[seen, zero, never]);
            b.add(s, mask)
        });
        let (nodes, notes) = raised(&module);
        assert_eq!(notes.len(), 0, "{notes:?}");
        let padding = if dtype == DType::Bool { "%attention_mask" } else { "%cast" };
        let rule = if causal { ", mask=causal" } else { "" };
        assert_eq!(
            nodes[nodes.len() - 2..],
            [
                format!("%padding = reshape {padding} {{dims=[2, 1, 1, 6]}}: bool[2, 1, 1, 6]"),
                format!(
                    "%v.{} = sdpa %q, %k, %v, %padding {{scale=1{rule}}}: f32[2, 4, 6, 8]",
                    nodes[nodes.len() - 1].split([' ', '.']).nth(1).unwrap()
                )
            ]
        );
    }
}

/// What is said of an attention that keeps its mask.
fn kept(of: impl Fn(&mut Build, Operand) -> Operand) -> String {
    let (nodes, notes) = raised(&attention(of));
    assert!(nodes.last().unwrap().contains("= sdpa %q, %k, %v, ") && notes.len() == 1, "{nodes:?} {notes:?}");
    notes[0].clone()
}

#[test]
fn masks_without_a_rule_stay() {
    let literal = |wrong: usize| {
        move |b: &mut Build, s| {
            let mut seen = b.allowed();
            seen[wrong] = !seen[wrong];
            let mask = b.bools(&[TOKENS, TOKENS], seen);
            let never = b.number(DType::F32, f32::NEG_INFINITY);
            b.op(Op::Select {}, &[mask, s, never])
        }
    };
    assert!(kept(literal(2 * TOKENS + 4)).ends_with("the mask differs from causal at [2, 4]"));
    let bias = |b: &mut Build, s| {
        let numbers = (0..TOKENS * TOKENS).map(|i| i as f32 / 100.0).collect();
        let mask = b.literal(DType::F32, &[1, 1, TOKENS, TOKENS], numbers);
        b.add(mask, s)
    };
    assert!(kept(bias).contains("adds 0.00999"), "{}", kept(bias));
    let input = |b: &mut Build, s| {
        let mask = param(b, "mask", DType::F32, &[2, 1, TOKENS, TOKENS]);
        b.add(s, mask)
    };
    assert!(kept(input).contains("depends on the input %mask: f32[2, 1, 6, 6], which is not one number for each key"));
    let two = |b: &mut Build, s| {
        let a = param(b, "a", DType::F32, &[2, 1, 1, TOKENS]);
        let c = param(b, "c", DType::F32, &[2, 1, TOKENS, 1]);
        let mask = b.add(a, c);
        b.add(s, mask)
    };
    assert!(kept(two).contains("depends on the inputs %a, %c"));
    let queries = |b: &mut Build, s| {
        let pad = param(b, "pad", DType::I64, &[2, TOKENS]);
        let pad = b.reshape(pad, &[2, 1, TOKENS, 1]);
        let one = Operand::Weight(b.module.add_weight(
            "one",
            Type::scalar(DType::I64),
            dlx_ir::WeightDef::Literal(Data::I64(vec![1])),
        ));
        let seen = b.op(Op::Compare { kind: Compare::Eq }, &[pad, one]);
        let never = b.number(DType::F32, -1e9);
        b.op(Op::Select {}, &[seen, s, never])
    };
    let module = attention(queries);
    let (_, notes) = run(&module, RAISE).unwrap();
    assert!(notes[0].to_string().contains("the mask is not full and %pad: for some %pad it differs at"), "{notes:?}");
}

#[test]
fn caps_and_scales_stand_where_they_stand() {
    let capped = attention(|b, s| {
        let (half, cap) = (b.number(DType::F32, 0.05), b.number(DType::F32, 5.0));
        let s = b.mul(s, half);
        let t = b.op(Op::Unary { kind: Unary::Tanh }, &[s]);
        let s = b.mul(t, cap);
        let mask = b.added_mask();
        b.add(s, mask)
    });
    let (nodes, _) = raised(&capped);
    assert!(nodes.len() == 1 && nodes[0].contains("{scale=0.25, cap=5, mask=causal}"), "{nodes:?}");
    let late = attention(|b, s| {
        let mask = b.added_mask();
        let s = b.add(s, mask);
        b.op(Op::Scale { by: 0.5 }, &[s])
    });
    let (nodes, notes) = raised(&late);
    assert!(ops(&nodes).contains(&"softmax") && notes[0].contains("are masked before they are scaled"), "{notes:?}");
}

#[test]
fn batch_and_heads_may_be_one_dimension() {
    let mut b = build();
    let x = |b: &mut Build, name: &str| param(b, name, DType::F32, &[HEADS, TOKENS, WIDTH]);
    let (q, k, v) = (x(&mut b, "q"), x(&mut b, "k"), x(&mut b, "v"));
    let k = b.transpose(k, &[0, 2, 1]);
    let s = b.op(Op::Matmul {}, &[q, k]);
    let allowed = b.allowed();
    let mask = b.bools(&[1, TOKENS, TOKENS], allowed);
    let never = b.number(DType::F32, -1e9);
    let s = b.op(Op::Select {}, &[mask, s, never]);
    let p = b.op(Op::Softmax {}, &[s]);
    let y = b.op(Op::Matmul {}, &[p, v]);
    let (nodes, notes) = raised(&b.done(y));
    assert_eq!((ops(&nodes), notes.len()), (vec!["reshape", "reshape", "reshape", "sdpa", "reshape"], 0), "{notes:?}");
}

#[test]
fn a_softmax_that_attends_nothing_is_noted() {
    let mut b = build();
    let x = param(&mut b, "x", DType::F32, &[3, 7]);
    let y = b.op(Op::Softmax {}, &[x]);
    let (_, notes) = raised(&b.done(y));
    assert_eq!(notes, ["sdpa: %v = softmax %x: f32[3, 7]: feeds no product with values"]);
}

#[test]
fn rows_name_all_that_they_cannot_say() {
    let how = Spelling { ropes: Ropes::Given, layers: 1, ..DYNAMO };
    let mut b = Build::new(how);
    let ids = param(&mut b, "ids", DType::I64, &[1, TOKENS]);
    let table = b.weight("embed", &[8, 12], DType::F32);
    let x = b.op(Op::Gather { axis: 0 }, &[table, ids]);
    let y = b.op(Op::Unary { kind: Unary::Exp }, &[x]);
    let z = b.slice(x, 0, 6, 1);
    let z = b.concat(&[z, z]);
    let y = b.add(y, z);
    let module = b.done(y);
    let error = run(&module, "raise-rows").unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert!(lines[0].ends_with("because of 2 nodes:"), "{error}");
    assert!(
        lines[1].contains("%v.1 = unary %v {kind=exp}: f32[1, 6, 12]: `unary` has no counterpart in rows"),
        "{error}"
    );
    assert!(lines[2].contains("leaves out tokens or features"), "{error}");
    let mut b = build();
    let x = param(&mut b, "x", DType::F32, &[1, TOKENS, 4]);
    let y = b.neg(x);
    let error = run(&b.done(y), "raise-rows").unwrap_err();
    assert!(error.contains("takes %x: f32[1, 6, 4], not the ids of one sequence, i64[1, T]"), "{error}");
}

#[test]
fn a_rule_may_be_given_where_tokens_are_too_few_to_tell() {
    let module = Build::decoder(DYNAMO);
    let passes = |rule: &str| format!("{RAISE},raise-rows{{mask={rule}}}");
    let error = run(&module, &passes("full")).unwrap_err();
    assert!(error.contains("attends under causal, which differs from full at [0, 1]"), "{error}");
    let full = Build::decoder(Spelling { mask: dlx_ir::Mask::Full, ..DYNAMO });
    let (rows, _) = run(&full, &passes("block_causal:64")).unwrap();
    assert!(rows.to_string().contains("mask %ids {rule=block_causal:64}"));
}
