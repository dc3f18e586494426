//! Small ops against f64.

use super::{Rng, TestWeight, assert_near, everywhere, rms_norm, to_f64};
use dlx_runtime::cpu::{self, Input, Norm};

#[test]
fn arithmetic_in_place_and_not() {
    let mut rng = Rng::new(10);
    for n in [1, 15, 16, 100, 4096, 40_000] {
        let (x, y) = (rng.values(n), rng.values(n));
        let zip = |f: fn(f64, f64) -> f64| -> Vec<f64> {
            x.iter().zip(&y).map(|(a, b)| f(f64::from(*a), f64::from(*b))).collect()
        };
        for in_place in [false, true] {
            let run = |op: &(dyn Fn(&cpu::Ctx<'_>, Input<'_>, &mut [f32]) + Sync)| {
                everywhere("arithmetic", |ctx| {
                    let mut out = if in_place { x.clone() } else { vec![f32::NAN; n] };
                    op(ctx, if in_place { Input::InPlace } else { Input::From(&x) }, &mut out);
                    out
                })
            };
            assert_near("add", &run(&|c, x, o| cpu::add(c, x, &y, o)), &zip(|a, b| a + b), 1e-7);
            assert_near("mul", &run(&|c, x, o| cpu::mul(c, x, &y, o)), &zip(|a, b| a * b), 1e-7);
            assert_near("scale", &run(&|c, x, o| cpu::scale(c, x, 2.5, o)), &zip(|a, _| a * 2.5), 1e-7);
            assert_near("silu", &run(&|c, x, o| cpu::silu(c, x, o)), &zip(|a, _| a / (1.0 + (-a).exp())), 3e-7);
            let want = zip(|a, b| a / (1.0 + (-a).exp()) * b);
            assert_near("silu_mul", &run(&|c, x, o| cpu::silu_mul(c, x, &y, o)), &want, 3e-7);
        }
    }
}

#[test]
fn silu_over_its_whole_range() {
    let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.03).chain([f32::MAX, f32::MIN, -0.0]).collect();
    let got = everywhere("silu", |ctx| {
        let mut out = x.clone();
        cpu::silu(ctx, Input::InPlace, &mut out);
        out
    });
    for (x, y) in x.iter().zip(&got) {
        let want = f64::from(*x) / (1.0 + (-f64::from(*x)).exp());
        assert!((f64::from(*y) - want).abs() <= want.abs() * 4e-7 + 1e-30, "silu({x}) = {y} instead of {want}");
    }
}

#[test]
fn norms_of_rows_and_heads() {
    let mut rng = Rng::new(11);
    for (chunks, len) in [(1, 1), (7, 16), (3, 100), (40, 1030)] {
        let (x, weight) = (rng.values(chunks * len), rng.values(len));
        let got = everywhere("rms_norm", |ctx| {
            let mut out = vec![f32::NAN; x.len()];
            cpu::rms_norm(ctx, Input::From(&x), Norm { weight: &weight, eps: 1e-6 }, &mut out);
            out
        });
        assert_near("rms_norm", &got, &rms_norm(&to_f64(&x), &weight, 1e-6), 1e-6);
    }
}

#[test]
fn rotary_embedding_with_and_without_norm() {
    let mut rng = Rng::new(12);
    for (rows, heads, head_dim) in [(1, 2, 8), (5, 3, 64), (33, 8, 128)] {
        let pos: Vec<i32> = (0..rows).map(|_| rng.below(4000) as i32).collect();
        let x = rng.values(rows * heads * head_dim);
        let weight = rng.values(head_dim);
        for norm in [None, Some(Norm { weight: &weight, eps: 1e-6 })] {
            let got = everywhere("rope", |ctx| {
                let mut table = vec![0f32; rows * head_dim];
                cpu::rope_table(ctx, &pos, head_dim, 1e6, &mut table);
                let mut out = vec![f32::NAN; x.len()];
                cpu::rope(ctx, Input::From(&x), &table, head_dim, norm, &mut out);
                out
            });
            let x = norm.map_or(to_f64(&x), |n| rms_norm(&to_f64(&x), n.weight, n.eps));
            let mut want = x.clone();
            for (i, head) in x.chunks_exact(head_dim).enumerate() {
                for j in 0..head_dim / 2 {
                    let inverse = 1.0 / 1e6f32.powf((2 * j) as f32 / head_dim as f32);
                    let angle = f64::from(pos[i / heads] as f32 * inverse);
                    let (a, b) = (head[j], head[j + head_dim / 2]);
                    want[i * head_dim + j] = a * angle.cos() - b * angle.sin();
                    want[i * head_dim + j + head_dim / 2] = b * angle.cos() + a * angle.sin();
                }
            }
            // An f32 angle of a few thousand is known to 2⁻¹² only: one ulp of the frequency is that much.
            assert_near("rope", &got, &want, 5e-4);
        }
    }
}

#[test]
fn embedding_gathers_rows() {
    let mut rng = Rng::new(13);
    for format in ["bf16", "q4g32", "q8m", "l16"] {
        let w = TestWeight::random(&mut rng, format.parse().unwrap(), 37, 72);
        let ids = [36, 0, 5, 5, 16];
        let got = everywhere("embed", |ctx| {
            let mut out = vec![f32::NAN; ids.len() * 72];
            cpu::embed(ctx, &ids, &w.packed(), &mut out);
            out
        });
        let want: Vec<f64> = ids.iter().flat_map(|i| &w.values[*i as usize * 72..][..72]).copied().collect();
        assert_near(format, &got, &want, 1e-7);
    }
}
