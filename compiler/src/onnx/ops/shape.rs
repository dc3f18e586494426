//! Sizes and views: what moves no element, or moves them without looking.

use dlx_ir::{Compare, DType, Data, Op, Tensor};

use super::super::build::as_i64;

use super::super::call::{Call, axes, axis};
use super::super::import::{Importer, Scope};
use super::super::stored::Stored;
use super::super::value::{Val, scalar};
use super::{Row, one};

const SHAPE: &[Row] = &[
    ("", "Concat", |i, c, _| one(concat(i, c))),
    ("", "Constant", |i, c, _| one(constant(i, c))),
    ("", "ConstantOfShape", |i, c, _| one(constant_of_shape(i, c))),
    ("", "DepthToSpace", |i, c, _| one(depth_to_space(i, c))),
    ("", "Expand", |i, c, _| one(expand(i, c))),
    ("", "EyeLike", |i, c, _| one(eye_like(i, c))),
    ("", "Flatten", |i, c, _| one(flatten(i, c))),
    ("", "Pad", |i, c, _| one(pad(i, c))),
    ("", "Range", |i, c, _| one(range(i, c))),
    ("", "Reshape", |i, c, _| one(reshape(i, c))),
    ("", "Shape", |i, c, _| one(shape(i, c))),
    ("", "Size", |i, c, _| one(Ok(scalar(DType::I64, i.b.elements(c.arg(0)?)? as f64)?.into()))),
    ("", "Slice", |i, c, _| one(slice(i, c))),
    ("", "SpaceToDepth", |i, c, _| one(space_to_depth(i, c))),
    ("", "Split", split),
    ("", "Squeeze", |i, c, _| one(squeeze(i, c))),
    ("", "Tile", |i, c, _| one(tile(i, c))),
    ("", "Transpose", |i, c, _| one(transpose(i, c))),
    ("", "Trilu", |i, c, _| one(trilu(i, c))),
    ("", "Unsqueeze", |i, c, _| one(unsqueeze(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[SHAPE];

/// Sizes that a graph computed; negative ones and absurd ones are errors.
pub(super) fn sizes(list: &[i64]) -> Result<Vec<usize>, String> {
    let size = |n: &i64| usize::try_from(*n).map_err(|_| format!("{list:?} is no shape"));
    list.iter().map(size).collect()
}

fn concat(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let parts = c.all()?;
    let rank = i.b.rank(c.arg(0)?)?;
    // Only before version 4 may it be left out.
    let axis = axis(c.int_or("axis", 1)?, rank)?;
    i.b.concat(&parts, axis)
}

fn constant(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    if let Some(tensor) = c.node.tensor("value").map_err(|e| e.message)? {
        return Stored::open(i.model, tensor).map_err(|e| e.message);
    }
    let vector = |data: Data, dtype| Tensor { dtype, shape: vec![data.len()], data };
    let known = if let Some(x) = c.int("value_int")? {
        Tensor { dtype: DType::I64, shape: vec![], data: Data::I64(vec![x]) }
    } else if let Some(x) = c.ints("value_ints")? {
        vector(Data::I64(x), DType::I64)
    } else if let Some(x) = c.float("value_float")? {
        Tensor { dtype: DType::F32, shape: vec![], data: Data::F32(vec![x]) }
    } else if let Some(x) = c.floats("value_floats")? {
        vector(Data::F32(x), DType::F32)
    } else {
        return Err("attribute `value` is missing, or holds no numbers".into());
    };
    Ok(known.into())
}

fn constant_of_shape(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let dims = sizes(&i.decided(c, c.arg(0)?, "input", |shape| Some(as_i64(shape)))?)?;
    let value = match c.node.tensor("value").map_err(|e| e.message)? {
        Some(tensor) => Stored::open(i.model, tensor).map_err(|e| e.message)?,
        None => scalar(DType::F32, 0.0)?.into(),
    };
    let value = i.b.reshape(&value, &[])?;
    filled(i, &value, &dims)
}

/// One element in every place; a shape may be empty here.
fn filled(i: &mut Importer<'_>, value: &Val, dims: &[usize]) -> Result<Val, String> {
    i.b.expand(value, dims)
}

fn expand(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let (have, want) = (i.b.shape(x)?, sizes(&i.decided(c, c.arg(1)?, "shape", |shape| Some(as_i64(shape)))?)?);
    // The shape asked for may itself be repeated to the shape that is there.
    let rank = have.len().max(want.len());
    let at = |dims: &[usize], n: usize| (n + dims.len()).checked_sub(rank).map_or(1, |n| dims[n]);
    let dims: Vec<usize> = (0..rank).map(|n| if at(&want, n) == 1 { at(&have, n) } else { at(&want, n) }).collect();
    i.b.expand(x, &dims)
}

fn eye_like(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let [rows, columns] = i.b.shape(x)?[..] else { return Err("needs two dimensions".into()) };
    let dtype = match c.elem("dtype")? {
        Some(dtype) => dtype,
        None => i.b.dtype(x)?,
    };
    let k = c.int_or("k", 0)?;
    if rows.checked_mul(columns).is_none_or(|n| n > 1 << 24) {
        return Err(format!("{rows} × {columns} is too large a constant"));
    }
    let on = |n: usize| (n % columns) as i64 - (n / columns) as i64 == k;
    let data = Data::Bool((0..rows * columns).map(on).collect());
    i.b.cast(&Tensor { dtype: DType::Bool, shape: vec![rows, columns], data }.into(), dtype)
}

fn flatten(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let (at, rank) = (c.int_or("axis", 1)?, shape.len());
    let at = if at == rank as i64 { rank } else { axis(at, rank)? };
    i.b.reshape(x, &[shape[..at].iter().product(), shape[at..].iter().product()])
}

fn range(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let dtype = i.b.dtype(c.arg(0)?)?;
    let run = c.args.iter().flatten().find(|v| matches!(v, Val::Run(_)));
    if let Some([count]) = i.declared(c, run, 0).as_deref() {
        return counted(i, c, dtype, *count);
    }
    let at = |n: usize, what| i.b.known_number(c.arg(n)?, what);
    let (start, limit, delta) = (at(0, "start")?, at(1, "limit")?, at(2, "delta")?);
    let count = ((limit - start) / delta).ceil().max(0.0);
    if delta == 0.0 || !count.is_finite() || count > (1u64 << 24) as f64 {
        return Err(format!("from {start} to {limit} by {delta} is no range of a sensible length"));
    }
    let n = count as usize;
    // Counted in the type of the range: each element is start + n · delta.
    let steps: Vec<f64> = (0..n).map(|k| start + k as f64 * delta).collect();
    let wide = Tensor { dtype: DType::F64, shape: vec![n], data: Data::F64(steps) };
    Ok(super::super::value::cast(&wide, dtype)?.into())
}

/// A range of run-time numbers, whose length is declared.
fn counted(i: &mut Importer<'_>, c: &Call<'_>, dtype: DType, count: usize) -> Result<Val, String> {
    let wide = if dtype.is_float() { DType::F32 } else { dtype };
    let steps = i.b.ints(0..count as i64);
    let steps = i.b.cast(&steps, wide)?;
    let (start, delta) = (i.b.cast(c.arg(0)?, wide)?, i.b.cast(c.arg(2)?, wide)?);
    let (start, delta) = (i.b.reshape(&start, &[])?, i.b.reshape(&delta, &[])?);
    let y = i.b.mul(&steps, &delta)?;
    let y = i.b.add(&y, &start)?;
    i.b.cast(&y, dtype)
}

fn reshape(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let want = match c.opt(1) {
        Some(shape) => i.decided(c, shape, "shape", |shape| Some(as_i64(shape)))?,
        None => c.ints("shape")?.ok_or("has no input 1, and attribute `shape` is missing")?,
    };
    let (have, zero) = (i.b.shape(x)?, c.flag("allowzero")?);
    let total = i.b.elements(x)?;
    let mut dims = Vec::with_capacity(want.len());
    let mut open = None;
    for (n, size) in want.iter().enumerate() {
        dims.push(match *size {
            0 if !zero => *have.get(n).ok_or_else(|| format!("{want:?} copies a size that {have:?} has not"))?,
            -1 if open.is_none() => {
                open = Some(n);
                1
            }
            size => usize::try_from(size).map_err(|_| format!("{want:?} is no shape"))?,
        });
    }
    let known = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(|| format!("{want:?} overflows"))?;
    if let Some(n) = open {
        dims[n] = total.checked_div(known).unwrap_or(0);
    }
    if dims.iter().product::<usize>() != total {
        return Err(format!("{have:?} cannot become {want:?}"));
    }
    i.b.reshape(x, &dims)
}

fn shape(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let shape = i.b.shape(c.arg(0)?)?;
    let rank = shape.len() as i64;
    let bound = |n: i64| usize::try_from(if n < 0 { n.saturating_add(rank) } else { n }.clamp(0, rank)).unwrap_or(0);
    let (start, end) = (bound(c.int_or("start", 0)?), bound(c.int_or("end", rank)?));
    Ok(i.b.ints(shape[start.min(end)..end].iter().map(|n| *n as i64)))
}

fn slice(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let rank = shape.len();
    let operand = |n: usize, what: &str| c.opt(n).map(|v| i.b.known_ints(v, what)).transpose();
    let (from, to, along, by) = if c.opset() < 10 {
        (c.ints("starts")?, c.ints("ends")?, c.ints("axes")?, None)
    } else {
        (operand(1, "starts")?, operand(2, "ends")?, operand(3, "axes")?, operand(4, "steps")?)
    };
    let (from, to) = (from.ok_or("`starts` is missing")?, to.ok_or("`ends` is missing")?);
    let along = along.unwrap_or_else(|| (0..from.len() as i64).collect());
    let by = by.unwrap_or_else(|| vec![1; from.len()]);
    if to.len() != from.len() || along.len() != from.len() || by.len() != from.len() {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    axes(&along, rank)?;
    let (mut starts, mut ends, mut steps) = (vec![0; rank], as_i64(&shape), vec![1; rank]);
    for (n, along) in along.iter().enumerate() {
        let at = axis(*along, rank)?;
        let size = shape[at] as i64;
        let wrap = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
        let step = by[n];
        if step == 0 {
            return Err("a step is 0".into());
        }
        steps[at] = step;
        if step > 0 {
            starts[at] = wrap(from[n]).clamp(0, size);
            ends[at] = wrap(to[n]).clamp(starts[at], size);
        } else {
            starts[at] = wrap(from[n]).clamp(-1, size - 1);
            ends[at] = wrap(to[n]).clamp(-1, starts[at]);
        }
    }
    let changed: Vec<usize> =
        (0..rank).filter(|n| (starts[*n], ends[*n], steps[*n]) != (0, shape[*n] as i64, 1)).collect();
    match changed[..] {
        [] => Ok(x.clone()),
        [at] if steps[at] == 1 => i.b.slice(x, at, starts[at] as usize, ends[at] as usize),
        _ => i.b.op1(Op::Slice { starts, ends, steps }, &[x]),
    }
}

fn split(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let at = axis(c.int_or("axis", 0)?, shape.len())?;
    let given = match c.opt(1) {
        Some(list @ Val::Run(_)) => {
            let part = |i: &mut Importer<'_>, n| Some(i.declared(c, Some(list), n)?.get(at).copied()? as i64);
            let parts = (0..c.node.outputs.len()).map(|n| part(i, n)).collect::<Option<Vec<_>>>();
            Some(parts.map_or_else(|| i.b.known_ints(list, "split"), Ok)?)
        }
        Some(list) => Some(i.b.known_ints(list, "split")?),
        None => c.ints("split")?,
    };
    let parts = match given {
        Some(list) => sizes(&list)?,
        None => {
            let n = c.node.outputs.len();
            if n == 0 || c.int("num_outputs")?.is_some_and(|asked| asked != n as i64) {
                return Err(format!("is split into {n} outputs, and `num_outputs` is another number"));
            }
            let part = shape[at].div_ceil(n);
            (0..n).map(|k| part.min(shape[at].saturating_sub(k * part))).collect()
        }
    };
    if parts.iter().try_fold(0usize, |n, p| n.checked_add(*p)) != Some(shape[at]) {
        return Err(format!("parts {parts:?} do not make {}", shape[at]));
    }
    let mut start = 0;
    let mut out = Vec::with_capacity(parts.len());
    for part in parts {
        out.push(i.b.slice(x, at, start, start + part)?);
        start += part;
    }
    Ok(out)
}

/// Dimensions as an operand since version 13, as an attribute before.
fn listed(i: &Importer<'_>, c: &Call<'_>) -> Result<Option<Vec<i64>>, String> {
    match c.opt(1) {
        Some(list) => i.b.known_ints(list, "axes").map(Some),
        None => c.ints("axes"),
    }
}

fn squeeze(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    if let Some(shape) = i.declared(c, c.opt(1), 0) {
        return i.b.reshape(x, &shape);
    }
    let shape = i.b.shape(x)?;
    let gone = match listed(i, c)? {
        Some(list) => axes(&list, shape.len())?,
        None => (0..shape.len()).filter(|n| shape[*n] == 1).collect(),
    };
    if let Some(n) = gone.iter().find(|n| shape[**n] != 1) {
        return Err(format!("dimension {n} of {shape:?} is not 1"));
    }
    let left: Vec<usize> = (0..shape.len()).filter(|n| !gone.contains(n)).map(|n| shape[n]).collect();
    i.b.reshape(x, &left)
}

fn unsqueeze(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    if let Some(shape) = i.declared(c, c.opt(1), 0) {
        return i.b.reshape(x, &shape);
    }
    let list = listed(i, c)?.ok_or("`axes` is missing")?;
    let mut shape = i.b.shape(x)?;
    for at in axes(&list, shape.len() + list.len())? {
        shape.insert(at, 1);
    }
    i.b.reshape(x, &shape)
}

fn tile(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    let have = i.b.shape(&x)?;
    let times = |shape: &[usize]| {
        let exact = |(n, d): (&usize, &usize)| n.checked_rem(*d).filter(|rest| *rest == 0).map(|_| (n / d) as i64);
        (shape.len() == have.len()).then(|| shape.iter().zip(&have).map(exact).collect::<Option<Vec<_>>>())?
    };
    let mut repeats = sizes(&i.decided(c, c.arg(1)?, "repeats", times)?)?;
    if let (true, Some(along)) = (c.opset() < 6, c.opt(2)) {
        // One dimension, in the first version.
        let at = axis(*i.b.known_ints(along, "axis")?.first().ok_or("has no axis")?, i.b.rank(&x)?)?;
        let times = repeats.first().copied().unwrap_or(1);
        repeats = (0..i.b.rank(&x)?).map(|n| if n == at { times } else { 1 }).collect();
    }
    let shape = i.b.shape(&x)?;
    if repeats.len() != shape.len() {
        return Err(format!("{} repeats for {} dimensions", repeats.len(), shape.len()));
    }
    // [a, b] repeated (r, s) is [r, a, s, b] with r and s expanded from 1.
    let pairs =
        |first: &dyn Fn(usize) -> usize| (0..shape.len()).flat_map(|n| [first(n), shape[n]]).collect::<Vec<_>>();
    let (ones, times) = (pairs(&|_| 1), pairs(&|n| repeats[n]));
    x = i.b.reshape(&x, &ones)?;
    x = i.b.expand(&x, &times)?;
    let dims = shape.iter().zip(&repeats).map(|(a, b)| a.checked_mul(*b)).collect::<Option<Vec<_>>>();
    i.b.reshape(&x, &dims.ok_or_else(|| format!("{shape:?} repeated {repeats:?} times overflows"))?)
}

fn transpose(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let rank = i.b.rank(x)?;
    let perm = match c.ints("perm")? {
        Some(perm) => perm.iter().map(|p| axis(*p, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).rev().collect(),
    };
    axes(&as_i64(&perm), rank)?;
    if perm.len() != rank {
        return Err(format!("{perm:?} is no order of {rank} dimensions"));
    }
    i.b.transpose(x, &perm)
}

fn trilu(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let [.., rows, columns] = shape[..] else { return Err("needs two dimensions".into()) };
    let upper = c.int_or("upper", 1)? != 0;
    if let Some(k @ Val::Run(_)) = c.opt(1) {
        let (row, column) = (i.b.ints(0..rows as i64), i.b.ints(0..columns as i64));
        let row = i.b.reshape(&row, &[rows, 1])?;
        let ahead = i.b.sub(&column, &row)?;
        let k = i.b.reshape(k, &[])?;
        let kept = i.b.compare(if upper { Compare::Ge } else { Compare::Le }, &ahead, &k)?;
        let zero = i.b.like(x, 0.0)?;
        return i.b.select(&kept, x, &zero);
    }
    let k = c.opt(1).map(|k| i.b.known_number(k, "k")).transpose()?.unwrap_or(0.0) as i64;
    if rows.checked_mul(columns).is_none_or(|n| n > 1 << 24) {
        return Err(format!("{rows} × {columns} is too large a constant"));
    }
    let keep = |n: usize| {
        let ahead = (n % columns) as i64 - (n / columns) as i64;
        if upper { ahead >= k } else { ahead <= k }
    };
    let mask = Data::Bool((0..rows * columns).map(keep).collect());
    let mask = Tensor { dtype: DType::Bool, shape: vec![rows, columns], data: mask }.into();
    let zero = i.b.like(x, 0.0)?;
    i.b.select(&mask, x, &zero)
}

fn depth_to_space(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let [n, ch, h, w] = i.b.shape(x)?[..] else { return Err("needs four dimensions".into()) };
    let b = c.size("blocksize")?;
    let deep = b.checked_mul(b).map_or(0, |square| ch / square);
    if deep == 0 || ch % (b * b) != 0 {
        return Err(format!("{ch} channels are not blocks of {b} × {b}"));
    }
    let (dims, perm) = if c.choice("mode", &["DCR", "CRD"])? == "DCR" {
        ([n, b, b, deep, h, w], [0, 3, 4, 1, 5, 2])
    } else {
        ([n, deep, b, b, h, w], [0, 1, 4, 2, 5, 3])
    };
    let y = i.b.reshape(x, &dims)?;
    let y = i.b.transpose(&y, &perm)?;
    i.b.reshape(&y, &[n, deep, h * b, w * b])
}

fn space_to_depth(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let [n, ch, h, w] = i.b.shape(x)?[..] else { return Err("needs four dimensions".into()) };
    let b = c.size("blocksize")?;
    if h == 0 || w == 0 || h % b != 0 || w % b != 0 {
        return Err(format!("{h} × {w} are not blocks of {b} × {b}"));
    }
    let y = i.b.reshape(x, &[n, ch, h / b, b, w / b, b])?;
    let perm = if c.choice("mode", &["DCR", "CRD"])? == "DCR" { [0, 3, 5, 1, 2, 4] } else { [0, 1, 3, 5, 2, 4] };
    let y = i.b.transpose(&y, &perm)?;
    i.b.reshape(&y, &[n, ch * b * b, h / b, w / b])
}

/// Pads each dimension in turn: with a value by joining, else by gathering what stands at the mirrored or nearest places.
fn pad(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    let rank = i.b.rank(&x)?;
    let (pads, value, along) = if c.opset() < 11 {
        let pads = c.ints("pads")?.or(c.ints("paddings")?).ok_or("attribute `pads` is missing")?;
        (pads, Some(i.b.like(&x, c.float_or("value", 0.0)?.into())?), None)
    } else {
        let along = c.opt(3).map(|a| i.b.known_ints(a, "axes")).transpose()?;
        if let Some(shape) = i.declared(c, c.opt(1), 0) {
            let along = along.unwrap_or_else(|| (0..rank as i64).collect());
            return super::pad::at_run_time(i, c, &axes(&along, rank)?, &shape);
        }
        (i.b.known_ints(c.arg(1)?, "pads")?, c.opt(2).cloned(), along)
    };
    let along = along.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * along.len() {
        return Err(format!("{} pads for {} dimensions", pads.len(), along.len()));
    }
    let value = match value {
        Some(value) => i.b.reshape(&value, &[])?,
        None => i.b.like(&x, 0.0)?,
    };
    let mode = c.text_or("mode", "constant")?;
    for (n, at) in along.iter().enumerate() {
        let at = axis(*at, rank)?;
        x = pad_one(i, &x, at, pads[n], pads[n + along.len()], &mode, &value)?;
    }
    Ok(x)
}

/// Pads one dimension; negative numbers cut.
pub(super) fn pad_one(
    i: &mut Importer<'_>,
    x: &Val,
    at: usize,
    before: i64,
    after: i64,
    mode: &str,
    value: &Val,
) -> Result<Val, String> {
    let mut shape = i.b.shape(x)?;
    let size = shape[at] as i64;
    let total = size.checked_add(before).and_then(|n| n.checked_add(after)).filter(|n| (0..1 << 40).contains(n));
    let total = total.ok_or_else(|| format!("{size} padded by {before} and {after} is negative or overflows"))?;
    if before == 0 && after == 0 {
        return Ok(x.clone());
    }
    if mode == "constant" {
        let (cut, end) = ((-before).max(0), size - (-after).max(0));
        let kept = i.b.slice(x, at, cut.clamp(0, size) as usize, end.clamp(cut.min(size), size) as usize)?;
        let run = matches!(x, Val::Run(_));
        let mut parts = vec![kept];
        for (n, place) in [(before, 0), (after, usize::MAX)] {
            if n > 0 {
                shape[at] = n as usize;
                parts.insert(place.min(parts.len()), super::window::filled(i, value, &shape, run)?);
            }
        }
        return i.b.concat(&parts.iter().collect::<Vec<_>>(), at);
    }
    if size == 0 || total > 1 << 24 {
        return Err(format!("a size of {size} cannot be padded to {total}"));
    }
    let place = |k: i64| match mode {
        "edge" => k.clamp(0, size - 1),
        "wrap" => k.rem_euclid(size),
        // There and back again, the ends once.
        _ => {
            let period = (2 * (size - 1)).max(1);
            let k = k.rem_euclid(period);
            if k < size { k } else { period - k }
        }
    };
    if !matches!(mode, "edge" | "wrap" | "reflect") {
        return Err(format!("mode `{mode}` is not supported"));
    }
    let places = i.b.ints((-before..size + after).map(place));
    i.b.gather(x, &places, at)
}
