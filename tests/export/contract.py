"""Checks what a host may rely on when it runs an export: that the cache is the host's, and that rows do not depend on what they
are run beside.

    contract.py EXPORT [--provider cpu|qnn --soc 57 --arch 75] [--seed 0]

A pass that does not store gives the same bits twice and leaves the cache alone. Rows are the same in the smallest step that
holds them and in larger ones, in one prefill chunk and in two, and after a commit and in one step with what was committed. Errors
are relative L2 of hidden states, keys and values; what the export has no steps for is left out by name. Exit code 1 if one exceeds
its bound.
"""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "npu"))
from generate import Graphs  # noqa: E402

# QNN computes what is not quantized in f16, and sums in another order where keys come from the cache.
BOUNDS = {"cpu": 1e-3, "qnn": 5e-3}


def error(found, wanted):
    found, wanted = (np.concatenate([v.astype(np.float64).ravel() for v in side]) for side in (found, wanted))
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


def cached(graphs, start, stop):
    """Cache rows, copied: keys have features as rows."""
    axes = {p["into"]: p["axis"] for p in graphs.steps[0]["outputs"] if "into" in p}
    return [np.take(cache, np.arange(start, stop), axis=axes[name]) for name, cache in graphs.caches.items()]


def stored(graphs, ids, at, cuts):
    """Hidden states, keys and values of rows that are fed in parts, each of which sees the parts before it."""
    hidden = [graphs.forward(ids[a:b], at + a, at + b, store=True) for a, b in zip(cuts, cuts[1:])]
    return [np.concatenate(hidden), *cached(graphs, at, at + len(ids))]


def checks(graphs, rng):
    """Names and errors; a text instead of an error says what was left out."""
    policy, steps = graphs.manifest["decode"], graphs.steps
    draw = lambda rows: rng.integers(0, graphs.model["vocab"], rows)
    commits = policy["cache"] != "none"
    rows = min(policy["block"], steps[0]["rows"])
    at = 0
    # Rows that all others see.
    if commits:
        at = policy["block"] * max(graphs.largest // policy["block"], 1)
        at = at if at + 2 * rows <= graphs.model["max_seq"] else policy["block"]
        graphs.forward(draw(at), 0, at, store=True)
    ids = draw(rows)

    before = [cache.copy() for cache in graphs.caches.values()]
    first = graphs.forward(ids, at, at + rows, store=False)
    again = graphs.forward(ids, at, at + rows, store=False)
    same = all(np.array_equal(a, b) for a, b in zip(before, graphs.caches.values()))
    yield "the same step twice", 0.0 if np.array_equal(first, again) and same else 1.0

    if len(steps) > 1:
        own = stored(graphs, ids, at, [0, rows])
        graphs.steps = steps[-1:]
        yield f"{rows} rows in a step of {steps[-1]['rows']}", error(stored(graphs, ids, at, [0, rows]), own)
        graphs.steps = steps
    else:
        yield "rows in a larger step", f"left out: there is one step, of {graphs.largest} rows (export with --rows)"

    # Rows of one block see each other and cannot be fed in parts.
    part = policy["block"] * -(-8 // policy["block"])
    if commits and policy["attention"] != "full" and 2 * part <= graphs.largest:
        ids = draw(2 * part)
        yield f"prefill of {2 * part} rows as {part} + {part}", error(
            stored(graphs, ids, 0, [0, part, 2 * part]), stored(graphs, ids, 0, [0, 2 * part])
        )
        both = graphs.forward(ids, 0, 2 * part, store=False)[part:]
        graphs.forward(ids[:part], 0, part, store=True)
        yield f"a step after a commit of {part} rows", error([graphs.forward(ids[part:], part, 2 * part, store=False)], [both])
    else:
        yield "prefill in parts, a step after a commit", f"left out: no step holds two blocks of {policy['block']} that tell each other apart"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("--provider", choices=("cpu", "qnn"), default="cpu")
    parser.add_argument("--soc", default="57")
    parser.add_argument("--arch", default="75")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    good = True
    for name, found in checks(Graphs(args.export, args.provider, args.soc, args.arch), np.random.default_rng(args.seed)):
        fine = isinstance(found, str) or found <= BOUNDS[args.provider]
        good &= fine
        print(f"{name}: {found if isinstance(found, str) else f'{found:.1e}'}{'' if fine else ', too large'}", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
