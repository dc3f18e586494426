//! Python's two ways of formatting text: `%` and `str.format`.
//!
//! What a single field looks like is the engine's business; here are the parts that it lacks: which argument a field takes
//! (a tuple's next one, a key of a mapping, `*` for a width), `%r`, Python's `str` for everything that is no number, and the
//! budget. Invariant: no field is wider than [`MAX_WIDTH`].

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::meter::{pay, refused};
use super::python;

/// Widest field, and most digits behind a point, that a format may ask for.
const MAX_WIDTH: usize = 10_000;

/// `text % args`: one value, a tuple of them, or a mapping.
pub(super) fn percent(state: &mut State<'_, '_>, text: &str, args: &Value) -> Result<String, Error> {
    let all: Vec<Value> = if args.is_tuple() { args.try_iter()?.collect() } else { vec![args.clone()] };
    let mut next = all.iter();
    let mut missing = || next.next().cloned().ok_or_else(|| refused("not enough arguments for the format"));
    let mut out = String::new();
    let mut rest = text;
    let mut keyed = false;
    while let Some((before, field)) = rest.split_once('%') {
        out.push_str(before);
        let mut spec = field;
        let key = match spec.strip_prefix('(').and_then(|s| s.split_once(')')) {
            Some((key, after)) => {
                spec = after;
                keyed = true;
                Some(key)
            }
            None => None,
        };
        let flags = spec.len() - spec.trim_start_matches(['-', '+', ' ', '0', '#']).len();
        let mut wanted = spec[..flags].to_owned();
        spec = &spec[flags..];
        number(&mut spec, &mut wanted, &mut missing)?;
        if let Some(after) = spec.strip_prefix('.') {
            wanted.push('.');
            spec = after;
            number(&mut spec, &mut wanted, &mut missing)?;
        }
        let conversion = spec.chars().next().ok_or_else(|| refused("the format ends inside of a field"))?;
        rest = &spec[conversion.len_utf8()..];
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match key {
            Some(key) => args
                .get_attr(key)
                .ok()
                .filter(|v| !v.is_undefined())
                .ok_or_else(|| refused(format!("the mapping has no `{key}`")))?,
            None => missing()?,
        };
        out.push_str(&field_of(state, &wanted, conversion, &value)?);
    }
    if !keyed && next.next().is_some() && (args.is_tuple() || args.kind() != ValueKind::Map) {
        return Err(refused("not all arguments have a place in the format"));
    }
    out.push_str(rest);
    pay(state, out.len())?;
    Ok(out)
}

/// A width or precision: digits, or `*` for the next argument.
fn number(spec: &mut &str, wanted: &mut String, next: &mut impl FnMut() -> Result<Value, Error>) -> Result<(), Error> {
    let text = match spec.strip_prefix('*') {
        Some(after) => {
            *spec = after;
            i64::try_from(next()?)?.to_string()
        }
        None => {
            let digits = spec.len() - spec.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (text, after) = spec.split_at(digits);
            *spec = after;
            text.to_owned()
        }
    };
    narrow(text.trim_start_matches('-'))?;
    wanted.push_str(&text);
    Ok(())
}

fn narrow(digits: &str) -> Result<(), Error> {
    if digits.is_empty() || digits.parse::<usize>().is_ok_and(|width| width <= MAX_WIDTH) {
        return Ok(());
    }
    Err(refused(format!("a field is wider than {MAX_WIDTH} characters")))
}

fn field_of(state: &mut State<'_, '_>, wanted: &str, conversion: char, value: &Value) -> Result<String, Error> {
    let (conversion, value) = match conversion {
        'r' | 'a' => ('s', Value::from(python::repr(state, value)?)),
        's' => ('s', Value::from(python::text(state, value)?)),
        'd' | 'i' | 'u' => ('d', truncated(value)?),
        'F' => ('f', value.clone()),
        other => (other, value.clone()),
    };
    pay(state, MAX_WIDTH.min(wanted.len() + 64))?;
    format(FormatStyle::Printf, &format!("%{wanted}{conversion}"), &[value])
}

/// A number without its fraction.
fn truncated(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => {
            let whole = f64::try_from(value.clone())?.trunc();
            let fits = whole.is_finite() && whole.abs() < 1e18;
            if fits { Ok(Value::from(whole as i64)) } else { Err(refused("the number has no integer here")) }
        }
        other => Err(refused(format!("%d takes a number, not a {other}"))),
    }
}

/// `text.format(args)`, after paying for the most that can come out.
pub(super) fn braces(state: &mut State<'_, '_>, text: &str, args: &[Value]) -> Result<String, Error> {
    let mut widest = 0;
    for run in text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty()) {
        narrow(run)?;
        widest = widest.max(run.parse().unwrap_or(0));
    }
    // A width may be an argument too.
    let nested =
        text.contains(":{") || text.contains(".{") || text.contains(">{") || text.contains("<{") || text.contains("^{");
    for arg in args.iter().filter(|_| nested).filter_map(Value::as_i64) {
        narrow(&arg.unsigned_abs().to_string())?;
        widest = MAX_WIDTH;
    }
    let fields = text.matches('{').count();
    let mut inside = 0usize;
    for arg in args {
        inside = inside.saturating_add(python::text(state, arg)?.len());
    }
    pay(state, text.len().saturating_add(fields.saturating_mul(widest.saturating_add(inside).saturating_add(64))))?;
    format(FormatStyle::StrFormat, text, args)
}
