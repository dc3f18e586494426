"""One peer in a process of its own: loads it, then times what the lines on standard input ask for.

A line asks `{"rows": M, "depth": D, "seconds": S}` and is answered by one line. The worker sleeps between the two.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from load import watch

WARM_UPS = 2
LEAST_RUNS = 3


def loader(peer: str) -> Callable[[Path, int], Callable]:
    """The function that loads the peer. Only its own packages are imported."""
    match peer:
        case "onnx-int4" | "onnx-int8":
            import onnx_peers

            return lambda models, threads: onnx_peers.load(int(peer[-1]), models, threads)
        case "executorch":
            import executorch_peer

            return executorch_peer.load
        case "torch-bf16" | "torch-int4":
            import torch_peers

            return lambda _, threads: torch_peers.load(peer, threads)
        case "transformers":
            import transformers_peer

            return lambda _, threads: transformers_peer.load(threads)
        case "llama":
            import llama_peer

            return llama_peer.load
    raise ValueError(f"no peer is called {peer}")


def measure(run: Callable[[], np.ndarray], seconds: float) -> dict:
    for _ in range(WARM_UPS):
        logits = run()
    if not np.isfinite(logits).all() or not logits.any():
        raise ValueError("the logits are not finite or all zero: this peer does not compute")
    times: list[float] = []
    others = watch(time.process_time)
    begin, cpu = time.perf_counter(), time.process_time()
    while len(times) < LEAST_RUNS or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    times.sort()
    return {
        "ms": 1e3 * times[len(times) // 2],
        "fastest_ms": 1e3 * times[0],
        "runs": len(times),
        "cores_busy": cpu / wall,
        "others": others(),
    }


def main() -> None:
    peer, models, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    # Libraries print to standard output; answers go where it led, and what they print to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**what: object) -> None:
        answers.write(json.dumps(what) + "\n")

    try:
        begin = time.perf_counter()
        prepare = loader(peer)(models, threads)
        answer(loaded_seconds=time.perf_counter() - begin)
        for line in sys.stdin:
            ask = json.loads(line)
            run = prepare(ask["rows"], ask["depth"])
            answer(**measure(run, ask["seconds"]))
            del run
    except Exception as error:  # Whatever a library raises is the answer.
        answer(error=f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
