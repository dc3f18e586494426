//! The fused head against statistics of its full logits.

use super::{Rng, TestWeight, everywhere};
use dlx_ir::DType;
use dlx_runtime::cpu::{Norm, PackedWeight, head_logits, head_stats, head_stats_scratch_words, linear_scratch_words};
use dlx_runtime::exec::RowStats;

fn stats(
    what: &str,
    x: &[f32],
    norm: Option<Norm<'_>>,
    head: &PackedWeight<'_>,
    banned: Option<usize>,
) -> Vec<RowStats> {
    let rows = x.len() / head.k();
    let flat = everywhere(what, |ctx| {
        let mut out = vec![RowStats { best: -1, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
        let mut scratch = vec![0; head_stats_scratch_words(rows, head)];
        head_stats(ctx, x, norm, head, banned, &mut out, &mut scratch);
        out.iter().flat_map(|s| [s.best as f32, s.prob, s.margin, s.entropy]).collect()
    });
    flat.as_chunks::<4>()
        .0
        .iter()
        .map(|[best, prob, margin, entropy]| RowStats {
            best: *best as i32,
            prob: *prob,
            margin: *margin,
            entropy: *entropy,
        })
        .collect()
}

fn reference(logits: &[f32], banned: Option<usize>) -> (usize, f64, f64, f64) {
    let top = logits.iter().fold(f64::NEG_INFINITY, |m, z| m.max(f64::from(*z)));
    let total: f64 = logits.iter().map(|z| (f64::from(*z) - top).exp()).sum();
    let probs: Vec<f64> = logits.iter().map(|z| (f64::from(*z) - top).exp() / total).collect();
    let entropy = -probs.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
    let mut order: Vec<usize> = (0..logits.len()).filter(|i| Some(*i) != banned).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let second = order.get(1).map_or(0.0, |i| probs[*i]);
    (order[0], probs[order[0]], probs[order[0]] - second, entropy)
}

#[test]
fn statistics_match_the_full_logits() {
    let mut rng = Rng::new(8);
    for (format, vocab, k, rows) in [
        ("q4g32", 1000, 64, 5),
        ("q8g64", 257, 96, 1),
        ("bf16", 700, 40, 19),
        ("q4g128m", 33, 128, 70),
        ("l16", 300, 200, 70),
        ("f32", 1, 8, 2),
    ] {
        let head = TestWeight::random(&mut rng, format.parse().unwrap(), vocab, k);
        let x: Vec<f32> = rng.values(rows * k).iter().map(|v| v * 3.0).collect();
        let norm_weight = rng.values(k);
        let norm = Norm { weight: &norm_weight, eps: 1e-5 };
        let logits = everywhere(format, |ctx| {
            let mut out = vec![0f32; rows * vocab];
            let mut scratch = vec![0; linear_scratch_words(rows, &[head.packed()])];
            head_logits(ctx, &x, rows, Some(norm), &head.packed(), &mut out, &mut scratch);
            out
        });
        let best = reference(&logits[..vocab], None).0;
        for banned in [None, (vocab > 1).then_some(best)] {
            let got = stats(format, &x, Some(norm), &head.packed(), banned);
            for (s, z) in got.iter().zip(logits.chunks_exact(vocab)) {
                let (best, prob, margin, entropy) = reference(z, banned);
                assert_eq!(s.best, best as i32, "{format}");
                for (got, want) in [(s.prob, prob), (s.margin, margin), (s.entropy, entropy)] {
                    assert!((f64::from(got) - want).abs() <= want * 1e-5 + 1e-6, "{format}: {s:?}, but {want}");
                }
            }
        }
    }
}

/// A head whose logit of id `i` is `values[i]` for the input `[1]`.
fn head_of(values: &[f32]) -> TestWeight {
    let mut w = TestWeight::random(&mut Rng::new(9), DType::F32, values.len(), 1);
    let tile = w.bytes.len() / values.len().div_ceil(16);
    for (rows, out) in values.chunks(16).zip(w.bytes.chunks_exact_mut(tile)) {
        let raw: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        dlx_runtime::cpu::pack_tile_float(DType::F32, &raw, 1, out);
    }
    w
}

#[test]
fn ties_go_to_the_lowest_id_and_have_no_margin() {
    for (first, second) in [(3, 4), (3, 19), (18, 300), (5, 511), (255, 256)] {
        let mut values = vec![0.5f32; 512];
        values[first] = 2.0;
        values[second] = 2.0;
        let head = head_of(&values);
        let got = stats("tie", &[1.0], None, &head.packed(), None)[0];
        assert_eq!((got.best, got.margin), (first as i32, 0.0));
        let got = stats("tie", &[1.0], None, &head.packed(), Some(first))[0];
        assert_eq!(got.best, second as i32);
        assert!(got.margin > 0.0);
    }
}

#[test]
fn degenerate_rows_still_name_an_allowed_token() {
    let head = head_of(&[f32::NEG_INFINITY; 40]);
    assert_eq!(stats("-inf", &[1.0], None, &head.packed(), Some(0))[0].best, 1);
    let mut values = [0f32; 40];
    values[7] = 300.0;
    let sure = stats("sure", &[1.0], None, &head_of(&values).packed(), None)[0];
    assert_eq!(sure, RowStats { best: 7, prob: 1.0, margin: 1.0, entropy: 0.0 });
    let banned = stats("sure", &[1.0], None, &head_of(&values).packed(), Some(7))[0];
    assert_eq!((banned.best, banned.prob), (0, 0.0));
}

#[test]
fn a_row_with_one_logit_that_is_not_finite_has_no_statistics() {
    for place in [0, 5, 255, 256, 299] {
        for value in [3e38f32, -3e38] {
            let mut values = [0.5f32; 300];
            values[place] = value;
            let head = head_of(&values);
            // One row in two overflows, in one place.
            let x: Vec<f32> = (0..70).map(|row| if row % 2 == 0 { 1.0 } else { 2.0 }).collect();
            let finite = everywhere("overflow", |ctx| {
                let mut out = vec![RowStats { best: -1, prob: 0.0, margin: 0.0, entropy: 0.0 }; x.len()];
                let mut scratch = vec![0; head_stats_scratch_words(x.len(), &head.packed())];
                head_stats(ctx, &x, None, &head.packed(), None, &mut out, &mut scratch);
                out.iter().map(|s| f32::from(u8::from(s.prob.is_finite() && s.margin.is_finite()))).collect()
            });
            let want: Vec<f32> = (0..70).map(|row| if row % 2 == 0 { 1.0 } else { 0.0 }).collect();
            assert_eq!(finite, want, "{place} {value}");
        }
    }
}
