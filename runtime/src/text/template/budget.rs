//! Filters and operators that pay for what they make: every value that a template builds, copies or walks.
//!
//! Invariant: no filter or operator here makes something larger than what is left, and each asks before it makes. Values that
//! contain themselves cannot be built: the only ones that change, namespaces, are kept out of containers and of each other.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Error, State};

use super::meter::{DEPTH, VALUE, VALUES, pay, refused};
use super::{format, python};

/// Size of a value as it would be walked: its text, and [`VALUE`] for it and everything in it.
fn size(value: &Value) -> Result<usize, Error> {
    let (mut bytes, mut values) = (0usize, 0usize);
    let mut open = vec![(value.clone(), 0)];
    while let Some((value, depth)) = open.pop() {
        values += 1;
        if values > VALUES {
            return Err(refused("a value holds too many others"));
        }
        bytes = bytes.saturating_add(VALUE + value.as_str().map_or(0, str::len));
        let container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable);
        if !container || (is_namespace(&value) && depth == 0) {
            continue;
        }
        if is_namespace(&value) {
            return Err(refused("a namespace cannot be inside of another value"));
        }
        if depth == DEPTH {
            return Err(refused("a value is nested too deeply"));
        }
        if value.len().is_some_and(|len| len > VALUES) {
            return Err(refused("a value holds too many others"));
        }
        // What cannot be walked, such as a cycler, is one value.
        let Ok(items) = value.try_iter() else { continue };
        for item in items.take(VALUES) {
            if value.kind() == ValueKind::Map {
                open.push((value.get_item(&item)?, depth + 1));
            }
            open.push((item, depth + 1));
            if open.len() > 2 * VALUES {
                return Err(refused("a value holds too many others"));
            }
        }
    }
    Ok(bytes)
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// `x|_pay`: `x`, paid for.
pub(super) fn paid(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    let bytes = size(&value)?;
    pay(state, bytes)?;
    Ok(value)
}

/// `x|_plain`: `x`, which a namespace may hold.
pub(super) fn plain(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    if is_namespace(&value) {
        return Err(refused("a namespace cannot be inside of another value"));
    }
    paid(state, value)
}

/// `x|_iter`: `x`, which a loop walks.
pub(super) fn walked(value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(refused("none has no items to loop over")) } else { Ok(value) }
}

fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// `a + b`.
pub(super) fn add(state: &mut State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        pay(state, VALUE + x.len() + y.len())?;
        return Ok(Value::from([x, y].concat()));
    }
    if is_sequence(&a) && is_sequence(&b) {
        pay(state, size(&a)?.saturating_add(size(&b)?))?;
        let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
        return Ok(if a.is_tuple() && b.is_tuple() {
            Value::from(minijinja::value::Tuple::from(items))
        } else {
            items.into()
        });
    }
    python::arithmetic("+", &a, &b)
}

/// `a * b`.
pub(super) fn multiply(state: &mut State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    let (repeated, times) = if a.kind() == ValueKind::Number { (&b, &a) } else { (&a, &b) };
    if repeated.kind() == ValueKind::Number || times.as_i64().is_none() {
        return python::arithmetic("*", &a, &b);
    }
    let times = usize::try_from(times.as_i64().unwrap_or(0)).unwrap_or(0);
    let bytes = size(repeated)?.saturating_mul(times);
    pay(state, bytes)?;
    if let Some(text) = repeated.as_str() {
        return Ok(Value::from(text.repeat(times)));
    }
    if !is_sequence(repeated) || repeated.len().is_none_or(|len| len.saturating_mul(times) > VALUES) {
        return Err(refused("only text and lists can be repeated"));
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    Ok(Value::from((0..times).flat_map(|_| items.iter().cloned()).collect::<Vec<_>>()))
}

/// `a % b`: Python's formatting when `a` is text.
pub(super) fn remainder(state: &mut State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    let Some(text) = a.as_str() else { return python::arithmetic("%", &a, &b) };
    format::percent(state, text, &b).map(Value::from)
}

/// `a ~ b`.
pub(super) fn concat(state: &mut State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    let mut text = python::text(state, &a)?;
    text += &python::text(state, &b)?;
    Ok(Value::from(text))
}

/// Refuses what an operand's size makes quadratic or larger: `times` walks over `value`.
pub(super) fn pay_walks(state: &mut State<'_, '_>, value: &Value, times: usize) -> Result<(), Error> {
    let bytes = size(value)?.saturating_mul(times.max(1));
    pay(state, bytes)
}

/// The engine's filters that make more than they are given: `batch`, `slice` and `sum`.
pub(super) fn batch(
    state: &mut State<'_, '_>,
    value: Value,
    count: usize,
    fill: Option<Value>,
) -> Result<Value, Error> {
    pay(state, count.saturating_mul(VALUE))?;
    minijinja::filters::batch(state, value, count, fill)
}

/// See [`batch`].
pub(super) fn slice(
    state: &mut State<'_, '_>,
    value: Value,
    count: usize,
    fill: Option<Value>,
) -> Result<Value, Error> {
    pay(state, count.saturating_mul(2 * VALUE))?;
    minijinja::filters::slice(state, value, count, fill)
}

/// `replace`, with Python's count.
pub(super) fn replace(
    state: &mut State<'_, '_>,
    value: Value,
    from: String,
    to: String,
    rest: Rest<Value>,
) -> Result<Value, Error> {
    let text = python::text(state, &value)?;
    let count = rest.first().and_then(Value::as_i64).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let found = text.matches(from.as_str()).take(count).count();
    pay(state, VALUE + text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(Value::from(if count == usize::MAX { text.replace(&from, &to) } else { text.replacen(&from, &to, count) }))
}
