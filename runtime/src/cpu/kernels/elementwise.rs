//! Small ops over rows: embedding, RMS norm, rotary embedding and element-wise arithmetic.
//!
//! Invariant: each op reads its first operand before it writes that element, so the operand may already be in the output
//! buffer ([`Input::InPlace`]). Rows are split over threads only where that pays.

use super::Ctx;
use crate::cpu::pack::{PackedWeight, unpack_row};

/// RMS normalization: `w * (x / sqrt(mean(x²) + eps))`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Weight; its length is the normalized length.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// First operand of an element-wise op.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// It is in the output buffer.
    InPlace,
    /// It is elsewhere and as long as the output.
    From(&'a [f32]),
}

impl Input<'_> {
    fn check(self, out: &[f32]) {
        if let Input::From(x) = self {
            assert_eq!(x.len(), out.len(), "operand length");
        }
    }

    /// Puts the part of the operand that starts at `at` into `out`.
    fn load(self, at: usize, out: &mut [f32]) {
        if let Input::From(x) = self {
            out.copy_from_slice(&x[at..at + out.len()]);
        }
    }
}

/// Length of the parts into which flat operands are cut for threads.
const PART: usize = 4096;

/// Applies `work(offset, part)` to `out`, part by part, each loaded from `x` first.
fn pointwise(ctx: &Ctx<'_>, x: Input<'_>, out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    x.check(out);
    let whole = out.len() / PART * PART;
    let (body, rest) = out.split_at_mut(whole);
    ctx.rows(body, PART, |part, values| {
        x.load(part * PART, values);
        work(part * PART, values);
    });
    x.load(whole, rest);
    work(whole, rest);
}

/// `out = x + y`.
///
/// # Panics
/// When lengths differ.
pub fn add(ctx: &Ctx<'_>, x: Input<'_>, y: &[f32], out: &mut [f32]) {
    assert_eq!(y.len(), out.len(), "operand length");
    pointwise(ctx, x, out, |at, out| ctx.kernels.portable.add(out, &y[at..at + out.len()]));
}

/// `out = x * y`.
///
/// # Panics
/// When lengths differ.
pub fn mul(ctx: &Ctx<'_>, x: Input<'_>, y: &[f32], out: &mut [f32]) {
    assert_eq!(y.len(), out.len(), "operand length");
    pointwise(ctx, x, out, |at, out| ctx.kernels.portable.mul(out, &y[at..at + out.len()]));
}

/// `out = factor * x`.
///
/// # Panics
/// When lengths differ.
pub fn scale(ctx: &Ctx<'_>, x: Input<'_>, factor: f32, out: &mut [f32]) {
    pointwise(ctx, x, out, |_, out| ctx.kernels.portable.scale(out, factor));
}

/// `out = x / (1 + e^-x)`.
///
/// # Panics
/// When lengths differ.
pub fn silu(ctx: &Ctx<'_>, x: Input<'_>, out: &mut [f32]) {
    pointwise(ctx, x, out, |_, out| ctx.kernels.portable.silu(out));
}

/// `out = silu(gate) * up`.
///
/// # Panics
/// When lengths differ.
pub fn silu_mul(ctx: &Ctx<'_>, gate: Input<'_>, up: &[f32], out: &mut [f32]) {
    assert_eq!(up.len(), out.len(), "operand length");
    pointwise(ctx, gate, out, |at, out| ctx.kernels.portable.silu_mul(out, &up[at..at + out.len()]));
}

/// Normalizes each consecutive chunk of `norm.weight.len()` values: whole rows, or heads for a per-head norm.
///
/// # Panics
/// When lengths differ or are not a multiple of the norm's.
pub fn rms_norm(ctx: &Ctx<'_>, x: Input<'_>, norm: Norm<'_>, out: &mut [f32]) {
    x.check(out);
    let len = norm.weight.len();
    assert!(len > 0 && out.len().is_multiple_of(len), "{} values in chunks of {len}", out.len());
    ctx.rows(out, len, |row, values| {
        x.load(row * len, values);
        ctx.kernels.portable.rms_norm(values, norm);
    });
}

/// Rotary table: for each position a row of `head_dim` values, the cosines of its angles and then the sines.
///
/// Frequencies and angles are f32 as in the reference implementations (`theta^(-2i/head_dim)`).
///
/// # Panics
/// When `head_dim` is odd or `out` is not `[pos.len(), head_dim]`.
pub fn rope_table(ctx: &Ctx<'_>, pos: &[i32], head_dim: usize, theta: f32, out: &mut [f32]) {
    assert!(head_dim.is_multiple_of(2) && out.len() == pos.len() * head_dim, "table size");
    ctx.rows(out, head_dim, |row, values| {
        let (cos, sin) = values.split_at_mut(head_dim / 2);
        for (i, (c, s)) in cos.iter_mut().zip(sin).enumerate() {
            let exponent = (2 * i) as f32 / head_dim as f32;
            let frequency = 1.0 / libm::pow(f64::from(theta), f64::from(exponent)) as f32;
            let angle = f64::from(pos[row] as f32 * frequency);
            (*c, *s) = (libm::cos(angle) as f32, libm::sin(angle) as f32);
        }
    });
}

/// Rotates the heads of each row by its row of a [`rope_table`], normalizing each head first if asked.
///
/// `out` is `[rows, heads * head_dim]` with `head_dim` the table's row length.
///
/// # Panics
/// When shapes do not fit.
pub fn rope(ctx: &Ctx<'_>, x: Input<'_>, table: &[f32], head_dim: usize, norm: Option<Norm<'_>>, out: &mut [f32]) {
    x.check(out);
    assert!(head_dim > 0 && table.len().is_multiple_of(head_dim), "table size");
    let rows = table.len() / head_dim;
    if rows == 0 {
        return;
    }
    let width = out.len() / rows;
    assert!(width * rows == out.len() && width.is_multiple_of(head_dim), "rows of whole heads");
    assert!(norm.is_none_or(|n| n.weight.len() == head_dim), "norm length");
    ctx.rows(out, width, |row, values| {
        x.load(row * width, values);
        if let Some(n) = norm {
            ctx.kernels.portable.rms_norm(values, n);
        }
        ctx.kernels.portable.rope(values, &table[row * head_dim..][..head_dim]);
    });
}

/// Gathers rows of a packed `[vocabulary, features]` weight. The caller has checked the ids.
///
/// # Panics
/// When an id is not a row of the table or `out` is not `[ids.len(), features]`.
pub fn embed(ctx: &Ctx<'_>, ids: &[i32], table: &PackedWeight<'_>, out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * table.k(), "output size");
    ctx.rows(out, table.k(), |row, values| {
        unpack_row(table, usize::try_from(ids[row]).expect("ids were checked"), values);
    });
}
