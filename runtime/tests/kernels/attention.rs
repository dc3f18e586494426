//! Attention over f32, f16 and int8 states, under every mask and cut of the cache.

use super::{Rng, everywhere, quantize, to_f64};
use dlx_ir::{DType, Mask};
use dlx_runtime::cpu::{
    AttentionShape, Ctx, KvShape, attention, attention_scratch_words, k_state_bytes, kv_write, v_state_bytes,
};
use half::f16;
use std::ops::Range;

struct Case {
    dtype: DType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rows: usize,
    at: usize,
    from: usize,
    visible: usize,
    mask: Mask,
}

fn check(rng: &mut Rng, c: &Case) {
    let what = format!(
        "{} heads {}/{} dim {} rows {} at {} from {} visible {} {:?}",
        c.dtype, c.heads, c.kv_heads, c.head_dim, c.rows, c.at, c.from, c.visible, c.mask
    );
    let kv = KvShape { dtype: c.dtype, max_seq: c.visible + 5, kv_heads: c.kv_heads, head_dim: c.head_dim };
    let width = c.kv_heads * c.head_dim;
    let q: Vec<f32> = rng.values(c.rows * c.heads * c.head_dim).iter().map(|v| v * 4.0).collect();
    let (k, v) = (rng.values(c.visible * width), rng.values(c.visible * width));
    let got = everywhere(&what, |ctx| {
        // All ones is not a number in both types: rows that were never written must not matter.
        let mut k_state = vec![0xff; k_state_bytes(kv).unwrap()];
        let mut v_state = vec![0xff; v_state_bytes(kv).unwrap()];
        let split = c.visible / 2;
        let mut write = |rows: std::ops::Range<usize>| {
            let part = rows.start * width..rows.end * width;
            kv_write(ctx, kv, &k[part.clone()], &v[part], rows.start, &mut k_state, &mut v_state);
        };
        write(c.from.min(split)..split);
        write(split.max(c.from)..c.visible);
        let shape = AttentionShape { kv, heads: c.heads, mask: c.mask, at: c.at, from: c.from, visible: c.visible };
        let mut out = vec![f32::NAN; q.len()];
        let mut scratch = vec![0; attention_scratch_words(ctx.threads(), kv)];
        attention(ctx, shape, &q, &k_state, &v_state, &mut out, &mut scratch);
        out
    });
    let stored = |x: &[f32]| match c.dtype {
        DType::F16 => x.iter().map(|x| f16::from_f32(*x).to_f64()).collect(),
        DType::CACHE_Q8 => to_f64(x).chunks(c.head_dim).flat_map(quantize).collect(),
        _ => to_f64(x),
    };
    let (k, v) = (stored(&k), stored(&v));
    let int8 = c.dtype == DType::CACHE_Q8;
    // Beside int8 caches queries are int8, too, with a scale per 128 features.
    let scale = if int8 { 1.0 / (c.head_dim as f32).sqrt() } else { 1.0 };
    let q: Vec<f32> = q.iter().map(|q| q * scale).collect();
    let queries =
        |q: &[f32]| -> Vec<f64> { if int8 { to_f64(q).chunks(128).flat_map(quantize).collect() } else { to_f64(q) } };
    let divisor = if int8 { 1.0 } else { (c.head_dim as f64).sqrt() };
    let (mut want, mut slack) = (Vec::new(), Vec::new());
    for i in 0..c.rows {
        let end = match c.mask {
            Mask::Full | Mask::Local(_) => c.visible,
            Mask::Causal => c.visible.min(c.at + i + 1),
            Mask::BlockCausal(b) => c.visible.min(((c.at + i) / b as usize + 1) * b as usize),
        };
        for j in 0..c.heads {
            let head = j / (c.heads / c.kv_heads) * c.head_dim;
            let q = queries(&q[(i * c.heads + j) * c.head_dim..][..c.head_dim]);
            let scores: Vec<f64> = (c.from..end)
                .map(|s| {
                    let k = &k[s * width + head..][..c.head_dim];
                    q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / divisor
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            let weight = |s: usize| (scores[s - c.from] - top).exp();
            // A weight times its value's scale is off by half a code at most, and a code is a 127th of the block's greatest.
            let unit = |s: usize| if int8 { peak(&v[s * width + head..][..c.head_dim]) / 127.0 } else { 0.0 };
            let codes: Vec<f64> = (0..c.visible.div_ceil(64))
                .map(|b| {
                    (c.from.max(b * 64)..end.min(b * 64 + 64)).map(|s| weight(s) * unit(s)).fold(0.0, f64::max) / 127.0
                })
                .collect();
            for d in 0..c.head_dim {
                let off = |s: usize| {
                    if unit(s) > 0.0 { 0.5 * codes[s / 64] * (v[s * width + head + d] / unit(s)).abs() } else { 0.0 }
                };
                slack.push(if total > 0.0 { (c.from..end).map(off).sum::<f64>() / total } else { 0.0 });
                let sum: f64 =
                    (c.from..end).zip(&scores).map(|(s, score)| (score - top).exp() * v[s * width + head + d]).sum();
                want.push(if total > 0.0 { sum / total } else { 0.0 });
            }
        }
    }
    let greatest = peak(&want).max(1e-3);
    for (i, ((got, want), slack)) in got.iter().zip(&want).zip(&slack).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= 2e-6 * greatest + 1.0001 * slack, "{what}: element {i}: {got} instead of {want} ± {slack}");
    }
}

fn peak(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, v| m.max(v.abs()))
}

#[test]
fn every_mask_and_cut() {
    let mut rng = Rng::new(20);
    for dtype in [DType::F32, DType::F16, DType::CACHE_Q8] {
        for mask in [Mask::Full, Mask::Causal, Mask::BlockCausal(4), Mask::BlockCausal(32)] {
            for (rows, at, from, visible) in
                [(1, 0, 0, 1), (4, 40, 0, 44), (4, 40, 17, 77), (9, 70, 66, 150), (21, 0, 3, 21), (3, 128, 0, 200)]
            {
                check(&mut rng, &Case { dtype, heads: 4, kv_heads: 2, head_dim: 16, rows, at, from, visible, mask });
            }
        }
    }
}

#[test]
fn head_sizes_and_groups() {
    let mut rng = Rng::new(21);
    for dtype in [DType::F32, DType::F16, DType::CACHE_Q8] {
        for (heads, kv_heads, head_dim) in [(1, 1, 8), (6, 2, 24), (3, 3, 64), (7, 1, 128), (8, 2, 256)] {
            let mask = Mask::BlockCausal(8);
            check(&mut rng, &Case { dtype, heads, kv_heads, head_dim, rows: 5, at: 60, from: 2, visible: 90, mask });
        }
    }
}

#[test]
fn rows_without_keys_are_zero() {
    let mut rng = Rng::new(22);
    let case = Case {
        dtype: DType::F32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        rows: 6,
        at: 0,
        from: 3,
        visible: 6,
        mask: Mask::Causal,
    };
    check(&mut rng, &case);
}

/// A layer's int8 caches with rows of random numbers, and what 4 query heads of 3 rows make of them.
struct Held {
    kv: KvShape,
    k_state: Vec<u8>,
    v_state: Vec<u8>,
}

impl Held {
    const HEADS: usize = 4;
    const ROWS: usize = 3;

    fn new(ctx: &Ctx<'_>, k: &[f32], v: &[f32], steps: &[usize]) -> Self {
        let kv = KvShape { dtype: DType::CACHE_Q8, max_seq: 150, kv_heads: 2, head_dim: 40 };
        let states = [k_state_bytes(kv), v_state_bytes(kv)].map(|bytes| vec![0xff; bytes.unwrap()]);
        let [k_state, v_state] = states;
        let mut held = Held { kv, k_state, v_state };
        for pair in steps.windows(2) {
            held.write(ctx, k, v, pair[0]..pair[1]);
        }
        held
    }

    fn write(&mut self, ctx: &Ctx<'_>, k: &[f32], v: &[f32], rows: Range<usize>) {
        let part = rows.start * 80..rows.end * 80;
        kv_write(ctx, self.kv, &k[part.clone()], &v[part], rows.start, &mut self.k_state, &mut self.v_state);
    }

    fn attend(&self, ctx: &Ctx<'_>, q: &[f32], at: usize, visible: usize) -> Vec<f32> {
        let shape = AttentionShape { kv: self.kv, heads: Self::HEADS, mask: Mask::Causal, at, from: 0, visible };
        let mut out = vec![f32::NAN; q.len()];
        let mut scratch = vec![0; attention_scratch_words(ctx.threads(), self.kv)];
        attention(ctx, shape, q, &self.k_state, &self.v_state, &mut out, &mut scratch);
        out
    }
}

#[test]
fn int8_rows_do_not_depend_on_steps_rollbacks_or_neighbors() {
    let mut rng = Rng::new(23);
    let [k, v, others] = [(); 3].map(|()| rng.values(150 * 80));
    let q = rng.values(Held::ROWS * Held::HEADS * 40);
    everywhere("int8 caches", |ctx| {
        let whole = Held::new(ctx, &k, &v, &[0, 150]);
        let expected = whole.attend(ctx, &q, 147, 150);
        // Cuts inside quads of values, tiles of keys and rounds; row by row.
        for steps in [&[0, 1, 3, 6, 33, 70, 149, 150][..], &(0..=150).collect::<Vec<_>>()] {
            assert_eq!(expected, Held::new(ctx, &k, &v, steps).attend(ctx, &q, 147, 150), "{steps:?}");
        }
        // Rows that are taken back and written again.
        let mut rolled = Held::new(ctx, &k, &v, &[0, 91]);
        rolled.write(ctx, &others, &others, 91..150);
        assert_ne!(expected, rolled.attend(ctx, &q, 147, 150), "other rows must be seen");
        rolled.write(ctx, &k, &v, 91..150);
        assert_eq!(expected, rolled.attend(ctx, &q, 147, 150));
        // Each row alone: what lies behind a row is not its business.
        let width = Held::HEADS * 40;
        for row in 0..Held::ROWS {
            let own = row * width..(row + 1) * width;
            let short = Held::new(ctx, &k, &v, &[0, 148 + row]);
            assert_eq!(expected[own.clone()], short.attend(ctx, &q[own], 147 + row, 148 + row), "row {row}");
        }
        expected
    });
}

#[test]
fn int8_attention_is_near_that_of_exact_queries_and_weights() {
    const ROWS: usize = 8;
    const VISIBLE: usize = 700;
    let kv = KvShape { dtype: DType::CACHE_Q8, max_seq: VISIBLE, kv_heads: 1, head_dim: 128 };
    let mut rng = Rng::new(24);
    let [q, k, v] =
        [ROWS, VISIBLE, VISIBLE].map(|rows| rng.values(rows * 128).iter().map(|x| x * 3.0).collect::<Vec<_>>());
    let got = everywhere("int8 caches", |ctx| {
        let mut k_state = vec![0; k_state_bytes(kv).unwrap()];
        let mut v_state = vec![0; v_state_bytes(kv).unwrap()];
        kv_write(ctx, kv, &k, &v, 0, &mut k_state, &mut v_state);
        let shape = AttentionShape { kv, heads: 1, mask: Mask::Full, at: 0, from: 0, visible: VISIBLE };
        let (mut out, mut scratch) = (vec![0.0; q.len()], vec![0; attention_scratch_words(ctx.threads(), kv)]);
        attention(ctx, shape, &q, &k_state, &v_state, &mut out, &mut scratch);
        out
    });
    let stored = |x: &[f32]| to_f64(x).chunks(128).flat_map(quantize).collect::<Vec<_>>();
    let (k, v) = (stored(&k), stored(&v));
    let (mut wrong, mut all) = (0.0, 0.0);
    for (q, got) in q.chunks(128).zip(got.chunks(128)) {
        let product = |k: &[f64]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * b).sum::<f64>() / 128f64.sqrt();
        let weights: Vec<f64> = k.chunks(128).map(|k| product(k).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (d, got) in got.iter().enumerate() {
            let want = weights.iter().enumerate().map(|(s, w)| w * v[s * 128 + d]).sum::<f64>() / total;
            wrong += (f64::from(*got) - want).powi(2);
            all += want.powi(2);
        }
    }
    let error = (wrong / all).sqrt();
    assert!(error < 0.02, "RMS {error}");
}
