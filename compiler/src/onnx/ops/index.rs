//! Elements chosen by index, put by index, and put in order.

use dlx_ir::{Compare, DType, Data, Op, Scatter, Tensor};

use super::super::call::{Call, axis};
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::{Row, one};

const INDEX: &[Row] = &[
    ("", "Gather", |i, c, _| one(gather(i, c))),
    ("", "GatherElements", |i, c, _| one(gather_elements(i, c))),
    ("", "GatherND", |i, c, _| {
        one(i.b.op1(Op::GatherNd { batch: c.int_or("batch_dims", 0)? }, &[c.arg(0)?, c.arg(1)?]))
    }),
    ("", "OneHot", |i, c, _| one(one_hot(i, c))),
    ("", "Scatter", |i, c, _| one(scatter(i, c))),
    ("", "ScatterElements", |i, c, _| one(scatter(i, c))),
    ("", "ScatterND", |i, c, _| one(scatter_nd(i, c))),
    ("", "TensorScatter", |i, c, _| one(tensor_scatter(i, c))),
    ("", "TopK", top_k),
];

pub(super) const ROWS: &[&[Row]] = &[INDEX];

fn gather(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let at = axis(c.int_or("axis", 0)?, i.b.rank(x)?)?;
    i.b.gather(x, c.arg(1)?, at)
}

fn gather_elements(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let axis = axis(c.int_or("axis", 0)?, i.b.rank(x)?)? as i64;
    i.b.op1(Op::GatherElements { axis }, &[x, c.arg(1)?])
}

fn kind(c: &Call<'_>) -> Result<Scatter, String> {
    Ok(match c.text_or("reduction", "none")?.as_str() {
        "none" => Scatter::Set,
        "add" => Scatter::Add,
        "mul" => Scatter::Mul,
        "max" => Scatter::Max,
        "min" => Scatter::Min,
        other => return Err(format!("reduction `{other}` is not supported")),
    })
}

fn scatter(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let axis = axis(c.int_or("axis", 0)?, i.b.rank(x)?)? as i64;
    i.b.op1(Op::Scatter { axis, kind: kind(c)? }, &[x, c.arg(1)?, c.arg(2)?])
}

fn scatter_nd(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    i.b.op1(Op::ScatterNd { kind: kind(c)? }, &[c.arg(0)?, c.arg(1)?, c.arg(2)?])
}

/// `values[1]` where an index along the new dimension is the one asked for, else `values[0]`.
fn one_hot(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let at = axis(c.int_or("axis", -1)?, i.b.rank(c.arg(0)?)? + 1)?;
    let depth = i.decided(c, c.arg(1)?, "depth", |shape| Some(vec![*shape.get(at)? as i64]))?;
    let &[depth] = &depth[..] else { return Err("`depth` is not one number".into()) };
    if !(1..=1 << 24).contains(&depth) {
        return Err(format!("a depth of {depth}"));
    }
    let indices = i.b.cast(c.arg(0)?, DType::I64)?;
    let mut shape = i.b.shape(&indices)?;
    // Negative indices count from the end; what is out of range is nowhere.
    let (zero, d) = (i.b.like(&indices, 0.0)?, i.b.like(&indices, depth as f64)?);
    let below = i.b.compare(Compare::Lt, &indices, &zero)?;
    let wrapped = i.b.add(&indices, &d)?;
    let indices = i.b.select(&below, &wrapped, &indices)?;
    shape.insert(at, 1);
    let indices = i.b.reshape(&indices, &shape)?;
    let mut places = vec![1; shape.len()];
    places[at] = depth as usize;
    let counted = i.b.ints(0..depth);
    let counted = i.b.reshape(&counted, &places)?;
    let hot = i.b.compare(Compare::Eq, &indices, &counted)?;
    let values = c.arg(2)?;
    if i.b.shape(values)? != [2] {
        return Err(format!("`values` are {:?}, not two numbers", i.b.shape(values)?));
    }
    let (off, on) = (i.b.slice(values, 0, 0, 1)?, i.b.slice(values, 0, 1, 2)?);
    let (off, on) = (i.b.reshape(&off, &[])?, i.b.reshape(&on, &[])?);
    i.b.select(&hot, &on, &off)
}

/// Writes `update` into a cache `[B, …, S, …]` from one position per batch on; beyond the end it is an error, or wraps.
fn tensor_scatter(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (cache, update) = (c.arg(0)?, c.arg(1)?);
    let (shape, part) = (i.b.shape(cache)?, i.b.shape(update)?);
    let at = axis(c.int_or("axis", -2)?, shape.len())?;
    if at == 0 || part.len() != shape.len() {
        return Err("needs a batch in front of the axis, and an update of as many dimensions".into());
    }
    let circular = c.choice("mode", &["linear", "circular"])? == "circular";
    let steps = Tensor { dtype: DType::I64, shape: vec![part[at]], data: Data::I64((0..part[at] as i64).collect()) };
    let mut along = vec![1; shape.len()];
    along[at] = part[at];
    let mut places = i.b.reshape(&steps.into(), &along)?;
    if let Some(first) = c.opt(2) {
        let mut dims = vec![1; shape.len()];
        dims[0] = shape[0];
        let first = i.b.cast(first, DType::I64)?;
        let first = i.b.reshape(&first, &dims)?;
        places = i.b.add(&places, &first)?;
    }
    if circular {
        let size = i.b.like(&places, shape[at] as f64)?;
        places = i.b.binary(dlx_ir::Binary::Mod, &places, &size)?;
    }
    let places = i.b.expand(&places, &part)?;
    i.b.op1(Op::Scatter { axis: at as i64, kind: Scatter::Set }, &[cache, &places, update])
}

fn top_k(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let at = axis(c.int_or("axis", -1)?, shape.len())?;
    let k = match (c.opt(1), c.int("k")?) {
        (Some(k), _) => {
            let k = i.decided(c, k, "k", |shape| Some(vec![*shape.get(at)? as i64]))?;
            let &[k] = &k[..] else { return Err("`k` is not one number".into()) };
            k
        }
        (None, Some(k)) => k,
        (None, None) => return Err("has no input 1, and attribute `k` is missing".into()),
    };
    let k = usize::try_from(k).ok().filter(|k| *k <= shape[at]).ok_or_else(|| format!("k={k} of {}", shape[at]))?;
    let descending = c.int_or("largest", 1)? != 0;
    let sorted = i.b.op(Op::Sort { axis: at as i64, descending }, &[x])?;
    sorted.iter().map(|s| i.b.slice(s, at, 0, k)).collect()
}
