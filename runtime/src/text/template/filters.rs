//! Filters and functions that the engine lacks, or that make more than they are given and so must ask the budget.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::formatting::FormatStyle;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, State};

use super::budget::{self, pay, pay_walks, refused};
use super::python;

/// Adds them to an environment.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("_pay", budget::paid);
    environment.add_filter("_plain", budget::plain);
    environment.add_filter("_add", budget::add);
    environment.add_filter("_mul", budget::multiply);
    environment.add_filter("_rem", budget::remainder);
    environment.add_filter("_cat", budget::concat);
    environment.add_filter("batch", budget::batch);
    environment.add_filter("slice", budget::slice);
    environment.add_filter("replace", budget::replace);
    environment.add_filter("tojson", python::to_json);
    environment.add_filter("string", |state: &mut State<'_, '_>, value: Value| python::text(state, &value));
    environment.add_filter("pprint", |state: &mut State<'_, '_>, value: Value| python::text(state, &value));
    environment.add_filter("format", |state: &mut State<'_, '_>, text: String, args: Rest<Value>| {
        python::formatted(state, FormatStyle::Printf, &text, &args)
    });
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("sum", sum);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", |text: String| text.split_whitespace().count());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("raise_exception", |text: String| Err::<Value, _>(refused(text)));
    environment.add_function("strftime_now", strftime_now);
}

/// `map(attribute)` for one item: a name with dots for nested ones.
fn attribute(item: &Value, name: &Value) -> Result<Value, Error> {
    match name.as_str() {
        Some(path) => path.split('.').try_fold(item.clone(), |value, key| match key.parse::<usize>() {
            Ok(index) => value.get_item_by_index(index),
            Err(_) => value.get_attr(key),
        }),
        None => item.get_item(name),
    }
}

fn join(
    state: &mut State<'_, '_>,
    value: Value,
    joiner: Option<Value>,
    by: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let joiner = joiner.or(options.get("d")?).map_or(Ok(String::new()), |j| python::text(state, &j))?;
    let by = by.or(options.get("attribute")?).filter(|by| !by.is_none());
    options.assert_all_used()?;
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut text = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        let item = by.as_ref().map_or(Ok(item.clone()), |by| attribute(&item, by))?;
        pay(state, joiner.len())?;
        text.push_str(if i == 0 { "" } else { &joiner });
        text.push_str(&python::text(state, &item)?);
    }
    Ok(text)
}

/// Every line but the first, and but empty ones, moved right by a width or a text.
fn indent(state: &mut State<'_, '_>, text: String, args: Rest<Value>) -> Result<String, Error> {
    type Args = (Option<Value>, Option<bool>, Option<bool>, Kwargs);
    let (width, first, blank, options): Args = from_args(&args)?;
    let width = width.or(options.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let by = match width.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let width = usize::try_from(i64::try_from(width)?).unwrap_or(0);
            pay(state, width)?;
            " ".repeat(width)
        }
    };
    pay(state, text.len().saturating_add(by.len().saturating_mul(text.matches('\n').count() + 1)))?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        out.push_str(if i == 0 { "" } else { "\n" });
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn sum(
    state: &mut State<'_, '_>,
    value: Value,
    by: Option<Value>,
    start: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let by = by.or(options.get("attribute")?).filter(|by| !by.is_none());
    let start = start.or(options.get("start")?).unwrap_or_else(|| Value::from(0));
    options.assert_all_used()?;
    value.try_iter()?.try_fold(start, |sum, item| {
        let item = by.as_ref().map_or(Ok(item.clone()), |by| attribute(&item, by))?;
        if sum.as_str().is_some() {
            return Err(refused("texts are joined, not summed"));
        }
        budget::add(state, sum, item)
    })
}

fn center(state: &mut State<'_, '_>, text: String, width: Option<usize>) -> Result<Value, Error> {
    let missing = width.unwrap_or(80).saturating_sub(text.chars().count());
    pay(state, text.len().saturating_add(missing))?;
    let odd = missing & width.unwrap_or(80) & 1;
    let before = missing / 2 + odd;
    Ok(Value::from(format!("{}{text}{}", " ".repeat(before), " ".repeat(missing - before))))
}

/// Jinja's `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(state: &mut State<'_, '_>, text: String, args: Rest<Value>) -> Result<String, Error> {
    type Args = (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs);
    let (length, kill, end, leeway, options): Args = from_args(&args)?;
    let length = length.or(options.get("length")?).unwrap_or(255);
    let kill = kill.or(options.get("killwords")?).unwrap_or(false);
    let end = end.or(options.get("end")?).unwrap_or_else(|| "...".into());
    let leeway = leeway.or(options.get("leeway")?).unwrap_or(5);
    options.assert_all_used()?;
    pay_walks(state, &Value::from(text.as_str()), 1)?;
    let count = text.chars().count();
    let kept = length.checked_sub(end.chars().count()).ok_or_else(|| refused("the length is shorter than the end"))?;
    if count <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let cut: String = text.chars().take(kept).collect();
    let cut = if kill { &*cut } else { cut.rsplit_once(' ').map_or(&*cut, |(words, _)| words) };
    Ok(format!("{cut}{end}"))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(&format, i64::try_from(now).unwrap_or(i64::MAX))
}

/// Python's `strftime` of a time without zone, in UTC.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    if format.len() > 1000 || format.contains(|c: char| c.is_ascii_digit()) && format.contains('%') && wide(format) {
        return Err(refused("strftime_now takes short formats without widths"));
    }
    let bad = |e: jiff::Error| refused(format!("strftime_now: {e}"));
    let now = jiff::Timestamp::from_second(seconds).map_err(bad)?.to_zoned(jiff::tz::TimeZone::UTC);
    // A time without zone has neither name nor offset.
    let format = format.replace("%Z", "").replace("%z", "");
    jiff::fmt::strtime::format(&format, &now).map_err(bad)
}

/// Whether a directive names a width.
fn wide(format: &str) -> bool {
    format
        .split('%')
        .skip(1)
        .any(|d| d.trim_start_matches(['-', '_', '^', '#']).starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |format: &str| strftime(format, 1_709_210_096).unwrap();
        assert_eq!(at("%d %b %Y %H:%M:%S %a %%"), "29 Feb 2024 12:34:56 Thu %");
        assert_eq!(
            at("%-d %B %y, %e|%I:%M %p|%j|%F %T|%-m/%-d|%Z"),
            "29 February 24, 29|12:34 PM|060|2024-02-29 12:34:56|2/29|"
        );
        assert_eq!(strftime("%A, %B %m/%y", 946_684_799).unwrap(), "Friday, December 12/99");
        assert!(strftime("%!", 0).is_err() && strftime("%", 0).is_err() && strftime("%999999Y", 0).is_err());
    }
}
