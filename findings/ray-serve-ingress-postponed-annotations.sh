#!/usr/bin/env bash
# Ray Serve 2.60.0 with FastAPI 0.165.0: behind @serve.ingress, `from __future__ import annotations` turns a handler's `Request`
# into a query parameter.
#
# FastAPI resolves postponed annotations: a handler `async def echo(request: Request)` gets the request with and without the
# import. As a method of a Serve deployment it gets it without the import only; with it every call is answered by 422, "field
# required" in the query. Nothing is said when the deployment is made.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[serve]==2.60.0' fastapi==0.165.0 httpx==0.28.1
cat >"$dir/plain.py" <<'PY'
from fastapi import FastAPI, Request
from ray import serve

alone, app = FastAPI(), FastAPI()


@alone.post("/echo")
async def echo(request: Request) -> dict:
    return {"got": (await request.body()).decode()}


@serve.deployment
@serve.ingress(app)
class Echo:
    @app.post("/echo")
    async def echo(self, request: Request) -> dict:
        return {"got": (await request.body()).decode()}
PY
{ echo "from __future__ import annotations"; echo; cat "$dir/plain.py"; } >"$dir/postponed.py"
cd "$dir"
RAY_USAGE_STATS_ENABLED=0 PYTHONPATH=$dir venv/bin/python - <<'PY'
import logging
import sys
import time

import fastapi
import httpx
import plain
import postponed
import ray
from fastapi.testclient import TestClient
from ray import serve

print("ray", ray.__version__, "fastapi", fastapi.__version__)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
serve.start(http_options={"host": "127.0.0.1", "port": 18999}, logging_config={"log_level": "ERROR"})
got = {}
for module in (plain, postponed):
    got[module.__name__, "FastAPI alone"] = TestClient(module.alone).post("/echo", content="hi").status_code
    serve.run(module.Echo.bind(), name="echo", route_prefix="/")
    for _ in range(100):
        answer = httpx.post("http://127.0.0.1:18999/echo", content="hi", timeout=60)
        # The proxy may not know the route yet.
        if answer.status_code != 404:
            break
        time.sleep(0.2)
    got[module.__name__, "behind serve.ingress"] = answer.status_code
for (module, where), status in got.items():
    print(f"  {module} annotations, {where}: {status}")
print(" ", answer.text)
serve.shutdown()
ray.shutdown()
sys.exit(0 if list(got.values()) == [200, 200, 200, 422] else 1)
PY
