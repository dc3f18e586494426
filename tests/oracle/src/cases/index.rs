//! Cases of what reads and writes at indices.

use dlx_ir::{DType, Op, Scatter, Tensor};

use super::{Cases, ROUNDED, of_ints};
use crate::compare::Within;

pub(super) fn add_to(c: &mut Cases) {
    gathers(c);
    scatters(c);
}

fn tables(c: &mut Cases, shape: &[usize]) -> [Tensor; 3] {
    [c.rng.floats(shape, -2.0, 2.0), c.rng.wholes(DType::I16, shape, -99, 99), c.rng.bools(shape)]
}

fn gathers(c: &mut Cases) {
    let shapes: &[(&[usize], i64, &[usize])] =
        &[(&[5], 0, &[3]), (&[5, 2], 0, &[2, 2]), (&[2, 6, 3], 1, &[4]), (&[2, 3, 4], 2, &[1, 2]), (&[4, 3], 1, &[])];
    for (shape, axis, index) in shapes {
        let n = shape[*axis as usize] as i64;
        for x in tables(c, shape) {
            for dtype in [DType::I32, DType::I64] {
                let i = c.rng.wholes(dtype, index, -n, n - 1);
                c.push(Op::Gather { axis: *axis }, [x.clone(), i], Within::Exact);
            }
        }
    }
    let elements: &[(&[usize], i64, &[usize])] =
        &[(&[5], 0, &[8]), (&[3, 4], 0, &[2, 4]), (&[3, 4], 1, &[3, 7]), (&[2, 5, 3], 1, &[1, 6, 2])];
    for (shape, axis, index) in elements {
        let n = shape[*axis as usize] as i64;
        for x in tables(c, shape) {
            let i = c.rng.wholes(DType::I64, index, -n, n - 1);
            c.push(Op::GatherElements { axis: *axis }, [x, i], Within::Exact);
        }
    }
    let coordinates: &[(&[usize], i64, &[usize])] = &[
        (&[4, 3], 0, &[5, 2]),
        (&[4, 3], 0, &[5, 1]),
        (&[2, 3, 4], 0, &[3, 2, 2]),
        (&[2, 3, 4], 1, &[2, 5, 1]),
        (&[2, 3, 4, 2], 2, &[2, 3, 2, 1]),
        (&[6], 0, &[1]),
    ];
    for (shape, batch, index) in coordinates {
        for x in tables(c, shape) {
            let i = within(c, shape, *batch as usize, index);
            c.push(Op::GatherNd { batch: *batch }, [x, i], Within::Exact);
        }
    }
}

/// Coordinates that lie in a shape, some counted from the end.
fn within(c: &mut Cases, shape: &[usize], batch: usize, index: &[usize]) -> Tensor {
    let depth = index[index.len() - 1];
    let groups: usize = index[..index.len() - 1].iter().product();
    let place = |c: &mut Cases, k: usize| {
        let n = shape[batch + k] as i64;
        c.rng.whole(-n, n - 1)
    };
    let values = (0..groups * depth).map(|i| place(c, i % depth)).collect();
    of_ints(DType::I64, index, values)
}

fn scatters(c: &mut Cases) {
    let shapes: &[(&[usize], i64, &[usize])] =
        &[(&[6], 0, &[4]), (&[4, 3], 0, &[2, 3]), (&[3, 5], 1, &[3, 4]), (&[2, 5, 3], 1, &[1, 4, 2])];
    for (shape, axis, index) in shapes {
        for &kind in Scatter::ALL {
            let (n, m) = (shape[*axis as usize], index[*axis as usize]);
            // What is set is set once: along the axis no index comes twice. Everything else may.
            let values = if kind == Scatter::Set {
                let order = c.rng.shuffled(n);
                let stride: usize = index[*axis as usize + 1..].iter().product();
                (0..index.iter().product()).map(|i: usize| order[i / stride % m]).collect()
            } else {
                (0..index.iter().product::<usize>()).map(|_| c.rng.whole(-(n as i64), n as i64 - 1)).collect()
            };
            let i = of_ints(DType::I64, index, values);
            push(c, Op::Scatter { axis: *axis, kind }, kind, shape, &i, index);
        }
    }
    let coordinates: &[(&[usize], &[usize])] =
        &[(&[6], &[3, 1]), (&[4, 3], &[3, 1]), (&[4, 3], &[5, 2]), (&[3, 4, 2], &[2, 2, 2])];
    for (shape, index) in coordinates {
        let depth = index[index.len() - 1];
        let updates = [&index[..index.len() - 1], &shape[depth..]].concat();
        for &kind in Scatter::ALL {
            let groups: usize = index[..index.len() - 1].iter().product();
            let i = if kind == Scatter::Set {
                let cells: usize = shape[..depth].iter().product();
                let order = c.rng.shuffled(cells);
                let split = |cell: i64| {
                    let mut rest = cell;
                    let mut place: Vec<i64> = shape[..depth]
                        .iter()
                        .rev()
                        .map(|n| {
                            let here = rest % *n as i64;
                            rest /= *n as i64;
                            here
                        })
                        .collect();
                    place.reverse();
                    place
                };
                of_ints(DType::I64, index, order.into_iter().take(groups).flat_map(split).collect())
            } else {
                within(c, shape, 0, index)
            };
            push(c, Op::ScatterNd { kind }, kind, shape, &i, &updates);
        }
    }
}

fn push(c: &mut Cases, op: Op, kind: Scatter, shape: &[usize], i: &Tensor, updates: &[usize]) {
    let (x, u) = (c.rng.floats(shape, 0.5, 2.0), c.rng.floats(updates, 0.5, 2.0));
    // Numbers that are added or multiplied one by one are rounded as often.
    c.push(op.clone(), [x, i.clone(), u], ROUNDED);
    let (x, u) = (c.rng.wholes(DType::I32, shape, -9, 9), c.rng.wholes(DType::I32, updates, -9, 9));
    c.push(op.clone(), [x, i.clone(), u], Within::Exact);
    if kind == Scatter::Set {
        let (x, u) = (c.rng.bools(shape), c.rng.bools(updates));
        c.push(op, [x, i.clone(), u], Within::Exact);
    }
}
