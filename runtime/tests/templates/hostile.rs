//! Templates that ask for everything: each ends in an error or a bounded text, in bounded time and memory.
//!
//! They run in a child process whose address space is limited, so that an allocation without bound aborts it.

use std::process::Command;
use std::time::{Duration, Instant};

use dlx_runtime::text::{ChatTemplate, Message};

/// Megabytes of address space that the child may have, threads and all.
const MEMORY: u64 = 1024;
/// Longest time of one rendering in a test build.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ways to grow a string `a`, each applied again and again.
const FORMS: [&str; 22] = [
    "a + a",
    "a ~ a",
    "a * 99",
    "[a, a] | join(a)",
    "a.replace('x', a)",
    "a | replace('x', a)",
    "a.replace('', a)",
    "(a ~ '\n') | indent(a | length)",
    "'%s%s' % (a, a)",
    "'{0}{0}'.format(a)",
    "[a, a] | string",
    "[a, a] | tojson",
    "{'k': a, 'l': a} | tojson(indent=a)",
    "a.center((a | length) * 3)",
    "a.join([a, a, a])",
    "(a + a) | list | join",
    "a | map('replace', 'x', a) | join",
    "(a ~ a) | urlencode",
    "(a ~ '<<<') | e",
    "(a ~ 'é' * 50) | tojson(ensure_ascii=true)",
    "a.split('x') | join(a ~ 'x')",
    "(a ~ '\\t').expandtabs(a | length)",
];

/// Each must be refused.
const SINGLE: [&str; 46] = [
    "{{ 'x' * 10 ** 12 }}",
    "{{ [1] * 10 ** 12 }}",
    "{{ (1,) * 10 ** 30 }}",
    "{{ '%999999999999d' % 1 }}",
    "{{ '%99999999d' % 1 }}{{ '%*d' % (10 ** 15, 1) }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ '%.999999999d' % 1 }}",
    "{{ '{:>999999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10 ** 14) }}",
    "{{ '{:.999999999f}'.format(1.5) }}",
    "{{ [1] | tojson(indent=10 ** 12) }}",
    "{{ 'a\\nb' | indent(10 ** 12) }}",
    "{{ 'a'.zfill(10 ** 12) }}",
    "{{ 'a'.ljust(10 ** 12) }}",
    "{{ 'a'.rjust(10 ** 18) }}",
    "{{ 'a' | center(10 ** 12) }}",
    "{{ '\\t'.expandtabs(10 ** 12) }}",
    "{{ [1] | batch(10 ** 12, 'x') | list }}",
    "{{ [1] | slice(10 ** 12, 'x') | list }}",
    "{{ range(10 ** 12) | list }}",
    "{{ range(0, 10 ** 30, 1) }}",
    "{{ range(-170141183460469231731687303715884105728, 170141183460469231731687303715884105727) }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 10 ** 1000000 }}",
    "{{ -170141183460469231731687303715884105727 // -1 }}{{ 170141183460469231731687303715884105727 * 2 }}",
    "{{ strftime_now('%999999999999d') }}",
    "{{ strftime_now('%c' * 1000000) | length }}",
    "{{ lipsum(n=100000) }}",
    "{{ 'abc'[::-170141183460469231731687303715884105727] }}{{ 'abc'[-170141183460469231731687303715884105727:] * 0 }}{{ 1 / 0 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{% if true %}{% for i in [1] %}{% set x %}{{ [m()] | map('upper') | join }}{% endset %}{% endfor %}{% endif %}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% call m(n) %}{{ n }}{% endcall %}{{ caller() }}{% endmacro %}{% call m(1) %}{% endcall %}",
    "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l={}) %}{% for i in range(99999) %}{% set ns.l = {'a': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson | length }}",
    "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}",
    "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + [ns] %}{% endfor %}{{ ns.l }}",
    "{% set a = 'x' * 1000000 %}{% for i in range(99999) %}{% if 'y' in a %}{% endif %}{% endfor %}{{ 1 / 0 }}",
    "{% set a = 'x' * 1000000 %}{% for i in range(99999) %}{% set b = a.split('y') %}{% endfor %}",
    "{% set ns = namespace() %}{% for i in range(99999) %}{% macro m() %}{% endmacro %}{% set n = namespace() %}{% endfor %}{{ 1 / 0 }}",
    "{% set l = range(99999) | list %}{% for i in range(99999) %}{% set s = l | sort %}{% set u = l | unique | list %}{% endfor %}",
];

/// The child's work; it prints what each template came to.
#[test]
#[ignore = "run by `hostile_templates_are_bounded` in a process of limited memory"]
fn child() {
    // A thread of one megabyte, the least that a platform gives a main thread, so that the depth is known to fit.
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(attack).unwrap();
    println!("{}", thread.join().unwrap());
}

/// Renders everything, and says what it came to.
fn attack() -> String {
    let (mut slowest, mut refused, mut all) = (Duration::ZERO, 0, 0);
    let mut run = |source: &str, must_fail: bool| {
        let start = Instant::now();
        let rendered = ChatTemplate::new(source, Default::default())
            .and_then(|template| template.render(&[Message::new("user", "x")], &serde_json::Map::new()));
        let shown: String = source.chars().take(80).collect();
        match rendered {
            Ok(text) => assert!(!must_fail && text.len() <= 16 << 20, "{shown}: {} bytes", text.len()),
            Err(_) => refused += 1,
        }
        all += 1;
        assert!(start.elapsed() < PATIENCE, "{shown}: {:?}", start.elapsed());
        slowest = slowest.max(start.elapsed());
    };
    for source in SINGLE {
        run(source, true);
    }
    for form in FORMS {
        run(&format!("{{% set a = 'xy' %}}{}{{{{ a }}}}", format!("{{% set a = {form} %}}").repeat(100)), false);
        let looped = "{% set ns = namespace(a='xy') %}{% for i in range(99999) %}{% set a = ns.a %}{% set ns.a = FORM %}\
                      {% endfor %}{{ ns.a }}";
        run(&looped.replace("FORM", form), false);
        run(&format!("{{% macro m(a) %}}{{{{ m({form}) }}}}{{% endmacro %}}{{{{ m('xy') }}}}"), false);
    }
    let doubled = "{% set a %}{{ a }}{{ a }}{% endset %}".repeat(64);
    run(&format!("{{% set a = 'x' %}}{doubled}{{{{ a }}}}"), true);
    let literal = "y".repeat(1 << 20);
    run(&format!("{{% for i in range(99999) %}}{literal}{{% endfor %}}"), true);
    run(&format!("{{% for i in range(99999) %}}{{% set s %}}{literal}{{% endset %}}{{% endfor %}}"), true);
    run(&format!("{{% for i in range(99999) %}}{{% set s = '{literal}' %}}{{% endfor %}}"), false);
    for open in ["{{", "{%", "{#", "{% raw %}", "{% if true %}", "{% for x in [1] %}", "{% macro m() %}", "{% set x %}"]
    {
        run(&open.repeat(100_000), true);
    }
    let nested = [
        ("(", ")"),
        ("[", "]"),
        ("{1:", "}"),
        ("-", ""),
        ("not ", ""),
        ("x.a", ""),
        ("x|e", ""),
        ("1 if 1 else ", ""),
        ("f(", ")"),
        ("x[", "]"),
        ("1 + ", ""),
        ("1 ~ ", ""),
        ("1 or ", ""),
        ("1 < ", ""),
        ("x is ", ""),
        ("2 ** ", ""),
    ];
    for (open, close) in nested {
        for count in [90, 150, 400, 100_000] {
            run(&format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count)), false);
        }
    }
    for chain in ["+1", "~1", "|e", ".a", "[0]", "()", " or 1", " and 1", " if 1", "*1", " == 1", " is none"] {
        for count in [90, 150, 400, 100_000] {
            run(&format!("{{{{ x{} }}}}", chain.repeat(count)), false);
        }
    }
    run(&"{% if 0 %}{% elif 1 %}".replace("{% elif 1 %}", &"{% elif 0 %}".repeat(50_000)), true);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: not known here").to_owned();
    format!("{all} hostile templates, {refused} refused, slowest {slowest:?}, {peak}")
}

#[test]
fn hostile_templates_are_bounded() {
    let program = std::env::current_exe().unwrap();
    let arguments = ["hostile::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let mut command = if cfg!(target_os = "linux") {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -v {} && exec \"$0\" \"$@\"", MEMORY * 1024)).arg(program);
        shell
    } else {
        Command::new(program)
    };
    let output = command.args(arguments).env("RUST_BACKTRACE", "0").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{text}\n{errors}", output.status);
    println!("{}", text.lines().find(|line| line.contains("slowest")).expect("the child has run"));
}
