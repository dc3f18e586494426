"""One `dlxc serve` on a loopback port, which lives no longer than the process that started it.

It starts nothing again: whoever owns it looks at `alive()` and decides.
"""

from __future__ import annotations

import ctypes
import json
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Runs in the child: the kernel ends it when the thread that started it is gone, also after `kill -9`."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """Starts a server and waits until it is ready.

    `options` are further options of `dlxc serve`. Its log goes to this process's stderr. On systems other than Linux a
    server outlives an owner that is killed with SIGKILL.
    """

    def __init__(self, artifacts: Sequence[str], *, binary: str = "dlxc", options: Sequence[str] = (), ready_within: float = 600.0):
        self.command = [binary, "serve", *artifacts, "--host", "127.0.0.1", "--port", "0", "--json", *options]
        self._started: threading.Event = threading.Event()
        self._failed: OSError | None = None
        self._child: subprocess.Popen[str] | None = None
        # The kernel means the thread that started a child, not the process: one that waits for it lives as long as needed.
        threading.Thread(target=self._run, daemon=True, name="dlxc serve").start()
        self._started.wait()
        if self._failed is not None:
            raise RuntimeError(f"`{binary}` cannot be started: {self._failed}: give its path as `binary`") from self._failed
        line = self._child.stdout.readline() if self._child and self._child.stdout else ""
        if not line:
            raise RuntimeError(f"`{shlex.join(self.command)}` ended with status {self._wait()}: its log says why")
        self.url: str = json.loads(line)["address"]
        by = time.monotonic() + ready_within
        while not self._ready():
            if not self.alive():
                raise RuntimeError(f"`{shlex.join(self.command)}` ended with status {self._wait()} before it was ready: its log says why")
            if time.monotonic() > by:
                self.stop(0)
                raise TimeoutError(f"`{shlex.join(self.command)}` was not ready within {ready_within} s: give it longer with `ready_within`")
            time.sleep(0.05)

    def _run(self) -> None:
        try:
            self._child = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_parent)
        except OSError as error:
            self._failed = error
        self._started.set()
        if self._child is not None:
            self._child.wait()

    def _wait(self) -> int | None:
        return self._child.wait() if self._child is not None else None

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health/ready", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._child is not None
        return self._child.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def stop(self, drain: float = 30.0) -> None:
        """Lets running answers end for up to `drain` seconds, then ends it."""
        if self._child is None or not self.alive():
            return
        self._child.terminate()
        try:
            self._child.wait(drain)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
