//! Chat templates beside Jinja2: every rendering of `expected.json` (made by `generate.py`) byte for byte.
//!
//! `published.txt` holds templates in this project's words with the constructs of the templates that public model
//! families ship; `cases.json` holds single constructs. A null is a rendering that Jinja2 refuses, and so must we.

mod hostile;

use std::collections::BTreeMap;
use std::fmt::Write;

use dlx_runtime::text::{ChatTemplate, Message};
use serde_json::{Map, Value};

/// Renderings that differ, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("apertus/6", "it prints the keys of a message in their order, and a `Message` has role and content first"),
    ("{{ {1: 2, none: 3, true: 4, 1.5: 1} | tojson }}", "a key that is true is not the key 1 here"),
    ("{{ v.s.upper is callable }}", "methods are no values here"),
    ("{{ nope is callable }}", "an undefined value is not callable here"),
    ("{{ v.d['items'] is callable }}", "methods are no values here"),
    ("{{ v.d | attr('items') is callable }}", "methods are no values here"),
    (
        "{{ '{x:>5}|{y:.2f}|{z!r}'.format(x='q', y=2.345, z='s') }}",
        "the engine's str.format knows no !r; it is an error",
    ),
    ("{{ '{:.1%}'.format(0.256) }}", "the engine's str.format knows no percentages; it is an error"),
    ("{{ v.d.items() }}", "a view of a mapping prints as the list that it holds"),
    ("{{ v.d.keys() }}", "a view of a mapping prints as the list that it holds"),
    ("{{ +5 }}", "the engine has no unary plus; it is an error"),
    ("{{ 1 < 'a' }}", "values of different kinds have an order here and are no error"),
    ("{{ 1 in 'abc' }}", "a text that holds no number is no error here"),
    ("{{ [1, 'a'] | sort }}", "values of different kinds have an order here and are no error"),
    ("{{ dict([('p', 1)]) }}", "the engine's dict takes no pairs; it is an error"),
    ("{{ 1 is string is string }}", "a test of a test is no error here"),
    (
        "{{ v.p | groupby('k') | list }}|{% for k, g in v.p | groupby('k') %}{{ k }}:{{ g | length }};{% endfor %}{{ v.p | map(attribute='k') | unique | list }}|{{ v.d | dictsort }}|{{ {'b': 1, 'a': 2} | dictsort(by='value', reverse=true) }}|{{ v.l | sum }}|{{ v.p | sum(attribute='n') }}|{{ v.l | min }}{{ v.l | max }}|{{ v.p | map(attribute='n') | max }}",
        "a group prints as a list, not as a tuple",
    ),
    (
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}|{{ range(5) | list }}|{{ range(1, 10, 3) | list }}|{{ range(3) }}|{{ range(5, 0, -2) | list }}|{{ range(3)[1] }}",
        "a range prints as the list that it holds",
    ),
    (
        "{% macro m(a, b='x', c=a) %}[{{ a }},{{ b }},{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(1, 2, 3) }}{{ m() }}",
        "the engine's macros cannot read one argument as the default of another",
    ),
    (
        "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
        "the engine's macros take no arguments beyond their own; it is an error",
    ),
    (
        "{% raw %}\n {{ x }} {% endraw %}\nq {%- raw -%} r {%- endraw -%} s",
        "the line end behind a raw block's tag is trimmed here",
    ),
    ("{% set g = v.l | map('string') %}{{ g | list }}{{ g | list }}", "what a filter gives can be walked twice here"),
    (
        "{% set j = joiner('; ') %}{{ j() }}a{{ j() }}b|{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}",
        "what `cycler` gives does not print here; it is an error",
    ),
    (
        "{% if false %}{% include 'x' %}{% endif %}ok",
        "a template that names others is refused, whether it reaches them or not",
    ),
];

fn special_tokens() -> BTreeMap<String, String> {
    [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.to_owned(), token.to_owned())).into()
}

fn render(source: &str, conversation: &Value, more: &[(&str, &Value)]) -> Result<String, String> {
    let messages: Vec<Message> =
        serde_json::from_value(conversation["messages"].clone()).expect("messages of the data file");
    let mut variables = conversation["variables"].as_object().cloned().unwrap_or_default();
    variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).clone())));
    let template = ChatTemplate::new(source, special_tokens()).map_err(|error| error.to_string())?;
    template.render(&messages, &variables).map_err(|error| error.to_string())
}

/// Adds to `report` what is not as expected.
fn compare(report: &mut String, name: &str, got: Result<String, String>, expected: &Value) -> bool {
    let equal = match (&got, expected.as_str()) {
        (Ok(got), Some(expected)) => got == expected,
        (Err(_), None) => true,
        _ => false,
    };
    let known = DIFFERENT.iter().find(|(known, _)| *known == name);
    if let Some((name, reason)) = known {
        eprintln!("{name} differs: {reason}");
    }
    if equal == known.is_some() {
        writeln!(report, "{name}\n  got      {got:?}\n  expected {expected:?}").expect("a string takes any text");
    }
    equal
}

#[test]
fn renders_as_jinja2_does() {
    let expected: Map<String, Value> = serde_json::from_str(include_str!("expected.json")).unwrap();
    let conversations: Vec<Value> = serde_json::from_str(include_str!("conversations.json")).unwrap();
    let sources: Vec<(&str, &str)> =
        include_str!("published.txt").split("\n=== ").skip(1).filter_map(|part| part.split_once('\n')).collect();
    let mut report = String::new();
    let (mut equal, mut refused, mut all) = (0, 0, 0);
    for (name, source) in &sources {
        let expected = expected["published"][*name].as_array().expect("generate.py has rendered every template");
        assert_eq!(expected.len(), conversations.len());
        for (index, (conversation, expected)) in conversations.iter().zip(expected).enumerate() {
            let got = render(source, conversation, &[]);
            equal += usize::from(compare(&mut report, &format!("{name}/{index}"), got, expected));
            refused += usize::from(expected.is_null());
            all += 1;
        }
    }
    println!("{} templates: {equal} of {all} renderings equal, {refused} of them refused by both", sources.len());
    assert!(sources.len() >= 100, "{} templates", sources.len());
    assert!(report.is_empty(), "{report}");
}

#[test]
fn single_constructs_render_as_in_jinja2() {
    let expected: Map<String, Value> = serde_json::from_str(include_str!("expected.json")).unwrap();
    let conversations: Vec<Value> = serde_json::from_str(include_str!("conversations.json")).unwrap();
    let mut report = String::new();
    let cases = expected["cases"].as_array().unwrap();
    let mut equal = 0;
    for case in cases {
        let source = case[0].as_str().unwrap();
        let got = render(source, &conversations[0], &[("v", &conversations[0]["v"])]);
        equal += usize::from(compare(&mut report, source, got, &case[1]));
    }
    println!("{equal} of {} constructs equal", cases.len());
    assert!(report.is_empty(), "{report}");
}
