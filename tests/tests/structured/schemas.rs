//! Random schemas of what SDKs send: the same for the same seed.

use serde_json::{Map, Value, json};

/// Makes schemas.
pub(crate) struct Schemas {
    state: u64,
    /// Names that `$ref` may lead to.
    definitions: usize,
}

const PATTERNS: [&str; 6] =
    ["^[A-Z]{2,5}$", "^\\d{3}-\\d{4}$", "[aeiou]{2}", "^(yes|no|maybe)$", "^[^\"\\\\]{1,8}$", "^\\w+@\\w+$"];
const FORMATS: [&str; 10] =
    ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"];
const NAMES: [&str; 10] = ["name", "age", "id", "tags", "é", "a b", "quote\"d", "value", "next", "x"];

impl Schemas {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1), definitions: 0 }
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % n
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A schema with its definitions.
    pub(crate) fn whole(&mut self) -> Value {
        let count = self.below(3);
        let mut definitions = Map::new();
        for i in 0..count {
            // A definition may lead to those before it, and to itself where that can end.
            let mut definition = self.object(2);
            if self.chance(40) {
                definition["properties"]["again"] =
                    json!({"anyOf": [{"type": "null"}, {"$ref": format!("#/$defs/D{i}")}]});
            }
            definitions.insert(format!("D{i}"), definition);
            self.definitions = i + 1;
        }
        let mut schema = if self.chance(80) { self.object(3) } else { self.any(3) };
        if let (Value::Object(map), true) = (&mut schema, count > 0) {
            map.insert("$defs".into(), definitions.into());
        }
        schema
    }

    fn any(&mut self, depth: usize) -> Value {
        let kinds = if depth == 0 { 7 } else { 12 };
        let mut schema = match self.below(kinds) {
            0 | 1 => self.string(),
            2 => self.number(),
            3 => json!({"type": "boolean"}),
            4 => json!({"type": "null"}),
            5 => json!({"enum": ["red", 1, null, true, "gr\u{fc}n", "a\"b", {"k": [1, 2]}]}),
            6 => json!({"const": (["fixed", "x\ny", ""][self.below(3)])}),
            7 | 8 => self.object(depth - 1),
            9 => self.array(depth - 1),
            10 => {
                let branches: Vec<Value> = (0..1 + self.below(3)).map(|_| self.any(depth - 1)).collect();
                json!({"anyOf": branches})
            }
            _ if self.definitions > 0 => json!({"$ref": format!("#/$defs/D{}", self.below(self.definitions))}),
            _ => json!({"type": "object", "additionalProperties": self.any(depth - 1)}),
        };
        if self.chance(20) && !schema.get("$ref").is_some_and(Value::is_string) {
            schema["title"] = "Title".into();
            schema["description"] = "what it is".into();
        }
        schema
    }

    fn object(&mut self, depth: usize) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for _ in 0..self.below(5) {
            let name = NAMES[self.below(NAMES.len())];
            if !properties.contains_key(name) && self.chance(60) {
                required.push(name);
            }
            properties.insert(name.into(), self.any(depth));
        }
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }

    fn array(&mut self, depth: usize) -> Value {
        let mut schema = json!({"type": "array"});
        if self.chance(20) {
            let first: Vec<Value> = (0..1 + self.below(2)).map(|_| self.any(depth)).collect();
            schema["minItems"] = self.below(first.len() + 1).into();
            schema["prefixItems"] = first.into();
            schema["items"] = false.into();
            return schema;
        }
        schema["items"] = self.any(depth);
        let least = self.below(3);
        if self.chance(50) {
            schema["minItems"] = least.into();
        }
        if self.chance(50) {
            schema["maxItems"] = (least + self.below(3)).into();
        }
        schema
    }

    fn string(&mut self) -> Value {
        let mut schema = json!({"type": "string"});
        match self.below(6) {
            0 => schema["pattern"] = PATTERNS[self.below(PATTERNS.len())].into(),
            1 => schema["format"] = FORMATS[self.below(FORMATS.len())].into(),
            2 => schema["maxLength"] = self.below(12).into(),
            3 => {
                let least = self.below(6);
                schema["minLength"] = least.into();
                schema["maxLength"] = (least + self.below(6)).into();
            }
            4 => schema = json!({"type": "string", "enum": ["first", "second", "third"]}),
            _ => {}
        }
        if self.chance(20) {
            schema["type"] = json!(["string", "null"]);
        }
        schema
    }

    fn number(&mut self) -> Value {
        let whole = self.chance(50);
        let mut schema = json!({"type": if whole { "integer" } else { "number" }});
        let low = i64::try_from(self.below(2000)).unwrap() - 1000;
        let length = 2 + i64::try_from(self.below(300)).unwrap();
        let bound = |n: i64, whole: bool| if whole { json!(n) } else { json!(n as f64 / 8.0) };
        if self.chance(50) {
            schema[["minimum", "exclusiveMinimum"][self.below(2)]] = bound(low, whole);
        }
        if self.chance(50) {
            schema[["maximum", "exclusiveMaximum"][self.below(2)]] = bound(low + length, whole);
        }
        schema
    }
}
