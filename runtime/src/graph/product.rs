//! Products of f32 matrices on all threads of the current rayon pool: where the time of a graph goes.
//!
//! Invariant: an element is summed by one thread, over eight lanes and then across them, in an order that depends on the
//! length of its row alone, so results do not depend on the number of threads or on the instruction set.

use dlx_ir::{DType, Data, Op, Post, Tensor, Type};
use half::{bf16, f16};
use rayon::prelude::*;

const LANES: usize = 8;
/// Rows that share one pass over a column.
const ROWS: usize = 4;
/// A piece of the result that one thread makes: its operands fit a cache.
const TILE_ROWS: usize = 32;
const TILE_COLUMNS: usize = 64;
/// Multiplications below which waking other threads costs more than they save.
const SERIAL: usize = 1 << 16;

/// The result of an op that is worth a loop of its own; `None` for any other, and for elements that are not held as f32.
pub(super) fn compute(op: &Op, args: &[&Tensor], result: &Type) -> Option<Tensor> {
    let shape = result.shape()?;
    let data = match op {
        Op::Linear { n: 1, bias, norm: None, post: Post::None } => linear(args, *bias)?,
        Op::Matmul {} => matmul(args, &shape)?,
        _ => return None,
    };
    let data = match result.dtype {
        DType::F32 => data,
        DType::F16 => data.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
        DType::BF16 => data.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect(),
        _ => return None,
    };
    Some(Tensor { dtype: result.dtype, shape, data: Data::F32(data) })
}

fn floats(t: &Tensor) -> Option<&[f32]> {
    if let Data::F32(x) = &t.data { Some(x) } else { None }
}

/// `x Wᵀ + b`.
fn linear(args: &[&Tensor], bias: bool) -> Option<Vec<f32>> {
    let (&x, &w) = (args.first()?, args.get(1)?);
    let &[n, k] = &w.shape[..] else { return None };
    let mut y = product(floats(x)?, floats(w)?, n, k);
    if bias {
        let b = floats(args.get(2)?)?;
        y.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(b).for_each(|(y, b)| *y += b));
    }
    Some(y)
}

/// `[…, M, K] · […, K, N]`, each matrix of the right side turned over first.
fn matmul(args: &[&Tensor], shape: &[usize]) -> Option<Vec<f32>> {
    let (&a, &b) = (args.first()?, args.get(1)?);
    let ([.., m, k], [.., rows, n]) = (&a.shape[..], &b.shape[..]) else { return None };
    let batches = shape.get(..shape.len().checked_sub(2)?)?;
    if rows != k || !shape.ends_with(&[*m, *n]) {
        return None;
    }
    let (left, right) = (matrices(&a.shape, batches)?, matrices(&b.shape, batches)?);
    let (a, b) = (floats(a)?, floats(b)?);
    let mut out = Vec::with_capacity(left.len() * m * n);
    let mut turned = Vec::new();
    let mut last = None;
    for (l, r) in left.into_iter().zip(right) {
        if last != Some(r) {
            let matrix = b.get(r * k * n..(r + 1) * k * n)?;
            turned.clear();
            turned.extend((0..*n).flat_map(|j| (0..*k).map(move |i| matrix[i * n + j])));
            last = Some(r);
        }
        out.extend(product(a.get(l * m * k..(l + 1) * m * k)?, &turned, *n, *k));
    }
    Some(out)
}

/// Which matrix of an operand each matrix of the result reads: sizes of 1 repeat.
fn matrices(shape: &[usize], batches: &[usize]) -> Option<Vec<usize>> {
    let own = shape.get(..shape.len().checked_sub(2)?)?;
    let missing = batches.len().checked_sub(own.len())?;
    let mut indices = vec![0];
    for (d, &size) in batches.iter().enumerate() {
        let mine = d.checked_sub(missing).map_or(1, |d| own[d]);
        if mine != size && mine != 1 {
            return None;
        }
        let step = |i: &usize| (0..size).map(|j| i * mine + if mine == 1 { 0 } else { j }).collect::<Vec<_>>();
        indices = indices.iter().flat_map(step).collect();
    }
    Some(indices)
}

/// `x Wᵀ` for rows of length k, and n rows of W.
fn product(x: &[f32], w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let m = x.len() / k.max(1);
    let tiles: Vec<(usize, usize)> = (0..m)
        .step_by(TILE_ROWS)
        .flat_map(|row| (0..n).step_by(TILE_COLUMNS).map(move |column| (row, column)))
        .collect();
    let make = |&(row, column): &(usize, usize)| {
        let x = &x[row * k..(row + TILE_ROWS).min(m) * k];
        tile(x, &w[column * k..(column + TILE_COLUMNS).min(n) * k], k)
    };
    let made: Vec<Vec<f32>> =
        if m * n * k < SERIAL { tiles.iter().map(make).collect() } else { tiles.par_iter().map(make).collect() };
    let mut out = vec![0.0; m * n];
    for ((row, column), made) in tiles.into_iter().zip(made) {
        let width = (n - column).min(TILE_COLUMNS);
        for (i, values) in made.chunks_exact(width).enumerate() {
            out[(row + i) * n + column..][..width].copy_from_slice(values);
        }
    }
    out
}

/// All products of some rows with some columns, row by row.
fn tile(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let (rows, columns) = (x.len() / k, w.len() / k);
    let mut out = vec![0.0; rows * columns];
    for (xs, out) in x.chunks(ROWS * k).zip(out.chunks_mut(ROWS * columns)) {
        for (j, w) in w.chunks_exact(k).enumerate() {
            if xs.len() == ROWS * k {
                let (x0, rest) = xs.split_at(k);
                let (x1, rest) = rest.split_at(k);
                let (x2, x3) = rest.split_at(k);
                for (i, v) in dots([x0, x1, x2, x3], w).into_iter().enumerate() {
                    out[i * columns + j] = v;
                }
            } else {
                for (i, x) in xs.chunks_exact(k).enumerate() {
                    out[i * columns + j] = dots([x], w)[0];
                }
            }
        }
    }
    out
}

/// Each row times the column.
fn dots<const R: usize>(x: [&[f32]; R], w: &[f32]) -> [f32; R] {
    let mut sums = [[0f32; LANES]; R];
    let (chunks, tail) = w.as_chunks::<LANES>();
    let x = x.map(|x| x.as_chunks::<LANES>());
    for (i, w) in chunks.iter().enumerate() {
        for (sums, (x, _)) in sums.iter_mut().zip(&x) {
            let x = &x[i];
            for l in 0..LANES {
                sums[l] += x[l] * w[l];
            }
        }
    }
    let mut out = [0.0; R];
    for ((out, mut sums), (_, x)) in out.iter_mut().zip(sums).zip(x) {
        for (sum, (x, w)) in sums.iter_mut().zip(x.iter().zip(tail)) {
            *sum += x * w;
        }
        let [a, b, c, d, e, f, g, h] = sums;
        *out = ((a + e) + (c + g)) + ((b + f) + (d + h));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn any_number_of_threads_gives_the_product() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (70, 130, 33), (129, 64, 256), (1, 200, 512)] {
            let (x, w) = (numbers(m * k, 1), numbers(n * k, 2));
            let y = product(&x, &w, n, k);
            for (i, y) in y.iter().enumerate() {
                let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let exact: f64 = row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((f64::from(*y) - exact).abs() < 1e-6 * (1.0 + exact.abs()), "[{m}, {n}, {k}] {i}: {y} {exact}");
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| product(&x, &w, n, k)), y);
            }
        }
    }

    #[test]
    fn matrices_repeat_as_numpy_has_it() {
        assert_eq!(matrices(&[2, 1, 9, 9], &[2, 3]), Some(vec![0, 0, 0, 1, 1, 1]));
        assert_eq!(matrices(&[3, 9, 9], &[2, 3]), Some(vec![0, 1, 2, 0, 1, 2]));
        assert_eq!(matrices(&[9, 9], &[]), Some(vec![0]));
        assert_eq!(matrices(&[4, 9, 9], &[2, 3]), None);
    }
}
