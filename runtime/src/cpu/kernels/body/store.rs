//! Writing finished products to their rows.

use super::super::parallel::SharedMut;
use super::lanes::LANES;

/// A rectangle of an output, and what happens to what is there.
pub(in super::super) struct Store<'a> {
    /// The output; the caller owns the rectangle.
    pub(in super::super) out: SharedMut<'a, f32>,
    /// Element of the rectangle's first row and column.
    pub(in super::super) at: usize,
    /// Elements between rows.
    pub(in super::super) stride: usize,
    pub(in super::super) rows: usize,
    pub(in super::super) columns: usize,
    pub(in super::super) mode: StoreMode<'a>,
}

/// What a product meets in the output.
#[derive(Clone, Copy)]
pub(in super::super) enum StoreMode<'a> {
    /// `out = y`.
    Set,
    /// `out = residual + y`; the residual has the shape of the whole output.
    Add(&'a [f32]),
    /// `out += y`.
    AddInPlace,
}

/// `totals` is `[tiles][rows][16]`.
#[inline(always)]
pub(super) fn store(totals: &[f32], to: &Store<'_>) {
    let totals = totals.as_chunks::<LANES>().0;
    for row in 0..to.rows {
        let at = to.at + row * to.stride;
        for (column, y) in (0..to.columns).step_by(LANES).zip(totals[row..].iter().step_by(to.rows)) {
            let width = (to.columns - column).min(LANES);
            // SAFETY: it lies in the caller's rectangle.
            let out = unsafe { to.out.slice(at + column, width) };
            // The full width is a constant, which makes it one register.
            match <&mut [f32; LANES]>::try_from(&mut *out) {
                Ok(out) => store_row(out, y, at + column, to.mode),
                Err(_) => store_row(out, &y[..width], at + column, to.mode),
            }
        }
    }
}

#[inline(always)]
fn store_row(out: &mut [f32], y: &[f32], at: usize, mode: StoreMode<'_>) {
    match mode {
        StoreMode::Set => out.copy_from_slice(y),
        StoreMode::Add(residual) => {
            let residual = &residual[at..at + out.len()];
            for i in 0..out.len() {
                out[i] = residual[i] + y[i];
            }
        }
        StoreMode::AddInPlace => {
            for i in 0..out.len() {
                out[i] += y[i];
            }
        }
    }
}
