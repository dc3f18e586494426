"""Answers to the questions of a data set, with Ray Data.

`dataset.map_batches(Answers, fn_constructor_kwargs={"artifact": "/models/sdar.dlxa"}, batch_size=32, concurrency=2, num_cpus=8)`
starts two processes and gives each batches to answer. Ray promises no order: join by a column that identifies rows.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy

from .process import Process


class Answers:
    """Adds `answer` to batches, from their column `prompt`.

    `parameters` are those of a chat (`max_tokens`, `response_format`, …), `arguments` those of `Process`. A process that ends is
    started again, and what it was answering is asked once more; a second end in one batch is an error, as is any refusal.
    """

    def __init__(self, artifact: str, *, prompt: str = "prompt", answer: str = "answer", at_once: int = 8,
                 parameters: dict[str, Any] | None = None, arguments: dict[str, Any] | None = None):
        self.model = pathlib.Path(artifact).stem
        self.columns = (prompt, answer)
        self.parameters = parameters or {}
        arguments = dict(arguments or {})
        # One that has just been answered may still hold its slot when the next one comes.
        options = ["--sequences", str(at_once), "--waiting", str(at_once), *arguments.pop("options", [])]
        self._start = lambda: Process([artifact], options=options, **arguments)
        self.process = self._start()
        self.starting = threading.Lock()
        self.pool = ThreadPoolExecutor(at_once)

    def __call__(self, batch: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
        """A batch with its answers."""
        prompt, answer = self.columns
        answers = list(self.pool.map(self._answer, map(str, batch[prompt])))
        return {**batch, answer: numpy.array(answers, dtype=object)}

    def _answer(self, prompt: str) -> str:
        process = self.process
        try:
            return self._ask(process, prompt)
        except (urllib.error.URLError, ConnectionError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                raise RuntimeError(f"dlxc refused a question: {error.read().decode()}") from error
            with self.starting:
                if self.process is process:
                    process.stop(0)
                    self.process = self._start()
            return self._ask(self.process, prompt)

    def _ask(self, process: Process, prompt: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.parameters}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(process.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            return json.load(response)["choices"][0]["message"]["content"]
