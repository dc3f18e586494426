"""Times dlxc and other engines on the same shape, alternately in one run, and reports ratios.

Needs nothing but Python itself: the peers are installed into an environment of their own on first use.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import environment
import report
from dlxc import Dlxc
from report import Pair, Shares

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "peers"
PEERS = ("executorch", "llama", "onnx-int4", "onnx-int8", "torch-bf16", "torch-int4", "transformers")
DEFAULT = ("executorch", "onnx-int4", "onnx-int8", "torch-bf16", "transformers")

EXAMPLES = """\
examples:
  dlxc synth sdar-1.7b -o MODEL && dlxc compile MODEL -o sdar.dlxa
  python3 bench/peers/peers.py --artifact sdar.dlxa --out OUT
  python3 bench/peers/peers.py --artifact sdar.dlxa --out OUT --rows 1,32 --rounds 1 --peers executorch,onnx-int8
  python3 bench/peers/peers.py --artifact sdar.dlxa --out OUT --peers transformers --llama --whole-rows 4,32
  python3 bench/peers/peers.py --artifact new.dlxa --out OUT --before old/dlxc old.dlxa
"""


class Worker:
    """The process of one peer."""

    def __init__(self, python: Path, peer: str, threads: int, log: Path):
        self.peer, self.log = peer, log
        models = CACHE / "models"
        models.mkdir(parents=True, exist_ok=True)
        # OpenMP's threads spin for some milliseconds after their work, less than dlxc takes to start, and then sleep.
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [python, HERE / "worker.py", peer, models, str(threads)]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env, text=True
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with exit code {self.process.wait()}; see {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}; see {self.log}")
        return answer

    def measure(self, rows: int, depth: int, seconds: float) -> dict:
        self.process.stdin.write(json.dumps({"rows": rows, "depth": depth, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def begin(self) -> None:
        print(f"{self.peer}: loaded in {self.answer()['loaded_seconds']:.0f} s", file=sys.stderr)


class Before(Dlxc):
    """Another build of dlxc as a peer."""

    peer = report.BEFORE

    def begin(self) -> None:
        self.check()

    def measure(self, rows: int, depth: int, seconds: float) -> dict:
        read, shares = self.read(rows, depth, seconds), self.shares(rows, depth)
        return {
            "ms": read.whole_ms,
            "linear_ms": read.step_ms * shares["matrix"] + read.head_ms,
            "attention_ms": read.step_ms * shares["attention"],
            "others": read.others,
        }


def numbers(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers such as 1,32") from error
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text} has a negative number")
    return values


def names(text: str) -> list[str]:
    if text == "none":
        return []
    unknown = set(text.split(",")) - set(PEERS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, required=True, help="a .dlxa file of the 1.7 B shape")
    parser.add_argument("--out", type=Path, required=True, help="directory for ratios.md, ratios.json and the peers' logs")
    parser.add_argument("--dlxc", type=Path, default=HERE.parent.parent / "target/release/dlxc", help="the program")
    parser.add_argument("--peers", type=names, default=list(DEFAULT), metavar="A,…", help=f"of {', '.join(PEERS)}, or none")
    parser.add_argument("--llama", action="store_true", help="also llama.cpp, built from source on first use")
    parser.add_argument("--before", type=Path, nargs=2, metavar=("DLXC", "ARTIFACT"),
                        help="an older build and its artifact, as one more peer")  # fmt: skip
    parser.add_argument("--rows", type=numbers, default=[1, 4, 8, 16, 32, 64, 128, 512], metavar="N,…",
                        help="rows at depth 0, for every peer")  # fmt: skip
    parser.add_argument("--depth", type=numbers, default=[0, 512, 2048], metavar="N,…",
                        help="rows in the cache, for peers that run whole forwards")  # fmt: skip
    parser.add_argument("--whole-rows", type=numbers, default=[4, 32], metavar="N,…",
                        help="rows at each of these depths")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="times that dlxc and a peer take turns at each size")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each measurement, about")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for everyone")
    args = parser.parse_args()
    if args.llama and "llama" not in args.peers:
        args.peers.append("llama")
    for file in (args.artifact, args.dlxc, *(args.before or ())):
        if not file.is_file():
            parser.error(f"there is no file {file}")
    if 0 in args.rows + args.whole_rows or args.rounds < 1:
        parser.error("rows and rounds start at 1")
    return args


def sizes(peer: str, args: argparse.Namespace) -> list[tuple[int, int]]:
    """Rows and depths to measure, by depth: a cache once filled is kept."""
    wanted = {(0, rows) for rows in args.rows}
    if peer in report.WHOLE:
        wanted |= {(depth, rows) for depth in args.depth for rows in args.whole_rows}
    return [(rows, depth) for depth, rows in sorted(wanted)]


def take_turns(peer: Worker | Before, dlxc: Dlxc, args: argparse.Namespace, shares: Shares, pairs: list[Pair]) -> None:
    """All rounds of one peer: at each size dlxc, then the peer."""
    peer.begin()
    for _ in range(args.rounds):
        for rows, depth in sizes(peer.peer, args):
            if (rows, depth) not in shares:
                shares[rows, depth] = dlxc.shares(rows, depth)
            ours = dlxc.read(rows, depth, args.seconds)
            theirs = peer.measure(rows, depth, args.seconds)
            pair = Pair(peer.peer, rows, depth, ours, shares[rows, depth], theirs)
            pairs.append(pair)
            cores = f" on {theirs['cores_busy']:.1f} cores" if "cores_busy" in theirs else ""
            void = f"; VOID: others took {100 * pair.others:.0f} % of the cores" if pair.void else ""
            print(
                f"{pair.peer}: {rows} rows at depth {depth}: {theirs['ms']:.1f} ms{cores}, dlxc {ours.whole_ms:.1f} ms, "
                f"{ours.read_gbs:.0f} GB/s, ratio {pair.ratio:.2f}{void}",
                file=sys.stderr,
            )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    args = arguments()
    dlxc = Dlxc(args.dlxc, args.artifact, args.threads)
    dlxc.check()
    wanted = [HERE / "requirements.txt"]
    if "llama" in args.peers:
        wanted.append(HERE / "requirements-llama.txt")
    python = environment.ensure(CACHE / "venv", wanted) if args.peers else Path(sys.executable)
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"command": shlex.join(["python3", *sys.argv]), "machine": processor(), "threads": args.threads}
    shares: Shares = {}
    pairs: list[Pair] = []
    failures: dict[str, str] = {}
    for peer in [*args.peers, *([report.BEFORE] if args.before else [])]:
        try:
            if peer == report.BEFORE:
                take_turns(Before(*args.before, args.threads), dlxc, args, shares, pairs)
            else:
                # One peer at a time: together they would not fit into the memory of a small machine.
                with Worker(python, peer, args.threads, args.out / f"{peer}.log") as worker:
                    take_turns(worker, dlxc, args, shares, pairs)
        except (RuntimeError, BrokenPipeError) as error:
            failures[peer] = str(error)
            print(f"{peer}: {error}", file=sys.stderr)
        # After each peer, so that what was measured outlives a failure of a later one.
        found = report.as_json(about, pairs, failures)
        (args.out / "ratios.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.out / "ratios.md").write_text(report.as_markdown(found))
    print(report.as_markdown(found))
    return 1 if failures else 0


if __name__ == "__main__":
    # Leave by an exception, so that no worker is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
