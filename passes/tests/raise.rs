//! Raising decoders as exporters spell them: what comes out is the same graph for all, and computes what the spelled one does.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "raise/build.rs"]
mod build;
#[path = "raise/pieces.rs"]
mod pieces;

use build::{Attentions, Build, DYNAMO, Norms, Ropes, Spelling, TOKENS};
use dlx_ir::{DType, Data, Evaluator, Mask, Module, Tensor, VerifiedModule};
use dlx_passes::{Note, parse_pipeline, run_pipeline};

const RAISE: &str = "raise-norm,raise-activation,raise-rope,raise-attention,dce";

fn run(module: &VerifiedModule, passes: &str) -> Result<(VerifiedModule, Vec<Note>), String> {
    let steps = parse_pipeline(passes).unwrap();
    let (module, reports) =
        run_pipeline(module.clone(), &steps, &mut |_, _, _| Ok(())).map_err(|f| f.error.to_string())?;
    Ok((module, reports.into_iter().flat_map(|r| r.notes).collect()))
}

/// Small numbers for any weight.
fn numbers(name: &str, n: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(0x9e37_79b9u32, |s, b| (s ^ u32::from(b)).wrapping_mul(0x0100_0193)) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        half::bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_f32()
    };
    let center = if name.contains("norm") { 1.0 } else { 0.0 };
    (0..n).map(|_| next() * 0.5 + center).collect()
}

fn evaluate(module: &Module, graph: &str, args: &[Tensor]) -> Vec<f32> {
    let source = |name: &str| {
        let id = module.weight(name).ok_or("no such weight")?;
        Ok::<_, String>(numbers(name, module.weights[id].ty.elements().unwrap()))
    };
    let results = Evaluator::new(module, &source, 1).run(graph, args, &mut |_, _| {}).unwrap();
    results[0].floats().unwrap().to_vec()
}

fn ids() -> (Vec<Tensor>, Vec<Tensor>) {
    let ids: Vec<i32> = (0..TOKENS as i32).map(|i| (i * 7 + 3) % 32).collect();
    let wide = Data::I64(ids.iter().map(|i| i64::from(*i)).collect());
    let spelled = Tensor { dtype: DType::I64, shape: vec![1, TOKENS], data: wide };
    (vec![spelled], vec![Tensor::i32(&[TOKENS], ids), Tensor::i32(&[TOKENS], (0..TOKENS as i32).collect())])
}

/// Raises a decoder, and checks that it computes what it did.
fn raised(how: Spelling) -> Module {
    let module = Build::decoder(how);
    let (ranked, notes) = run(&module, RAISE).unwrap();
    assert_eq!(notes, [], "{how:?}");
    let (rows, _) = run(&ranked, "raise-rows").unwrap_or_else(|e| panic!("{how:?}\n{e}\n{}", *ranked));
    let (spelled, plain) = ids();
    let near = if how.dtype == DType::F32 { 2e-4 } else { 0.15 };
    let wanted = evaluate(&module, "main", &spelled);
    for (module, graph, args) in [(&ranked, "main", &spelled), (&rows, "forward", &plain)] {
        let found = evaluate(module, graph, args);
        let far = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(wanted.len() == found.len() && far < near, "{how:?}: {graph} is {far} away");
    }
    rows.into_inner()
}

#[test]
fn every_spelling_becomes_one_graph() {
    let text = raised(DYNAMO).to_string();
    println!("{text}");
    for norms in [Norms::Quotient, Norms::Divided, Norms::Power, Norms::Given] {
        assert_eq!(raised(Spelling { norms, ..DYNAMO }).to_string(), text, "{norms:?}");
    }
    for ropes in [Ropes::Reshaped, Ropes::BeforeHeads, Ropes::Halves, Ropes::Given] {
        assert_eq!(raised(Spelling { ropes, ..DYNAMO }).to_string(), text, "{ropes:?}");
    }
    for attentions in [Attentions::Eager, Attentions::Select, Attentions::Given] {
        assert_eq!(raised(Spelling { attentions, ..DYNAMO }).to_string(), text, "{attentions:?}");
    }
    let never = f32::MIN;
    assert_eq!(raised(Spelling { attentions: Attentions::Eager, never, ..DYNAMO }).to_string(), text);
}

#[test]
fn sixteen_bits_become_the_same_graph() {
    for (dtype, never) in [(DType::BF16, -3.389_531_4e38), (DType::F16, -65504.0)] {
        let text = raised(Spelling { dtype, ..DYNAMO }).to_string();
        assert_eq!(text.replace(&dtype.to_string(), "f32"), raised(DYNAMO).to_string());
        let how = Spelling { dtype, never, attentions: Attentions::Eager, ..DYNAMO };
        assert_eq!(raised(how).to_string(), text);
    }
}

#[test]
fn masks_get_the_names_of_their_rules() {
    for mask in [Mask::Full, Mask::Causal, Mask::BlockCausal(2), Mask::BlockCausal(4), Mask::Local(2), Mask::Local(4)] {
        for attentions in [Attentions::Sdpa, Attentions::Eager, Attentions::Select, Attentions::Given] {
            let text = raised(Spelling { mask, attentions, ..DYNAMO }).to_string();
            assert!(text.contains(&format!("mask %ids {{rule={mask}}}")), "{text}");
        }
    }
}

#[test]
fn families_differ_where_they_differ() {
    let qwen = raised(Spelling { bias: true, qk_norm: false, theta: 1e6, ..DYNAMO }).to_string();
    assert!(qwen.contains("%l1.q = linear %l1.attn_norm, @l1.q.weight, @l1.q.bias {bias}: f32[T, 32]"), "{qwen}");
    assert!(qwen.contains("theta=1e6") && !qwen.contains("q_norm"), "{qwen}");
    let llada = raised(Spelling { qk_norm: false, tied: false, mask: Mask::Full, theta: 5e5, ..DYNAMO }).to_string();
    assert!(llada.contains("%logits = linear %final_norm, @lm_head.weight: f32[T, 32]"), "{llada}");
}

#[test]
fn neighbors_are_rotated_as_halves_of_other_weights() {
    for (qk_norm, bias) in [(true, false), (false, true), (true, true)] {
        let text = raised(Spelling { ropes: Ropes::Neighbors, qk_norm, bias, ..DYNAMO }).to_string();
        assert_eq!(text.matches("weight @halves").count(), if qk_norm { 3 } else { 2 }, "{text}");
        assert!(text.contains("= gather @l1.k.weight, @halves"), "{text}");
    }
}

#[test]
fn parts_of_a_product_are_products_with_parts() {
    for bias in [false, true] {
        let text = raised(Spelling { fused: true, bias, ..DYNAMO }).to_string();
        let slice = "= slice @l0.qkv.weight {starts=[32, 0], ends=[48, 16], steps=[1, 1]}";
        assert!(text.contains(slice) && text.contains("%l0.k = linear %l0.attn_norm, @l0.qkv.weight.2"), "{text}");
    }
    raised(Spelling { fused: true, bias: true, ropes: Ropes::Neighbors, ..DYNAMO });
}
