//! Values as Python writes them: `str`, `repr`, `json.dumps`, number arithmetic.
//!
//! Invariant: everything written is paid for as it is written, so that a small value that prints large ends as an error.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};

use super::meter::{DEPTH, VALUE, left, pay, refused};

/// Widest step of an indentation.
const MAX_INDENT: usize = 1000;

/// Text under construction, and how much of it there may be.
struct Writer {
    text: String,
    limit: usize,
}

impl Writer {
    fn push(&mut self, text: &str) -> Result<(), Error> {
        if self.text.len() + text.len() > self.limit {
            return Err(refused("the template makes more text than a prompt can need"));
        }
        self.text.push_str(text);
        Ok(())
    }
}

fn write_paid(
    state: &mut State<'_, '_>,
    print: impl FnOnce(&mut Writer) -> Result<(), Error>,
) -> Result<String, Error> {
    let mut writer = Writer { text: String::new(), limit: left(state) };
    print(&mut writer)?;
    // Even an empty text costs something to make.
    pay(state, VALUE + writer.text.len())?;
    Ok(writer.text)
}

/// `str(value)`.
pub(super) fn text(state: &mut State<'_, '_>, value: &Value) -> Result<String, Error> {
    write_paid(state, |out| match value.as_str() {
        Some(text) => out.push(text),
        None => write(out, value, 0),
    })
}

/// `repr(value)`.
pub(super) fn repr(state: &mut State<'_, '_>, value: &Value) -> Result<String, Error> {
    write_paid(state, |out| write(out, value, 0))
}

fn write(out: &mut Writer, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(refused("a value is nested too deeply"));
    }
    if let Some(text) = value.as_str() {
        return quoted(out, text);
    }
    match value.kind() {
        ValueKind::Number if !value.is_integer() => out.push(&float(f64::try_from(value.clone())?)),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            out.push(open)?;
            let mut count = 0;
            for item in value.try_iter()? {
                out.push(if count == 0 { "" } else { ", " })?;
                write(out, &item, depth + 1)?;
                count += 1;
            }
            out.push(if value.is_tuple() && count == 1 { "," } else { "" })?;
            out.push(close)
        }
        ValueKind::Map => {
            out.push("{")?;
            for (i, key) in value.try_iter()?.enumerate() {
                out.push(if i == 0 { "" } else { ", " })?;
                write(out, &key, depth + 1)?;
                out.push(": ")?;
                write(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push("}")
        }
        _ => out.push(&value.to_string()),
    }
}

/// `repr` of a string: single quotes, unless it holds one and no double quote.
fn quoted(out: &mut Writer, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::with_capacity(text.len().min(out.limit) + 2);
    quoted.push(quote);
    for c in text.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\\' => quoted.push_str("\\\\"),
            c if c == quote => quoted.extend(['\\', c]),
            c if c != ' ' && (c.is_control() || c.is_whitespace() || is_format(c)) => {
                let code = u32::from(c);
                quoted.push_str(&if code < 0x100 { format!("\\x{code:02x}") } else { format!("\\u{code:04x}") });
            }
            c => quoted.push(c),
        }
    }
    quoted.push(quote);
    out.push(&quoted)
}

/// Invisible characters that Python's `repr` escapes.
fn is_format(c: char) -> bool {
    matches!(u32::from(c), 0xad | 0x600..=0x605 | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff)
}

/// `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// `+`, `*` and `%` on numbers.
pub(super) fn arithmetic(op: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    let unfit = || refused(format!("`{op}` does not join {} and {}", a.kind(), b.kind()));
    let number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    if !number(a) || !number(b) {
        return Err(unfit());
    }
    let whole = |v: &Value| match v.kind() {
        ValueKind::Bool => Some(i128::from(v.is_true())),
        _ if v.is_integer() => i128::try_from(v.clone()).ok(),
        _ => None,
    };
    if let (Some(x), Some(y)) = (whole(a), whole(b)) {
        let result = match op {
            "+" => x.checked_add(y),
            "*" => x.checked_mul(y),
            _ => x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r }),
        };
        let result = result.ok_or_else(|| refused(format!("`{op}` has no result for {x} and {y}")))?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    let float = |v: &Value| whole(v).map_or_else(|| f64::try_from(v.clone()), |n| Ok(n as f64));
    let (x, y) = (float(a)?, float(b)?);
    Ok(Value::from(match op {
        "+" => x + y,
        "*" => x * y,
        _ if y == 0.0 => return Err(refused("a remainder by zero")),
        _ => x - (x / y).floor() * y,
    }))
}

/// `json.dumps` with its `indent`, `separators`, `sort_keys` and `ensure_ascii`, which is false as transformers sets it.
pub(super) fn to_json(
    state: &mut State<'_, '_>,
    value: Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|i| !i.is_none()) {
        None => None,
        Some(indent) if indent.as_str().is_some() => Some(indent.as_str().unwrap_or_default().to_owned()),
        Some(indent) => {
            let width = usize::try_from(i64::try_from(indent)?).unwrap_or(0);
            Some(" ".repeat(Some(width).filter(|w| *w <= MAX_INDENT).ok_or_else(|| refused("`indent` is too wide"))?))
        }
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(refused("`separators` are two texts")),
    };
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false);
    options.assert_all_used()?;
    let json = Json { indent: indent.as_deref(), item, key, sort, ascii };
    write_paid(state, |out| json.value(out, &value, 0)).map(Value::from)
}

struct Json<'a> {
    indent: Option<&'a str>,
    item: &'a str,
    key: &'a str,
    sort: bool,
    ascii: bool,
}

impl Json<'_> {
    fn value(&self, out: &mut Writer, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(refused("a value is nested too deeply"));
        }
        if let Some(text) = value.as_str() {
            return self.string(out, text);
        }
        match value.kind() {
            ValueKind::None => out.push("null"),
            ValueKind::Bool => out.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push(&value.to_string()),
            ValueKind::Number => out.push(match &*float(f64::try_from(value.clone())?) {
                "nan" => "NaN",
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                text => return out.push(text),
            }),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push("[")?;
                let mut empty = true;
                for item in value.try_iter()? {
                    self.next(out, empty, depth + 1)?;
                    empty = false;
                    self.value(out, &item, depth + 1)?;
                }
                self.end(out, empty, depth)?;
                out.push("]")
            }
            ValueKind::Map => {
                out.push("{")?;
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                let empty = keys.is_empty();
                for (i, key) in keys.into_iter().enumerate() {
                    self.next(out, i == 0, depth + 1)?;
                    let name = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None => "null".into(),
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
                        ValueKind::Number => key.to_string(),
                        other => return Err(refused(format!("a {other} cannot be a key of JSON"))),
                    };
                    self.string(out, &name)?;
                    out.push(self.key)?;
                    self.value(out, &value.get_item(&key)?, depth + 1)?;
                }
                self.end(out, empty, depth)?;
                out.push("}")
            }
            other => Err(refused(format!("a value that is {other} cannot be written as JSON"))),
        }
    }

    fn next(&self, out: &mut Writer, first: bool, depth: usize) -> Result<(), Error> {
        out.push(if first { "" } else { self.item })?;
        self.line(out, depth)
    }

    fn end(&self, out: &mut Writer, empty: bool, depth: usize) -> Result<(), Error> {
        if empty { Ok(()) } else { self.line(out, depth) }
    }

    fn line(&self, out: &mut Writer, depth: usize) -> Result<(), Error> {
        let Some(indent) = self.indent else { return Ok(()) };
        out.push("\n")?;
        (0..depth).try_for_each(|_| out.push(indent))
    }

    fn string(&self, out: &mut Writer, text: &str) -> Result<(), Error> {
        let mut json = String::with_capacity(text.len().min(out.limit) + 2);
        json.push('"');
        let mut units = [0; 2];
        for c in text.chars() {
            match c {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\r' => json.push_str("\\r"),
                '\t' => json.push_str("\\t"),
                '\u{8}' => json.push_str("\\b"),
                '\u{c}' => json.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    json.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
                }
                c => json.push(c),
            }
        }
        json.push('"');
        out.push(&json)
    }
}
