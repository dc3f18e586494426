//! Cases of the model level, and of `pack`.

use dlx_ir::{DType, Data, Mask, Op, Post, Tensor};

use super::{Cases, SUMMED, of_ints};
use crate::compare::Within;

/// Sums in f64 of what was rounded to f32 before: norms, then products, then what follows them, each rounded.
const FUSED: Within = Within::Largest(1e-6);
/// Scores are rounded to f32 before they become weights: 6e-8 of a score of at most 20.
const ATTENDED: Within = Within::Largest(2e-6);

pub(super) fn add_to(c: &mut Cases) {
    attention(c);
    linear(c);
    norms(c);
    tables(c);
    heads(c);
    for dtype in [DType::F32, DType::BF16] {
        let w = c.rng.reals(dtype, &[32, 40], -1.0, 1.0);
        for shard in [None, Some(16)] {
            c.push(Op::Pack { layout: "n16".into(), shard }, [w.clone()], Within::Exact);
        }
    }
}

fn attention(c: &mut Cases) {
    // rows, keys, heads, key heads, head_dim
    for [t, s, h, g, hd] in [[1, 1, 1, 1, 2], [5, 5, 4, 2, 8], [3, 9, 6, 1, 4], [17, 17, 3, 3, 16]] {
        let q = c.rng.floats(&[t, h * hd], -2.0, 2.0);
        let (k, v) = (c.rng.floats(&[s, g * hd], -2.0, 2.0), c.rng.floats(&[s, g * hd], -2.0, 2.0));
        let head_dim = hd as u32;
        // A row that may attend nothing has no weights: each sees the first key.
        let mut seen = c.rng.bools(&[t, s]);
        if let Data::Bool(seen) = &mut seen.data {
            seen.iter_mut().step_by(s).for_each(|sees| *sees = true);
        }
        c.push(Op::Attention { head_dim, mask: None }, [q.clone(), k.clone(), v.clone(), seen], ATTENDED);
        for mask in [Mask::Full, Mask::Causal, Mask::BlockCausal(4), Mask::BlockCausal(3), Mask::Local(4)] {
            if s == t {
                c.push(Op::Attention { head_dim, mask: Some(mask) }, [q.clone(), k.clone(), v.clone()], ATTENDED);
            }
        }
    }
    for t in [1, 2, 13] {
        let x = c.rng.floats(&[t, 4], -1.0, 1.0);
        let rules =
            [Mask::Full, Mask::Causal, Mask::BlockCausal(1), Mask::BlockCausal(4), Mask::Local(2), Mask::Local(5)];
        for rule in rules {
            c.push(Op::Mask { rule }, [x.clone()], Within::Exact);
        }
    }
}

fn linear(c: &mut Cases) {
    for [t, k, out] in [[1, 8, 4], [3, 33, 17], [5, 64, 48]] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = c.rng.floats(&[t, k], -2.0, 2.0);
            let norm_weight = c.rng.floats(&[k], 0.5, 1.5);
            let residual = c.rng.floats(&[t, out], -2.0, 2.0);
            for n in 1..=3u32 {
                let weights: Vec<Tensor> = (0..n).map(|_| c.rng.reals(dtype, &[out, k], -1.0, 1.0)).collect();
                let biases: Vec<Tensor> = (0..n).map(|_| c.rng.floats(&[out], -1.0, 1.0)).collect();
                for bias in [false, true] {
                    for norm in [None, Some(1e-5)] {
                        for post in [Post::None, Post::Add, Post::SwiGlu] {
                            if (post == Post::Add && n != 1) || (post == Post::SwiGlu && n != 2) {
                                continue;
                            }
                            let mut args = vec![x.clone()];
                            args.extend(weights.iter().cloned());
                            args.extend(biases.iter().filter(|_| bias).cloned());
                            args.extend(norm.map(|_| norm_weight.clone()));
                            args.extend((post == Post::Add).then(|| residual.clone()));
                            c.push(Op::Linear { n, bias, norm, post }, args.clone(), FUSED);
                        }
                    }
                }
            }
        }
    }
}

fn norms(c: &mut Cases) {
    for (shape, len) in [([1, 8], 8), ([4, 24], 8), ([7, 64], 64), ([2, 1], 1)] {
        for eps in [1e-6, 1e-2] {
            let (x, w) = (c.rng.floats(&shape, -3.0, 3.0), c.rng.floats(&[len], -1.5, 1.5));
            c.push(Op::RmsNorm { eps }, [x, w], FUSED);
        }
    }
}

fn tables(c: &mut Cases) {
    for (vocab, width, t) in [(7, 5, 4), (3, 1, 1), (64, 32, 9)] {
        for dtype in [DType::F32, DType::F16] {
            let table = c.rng.reals(dtype, &[vocab, width], -2.0, 2.0);
            let ids = c.rng.wholes(DType::I32, &[t], 0, vocab as i64 - 1);
            c.push(Op::Embed {}, [ids, table], Within::Exact);
        }
    }
    for (head_dim, theta) in [(2, 1e4), (8, 1e6), (64, 1e4), (128, 5e5)] {
        let near = of_ints(DType::I32, &[5], vec![0, 1, 2, 7, 31]);
        let far = of_ints(DType::I32, &[3], vec![127, 511, 2047]);
        // Frequencies are f32 and so are their products with positions: an angle may be a neighbor, 2⁻²³ of itself away.
        c.push(Op::RopeTable { theta, head_dim }, [near], Within::Largest(31.0 * 1.2e-7));
        c.push(Op::RopeTable { theta, head_dim }, [far], Within::Largest(2047.0 * 1.2e-7));
    }
    for (t, h, hd) in [(1, 1, 2), (5, 3, 8), (4, 2, 64)] {
        for norm in [None, Some(1e-6)] {
            let (x, table) = (c.rng.floats(&[t, h * hd], -2.0, 2.0), c.rng.floats(&[t, hd], -1.0, 1.0));
            let w = c.rng.floats(&[hd], 0.5, 1.5);
            let args: Vec<Tensor> = [x, table].into_iter().chain(norm.map(|_| w)).collect();
            c.push(Op::Rope { head_dim: hd as u32, norm }, args.clone(), FUSED);
        }
    }
}

fn heads(c: &mut Cases) {
    for [t, k, vocab] in [[1, 8, 5], [4, 16, 64], [3, 64, 300]] {
        for norm in [None, Some(1e-6)] {
            for ban in [None, Some(0), Some(vocab as u32 - 1)] {
                for dtype in [DType::F32, DType::BF16] {
                    let (x, w) = (c.rng.floats(&[t, k], -2.0, 2.0), c.rng.reals(dtype, &[vocab, k], -1.0, 1.0));
                    let norm_weight = c.rng.floats(&[k], 0.5, 1.5);
                    let args: Vec<Tensor> = [x, w].into_iter().chain(norm.map(|_| norm_weight)).collect();
                    // A logit of 20 is rounded to f32 before its exponential is taken.
                    c.push(Op::HeadStats { norm, ban }, args.clone(), Within::Largest(4e-6));
                }
            }
        }
    }
    // Whole numbers, so that logits of equal rows are equal: the lowest id wins, also beside a banned one.
    let x = Tensor::f32(&[1, 2], vec![1.0, 2.0]);
    let w = Tensor::f32(&[5, 2], vec![3.0, 1.0, 1.0, 2.0, 3.0, 1.0, -1.0, 3.0, 0.0, 0.0]);
    for ban in [None, Some(0), Some(1)] {
        c.push(Op::HeadStats { norm: None, ban }, [x.clone(), w.clone()], SUMMED);
    }
}
