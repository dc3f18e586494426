"""The ratios: how many times as long as dlxc a peer takes, each against the dlxc reading next to it."""

from dataclasses import asdict, dataclass
from statistics import median

import load
from dlxc import Reading

BEFORE = "dlxc-before"
WHOLE = ("transformers", "llama", BEFORE)

# The parts of a step by rows and depth.
Shares = dict[tuple[int, int], dict[str, float]]


def linear_goal(peer: str, rows: int) -> float | None:
    """What dlxc should reach in the linear layers and the head, as a ratio."""
    match peer:
        case "executorch":
            return 1.4 if rows >= 4 else 1.05 if rows == 1 else None
        case "onnx-int8":
            return 1.2 if rows >= 4 else 1.05 if rows == 1 else None
        case "dlxc-before":
            return 1.25 if rows >= 8 else None
    return None


# The same for whole steps by peer, rows and depth, and for attention alone.
GOALS_WHOLE = {("transformers", rows, 512): 2.5 for rows in (4, 32)} | {
    ("llama", rows, depth): goal for rows in (4, 32) for depth, goal in ((0, 3.0), (512, 4.0), (2048, 5.0))
}
GOALS_ATTENTION = {(rows, 2048): 2.0 for rows in (4, 32)}
GOAL_PEAK = 0.85


@dataclass(frozen=True)
class Pair:
    """One round of one peer: what dlxc took, which parts a step has, and what the peer took just after."""

    peer: str
    rows: int
    depth: int
    dlxc: Reading
    shares: dict[str, float]
    theirs: dict[str, float]

    @property
    def ratio(self) -> float:
        """Of the whole step and head to what the peer runs of it."""
        return self.theirs["ms"] / self.dlxc.whole_ms

    @property
    def linear_ms(self) -> float:
        return self.dlxc.step_ms * self.shares["matrix"] + self.dlxc.head_ms

    @property
    def attention_ms(self) -> float:
        return self.dlxc.step_ms * self.shares["attention"]

    @property
    def linear_ratio(self) -> float:
        """Of the linear layers and the head; a peer that runs more is taken with all it runs."""
        return self.theirs.get("linear_ms", self.theirs["ms"]) / self.linear_ms

    @property
    def others(self) -> float:
        return max(self.dlxc.others, self.theirs["others"])

    @property
    def void(self) -> bool:
        """Whether somebody else took so much of the machine that the figures say nothing."""
        return self.others > load.MOST


Cells = dict[tuple[str, int, int], list[Pair]]


def cells(pairs: list[Pair]) -> Cells:
    """The rounds that count, by peer and size; none where all were disturbed."""
    grouped: Cells = {}
    for pair in pairs:
        grouped.setdefault((pair.peer, pair.rows, pair.depth), []).extend([] if pair.void else [pair])
    return grouped


def linear_cell(peer: str, rows: int, of: list[Pair]) -> dict:
    ratios = sorted(p.linear_ratio for p in of)
    return {
        "peer_ms": median(p.theirs.get("linear_ms", p.theirs["ms"]) for p in of),
        "ratio": median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "ratio_of_whole_step": median(p.ratio for p in of),
        "goal": linear_goal(peer, rows),
    }


def linear_rows(pairs: list[Pair]) -> list[dict]:
    """One row of the first table for each number of rows, at depth 0."""
    table = cells(pairs)
    rows = []
    for m in sorted({p.rows for p in pairs if p.depth == 0}):
        at = {peer: of for (peer, rows_, depth), of in table.items() if (rows_, depth) == (m, 0)}
        beside = [p for of in at.values() for p in of]
        peaks = [p.dlxc.of_int8_peak for p in beside if p.dlxc.of_int8_peak is not None]
        rows.append({
            "rows": m,
            "dlxc_ms": median(p.dlxc.whole_ms for p in beside) if beside else None,
            "dlxc_linear_ms": median(p.linear_ms for p in beside) if beside else None,
            "of_int8_peak": median(peaks) if peaks else None,
            "read_gbs": median(p.dlxc.read_gbs for p in beside) if beside else None,
            "peers": {peer: linear_cell(peer, m, of) if of else None for peer, of in at.items()},
        })
    return rows


def whole_rows(pairs: list[Pair]) -> list[dict]:
    """One row of the second table for each peer and size that runs whole forwards."""
    rows = []
    for (peer, m, depth), of in sorted(cells(pairs).items(), key=lambda c: c[0]):
        if peer not in WHOLE or not of:
            continue
        ratios = sorted(p.ratio for p in of)
        row = {
            "peer": peer, "rows": m, "depth": depth, "goal": GOALS_WHOLE.get((peer, m, depth)),
            "peer_ms": median(p.theirs["ms"] for p in of), "dlxc_ms": median(p.dlxc.whole_ms for p in of),
            "ratio": median(ratios), "ratio_range": [ratios[0], ratios[-1]],
        }  # fmt: skip
        if peer == BEFORE:
            row["attention"] = {
                "peer_ms": median(p.theirs["attention_ms"] for p in of),
                "dlxc_ms": median(p.attention_ms for p in of),
                "ratio": median(p.theirs["attention_ms"] / p.attention_ms for p in of),
                "goal": GOALS_ATTENTION.get((m, depth)),
            }
        rows.append(row)
    return rows


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


def as_json(about: dict, pairs: list[Pair], failures: dict[str, str]) -> dict:
    return about | {
        "linears_and_head": linear_rows(pairs),
        "whole_steps": whole_rows(pairs),
        "void_rounds": sum(p.void for p in pairs),
        "failures": failures,
        "rounds_measured": [asdict(p) | {"ratio": p.ratio, "void": p.void} for p in pairs],
    }


def as_markdown(report: dict) -> str:
    text = [f"# dlxc beside its peers\n\n`{report['command']}`\n\n{report['machine']}, {report['threads']} threads.\n"]
    text.append(
        f"{report['void_rounds']} of {len(report['rounds_measured'])} rounds are void and left out: somebody else took more "
        f"than {100 * load.MOST:.0f} % of the cores meanwhile.\n"
    )
    linear = report["linears_and_head"]
    if linear:
        peers = sorted({peer for row in linear for peer in row["peers"]})
        head = ["rows", "GB/s read", "dlxc step + head", "of which linear + head", f"of int8 peak (goal {GOAL_PEAK:.0%})"]
        head += [f"{peer}: ms, ratio, goal" for peer in peers]
        body = []
        for row in linear:
            peak = "–" if row["of_int8_peak"] is None else f"{100 * row['of_int8_peak']:.0f} %"
            read = "–" if row["read_gbs"] is None else f"{row['read_gbs']:.0f}"
            line = [str(row["rows"]), read, ms(row["dlxc_ms"]), ms(row["dlxc_linear_ms"]), peak]
            for peer in peers:
                c = row["peers"].get(peer, {})
                line.append("void" if c is None else f"{ms(c['peer_ms'])}, {verdict(c['ratio'], c['goal'])}" if c else "–")
            body.append(line)
        text.append(
            "## Linear layers and head\n\nTimes in ms. A ratio is the peer's time over that of dlxc's linear layers and head, "
            f"measured just before it; {' and '.join(WHOLE[:2])} run whole forwards, and are taken with all of it.\n\n"
            + table(head, body)
        )
    whole = report["whole_steps"]
    if whole:
        body = []
        for w in whole:
            name = f"{w['peer']}, {w['rows']} rows, depth {w['depth']}"
            spread = f"{w['ratio_range'][0]:.2f}–{w['ratio_range'][1]:.2f}"
            body.append([name, ms(w["dlxc_ms"]), ms(w["peer_ms"]), verdict(w["ratio"], w["goal"]), spread])
            if a := w.get("attention"):
                body.append([f"{name}, attention alone", ms(a["dlxc_ms"]), ms(a["peer_ms"]), verdict(a["ratio"], a["goal"]), ""])
        head = ["whole step and head", "dlxc ms", "peer ms", "ratio, goal", "range over rounds"]
        text.append("## Whole steps\n\n" + table(head, body))
    if report["failures"]:
        lines = [f"- {peer}: {why}" for peer, why in sorted(report["failures"].items())]
        text.append("## Not measured\n\n" + "\n".join(lines) + "\n")
    return "\n".join(text)
