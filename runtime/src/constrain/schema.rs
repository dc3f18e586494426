//! JSON Schema: the values that a schema allows, as they are written.
//!
//! Objects have their properties in the order of the schema, and no others where it declares any; values without a schema are
//! nested [`json::LEVELS`] deep at most, and a schema that refers to itself is followed [`RECURSION`] times. So not every value that a
//! schema allows is written, but (the invariant) every value that is written is one that it allows. A keyword that is not
//! understood, or not where it stands, is refused by name.

mod number;
mod text;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::writer::{State, Writer, times};
use super::{ConstraintError, json};

/// How often a schema is followed into itself.
const RECURSION: usize = 5;
/// How deep schemas are nested, references counted.
const NESTING: usize = 64;
/// Schemas that are written, those that are written again counted again.
const SCHEMAS: usize = 1 << 16;
/// Branches of `oneOf`, and pairs of values or names that are looked at to tell two branches apart.
const BRANCHES: usize = 64;
const PAIRS: usize = 1 << 12;

/// Keywords that say nothing of what is valid.
const ANNOTATIONS: &[&str] = &[
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// Keywords by the type of the values that they are about.
const TYPED: &[(&str, &[&str])] = &[
    ("object", &["properties", "required", "additionalProperties"]),
    ("array", &["items", "prefixItems", "minItems", "maxItems", "uniqueItems"]),
    ("string", &["minLength", "maxLength", "pattern", "format"]),
    ("number", &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
];

/// All types.
const TYPES: &[&str] = &["array", "boolean", "integer", "null", "number", "object", "string"];

type Written = Result<State, ConstraintError>;

/// A value that `schema` allows.
///
/// # Errors
/// What is wrong with the schema, or not supported, and where it stands; or one of the writer.
pub(super) fn write(writer: &mut Writer, schema: &Value, next: State) -> Written {
    let (place, followed) = (Vec::new(), Vec::new());
    Schemas { writer, root: schema, place, followed, depth: 0, written: 0 }.value(schema, next)
}

/// A schema that is being written.
struct Schemas<'s, 'w> {
    writer: &'w mut Writer,
    root: &'s Value,
    /// Where in the schema, as a JSON pointer from the root or the last reference.
    place: Vec<String>,
    /// References that are being followed.
    followed: Vec<&'s str>,
    /// Schemas around this one.
    depth: usize,
    /// Schemas so far.
    written: usize,
}

impl AsMut<Writer> for Schemas<'_, '_> {
    fn as_mut(&mut self) -> &mut Writer {
        self.writer
    }
}

impl<'s> Schemas<'s, '_> {
    /// A value of this schema.
    fn value(&mut self, schema: &'s Value, next: State) -> Written {
        self.written += 1;
        if self.depth == NESTING || self.written > SCHEMAS {
            return Err(ConstraintError::TooLarge(
                "its schemas are nested too deeply, or refer to each other too often",
            ));
        }
        self.depth += 1;
        let written = self.value_within(schema, next);
        self.depth -= 1;
        written
    }

    fn value_within(&mut self, schema: &'s Value, next: State) -> Written {
        let map = match schema {
            Value::Bool(true) => return json::any(self.writer, json::LEVELS, next),
            Value::Bool(false) => return Ok(self.writer.never()),
            Value::Object(map) => map,
            _ => return Err(self.wrong("a schema is an object, true or false")),
        };
        let about = |key: &str| TYPED.iter().any(|(_, keys)| keys.contains(&key));
        let known = |key: &str| ANNOTATIONS.contains(&key) || ["type", "enum", "const"].contains(&key) || about(key);
        for (key, special) in [
            ("$ref", Self::reference as fn(&mut Self, &'s Value, State) -> Written),
            ("allOf", Self::all_of),
            ("anyOf", Self::any_of),
            ("oneOf", Self::one_of),
        ] {
            if let Some(value) = map.get(key) {
                let beside = map.keys().find(|other| *other != key && !ANNOTATIONS.contains(&other.as_str()));
                if let Some(beside) = beside {
                    return Err(self.unsupported(beside, &format!(" beside `{key}`")));
                }
                return self.within(key, |schemas| special(schemas, value, next));
            }
        }
        if let Some(unknown) = map.keys().find(|key| !known(key)) {
            return Err(self.unsupported(unknown, ""));
        }
        let types = self.types(map)?;
        if map.contains_key("enum") || map.contains_key("const") {
            return self.listed(map, &types, next);
        }
        let mut ways = Vec::new();
        for kind in types {
            ways.push(match kind {
                "object" => self.object(map, next)?,
                "array" => self.array(map, next)?,
                "string" => self.string(map, next)?,
                "number" => self.number(map, false, next)?,
                "integer" => self.number(map, true, next)?,
                "boolean" => {
                    let ways = vec![self.writer.bytes(b"true", next)?, self.writer.bytes(b"false", next)?];
                    self.writer.one_of(ways)?
                }
                _ => self.writer.bytes(b"null", next)?,
            });
        }
        self.writer.one_of(ways)
    }

    /// The types of a schema's values.
    fn types(&self, map: &'s Map<String, Value>) -> Result<Vec<&'s str>, ConstraintError> {
        let named = |value: &'s Value| {
            let name = value.as_str().filter(|name| TYPES.contains(name));
            name.ok_or_else(|| self.wrong("`type` is one of array, boolean, integer, null, number, object, string"))
        };
        match map.get("type") {
            Some(Value::Array(types)) if types.len() <= TYPES.len() => types.iter().map(named).collect(),
            Some(value) => Ok(vec![named(value)?]),
            None => {
                let about = |(kind, keys): &(&'static str, &[&str])| {
                    keys.iter().any(|key| map.contains_key(*key)).then_some(*kind)
                };
                let types: Vec<&str> = TYPED.iter().filter_map(about).collect();
                let all = TYPES.iter().copied().filter(|kind| *kind != "integer").collect();
                Ok(if types.is_empty() { all } else { types })
            }
        }
    }

    /// The values of `enum` or `const`.
    fn listed(&mut self, map: &'s Map<String, Value>, types: &[&str], next: State) -> Written {
        if let Some(key) = map.keys().find(|key| TYPED.iter().any(|(_, keys)| keys.contains(&key.as_str()))) {
            return Err(self.unsupported(key, " beside `enum` or `const`"));
        }
        let all: Vec<&Value> = match (map.get("enum"), map.get("const")) {
            (Some(Value::Array(values)), None) => values.iter().collect(),
            (Some(Value::Array(values)), Some(one)) => values.iter().filter(|value| *value == one).collect(),
            (None, Some(one)) => vec![one],
            _ => return Err(self.wrong("`enum` is a list")),
        };
        let fits = |value: &Value| {
            types.iter().any(|kind| match value {
                Value::Null => *kind == "null",
                Value::Bool(_) => *kind == "boolean",
                Value::Number(n) => {
                    *kind == "number" || (*kind == "integer" && n.as_f64().is_some_and(|x| x.fract() == 0.0))
                }
                Value::String(_) => *kind == "string",
                Value::Array(_) => *kind == "array",
                Value::Object(_) => *kind == "object",
            })
        };
        let mut ways = Vec::new();
        for value in all.into_iter().filter(|value| fits(value)) {
            ways.push(self.writer.bytes(value.to_string().as_bytes(), next)?);
        }
        self.writer.one_of(ways)
    }

    /// What a reference leads to.
    fn reference(&mut self, value: &'s Value, next: State) -> Written {
        let Some(reference) = value.as_str() else { return Err(self.wrong("`$ref` is a string")) };
        let Some(path) = reference.strip_prefix('#').filter(|path| path.is_empty() || path.starts_with('/')) else {
            return Err(self.unsupported("$ref", " but to a place in the schema itself, such as `#/$defs/NAME`"));
        };
        let Some(target) = self.root.pointer(path) else {
            return Err(self.wrong("`$ref` leads nowhere"));
        };
        if self.followed.iter().filter(|followed| **followed == reference).count() >= RECURSION {
            return Ok(self.writer.never());
        }
        let place = std::mem::replace(&mut self.place, vec![path.trim_start_matches('/').to_owned()]);
        self.followed.push(reference);
        let written = self.value(target, next);
        self.followed.pop();
        self.place = place;
        written
    }

    fn all_of(&mut self, value: &'s Value, next: State) -> Written {
        match value.as_array().map(Vec::as_slice) {
            Some([one]) => self.within("0", |schemas| schemas.value(one, next)),
            _ => Err(self.unsupported("allOf", " of more than one schema")),
        }
    }

    fn any_of(&mut self, value: &'s Value, next: State) -> Written {
        let Some(branches) = value.as_array() else { return Err(self.wrong("`anyOf` is a list")) };
        let mut ways = Vec::new();
        for (i, branch) in branches.iter().enumerate() {
            ways.push(self.within(&i.to_string(), |schemas| schemas.value(branch, next))?);
        }
        self.writer.one_of(ways)
    }

    fn one_of(&mut self, value: &'s Value, next: State) -> Written {
        let branches = value.as_array().map(Vec::as_slice).unwrap_or_default();
        if branches.len() > BRANCHES {
            return Err(ConstraintError::TooLarge("its schema has `oneOf` of too many schemas"));
        }
        for (i, a) in branches.iter().enumerate() {
            if branches[..i].iter().any(|b| !self.disjoint(a, b, 0)) {
                return Err(self.unsupported(
                    "oneOf",
                    " of schemas that one value may match twice: give them different types, or objects that require a property \
                     with different constants",
                ));
            }
        }
        self.any_of(value, next)
    }

    /// Whether no value can match both schemas; false where that is not plain to see.
    fn disjoint(&self, a: &'s Value, b: &'s Value, depth: usize) -> bool {
        let (Some(a), Some(b)) = (self.resolved(a, 0), self.resolved(b, 0)) else { return false };
        let types = |map: &'s Map<String, Value>| match map.get("type") {
            Some(Value::String(kind)) => vec![kind.as_str()],
            Some(Value::Array(kinds)) if kinds.len() <= TYPES.len() => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let (kinds, others) = (types(a), types(b));
        let number = |kind: &str| ["integer", "number"].contains(&kind);
        let overlap = |x: &&str| others.iter().any(|y| x == y || (number(x) && number(y)));
        if !kinds.is_empty() && !others.is_empty() && !kinds.iter().any(overlap) {
            return true;
        }
        let values = |map: &'s Map<String, Value>| match (map.get("enum"), map.get("const")) {
            (Some(Value::Array(values)), _) => Some(values.iter().collect()),
            (None, Some(one)) => Some(vec![one]),
            _ => None,
        };
        if let (Some(ours), Some(theirs)) = (values(a), values(b)) {
            // Numbers may be equal that are written differently.
            let strings = |values: &[&Value]| values.iter().all(|value| value.is_string());
            let few = ours.len().saturating_mul(theirs.len()) <= PAIRS;
            return few && strings(&ours) && strings(&theirs) && !ours.iter().any(|value| theirs.contains(value));
        }
        let names = |map: &'s Map<String, Value>| map.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        if depth > 0 || names(a).saturating_mul(names(b)) > PAIRS || kinds != ["object"] || others != ["object"] {
            return false;
        }
        let requires = |map: &'s Map<String, Value>, name: &str| {
            let required = map.get("required").and_then(Value::as_array);
            required.is_some_and(|names| names.iter().any(|n| n == name))
        };
        let property = |map: &'s Map<String, Value>, name: &str| map.get("properties").and_then(|p| p.get(name));
        let names = a.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        names.filter(|name| requires(b, name)).any(|name| match (property(a, name), property(b, name)) {
            (Some(ours), Some(theirs)) => self.disjoint(ours, theirs, depth + 1),
            _ => false,
        })
    }

    /// The schema behind references.
    fn resolved(&self, schema: &'s Value, depth: usize) -> Option<&'s Map<String, Value>> {
        let map = schema.as_object()?;
        match map.get("$ref").and_then(Value::as_str) {
            Some(reference) if depth < RECURSION => {
                self.resolved(self.root.pointer(reference.strip_prefix('#')?)?, depth + 1)
            }
            Some(_) => None,
            None => Some(map),
        }
    }

    fn object(&mut self, map: &'s Map<String, Value>, next: State) -> Written {
        let properties = match map.get("properties") {
            None => None,
            Some(Value::Object(properties)) => Some(properties),
            Some(_) => return Err(self.wrong("`properties` is an object")),
        };
        let required: BTreeSet<&str> = match map.get("required") {
            None => BTreeSet::new(),
            Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
                names.iter().filter_map(Value::as_str).collect()
            }
            Some(_) => return Err(self.wrong("`required` is a list of names")),
        };
        if let Some(name) = required.iter().find(|name| !properties.is_some_and(|p| p.contains_key(**name))) {
            return Err(self.wrong(&format!("`required` names {name:?}, which is not in `properties`")));
        }
        let others = map.get("additionalProperties");
        if !matches!(others, None | Some(Value::Bool(_) | Value::Object(_))) {
            return Err(self.wrong("`additionalProperties` is a schema, true or false"));
        }
        match (properties, others) {
            (None, None | Some(Value::Bool(true))) => {
                json::map(self.writer, next, |writer, next| json::any(writer, json::LEVELS - 1, next))
            }
            (None, Some(values @ Value::Object(_))) => {
                self.within("additionalProperties", |s| json::map(s, next, |s, next| s.value(values, next)))
            }
            _ => self.properties(properties, &required, next),
        }
    }

    /// An object of these properties, in their order.
    fn properties(
        &mut self,
        properties: Option<&'s Map<String, Value>>,
        required: &BTreeSet<&str>,
        next: State,
    ) -> Written {
        let close = self.writer.bytes(b"}", next)?;
        // Behind some property, and behind none.
        let (mut some, mut none) = (close, close);
        for (name, schema) in properties.into_iter().flatten().rev() {
            let value = self.within("properties", |s| s.within(name, |s| s.value(schema, some)))?;
            let colon = json::colon(self.writer, value)?;
            let pair = self.writer.bytes(Value::from(name.as_str()).to_string().as_bytes(), colon)?;
            let another = json::comma(self.writer, pair)?;
            if required.contains(name.as_str()) {
                (some, none) = (another, pair);
            } else {
                some = self.writer.one_of(vec![another, some])?;
                none = self.writer.one_of(vec![pair, none])?;
            }
        }
        self.writer.bytes(b"{", none)
    }

    fn array(&mut self, map: &'s Map<String, Value>, next: State) -> Written {
        if map.get("uniqueItems").is_some_and(|unique| unique != &Value::Bool(false)) {
            return Err(self.unsupported("uniqueItems", ""));
        }
        let first: &[Value] = match map.get("prefixItems") {
            None => &[],
            Some(Value::Array(first)) => first,
            Some(_) => return Err(self.wrong("`prefixItems` is a list of schemas")),
        };
        let rest = map.get("items").unwrap_or(&Value::Bool(true));
        let (min, max) = (self.count(map, "minItems")?.unwrap_or(0), self.count(map, "maxItems")?);
        let max = if rest == &Value::Bool(false) { Some(max.unwrap_or(usize::MAX).min(first.len())) } else { max };
        if max.is_some_and(|max| max < min) {
            return Ok(self.writer.never());
        }
        let close = self.writer.bytes(b"]", next)?;
        let item = |s: &mut Self, next| {
            let value = s.within("items", |s| s.value(rest, next))?;
            json::comma(s.writer, value)
        };
        // Behind the first items, at least one of which is there.
        let fixed = first.len().max(1).min(max.unwrap_or(usize::MAX));
        let bounds = (min.saturating_sub(fixed), max.map(|max| max - fixed));
        let mut behind = times(self, bounds, close, item)?;
        let mut inside = close;
        for at in (0..fixed).rev() {
            let (keyword, place, schema) = match first.get(at) {
                Some(schema) => ("prefixItems", at.to_string(), schema),
                None => ("items", String::new(), rest),
            };
            let value = self.within(keyword, |s| s.within(&place, |s| s.value(schema, behind)))?;
            inside = value;
            let another = json::comma(self.writer, value)?;
            behind = if at < min { another } else { self.writer.one_of(vec![another, close])? };
        }
        let inside = if min == 0 { self.writer.one_of(vec![inside, close])? } else { inside };
        self.writer.bytes(b"[", inside)
    }

    fn string(&mut self, map: &'s Map<String, Value>, next: State) -> Written {
        let (min, max) = (self.count(map, "minLength")?.unwrap_or(0), self.count(map, "maxLength")?);
        let text = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(self.wrong(&format!("`{key}` is a string"))),
        };
        let (pattern, format) = (text("pattern")?, text("format")?);
        let lengths = map.contains_key("minLength") || map.contains_key("maxLength");
        let close = self.writer.bytes(b"\"", next)?;
        let chars = match (pattern, format) {
            (Some(_), Some(_)) => return Err(self.unsupported("pattern", " beside `format`")),
            (Some(_), None) if lengths => return Err(self.unsupported("pattern", " beside `minLength` or `maxLength`")),
            (None, Some(_)) if lengths => return Err(self.unsupported("format", " beside `minLength` or `maxLength`")),
            (Some(pattern), None) => super::expression::pattern(self.writer, pattern, close).map_err(|e| match e {
                ConstraintError::Regex(why) => self.unsupported("pattern", &format!(": {why}")),
                other => other,
            })?,
            (None, Some(format)) => match text::format(format) {
                Some(expression) => super::expression::regex(self.writer, expression, close)?,
                None => return Err(self.unsupported("format", &format!(" {format:?}"))),
            },
            (None, None) => times(self.writer, (min, max), close, json::char)?,
        };
        self.writer.bytes(b"\"", chars)
    }

    fn number(&mut self, map: &'s Map<String, Value>, whole: bool, next: State) -> Written {
        if map.get("multipleOf").is_some_and(|unit| !whole || unit.as_f64() != Some(1.0)) {
            return Err(self.unsupported("multipleOf", ""));
        }
        let bound = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(Some(n)),
            Some(_) => Err(self.wrong(&format!("`{key}` is a number"))),
        };
        let least = [(bound("minimum")?, false), (bound("exclusiveMinimum")?, true)];
        let most = [(bound("maximum")?, false), (bound("exclusiveMaximum")?, true)];
        let range = number::Range::new(&least, &most).ok_or_else(|| self.wrong("a bound is no number of sane size"))?;
        match (range.is_unbounded(), whole) {
            (true, true) => json::integer(self.writer, next),
            (true, false) => json::number(self.writer, next),
            (false, _) => range.write(self.writer, whole, next),
        }
    }

    /// A number of things.
    fn count(&self, map: &'s Map<String, Value>, key: &str) -> Result<Option<usize>, ConstraintError> {
        let wrong = || self.wrong(&format!("`{key}` is a whole number from 0"));
        let whole = |value: &Value| {
            let count = value.as_u64().or_else(|| {
                // A float that is whole is whole.
                value.as_f64().filter(|x| x.fract() == 0.0).and_then(|x| format!("{x:.0}").parse().ok())
            });
            count.and_then(|n| usize::try_from(n).ok())
        };
        map.get(key).map(|value| whole(value).ok_or_else(wrong)).transpose()
    }

    fn within<T>(
        &mut self,
        place: &str,
        inside: impl FnOnce(&mut Self) -> Result<T, ConstraintError>,
    ) -> Result<T, ConstraintError> {
        self.place.push(place.replace('~', "~0").replace('/', "~1"));
        let result = inside(self);
        self.place.pop();
        result
    }

    /// Where this is, as a JSON pointer.
    fn at(&self) -> String {
        let parts = self.place.iter().filter(|part| !part.is_empty());
        parts.fold("#".to_owned(), |place, part| place + "/" + part)
    }

    fn wrong(&self, what: &str) -> ConstraintError {
        ConstraintError::Schema { place: self.at(), what: what.to_owned() }
    }

    fn unsupported(&self, keyword: &str, why: &str) -> ConstraintError {
        // A name is as long as the schema likes.
        let keyword = keyword.chars().take(64).collect();
        ConstraintError::Unsupported { place: self.at(), keyword, why: why.to_owned() }
    }
}
