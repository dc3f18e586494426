#!/usr/bin/env python3
"""Memory certificates of full-size shapes against what `dlxc run` takes with full caches.

For each shape: random weights, int4, then a run per number of threads, mapped and read. The certificate is that of
`dlxc inspect --threads N`; what a run takes is the most that the system ever saw of its process. Fails when a certificate is
exceeded, or when more than 5 % of it is never used. A tokenizer with as many merges as a public one takes the place of the
random model's own, which has none, unless --plain is given. Everything is made in --dir, and deleted when its shape is done.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Shapes, sequence lengths that two cores fill in minutes, and how: full attention computes all of them in each pass.
SHAPES = {"qwen3-0.6b": (2048, []), "sdar-1.7b": (1024, []), "llada-8b": (256, ["--steps", "1", "--max-new", "32"])}
GAP = 0.05


def peak_of(command, stdin):
    """Status, largest resident set in bytes, stdout and stderr of a command."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write(stdin)
        process.stdin.close()
        out, err = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024, out, err


def merged(path):
    """Replaces the words of a tokenizer.json by joins of tokens, with the merges that make them."""
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    letters = sorted(vocab, key=vocab.get)[:256]
    made, merges = {token: i for i, token in enumerate(letters)}, []
    joins = ((a, b) for a in letters for b in letters)
    longer = ((a + b, c) for a in letters for b in letters for c in letters[:2])
    for pairs in (joins, longer):
        for a, b in pairs:
            if len(made) < len(vocab) and a + b not in made:
                made[a + b] = len(made)
                merges.append([a, b])
    tokenizer["model"].update(vocab=made, merges=merges)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


def prompt_for(dlxc, artifact, rows):
    """A prompt of about `rows` tokens."""
    text = "The fox lived by the river and found gold there. " * (rows // 4)
    error = peak_of([dlxc, "run", artifact, "--raw", "--max-new", "1"], text)[3]
    tokens = re.search(r"the prompt has (\d+) tokens", error)
    if not tokens:
        sys.exit(f"no prompt of {rows} tokens could be made: {error}")
    return text[: len(text) * rows // int(tokens[1])]


def measure(shape, max_seq, options, args):
    model, artifact = args.dir / shape, args.dir / f"{shape}.dlxa"
    if not (model / "config.json").exists():
        subprocess.run([args.dlxc, "synth", shape, "-o", model], check=True)
    if not args.plain:
        merged(model / "tokenizer.json")
    subprocess.run(
        [args.dlxc, "compile", model, "-o", artifact, "--max-seq", str(max_seq)], check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(model)
    prompt = prompt_for(args.dlxc, artifact, max_seq - 33)
    failed = False
    for threads in args.threads:
        report = subprocess.run(
            [args.dlxc, "inspect", artifact, "--threads", str(threads), "--json"], check=True, capture_output=True
        )
        certified = json.loads(report.stdout)["manifest"]["memory"][0]["total"]
        for mapping in ([], ["--no-mmap"]):
            command = [args.dlxc, "run", artifact, "--raw", "--ignore-eos", "--json", *(options or ["--max-new", "64"])]
            status, peak, out, err = peak_of(
                [*command, "--threads", str(threads), "--max-memory", str(certified), *mapping], prompt
            )
            if status:
                sys.exit(f"{shape}: {err}")
            answer = json.loads(out)
            filled = answer["prompt_tokens"] + answer["tokens"]
            gap = 1 - peak / certified
            failed |= not 0 <= gap <= GAP or filled < max_seq - 8
            print(
                f"{shape:<12} {max_seq:>7} {filled:>6} {threads:>7} {'read' if mapping else 'mapped':<7}"
                f" {certified:>13} {peak:>13} {100 * gap:>5.1f} %",
                flush=True,
            )
    artifact.unlink()
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help="shapes of `dlxc synth`; three by default")
    parser.add_argument("--dlxc", default="target/release/dlxc", help="the program")
    parser.add_argument("--dir", type=Path, default=Path("target/memory"), help="where everything is made")
    parser.add_argument("--max-seq", type=int, help="cache rows, instead of the shape's own")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plain", action="store_true", help="keep the tokenizer without merges")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    print("shape        max-seq filled threads weights      certified          peak     gap")
    failed = []
    for shape in args.shapes:
        max_seq, options = SHAPES.get(shape, (1024, []))
        failed.append(measure(shape, args.max_seq or max_seq, options, args))
    return 1 if any(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
