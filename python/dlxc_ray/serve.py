"""A Ray Serve application whose replicas each own a `dlxc serve` and pass bytes through.

Invariant: what a client sees is dlxc's own answer, or an error in the same shape. Serve's queue refuses nothing (its refusal
is plain text without `Retry-After`, which clients cannot read): every request reaches a dlxc, which has a queue of its own.
A replica whose process is gone says so to Serve's health check and is replaced.
"""

# Annotations stay objects here: behind Serve's ingress FastAPI does not resolve them from text.
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from fastapi import FastAPI, Request
from ray import serve
from starlette.responses import Response, StreamingResponse

from .process import Process

# Belong to one connection, or are written anew.
_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "date", "server"}
# More than a replica's own queue holds, so that it is the one that refuses.
_ONGOING = 4096
_RETRY_AFTER = 5

_app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": "replica_lost"}}


def _lost() -> Response:
    body = json.dumps(_error("the model's process is gone and is being started again: try again"))
    return Response(body, 503, {"retry-after": str(_RETRY_AFTER)}, "application/json")


@serve.deployment(
    name="dlxc",
    max_ongoing_requests=_ONGOING,
    max_queued_requests=-1,
    health_check_period_s=1,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress(_app)
class Replica:
    """One process; `arguments` are those of `Process`."""

    def __init__(self, artifacts: list[str], arguments: dict[str, Any]):
        self.process = Process(artifacts, **arguments)
        self.session: aiohttp.ClientSession | None = None

    def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        if not self.process.alive():
            raise RuntimeError("the process `dlxc serve` has ended")

    def __del__(self) -> None:
        process = getattr(self, "process", None)
        if process is not None:
            process.stop()

    @_app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    async def pass_through(self, request: Request) -> Response:
        """Any request, as it is."""
        if self.session is None:
            # No limit of time: dlxc has its own.
            self.session = aiohttp.ClientSession(
                auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0))
        target = self.process.url + request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        try:
            answer = await self.session.request(request.method, target, headers=headers, data=await request.body() or None,
                                                allow_redirects=False)
        except (aiohttp.ClientError, OSError):
            return _lost()
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
        if kept.get("content-type", "").startswith("text/event-stream"):
            return StreamingResponse(_events(answer), answer.status, kept)
        try:
            return Response(await answer.read(), answer.status, kept)
        except (aiohttp.ClientError, OSError):
            return _lost()
        finally:
            answer.close()


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The bytes of a stream; one that breaks off ends with an error event. A client that is gone is told to dlxc."""
    try:
        async for piece in answer.content.iter_any():
            yield piece
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
        yield b"data: " + json.dumps(_error("the model's process ended in the middle of an answer")).encode() + b"\n\n"
    finally:
        answer.close()


def application(artifacts: list[str], *, replicas: int = 1, cpus: float = 1, **arguments: Any) -> serve.Application:
    """An application for `serve.run`; `arguments` are those of `Process`, such as `options=["--threads", "4"]`."""
    deployment = Replica.options(num_replicas=replicas, ray_actor_options={"num_cpus": cpus})
    return deployment.bind(artifacts, arguments)


def build(args: dict[str, Any]) -> serve.Application:
    """The same for `serve run dlxc_ray:build artifacts=…` and configuration files."""
    args = dict(args)
    artifacts = args.pop("artifacts")
    return application([artifacts] if isinstance(artifacts, str) else artifacts, **args)
