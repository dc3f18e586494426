#!/usr/bin/env bash
# litellm 1.110.2 and langchain-openai 1.7.4 with openai 3.57.0: a prompt that is too long is known by the words of the message,
# not by its code.
#
# OpenAI's API answers such a prompt with status 400 and `"code": "context_length_exceeded"`. litellm has
# ContextWindowExceededError for it (which its fallbacks to larger models go by), LangChain ContextOverflowError. Both search the
# exception's text: litellm for phrases of known servers or `"code": "context_length_exceeded"`, LangChain for
# `context_length_exceeded`. In openai-python 3 that text is the message alone, without the body, so the code is never in
# it. OpenAI's own answer is known to litellm and no more to LangChain; a server that sends the right code with words of its own
# gets the plain error of both, and one that sends no code but "prompt is too long" gets the special one.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 litellm==1.110.2 langchain-openai==1.7.4
LITELLM_LOCAL_MODEL_COST_MAP=True "$dir/venv/bin/python" - <<'PY'
import http.server
import importlib.metadata
import json
import sys
import threading

import litellm
import openai
from langchain_openai import ChatOpenAI

SAYS = {}


class Mock(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"error": {"type": "invalid_request_error", "param": "messages", **SAYS}}).encode()
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Mock)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
messages = [{"role": "user", "content": "word"}]
litellm.suppress_debug_info = True
calls = {
    "openai": lambda: openai.OpenAI(base_url=url, api_key="x", max_retries=0).chat.completions.create(model="m", messages=messages),
    "litellm": lambda: litellm.completion(model="openai/m", api_base=url, api_key="x", messages=messages, max_retries=0),
    "langchain-openai": lambda: ChatOpenAI(model="m", base_url=url, api_key="x", max_retries=0).invoke(messages),
}
openais = "This model's maximum context length is 4096 tokens. However, your messages resulted in 9000 tokens. Please reduce the length of the messages."
expected = {
    ("context_length_exceeded", openais): ["BadRequestError", "ContextWindowExceededError", "OpenAIInvalidRequestError"],
    ("context_length_exceeded", "9000 tokens are more than the 4096 that fit"): ["BadRequestError", "BadRequestError", "OpenAIInvalidRequestError"],
    (None, "the prompt is too long: 9000 tokens"): ["BadRequestError", "ContextWindowExceededError", "OpenAIContextOverflowError"],
}
same = True
for (code, message), names in expected.items():
    SAYS = {"code": code, "message": message}
    print(f"code {code}, message {message!r}:")
    for (package, call), name in zip(calls.items(), names):
        try:
            call()
        except Exception as error:
            print(f"  {package} {importlib.metadata.version(package)}: {type(error).__name__}: {str(error)[:110]}")
            same &= type(error).__name__ == name
sys.exit(0 if same else 1)
PY
