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
            # llama.cpp's part for images is not needed and takes minutes to build.
            env = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"} | os.environ
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, check=False).returncode
        if code != 0:
            raise SystemExit(f"pip could not install {wanted}; what it said is in {log}")
        installed.write_text(wanted.read_text())
    return python
