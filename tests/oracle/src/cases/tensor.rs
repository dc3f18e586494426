//! Cases of the tensor level but for what reads and writes at indices.

use dlx_ir::{Binary, Compare, DType, Data, Mask, Norm, Op, Reduce, Tensor, Unary};

use super::{Cases, ROUNDED, SUMMED, of_ints};
use crate::compare::Within;

/// Shapes of two operands: alike, repeated from the front, from both sides, scalars, one row, one column.
const PAIRS: &[(&[usize], &[usize])] = &[
    (&[2, 3], &[2, 3]),
    (&[4, 1, 5], &[3, 1]),
    (&[7], &[2, 2, 7]),
    (&[], &[3, 2]),
    (&[], &[]),
    (&[1, 1], &[1, 33]),
    (&[2, 1, 3, 1], &[5, 1, 4]),
];
/// Shapes of one operand.
const SHAPES: &[&[usize]] = &[&[5], &[1], &[2, 7], &[3, 1, 4], &[2, 3, 2, 5], &[1, 130]];
const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];
/// Integer types that both sides have, with bounds of numbers whose sums and products pass the smaller ones' ends; those of
/// i64 do not, since burn multiplies in i64 and panics there where overflow is checked.
const INTS: &[(DType, i64, i64)] = &[
    (DType::I64, -3_000_000_000, 3_000_000_000),
    (DType::I32, -90_000, 90_000),
    (DType::I16, -300, 300),
    (DType::I8, -128, 127),
    (DType::U32, 0, 100_000),
    (DType::U16, 0, 600),
    (DType::U8, 0, 255),
];
/// What is at the edge of floats.
const EDGES: &[f32] =
    &[0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-3, 1e30, -3.0];

pub(super) fn add_to(c: &mut Cases) {
    elementwise(c);
    unary(c);
    casts(c);
    moved(c);
    along(c);
    rows(c);
    attention(c);
}

fn edges(shape: &[usize]) -> Tensor {
    Tensor::f32(shape, EDGES.to_vec())
}

fn elementwise(c: &mut Cases) {
    for &(a, b) in PAIRS {
        for &dtype in FLOATS {
            let (x, y) = (c.rng.reals(dtype, a, -3.0, 3.0), c.rng.reals(dtype, b, -3.0, 3.0));
            // A sum may cancel, but of two numbers its rounding is still a part of it.
            c.push(Op::Add {}, [x.clone(), y.clone()], ROUNDED);
            c.push(Op::Mul {}, [x.clone(), y.clone()], ROUNDED);
            for kind in [Binary::Div, Binary::Max, Binary::Min, Binary::Mod, Binary::Rem, Binary::Sub] {
                c.push(Op::Binary { kind }, [x.clone(), y.clone()], ROUNDED);
            }
            let positive = c.rng.reals(dtype, a, 0.1, 3.0);
            c.push(Op::Binary { kind: Binary::Pow }, [positive.clone(), y.clone()], ROUNDED);
            let exponent = c.rng.wholes(DType::I32, b, -3, 4);
            c.push(Op::Binary { kind: Binary::Pow }, [x.clone(), exponent], ROUNDED);
            for &kind in Compare::ALL {
                c.push(Op::Compare { kind }, [x.clone(), y.clone()], Within::Exact);
            }
            let condition = c.rng.bools(b);
            c.push(Op::Select {}, [condition, x, y], Within::Exact);
        }
        for &(dtype, low, high) in INTS {
            let (x, y) = (c.rng.wholes(dtype, a, low, high), c.rng.wholes(dtype, b, low, high));
            c.push(Op::Add {}, [x.clone(), y.clone()], Within::Exact);
            c.push(Op::Mul {}, [x.clone(), y.clone()], Within::Exact);
            use Binary::{BitAnd, BitOr, BitXor, Div, Max, Min, Mod, Pow, Rem, Shl, Shr, Sub};
            for kind in [BitAnd, BitOr, BitXor, Max, Min, Sub] {
                c.push(Op::Binary { kind }, [x.clone(), y.clone()], Within::Exact);
            }
            // The least number divided by −1 is left out with the least number: its magnitude has no place.
            let dividend = c.rng.wholes(dtype, a, low + 1, high);
            let mut divisor = c.rng.wholes(dtype, b, 1, 9);
            if low < 0 {
                let values = (0..divisor.data.len()).map(|_| c.rng.whole(1, 9) * (2 * c.rng.whole(0, 1) - 1)).collect();
                divisor = of_ints(dtype, b, values);
            }
            for kind in [Div, Mod, Rem] {
                c.push(Op::Binary { kind }, [dividend.clone(), divisor.clone()], Within::Exact);
            }
            let (base, exponent) = (c.rng.wholes(dtype, a, low.max(-3), 3), c.rng.wholes(dtype, b, 0, 4));
            c.push(Op::Binary { kind: Pow }, [base, exponent], Within::Exact);
            let by = c.rng.wholes(dtype, b, low.max(-2), 70);
            c.push(Op::Binary { kind: Shl }, [x.clone(), by.clone()], Within::Exact);
            c.push(Op::Binary { kind: Shr }, [x.clone(), by], Within::Exact);
            for &kind in Compare::ALL {
                c.push(Op::Compare { kind }, [x.clone(), y.clone()], Within::Exact);
            }
            let condition = c.rng.bools(a);
            c.push(Op::Select {}, [condition, x, y], Within::Exact);
        }
        let (x, y) = (c.rng.bools(a), c.rng.bools(b));
        for kind in [Binary::And, Binary::Or, Binary::Xor] {
            c.push(Op::Binary { kind }, [x.clone(), y.clone()], Within::Exact);
        }
        c.push(Op::Compare { kind: Compare::Eq }, [x.clone(), y.clone()], Within::Exact);
        c.push(Op::Select {}, [y.clone(), x, y], Within::Exact);
    }
    let (across, down) = (edges(&[1, EDGES.len()]), edges(&[EDGES.len(), 1]));
    let pair = [across, down];
    c.push(Op::Add {}, pair.clone(), ROUNDED);
    c.push(Op::Mul {}, pair.clone(), ROUNDED);
    for kind in [Binary::Div, Binary::Max, Binary::Min, Binary::Sub, Binary::Pow] {
        c.push(Op::Binary { kind }, pair.clone(), ROUNDED);
    }
    for &kind in Compare::ALL {
        c.push(Op::Compare { kind }, pair.clone(), Within::Exact);
    }
}

fn unary(c: &mut Cases) {
    for &shape in SHAPES {
        for &dtype in FLOATS {
            for &kind in Unary::ALL {
                let (low, high) = match kind {
                    Unary::Acos | Unary::Asin | Unary::Atanh => (-0.99, 0.99),
                    Unary::Acosh => (1.01, 9.0),
                    Unary::Log | Unary::Sqrt => (0.01, 9.0),
                    Unary::BitNot | Unary::Not => continue,
                    _ => (-4.0, 4.0),
                };
                let x = c.rng.reals(dtype, shape, low, high);
                c.push(Op::Unary { kind }, [x], ROUNDED);
            }
            let x = c.rng.reals(dtype, shape, -9.0, 9.0);
            c.push(Op::Silu {}, [x.clone()], ROUNDED);
            for by in [0.125, -3.7, 0.0] {
                c.push(Op::Scale { by }, [x.clone()], ROUNDED);
            }
        }
        for &(dtype, low, high) in INTS {
            for kind in [Unary::Abs, Unary::Neg, Unary::Sign, Unary::BitNot] {
                let x = c.rng.wholes(dtype, shape, low, high);
                c.push(Op::Unary { kind }, [x], Within::Exact);
            }
        }
        let x = c.rng.bools(shape);
        c.push(Op::Unary { kind: Unary::Not }, [x], Within::Exact);
    }
    // The sign of NaN is not said; burn has 0, the evaluator NaN as numpy has it.
    for &kind in Unary::ALL.iter().filter(|k| !matches!(k, Unary::BitNot | Unary::Not | Unary::Sign)) {
        c.push(Op::Unary { kind }, [edges(&[3, 5])], ROUNDED);
    }
    c.push(Op::Silu {}, [Tensor::f32(&[4], vec![-1e30, -90.0, 90.0, 1e30])], ROUNDED);
}

fn casts(c: &mut Cases) {
    for &shape in SHAPES {
        for &from in FLOATS {
            let x = c.rng.reals(from, shape, -100.0, 100.0);
            for &to in FLOATS {
                c.push(Op::Cast { to, wrap: false }, [x.clone()], ROUNDED);
            }
            let positive = c.rng.reals(from, shape, 0.0, 100.0);
            for &(to, low, _) in INTS {
                let x = if low < 0 { &x } else { &positive };
                c.push(Op::Cast { to, wrap: false }, [x.clone()], Within::Exact);
            }
            c.push(Op::Cast { to: DType::Bool, wrap: false }, [x], Within::Exact);
        }
        for &(from, low, high) in INTS {
            let x = c.rng.wholes(from, shape, low, high);
            for &(to, ..) in INTS {
                c.push(Op::Cast { to, wrap: false }, [x.clone()], Within::Exact);
            }
            for &to in FLOATS {
                let small = c.rng.wholes(from, shape, low.max(-2000), high.min(2000));
                c.push(Op::Cast { to, wrap: false }, [small], ROUNDED);
            }
            c.push(Op::Cast { to: DType::Bool, wrap: false }, [x.clone()], Within::Exact);
            let alike = INTS.iter().map(|(to, ..)| *to).chain(FLOATS.iter().copied());
            for to in alike.filter(|to| to.bits() == from.bits()) {
                // Exponents of all ones are left out: a NaN keeps its kind, not its bits, on its way through f64.
                let x = c.rng.wholes(from, shape, 0, 100);
                c.push(Op::Bitcast { to }, [x], Within::Exact);
            }
        }
        for &from in FLOATS {
            let x = c.rng.reals(from, shape, -9.0, 9.0);
            let ints = INTS.iter().map(|(to, ..)| *to).filter(|to| to.bits() == from.bits());
            for to in ints.chain([from]) {
                c.push(Op::Bitcast { to }, [x.clone()], Within::Exact);
            }
        }
        let x = c.rng.bools(shape);
        for to in [DType::F32, DType::I64, DType::U8, DType::Bool] {
            c.push(Op::Cast { to, wrap: false }, [x.clone()], Within::Exact);
        }
    }
    let halves = Tensor::f32(&[6], vec![65519.0, 65520.0, 1e-8, -7e4, 2049.0, 2051.0]);
    c.push(Op::Cast { to: DType::F16, wrap: true }, [halves], ROUNDED);
    let toward_zero = Tensor::f32(&[6], vec![-1.9, -0.9, 0.9, 1.9, 2.5, -2.5]);
    c.push(Op::Cast { to: DType::I32, wrap: false }, [toward_zero], Within::Exact);
}

/// One tensor of each kind of elements.
fn kinds(c: &mut Cases, shape: &[usize]) -> [Tensor; 4] {
    [
        c.rng.floats(shape, -2.0, 2.0),
        c.rng.reals(DType::BF16, shape, -2.0, 2.0),
        c.rng.wholes(DType::I64, shape, -9, 9),
        c.rng.bools(shape),
    ]
}

fn moved(c: &mut Cases) {
    let concats: &[(i64, &[&[usize]])] = &[
        (0, &[&[2, 3], &[1, 3], &[4, 3]]),
        (1, &[&[2, 3], &[2, 1]]),
        (2, &[&[2, 1, 3, 2], &[2, 1, 5, 2]]),
        (0, &[&[7]]),
    ];
    for (axis, shapes) in concats {
        let parts: Vec<_> = shapes.iter().map(|shape| kinds(c, shape)).collect();
        for kind in 0..4 {
            let args: Vec<Tensor> = parts.iter().map(|p| p[kind].clone()).collect();
            c.push(Op::Concat { axis: *axis }, args.clone(), Within::Exact);
        }
    }
    let expands: &[(&[usize], &[i64])] =
        &[(&[3], &[2, 3]), (&[1, 4], &[3, 4]), (&[2, 1, 3], &[5, 2, 4, 3]), (&[], &[2, 2]), (&[1], &[9])];
    let reshapes: &[(&[usize], &[i64])] =
        &[(&[2, 3], &[6]), (&[6], &[3, 1, 2]), (&[2, 3, 4], &[4, 6]), (&[1], &[]), (&[2, 2], &[2, 2])];
    let transposes: &[(&[usize], &[i64])] = &[
        (&[2, 3], &[1, 0]),
        (&[2, 3, 4], &[2, 0, 1]),
        (&[2, 3, 1, 5], &[3, 1, 0, 2]),
        (&[4], &[0]),
        (&[2, 3, 4], &[0, 1, 2]),
    ];
    type Slice = (&'static [usize], &'static [i64], &'static [i64], &'static [i64]);
    let slices: &[Slice] = &[
        (&[9], &[1], &[8], &[3]),
        (&[9], &[8], &[-1], &[-1]),
        (&[9], &[7], &[0], &[-2]),
        (&[4, 5], &[0, 4], &[4, -1], &[2, -3]),
        (&[2, 3, 4], &[1, 0, 2], &[2, 3, 3], &[1, 1, 1]),
    ];
    for (shape, dims) in expands {
        for x in kinds(c, shape) {
            c.push(Op::Expand { dims: dims.to_vec() }, [x], Within::Exact);
        }
    }
    for (shape, dims) in reshapes {
        for x in kinds(c, shape) {
            c.push(Op::Reshape { dims: dims.to_vec() }, [x], Within::Exact);
        }
    }
    for (shape, perm) in transposes {
        for x in kinds(c, shape) {
            c.push(Op::Transpose { perm: perm.to_vec() }, [x], Within::Exact);
        }
    }
    for (shape, starts, ends, steps) in slices {
        for x in kinds(c, shape) {
            let op = Op::Slice { starts: starts.to_vec(), ends: ends.to_vec(), steps: steps.to_vec() };
            c.push(op, [x], Within::Exact);
        }
    }
}

fn along(c: &mut Cases) {
    for &shape in SHAPES {
        let rank = shape.len() as i64;
        for axis in 0..rank {
            for (min, last) in [(false, false), (true, false), (false, true), (true, true)] {
                let x = c.rng.floats(shape, -2.0, 2.0);
                c.push(Op::ArgMax { axis, min, last }, [x], Within::Exact);
                let ties = c.rng.wholes(DType::I32, shape, -2, 2);
                c.push(Op::ArgMax { axis, min, last }, [ties], Within::Exact);
            }
            for descending in [false, true] {
                let x = c.rng.floats(shape, -2.0, 2.0);
                c.push(Op::Sort { axis, descending }, [x], Within::Exact);
                let ties = c.rng.wholes(DType::I64, shape, -2, 2);
                c.push(Op::Sort { axis, descending }, [ties], Within::Exact);
            }
            for bits in 0..8 {
                let (prod, exclusive, reverse) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                let op = Op::Cumulate { axis, prod, exclusive, reverse };
                let (x, n) = (c.rng.floats(shape, 0.5, 1.5), c.rng.wholes(DType::I64, shape, -2, 2));
                c.push(op.clone(), [x], ROUNDED);
                c.push(op, [n], Within::Exact);
            }
        }
        let all: Vec<i64> = (0..rank).collect();
        let outer = vec![rank - 1, 0][..shape.len().min(2)].to_vec();
        for axes in [all, outer, vec![0], vec![]] {
            if axes.len() == 2 && axes[0] == axes[1] {
                continue;
            }
            for &kind in Reduce::ALL {
                let op = Op::Reduce { kind, axes: axes.clone() };
                let within = if kind == Reduce::Prod { ROUNDED } else { SUMMED };
                for &dtype in FLOATS {
                    let x = c.rng.reals(dtype, shape, 0.7, 1.4);
                    c.push(op.clone(), [x], within);
                }
                if kind != Reduce::Mean {
                    let n = c.rng.wholes(DType::I32, shape, -2, 2);
                    c.push(op.clone(), [n], Within::Exact);
                }
                if matches!(kind, Reduce::Max | Reduce::Min) {
                    let b = c.rng.bools(shape);
                    c.push(op.clone(), [b], Within::Exact);
                    let mut x = c.rng.floats(shape, -2.0, 2.0);
                    if let Data::F32(x) = &mut x.data {
                        x[0] = f32::NAN;
                    }
                    c.push(op, [x], Within::Exact);
                }
            }
        }
    }
}

fn rows(c: &mut Cases) {
    for &shape in SHAPES {
        for &dtype in FLOATS {
            let x = c.rng.reals(dtype, shape, -5.0, 5.0);
            c.push(Op::Softmax {}, [x.clone()], ROUNDED);
            for &kind in Norm::ALL {
                for eps in [1e-6, 0.1] {
                    c.push(Op::Normalize { kind, eps }, [x.clone()], SUMMED);
                }
            }
        }
    }
    let products: &[(&[usize], &[usize])] = &[
        (&[2, 3], &[3, 4]),
        (&[1, 7], &[7, 1]),
        (&[5, 2, 3], &[3, 2]),
        (&[2, 1, 4, 8], &[3, 8, 5]),
        (&[1, 257], &[257, 3]),
        (&[65, 64], &[64, 33]),
    ];
    for (a, b) in products {
        for &dtype in FLOATS {
            let (a, b) = (c.rng.reals(dtype, a, -1.0, 1.0), c.rng.reals(dtype, b, -1.0, 1.0));
            c.push(Op::Matmul {}, [a, b], SUMMED);
        }
        let (x, y) = (c.rng.wholes(DType::I32, a, -9, 9), c.rng.wholes(DType::I32, b, -9, 9));
        c.push(Op::Matmul {}, [x, y], Within::Exact);
        let (x, y) = (c.rng.floats(a, -1.0, 1.0), c.rng.reals(DType::BF16, b, -1.0, 1.0));
        c.push(Op::Matmul {}, [x, y], SUMMED);
    }
}

fn attention(c: &mut Cases) {
    // B, H, G, T, S, D, E
    let shapes = [[1, 1, 1, 1, 1, 1, 1], [2, 4, 2, 5, 5, 8, 8], [1, 6, 2, 3, 7, 4, 6], [2, 3, 3, 9, 9, 16, 5]];
    for [b, h, g, t, s, d, e] in shapes {
        for dtype in [DType::F32, DType::F64, DType::F16] {
            let q = c.rng.reals(dtype, &[b, h, t, d], -2.0, 2.0);
            let k = c.rng.reals(dtype, &[b, g, s, d], -2.0, 2.0);
            let v = c.rng.reals(dtype, &[b, g, s, e], -2.0, 2.0);
            let args = [q, k, v];
            let with = |m: Tensor| [&args[..], &[m]].concat();
            for (scale, cap) in [(0.5, None), (1.0, Some(0.75)), (-0.3, None)] {
                c.push(Op::Sdpa { scale, cap, mask: None }, args.clone(), SUMMED);
                let masks = [Mask::Full, Mask::Causal, Mask::BlockCausal(2), Mask::BlockCausal(4), Mask::Local(3)];
                for mask in masks.into_iter().filter(|m| t == s || *m == Mask::Full) {
                    c.push(Op::Sdpa { scale, cap, mask: Some(mask) }, args.clone(), SUMMED);
                    let m = c.rng.bools(&[b, 1, t, s]);
                    c.push(Op::Sdpa { scale, cap, mask: Some(mask) }, with(m), SUMMED);
                }
                for shape in [&[t, s][..], &[h, 1, s], &[b, h, t, s], &[1, 1, t, 1]] {
                    let (m, added) = (c.rng.bools(shape), c.rng.reals(dtype, shape, -3.0, 3.0));
                    c.push(Op::Sdpa { scale, cap, mask: None }, with(m), SUMMED);
                    c.push(Op::Sdpa { scale, cap, mask: None }, with(added), SUMMED);
                }
            }
        }
    }
    for ([b, h, t, d], half, batch) in [([1, 1, 1, 2], 1, 1), ([2, 3, 5, 8], 4, 2), ([2, 2, 4, 10], 3, 1)] {
        for interleaved in [false, true] {
            for dtype in [DType::F32, DType::F64, DType::BF16] {
                let x = c.rng.reals(dtype, &[b, h, t, d], -2.0, 2.0);
                let cos = c.rng.reals(dtype, &[batch, t, half], -1.0, 1.0);
                let sin = c.rng.reals(dtype, &[batch, t, half], -1.0, 1.0);
                c.push(Op::Rotary { interleaved }, [x, cos, sin], SUMMED);
            }
        }
    }
}
