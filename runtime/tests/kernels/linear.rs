//! Linear layers in every format, with every epilogue.

use super::pack::FORMATS;
use super::{Rng, TestWeight, assert_near, everywhere, rms_norm, to_f64};
use dlx_runtime::cpu::{Epilogue, Norm, PackedWeight, linear, linear_scratch_words};

const TOLERANCE: f64 = 3e-5;

/// Runs `linear` with one output per weight.
fn run(
    what: &str,
    x: &[f32],
    rows: usize,
    norm: Option<Norm<'_>>,
    weights: &[PackedWeight<'_>],
    biases: &[Option<&[f32]>],
) -> Vec<f32> {
    everywhere(what, |ctx| {
        let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![f32::NAN; rows * w.n()]).collect();
        let mut scratch = vec![0; linear_scratch_words(rows, weights)];
        let mut slices: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        linear(ctx, x, rows, norm, weights, biases, Epilogue::Store, &mut slices, &mut scratch);
        outs.concat()
    })
}

#[test]
fn every_format_at_odd_sizes() {
    let mut rng = Rng::new(2);
    for format in FORMATS {
        for (rows, n, k) in
            [(1, 16, 128), (1, 50, 2), (3, 17, 100), (9, 33, 320), (21, 70, 160), (70, 5, 257), (41, 70, 600)]
        {
            let w = TestWeight::random(&mut rng, format.parse().unwrap(), n, k);
            let x = rng.values(rows * k);
            let what = format!("{format} m={rows} n={n} k={k}");
            let got = run(&what, &x, rows, None, &[w.packed()], &[]);
            assert_near(&what, &got, &w.product(&to_f64(&x)), TOLERANCE);
        }
    }
}

#[test]
fn every_number_of_rows() {
    let mut rng = Rng::new(3);
    let int = TestWeight::random(&mut rng, "q4g64".parse().unwrap(), 24, 192);
    let table = TestWeight::random(&mut rng, "l16".parse().unwrap(), 40, 400);
    let whole = TestWeight::random(&mut rng, "q8".parse().unwrap(), 24, 300);
    let float = TestWeight::random(&mut rng, "bf16".parse().unwrap(), 84, 48);
    for rows in 1..=50 {
        for w in [&int, &table, &float, &whole] {
            let x = rng.values(rows * w.k);
            let what = format!("{} m={rows}", w.dtype);
            let got = run(&what, &x, rows, None, &[w.packed()], &[]);
            assert_near(&what, &got, &w.product(&to_f64(&x)), TOLERANCE);
        }
    }
}

#[test]
fn several_groups_of_rows_and_runs_of_blocks() {
    let mut rng = Rng::new(4);
    for format in ["q8g32", "l16"] {
        for (rows, n, k) in [(300, 16, 40), (70, 16, 6144), (20, 32, 2100)] {
            let w = TestWeight::random(&mut rng, format.parse().unwrap(), n, k);
            let x = rng.values(rows * k);
            let what = format!("{format} m={rows} k={k}");
            let got = run(&what, &x, rows, None, &[w.packed()], &[]);
            assert_near(&what, &got, &w.product(&to_f64(&x)), TOLERANCE);
        }
    }
}

#[test]
fn norm_and_bias_with_shared_and_different_formats() {
    let mut rng = Rng::new(5);
    let k = 160;
    for formats in
        [["q4g32", "q4g32", "q4g32"], ["q4g32", "q8g64m", "bf16"], ["l16", "q8g128", "q4g32"], ["f32", "f16", "f16"]]
    {
        for rows in [1, 7, 19, 40] {
            let weights: Vec<TestWeight> = formats
                .iter()
                .zip([40, 24, 16])
                .map(|(f, n)| TestWeight::random(&mut rng, f.parse().unwrap(), n, k))
                .collect();
            let x = rng.values(rows * k);
            let norm_weight = rng.values(k);
            let bias = rng.values(40);
            let packed: Vec<PackedWeight<'_>> = weights.iter().map(TestWeight::packed).collect();
            let norm = Norm { weight: &norm_weight, eps: 1e-6 };
            let what = format!("{formats:?} m={rows}");
            let got = run(&what, &x, rows, Some(norm), &packed, &[Some(&bias), None, None]);
            let y = rms_norm(&to_f64(&x), &norm_weight, 1e-6);
            let mut want: Vec<f64> = weights.iter().flat_map(|w| w.product(&y)).collect();
            for row in want[..rows * 40].chunks_exact_mut(40) {
                row.iter_mut().zip(&bias).for_each(|(v, b)| *v += f64::from(*b));
            }
            // A value at a rounding boundary may go the other way than in f64: one int8 step of one activation.
            assert_near(&what, &got, &want, 1e-2);
        }
    }
}

#[test]
fn residual_and_swiglu_epilogues() {
    let mut rng = Rng::new(6);
    for format in ["q4g128", "q8", "f32", "l16"] {
        for (rows, n, k) in [(1, 40, 256), (11, 24, 130)] {
            let gate = TestWeight::random(&mut rng, format.parse().unwrap(), n, k);
            let up = TestWeight::random(&mut rng, format.parse().unwrap(), n, k);
            let x = rng.values(rows * k);
            let residual = rng.values(rows * n);
            let what = format!("{format} m={rows}");
            let run = |in_place: bool| {
                everywhere(&what, |ctx| {
                    let mut out = if in_place { residual.clone() } else { vec![f32::NAN; rows * n] };
                    let mut scratch = vec![0; linear_scratch_words(rows, &[up.packed()])];
                    let epilogue = if in_place { Epilogue::AddInPlace } else { Epilogue::Add(&residual) };
                    linear(ctx, &x, rows, None, &[up.packed()], &[], epilogue, &mut [&mut out], &mut scratch);
                    out
                })
            };
            let want_up = up.product(&to_f64(&x));
            let want: Vec<f64> = want_up.iter().zip(&residual).map(|(y, r)| y + f64::from(*r)).collect();
            assert_near(&what, &run(false), &want, TOLERANCE);
            assert_near(&what, &run(true), &want, TOLERANCE);

            let got = everywhere(&what, |ctx| {
                let weights = [gate.packed(), up.packed()];
                let mut out = vec![f32::NAN; rows * n];
                let mut scratch = vec![0; linear_scratch_words(rows, &weights)];
                linear(ctx, &x, rows, None, &weights, &[], Epilogue::SwiGlu, &mut [&mut out], &mut scratch);
                out
            });
            let want_gate = gate.product(&to_f64(&x));
            let want: Vec<f64> = want_gate.iter().zip(&want_up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            assert_near(&what, &got, &want, TOLERANCE);
        }
    }
}

#[test]
fn zero_rows_blocks_and_extreme_values() {
    let mut rng = Rng::new(7);
    let w = TestWeight::random(&mut rng, "q4g32".parse().unwrap(), 16, 256);
    let mut x = vec![0f32; 2 * 256];
    x[256..300].fill(1e-38);
    assert!(run("zeros", &x, 2, None, &[w.packed()], &[]).iter().all(|y| *y == 0.0));
    for v in [1e30f32, -3e-20] {
        let x: Vec<f32> = rng.values(256).iter().map(|x| x * v).collect();
        let got = run("extremes", &x, 1, None, &[w.packed()], &[]);
        let scaled: Vec<f32> = got.iter().map(|y| y / v).collect();
        let want: Vec<f64> = w.product(&to_f64(&x)).iter().map(|y| y / f64::from(v)).collect();
        assert_near("extremes", &scaled, &want, TOLERANCE);
    }
    run("no rows", &[], 0, None, &[w.packed()], &[]);
}
