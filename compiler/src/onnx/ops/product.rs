//! Products of matrices.

use std::sync::Arc;

use dlx_ir::{DType, Op, Reduce};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::stored::Stored;
use super::super::value::Val;
use super::{MS, Row, one};

const PRODUCTS: &[Row] = &[
    ("", "Einsum", |i, c, _| one(einsum(i, c))),
    ("", "Gemm", |i, c, _| one(gemm(i, c))),
    ("", "MatMul", |i, c, _| one(matmul(i, c.arg(0)?, c.arg(1)?))),
    ("", "MatMulInteger", |i, c, _| one(matmul_integer(i, c))),
    (MS, "FusedMatMul", |i, c, _| one(fused_matmul(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[PRODUCTS];

/// The right side of a product with run-time values, as rows `[N, K]` of a weight.
fn weight(i: &Importer<'_>, a: &Val, b: &Val) -> Result<Option<Arc<Stored>>, String> {
    let floats = i.b.dtype(a)?.is_float() && i.b.dtype(b)?.is_float();
    if !matches!(a, Val::Run(_)) || i.b.rank(b)? != 2 || !floats || i.b.elements(b)? == 0 {
        return Ok(None);
    }
    Ok(match b {
        Val::Stored(s) => s.transposed().map(Arc::new),
        Val::Known(t) => Stored::known(&i.b.origin, t).transposed().map(Arc::new),
        Val::Run(_) | Val::List(_) | Val::Nothing => None,
    })
}

/// A product as numpy has it: one-dimensional operands are a row and a column.
pub(super) fn matmul(i: &mut Importer<'_>, a: &Val, b: &Val) -> Result<Val, String> {
    let (left, right) = (i.b.shape(a)?, i.b.shape(b)?);
    if left.is_empty() || right.is_empty() {
        return Err("a scalar has no product of matrices".into());
    }
    if let Some(w) = weight(i, a, b)?
        && left.last() == w.dims().last()
    {
        return i.b.linear(a, &w);
    }
    let a2 = if left.len() == 1 { i.b.reshape(a, &[1, left[0]])? } else { a.clone() };
    let b2 = if right.len() == 1 { i.b.reshape(b, &[right[0], 1])? } else { b.clone() };
    let y = i.b.op1(Op::Matmul {}, &[&a2, &b2])?;
    let mut shape = i.b.shape(&y)?;
    if right.len() == 1 {
        shape.pop();
    }
    if left.len() == 1 {
        shape.remove(shape.len() - 1 - usize::from(right.len() != 1));
    }
    i.b.reshape(&y, &shape)
}

fn gemm(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut a = c.arg(0)?.clone();
    let mut b = c.arg(1)?.clone();
    if c.flag("transA")? {
        a = i.b.swap_last(&a)?;
    }
    if c.flag("transB")? {
        b = i.b.swap_last(&b)?;
    }
    let mut y = matmul(i, &a, &b)?;
    let (alpha, beta) = (c.float_or("alpha", 1.0)?, c.float_or("beta", 1.0)?);
    if alpha != 1.0 {
        y = i.b.mul_number(&y, alpha.into())?;
    }
    let Some(bias) = c.opt(2) else { return Ok(y) };
    let bias = if beta == 1.0 { bias.clone() } else { i.b.mul_number(bias, beta.into())? };
    let sum = i.b.add(&y, &bias)?;
    i.b.kept(&y, sum)
}

fn fused_matmul(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    // With a transposed batch, the rows stand in front of it.
    let turn = |i: &mut Importer<'_>, v: &Val, batch: bool, last: bool| {
        let rank = i.b.rank(v)?;
        let perm: Vec<usize> = (1..rank.saturating_sub(1)).chain([0, rank.saturating_sub(1)]).collect();
        let v = if batch && rank > 2 { i.b.transpose(v, &perm)? } else { v.clone() };
        if last { i.b.swap_last(&v) } else { Ok(v) }
    };
    let a = turn(i, c.arg(0)?, c.flag("transBatchA")?, c.flag("transA")?)?;
    let b = turn(i, c.arg(1)?, c.flag("transBatchB")?, c.flag("transB")?)?;
    let y = matmul(i, &a, &b)?;
    let alpha = c.float_or("alpha", 1.0)?;
    if alpha == 1.0 { Ok(y) } else { i.b.mul_number(&y, alpha.into()) }
}

/// A product of 8-bit integers less their zero points, as i32.
fn matmul_integer(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (a, b) = (c.arg(0)?, c.arg(1)?);
    let left = i.b.dtype(a)?;
    // Weights stay what they are; f32 holds the codes, and the sum is rounded as the cast that follows rounds it.
    if let (Val::Run(_), Val::Stored(s)) = (a, b)
        && let Some(w) = s.less(i.model, c.opt(3)).and_then(|w| w.transposed())
    {
        let mut x = i.b.cast(a, DType::F32)?;
        if let Some(zero) = c.opt(2) {
            let zero = i.b.cast(zero, DType::F32)?;
            let zero = column(i, &zero)?;
            let none =
                i.b.known(&zero)?
                    .is_some_and(|z| matches!(&z.data, dlx_ir::Data::F32(z) if z.iter().all(|z| *z == 0.0)));
            if !none {
                x = i.b.sub(&x, &zero)?;
            }
        }
        let y = i.b.linear(&x, &Arc::new(w))?;
        // Activations that were left unquantized make no integers.
        if left.is_int() {
            return i.b.cast(&y, DType::I32);
        }
        if let Val::Run(v) = y {
            i.unscaled.insert(v, (x, s.clone(), c.opt(3).cloned()));
        }
        return Ok(y);
    }
    let mut a = i.b.cast(a, DType::I32)?;
    let mut b = i.b.cast(b, DType::I32)?;
    if let Some(zero) = c.opt(2) {
        let zero = i.b.cast(zero, DType::I32)?;
        let zero = column(i, &zero)?;
        a = i.b.sub(&a, &zero)?;
    }
    if let Some(zero) = c.opt(3) {
        let zero = i.b.cast(zero, DType::I32)?;
        b = i.b.sub(&b, &zero)?;
    }
    matmul(i, &a, &b)
}

/// A product of two values; of one with codes and what scales them it is one with the weight that they stand for.
pub(super) fn times(i: &mut Importer<'_>, a: &Val, b: &Val) -> Result<Val, String> {
    for (product, scale) in [(a, b), (b, a)] {
        let Val::Run(v) = product else { continue };
        let Some((x, codes, zero)) = i.unscaled.get(v).cloned() else { continue };
        let w = codes.dequantized(i.model, 1, 0, scale, zero.as_ref()).and_then(|w| w.transposed());
        if let Some(w) = w {
            return i.b.linear(&x, &Arc::new(w));
        }
    }
    i.b.mul(a, b)
}

/// One number per row, as a column; a single one as it is.
fn column(i: &mut Importer<'_>, zero: &Val) -> Result<Val, String> {
    match i.b.shape(zero)?[..] {
        [n] if n > 1 => i.b.reshape(zero, &[n, 1]),
        _ => Ok(zero.clone()),
    }
}

/// Any sum of products over named dimensions: both sides are brought to `[common, own, summed]` and multiplied.
fn einsum(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let text: String = c.text_or("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
    let (inputs, output) = match text.split_once("->") {
        Some((inputs, output)) => (inputs.to_owned(), Some(output.to_owned())),
        None => (text.clone(), None),
    };
    let terms: Vec<&str> = inputs.split(',').collect();
    let args = c.all()?;
    if terms.len() != args.len() {
        return Err(format!("`{text}` names {} operands", terms.len()));
    }
    let mut named = Vec::new();
    for (term, arg) in terms.iter().zip(&args) {
        let rank = i.b.rank(arg)?;
        named.push(letters(term, rank)?);
    }
    let widest = named.iter().map(|n| n.iter().filter(|l| l.is_ascii_digit()).count()).max().unwrap_or(0);
    let output = match output {
        Some(output) => {
            let rank = output.replace("...", "").len() + if output.contains("...") { widest } else { 0 };
            letters(&output, rank)?
        }
        None => {
            let all: Vec<char> = named.iter().flatten().copied().collect();
            let mut once: Vec<char> = all
                .iter()
                .copied()
                .filter(|l| all.iter().filter(|m| *m == l).count() == 1 || l.is_ascii_digit())
                .collect();
            once.sort_unstable();
            once.dedup();
            once
        }
    };
    let mut sum: Option<(Val, Vec<char>)> = None;
    for (n, arg) in args.iter().enumerate() {
        let (x, mut dims) = diagonal(i, arg, &named[n])?;
        let mut x = x;
        if let Some((left, left_dims)) = sum.take() {
            let later: Vec<char> = named[n + 1..].iter().flatten().chain(&output).copied().collect();
            (x, dims) = pair(i, (&left, &left_dims), (&x, &dims), &later)?;
        }
        sum = Some((x, dims));
    }
    let (mut x, mut dims) = sum.ok_or("has no operand")?;
    let gone: Vec<usize> = (0..dims.len()).filter(|n| !output.contains(&dims[*n])).collect();
    x = i.b.reduce(Reduce::Sum, &x, &gone, false)?;
    dims.retain(|l| output.contains(l));
    let perm =
        output.iter().map(|l| dims.iter().position(|d| d == l).ok_or_else(|| format!("`{text}` makes {l} of nothing")));
    i.b.transpose(&x, &perm.collect::<Result<Vec<_>, _>>()?)
}

/// A letter for each dimension; those of `...` are digits, counted from its end so that shorter ones line up.
fn letters(term: &str, rank: usize) -> Result<Vec<char>, String> {
    let named = term.replace("...", "");
    let open =
        rank.checked_sub(named.chars().count()).ok_or_else(|| format!("`{term}` names more than {rank} dimensions"))?;
    if !named.chars().all(|c| c.is_ascii_alphabetic()) || open > 9 || (open > 0 && !term.contains("...")) {
        return Err(format!("`{term}` does not name {rank} dimensions"));
    }
    let (before, after) = term.split_once("...").unwrap_or((term, ""));
    let middle = (0..open).rev().filter_map(|n| char::from_digit(n as u32, 10));
    Ok(before.chars().chain(middle.collect::<Vec<_>>()).chain(after.chars()).collect())
}

/// An operand in which no dimension is named twice.
fn diagonal(i: &mut Importer<'_>, x: &Val, dims: &[char]) -> Result<(Val, Vec<char>), String> {
    let (mut x, mut dims) = (x.clone(), dims.to_vec());
    while let Some((a, b)) = (0..dims.len()).find_map(|a| Some((a, (a + 1..dims.len()).find(|b| dims[*b] == dims[a])?)))
    {
        let shape = i.b.shape(&x)?;
        let mut places = vec![1; shape.len()];
        places[a] = shape[a];
        let counted = i.b.ints(0..shape[a] as i64);
        let counted = i.b.reshape(&counted, &places)?;
        let mut taken = shape.clone();
        taken[b] = 1;
        let counted = i.b.expand(&counted, &taken)?;
        x = i.b.op1(Op::GatherElements { axis: b as i64 }, &[&x, &counted])?;
        taken.remove(b);
        x = i.b.reshape(&x, &taken)?;
        dims.remove(b);
    }
    Ok((x, dims))
}

type Named<'v> = (&'v Val, &'v [char]);

/// The product of two operands, summed over what nobody needs later.
fn pair(
    i: &mut Importer<'_>,
    (a, a_dims): (&Val, &Vec<char>),
    (b, b_dims): Named<'_>,
    later: &[char],
) -> Result<(Val, Vec<char>), String> {
    let both: Vec<char> = a_dims.iter().filter(|l| b_dims.contains(l)).copied().collect();
    let (common, summed): (Vec<char>, Vec<char>) = both.into_iter().partition(|l| later.contains(l));
    let own =
        |dims: &[char]| dims.iter().filter(|l| !common.contains(l) && !summed.contains(l)).copied().collect::<Vec<_>>();
    let (a_own, b_own) = (own(a_dims), own(b_dims));
    let (a_shape, b_shape) = (i.b.shape(a)?, i.b.shape(b)?);
    let size = |l: &char| {
        let at = |dims: &[char], shape: &[usize]| dims.iter().position(|d| d == l).map_or(1, |n| shape[n]);
        at(a_dims, &a_shape).max(at(b_dims, &b_shape))
    };
    let count = |list: &[char]| list.iter().map(size).product::<usize>();
    let mut arrange = |x: &Val, dims: &[char], parts: [&[char]; 3]| {
        let order: Vec<char> = parts.concat();
        let perm: Vec<usize> = order.iter().filter_map(|l| dims.iter().position(|d| d == l)).collect();
        let turned = i.b.transpose(x, &perm)?;
        let full: Vec<usize> = order.iter().map(size).collect();
        let turned = i.b.expand(&turned, &full)?;
        i.b.reshape(&turned, &parts.map(count))
    };
    let left = arrange(a, a_dims, [&common, &a_own, &summed])?;
    let right = arrange(b, b_dims, [&common, &summed, &b_own])?;
    let y = i.b.op1(Op::Matmul {}, &[&left, &right])?;
    let dims = [common, a_own, b_own].concat();
    let shape: Vec<usize> = dims.iter().map(size).collect();
    Ok((i.b.reshape(&y, &shape)?, dims))
}
