"""What the Python clients' scripts share: a table of cases, and what the runner does on request (see clients.py)."""

import asyncio
import enum
import importlib.metadata
import inspect
import sys
import traceback
import urllib.request
from typing import Annotated

import pydantic

URL, CONTROL = sys.argv[1], sys.argv[2]
KEY = "secret"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
MESSAGES = [{"role": "user", "content": QUESTION}]
# More than any case waits for; without stop tokens an answer of these goes on until it is cut off.
ENDLESS = {"ignore_eos": True}


class Kind(str, enum.Enum):
    SUM = "sum"
    OTHER = "other"


class Answer(pydantic.BaseModel):
    """What the answer is."""

    kind: Kind
    value: int = pydantic.Field(ge=0, le=999)
    steps: list[Annotated[str, pydantic.Field(max_length=20)]] = pydantic.Field(max_length=2)
    remark: Annotated[str, pydantic.Field(max_length=20)] | None = None


def control(what):
    """Asks the runner: `idle` (fails while an answer runs), `busy` (fills the queue until somebody was refused), `restart`."""
    urllib.request.urlopen(f"{CONTROL}/{what}", timeout=60).read()


def fails(error, call):
    try:
        call()
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")


async def afails(error, awaitable):
    try:
        await awaitable
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")


async def cut(awaitable):
    """Cancels an answer that would go on, and sees that nothing goes on computing it."""
    await afails(asyncio.TimeoutError, asyncio.wait_for(awaitable, 0.3))
    await asyncio.to_thread(control, "idle")


async def run(package, cases, client=None):
    """Runs every case and prints a line for each; all of them run, whatever fails."""
    client, version = client or package, importlib.metadata.version(package)
    failed = 0
    for name, case in cases.items():
        try:
            note = case()
            note = await note if inspect.isawaitable(note) else note
            said = note or "good"
        except Exception:
            traceback.print_exc()
            said, failed = "FAILED", failed + 1
        print(f"{client} {version}\t{name}\t{said}", flush=True)
    return failed
