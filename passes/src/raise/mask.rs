//! Which rule an attention mask follows: found by computing the mask and looking at every position of it.
//!
//! A mask that depends on one input is computed for ones and for many random paddings of the keys. Of the rules that agree with
//! all positions the simplest is taken: full, causal, block-causal, local. A short sequence cannot tell them all apart.

use super::look::{Look, floats, noise, tensor};
use dlx_ir::{DType, Data, Mask, Operand, Tensor, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What is added to a score so that it may as well not be there; finite ones are used, too.
const NEVER: f64 = -1e4;

/// Paddings that are tried.
const PADDINGS: u64 = 12;

/// What masks scores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Term {
    pub(crate) operand: Operand,
    pub(crate) kind: Kind,
}

/// How it does that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// It is added.
    Added,
    /// Scores stay where it is true.
    Keeps,
    /// Scores go where it is true.
    Drops,
}

/// What all terms of an attention come to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Verdict {
    pub(crate) rule: Mask,
    /// The input `[B, S]` that says which keys there are.
    pub(crate) padding: Option<ValueId>,
}

/// Sizes of scores: batch, heads, queries, keys.
pub(crate) type Sizes = [usize; 4];

/// The rule that terms follow, together with a rule that holds anyway.
///
/// # Errors
/// Why they follow none.
pub(crate) fn verdict(look: Look<'_>, terms: &[Term], given: Mask, sizes: Sizes) -> Result<Verdict, String> {
    let mut params = BTreeSet::new();
    for term in terms {
        params.extend(look.between(term.operand, |_| false)?.params);
    }
    let names: Vec<String> = params.iter().map(|p| look.name(Operand::Value(*p))).collect();
    let input = match params.into_iter().collect::<Vec<_>>()[..] {
        [] => None,
        [input] => Some(input),
        _ => return Err(format!("the mask depends on the inputs {}", names.join(", "))),
    };
    let Some(input) = input else {
        let seen = allowed(look, terms, sizes, &BTreeMap::new())?;
        let rule = rule(&seen, given, sizes)?;
        return Ok(Verdict { rule, padding: None });
    };
    let (ty, name) = (look.ty(Operand::Value(input)), &names[0]);
    let [batch, _, _, keys] = sizes;
    if ty.shape() != Some(vec![batch, keys]) {
        return Err(format!("the mask depends on the input {name}: {ty}, which is not one number for each key"));
    }
    let with = |padding: &[bool]| -> Result<Vec<bool>, String> {
        let given =
            BTreeMap::from([(input, flags(ty.dtype, &[batch, keys], padding).ok_or("an input of no numbers")?)]);
        allowed(look, terms, sizes, &given)
    };
    let rule = rule(&with(&vec![true; batch * keys])?, given, sizes)?;
    for trial in 0..PADDINGS {
        let padding: Vec<bool> = padding(trial, batch, keys);
        let seen = with(&padding)?;
        let wrong = positions(sizes).zip(&seen).find(|([b, _, i, j], seen)| {
            **seen && !given.sees(*i, *j)
                || (**seen && given.sees(*i, *j)) != (rule.sees(*i, *j) && padding[b * keys + j])
        });
        if let Some(([_, _, i, j], _)) = wrong {
            return Err(format!("the mask is not {rule} and {name}: for some {name} it differs at [{i}, {j}]"));
        }
    }
    Ok(Verdict { rule, padding: Some(input) })
}

/// Keys that begin late, that end early, or that are there by chance.
fn padding(trial: u64, batch: usize, keys: usize) -> Vec<bool> {
    let random = noise(trial + 7, batch * keys + batch);
    let one = |(i, v): (usize, &f64)| {
        let (b, j) = (i / keys, i % keys);
        let edge = ((random[batch * keys + b] + 1.0) / 2.0 * keys as f64) as usize;
        match trial % 3 {
            0 => j >= edge,
            1 => j <= edge,
            _ => *v > -0.5,
        }
    };
    random[..batch * keys].iter().enumerate().map(one).collect()
}

fn flags(dtype: DType, shape: &[usize], flags: &[bool]) -> Option<Tensor> {
    let data = match dtype {
        DType::Bool => Data::Bool(flags.to_vec()),
        DType::I32 => Data::I32(flags.iter().map(|f| i32::from(*f)).collect()),
        dtype if dtype.is_int() => Data::I64(flags.iter().map(|f| i64::from(*f)).collect()),
        _ => return tensor(dtype, shape, flags.iter().map(|f| f64::from(u8::from(*f))).collect()),
    };
    Some(Tensor { dtype, shape: shape.to_vec(), data })
}

fn positions([b, h, t, s]: Sizes) -> impl Iterator<Item = [usize; 4]> {
    (0..b * h * t * s).map(move |i| [i / (h * t * s), i / (t * s) % h, i / s % t, i % s])
}

/// Which scores stay.
fn allowed(
    look: Look<'_>,
    terms: &[Term],
    sizes: Sizes,
    given: &BTreeMap<ValueId, Tensor>,
) -> Result<Vec<bool>, String> {
    let total = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).filter(|n| *n <= 1 << 26);
    let mut seen = vec![true; total.ok_or("the mask is too large to be looked at")?];
    for term in terms {
        let mask = look.compute(term.operand, given)?;
        let flags: Vec<bool> = match (&mask.data, term.kind) {
            (Data::Bool(x), Kind::Keeps) => x.clone(),
            (Data::Bool(x), Kind::Drops) => x.iter().map(|v| !v).collect(),
            (_, Kind::Added) => {
                let numbers = floats(&mask).ok_or("the mask holds no floats")?;
                if let Some(bias) = numbers.iter().find(|v| **v != 0.0 && (v.is_nan() || **v > NEVER)) {
                    return Err(format!("it adds {bias} to a score, so it is no mask"));
                }
                numbers.iter().map(|v| *v == 0.0).collect()
            }
            _ => return Err("the mask is not bool".into()),
        };
        if mask.shape.len() > 4 {
            return Err("the mask has more dimensions than the scores".into());
        }
        let strides = strides(&mask.shape, sizes).ok_or("the mask does not repeat to the scores")?;
        for (seen, at) in seen.iter_mut().zip(positions(sizes)) {
            *seen &= flags[at.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>()];
        }
    }
    Ok(seen)
}

/// Steps of a tensor that repeats to some sizes.
fn strides(shape: &[usize], sizes: Sizes) -> Option<[usize; 4]> {
    let mut strides = [0; 4];
    let mut step = 1;
    for (to, (have, want)) in strides.iter_mut().rev().zip(shape.iter().rev().zip(sizes.iter().rev())) {
        if have != want && *have != 1 {
            return None;
        }
        *to = if *have == 1 { 0 } else { step };
        step *= have;
    }
    Some(strides)
}

/// The rule by which scores stay, in every sequence and head.
fn rule(seen: &[bool], given: Mask, sizes: Sizes) -> Result<Mask, String> {
    let [_, _, t, s] = sizes;
    let one: Vec<bool> = seen[..t * s].iter().enumerate().map(|(i, v)| *v && given.sees(i / s, i % s)).collect();
    let other = seen
        .chunks(t * s)
        .position(|c| c.iter().zip(&one).enumerate().any(|(i, (v, o))| (*v && given.sees(i / s, i % s)) != *o));
    if other.is_some() {
        return Err("the mask is not the same for all sequences and heads".into());
    }
    // What a first row sees tells the size of a block or window.
    let ahead = one[..s].iter().take_while(|v| **v).count();
    let mut rules = vec![Mask::Full];
    if t == s {
        rules.push(Mask::Causal);
        rules.extend(u32::try_from(ahead).ok().filter(|n| *n > 1).map(Mask::BlockCausal));
        rules.extend(u32::try_from(ahead.saturating_sub(1) * 2).ok().filter(|n| *n > 0).map(Mask::Local));
    }
    let wrong =
        |rule: Mask| one.iter().enumerate().filter(move |(i, v)| rule.sees(i / s, i % s) != **v).map(|(i, _)| i);
    if let Some(rule) = rules.iter().find(|rule| wrong(**rule).next().is_none()) {
        return Ok(*rule);
    }
    let nearest = rules.into_iter().min_by_key(|rule| wrong(*rule).count()).unwrap_or(Mask::Full);
    let first = wrong(nearest).next().unwrap_or(0);
    Err(format!("the mask differs from {nearest} at [{}, {}]", first / s, first % s))
}
