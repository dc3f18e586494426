"""What `dlxc bench` and `dlxc inspect` report."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shape import SHAPE


@dataclass(frozen=True)
class Reading:
    """Median milliseconds of a step and of the head on all its rows, and the machine's speed in the same process."""

    step_ms: float
    head_ms: float
    read_gbs: float
    of_int8_peak: float | None

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
        report, line = self.bench(rows, depth, seconds)
        return Reading(line["step_ms"]["median"], line["head_ms"]["median"], line["read_gbs"], line["of_int8_peak"])

    def linear_share(self, rows: int) -> float:
        """The part of a step that its linear nodes take. A share, since nodes are timed at their fastest."""
        _, line = self.bench(rows, 0, 0.0, "--ops")
        return line["split"]["matrix"]
