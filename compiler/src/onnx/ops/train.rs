//! Steps of optimizers.

use dlx_ir::{Binary, Compare, Unary};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::value::Val;
use super::Row;

/// The operator set of training.
const TRAINING: &str = "ai.onnx.preview.training";

const STEPS: &[Row] = &[
    (TRAINING, "Adagrad", |i, c, _| each(i, c, 1, adagrad)),
    (TRAINING, "Adam", |i, c, _| each(i, c, 2, adam)),
    (TRAINING, "Momentum", |i, c, _| each(i, c, 1, momentum)),
];

pub(super) const ROWS: &[&[Row]] = &[STEPS];

/// What a step has of one tensor: the rate, the count of steps, the tensor, its gradient (regularized), and its states.
struct Step<'v> {
    rate: Val,
    count: Val,
    x: &'v Val,
    g: Val,
    states: Vec<&'v Val>,
}

type Update = fn(&mut Importer<'_>, &Call<'_>, &Step<'_>) -> Result<Vec<Val>, String>;

/// Operands are the rate, the count, all tensors, all gradients, all first states, …; results all tensors, all states.
fn each(i: &mut Importer<'_>, c: &Call<'_>, states: usize, f: Update) -> Result<Vec<Val>, String> {
    let parts = 2 + states;
    let n = c.args.len().saturating_sub(2) / parts;
    if n == 0 || c.args.len() != 2 + n * parts {
        return Err(format!("{} inputs are no whole number of tensors", c.args.len()));
    }
    let decay = f64::from(c.float_or("norm_coefficient", 0.0)?);
    let mut out: Vec<Vec<Val>> = vec![Vec::new(); 1 + states];
    for k in 0..n {
        let x = c.arg(2 + k)?;
        let dtype = i.b.dtype(x)?;
        let number = |i: &mut Importer<'_>, at: usize| {
            let v = i.b.reshape(c.arg(at)?, &[])?;
            i.b.cast(&v, dtype)
        };
        let (rate, count) = (number(i, 0)?, number(i, 1)?);
        let scaled = i.b.mul_number(x, decay)?;
        let g = i.b.add(&scaled, c.arg(2 + n + k)?)?;
        let states = (0..states).map(|s| c.arg(2 + (2 + s) * n + k)).collect::<Result<Vec<_>, _>>()?;
        let new = f(i, c, &Step { rate, count, x, g, states })?;
        out.iter_mut().zip(new).for_each(|(list, v)| list.push(v));
    }
    Ok(out.into_iter().flatten().collect())
}

/// `a x + b y`.
fn mix(i: &mut Importer<'_>, a: f64, x: &Val, b: f64, y: &Val) -> Result<Val, String> {
    let (x, y) = (i.b.mul_number(x, a)?, i.b.mul_number(y, b)?);
    i.b.add(&x, &y)
}

/// `x − rate · d / (√h + ε)`.
fn descend(i: &mut Importer<'_>, x: &Val, rate: &Val, d: &Val, h: &Val, eps: f32) -> Result<Val, String> {
    let root = i.b.unary(Unary::Sqrt, h)?;
    let root = i.b.add_number(&root, eps.into())?;
    let change = i.b.mul(rate, d)?;
    let change = i.b.div(&change, &root)?;
    i.b.sub(x, &change)
}

fn adagrad(i: &mut Importer<'_>, c: &Call<'_>, s: &Step<'_>) -> Result<Vec<Val>, String> {
    let slower = i.b.mul_number(&s.count, c.float_or("decay_factor", 0.0)?.into())?;
    let slower = i.b.add_number(&slower, 1.0)?;
    let rate = i.b.div(&s.rate, &slower)?;
    let square = i.b.mul(&s.g, &s.g)?;
    let h = i.b.add(s.states[0], &square)?;
    Ok(vec![descend(i, s.x, &rate, &s.g, &h, c.float_or("epsilon", 0.0)?)?, h])
}

fn adam(i: &mut Importer<'_>, c: &Call<'_>, s: &Step<'_>) -> Result<Vec<Val>, String> {
    let (alpha, beta) = (f64::from(c.float_or("alpha", 0.9)?), f64::from(c.float_or("beta", 0.999)?));
    let v = mix(i, alpha, s.states[0], 1.0 - alpha, &s.g)?;
    let square = i.b.mul(&s.g, &s.g)?;
    let h = mix(i, beta, s.states[1], 1.0 - beta, &square)?;
    // The states start at zero, which is corrected from the first step on.
    let missing = |i: &mut Importer<'_>, base: f64| {
        let base = i.b.like(&s.count, base)?;
        let power = i.b.binary(Binary::Pow, &base, &s.count)?;
        let power = i.b.mul_number(&power, -1.0)?;
        i.b.add_number(&power, 1.0)
    };
    let (root, below) = (missing(i, beta)?, missing(i, alpha)?);
    let root = i.b.unary(Unary::Sqrt, &root)?;
    let corrected = i.b.mul(&s.rate, &root)?;
    let corrected = i.b.div(&corrected, &below)?;
    let rate = later(i, s, &corrected, &s.rate)?;
    let x = descend(i, s.x, &rate, &v, &h, c.float_or("epsilon", 0.0)?)?;
    let kept = 1.0 - f64::from(c.float_or("norm_coefficient_post", 0.0)?);
    Ok(vec![i.b.mul_number(&x, kept)?, v, h])
}

/// `a` from the second step on, else `b`.
fn later(i: &mut Importer<'_>, s: &Step<'_>, a: &Val, b: &Val) -> Result<Val, String> {
    let zero = i.b.like(&s.count, 0.0)?;
    let later = i.b.compare(Compare::Gt, &s.count, &zero)?;
    i.b.select(&later, a, b)
}

fn momentum(i: &mut Importer<'_>, c: &Call<'_>, s: &Step<'_>) -> Result<Vec<Val>, String> {
    let alpha = f64::from(c.float("alpha")?.ok_or("attribute `alpha` is missing")?);
    let beta = i.b.like(&s.count, c.float("beta")?.ok_or("attribute `beta` is missing")?.into())?;
    let number = i.b.like(&s.count, 1.0)?;
    let beta = later(i, s, &beta, &number)?;
    let new = i.b.mul(&beta, &s.g)?;
    let v = mix(i, alpha, s.states[0], 1.0, &new)?;
    let d = match c.text_or("mode", "standard")?.as_str() {
        "standard" => v.clone(),
        "nesterov" => mix(i, 1.0, &s.g, alpha, &v)?,
        other => return Err(format!("mode `{other}` is not supported")),
    };
    let change = i.b.mul(&s.rate, &d)?;
    Ok(vec![i.b.sub(s.x, &change)?, v])
}
