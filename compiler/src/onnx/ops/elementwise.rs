//! Functions of each element.

use dlx_ir::{Binary, Compare, DType, Op, Unary};

use super::super::call::{Call, axis};
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::product::times;
use super::{MS, Row, one};

macro_rules! unaries {
    ($($name:literal => $kind:ident,)*) => {
        &[$(("", $name, |i, c, _| one(i.b.unary(Unary::$kind, c.arg(0)?))),)*]
    };
}

/// Ops that are one kind of `unary`.
const UNARY: &[Row] = unaries! {
    "Abs" => Abs, "Acos" => Acos, "Acosh" => Acosh, "Asin" => Asin, "Asinh" => Asinh, "Atan" => Atan, "Atanh" => Atanh,
    "BitwiseNot" => BitNot, "Ceil" => Ceil, "Cos" => Cos, "Cosh" => Cosh, "Erf" => Erf, "Exp" => Exp, "Floor" => Floor,
    "IsNaN" => IsNan, "Log" => Log, "Neg" => Neg, "Not" => Not, "Reciprocal" => Reciprocal, "Round" => Round,
    "Sigmoid" => Sigmoid, "Sign" => Sign, "Sin" => Sin, "Sinh" => Sinh, "Sqrt" => Sqrt, "Tan" => Tan, "Tanh" => Tanh,
};

macro_rules! binaries {
    ($($name:literal => $kind:ident,)*) => {
        &[$(("", $name, |i, c, _| one(broadcast(i, c, |i, a, b| i.b.binary(Binary::$kind, a, b)))),)*]
    };
}

/// Ops that are one kind of `binary`.
const BINARY: &[Row] = binaries! {
    "And" => And, "BitwiseAnd" => BitAnd, "BitwiseOr" => BitOr, "BitwiseXor" => BitXor, "Div" => Div, "Or" => Or,
    "Pow" => Pow, "Sub" => Sub, "Xor" => Xor,
};

macro_rules! compares {
    ($($name:literal => $kind:ident,)*) => {
        &[$(("", $name, |i, c, _| one(broadcast(i, c, |i, a, b| i.b.compare(Compare::$kind, a, b)))),)*]
    };
}

/// Ops that are one kind of `compare`.
const COMPARE: &[Row] = compares! {
    "Equal" => Eq, "Greater" => Gt, "GreaterOrEqual" => Ge, "Less" => Lt, "LessOrEqual" => Le,
};

/// All others.
const OTHERS: &[Row] = &[
    ("", "Add", |i, c, _| one(broadcast(i, c, |i, a, b| i.b.add(a, b)))),
    ("", "Mul", |i, c, _| one(broadcast(i, c, times))),
    ("", "BitShift", shift),
    ("", "Cast", |i, c, _| one(cast(i, c))),
    ("", "CastLike", |i, c, _| one(cast_like(i, c))),
    ("", "Celu", |i, c, _| {
        let alpha = c.float_or("alpha", 1.0)?.into();
        one(wide(i, c.arg(0)?, &mut |i, x| celu(i, x, alpha)))
    }),
    ("", "Clip", |i, c, _| one(clip(i, c))),
    ("", "Elu", |i, c, _| one(elu(i, c.arg(0)?, c.float_or("alpha", 1.0)?.into()))),
    ("", "Gelu", |i, c, _| one(gelu(i, c.arg(0)?, c.choice("approximate", &["none", "tanh"])? == "tanh"))),
    ("", "HardSigmoid", |i, c, _| one(hard_sigmoid(i, c.arg(0)?, c.float_or("alpha", 0.2)?, c.float_or("beta", 0.5)?))),
    ("", "HardSwish", |i, c, _| one(hard_swish(i, c))),
    ("", "Identity", |_, c, _| Ok(vec![c.arg(0)?.clone()])),
    ("", "IsInf", |i, c, _| one(is_inf(i, c))),
    ("", "LeakyRelu", |i, c, _| one(leaky(i, c, 0.01))),
    ("", "Max", |i, c, _| one(fold(i, c, |i, a, b| i.b.binary(Binary::Max, a, b)))),
    ("", "Mean", |i, c, _| one(mean(i, c))),
    ("", "Min", |i, c, _| one(fold(i, c, |i, a, b| i.b.binary(Binary::Min, a, b)))),
    ("", "Mish", |i, c, _| one(mish(i, c))),
    ("", "Mod", |i, c, _| one(modulo(i, c))),
    ("", "PRelu", |i, c, _| one(prelu(i, c))),
    ("", "Relu", |i, c, _| one(relu(i, c.arg(0)?))),
    ("", "Selu", |i, c, _| one(selu(i, c))),
    ("", "Shrink", |i, c, _| one(shrink(i, c))),
    ("", "Softplus", |i, c, _| one(softplus(i, c.arg(0)?))),
    ("", "Softsign", |i, c, _| one(softsign(i, c.arg(0)?))),
    ("", "Sum", |i, c, _| one(fold(i, c, |i, a, b| i.b.add(a, b)))),
    ("", "Swish", |i, c, _| one(swish(i, c.arg(0)?, c.float_or("alpha", 1.0)?))),
    ("", "ThresholdedRelu", |i, c, _| one(thresholded(i, c))),
    ("", "Where", |i, c, _| one(i.b.select(c.arg(0)?, c.arg(1)?, c.arg(2)?))),
    (MS, "BiasGelu", |i, c, _| one(bias_gelu(i, c))),
    (MS, "FastGelu", |i, c, _| one(fast_gelu(i, c))),
    (MS, "Gelu", |i, c, _| one(gelu(i, c.arg(0)?, false))),
    (MS, "QuickGelu", |i, c, _| one(swish(i, c.arg(0)?, c.float_or("alpha", 1.702)?))),
];

pub(super) const ROWS: &[&[Row]] = &[UNARY, BINARY, COMPARE, OTHERS];

type Two = fn(&mut Importer<'_>, &Val, &Val) -> Result<Val, String>;

/// Before version 7, the second operand was laid against the dimensions from `axis` on.
fn broadcast(i: &mut Importer<'_>, c: &Call<'_>, f: Two) -> Result<Val, String> {
    let (a, b) = (c.arg(0)?, c.arg(1)?);
    if c.opset() >= 7 {
        return f(i, a, b);
    }
    let (rank, shape) = (i.b.rank(a)?, i.b.shape(b)?);
    let first = c.int("axis")?.map(|n| axis(n, rank)).transpose()?.unwrap_or(rank.saturating_sub(shape.len()));
    let behind = rank.saturating_sub(first + shape.len());
    let dims: Vec<usize> = shape.into_iter().chain(std::iter::repeat_n(1, behind)).collect();
    let b = i.b.reshape(b, &dims)?;
    f(i, a, &b)
}

/// A function of two, over any number of operands.
fn fold(i: &mut Importer<'_>, c: &Call<'_>, f: Two) -> Result<Val, String> {
    let all = c.all()?;
    let (first, rest) = all.split_first().ok_or("has no input")?;
    rest.iter().try_fold((*first).clone(), |sum, x| f(i, &sum, x))
}

fn mean(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let sum = fold(i, c, |i, a, b| i.b.add(a, b))?;
    let n = i.b.like(&sum, c.args.len() as f64)?;
    i.b.div(&sum, &n)
}

fn shift(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let kind = if c.choice("direction", &["LEFT", "RIGHT"])? == "LEFT" { Binary::Shl } else { Binary::Shr };
    one(i.b.binary(kind, c.arg(0)?, c.arg(1)?))
}

fn cast(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let to = c.elem("to")?.ok_or("attribute `to` is missing")?;
    cast_to(i, c, to)
}

fn cast_like(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let to = i.b.dtype(c.arg(1)?)?;
    cast_to(i, c, to)
}

fn cast_to(i: &mut Importer<'_>, c: &Call<'_>, to: DType) -> Result<Val, String> {
    let (x, wrap) = (c.arg(0)?, c.int_or("saturate", 1)? == 0);
    if i.b.dtype(x)? == to {
        return Ok(x.clone());
    }
    i.b.op1(Op::Cast { to, wrap }, &[x])
}

fn clip(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    for (n, name, kind) in [(1, "min", Binary::Max), (2, "max", Binary::Min)] {
        let bound = match (c.opt(n), c.float(name)?) {
            (Some(bound), _) => Some(bound.clone()),
            (None, Some(bound)) if c.opset() < 11 => Some(i.b.like(&x, bound.into())?),
            _ => None,
        };
        if let Some(bound) = bound {
            let y = i.b.binary(kind, &x, &bound)?;
            x = i.b.kept(&x, y)?;
        }
    }
    Ok(x)
}

pub(super) fn relu(i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
    let zero = i.b.like(x, 0.0)?;
    i.b.binary(Binary::Max, x, &zero)
}

/// `a` where x is below zero, else `b`.
fn below_zero(i: &mut Importer<'_>, x: &Val, a: &Val, b: &Val) -> Result<Val, String> {
    let zero = i.b.like(x, 0.0)?;
    let below = i.b.compare(Compare::Lt, x, &zero)?;
    i.b.select(&below, a, b)
}

fn leaky(i: &mut Importer<'_>, c: &Call<'_>, default: f32) -> Result<Val, String> {
    let x = c.arg(0)?;
    let scaled = i.b.mul_number(x, c.float_or("alpha", default)?.into())?;
    below_zero(i, x, &scaled, x)
}

fn prelu(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let scaled = i.b.mul(x, c.arg(1)?)?;
    let scaled = i.b.kept(x, scaled)?;
    below_zero(i, x, &scaled, x)
}

/// `exp(x) − 1`, times a factor.
fn expm1(i: &mut Importer<'_>, x: &Val, by: f64) -> Result<Val, String> {
    let e = i.b.unary(Unary::Exp, x)?;
    let e = i.b.add_number(&e, -1.0)?;
    i.b.mul_number(&e, by)
}

pub(super) fn elu(i: &mut Importer<'_>, x: &Val, alpha: f64) -> Result<Val, String> {
    let e = expm1(i, x, alpha)?;
    below_zero(i, x, &e, x)
}

fn celu(i: &mut Importer<'_>, x: &Val, alpha: f64) -> Result<Val, String> {
    let scaled = i.b.mul_number(x, 1.0 / alpha)?;
    let e = expm1(i, &scaled, alpha)?;
    below_zero(i, x, &e, x)
}

/// A function of several steps, rounded to the type of `x` once.
fn wide(
    i: &mut Importer<'_>,
    x: &Val,
    f: &mut dyn FnMut(&mut Importer<'_>, &Val) -> Result<Val, String>,
) -> Result<Val, String> {
    let dtype = i.b.dtype(x)?;
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return f(i, x);
    }
    let x = i.b.cast(x, DType::F32)?;
    let y = f(i, &x)?;
    i.b.cast(&y, dtype)
}

fn selu(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let out = elu(i, c.arg(0)?, c.float_or("alpha", 1.673_263_2)?.into())?;
    i.b.mul_number(&out, c.float_or("gamma", 1.050_701)?.into())
}

fn thresholded(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let (limit, zero) = (i.b.like(x, c.float_or("alpha", 1.0)?.into())?, i.b.like(x, 0.0)?);
    let above = i.b.compare(Compare::Gt, x, &limit)?;
    i.b.select(&above, x, &zero)
}

fn shrink(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let (x, bias, lambd) = (c.arg(0)?, f64::from(c.float_or("bias", 0.0)?), f64::from(c.float_or("lambd", 0.5)?));
    let (low, high, zero) = (i.b.like(x, -lambd)?, i.b.like(x, lambd)?, i.b.like(x, 0.0)?);
    let (below, above) = (i.b.compare(Compare::Lt, x, &low)?, i.b.compare(Compare::Gt, x, &high)?);
    let (up, down) = (i.b.add_number(x, bias)?, i.b.add_number(x, -bias)?);
    let rest = i.b.select(&above, &down, &zero)?;
    i.b.select(&below, &up, &rest)
}

pub(super) fn hard_sigmoid(i: &mut Importer<'_>, x: &Val, alpha: f32, beta: f32) -> Result<Val, String> {
    let y = i.b.mul_number(x, alpha.into())?;
    let y = i.b.add_number(&y, beta.into())?;
    let (zero, one) = (i.b.like(x, 0.0)?, i.b.like(x, 1.0)?);
    let y = i.b.binary(Binary::Max, &y, &zero)?;
    i.b.binary(Binary::Min, &y, &one)
}

fn hard_swish(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let gate = hard_sigmoid(i, c.arg(0)?, 1.0 / 6.0, 0.5)?;
    i.b.mul(c.arg(0)?, &gate)
}

/// `log(1 + exp(x))`, without an overflow.
pub(super) fn softplus(i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
    let size = i.b.unary(Unary::Abs, x)?;
    let small = i.b.unary(Unary::Neg, &size)?;
    let e = i.b.unary(Unary::Exp, &small)?;
    let e = i.b.add_number(&e, 1.0)?;
    let log = i.b.unary(Unary::Log, &e)?;
    let positive = relu(i, x)?;
    i.b.add(&positive, &log)
}

pub(super) fn softsign(i: &mut Importer<'_>, x: &Val) -> Result<Val, String> {
    let size = i.b.unary(Unary::Abs, x)?;
    let size = i.b.add_number(&size, 1.0)?;
    i.b.div(x, &size)
}

fn mish(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let y = softplus(i, c.arg(0)?)?;
    let y = i.b.unary(Unary::Tanh, &y)?;
    i.b.mul(c.arg(0)?, &y)
}

/// `x · sigmoid(alpha · x)`.
pub(super) fn swish(i: &mut Importer<'_>, x: &Val, alpha: f32) -> Result<Val, String> {
    if alpha == 1.0 && i.b.dtype(x)? == DType::F32 {
        return i.b.op1(Op::Silu {}, &[x]);
    }
    let scaled = if alpha == 1.0 { x.clone() } else { i.b.mul_number(x, alpha.into())? };
    let gate = i.b.unary(Unary::Sigmoid, &scaled)?;
    i.b.mul(x, &gate)
}

/// Gaussian error linear unit: by the error function, or its approximation by the hyperbolic tangent.
pub(super) fn gelu(i: &mut Importer<'_>, x: &Val, tanh: bool) -> Result<Val, String> {
    let inner = if tanh {
        let square = i.b.mul(x, x)?;
        let y = i.b.mul_number(&square, 0.044_715)?;
        let y = i.b.add_number(&y, 1.0)?;
        let y = i.b.mul(&y, x)?;
        let y = i.b.mul_number(&y, (2.0 / std::f64::consts::PI).sqrt())?;
        i.b.unary(Unary::Tanh, &y)?
    } else {
        let y = i.b.mul_number(x, std::f64::consts::FRAC_1_SQRT_2)?;
        i.b.unary(Unary::Erf, &y)?
    };
    let y = i.b.add_number(&inner, 1.0)?;
    let y = i.b.mul(x, &y)?;
    i.b.mul_number(&y, 0.5)
}

fn bias_gelu(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = i.b.add(c.arg(0)?, c.arg(1)?)?;
    gelu(i, &x, false)
}

fn fast_gelu(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = match c.opt(1) {
        Some(bias) => i.b.add(c.arg(0)?, bias)?,
        None => c.arg(0)?.clone(),
    };
    gelu(i, &x, true)
}

fn is_inf(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let infinite = i.b.unary(Unary::IsInf, x)?;
    let zero = i.b.like(x, 0.0)?;
    let kind = match (c.int_or("detect_negative", 1)? != 0, c.int_or("detect_positive", 1)? != 0) {
        (true, true) => return Ok(infinite),
        (true, false) => Compare::Lt,
        (false, true) => Compare::Gt,
        (false, false) => Compare::Eq,
    };
    let side = i.b.compare(kind, x, &zero)?;
    i.b.binary(Binary::And, &infinite, &side)
}

fn modulo(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let kind = if c.flag("fmod")? { Binary::Rem } else { Binary::Mod };
    i.b.binary(kind, c.arg(0)?, c.arg(1)?)
}
