//! Schemas beside JSON values that they allow and that they do not.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn schema(schema: Value) -> Result<ByteAutomaton, ConstraintError> {
    bytes(&Grammar::Schema(schema))
}

fn check(of: Value, yes: &[&str], no: &[&str]) {
    let automaton = schema(of.clone()).unwrap_or_else(|e| panic!("{of}: {e}"));
    yes.iter().for_each(|text| assert!(accepts(&automaton, text), "{of}: {text}"));
    no.iter().for_each(|text| assert!(!accepts(&automaton, text), "{of}: {text}"));
}

#[test]
fn values_are_those_of_the_schema() {
    check(json!({"type": "null"}), &["null"], &["", "nul", "true"]);
    check(json!({"type": ["boolean", "null"]}), &["true", "false", "null"], &["1"]);
    check(json!({"type": "integer"}), &["0", "-7", "123456789012345678"], &["-0", "01", "1.0", "1234567890123456789"]);
    check(json!({"type": "number"}), &["0", "-7.5", "1e5", "1.25E-07", "0.0"], &["1.", ".5", "1e", "1e100"]);
    check(
        json!({"type": "string"}),
        &[r#""""#, r#""a\"b\\ é 😀""#, r#""\u0041\n\/""#, r#""\uD7ff""#],
        &[r#"""#, "\"\n\"", r#""\x""#, r#""\ud800""#, r#""\u12""#, r#""a"b""#],
    );
    check(
        json!({"type": "string", "minLength": 1, "maxLength": 2}),
        &[r#""a""#, r#""é😀""#, r#""\n\u0041""#],
        &[r#""""#, r#""abc""#, r#""\n\n\n""#],
    );
    check(
        json!({"enum": ["a", 1, null, {"b": [1]}]}),
        &[r#""a""#, "1", "null", r#"{"b":[1]}"#],
        &["2", r#"{"b": [1]}"#],
    );
    check(json!({"type": "string", "enum": ["a", 1]}), &[r#""a""#], &["1"]);
    check(json!({"const": "x\"\n"}), &[r#""x\"\n""#], &[r#""x""#]);
    check(
        json!({"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "T", "default": null}),
        &["1", "null"],
        &["true"],
    );
    check(json!(true), &["{}", "[1, {\"a\": [[[]]]}]", "null"], &["[[[[[[]]]]]]", "[,]"]);
    check(json!({}), &["1"], &[]);
}

#[test]
fn objects_have_their_properties_in_order() {
    let of = json!({
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": false,
    });
    check(
        of,
        &[r#"{"b":true}"#, r#"{"a": 1, "b": true}"#, r#"{"b":true,"c":null}"#, r#"{"a":1,"b":false, "c":null}"#],
        &["{}", r#"{"a":1}"#, r#"{"b":true,"a":1}"#, r#"{,"b":true}"#, r#"{"b":true,}"#, r#"{"b":true,"d":1}"#],
    );
    let optional =
        json!({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}}});
    check(
        optional,
        &["{}", r#"{"a":1}"#, r#"{"c":1}"#, r#"{"a":1,"c":1}"#, r#"{"b":1, "c":1}"#],
        &[r#"{"a":1"#, r#"{,"a":1}"#],
    );
    check(
        json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        &["{}", r#"{"x":1}"#, r#"{"x":1, "y\n":-2}"#],
        &[r#"{"x":null}"#, r#"{x:1}"#],
    );
    check(json!({"type": "object"}), &["{}", r#"{"x":{"y":[null]}}"#], &["[]"]);
    check(json!({"type": "object", "additionalProperties": false}), &["{}"], &[r#"{"x":1}"#]);
    check(
        json!({"type": "object", "properties": {"é\"": {"const": 1}}, "required": ["é\""]}),
        &[r#"{"é\"":1}"#],
        &["{}"],
    );
}

#[test]
fn lists_are_as_long_as_the_schema_says() {
    let integers = |more: Value| {
        let mut of = json!({"type": "array", "items": {"type": "integer"}});
        more.as_object().unwrap().iter().for_each(|(key, value)| of[key] = value.clone());
        of
    };
    check(integers(json!({})), &["[]", "[1]", "[1, 2,3]"], &["[1,]", "[,1]", "[null]"]);
    check(integers(json!({"minItems": 2})), &["[1,2]", "[1,2,3,4]"], &["[]", "[1]"]);
    check(integers(json!({"maxItems": 2})), &["[]", "[1]", "[1,2]"], &["[1,2,3]"]);
    check(integers(json!({"minItems": 1.0, "maxItems": 1})), &["[1]"], &["[]", "[1,2]"]);
    check(integers(json!({"maxItems": 0})), &["[]"], &["[1]"]);
    let pair = json!({"prefixItems": [{"type": "integer"}, {"type": "null"}], "items": false, "minItems": 1});
    check(pair, &["[1]", "[1,null]"], &["[]", "[null]", "[1,null,1]"]);
    let open = json!({"prefixItems": [{"type": "null"}], "items": {"type": "integer"}, "minItems": 3});
    check(open, &["[null,1,2]", "[null,1,2,3]"], &["[null]", "[null,1]", "[1,1,1]"]);
}

#[test]
fn patterns_are_those_of_ecma() {
    let of = |pattern: &str| json!({"type": "string", "pattern": pattern});
    check(of("^[a-z]+$"), &[r#""abc""#], &[r#""""#, r#""aB""#, r#""abc1""#]);
    check(of("b+"), &[r#""b""#, r#""abba""#, r#""\nb""#], &[r#""a""#]);
    check(of("^a|b$"), &[r#""ax""#, r#""xb""#, r#""a""#], &[r#""xa""#]);
    check(of(r"^\d\s\w$"), &[r#""1 a""#, r#""1\t_""#, "\"1\u{a0}a\""], &["\"٣ a\"", r#""1  a""#]);
    check(of(r"^[\d-]{2}$"), &[r#""1-""#], &[r#""a-""#]);
    check(of(r#"^["\\/\n]$"#), &[r#""\"""#, r#""\\""#, r#""/""#, r#""\n""#], &[r#""a""#]);
    check(of(r"^.$"), &[r#""a""#, r#""\t""#, r#""\"""#], &[r#""\n""#, r#""\r""#, "\"\u{2028}\""]);
    check(of("^(a|b)(?:c)?$"), &[r#""a""#, r#""bc""#], &[r#""c""#]);
    check(of("^\u{1}$"), &[r#""\u0001""#], &["\"\u{1}\""]);
    for (pattern, why) in [
        ("(?=a)", "look-around"),
        ("a$b", "looks around"),
        (r"\bword", "looks around"),
        ("[a[b]]", "dialects"),
        ("[a&&b]", "dialects"),
        ("[[:alpha:]]", "dialects"),
        ("(", "unclosed"),
    ] {
        let error = schema(of(pattern)).err().unwrap().to_string();
        assert!(error.contains("`pattern` at #") && error.contains(why), "{pattern}: {error}");
    }
}

#[test]
fn formats_are_as_their_rfcs_say() {
    for (format, yes, no) in [
        (
            "date",
            &["2024-02-29", "2000-02-29", "2023-12-31"][..],
            &["2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01"][..],
        ),
        ("time", &["23:59:59Z", "00:00:00.5+01:00"], &["24:00:00Z", "12:00:00"]),
        ("date-time", &["2024-01-01T00:00:00Z"], &["2024-01-01"]),
        ("uuid", &["123e4567-e89b-12d3-a456-426614174000"], &["123e4567"]),
        ("ipv4", &["0.0.0.0", "255.1.22.249"], &["256.0.0.1", "01.1.1.1"]),
        ("ipv6", &["1:2:3:4:5:6:7:8", "::", "fe80::1"], &["1:2", "1::2::3"]),
        ("email", &["a.b@c-d.example"], &["a@", "@b.c", "a..b@c.de"]),
        ("hostname", &["a.example"], &["-a.example", "a"]),
        ("duration", &["P1D", "PT5M", "P1Y2M3D", "P2W"], &["P", "1D", "PT"]),
        ("uri", &["https://a.example/b?c=d"], &["a.example"]),
    ] {
        let automaton = schema(json!({"type": "string", "format": format})).unwrap();
        yes.iter().for_each(|text| assert!(accepts(&automaton, &format!("\"{text}\"")), "{format}: {text}"));
        no.iter().for_each(|text| assert!(!accepts(&automaton, &format!("\"{text}\"")), "{format}: {text}"));
    }
}

#[test]
fn references_are_followed_and_end() {
    let list = json!({
        "$defs": {"node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v", "next"],
        }},
        "$ref": "#/$defs/node",
    });
    let nested = |levels: usize| (0..levels).fold("null".to_owned(), |inner, _| format!(r#"{{"v":1,"next":{inner}}}"#));
    check(list, &[&nested(1), &nested(5)], &[&nested(0), &nested(6)]);
    let endless = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
    assert_eq!(schema(endless).err(), Some(ConstraintError::Empty));
    let escaped = json!({"$defs": {"a/b": {"const": 1}}, "$ref": "#/$defs/a~1b"});
    check(escaped, &["1"], &["2"]);
}

#[test]
fn branches_of_one_of_exclude_each_other() {
    let shape = |kind: &str| json!({"type": "object", "properties": {"kind": {"const": kind}, "n": {"type": "integer"}}, "required": ["kind", "n"]});
    let shapes = json!({"oneOf": [shape("a"), shape("b")], "discriminator": {"propertyName": "kind"}});
    check(shapes, &[r#"{"kind":"a","n":1}"#, r#"{"kind":"b","n":1}"#], &[r#"{"kind":"c","n":1}"#]);
    check(json!({"oneOf": [{"type": "integer"}, {"type": "string"}]}), &["1", r#""a""#], &["null"]);
    for overlap in [
        json!({"oneOf": [shape("a"), shape("a")]}),
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        json!({"oneOf": [{"type": "string"}, {}]}),
    ] {
        assert!(matches!(schema(overlap.clone()), Err(ConstraintError::Unsupported { .. })), "{overlap}");
    }
}

#[test]
fn what_is_not_understood_is_named_with_its_place() {
    let inside = |of: Value| json!({"type": "object", "properties": {"a": {"type": "array", "items": of}}});
    for (of, keyword) in [
        (json!({"not": {}}), "not"),
        (json!({"type": "string", "minLength": 1, "pattern": "a"}), "pattern"),
        (json!({"type": "string", "format": "date", "maxLength": 5}), "format"),
        (json!({"type": "string", "format": "phone"}), "format"),
        (json!({"type": "number", "multipleOf": 0.1}), "multipleOf"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "array", "contains": {}}), "contains"),
        (json!({"type": "object", "patternProperties": {}}), "patternProperties"),
        (json!({"type": "object", "minProperties": 1}), "minProperties"),
        (json!({"allOf": [{}, {}]}), "allOf"),
        (json!({"anyOf": [{}], "type": "object"}), "type"),
        (json!({"enum": ["a"], "maxLength": 3}), "maxLength"),
        (json!({"$ref": "https://example.com/schema"}), "$ref"),
        (json!({"if": {}, "then": {}}), "if"),
    ] {
        match schema(inside(of.clone())).err() {
            Some(ConstraintError::Unsupported { place, keyword: named, .. }) => {
                assert!(place.starts_with("#/properties/a/items"), "{place}");
                assert_eq!(named, keyword, "{of}");
            }
            other => panic!("{of}: {other:?}"),
        }
    }
    for wrong in [
        json!(7),
        json!({"type": "whole"}),
        json!({"type": 1}),
        json!({"enum": 1}),
        json!({"properties": 1}),
        json!({"required": ["x"], "properties": {}}),
        json!({"minLength": -1}),
        json!({"type": "array", "minItems": "1"}),
        json!({"minimum": "1"}),
        json!({"$ref": "#/nowhere"}),
        json!({"$ref": 1}),
        json!({"anyOf": {}}),
    ] {
        assert!(matches!(schema(inside(wrong.clone())), Err(ConstraintError::Schema { .. })), "{wrong}");
    }
    for empty in
        [json!(false), json!({"enum": []}), json!({"minimum": 2, "maximum": 1}), json!({"minItems": 2, "maxItems": 1})]
    {
        assert_eq!(schema(empty.clone()).err(), Some(ConstraintError::Empty), "{empty}");
    }
}

#[test]
fn hostile_schemas_are_refused_in_time() {
    let many = |n: usize, of: Value| {
        let names: Vec<String> = (0..n).map(|i| format!("p{i}")).collect();
        let properties: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), of.clone())).collect();
        json!({"type": "object", "properties": properties, "required": names})
    };
    let deep = |of: &dyn Fn(Value) -> Value| (0..60).fold(json!({"type": "null"}), |inner, _| of(inner));
    let level = |i: usize| {
        let inner = json!({"$ref": format!("#/$defs/{}", i + 1)});
        (i.to_string(), json!({"anyOf": [inner.clone(), {"type": "array", "items": inner}]}))
    };
    let levels: serde_json::Map<String, Value> = (0..40).map(level).chain([("40".to_owned(), json!({}))]).collect();
    let doubling = json!({"$defs": levels, "$ref": "#/$defs/0"});
    let begin = std::time::Instant::now();
    for hostile in [
        many(200, json!({"$ref": "#"})),
        json!({"anyOf": vec![json!({"$ref": "#"}); 200]}),
        json!({"type": "string", "maxLength": 1_000_000_000}),
        json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "integer"}}),
        deep(&|inner| json!({"type": "array", "minItems": 4, "maxItems": 4, "items": inner})),
        doubling,
        (0..80).fold(json!({}), |inner, _| json!({"items": inner})),
        json!({"oneOf": vec![json!({"type": "string"}); 10_000]}),
        json!({"type": "string", "pattern": "(a|b)*a(a|b){30}"}),
        many(3000, json!(true)),
    ] {
        let result = Constraint::new(&Grammar::Schema(hostile.clone()), &vocabulary());
        let text: String = hostile.to_string().chars().take(100).collect();
        assert!(
            matches!(
                result,
                Err(ConstraintError::TooLarge(_) | ConstraintError::Empty | ConstraintError::Unsupported { .. })
            ),
            "{text}"
        );
    }
    assert!(begin.elapsed().as_secs() < 100, "{:?}", begin.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whole_numbers_are_within_their_bounds(a in -1200i64..1200, length in 0i64..1500, open in any::<(bool, bool)>()) {
        let b = a + length;
        let (least, most) = (a + i64::from(open.0), b - i64::from(open.1));
        let key = |open: bool, plain: &str, exclusive: &str| if open { exclusive.to_owned() } else { plain.to_owned() };
        let mut of = json!({"type": "integer"});
        of[key(open.0, "minimum", "exclusiveMinimum")] = a.into();
        of[key(open.1, "maximum", "exclusiveMaximum")] = b.into();
        match schema(of) {
            Err(error) => prop_assert!(least > most && error == ConstraintError::Empty),
            Ok(automaton) => {
                for n in -3000i64..3000 {
                    prop_assert_eq!(accepts(&automaton, &n.to_string()), (least..=most).contains(&n), "{}", n);
                }
            }
        }
    }

    #[test]
    fn numbers_are_within_their_bounds(
        a in -5000i32..5000,
        length in 0i32..6000,
        scale in 0u32..5,
        open in any::<(bool, bool)>(),
        tried in proptest::collection::vec((-80_000i32..80_000, 0u32..6), 60),
    ) {
        let decimal = |n: i32, scale: u32| {
            let (sign, n) = (if n < 0 { "-" } else { "" }, n.unsigned_abs());
            let unit = 10u32.pow(scale);
            let digits = scale as usize;
            if scale == 0 { format!("{sign}{n}") } else { format!("{sign}{}.{:0digits$}", n / unit, n % unit) }
        };
        let (low, high) = (decimal(a, scale), decimal(a + length, scale));
        let key = |open: bool, plain: &str, exclusive: &str| if open { exclusive.to_owned() } else { plain.to_owned() };
        let mut of = json!({"type": "number"});
        of[key(open.0, "minimum", "exclusiveMinimum")] = serde_json::from_str(&low).unwrap();
        of[key(open.1, "maximum", "exclusiveMaximum")] = serde_json::from_str(&high).unwrap();
        // In units of 1e-5, where all are whole.
        let whole = |n: i32, scale: u32| i64::from(n) * 10i64.pow(5 - scale);
        let (least, most) = (whole(a, scale), whole(a + length, scale));
        let is_within = |n: i64| {
            let above = if open.0 { n > least } else { n >= least };
            above && if open.1 { n < most } else { n <= most }
        };
        match schema(of) {
            Err(error) => prop_assert!(least >= most && (open.0 || open.1) && error == ConstraintError::Empty),
            Ok(automaton) => {
                let ends = [(a, scale), (a + length, scale), (a + 1, scale), (a + length - 1, scale)];
                for (n, scale) in tried.into_iter().chain(ends) {
                    let text = decimal(n, scale.min(5));
                    let zero = text.starts_with('-') && whole(n, scale.min(5)) == 0;
                    prop_assert_eq!(accepts(&automaton, &text), is_within(whole(n, scale.min(5))) && !zero, "{}", text);
                }
            }
        }
    }
}
