//! Single ops of no group.

use dlx_ir::{Binary, Compare, DType, Op, Reduce, Unary};

use super::super::call::{Call, axis};
use super::super::import::Importer;
use super::super::value::Val;
use super::window::filled;
use super::{Row, one};

const MISC: &[Row] = &[
    ("", "BitCast", |i, c, _| one(bit_cast(i, c))),
    ("", "Det", |i, c, _| one(determinant(i, c))),
    ("", "ReverseSequence", |i, c, _| one(reverse(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[MISC];

/// Largest matrix whose elimination is unrolled.
const MAX_ROWS: usize = 64;

fn bit_cast(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let to = c.elem("to")?.ok_or("attribute `to` is missing")?;
    i.b.op1(Op::Bitcast { to }, &[c.arg(0)?])
}

/// The product of the pivots of an elimination, each the largest of its column.
fn determinant(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let shape = i.b.shape(c.arg(0)?)?;
    let (batch, n) = match shape[..] {
        [ref batch @ .., rows, columns] if rows == columns && rows > 0 => (batch, rows),
        _ => return Err(format!("{shape:?} are no square matrices")),
    };
    if n > MAX_ROWS {
        return Err(format!("matrices of {n} rows; elimination is unrolled for at most {MAX_ROWS}"));
    }
    let count: usize = batch.iter().product();
    let mut m = i.b.reshape(c.arg(0)?, &[count, n, n])?;
    let (zero, number) = (i.b.like(&m, 0.0)?, i.b.like(&m, 1.0)?);
    let mut product = i.b.expand(&number, &[count, 1, 1])?;
    for left in (1..=n).rev() {
        let column = i.b.slice(&m, 2, 0, 1)?;
        let mut pivot = column.clone();
        if left > 1 {
            // The pivot's row changes places with the first one, and the product its sign.
            let sizes = i.b.unary(Unary::Abs, &column)?;
            let which = i.b.op1(Op::ArgMax { axis: 1, min: false, last: false }, &[&sizes])?;
            let rows = i.b.ints(0..left as i64);
            let rows = i.b.reshape(&rows, &[left, 1])?;
            let first = i.b.like(&rows, 0.0)?;
            let chosen = i.b.compare(Compare::Eq, &rows, &which)?;
            let order = i.b.select(&chosen, &first, &rows)?;
            let top = i.b.compare(Compare::Eq, &rows, &first)?;
            let order = i.b.select(&top, &which, &order)?;
            let order = i.b.expand(&order, &[count, left, left])?;
            m = i.b.op1(Op::GatherElements { axis: 1 }, &[&m, &order])?;
            let stays = i.b.compare(Compare::Eq, &which, &first)?;
            let minus = i.b.like(&m, -1.0)?;
            let sign = i.b.select(&stays, &number, &minus)?;
            product = i.b.mul(&product, &sign)?;
            let row = i.b.slice(&m, 1, 0, 1)?;
            let rest = i.b.slice(&m, 1, 1, left)?;
            pivot = i.b.slice(&row, 2, 0, 1)?;
            let none = i.b.compare(Compare::Eq, &pivot, &zero)?;
            let divisor = i.b.select(&none, &number, &pivot)?;
            let column = i.b.slice(&rest, 2, 0, 1)?;
            let column = i.b.div(&column, &divisor)?;
            let (row, rest) = (i.b.slice(&row, 2, 1, left)?, i.b.slice(&rest, 2, 1, left)?);
            let change = i.b.mul(&column, &row)?;
            m = i.b.sub(&rest, &change)?;
        }
        product = i.b.mul(&product, &pivot)?;
    }
    let batch = batch.to_vec();
    i.b.reshape(&product, &batch)
}

/// The first elements of each sequence in reverse order.
fn reverse(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let (time, batch) = (axis(c.int_or("time_axis", 0)?, shape.len())?, axis(c.int_or("batch_axis", 1)?, shape.len())?);
    if time == batch {
        return Err("time_axis and batch_axis are the same".into());
    }
    let along = |at: usize| (0..shape.len()).map(|n| if n == at { shape[n] } else { 1 }).collect::<Vec<_>>();
    let lengths = i.b.cast(c.arg(1)?, DType::I64)?;
    let lengths = i.b.reshape(&lengths, &along(batch))?;
    let steps = i.b.ints(0..shape[time] as i64);
    let steps = i.b.reshape(&steps, &along(time))?;
    let within = i.b.compare(Compare::Lt, &steps, &lengths)?;
    let back = i.b.binary(Binary::Sub, &lengths, &steps)?;
    let back = i.b.add_number(&back, -1.0)?;
    let places = i.b.select(&within, &back, &steps)?;
    let places = filled(i, &places, &shape, matches!(x, Val::Run(_)))?;
    i.b.op1(Op::GatherElements { axis: time as i64 }, &[x, &places])
}

/// Whether any element along the last dimension is true.
pub(super) fn any_last(i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
    let last = i.b.rank(x)?.checked_sub(1).ok_or("is a scalar")?;
    i.b.reduce(Reduce::Max, x, &[last], false)
}
