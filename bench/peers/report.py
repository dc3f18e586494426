"""The ratios: how many times as long as dlxc a peer takes, each against the dlxc reading next to it."""

from dataclasses import asdict, dataclass
from statistics import median

from dlxc import Reading

INT4 = ("onnx-int4", "executorch", "torch-int4", "llama")
WHOLE = ("transformers", "llama")

# What dlxc should reach, as ratios: in the linear layers and the head, then in whole steps by peer, rows and depth.
GOAL_INT4 = 1.4
GOAL_ANY = 1.15
GOALS_WHOLE = {("transformers", rows, 512): 2.5 for rows in (4, 32)} | {
    ("llama", rows, depth): goal for rows in (4, 32) for depth, goal in ((0, 2.5), (512, 3.0), (2048, 4.0))
}


@dataclass(frozen=True)
class Pair:
    """One round of one peer: what it took, and what dlxc took just before."""

    peer: str
    rows: int
    depth: int
    dlxc: Reading
    peer_ms: float
    cores_busy: float

    @property
    def ratio(self) -> float:
        return self.peer_ms / self.dlxc.whole_ms


def cell(pairs: list[Pair]) -> dict:
    """Medians over the rounds of one peer at one size."""
    ratios = sorted(p.ratio for p in pairs)
    return {
        "peer_ms": median(p.peer_ms for p in pairs),
        "dlxc_ms": median(p.dlxc.whole_ms for p in pairs),
        "ratio": median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }


def cells(pairs: list[Pair]) -> dict[tuple[str, int, int], dict]:
    grouped: dict[tuple[str, int, int], list[Pair]] = {}
    for pair in pairs:
        grouped.setdefault((pair.peer, pair.rows, pair.depth), []).append(pair)
    return {key: cell(of) for key, of in grouped.items()}


def linear_rows(pairs: list[Pair], shares: dict[int, float]) -> list[dict]:
    """One row of the first table for each number of rows, at depth 0."""
    table = cells(pairs)
    rows = []
    for m in sorted({p.rows for p in pairs if p.depth == 0}):
        at = {peer: c for (peer, rows_, depth), c in table.items() if (rows_, depth) == (m, 0)}
        beside = [p.dlxc for p in pairs if (p.rows, p.depth) == (m, 0)]
        linear = median(r.step_ms * shares[m] + r.head_ms for r in beside) if m in shares else None
        peaks = [r.of_int8_peak for r in beside if r.of_int8_peak is not None]
        fastest = {
            "int4": min(((c["ratio"], peer) for peer, c in at.items() if peer in INT4), default=None),
            "any": min(((c["ratio"], peer) for peer, c in at.items()), default=None),
        }
        rows.append({
            "rows": m,
            "dlxc_ms": median(r.whole_ms for r in beside),
            "dlxc_linear_ms": linear,
            "of_int8_peak": median(peaks) if peaks else None,
            "read_gbs": median(r.read_gbs for r in beside),
            "peers": at,
            "fastest": fastest,
        })
    return rows


def whole_rows(pairs: list[Pair]) -> list[dict]:
    """One row of the second table for each peer and size that runs whole forwards."""
    found = [(key, c) for key, c in cells(pairs).items() if key[0] in WHOLE]
    return [
        {"peer": peer, "rows": rows, "depth": depth, "goal": GOALS_WHOLE.get((peer, rows, depth)), **c}
        for (peer, rows, depth), c in sorted(found, key=lambda f: f[0])
    ]


def ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def verdict(ratio: float, goal: float | None) -> str:
    if goal is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} {'≥' if ratio >= goal else '**<**'} {goal:g}"


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_json(about: dict, pairs: list[Pair], shares: dict[int, float], failures: dict[str, str]) -> dict:
    return about | {
        "linears_and_head": linear_rows(pairs, shares),
        "whole_steps": whole_rows(pairs),
        "failures": failures,
        "rounds_measured": [asdict(p) | {"ratio": p.ratio} for p in pairs],
    }


def as_markdown(report: dict) -> str:
    text = [f"# dlxc beside its peers\n\n`{report['command']}`\n\n{report['machine']}, {report['threads']} threads.\n"]
    linear = report["linears_and_head"]
    if linear:
        peers = sorted({peer for row in linear for peer in row["peers"]})
        head = ["rows", "GB/s read", "dlxc step + head", "of which linear + head", "of int8 peak"]
        head += [*peers, f"ratio, fastest int4 (goal {GOAL_INT4})", f"ratio, fastest of all (goal {GOAL_ANY})"]
        body = []
        for row in linear:
            peak = "–" if row["of_int8_peak"] is None else f"{100 * row['of_int8_peak']:.0f} %"
            line = [str(row["rows"]), f"{row['read_gbs']:.0f}", ms(row["dlxc_ms"]), ms(row["dlxc_linear_ms"]), peak]
            for peer in peers:
                c = row["peers"].get(peer)
                line.append(f"{ms(c['peer_ms'])} ({c['ratio']:.2f})" if c else "–")
            for kind, goal in (("int4", GOAL_INT4), ("any", GOAL_ANY)):
                best = row["fastest"][kind]
                line.append(f"{verdict(best[0], goal)} {best[1]}" if best else "–")
            body.append(line)
        text.append(
            "## Linear layers and head, ms (ratio)\n\nA ratio is the peer's time over that of dlxc's **whole** step and head, "
            f"measured just before it; {', '.join(WHOLE)} run whole forwards too.\n\n" + table(head, body)
        )
    whole = report["whole_steps"]
    if whole:
        body = [
            [f"{w['peer']}, {w['rows']} rows, depth {w['depth']}", ms(w["dlxc_ms"]), ms(w["peer_ms"]),
             verdict(w["ratio"], w["goal"]), f"{w['ratio_range'][0]:.2f}–{w['ratio_range'][1]:.2f}"]
            for w in whole
        ]
        head = ["whole step with logits of all rows", "dlxc ms", "peer ms", "ratio, goal", "range over rounds"]
        text.append("## Whole steps\n\n" + table(head, body))
    if report["failures"]:
        lines = [f"- {peer}: {why}" for peer, why in sorted(report["failures"].items())]
        text.append("## Not measured\n\n" + "\n".join(lines) + "\n")
    return "\n".join(text)
