"""How much of the machine somebody else takes while something is measured."""

import os
import time
from collections.abc import Callable
from pathlib import Path

# Above this share of the cores in use by others, a measurement says nothing.
MOST = 0.05

TICKS = os.sysconf("SC_CLK_TCK")


def busy() -> float:
    """Seconds that all cores together have worked, or that the hypervisor gave to other machines."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


def watch(own: Callable[[], float]) -> Callable[[], float]:
    """Begins to watch. What it returns gives the share of the cores that others have taken since; `own` counts the
    seconds of those that are measured."""
    begin, cpu, wall = busy(), own(), time.perf_counter()

    def others() -> float:
        taken = busy() - begin - (own() - cpu)
        return max(0.0, taken / (time.perf_counter() - wall) / (os.cpu_count() or 1))

    return others
