"""What `dlxc bench` and `dlxc inspect` report."""

import json
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from load import watch
from shape import SHAPE


@dataclass(frozen=True)
class Reading:
    """Median milliseconds of a step and of the head on all its rows, and the machine's speed in the same process."""

    step_ms: float
    head_ms: float
    read_gbs: float
    of_int8_peak: float | None
    # Share of the cores that others took meanwhile.
    others: float

    @property
    def whole_ms(self) -> float:
        return self.step_ms + self.head_ms


@dataclass(frozen=True)
class Dlxc:
    program: Path
    artifact: Path
    threads: int

    def run(self, *arguments: str) -> dict:
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise SystemExit(f"{self.program} {' '.join(arguments)}: {said}")
        return json.loads(done.stdout)

    def check(self) -> None:
        """Refuses an artifact whose work is not the peers' work."""
        found = self.run("inspect", str(self.artifact), "--json")["manifest"]["model"]["parameters"]
        if abs(found / SHAPE.parameters() - 1) > 0.01:
            raise SystemExit(
                f"{self.artifact} has {found} parameters and the peers {SHAPE.parameters()}: compile a checkpoint "
                "of that shape, such as `dlxc synth sdar-1.7b -o MODEL` makes"
            )

    def bench(self, rows: int, depth: int, seconds: float, *more: str) -> tuple[dict, dict]:
        """The report and its one line."""
        sizes = ["--rows", str(rows), "--depth", str(depth), "--seconds", str(seconds)]
        report = self.run("bench", str(self.artifact), *sizes, "--threads", str(self.threads), "--json", *more)
        return report, report["lines"][0]

    def read(self, rows: int, depth: int, seconds: float) -> Reading:
        others = watch(cpu_seconds)
        _, line = self.bench(rows, depth, seconds)
        step, head = line["step_ms"]["median"], line["head_ms"]["median"]
        return Reading(step, head, line["read_gbs"], line["of_int8_peak"], others())

    def shares(self, rows: int, depth: int) -> dict[str, float]:
        """The parts of a step that its `matrix` products and its `attention` take. Shares, since nodes are timed in runs of
        their own."""
        return self.bench(rows, depth, 0.0, "--ops")[1]["split"]


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
