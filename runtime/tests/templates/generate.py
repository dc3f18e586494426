"""Writes expected.json: what Jinja2 makes of cases.json and of published.txt with the conversations of conversations.json.

    python3 runtime/tests/templates/generate.py        # needs jinja2

The environment is the one that transformers builds for chat templates. A rendering that fails is written as null. The
output depends on the inputs alone; `strftime_now` tells a fixed moment, and templates print only its length.
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent


class Generation(jinja2.ext.Extension):
    """`{% generation %}` renders its content."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime(2024, 2, 9, 13, 4, 56).strftime(format)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = strftime_now


def render(source, variables):
    try:
        return environment.from_string(source).render(**variables)
    except Exception:
        return None


def published():
    templates = {}
    for part in (HERE / "published.txt").read_text().split("\n=== ")[1:]:
        name, source = part.split("\n", 1)
        templates[name] = source
    return templates


def main():
    conversations = json.loads((HERE / "conversations.json").read_text())
    base = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    renderings = {}
    for name, source in published().items():
        renderings[name] = [
            render(source, {**base, **c.get("variables", {}), "messages": c["messages"]}) for c in conversations
        ]
    cases = [
        [source, render(source, {**base, "messages": conversations[0]["messages"], "v": conversations[0]["v"]})]
        for source in json.loads((HERE / "cases.json").read_text())
    ]
    text = json.dumps({"published": renderings, "cases": cases}, ensure_ascii=False, indent=0)
    (HERE / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
