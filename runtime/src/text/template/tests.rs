//! What templates render, and what they cannot do.

use super::*;

fn render(source: &str, variables: serde_json::Value) -> Result<String, TextError> {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let messages = [Message::new("system", "Be brief."), Message::new("user", " hi ")];
    ChatTemplate::new(source, special)?.render(&messages, variables.as_object().unwrap())
}

fn plain(source: &str) -> String {
    render(source, serde_json::json!({})).unwrap()
}

#[test]
fn renders_as_transformers_does() {
    let source = "{{ bos_token }}{% for message in messages %}\n    {% if message['role'] == 'user' %}\n[{{ \
                  message.content.strip() }}]\n    {% endif %}\n{% endfor %}\n{{ eos_token }}|";
    assert_eq!(plain(source), "<s>[hi]\n|");
    assert_eq!(plain("{% if tools is none and documents is none and add_generation_prompt %}y{% endif %}"), "y");
    assert_eq!(plain("{% for m in messages[::-1] %}{{ m.role }}{% break %}{% endfor %}"), "user");
    assert_eq!(plain("{{ 'a</t>b'.split('</t>')[-1] }}{{ 'abc'.startswith('ab') }}"), "bTrue");
    assert_eq!(plain("a\n"), "a", "one newline at the end is dropped");
}

#[test]
fn a_template_says_which_variables_it_reads() {
    let source = "{% set own = 1 %}{% for m in messages %}{{ m.role + own|string + (m.x if deep is defined else '') }}\
                  {% endfor %}{% if enable_thinking is defined and enable_thinking is false %}quiet{% endif %}\
                  {% macro say(what) %}{{ what ~ outer.field }}{% endmacro %}{{ say(1) }}";
    let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
    for (name, read) in [
        ("enable_thinking", true),
        ("messages", true),
        ("deep", true),
        ("outer", true),
        ("own", false),
        ("what", false),
        ("m", false),
        ("field", false),
        ("reasoning_effort", false),
    ] {
        assert_eq!(template.reads(name), read, "{name}");
    }
}

#[test]
fn variables_of_the_call_reach_the_template() {
    let source = "{% if enable_thinking is defined and enable_thinking is false %}quiet{% endif %}";
    assert_eq!(render(source, serde_json::json!({"enable_thinking": false})).unwrap(), "quiet");
    assert_eq!(plain(source), "");
    let source = "{{ add_generation_prompt }} {{ messages | length }}";
    let forced = serde_json::json!({"add_generation_prompt": false, "messages": []});
    assert_eq!(render(source, forced).unwrap(), "False 2");
}

#[test]
fn json_is_written_as_python_writes_it() {
    let tools = serde_json::json!({"tools": [{"z": 1, "a": ["é<", true, null, 1.5]}]});
    assert_eq!(render("{{ tools | tojson }}", tools.clone()).unwrap(), r#"[{"z": 1, "a": ["é<", true, null, 1.5]}]"#);
    assert_eq!(render("{{ tools[0].z | tojson(indent=2) }}", tools.clone()).unwrap(), "1");
    assert_eq!(render("{{ [1] | tojson(indent=2) }}", tools.clone()).unwrap(), "[\n  1\n]");
    assert_eq!(render("{{ '\u{1F600}' | tojson(ensure_ascii=true) }}", tools.clone()).unwrap(), r#""\ud83d\ude00""#);
    assert!(render("{{ 1 | tojson(color=2) }}", tools).is_err());
}

#[test]
fn a_template_can_refuse_messages() {
    let error = render("{{ raise_exception('roles must alternate') }}", serde_json::json!({})).unwrap_err();
    assert!(matches!(&error, TextError::Render(text) if text.starts_with("roles must alternate")), "{error}");
}

#[test]
fn broken_and_endless_templates_are_errors() {
    assert!(matches!(render("{% if %}", serde_json::json!({})), Err(TextError::Template(_))));
    assert!(matches!(render("{{ nothing.at.all }}", serde_json::json!({})), Err(TextError::Render(_))));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
    let error = render(endless, serde_json::json!({})).unwrap_err();
    assert!(error.to_string().contains("fuel"), "{error}");
    let endless = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(endless, serde_json::json!({})), Err(TextError::Render(_))));
    assert!(matches!(render(&"{{".repeat(100_000), serde_json::json!({})), Err(TextError::Template(_))));
    assert!(matches!(
        render(&format!("{{{{ {} }}}}", "(".repeat(100_000)), serde_json::json!({})),
        Err(TextError::Template(_))
    ));
    assert!(matches!(render("{{ 'x' * 1000000000000 }}", serde_json::json!({})), Err(TextError::Render(_))));
}

#[test]
fn growing_templates_are_errors() {
    let doubling = |step: &str| {
        format!(
            "{{% set ns = namespace(x='xxxxxxxx', l=[1]) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.x|length }}}}"
        )
    };
    for step in [
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = ns.x * 8 %}",
        "{% set ns.x = 8 * ns.x %}",
        "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
        "{% set ns.x = '%s%s'|format(ns.x, ns.x) %}",
        "{% set ns.x = '{}{}'.format(ns.x, ns.x) %}",
        "{% set ns.x = ns.x.replace('x', 'xxxxxxxx') %}",
        "{% set ns.x = ns.x|replace('x', ns.x) %}",
        "{% set ns.x = [ns.x, ns.x]|join %}",
        "{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}",
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
        "{% set ns.x = ([ns.x, ns.x]|string) %}",
        "{% set ns.x = ([ns.x, ns.x]|tojson) %}",
        "{% set ns.l = [ns.l, ns.l] %}",
        "{% set ns.l = ns.l + ns.l %}",
        "{% set ns.l = ns.l * 8 %}",
        "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
        "{% set ns.l = (ns.l, ns.l) %}",
        "{% set ns.l = dict(a=ns.l, b=ns.l) %}",
        "{% macro m(t) %}{{ t }}{{ t }}{% endmacro %}{% set ns.x = m(ns.x) %}",
        "{% filter upper %}{{ ns.x * 30000000 }}{% endfilter %}",
    ] {
        let error = render(&doubling(step), serde_json::json!({})).expect_err(step);
        assert!(matches!(error, TextError::Render(_)), "{step}: {error}");
    }
    for source in [
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 999999999) }}",
        "{{ 'x'.center(999999999) }}",
        "{{ 'x'.zfill(9999999999) }}",
        "{{ 'x'|center(999999999) }}",
        "{{ 'x'|indent(9999999999, true) }}",
        "{{ [1]|tojson(indent=999999999) }}",
        "{{ [1]|batch(9999999999, 'x')|list }}",
        "{{ [1]|slice(9999999999)|list }}",
        "{{ '\\t'.expandtabs(9999999999) }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = [b] %}{{ a == b }}",
        "{% set x = 'xxxxxxxxxx' * 10000000 %}{% set l = [x, x, x] %}",
        "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% set x = 'x' * 100000000 %}{% for a in range(99999) %}{% if x == x ~ 'y' %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 100000000 %}{% for a in range(99999) %}{% if 'y' in x %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 100000000 %}{% for a in range(99999) %}{% set y = x.upper() %}{% endfor %}",
        "{% set x = 'x' * 100000000 %}{% for a in range(99999) %}{% set y = x[1:] %}{% endfor %}",
        "{% include 'chat template' %}",
        "{% import 'chat template' as x %}",
        "{% extends 'chat template' %}",
    ] {
        assert!(render(source, serde_json::json!({})).is_err(), "{source}");
    }
}

#[test]
fn requests_that_grow_are_errors_and_long_ones_are_not() {
    let long = serde_json::json!({"tools": vec!["word ".repeat(2000); 100]});
    let text = render("{% for t in tools %}{{ t.upper() ~ loop.index }}{% endfor %}", long).unwrap();
    assert!(text.len() > 1_000_000);
}

#[test]
fn errors_name_the_line_of_the_template() {
    let error = render("a\n{% if true %}\n{% set x = 1 %}\n{{ x.nothing.at }}\n{% endif %}", serde_json::json!({}))
        .unwrap_err();
    assert!(error.to_string().contains("line 4"), "{error}");
    let error = render("a\n\n{% frob %}", serde_json::json!({})).unwrap_err();
    assert!(error.to_string().contains("line 3"), "{error}");
}

#[test]
fn messages_may_have_no_content_or_parts() {
    let json = serde_json::json!([
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "get"}}]},
        {"role": "tool"},
    ]);
    let messages: Vec<Message> = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&messages).unwrap(), json);
    let source = "{% for m in messages %}{{ m.content[0].text if m.content else m.content is none }};{{ m.content is defined }};{% endfor %}";
    let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
    assert_eq!(template.render(&messages, &serde_json::Map::new()).unwrap(), "Hi;True;True;True;False;False;");
}
