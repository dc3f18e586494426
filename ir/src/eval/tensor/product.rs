//! Matrix products.

use super::{arg, sizes};
use crate::eval::data::Tensor;
use crate::eval::view::View;
use crate::types::Type;

/// Columns that are summed side by side: a sum alone waits for its last addition.
const WIDE: usize = 8;

/// Rows of k floats times k rows of n, which `w` gives by row and column; each sum runs from front to back.
pub(in crate::eval) fn product<A: Copy + Into<f64>>(
    x: &[A],
    [k, n]: [usize; 2],
    w: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = vec![0.0; x.len() / k * n];
    let mut columns = vec![[0.0; WIDE]; k];
    for first in (0..n).step_by(WIDE) {
        let wide = WIDE.min(n - first);
        for (i, columns) in columns.iter_mut().enumerate() {
            columns[..wide].iter_mut().enumerate().for_each(|(c, v)| *v = w(i, first + c));
        }
        for (row, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            let mut sums = [0.0; WIDE];
            for (x, columns) in row.iter().zip(&columns) {
                let x: f64 = (*x).into();
                sums.iter_mut().zip(columns).for_each(|(sum, w)| *sum += x * w);
            }
            out[first..first + wide].copy_from_slice(&sums[..wide]);
        }
    }
    out
}

pub(super) fn matmul(args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    let (a, b, shape) = (arg(args, 0)?, arg(args, 1)?, sizes(ty)?);
    let ([fronts_a @ .., m, k], [fronts_b @ .., _, n]) = (&a.shape[..], &b.shape[..]) else {
        return Err("a product needs matrices".into());
    };
    let (m, k, n) = (*m, *k, *n);
    let count = shape.iter().product();
    if k == 0 {
        return if ty.dtype.is_int() {
            Tensor::wholes(ty, vec![0; count])
        } else {
            Tensor::reals(ty, vec![0.0; count])
        };
    }
    let fronts = &shape[..shape.len() - 2];
    let matrices = View::repeated(fronts_a, fronts).offsets().zip(View::repeated(fronts_b, fronts).offsets());
    if ty.dtype.is_int() {
        let (a, b) = (a.as_wholes()?, b.as_wholes()?);
        let mut out = Vec::with_capacity(count);
        for (i, j) in matrices {
            let (a, b) = (&a[i * m * k..][..m * k], &b[j * k * n..][..k * n]);
            for row in a.chunks_exact(k) {
                let mut sums = vec![0i64; n];
                for (x, line) in row.iter().zip(b.chunks_exact(n)) {
                    sums.iter_mut().zip(line).for_each(|(sum, w)| *sum = sum.wrapping_add(x.wrapping_mul(*w)));
                }
                out.extend(sums);
            }
        }
        return Tensor::wholes(ty, out);
    }
    let (a, b) = (a.as_reals()?, b.as_reals()?);
    let one = |(i, j): (usize, usize)| {
        let b = &b[j * k * n..][..k * n];
        product(&a[i * m * k..][..m * k], [k, n], |l, c| b[l * n + c])
    };
    Tensor::reals(ty, matrices.flat_map(one).collect())
}
