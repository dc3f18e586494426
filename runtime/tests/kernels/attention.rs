//! Attention over f32, f16 and int8 states, under every mask and cut of the cache.

use super::{Rng, assert_near, everywhere, quantize, to_f64};
use dlx_ir::{DType, Mask};
use dlx_runtime::cpu::{
    AttentionShape, KvShape, attention, attention_scratch_words, k_state_bytes, kv_write, v_state_bytes,
};
use half::f16;

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
    let mut want = Vec::new();
    for i in 0..c.rows {
        let end = match c.mask {
            Mask::Full | Mask::Local(_) => c.visible,
            Mask::Causal => c.visible.min(c.at + i + 1),
            Mask::BlockCausal(b) => c.visible.min(((c.at + i) / b as usize + 1) * b as usize),
        };
        for j in 0..c.heads {
            let head = j / (c.heads / c.kv_heads) * c.head_dim;
            let q = &q[(i * c.heads + j) * c.head_dim..][..c.head_dim];
            let scores: Vec<f64> = (c.from..end)
                .map(|s| {
                    let k = &k[s * width + head..][..c.head_dim];
                    q.iter().zip(k).map(|(a, b)| f64::from(*a) * b).sum::<f64>() / (c.head_dim as f64).sqrt()
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for d in 0..c.head_dim {
                let sum: f64 =
                    (c.from..end).zip(&scores).map(|(s, score)| (score - top).exp() * v[s * width + head + d]).sum();
                want.push(if total > 0.0 { sum / total } else { 0.0 });
            }
        }
    }
    assert_near(&what, &got, &want, 2e-6);
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
