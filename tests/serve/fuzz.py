"""Random structured requests, sound and broken ones: fuzz.py URL [REQUESTS] [SEED]. Needs `pip install jsonschema`.

No request may get a status of 500 or above, and every answer that ends by itself must be what was asked for. Prints how many
there were of each status.
"""

import collections
import copy
import json
import random
import sys
import threading
import urllib.error
import urllib.request

import jsonschema

url, total, seed = sys.argv[1], int((sys.argv + [""] * 3)[2] or 10000), int((sys.argv + [""] * 3)[3] or 1)
NAMES = ["a", "b", "name", "é", 'q"', "$ref", "x/y", ""]
PATTERNS = ["^a+$", "[0-9]{2}", "(?=a)", "(", "^.{1,300}$", "(a|b)*a(a|b){25}", "\\d\\w", "^$"]
FORMATS = ["date", "uuid", "email", "time", "ipv6", "phone", "", 7]
WRONG = [None, 1, -1, 1.5, 1e300, True, "x", [], {}, [{}], "#/nowhere"]
KEYWORDS = ["not", "if", "contains", "uniqueItems", "multipleOf", "minProperties", "patternProperties", "allOf", "oneOf"]


def schema(r, depth):
    kind = r.randrange(14 if depth else 7)
    if kind == 0:
        return {"type": "string"} | r.choice([{}, {"maxLength": r.choice([0, 5, 300, 10**6])}, {"minLength": r.randrange(9)}])
    if kind == 1:
        return {"type": "string", r.choice(["pattern", "format"]): r.choice(PATTERNS + FORMATS)}
    if kind == 2:
        bounds = {k: r.choice([0, -5, 1e3, 2.5, 1e-9, 1e40]) for k in r.sample(["minimum", "maximum", "exclusiveMinimum"], r.randrange(3))}
        return {"type": r.choice(["integer", "number"])} | bounds
    if kind == 3:
        return {"enum": r.sample(["x", 1, None, True, [1], {"a": "\n"}, 1.5, ""], r.randrange(4))}
    if kind == 4:
        return {"type": r.choice(["null", "boolean", ["string", "null"], "whole", 3])}
    if kind == 5:
        return r.choice([{}, True, False, {"const": "c"}, {"$ref": "#"}, {"$ref": "#/$defs/d"}])
    if kind == 6:
        return {r.choice(KEYWORDS): r.choice(WRONG), "type": "object"}
    if kind < 10:
        names = r.sample(NAMES, r.randrange(5))
        more = r.choice([{}, {"additionalProperties": False}, {"additionalProperties": schema(r, depth - 1)}])
        required = r.sample(names, r.randrange(len(names) + 1)) + (["lost"] if r.random() < 0.05 else [])
        return {"type": "object", "properties": {n: schema(r, depth - 1) for n in names}, "required": required} | more
    if kind < 12:
        bounds = {k: r.choice([0, 1, 2, 3, 10**7]) for k in r.sample(["minItems", "maxItems"], r.randrange(3))}
        return {"type": "array", r.choice(["items", "items", "prefixItems"]): schema(r, depth - 1)} | bounds
    if kind == 12:
        return {r.choice(["anyOf", "oneOf", "allOf"]): [schema(r, depth - 1) for _ in range(r.randrange(4))]}
    return r.choice(WRONG)


def request(r):
    body = {"model": "tiny", "messages": [{"role": "user", "content": r.choice(["What is 27 + 45?", "Tell me a story."])}]}
    body["max_tokens"] = r.choice([1, 8, 40, 120])
    body |= r.choice([{}, {"temperature": 1.5, "seed": r.randrange(99)}, {"temperature": 1, "top_p": 0.3, "top_k": 3}])
    # The tables' own lists and objects stay as they are.
    whole = copy.deepcopy(schema(r, 3))
    if isinstance(whole, dict):
        whole["$defs"] = {"d": schema(r, 1)}
    kind = r.randrange(6)
    if kind < 3:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": whole}}
    elif kind == 3:
        body["tools"] = [{"type": "function", "function": {"name": f"f{i}", "parameters": s}} for i, s in enumerate([whole, {}])]
        body["tool_choice"] = r.choice(["required", {"type": "function", "function": {"name": "f0"}}, "auto", "none", 1])
    elif kind == 4:
        body["structured_outputs"] = r.choice([{"regex": r.choice(PATTERNS)}, {"json": whole}, {"choice": r.choice(WRONG)}])
    else:
        body["response_format"] = r.choice([{"type": "json_object"}, {"type": "text"}] + WRONG)
    body["stream"] = r.random() < 0.2
    return body, whole


def check(body, whole, answer):
    # A null is as good as nothing.
    whole = True if whole is None else whole
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop" and isinstance(body.get("response_format"), dict) and "json_schema" in body["response_format"]:
        jsonschema.Draft202012Validator(whole).validate(json.loads(choice["message"]["content"]))
    if choice["finish_reason"] == "tool_calls":
        call = choice["message"]["tool_calls"][0]["function"]
        if call["name"] == "f0":
            jsonschema.Draft202012Validator(whole).validate(json.loads(call["arguments"]))


counts, wrong, numbers = collections.Counter(), [], iter(range(total))
lock = threading.Lock()


def work():
    while True:
        with lock:
            number = next(numbers, None)
        if number is None or wrong:
            return
        body, whole = request(random.Random(seed * 1_000_003 + number))
        data = json.dumps(body).encode()
        call = urllib.request.Request(url + "/v1/chat/completions", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(call, timeout=600) as response:
                status, text = response.status, response.read().decode()
            if not body["stream"]:
                check(body, whole, json.loads(text))
            elif not text.endswith("data: [DONE]\n\n") or '{"error"' in text:
                raise ValueError(text[-300:])
        except urllib.error.HTTPError as e:
            status, text = e.code, e.read().decode()
            if status >= 500 or status not in (400, 413) or not json.loads(text)["error"]["param"]:
                wrong.append((number, status, text[:500], data[:2000]))
        except Exception as e:
            wrong.append((number, repr(e)[:2000], data[:2000]))
            return
        with lock:
            counts[status] += 1


threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(dict(counts))
if wrong or sum(counts.values()) != total:
    print(*wrong, sep="\n")
    sys.exit(1)
