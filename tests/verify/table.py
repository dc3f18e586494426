#!/usr/bin/env python3
"""`dlxc compile --verify-each` over models, targets and formats: the largest error of each pass, as a Markdown table.

Compiles each model (by default the tiny ones of this repository) for each target with each of the --formats, and prints for
every pass what it is allowed, and the largest error over all formats for each model and target; then what checking took.
Exit status 1 if anything does not hold, with what `dlxc` says.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ["int4", "int4:128", "int8", "f16", "none", "int4 --kv int8"]


def verify(dlxc, model, target, options):
    """What one compile says of its passes, whether all hold, and seconds."""
    with tempfile.TemporaryDirectory() as tmp:
        command = [dlxc, "compile", model, "--target", target, "-o", f"{tmp}/x.dlxa", "--verify-each", "--json"]
        started = time.monotonic()
        done = subprocess.run([*command, "--quant", *options.split()], capture_output=True, text=True)
        took = time.monotonic() - started
    if not done.stdout:
        sys.exit(f"{model}: {done.stderr}")
    report = json.loads(done.stdout)
    if done.returncode:
        print(f"{model} for {target} --quant {options}: {report['error']}", file=sys.stderr)
    return report["verify"][0]["passes"], done.returncode == 0, took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="directories of checkpoints")
    parser.add_argument("--dlxc", default=ROOT / "target/release/dlxc", help="the program")
    parser.add_argument("--targets", nargs="+", default=["cpu", "wgpu"])
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="values of --quant, with more options behind them")
    args = parser.parse_args()
    models = args.models or [*sorted((ROOT / "tests/golden/models").iterdir()), *sorted((ROOT / "examples/models").iterdir())]
    columns, rows, limits, holds = [], {}, {}, True
    for model in models:
        for target in args.targets:
            column = f"{model.parent.parent.name} {model.name} {target}"
            columns.append(column)
            for options in args.formats:
                passes, fine, took = verify(args.dlxc, model, target, options)
                holds &= fine
                checking = sum(p["time"] for p in passes)
                for name, value in [("seconds of checking", checking), ("seconds of the compile", took)]:
                    rows.setdefault(name, {}).setdefault(column, 0)
                    rows[name][column] += value / len(args.formats)
                for p in passes:
                    name = p["pass"].split("{")[0].replace(f" on {target}", "")
                    limits[name] = max(limits.get(name, 0), p["limit"])
                    if p["skipped"]:
                        sys.exit(f"{column}: {name} was not run: {p['skipped']}")
                    if p["comparison"]["compared"]:
                        row = rows.setdefault(name, {})
                        row[column] = max(row.get(column, 0), p["comparison"]["error"])
    rows = {name: row for name, row in rows.items() if name not in limits} | {n: rows[n] for n in limits if n in rows}
    print("| pass | allowed | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for name, row in rows.items():
        allowed = f"{limits[name]:.1e}" if name in limits else ""
        cells = ["" if (value := row.get(c)) is None else f"{value:.2g}" for c in columns]
        print(f"| {name} | {allowed} | " + " | ".join(cells) + " |")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
