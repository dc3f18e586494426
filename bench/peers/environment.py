"""The virtual environment of the peers, made on first use and whenever the pinned versions change."""

import os
import subprocess
import sys
import venv
from pathlib import Path


def ensure(place: Path, requirements: list[Path]) -> Path:
    """Installs what is missing, from the package index that pip is configured for. Returns the environment's Python."""
    python = place / "bin" / "python"
    if not python.exists():
        print(f"making {place}", file=sys.stderr)
        venv.create(place, with_pip=True)
    for wanted in requirements:
        installed = place / f"{wanted.stem}.installed"
        if installed.exists() and installed.read_text() == wanted.read_text():
            continue
        log = place / f"{wanted.stem}.log"
        print(f"installing {wanted.name} (minutes; see {log})", file=sys.stderr)
        with log.open("w") as file:
            command = [python, "-m", "pip", "install", "-r", wanted]
            env = {"CMAKE_ARGS": llama_options()} | os.environ
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, check=False).returncode
        if code != 0:
            raise SystemExit(f"pip could not install {wanted}; what it said is in {log}")
        installed.write_text(wanted.read_text())
    return python


def llama_options() -> str:
    """How llama.cpp is built: without its part for images, which takes minutes, and without AMX, with which version
    0.3.36 of its Python package ends in a segmentation fault at the first pass of a Q4_0 model."""
    cpuinfo = Path("/proc/cpuinfo")
    amx = cpuinfo.exists() and "amx_tile" in cpuinfo.read_text()
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return "-DLLAVA_BUILD=OFF" + (f" -DCMAKE_C_FLAGS='{flags}' -DCMAKE_CXX_FLAGS='{flags}'" if amx else "")
