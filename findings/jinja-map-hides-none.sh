#!/usr/bin/env bash
# Jinja2 3.1.6: a loop over none is an error, but the filters that loop are not.
#
# `{% for part in none %}` fails with "'NoneType' object is not iterable". `none | map(...)`, `select`, `reject` and
# `selectattr` test the truth of their operand first and give nothing. Chat templates that begin with
# `message.content | selectattr('type', 'equalto', 'image')` therefore accept a message whose content is null, and the same
# template with the loop written out does not. An engine that treats both alike is wrong about one of them.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check jinja2==3.1.6
"$dir/venv/bin/python" - <<'PY'
import sys
import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

def render(source):
    try:
        return repr(ImmutableSandboxedEnvironment().from_string(source).render())
    except Exception as error:
        return type(error).__name__

cases = {
    "{% for x in none %}{% endfor %}": "TypeError",
    "{{ none | list }}": "TypeError",
    "{{ none | map('upper') | list }}": "'[]'",
    "{{ none | select('string') | list }}": "'[]'",
    "{{ none | reject('string') | list }}": "'[]'",
    "{{ none | selectattr('type', 'equalto', 'image') | list }}": "'[]'",
}
print("jinja2", jinja2.__version__)
same = True
for source, expected in cases.items():
    got = render(source)
    print(f"  {source}: {got}")
    same &= got == expected
sys.exit(0 if same else 1)
PY
