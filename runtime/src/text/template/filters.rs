//! Filters and functions that the engine lacks, or that make more than they are given and so must ask the budget.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::budget::{self, pay_walks};
use super::meter::{pay, refused};
use super::{format, python};

/// Arguments by place or by name.
pub(super) struct Args {
    by_place: Vec<Value>,
    by_name: Kwargs,
}

impl Args {
    pub(super) fn new(by_place: &[Value], by_name: Kwargs) -> Self {
        Self { by_place: by_place.to_vec(), by_name }
    }

    /// The argument of that place or name, unless it is not given or none.
    pub(super) fn get(&self, place: usize, name: &str) -> Result<Option<Value>, Error> {
        let named = if self.by_name.has(name) { self.by_name.get::<Option<Value>>(name)? } else { None };
        Ok(self.by_place.get(place).cloned().or(named).filter(|value| !value.is_none() && !value.is_undefined()))
    }

    /// As [`Args::get`], as a type.
    pub(super) fn typed<T: TryFrom<Value, Error = Error>>(&self, place: usize, name: &str) -> Result<Option<T>, Error> {
        self.get(place, name)?.map(T::try_from).transpose()
    }

    /// As [`Args::get`], as a text.
    pub(super) fn text(&self, place: usize, name: &str) -> Result<Option<String>, Error> {
        let text = |v: Value| v.as_str().map(str::to_owned).ok_or_else(|| refused(format!("`{name}` is a text")));
        self.get(place, name)?.map(text).transpose()
    }

    /// Refuses arguments that nobody asked for.
    pub(super) fn end(self, places: usize) -> Result<(), Error> {
        if self.by_place.len() > places {
            return Err(refused("too many arguments"));
        }
        self.by_name.assert_all_used()
    }
}

/// Adds them to an environment.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("_pay", budget::paid);
    environment.add_filter("_plain", budget::plain);
    environment.add_filter("_iter", budget::walked);
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
        format::percent(state, &text, &Value::from(Tuple::from(args.to_vec())))
    });
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_filter("int", int);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("float", |value: Value, otherwise: Option<f64>| {
        let number = value.as_str().map_or_else(|| f64::try_from(value.clone()).ok(), |text| text.trim().parse().ok());
        number.unwrap_or(otherwise.unwrap_or(0.0))
    });
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("sum", sum);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", |text: String| text.split_whitespace().count());
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String) || value.is_undefined()
    });
    environment.add_test("iterable", |value: &Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Number | ValueKind::Bool | ValueKind::Plain)
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("raise_exception", |text: String| Err::<Value, _>(refused(text)));
    environment.add_function("strftime_now", strftime_now);
}

/// HTML's special characters as Jinja writes them.
fn escape(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    let text = python::text(state, &value)?;
    pay(state, text.len().saturating_mul(5))?;
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(Value::from(escaped.replace('\'', "&#39;").replace('"', "&#34;")))
}

/// `int(default=0, base=10)`: what is no number becomes the default.
fn int(value: Value, args: Rest<Value>, named: Kwargs) -> Result<i64, Error> {
    let args = Args::new(&args, named);
    let otherwise: i64 = args.typed(0, "default")?.unwrap_or(0);
    let base: u32 = args.typed(1, "base")?.filter(|base| (2..=36).contains(base)).unwrap_or(10);
    args.end(2)?;
    let number = match value.as_str().map(str::trim) {
        Some(text) => {
            let digits = match base {
                16 => text.trim_start_matches("0x").trim_start_matches("0X"),
                8 => text.trim_start_matches("0o"),
                2 => text.trim_start_matches("0b"),
                _ => text,
            };
            let whole = i64::from_str_radix(digits, base).ok();
            whole.or_else(|| text.parse::<f64>().ok().filter(|f| f.is_finite()).map(|f| f as i64))
        }
        None if value.kind() == ValueKind::Bool => Some(i64::from(value.is_true())),
        None => {
            value.as_i64().or_else(|| f64::try_from(value.clone()).ok().filter(|f| f.is_finite()).map(|f| f as i64))
        }
    };
    Ok(number.unwrap_or(otherwise))
}

/// An undefined value has no items.
fn length(value: Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(&value) }
}

fn default(value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    // None is a default like any other.
    let given = args.first().filter(|v| v.kind() == ValueKind::None).cloned();
    let args = Args::new(&args, named);
    let otherwise = given.or(args.get(0, "default_value")?).unwrap_or_else(|| Value::from(""));
    let falsy = args.get(1, "boolean")?.is_some_and(|v| v.is_true());
    args.end(2)?;
    Ok(if value.is_undefined() || falsy && !value.is_true() { otherwise } else { value })
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

fn join(state: &mut State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args::new(&args, named);
    let joiner = args.get(0, "d")?.map_or(Ok(String::new()), |j| python::text(state, &j))?;
    let by = args.get(1, "attribute")?;
    args.end(2)?;
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
fn indent(state: &mut State<'_, '_>, text: String, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args::new(&args, named);
    let width = args.get(0, "width")?.unwrap_or_else(|| Value::from(4));
    let first = args.get(1, "first")?.is_some_and(|v| v.is_true());
    let blank = args.get(2, "blank")?.is_some_and(|v| v.is_true());
    args.end(3)?;
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

fn sum(state: &mut State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let args = Args::new(&args, named);
    let by = args.get(0, "attribute")?;
    let start = args.get(1, "start")?.unwrap_or_else(|| Value::from(0));
    args.end(2)?;
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
fn truncate(state: &mut State<'_, '_>, text: String, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Args::new(&args, named);
    let length: usize = args.typed(0, "length")?.unwrap_or(255);
    let kill = args.get(1, "killwords")?.is_some_and(|v| v.is_true());
    let end = args.text(2, "end")?.unwrap_or_else(|| "...".into());
    let leeway: usize = args.typed(3, "leeway")?.unwrap_or(5);
    args.end(4)?;
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
