//! The methods of Python's strings, lists and mappings that templates call.
//!
//! What the engine's compatibility layer has is taken from there; here is what it lacks, and what must ask the budget first
//! because it makes more than it is given. Invariant: methods that would change a value are refused, as in the sandbox that
//! transformers renders in.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::filters::Args;
use super::format;
use super::meter::{pay, refused};

/// Calls `value.method(args)`.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let known = match value.kind() {
        ValueKind::String => string(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Map => container(value, method, args)?,
        ValueKind::Number if method == "is_integer" => {
            Some(Value::from(value.is_integer() || f64::try_from(value.clone())?.fract() == 0.0))
        }
        _ => None,
    };
    match known {
        Some(result) => Ok(result),
        None => unknown_method_callback(state, value, method, args),
    }
}

fn container(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match (value.kind(), method) {
        (
            _,
            "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" | "update" | "popitem"
            | "setdefault",
        ) => {
            return Err(refused(format!("`{method}` would change a value, which templates cannot")));
        }
        (_, "copy") => value.clone(),
        (ValueKind::Seq, "index") => {
            let (what,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == what);
            Value::from(at.ok_or_else(|| refused("the list does not hold the value"))?)
        }
        _ => return Ok(None),
    }))
}

fn string(state: &mut State<'_, '_>, s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let signed = |n: Option<i64>| n.and_then(|n| usize::try_from(n).ok());
    Ok(Some(match method {
        "replace" => {
            let (args, named): (&[Value], Kwargs) = from_args(args)?;
            let args = Args::new(args, named);
            let missing = || refused("`replace` takes two texts");
            let (from, to) = (args.text(0, "old")?, args.text(1, "new")?);
            let (from, to) = (from.ok_or_else(missing)?, to.ok_or_else(missing)?);
            let count = signed(args.typed(2, "count")?).unwrap_or(usize::MAX);
            args.end(3)?;
            let found = s.matches(from.as_str()).take(count).count();
            pay(state, s.len().saturating_add(found.saturating_mul(to.len())))?;
            Value::from(s.replacen(&from, &to, count.min(found)))
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let mut text = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let item = item
                    .as_str()
                    .ok_or_else(|| refused(format!("`join` takes texts, not a {}", item.kind())))?
                    .to_owned();
                pay(state, s.len() + item.len())?;
                text.push_str(if i == 0 { "" } else { s });
                text.push_str(&item);
            }
            Value::from(text)
        }
        "format" => Value::from(format::braces(state, s, args)?),
        "center" | "ljust" | "rjust" | "zfill" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            let mut fills = fill.unwrap_or(if method == "zfill" { "0" } else { " " }).chars();
            let (Some(fill), None) = (fills.next(), fills.next()) else {
                return Err(refused("the fill is one character"));
            };
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(s.chars().count());
            pay(state, s.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
            let pad = |n: usize| fill.to_string().repeat(n);
            let width = usize::try_from(width).unwrap_or(0);
            Value::from(match method {
                "ljust" => format!("{s}{}", pad(missing)),
                "rjust" => format!("{}{s}", pad(missing)),
                "zfill" => {
                    let sign = s.len() - s.trim_start_matches(['+', '-']).len();
                    let (sign, digits) = s.split_at(sign.min(1));
                    format!("{sign}{}{digits}", pad(missing))
                }
                _ => {
                    // Python puts the odd one on the left when the width is odd.
                    let before = missing / 2 + (missing & width & 1);
                    format!("{}{s}{}", pad(before), pad(missing - before))
                }
            })
        }
        "expandtabs" => {
            let (size,): (Option<i64>,) = from_args(args)?;
            expand_tabs(state, s, usize::try_from(size.unwrap_or(8)).unwrap_or(0))?
        }
        "split" | "rsplit" => {
            let (args, named): (&[Value], Kwargs) = from_args(args)?;
            let args = Args::new(args, named);
            let sep = args.get(0, "sep")?;
            let most = signed(args.typed(1, "maxsplit")?).unwrap_or(usize::MAX);
            args.end(2)?;
            match sep {
                None => Value::from(split_whitespace(s, most, method == "rsplit")),
                Some(sep) => {
                    let sep =
                        sep.as_str().filter(|sep| !sep.is_empty()).ok_or_else(|| refused("the separator is a text"))?;
                    Value::from(split(s, sep, most, method == "rsplit"))
                }
            }
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            if sep.is_empty() {
                return Err(refused("the separator is empty"));
            }
            let parts = if method == "partition" { s.split_once(sep) } else { s.rsplit_once(sep) };
            let parts = match parts {
                Some((before, after)) => [before, sep, after],
                None if method == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::from(minijinja::value::Tuple::from(parts.map(Value::from).to_vec()))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "swapcase" => Value::from(s.chars().flat_map(swapped).collect::<String>()),
        "casefold" => Value::from(s.to_lowercase().replace('ß', "ss")),
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => return search(s, method, args),
        "isdecimal" => Value::from(!s.is_empty() && s.chars().all(|c| c.is_ascii_digit())),
        "isidentifier" => {
            let head = s.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Value::from(head && s.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "istitle" => Value::from(is_title(s)),
        "encode" => return Err(Error::new(ErrorKind::UnknownMethod, "text has no bytes here")),
        _ => return Ok(None),
    }))
}

/// The methods that look for a text between two positions, counted in characters.
fn search(s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let len = i64::try_from(s.chars().count()).unwrap_or(i64::MAX);
    let place = |n: i64| if n < 0 { (len + n).max(0) } else { n.min(len) };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(len)));
    let byte = |n: i64| s.char_indices().nth(usize::try_from(n).unwrap_or(0)).map_or(s.len(), |(at, _)| at);
    let part = if start <= end { &s[byte(start)..byte(end)] } else { "" };
    let text = |v: &Value| {
        v.as_str().map(str::to_owned).ok_or_else(|| refused(format!("`{method}` takes a text, not a {}", v.kind())))
    };
    if matches!(method, "startswith" | "endswith") {
        let all: Vec<Value> = if what.is_tuple() { what.try_iter()?.collect() } else { vec![what] };
        let all = all.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let at_start = method == "startswith";
        return Ok(Some(Value::from(
            all.iter().any(|w| if at_start { part.starts_with(w) } else { part.ends_with(w) }),
        )));
    }
    let what = text(&what)?;
    if method == "count" {
        return Ok(Some(Value::from(part.matches(what.as_str()).count())));
    }
    let at = if method.starts_with('r') { part.rfind(&what) } else { part.find(&what) };
    let at = at.map(|at| start + i64::try_from(part[..at].chars().count()).unwrap_or(i64::MAX));
    match at {
        None if method.ends_with("index") => Err(refused("the text does not hold the other one")),
        at => Ok(Some(Value::from(at.unwrap_or(-1)))),
    }
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn is_title(s: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in s.chars() {
        if c.is_uppercase() == inside && (c.is_uppercase() || c.is_lowercase()) {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        any |= inside;
    }
    any
}

fn split(s: &str, sep: &str, most: usize, from_end: bool) -> Vec<String> {
    let most = most.saturating_add(1);
    if !from_end {
        return s.splitn(most, sep).map(str::to_owned).collect();
    }
    let mut parts: Vec<String> = s.rsplitn(most, sep).map(str::to_owned).collect();
    parts.reverse();
    parts
}

/// Python's split without a separator: runs of white space, none at the ends.
fn split_whitespace(s: &str, most: usize, from_end: bool) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = if from_end { s.trim_end() } else { s.trim_start() };
    while !rest.is_empty() {
        let cut = if from_end { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(at) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest.to_owned());
            break;
        };
        if from_end {
            let word = rest[at..].trim_start();
            parts.push(word.to_owned());
            rest = rest[..rest.len() - word.len()].trim_end();
        } else {
            parts.push(rest[..at].to_owned());
            rest = rest[at..].trim_start();
        }
    }
    if from_end {
        parts.reverse();
    }
    parts
}

fn expand_tabs(state: &mut State<'_, '_>, s: &str, size: usize) -> Result<Value, Error> {
    let tabs = s.matches('\t').count();
    pay(state, s.len().saturating_add(tabs.saturating_mul(size)))?;
    let (mut out, mut column) = (String::with_capacity(s.len()), 0usize);
    for c in s.chars() {
        match c {
            '\t' => {
                let spaces = size.saturating_sub(column.checked_rem(size).unwrap_or(0));
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}
