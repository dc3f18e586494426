//! Ops of classic machine learning on numbers.

use dlx_ir::{Compare, DType, Data, Op, Reduce, Tensor, Unary};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::stored::Stored;
use super::super::value::Val;
use super::lone::any_last;
use super::product::matmul;
use super::{Row, one};

/// The operator set of classic machine learning.
const DOMAIN: &str = "ai.onnx.ml";

const ML: &[Row] = &[
    (DOMAIN, "ArrayFeatureExtractor", |i, c, _| one(extract(i, c))),
    (DOMAIN, "Binarizer", |i, c, _| one(binarize(i, c))),
    (DOMAIN, "LabelEncoder", |i, c, _| one(encode(i, c))),
    (DOMAIN, "LinearRegressor", |i, c, _| one(regress(i, c))),
    (DOMAIN, "Normalizer", |i, c, _| one(normalize(i, c))),
    (DOMAIN, "Scaler", |i, c, _| one(scale(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[ML];

fn floats(list: Vec<f32>) -> Val {
    Tensor { dtype: DType::F32, shape: vec![list.len()], data: Data::F32(list) }.into()
}

/// Columns of the last dimension; a vector becomes a row.
fn extract(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, count) = (c.arg(0)?, i.b.elements(c.arg(1)?)?);
    let places = i.b.reshape(c.arg(1)?, &[count])?;
    let last = i.b.rank(x)?.checked_sub(1).ok_or("needs a dimension")?;
    let y = i.b.gather(x, &places, last)?;
    if last == 0 { i.b.reshape(&y, &[1, count]) } else { Ok(y) }
}

fn binarize(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let limit = i.b.like(x, c.float_or("threshold", 0.0)?.into())?;
    let above = i.b.compare(Compare::Gt, x, &limit)?;
    i.b.cast(&above, i.b.dtype(x)?)
}

/// One side of a label encoder's table.
fn labels(i: &Importer<'_>, c: &Call<'_>, side: &str) -> Result<Val, String> {
    if let Some(list) = c.ints(&format!("{side}_int64s"))? {
        return Ok(i.b.ints(list));
    }
    if let Some(list) = c.floats(&format!("{side}_floats"))? {
        return Ok(floats(list));
    }
    if let Some(tensor) = c.node.tensor(&format!("{side}_tensor")).map_err(|e| e.message)? {
        return Stored::open(i.model, tensor).map_err(|e| e.message);
    }
    Err(format!("its {side} are no numbers; encode text before the model"))
}

/// The value of the key that is equal to each element, or a default.
fn encode(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let (keys, values) = (labels(i, c, "keys")?, labels(i, c, "values")?);
    let (count, dtype) = (i.b.elements(&keys)?, i.b.dtype(&values)?);
    if count == 0 || i.b.elements(&values)? != count {
        return Err(format!("{count} keys and {} values", i.b.elements(&values)?));
    }
    let default = match c.node.tensor("default_tensor").map_err(|e| e.message)? {
        Some(tensor) => Stored::open(i.model, tensor).map_err(|e| e.message)?,
        None if dtype.is_float() => i.b.number(dtype, c.float_or("default_float", -0.0)?.into())?,
        None => i.b.number(dtype, c.int_or("default_int64", -1)? as f64)?,
    };
    let default = i.b.reshape(&default, &[])?;
    let keys = i.b.cast(&keys, i.b.dtype(x)?)?;
    let (keys, values) = (i.b.reshape(&keys, &[count])?, i.b.reshape(&values, &[count])?);
    let mut shape = i.b.shape(x)?;
    shape.push(1);
    let column = i.b.reshape(x, &shape)?;
    let same = i.b.compare(Compare::Eq, &column, &keys)?;
    let found = any_last(i, &same)?;
    let ones = i.b.cast(&same, DType::I32)?;
    let which = i.b.op1(Op::ArgMax { axis: shape.len() as i64 - 1, min: false, last: true }, &[&ones])?;
    shape.pop();
    let which = i.b.reshape(&which, &shape)?;
    let chosen = i.b.gather(&values, &which, 0)?;
    i.b.select(&found, &chosen, &default)
}

fn scale(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut y = i.b.cast(c.arg(0)?, DType::F32)?;
    if let Some(offset) = c.floats("offset")? {
        y = i.b.sub(&y, &floats(offset))?;
    }
    match c.floats("scale")? {
        Some(scale) => i.b.mul(&y, &floats(scale)),
        None => Ok(y),
    }
}

/// Rows over their largest element, or their norm.
fn normalize(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = i.b.cast(c.arg(0)?, DType::F32)?;
    let last = i.b.rank(&x)?.checked_sub(1).ok_or("needs a dimension")?;
    let norm = match c.text_or("norm", "MAX")?.as_str() {
        "MAX" => i.b.reduce(Reduce::Max, &x, &[last], true)?,
        "L1" => {
            let size = i.b.unary(Unary::Abs, &x)?;
            i.b.reduce(Reduce::Sum, &size, &[last], true)?
        }
        "L2" => {
            let square = i.b.mul(&x, &x)?;
            let sum = i.b.reduce(Reduce::Sum, &square, &[last], true)?;
            i.b.unary(Unary::Sqrt, &sum)?
        }
        other => return Err(format!("norm `{other}` is not supported")),
    };
    let (zero, number) = (i.b.like(&norm, 0.0)?, i.b.like(&norm, 1.0)?);
    let none = i.b.compare(Compare::Eq, &norm, &zero)?;
    let norm = i.b.select(&none, &number, &norm)?;
    i.b.div(&x, &norm)
}

fn regress(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let transform = c.text_or("post_transform", "NONE")?;
    if transform != "NONE" {
        return Err(format!("post_transform `{transform}` is not supported"));
    }
    let x = i.b.cast(c.arg(0)?, DType::F32)?;
    let width = *i.b.shape(&x)?.last().ok_or("needs a dimension")?;
    let targets = usize::try_from(c.int_or("targets", 1)?).unwrap_or(0);
    let weights = floats(c.floats("coefficients")?.ok_or("attribute `coefficients` is missing")?);
    if targets == 0 || Some(i.b.elements(&weights)?) != targets.checked_mul(width) {
        return Err(format!("{} coefficients for {targets} targets of {width} features", i.b.elements(&weights)?));
    }
    let weights = i.b.reshape(&weights, &[targets, width])?;
    let weights = i.b.swap_last(&weights)?;
    let y = matmul(i, &x, &weights)?;
    match c.floats("intercepts")? {
        Some(list) => i.b.add(&y, &floats(list)),
        None => Ok(y),
    }
}
